"""Cell types by a vote of the five nearest neighbours in the embedding, over folds of the cells."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Study
from scfm_jax.tasks.cells import embedding

METRICS = {name: {"text": embedding.METRICS[name], "higher": True} for name in ("accuracy", "f1")}
NEEDS = frozenset({"labels"})
installed = embeddings.installed


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield accuracy and macro-F1 of a vote of five neighbours."""
    counted, codes = embedding.countable(embeddings.labels(study, seed, cells))

    def scores(x: np.ndarray) -> dict[str, float]:
        return embedding.knn_scores(x[counted], codes, seed=seed)

    yield from embeddings.scored(entrant, study, seed, cells, scores)
