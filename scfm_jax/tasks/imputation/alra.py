"""ALRA: zeros are filled by a low-rank approximation that keeps biological zeros (Linderman et al., Nat. Commun. 2022).

The true expression is thought of as non-negative and of low rank, so the errors of a low-rank approximation spread
evenly around 0 where the truth is 0: as far as a gene goes below 0 it may go above it by error alone, and what is not
above that is a zero. What is above is scaled to the mean and deviation of the gene's positive values. Formulas and
constants are the paper's; with fewer than 101 cells or genes the spacings that pass for noise are the last fifth of
those there are.
"""

import numpy as np
from sklearn.utils.extmath import randomized_svd

from scfm_jax.tasks.expression import TARGET_SUM, log_normalised
from scfm_jax.tasks.imputation.imputation import Problem

SPACINGS = 100
"""Singular values that are looked at to choose the rank, at most."""
NOISE = 0.8
"""From this share of them on spacings are those of noise."""
DEVIATIONS = 6.0
"""A spacing that is so many standard deviations above the mean of these is none of noise."""
QUANTILE = 0.001
"""Of a gene's approximated values: its magnitude is the threshold. 0 is their minimum."""


def predict(problem: Problem, seed: int = 0) -> np.ndarray:
    """Predict from all cells of the problem, where what is hidden looks like zeros. [h]"""
    depth = np.maximum(problem.depth, 1e-9)
    filled = fill(log_normalised(problem.counts, depth, dtype=np.float64), seed=seed)
    rows, columns = problem.entries
    return np.expm1(filled[rows, columns]) * depth[rows] / TARGET_SUM


def fill(x: np.ndarray, rank: int | None = None, quantile: float = QUANTILE, seed: int = 0) -> np.ndarray:
    """Return log-normalised expression with zeros filled where they are none of biology. [n, V]

    Args:
      x: non-negative, zeros included. [n, V]
      rank: of the approximation; that of `choose_rank`, if left out.
    """
    rank = choose_rank(x, seed) if rank is None else rank
    u, s, v = randomized_svd(x, rank, n_iter=10, random_state=seed)
    low = (u * s) @ v
    low[low <= np.abs(np.quantile(low, quantile, axis=0))] = 0
    scaled = np.maximum(_moments_of(x, low), 0)
    return np.where((x > 0) & (scaled == 0), x, scaled)


def choose_rank(x: np.ndarray, seed: int = 0) -> int:
    """Return the largest rank behind which singular values drop by more than they do by noise; at least 1."""
    most = min(SPACINGS, *(size - 1 for size in x.shape))
    s = randomized_svd(x, most, n_iter=2, random_state=seed)[1]
    spacings = s[:-1] - s[1:]
    noise = spacings[int(NOISE * most) - 1 :]
    behind = np.flatnonzero(spacings > noise.mean() + DEVIATIONS * noise.std(ddof=1))
    return int(behind.max(initial=0)) + 1


def _moments_of(x: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return `low` with the positive values of each gene shifted and scaled to the moments of those of `x`. [n, V]

    A gene of which either has no spread is left as it is.
    """
    (mean, deviation), (low_mean, low_deviation) = _moments(x), _moments(low)
    usable = (deviation > 0) & (low_deviation > 0)
    factor = np.where(usable, deviation / np.where(usable, low_deviation, 1), 1)
    shift = np.where(usable, mean - factor * low_mean, 0)
    return np.where(low > 0, low * factor + shift, 0)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each gene's positive values, the latter 0 of fewer than two. [V], [V]"""
    positive = x > 0
    number = positive.sum(0)
    mean = x.sum(0, where=positive) / np.maximum(number, 1)
    squares = ((x - mean) ** 2).sum(0, where=positive)
    return mean, np.sqrt(squares / np.maximum(number - 1, 1))
