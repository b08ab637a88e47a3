"""The nearest neighbours of every spot on a slide, within its field of view."""

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
        near = cKDTree(coords[rows]).query(coords[rows], k=range(1, min(k, len(rows)) + 1))[1]
        nearest[rows, : near.shape[1]] = rows[_self_first(near)]
    return nearest


def in_fields(coords: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Return positions scaled to [0, 1] over each field of view, float32; NaN stays NaN. [n, 2]

    Either axis by itself: no paper says that the shape of a field is kept.

    Args:
      coords: in the units of the data. [n, 2]
      fields: any number for each row's field. [n]
    """
    names, fields = np.unique(fields, return_inverse=True)
    low, high = np.full((len(names), 2), np.inf), np.full((len(names), 2), -np.inf)
    np.fmin.at(low, fields, coords)
    np.fmax.at(high, fields, coords)
    scaled = (coords - low[fields]) / np.maximum(high - low, 1e-9)[fields]
    return np.where(np.isfinite(scaled), scaled, np.nan).astype(np.float32)


def _self_first(near: np.ndarray) -> np.ndarray:
    """Move each row's own number to the front: spots at the very same place come in any order. [n, k]"""
    numbers = np.arange(len(near))[:, None]
    near[~(near == numbers).any(axis=1), -1:] = numbers[~(near == numbers).any(axis=1)]
    order = np.argsort(near != numbers, axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1)
