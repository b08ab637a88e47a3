"""Matthews correlation within genes: what a prediction of bins knows beyond any table of genes.

Bins of expressed entries differ most between genes, so a constant for each gene, which knows nothing of the cell, has a
high Matthews correlation. Gorodkin's correlation for many classes (Comput. Biol. Chem. 2004) is the covariance of
indicators of the true and the predicted class over the root of their variances. Here each indicator is centred within
its gene. With C_g(k, k) the entries of gene g that are rightly put in bin k, t_g(k) and p_g(k) those that are in it and
those that are put in it, and n_g all of them,

  R = sum_g sum_k (n_g C_g(k, k) - t_g(k) p_g(k)) / n_g
      / sqrt(sum_g sum_k (t_g(k) - t_g(k)^2 / n_g) * sum_g sum_k (p_g(k) - p_g(k)^2 / n_g))

It is 1 where every bin is right, exactly 0 where a gene has the same bin in all cells, and 0 on average where the true
bins are exchanged among the cells of a gene. With one gene it is Gorodkin's.
"""

import numpy as np


def matthews(true: np.ndarray, said: np.ndarray, genes: np.ndarray) -> float:
    """Return the correlation within genes of true and predicted bins; 0 where one is constant in every gene.

    Args:
      true, said: bins 0, 1, ... of entries. [h]
      genes: number of the gene of each entry, 0, 1, ... [h]
    """
    if not len(true):
        return 0.0
    n_bins, n_genes = int(max(true.max(), said.max())) + 1, int(genes.max()) + 1
    total = np.bincount(genes, minlength=n_genes)
    present, total = total > 0, np.maximum(total, 1).astype(float)
    t, p = (_tally(bins, genes, n_bins, n_genes) for bins in (true, said))
    hits = np.bincount(genes[true == said], minlength=n_genes)

    def covariance(agreeing: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
        return float((agreeing - (a * b).sum(1) / total)[present].sum())

    spread = np.sqrt(covariance(total, t, t) * covariance(total, p, p))
    return covariance(hits, t, p) / spread if spread > 0 else 0.0


def _tally(bins: np.ndarray, genes: np.ndarray, n_bins: int, n_genes: int) -> np.ndarray:
    """Return how many entries of each gene are in each bin. [n_genes, n_bins]"""
    places = genes.astype(np.int64) * n_bins + bins
    return np.bincount(places, minlength=n_genes * n_bins).reshape(n_genes, n_bins).astype(float)
