"""Imputation without a model: gene mean, most common bin, nearest neighbours, diffusion.

Three are tables that never say zero (`expressed_gene_mean`, `mean_where_expressed`, `most_common_bin` with least=1): a
number for each gene and nothing of the cell. They belong beside every score of expressed entries alone, where zero is
never right; what a model adds to them is what it knows of the cell. `tables` has all tables, those of genes and of
genes in samples.

All of them see the visible entries of all cells of the problem, not only those of a bag, and those of its reference
cells. What one gene's counts are in one cell is thought of as its rate times the cell's depth; a rate is counts over
depth, summed over those entries that are known, so what is hidden counts neither as zero nor at all.
"""

import numpy as np

from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.imputation import bins
from scfm_jax.tasks.imputation.imputation import Problem

NEIGHBOURS = 5
EVERY_CELL = slice(None)


def gene_mean(problem: Problem, cells: slice = EVERY_CELL) -> np.ndarray:
    """Predict the mean rate of the gene over known entries times the cell's depth. [h]

    `cells`: rows of the N cells that rates are learnt from, such as those of the reference alone.
    """
    rows, columns = problem.entries
    return gene_rates(problem, cells)[columns] * problem.depth[rows]


def expressed_gene_mean(problem: Problem, ruler: bins.Ruler, cells: slice = EVERY_CELL) -> np.ndarray:
    """Predict the gene mean, but at least the count where the cell's bin 1 begins, so never bin 0. [h]

    What the gene mean says where one knows that the entry is expressed: the scores of expressed entries tell that much.
    """
    return np.maximum(gene_mean(problem, cells), least_expressed(problem, ruler))


def least_expressed(problem: Problem, ruler: bins.Ruler) -> np.ndarray:
    """Return the count where bin 1 begins in the cell of each hidden entry. [h]"""
    rows, _ = problem.entries
    border = ruler.edges[rows, 0]
    least = (np.expm1(border) if ruler.log else border) / ruler.scale[rows]
    return np.maximum(least * (1 + 1e-4), 1e-6)  # beyond the border, whatever float32 makes of it


def mean_where_expressed(problem: Problem) -> np.ndarray:
    """Predict the gene's geometric mean of one more than its counts, less one, over the entries that have counts. [h]

    What a table of genes says that knows that all it is asked for is expressed, and nothing of the cell: the floor of
    entries that were flipped to zero. A gene without counts has the mean of the others.
    """
    expressed, logs = (problem.counts > 0).sum(0), np.log1p(problem.counts).sum(0, dtype=np.float64)
    mean = np.expm1(_divide(logs, expressed, logs.sum() / max(expressed.sum(), 1)))
    return mean[problem.entries[1]]


def gene_rates(problem: Problem, cells: slice = EVERY_CELL) -> np.ndarray:
    """Return the rate of each gene; of one that is known nowhere, that of the mean gene. [V]

    Where no gene is known anywhere, the depth is shared evenly among the measured genes.
    """
    total, exposure = problem.counts[cells].sum(0, dtype=np.float64), problem.depth[cells] @ problem.known[cells]
    even = 1 / max(problem.measured.sum(), 1)
    return _divide(total, exposure, total.sum() / exposure.sum() if exposure.any() else even)


def most_common_bin(problem: Problem, ruler: bins.Ruler, least: int = 0, cells: slice = EVERY_CELL) -> np.ndarray:
    """Predict the most common bin of the gene over known entries; where there are none, that of all. [h, n_bins]

    Args:
      ruler: of all N cells.
      least: bins below are not counted; 1 gives the most common bin of expressed entries.
      cells: rows of the N cells that are learnt from.
    """
    binned, visible = ruler.bins(problem.counts)[cells], problem.known[cells]
    tally = np.stack([((binned == b) & visible).sum(0) for b in range(least, ruler.n_bins)], 1)
    common = least + np.where(tally.any(1), tally.argmax(1), tally.sum(0).argmax())
    return np.eye(ruler.n_bins, dtype=np.float32)[common[problem.entries[1]]]


def nearest_neighbours(problem: Problem, apart: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Predict from the k nearest cells by `apart` (see `distances`). [h]"""
    near, weights = _nearest(apart, k), np.zeros_like(apart)
    np.put_along_axis(weights, near, np.isfinite(np.take_along_axis(apart, near, 1)), 1)
    return smooth(problem, weights)


def diffusion(problem: Problem, apart: np.ndarray, k: int = NEIGHBOURS, steps: int = 3) -> np.ndarray:
    """Predict from the cells that a random walk of some steps reaches. [h]

    After MAGIC (van Dijk et al., Cell 2018) with the defaults of its package: exp(-distance / distance to the k-th
    neighbour) to the 3k nearest, made symmetric. Ours differs in leaving out what is hidden, in distances and average.
    """
    near = _nearest(apart, 3 * k)
    far = np.sqrt(np.take_along_axis(apart, near, 1))
    width = far[:, [min(k, far.shape[1]) - 1]]
    width = np.where(np.isfinite(width) & (width > 0), width, 1)
    kernel = np.zeros_like(apart)
    np.put_along_axis(kernel, near, np.exp(-far / width), 1)
    np.fill_diagonal(kernel, 1)  # last: a cell that is far from all others may count among its own nearest
    kernel = kernel + kernel.T
    return smooth(problem, np.linalg.matrix_power(kernel / kernel.sum(1, keepdims=True), steps))


def smooth(problem: Problem, weights: np.ndarray) -> np.ndarray:
    """Predict rates averaged over cells with `weights` [N, N], where known; the gene mean where they know nothing."""
    weights = weights[: len(problem.hidden)].astype(np.float32)
    exposure = weights @ (problem.known * problem.depth.astype(np.float32)[:, None])
    rates = _divide(weights @ problem.counts, exposure, gene_rates(problem).astype(np.float32))
    rows, columns = problem.entries
    return rates[rows, columns] * problem.depth[rows]


def distances(problem: Problem) -> np.ndarray:
    """Return the mean squared difference of log-normalised counts over the genes known in both cells. [N, N]

    Infinite of a cell to itself and where they share none. A cell of which nothing is visible is near the others of its
    sample in space, if there are positions.
    """
    visible = problem.known.astype(np.float32)
    values = log_normalised(problem.counts, np.maximum(problem.depth, 1e-9), dtype=np.float32)
    squares = values**2 @ visible.T
    shared = visible @ visible.T
    apart = _divide(np.maximum(squares + squares.T - 2 * values @ values.T, 0), shared, np.inf)
    blind = np.flatnonzero(~problem.known.any(1))
    if problem.coords is not None:
        n = len(problem.hidden)
        away = ((problem.coords[blind, None] - problem.coords[None]) ** 2).sum(-1)
        away = np.where((problem.samples[blind, None] == problem.samples) & ~np.isnan(away), away, np.inf)
        apart[blind, :n] = away
    apart[:, blind] = np.inf
    np.fill_diagonal(apart, np.inf)
    return apart


def _nearest(apart: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(apart, 1, kind="stable")[:, : min(k, len(apart) - 1)]


def _divide(a: np.ndarray, b: np.ndarray, otherwise: np.ndarray | float) -> np.ndarray:
    """Return a / b, `otherwise` where b is not positive."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), otherwise)
