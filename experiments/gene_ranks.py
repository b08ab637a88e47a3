"""Which genes of a store to keep where a model is to be small: as sparse as all of them, or the most variable."""

from collections.abc import Iterator

import numpy as np

from data_pipeline.store import Store, Study

BINS = 20


def expressed(store: Store, run: int = 4096) -> np.ndarray:
    """Return the share of cells that express each gene, the mean over studies; NaN where one did not measure it. [G]"""
    shares = []
    for study in map(store.study, store.studies):
        cells = np.zeros(len(store.genes))
        for _, found, counts in _cells(study, run):
            cells += np.bincount(found[counts > 0], minlength=len(cells))
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
        for starts, found, counts in _cells(study, run):
            depth = np.add.reduceat(counts, starts, dtype=float)
            share = 1e4 * counts / np.repeat(depth, np.diff([*starts, len(counts)]))
            sums += [np.bincount(found, weights=share**power, minlength=sums.shape[1]) for power in (1, 2)]
        mean, square = sums / study.n_cells
        seen = study.measured & (mean > 0)
        excess = np.log((square - mean**2)[seen].clip(1e-12) / mean[seen])
        group = np.argsort(np.argsort(mean[seen])) * BINS // seen.sum()
        centre, spread = np.array([(excess[group == g].mean(), excess[group == g].std() or 1) for g in range(BINS)]).T
        score = np.where(study.measured, 0.0, np.nan)
        score[seen] = (excess - centre[group]) / spread[group]
        scores.append(score)
    return np.mean(scores, 0)


def spread(share: np.ndarray, number: int, min_share: float) -> np.ndarray:
    """Return `number` genes at equal distances in the ranking by `share` [G], in ascending order.

    ValueError where fewer genes are expressed in at least `min_share` of the cells.
    """
    ranked = _ranked(share, share >= min_share, number, min_share)
    return np.sort(ranked[np.linspace(0, len(ranked) - 1, number).round().astype(int)])


def most_variable(scores: np.ndarray, share: np.ndarray, number: int, min_share: float, keep: np.ndarray) -> np.ndarray:
    """Return the genes `keep` and those of the highest scores [G], `number` in all, in ascending order.

    ValueError where fewer genes are expressed in at least `min_share` of the cells, or `keep` has more.
    """
    if len(keep) > number:
        raise ValueError(f"--number={number}: --keep names {len(keep)} genes of the store; ask for as many at least")
    ranked = _ranked(
        scores, (share >= min_share) & ~np.isin(np.arange(len(share)), keep), number - len(keep), min_share
    )
    return np.sort(np.concatenate([keep, ranked[: number - len(keep)]]))


def _ranked(scores: np.ndarray, allowed: np.ndarray, number: int, min_share: float) -> np.ndarray:
    ranked = np.argsort(-scores, kind="stable")
    ranked = ranked[allowed[ranked]]
    if len(ranked) < number:
        raise ValueError(
            f"--number={number}: {len(ranked)} genes were measured in every study and are expressed in at least "
            f"{min_share:g} of the cells; ask for fewer, or lower --min_share"
        )
    return ranked


def _cells(study: Study, run: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (where each cell starts, genes, counts) of runs of cells that are not empty."""
    for start in range(0, study.n_cells, run):
        stop = min(start + run, study.n_cells)
        found, counts = study.read(start, stop).result()
        lengths = np.diff(study.indptr[start : stop + 1])
        yield (np.cumsum(lengths) - lengths)[lengths > 0], found, counts
