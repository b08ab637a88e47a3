"""Batch integration by the scIB metrics; baselines: batch means taken away, Harmony and scVI where installed."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.suite import embeddings, tasks
from experiments.suite.entrants import Entrant, Study
from scfm_jax.tasks.cells import embedding, integration, integration_baselines

METRICS = {name: {"text": text, "higher": True} for name, text in integration.METRICS.items()}
NEEDS = frozenset({"labels", "batches"})


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics; a baseline that is not installed has one row without a metric, and why."""
    labels, batches = embeddings.labels(study, seed, cells), study.batches[study.draw(seed, cells)]
    before = embeddings.components(study, seed, cells)

    def scores(x: np.ndarray) -> dict[str, float]:
        return integration.score(x, labels, batches, before, seed=seed)

    yield from embeddings.scored(entrant, study, seed, cells, scores)
    if entrant is None:
        for method, baseline in integration_baselines.BASELINES.items():
            try:
                x = baseline(before, embedding.encode(batches), seed)
            except ImportError as error:
                yield tasks.absent(method, error)
                continue
            yield from tasks.rows(method, "baseline", "", scores(x))


def installed() -> dict[str, str | None]:
    """Return the versions of Harmony and scVI, None where they are not installed."""
    return {"harmony": integration_baselines.version(), "scvi": embeddings.installed()}
