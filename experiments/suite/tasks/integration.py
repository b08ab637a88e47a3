"""Batch integration by the scIB metrics; baselines: the means of the batches taken away, and Harmony if installed."""

from collections.abc import Iterator
from typing import Any

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tasks import rows
from scfm_jax.tasks.cells import embedding, integration, integration_baselines

METRICS = {name: {"text": text, "higher": True} for name, text in integration.METRICS.items()}
NEEDS = frozenset({"labels", "batches"})


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics; a baseline that is not installed has one row without a metric, and why."""
    labels, batches = embeddings.labels(study, seed, cells), study.batches[study.draw(seed, cells)]
    before = embeddings.components(study, seed, cells)
    for method, kind, x in embeddings.embeddings(entrant, study, seed, cells):
        yield from rows(method, kind, "", integration.score(x, labels, batches, before, seed=seed))
    if entrant is None:
        for method, baseline in integration_baselines.BASELINES.items():
            try:
                x = baseline(before, embedding.encode(batches), seed)
            except ImportError as error:
                yield {"method": method, "kind": "baseline", "case": "", "metric": "", "value": None, "why": str(error)}
                continue
            yield from rows(method, "baseline", "", integration.score(x, labels, batches, before, seed=seed))


def installed() -> str | None:
    """Return the version of Harmony, None where it is not installed."""
    return integration_baselines.version()
