"""Scores of predicted drug response and synergy, with those that a table of means cannot win.

Drugs differ far more in their IC50 than lines do in theirs to one drug, so a table of means has a pooled correlation of
.89: what counts is the correlation within each drug, averaged. Likewise AUROC within each line and within each pair.
A correlation or an AUROC of a group in which nothing can be ranked is left out of the average, NaN where none is left.
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

LEAST = 3
"""Rows that a drug needs for a correlation."""
RESPONSE = {
    "within_drug": "Pearson within drug",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "rmse": "RMSE",
    "over_additive": "R² over additive",
}
SYNERGY = {
    "auroc": "AUROC",
    "aupr": "AUPR",
    "balanced_accuracy": "balanced accuracy",
    "kappa": "kappa",
    "within_line": "AUROC within line",
    "within_pair": "AUROC within pair",
}
"""What tables call each score."""


def response(
    predicted: np.ndarray, true: np.ndarray, drug: np.ndarray, additive: np.ndarray | None = None
) -> dict[str, float]:
    """Return the scores of RESPONSE.

    Args:
      predicted, true: ln IC50. [n]
      drug: of each row. [n]
      additive: what the means of drugs and lines predict, against whose squared error the last score is told. [n]
    """
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    _same(predicted, true)
    error = np.square(predicted - true)
    out = {
        "within_drug": within(pearson, predicted, true, drug, LEAST),
        "pearson": pearson(predicted, true),
        "spearman": pearson(stats.rankdata(predicted), stats.rankdata(true)),
        "rmse": float(np.sqrt(error.mean())),
    }
    if additive is not None:
        out["over_additive"] = float(1 - error.sum() / np.square(np.asarray(additive, np.float64) - true).sum())
    return out


def synergy(score: np.ndarray, label: np.ndarray, groups: Mapping[str, np.ndarray] | None = None) -> dict[str, float]:
    """Return the scores of SYNERGY.

    Args:
      score: probability of synergy; 0.5 and more says there is. [n]
      label: 0 or 1. [n]
      groups: {"line": line of each row, "pair": pair of drugs}, within which AUROC is averaged. [n] each
    """
    score, label = np.asarray(score, np.float64), np.asarray(label).astype(bool)
    _same(score, label)
    said = score >= 0.5
    hit, right = (float(x[y].mean()) if y.any() else np.nan for x, y in ((said, label), (~said, ~label)))
    agree, chance = (said == label).mean(), said.mean() * label.mean() + (1 - said.mean()) * (1 - label.mean())
    out = {
        "auroc": auroc(score, label),
        "aupr": aupr(score, label),
        "balanced_accuracy": (hit + right) / 2,
        "kappa": float((agree - chance) / (1 - chance)) if chance < 1 else np.nan,
    }
    return out | {f"within_{name}": within(auroc, score, label, of) for name, of in (groups or {}).items()}


def within(score, predicted: np.ndarray, true: np.ndarray, group: np.ndarray, least: int = 2) -> float:
    """Return the mean of a score over groups of at least `least` rows in which it is a number."""
    _, code, number = np.unique(np.asarray(group), return_inverse=True, return_counts=True)
    order = np.argsort(code, kind="stable")
    parts = np.split(order, np.cumsum(number)[:-1])
    values = np.array([score(predicted[rows], true[rows]) for rows in parts if len(rows) >= least])
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else np.nan


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation; 0 where the prediction `a` is constant, NaN where the truth `b` is."""
    level = [np.abs(x).max(initial=0) for x in (a, b)]
    a, b = a - a.mean(), b - b.mean()
    if not b @ b > (1e-9 * level[1]) ** 2 * len(b):
        return np.nan
    return float(a @ b / np.sqrt((a @ a) * (b @ b))) if a @ a > (1e-6 * level[0]) ** 2 * len(a) else 0.0


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Return how often a positive scores above a negative, ties counting half; NaN without one of either."""
    label = np.asarray(label, bool)
    positive, negative = label.sum(), (~label).sum()
    if not positive or not negative:
        return np.nan
    ranks = stats.rankdata(score)[label].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * negative))


def aupr(score: np.ndarray, label: np.ndarray) -> float:
    """Return average precision: the mean over positives of the precision at their score; NaN without any."""
    label = np.asarray(label, bool)
    if not label.any():
        return np.nan
    order = np.argsort(-score, kind="stable")
    hits, place = np.cumsum(label[order]), np.arange(1, len(label) + 1)
    last = np.append(np.diff(score[order]) != 0, True)  # equal scores are one threshold
    hits, place = hits[last], place[last]
    return float((np.diff(hits, prepend=0) * hits / place).sum() / hits[-1])


def _same(predicted: np.ndarray, true: np.ndarray) -> None:
    if predicted.shape != true.shape or predicted.ndim != 1 or not len(true):
        raise ValueError(f"predictions of shape {predicted.shape} for {true.shape} measurements: one for each, [n]")
