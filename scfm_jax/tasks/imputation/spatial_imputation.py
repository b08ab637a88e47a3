"""Spatial imputation: genes that a spatial study did not measure, with single cells of the same tissue as reference.

CellPLM's setting (Wen et al., ICLR 2024): at most 25 genes of each part of sparsity are held out of all cells of the
study; the reference has them. A model whose cells attend to each other is given the cells of both studies together,
the held-out genes missing in one of them; other models are given the cells of the study, and have the reference only
if they learned from it. Scores are of log1p counts, gene by gene, then the mean over genes, the root of each gene's own
error ("rmse" is not the released code's, which averages over a growing list).

Differences: genes without a count in the cells at hand are not held out; a prediction that is the same in all cells has
a correlation of 0, where the original has none at all; the mean of a gene in the reference times the cell's depth is
shown beside the models.
"""

from collections.abc import Sequence

import numpy as np

from scfm_jax.tasks import metrics
from scfm_jax.tasks.imputation.imputation import Problem

SCORES = {"rmse": False, "mae": False, "corr": True, "cos": True}
"""What is scored, and whether more is better."""


def hold_out(counts: np.ndarray, seed: int, each: int = 25, share: float = 0.5) -> np.ndarray:
    """Return which genes are held out, at most `each` of each part of sparsity and a `share` of all. bool [V]

    Args:
      counts: [n, V]

    Raises:
      ValueError: there is nothing to hold out.
    """
    present = np.flatnonzero((counts > 0).any(0))
    chosen = metrics.stratified_genes(counts[:, present], seed, each) if len(present) else []
    most = int(len(present) * share)
    if not chosen or not most:
        raise ValueError(f"{len(present)} genes have counts in these cells: too few to hold some out")
    kept = np.random.default_rng(seed).permutation(chosen)[:most]
    return np.isin(np.arange(counts.shape[1]), present[kept])


def together(problem: Problem) -> Problem:
    """Return the same problem with the reference cells among those that are seen with the others, as one sample.

    The entries to predict are the same, in the same order.
    """
    n, whole = len(problem.hidden), len(problem.counts)
    hidden = np.zeros(problem.counts.shape, bool)
    hidden[:n] = problem.hidden
    measured = problem.measured | problem.known.any(0)

    def padded(coords: np.ndarray | None) -> np.ndarray | None:
        return coords if coords is None else np.pad(coords, ((0, whole - n), (0, 0)), constant_values=np.nan)

    where = padded(problem.coords), padded(problem.field_coords)
    samples = np.zeros(whole, int)
    everything = [np.arange(whole)]
    return Problem(problem.counts, problem.known, hidden, measured, everything, samples, *where, problem.totals)


def score(predicted: np.ndarray, true: np.ndarray, genes: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Return the means over `genes` of the SCORES of each gene's log1p counts. [n, V], [n, V]"""
    scores = []
    for gene in np.asarray(genes):
        said = np.log1p(np.maximum(predicted[:, gene], 0))
        scores.append(metrics.regression_scores(said, np.log1p(true[:, gene])))
    each = {name: np.array([gene[name] for gene in scores]) for name in SCORES}
    each["corr"] = np.where(np.isnan(each["corr"]), 0, each["corr"])
    return {name: float(values.mean()) for name, values in each.items()}
