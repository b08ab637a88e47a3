"""Where batches come from: what training asks of a loader."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from scfm_jax.types import Batch

_FIELDS = tuple(field.name for field in dataclasses.fields(Batch))


class Loader(Protocol):
    """Where batches come from: dicts of numpy arrays with the fields of `Batch`, this process's share of the bags."""

    def batch(self, step: int) -> Mapping[str, Any]:
        """Return the batch of a step."""

    def iter(self, start_state: Any = None) -> Iterator[Mapping[str, Any]]:
        """Return an endless iterator from a position on; its `get_state()` is the position after the last batch,
        JSON-able.
        """

    def epoch_batches(self) -> Iterable[Mapping[str, Any]]:
        """Return one pass over all cells."""


def to_batch(arrays: Mapping[str, Any]) -> Batch:
    """Return what a loader ships as a `Batch`."""
    return Batch(**{name: arrays[name] for name in _FIELDS})
