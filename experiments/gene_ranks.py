"""How often each gene of a store is expressed, and genes at equal distances in that ranking."""

import numpy as np

from data_pipeline.store import Store


def expressed(store: Store, run: int = 4096) -> np.ndarray:
    """Return the share of cells that express each gene, the mean over studies; NaN where one did not measure it. [G]"""
    shares = []
    for study in map(store.study, store.studies):
        cells = np.zeros(len(store.genes))
        for start in range(0, study.n_cells, run):
            found, counts = study.read(start, min(start + run, study.n_cells)).result()
            cells += np.bincount(found[counts > 0], minlength=len(cells))
        shares.append(np.where(study.measured, cells / study.n_cells, np.nan))
    return np.mean(shares, 0)


def choose(share: np.ndarray, number: int, min_share: float) -> np.ndarray:
    """Return `number` genes at equal distances in the ranking by `share` [G], in ascending order.

    ValueError where fewer genes are expressed in at least `min_share` of the cells.
    """
    ranked = np.argsort(-share, kind="stable")
    ranked = ranked[share[ranked] >= min_share]
    if len(ranked) < number:
        raise ValueError(
            f"--number={number}: {len(ranked)} genes were measured in every study and are expressed in at least "
            f"{min_share:g} of the cells; ask for fewer, or lower --min_share"
        )
    return np.sort(ranked[np.linspace(0, len(ranked) - 1, number).round().astype(int)])
