"""Who is next to whom on a slide: the nearest neighbours of every spot within its field of view."""

import itertools

import numpy as np
from scipy.spatial import cKDTree


def neighbours(coords: np.ndarray, starts: np.ndarray, k: int = 50) -> np.ndarray:
    """Return the `k` nearest rows of each row, itself first, then nearest first, int32, -1 in the padding. [n, k]

    Args:
      coords: positions; rows with a NaN have no neighbour but themselves. [n, 2]
      starts: first row of every field of view and the end of the last one; neighbours never cross them. [fields + 1]
    """
    nearest = np.full((len(coords), k), -1, np.int32)
    nearest[:, 0] = np.arange(len(coords))
    for start, stop in itertools.pairwise(starts):
        rows = start + np.flatnonzero(np.isfinite(coords[start:stop]).all(axis=1))
        if len(rows) < 2:
            continue
        found = cKDTree(coords[rows]).query(coords[rows], k=range(1, min(k, len(rows)) + 1))[1]
        nearest[rows, : found.shape[1]] = rows[_self_first(found)]
    return nearest


def _self_first(found: np.ndarray) -> np.ndarray:
    """Move each row's own number to the front: spots at the very same place come in any order. [n, k]"""
    own = np.arange(len(found))[:, None]
    found[~(found == own).any(axis=1), -1:] = own[~(found == own).any(axis=1)]
    order = np.argsort(found != own, axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
