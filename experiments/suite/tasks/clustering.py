"""Leiden clusters of the embedding against cell types, as CellPLM's paper and scIB score them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Study
from scfm_jax.tasks.cells import embedding

METRICS = {name: {"text": embedding.METRICS[name], "higher": True} for name in ("nmi", "ari", "nmi_best", "ari_best")}
NEEDS = frozenset({"labels"})
installed = embeddings.installed


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield NMI and ARI of Leiden clusters at resolution 1, and at the best resolution by the labels."""
    counted, codes = embedding.countable(embeddings.labels(study, seed, cells))

    def scores(x: np.ndarray) -> dict[str, float]:
        clusters = {r: embedding.leiden(x[counted], resolution=r, seed=seed) for r in embedding.RESOLUTIONS}
        values = {}
        for name, metric in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):
            values[name] = float(metric(codes, clusters[1.0]))
            values[f"{name}_best"] = max(float(metric(codes, each)) for each in clusters.values())
        return values

    yield from embeddings.scored(entrant, study, seed, cells, scores)
