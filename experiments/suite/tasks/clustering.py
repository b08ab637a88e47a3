"""Leiden clusters of the embedding against cell types, as CellPLM's paper and scIB score them."""

from collections.abc import Iterator
from typing import Any

from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tasks import rows
from scfm_jax.tasks.cells import embedding

METRICS = {name: {"text": embedding.METRICS[name], "higher": True} for name in ("nmi", "ari", "nmi_best", "ari_best")}
NEEDS = frozenset({"labels"})


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield NMI and ARI of Leiden clusters at resolution 1, and at the best resolution by the labels."""
    counted, codes = embedding.countable(embeddings.labels(study, seed, cells))
    for method, kind, x in embeddings.embeddings(entrant, study, seed, cells):
        clusters = {r: embedding.leiden(x[counted], resolution=r, seed=seed) for r in embedding.RESOLUTIONS}
        scores = {}
        for name, metric in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):
            scores[name] = float(metric(codes, clusters[1.0]))
            scores[f"{name}_best"] = max(float(metric(codes, each)) for each in clusters.values())
        yield from rows(method, kind, "", scores)
