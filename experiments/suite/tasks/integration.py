"""Batch integration by the scIB metrics; baselines: batch means taken away, Harmony and scVI where installed."""

from collections.abc import Iterator
from typing import Any

from experiments.suite import embeddings, mixing
from experiments.suite.entrants import Entrant, Study

METRICS = mixing.METRICS
NEEDS = frozenset({"labels", "batches"})
installed = mixing.installed


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics; a baseline that is not installed has one row without a metric, and why."""
    if entrant is None:
        yield from mixing.simple(study, seed, cells)
    else:
        yield from mixing.score(embeddings.embeddings(entrant, study, seed, cells), study, seed, cells)
