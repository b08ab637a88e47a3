"""How a long loop tells how far it is: the caller gives a function that its items are passed through."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

Progress = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""Gets the items of a loop, what is done with one (such as "checked file") and their number; yields them again."""


def silent(items: Iterable[Any], what: str, total: int) -> Iterator[Any]:
    """Yield the items and tell nothing."""
    yield from items
