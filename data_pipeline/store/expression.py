"""How widely and how variably a store's genes are expressed, from one pass over its cells."""

from collections.abc import Iterator

import numpy as np

from data_pipeline.store.store import Store, Study

BINS = 20


def expressed(store: Store, run: int = 4096) -> np.ndarray:
    """Return the share of cells that express each gene, the mean over studies; NaN where one did not measure it. [G]"""
    shares = []
    for study in map(store.study, store.studies):
        cells = np.zeros(len(store.genes))
        for _, genes, counts in _cells(study, run):
            cells += np.bincount(genes[counts > 0], minlength=len(cells))
        shares.append(np.where(study.measured, cells / study.n_cells, np.nan))
    return np.mean(shares, 0)


def variability(store: Store, run: int = 4096) -> np.ndarray:
    """Return how much more each gene varies than others of its mean (Seurat's first method, Satija et al., 2015). [G]

    The logarithm of variance over mean of counts per 10,000 is standardised among the genes of its twentieth of the
    means, and averaged over studies; NaN where a study did not measure the gene.
    """
    scores = []
    for study in map(store.study, store.studies):
        sums = np.zeros((2, len(store.genes)))
        for starts, genes, counts in _cells(study, run):
            depth = np.add.reduceat(counts, starts, dtype=float)
            share = 1e4 * counts / np.repeat(depth, np.diff([*starts, len(counts)]))
            sums += [np.bincount(genes, weights=share**power, minlength=sums.shape[1]) for power in (1, 2)]
        mean, square = sums / study.n_cells
        seen = study.measured & (mean > 0)
        excess = np.log((square - mean**2)[seen].clip(1e-12) / mean[seen])
        group = np.argsort(np.argsort(mean[seen])) * BINS // seen.sum()
        centre, spread = np.array([(excess[group == g].mean(), excess[group == g].std() or 1) for g in range(BINS)]).T
        score = np.where(study.measured, 0.0, np.nan)
        score[seen] = (excess - centre[group]) / spread[group]
        scores.append(score)
    return np.mean(scores, 0)


def _cells(study: Study, run: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (where each cell starts, genes, counts) of runs of cells that are not empty."""
    for start in range(0, study.n_cells, run):
        stop = min(start + run, study.n_cells)
        genes, counts = study.read(start, stop).result()
        lengths = np.diff(study.indptr[start : stop + 1])
        yield (np.cumsum(lengths) - lengths)[lengths > 0], genes, counts
