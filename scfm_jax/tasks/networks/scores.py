"""Scores of a ranking of regulator-target pairs against a network that was measured.

Pairs are those of a regulator and a target of the truth, a gene with itself left out: `pairs` picks them, [N] each.
Ties in the ranking count as their expectation over all orders of the tied, so a constant ranking scores as chance does.

  early precision ratio   hits among the first K pairs, K edges being true, over what chance has there, K^2 / N
  AUPR ratio              average precision over the share of true pairs
  AUROC                   chance has 0.5
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def pairs(
    strength: np.ndarray, truth: np.ndarray, regulators: Sequence[int], targets: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return |strength|, truth and the regulator of each regulator-target pair that is not a gene with itself. [N] each

    Args:
      strength, truth: rows are targets, columns regulators. [n, n]
      regulators, targets: genes that count as such, by default all as targets.

    ValueError where no true pair is left, or no false one.
    """
    n = len(strength)
    allowed = np.zeros((n, n), bool)
    allowed[np.ix_(np.arange(n) if targets is None else targets, regulators)] = True
    np.fill_diagonal(allowed, False)
    row, column = np.nonzero(allowed)
    true = np.asarray(truth, bool)[row, column]
    if not true.any() or true.all():
        raise ValueError(f"{true.sum()} of {len(true)} pairs are true: scores need some that are and some that are not")
    return np.abs(strength[row, column]), true, column


def early_hits(score: np.ndarray, true: np.ndarray, k: int | None = None) -> float:
    """Return how many of the first k pairs are true, by default as many as there are true ones. [N], bool [N]"""
    k = k or int(true.sum())
    least = np.partition(score, -k)[-k]
    above, tied = score > least, score == least
    return float(true[above].sum() + (k - above.sum()) * true[tied].mean())


def early_precision_ratio(score: np.ndarray, true: np.ndarray, k: int | None = None) -> float:
    """Return the early hits over those of chance, K^2 / N."""
    return early_hits(score, true, k) * len(true) / float(k or true.sum()) ** 2


def average_precision(score: np.ndarray, true: np.ndarray) -> float:
    """Return the mean over true pairs of the share of true ones among pairs ranked as high; NaN where none is true."""
    return _average_precision(true[np.argsort(-score, kind="stable")], _ends(score)) if true.any() else float("nan")


def aupr_ratio(score: np.ndarray, true: np.ndarray) -> float:
    """Return the average precision over the share of true pairs."""
    return average_precision(score, true) / float(true.mean())


def auroc(score: np.ndarray, true: np.ndarray) -> float:
    """Return the probability that a true pair is ranked above a false one, ties half; NaN where one kind is missing."""
    n_true, n_false = int(true.sum()), int((~true).sum())
    if not n_true or not n_false:
        return float("nan")
    return float((stats.rankdata(score)[true].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def per_regulator(score: np.ndarray, true: np.ndarray, regulator: np.ndarray) -> dict[int, float]:
    """Return the average precision among the pairs of each regulator that has true and false ones."""
    groups = {int(r): regulator == r for r in np.unique(regulator)}
    mixed = {r: rows for r, rows in groups.items() if true[rows].any() and not true[rows].all()}
    return {r: average_precision(score[rows], true[rows]) for r, rows in mixed.items()}


SCORES = {"epr": early_precision_ratio, "aupr_ratio": aupr_ratio, "auroc": auroc}


def scores(score: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return the SCORES of a ranking. [N], bool [N]"""
    return {name: function(score, true) for name, function in SCORES.items()}


def permutation_interval(
    score: np.ndarray,
    true: np.ndarray,
    regulator: np.ndarray | None = None,
    *,
    number: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval in which each of the SCORES lies where the truth is permuted over the pairs.

    Args:
      regulator: of each pair; then the truth is permuted among the pairs of each, so that regulators keep their number
        of targets and a ranking earns nothing by knowing who has many. None permutes it over all.
    """
    rng, drawn = np.random.default_rng(seed), {name: [] for name in SCORES}
    rows = None if regulator is None else [np.flatnonzero(regulator == r) for r in np.unique(regulator)]
    for _ in range(number):
        shuffled = true.copy() if rows else rng.permutation(true)
        for group in rows or []:
            shuffled[group] = true[rng.permutation(group)]
        for name, value in scores(score, shuffled).items():
            drawn[name].append(value)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {name: tuple(map(float, np.quantile(values, tails))) for name, values in drawn.items()}


def _ends(score: np.ndarray) -> np.ndarray:
    """Return the last place of each run of equal scores, in falling order."""
    falling = -np.sort(-score)
    return np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def _average_precision(true: np.ndarray, ends: np.ndarray) -> float:
    """Return the average precision of pairs in falling order, whose tied runs end at `ends`."""
    hits = np.cumsum(true)[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / hits[-1])
