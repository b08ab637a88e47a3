"""Cell types from labelled cells that lie near in an embedding, and what is too uncertain to be named.

Arrays in, arrays out.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

UNKNOWN = "unknown"
"""What a cell is called whose most probable type is not probable enough."""


def vote(reference: np.ndarray, y: np.ndarray, new: np.ndarray, n_classes: int, neighbours: int) -> np.ndarray:
    """Return the share of each type among the nearest labelled cells of each new cell. [n, D], [n], [m, D] -> [m, C]

    Args:
      y: index of the type of each labelled cell.

    Raises:
      ValueError: there are fewer labelled cells than are to vote, or an embedding is not finite.
    """
    if neighbours > len(reference):
        raise ValueError(f"neighbours={neighbours}: there are {len(reference)} labelled cells; ask for fewer")
    if not (np.isfinite(reference).all() and np.isfinite(new).all()):
        raise ValueError("the embedding has values that are not finite: it has no neighbours")
    fitted = KNeighborsClassifier(neighbours).fit(reference, y)
    shares = np.zeros((len(new), n_classes))
    shares[:, fitted.classes_] = fitted.predict_proba(new)
    return shares


def named(shares: np.ndarray, classes: Sequence[str], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each cell's most probable type, UNKNOWN below the threshold, and its probability. [n, C] -> [n] twice"""
    probability = shares.max(1)
    names = np.array([*classes], object)[shares.argmax(1)]
    return np.where(probability < threshold, UNKNOWN, names), probability
