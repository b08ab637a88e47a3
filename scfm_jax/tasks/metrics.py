"""Scores of predictions: functions of arrays that return floats, as CellPLM's evaluation defines them.

Where its code and its intention differ both are here: see `imputation_scores`.
"""

import numpy as np
import pandas as pd

from scfm_jax.tasks.expression import log_normalised

ZERO_RATES = (0, 0.75, 0.9, 0.95, 1)  # the bins of `stratified_genes`


def classification_scores(predicted: np.ndarray, true: np.ndarray, n_classes: int | None = None) -> dict[str, float]:
    """Return macro averages over the classes that occur: acc (which is macro recall), f1_score, precision, recall."""
    n_classes = n_classes or int(max(predicted.max(), true.max())) + 1
    hits = np.bincount(true[predicted == true], minlength=n_classes).astype(float)
    guesses, truths = np.bincount(predicted, minlength=n_classes), np.bincount(true, minlength=n_classes)
    occurs = guesses + truths > 0

    def macro(top: np.ndarray, bottom: np.ndarray) -> float:
        return float(np.where(bottom > 0, top / np.maximum(bottom, 1), 0)[occurs].mean())

    recall = macro(hits, truths)
    return {
        "acc": recall,
        "f1_score": macro(2 * hits, guesses + truths),
        "precision": macro(hits, guesses),
        "recall": recall,
    }


def regression_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return mse, rmse, mae, corr (Pearson) and cos of two vectors; corr is NaN where one of them is constant."""
    predicted, true = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    mse = float(np.mean((predicted - true) ** 2))
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(np.abs(predicted - true).mean()),
        "corr": _cosine(predicted - predicted.mean(), true - true.mean(), 0.0),
        "cos": _cosine(predicted, true, 1e-8),
    }


def imputation_scores(predicted: np.ndarray, true: np.ndarray, published_rmse: bool = False) -> dict[str, float]:
    """Return the means over genes of each gene's mse, rmse, mae, corr and cos; predictions are clipped at 0. [C, V]

    Args:
      predicted, true: log1p of counts.
      published_rmse: the released code averages the roots of every prefix of the list of genes (the i-th of n genes
        counts n - i times) instead of the roots of the genes.
    """
    genes = [regression_scores(p, t) for p, t in zip(np.maximum(predicted, 0).T, np.asarray(true).T, strict=True)]
    scores = {name: float(np.mean([gene[name] for gene in genes])) for name in genes[0]}
    if published_rmse:
        weight = np.arange(len(genes), 0, -1)
        scores["rmse"] = float(np.average([gene["rmse"] for gene in genes], weights=weight))
    return scores


def denoising_scores(
    predicted: np.ndarray, true: np.ndarray, mask: np.ndarray | None = None, normalize: bool = True
) -> dict[str, float]:
    """Return mse, rmse, mae, corr and cos over the entries of `mask`, or over all (corr and cos: means over cells).

    Args:
      predicted, true: expression. [C, V]
      normalize: scale each cell to 10,000 and take log1p of both first.
    """
    if normalize:
        predicted, true = (log_normalised(x) for x in (predicted, true))
    if mask is not None:
        return regression_scores(predicted[mask], true[mask])
    scores = regression_scores(predicted.ravel(), true.ravel())
    cells = [regression_scores(p, t) for p, t in zip(predicted, true, strict=True)]
    return scores | {name: float(np.mean([cell[name] for cell in cells])) for name in ("corr", "cos")}


def stratified_genes(counts: np.ndarray, seed: int = 10, per_bin: int = 25) -> list[int]:
    """Choose genes to hold out: at most `per_bin` of each bin of zero rates. [C, V] -> column numbers, bin by bin.

    The draw is pandas' own, so that the genes are those of the published benchmark; genes without a zero are in no bin.
    """
    rates = pd.Series(1 - np.count_nonzero(counts, axis=0) / len(counts))
    bins = rates.groupby(pd.cut(rates, ZERO_RATES, labels=False))
    return [int(i) for _, rate in bins for i in rate.sample(min(len(rate), per_bin), random_state=seed).index]


def _cosine(a: np.ndarray, b: np.ndarray, floor: float) -> float:
    """Return the cosine of two vectors, each norm at least `floor` (0: NaN for a null vector)."""
    norms = max(np.linalg.norm(a), floor) * max(np.linalg.norm(b), floor)
    return float(a @ b / norms) if norms else float("nan")
