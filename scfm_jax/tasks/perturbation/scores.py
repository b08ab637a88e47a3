"""Scores of predicted perturbation effects, those that the field expects, on means of conditions.

An effect is a condition's mean log-normalised expression minus the mean of control cells. For each condition:

  mse_top        squared error over the 20 genes of largest |t| between the condition's cells and control (GEARS)
  pearson, pearson_top    correlation of predicted and true effect over all genes, over these 20
  centred, centred_top    the same of expression minus the mean of *perturbed* training conditions, not of control:
                 what all perturbations have in common earns nothing (Systema, Viñas Torné et al. 2025)
  discrimination    1 - (how many other conditions are closer to the prediction than the right one) / conditions, by L1
                 over all genes but the condition's targets; ties count half (cell-eval). 1/2 for any one prediction
  direction      share of the 20 genes whose effect has the right sign; 0 has none
  rmse, rmse_top    root of the mean squared error over all genes, over these 20 (CellPLM)
  recall         share of the 50 genes of largest |t| among the 50 of largest predicted effect
  energy         energy distance of predicted to true cells, where cells are predicted (`energy_distance`)

Correlation with the expression itself is about .98 for anything, and lists of genes that are taken from the cells that
are scored on serve the scoring alone. A constant has no correlation: it counts as 0, so that "no change" can be shown.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

TOP, RECALLED = 20, 50
LABELS = {
    "pearson": "Pearson of change",
    "pearson_top": "of top 20",
    "centred": "beyond the mean change",
    "centred_top": "of top 20",
    "mse_top": "MSE of top 20",
    "discrimination": "discrimination",
    "direction": "right directions",
    "recall": "DE recall@50",
    "rmse": "RMSE",
    "rmse_top": "of top 20",
    "energy": "energy distance",
}
"""What the table calls each score."""


def t_statistics(cells: sparse.csr_matrix, control: sparse.csr_matrix) -> np.ndarray:
    """Return Welch's t of each gene between two groups of cells, log-normalised; 0 where neither varies. [G]"""
    (mean, error), (base, base_error) = (_moments(group) for group in (cells, control))
    spread = np.sqrt(error + base_error)
    return np.divide(mean - base, spread, out=np.zeros_like(mean), where=spread > 0)


def _moments(cells: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each gene and the squared standard error of it. [G], [G]"""
    n = cells.shape[0]
    mean = np.asarray(cells.mean(0)).ravel()
    square = np.asarray(cells.multiply(cells).sum(0)).ravel()
    return mean, np.maximum(square - n * mean**2, 0) / max(n - 1, 1) / n


def largest(values: np.ndarray, number: int) -> np.ndarray:
    """Return the places of the `number` largest |values| of each row, the first where they are equal. [C, number]"""
    return np.argsort(-np.abs(values), axis=-1, kind="stable")[..., :number]


def pearson(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the correlation of two vectors; 0 where one of them is constant."""
    a, b = predicted - predicted.mean(), true - true.mean()
    length = np.sqrt((a @ a) * (b @ b))
    scale = max(np.abs(predicted).max(), np.abs(true).max(), 1e-30)
    return 0.0 if min(a @ a, b @ b) <= (1e-7 * scale) ** 2 * len(a) else float(a @ b / length)


def of_conditions(
    predicted: np.ndarray,
    true: np.ndarray,
    t: np.ndarray,
    reference: np.ndarray,
    targets: Sequence[Sequence[int]],
) -> dict[str, np.ndarray]:
    """Return every score of each condition that is made of means. [C] each

    Args:
      predicted, true: effects. [C, G]
      t: statistics of the true cells against control, which choose the genes. [C, G]
      reference: mean effect of the conditions that were trained on, one for all or one for each. [G] or [C, G]
      targets: places of the targets of each condition among the genes; none that was not measured.
    """
    reference = np.broadcast_to(reference, true.shape)
    top, many = largest(t, TOP), largest(t, RECALLED)
    chosen = largest(predicted, RECALLED)
    scores: dict[str, list[float]] = {name: [] for name in LABELS if name not in ("discrimination", "energy")}
    for p, y, r, some, de, mine in zip(predicted, true, reference, top, many, chosen, strict=True):
        scores["mse_top"].append(float(((p - y)[some] ** 2).mean()))
        scores["rmse"].append(float(((p - y) ** 2).mean() ** 0.5))
        scores["rmse_top"].append(scores["mse_top"][-1] ** 0.5)
        scores["pearson"].append(pearson(p, y))
        scores["pearson_top"].append(pearson(p[some], y[some]))
        scores["centred"].append(pearson(p - r, y - r))
        scores["centred_top"].append(pearson((p - r)[some], (y - r)[some]))
        scores["direction"].append(float((np.sign(p[some]) == np.sign(y[some])).mean()))
        scores["recall"].append(len(set(de) & set(mine)) / len(de) if np.abs(p).max() > 0 else 0.0)
    table = {name: np.array(values) for name, values in scores.items()}
    return table | {"discrimination": discrimination(predicted, true, targets)}


def discrimination(predicted: np.ndarray, true: np.ndarray, targets: Sequence[Sequence[int]]) -> np.ndarray:
    """Return 1 - rank / C of the right condition among all by L1 distance to the prediction, ties in the middle. [C]

    A condition's own targets do not count: that the target falls is no feat.
    """
    scores = np.empty(len(true))
    for i, (p, own_genes) in enumerate(zip(predicted, targets, strict=True)):
        kept = np.ones(true.shape[1], bool)
        kept[list(own_genes)] = False
        distance = np.abs(p[kept] - true[:, kept]).sum(1)
        near = np.isclose(distance, distance[i], rtol=1e-9, atol=1e-12)
        rank = ((distance < distance[i]) & ~near).sum() + (near.sum() - 1) / 2
        scores[i] = 1 - rank / len(true)
    return scores


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two groups of cells, Euclidean, no cell with itself.

    [n, G], [m, G]. About 0 where both are of one kind.
    """

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        square = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        return np.sqrt(np.maximum(square, 0))

    within = [(apart(a, a) * (1 - np.eye(len(a)))).sum() / max(len(a) * (len(a) - 1), 1) for a in (x, y)]
    return float(2 * apart(x, y).mean() - sum(within))


def bootstrap(values: Sequence[float], draws: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over conditions and its 95 % interval, conditions drawn with replacement; NaN without any."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return (np.nan,) * 3
    means = values[np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values.mean()), float(low), float(high)
