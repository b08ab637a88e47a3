"""Cell types by a linear head on frozen embeddings, trained on half of the cells, or on all batches but one.

Which batch is left out changes with the seed; cells of a type that the other batches do not have do not count.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.suite import embeddings
from experiments.suite.entrants import Entrant, Inapplicable, Study
from experiments.suite.tasks import rows
from scfm_jax.tasks.cells import annotation_baselines, cell_type, embedding

METRICS = {
    name: {"text": f"{text} (linear head on frozen embeddings)", "higher": name != "ece"}
    for name, text in cell_type.METRICS.items()
}
NEEDS = frozenset({"labels"})
installed = embeddings.installed


def score(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the scores of the head on cells that it did not learn from, and of baselines that learn from the counts.

    Raises:
      Inapplicable: the head has fewer than two types to learn from, or there is no other cell of these.
    """
    drawn = study.draw(seed, cells)
    counted, codes = embedding.countable(study.labels[drawn])
    kept = np.flatnonzero(counted)
    train, test = split(codes, None if study.batches is None else embedding.encode(study.batches[drawn])[kept], seed)
    classes, y = np.unique(codes[train], return_inverse=True)
    test = test[np.isin(codes[test], classes)]
    if len(classes) < 2 or not len(test):
        raise Inapplicable(f"{study.name}: the cells to learn from have {len(classes)} of the types that are asked for")
    names, truth = [str(c) for c in classes], [str(c) for c in codes[test]]

    def scores(x: np.ndarray) -> dict[str, float]:
        x = x[kept]
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, random_state=seed)).fit(x[train], y)
        return _scores(truth, head.predict_proba(x[test]), names)

    yield from embeddings.scored(entrant, study, seed, cells, scores)
    if entrant is None:
        counts = sp.csr_matrix(study.counts.take(drawn))[kept]
        for method, baseline in annotation_baselines.BASELINES.items():
            shares = baseline(counts[train], y, counts[test], len(classes), seed)
            yield from rows(method, "baseline", "", _scores(truth, shares, names))


def split(codes: np.ndarray, batches: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells to learn from and those to be asked for.

    Args:
      codes: of the types. [n]
      batches: codes, -1 for none; None draws half of the cells of each type. [n]
    """
    if batches is None:
        return next(StratifiedShuffleSplit(1, test_size=0.5, random_state=seed).split(codes, codes))
    names = np.unique(batches[batches >= 0])
    left_out = batches == names[seed % len(names)]
    return np.flatnonzero((batches >= 0) & ~left_out), np.flatnonzero(left_out)


def _scores(truth: list[str], shares: np.ndarray, names: list[str]) -> dict[str, float]:
    scores = cell_type.score(truth, shares, names)
    return {metric: scores[metric] for metric in cell_type.METRICS}
