"""How long something still takes: durations in words, and a line for what is done of a long list."""

import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")
EVERY_S = 5.0
"""Seconds between two lines."""


def counted(
    items: Collection[Item], what: str, say: Callable[[str], None] = print, clock: Callable[[], float] = time.monotonic
) -> Iterator[Item]:
    """Yield the items, and between them tell `say` "<what> 12 of 66, ETA 3 min", every few seconds and at the end.

    Args:
      what: is done with an item, such as "scored".
      say: where lines go; `lambda text: None` for nowhere. clock: seconds.
    """
    began = told = clock()
    for done, item in enumerate(items, 1):
        yield item
        now = clock()
        if done == len(items):
            say(f"{what} {done} of {done} in {words(now - began)}")
        elif now - told >= EVERY_S:
            told = now
            say(f"{what} {done} of {len(items)}, ETA {words((now - began) / done * (len(items) - done))}")


def words(seconds: float) -> str:
    """Return a duration as one reads it: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
