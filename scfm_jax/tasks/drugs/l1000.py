"""Scores of predicted changes of expression after a drug, as DeepCE evaluates them on L1000 profiles.

Profiles are rows [n, G]. Correlations and precisions are means over profiles, the error is of all entries together.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

PRECISION_AT = (10, 20, 50, 100)
PUBLISHED_TRUTH = 100


def scores(
    predicted: np.ndarray, true: np.ndarray, precision_at: Sequence[int] = PRECISION_AT, published_truth: bool = False
) -> dict[str, float]:
    """Return rmse, pearson, spearman, and positive@k and negative@k for each k.

    A correlation is NaN where a profile is constant. Arguments: see `precision`.
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if predicted.shape != true.shape:
        raise ValueError(f"predictions of shape {predicted.shape} for profiles of {true.shape}: one for each")
    ranks = stats.rankdata(predicted, axis=1), stats.rankdata(true, axis=1)
    out = {"rmse": float(np.sqrt(np.square(predicted - true).mean()))}
    out |= {"pearson": _correlation(predicted, true), "spearman": _correlation(*ranks)}
    for k in precision_at:
        out[f"negative@{k}"], out[f"positive@{k}"] = precision(predicted, true, k, published_truth)
    return out


def precision(predicted: np.ndarray, true: np.ndarray, k: int, published_truth: bool = False) -> tuple[float, float]:
    """Return which share of the k genes predicted lowest are truly the lowest, and the same of the highest.

    Args:
      published_truth: compare with the true 100 for every k, as DeepCE's code does, not with the true k.

    ValueError where there are fewer genes.
    """
    size = PUBLISHED_TRUTH if published_truth else k
    if not 0 < k <= true.shape[1] or size > true.shape[1]:
        raise ValueError(f"precision at {k} of the true {size}: there are {true.shape[1]} genes")
    shares = []
    for sign in (1, -1):
        guess, truth = (np.argsort(sign * x, axis=1, kind="stable") for x in (predicted, true))
        hits = [np.isin(g, t).mean() for g, t in zip(guess[:, :k], truth[:, :size], strict=True)]
        shares.append(float(np.mean(hits)))
    return shares[0], shares[1]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean of the rows' correlations."""
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())
