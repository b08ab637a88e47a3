"""Imputation by lookup tables: a rate or a bin for each gene, or for each gene in each tissue sample.

A table knows the gene, perhaps the sample, and of the cell nothing but its depth and its ruler. It is learnt from
entries that may be seen: known ones of the cells asked for, and reference cells. Of a gene of which a sample shows
little its table says what all cells say (one cell's worth of that is added); so a gene that is hidden everywhere has
the rate of the reference, and in a file of one sample without a reference both tables are the same.

"Never 0" is the same table where it is known that the entry is expressed, as scores of expressed entries alone imply.
"""

import numpy as np

from scfm_jax.tasks.imputation import baselines, bins
from scfm_jax.tasks.imputation.imputation import Problem


def predictions(problem: Problem, ruler: bins.Ruler, samples: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return what each table says of the hidden entries, counts [h] or shares of bins [h, n_bins], by its name.

    Args:
      ruler: of all N cells.
      samples: code of the sample of each of the n cells, the problem's if left out. [n]
    """
    samples = np.unique(problem.samples if samples is None else samples, return_inverse=True)[1]
    rows, _ = problem.entries
    rates = sample_rates(problem, samples)[samples[rows], problem.entries[1]] * problem.depth[rows]
    return {
        "gene mean": baselines.gene_mean(problem),
        "most common bin": baselines.most_common_bin(problem, ruler),
        "gene mean, never 0": baselines.expressed_gene_mean(problem, ruler),
        "common bin, never 0": baselines.most_common_bin(problem, ruler, least=1),
        "gene x sample mean": rates,
        "gene x sample bin": sample_bin(problem, ruler, samples),
        "gene x sample mean, never 0": np.maximum(rates, baselines.least_expressed(problem, ruler)),
        "gene x sample bin, never 0": sample_bin(problem, ruler, samples, least=1),
    }


def sample_rates(problem: Problem, samples: np.ndarray) -> np.ndarray:
    """Return the rate of each gene in each sample, drawn to that of all cells by one cell of mean depth. [S, V]

    Args:
      samples: codes 0, 1, ... of the n cells. [n]
    """
    n, all_cells = len(samples), baselines.gene_rates(problem)
    one, rates = problem.depth[:n].mean(), []
    for sample in range(samples.max() + 1):
        cells = np.flatnonzero(samples == sample)
        total = problem.counts[cells].sum(0, dtype=np.float64)
        exposure = problem.depth[cells] @ problem.known[cells]
        rates.append((total + one * all_cells) / np.maximum(exposure + one, 1e-9))
    return np.stack(rates)


def sample_bin(problem: Problem, ruler: bins.Ruler, samples: np.ndarray, least: int = 0) -> np.ndarray:
    """Predict the most common bin of the gene in the sample, where that is even or unknown that of all. [h, n_bins]

    Args:
      samples: codes 0, 1, ... of the n cells. [n]
      least: bins below are not counted; 1 gives the most common bin of expressed entries.
    """
    binned, (rows, columns) = ruler.bins(problem.counts), problem.entries

    def tally(cells: np.ndarray | slice) -> np.ndarray:
        seen = problem.known[cells]
        return np.stack([((binned[cells] == b) & seen).sum(0) for b in range(least, ruler.n_bins)], 1)

    everything = tally(slice(None))
    pooled = np.where(everything.any(1, keepdims=True), everything, everything.sum(0))
    pooled = pooled / np.maximum(pooled.sum(1, keepdims=True), 1)  # less than one entry: it only breaks ties
    common = [(tally(np.flatnonzero(samples == sample)) + pooled).argmax(1) for sample in range(samples.max() + 1)]
    said = least + np.stack(common)[samples[rows], columns]
    return np.eye(ruler.n_bins, dtype=np.float32)[said]
