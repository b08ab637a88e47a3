"""What tasks of a suite that score the integration of batches share: the scores, and methods that correct PCA-50."""

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
    for method, baseline in integration_baselines.BASELINES.items():
        try:
            x = baseline(before, embedding.encode(batches), seed)
        except ImportError as error:
            yield {"method": method, "kind": "baseline", "case": case, "metric": "", "value": None, "why": str(error)}
            continue
        yield from score([(method, "baseline", x)], study, seed, cells, case)


def installed() -> str | None:
    """Return the version of Harmony, None where it is not installed."""
    return integration_baselines.version()
