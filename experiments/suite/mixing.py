"""What tasks of a suite that score the integration of batches share: the scores, and methods that correct PCA-50."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from experiments.suite import embeddings, tasks
from experiments.suite.entrants import Study
from scfm_jax.tasks.cells import embedding, integration, integration_baselines

METRICS = {name: {"text": text, "higher": True} for name, text in integration.METRICS.items()}


def score(
    embedded: Iterable[tuple[str, str, np.ndarray]], study: Study, seed: int, cells: int, case: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics of embeddings, (name, kind, values [n, D]), of the cells that a seed draws."""
    labels, batches = embeddings.labels(study, seed, cells), study.batches[study.draw(seed, cells)]
    before = embeddings.components(study, seed, cells)
    for method, kind, x in embedded:
        yield from tasks.rows(method, kind, case, integration.score(x, labels, batches, before, seed=seed))


def simple(study: Study, seed: int, cells: int, case: str = "") -> Iterator[dict[str, Any]]:
    """Yield the scores of baselines and controls; a baseline that is not installed has one row without a metric."""
    before, batches = embeddings.components(study, seed, cells), study.batches[study.draw(seed, cells)]
    yield from score(embeddings.embeddings(None, study, seed, cells), study, seed, cells, case)
    arguments = before, embedding.encode(batches), seed
    methods = {name: functools.partial(make, *arguments) for name, make in integration_baselines.BASELINES.items()}
    for method, make in (methods | {"scVI": functools.partial(embeddings.scvi, study, seed, cells)}).items():
        try:
            x = make()
        except ImportError as error:
            yield tasks.absent(method, error) | {"case": case}
            continue
        yield from score([(method, "baseline", x)], study, seed, cells, case)


def installed() -> dict[str, str | None]:
    """Return the versions of Harmony and scVI, None where they are not installed."""
    return {"harmony": integration_baselines.version(), "scvi": embeddings.installed()}
