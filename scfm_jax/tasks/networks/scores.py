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

BLOCK = 50
"""Permutations that are scored at a time."""


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
    if not true.any():
        return float("nan")
    return float(_average_precision(np.cumsum(true[np.argsort(-score, kind="stable")]), _ends(score)))


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


def scores(score: np.ndarray, true: np.ndarray, regulator: np.ndarray | None = None) -> dict[str, float]:
    """Return the SCORES of a ranking, and where regulators [N] are named the mean of `per_regulator`: regulator_ap."""
    values = {name: function(score, true) for name, function in SCORES.items()}
    if regulator is not None:
        of = list(per_regulator(score, true, regulator).values())
        values["regulator_ap"] = float(np.mean(of)) if of else float("nan")
    return values


def oracle_of_degrees(truth: np.ndarray) -> np.ndarray:
    """Return the strengths of one who knows how many partners each gene has, and nothing of which. [n, n] -> [n, n]

    What a ranking earns up to its scores may be but that it knows the hubs.
    """
    return np.multiply.outer(truth.sum(1), truth.sum(0)).astype(float)


def permutation_interval(
    score: np.ndarray,
    true: np.ndarray,
    regulator: np.ndarray | None = None,
    *,
    within: bool = True,
    number: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the interval in which each of the `scores` lies where the truth is permuted over the pairs.

    Args:
      regulator: of each pair, where there are to be scores by regulator.
      within: the truth is permuted among the pairs of each regulator, so that they keep their number of targets and a
        ranking earns nothing by knowing who has many. Else, and without regulators, it is permuted over all.
    """
    rng, drawn = np.random.default_rng(seed), []
    inside = within and regulator is not None
    rows = [np.flatnonzero(regulator == r) for r in np.unique(regulator)] if inside else [np.arange(len(true))]
    for start in range(0, number, BLOCK):
        shuffled = np.tile(true, (min(BLOCK, number - start), 1))
        for part in shuffled:
            for group in rows:
                part[group] = true[rng.permutation(group)]
        drawn.append(_of_many(score, shuffled, regulator))
    tails = [(1 - level) / 2, (1 + level) / 2]
    values = {name: np.concatenate([part[name] for part in drawn]) for name in drawn[0]}
    return {name: tuple(map(float, np.nanquantile(value, tails))) for name, value in values.items()}


def _of_many(score: np.ndarray, true: np.ndarray, regulator: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the `scores` of one ranking [N] by several truths of as many edges each, bool [P, N]. {name: [P]}"""
    order = np.argsort(-score, kind="stable")
    ends, falling = _ends(score), score[order]
    hits = np.pad(np.cumsum(true[:, order], 1), ((0, 0), (1, 0)))  # among the first 0 to N pairs
    k, n = int(hits[0, -1]), len(score)
    above, least = int((falling > falling[k - 1]).sum()), int((falling >= falling[k - 1]).sum())
    early = hits[:, above] + (k - above) * (hits[:, least] - hits[:, above]) / (least - above)
    values = {"epr": early * n / k**2, "aupr_ratio": _average_precision(hits[:, 1:], ends) * n / k}
    values["auroc"] = (true @ stats.rankdata(score) - k * (k + 1) / 2) / (k * (n - k))
    if regulator is not None:
        groups = [order[regulator[order] == r] for r in np.unique(regulator)]  # the strongest pairs first
        of = [_average_precision(np.cumsum(true[:, group], 1), _ends(score[group])) for group in groups]
        mixed = [true[:, group].any(1) & ~true[:, group].all(1) for group in groups]
        total, number = np.where(mixed, of, 0).sum(0), np.sum(mixed, 0)
        values["regulator_ap"] = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return values


def _ends(score: np.ndarray) -> np.ndarray:
    """Return the last place of each run of equal scores, in falling order."""
    falling = -np.sort(-score)
    return np.flatnonzero(np.append(falling[1:] != falling[:-1], True))


def _average_precision(hits: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the average precision by the number of true pairs among the first 1 to N, whose tied runs end at `ends`.

    0 where no pair is true. [..., N] -> [...]
    """
    hits = hits[..., ends]
    return (np.diff(hits, prepend=0) * hits / (ends + 1)).sum(-1) / np.maximum(hits[..., -1], 1)
