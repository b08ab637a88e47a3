"""Fixed gene imputation (sCT paper, zero-shot, spatial): the same genes are hidden in every spot.

Genes are split by sparsity, the share of cells without them, and twenty-five of each part are hidden together. Genes
without a count in any cell are left out: there would be nothing to find. What baselines know of a hidden gene is from
other studies (`Problem`'s reference cells), if from anywhere.
"""

from collections.abc import Iterator, Sequence

import numpy as np

RATES = ()
BORDERS = (0.75, 0.9, 0.95)
NAMES = ("below 75% zeros", "75-90% zeros", "90-95% zeros", "95% zeros or more")
EACH = 25


def strata(counts: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the part of each gene, 0 the least sparse, -1 if not measured or never expressed. [n, V] -> [V]"""
    zeros = (counts == 0).mean(0)
    return np.where(measured & (counts > 0).any(0), np.searchsorted(BORDERS, zeros, side="right"), -1)


def check(rates: Sequence[float]) -> None:
    """Raise ValueError for any rate."""
    if rates:
        raise ValueError(f"rates: fixed_gene hides {EACH} genes of each sparsity and takes no rates")


def cases(
    counts: np.ndarray,
    measured: np.ndarray,
    bags: Sequence[np.ndarray],
    rates: Sequence[float],
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield the one mask, all parts hidden together; a part with fewer than 25 genes gives half of them.

    Raises:
      ValueError: there is nothing to hide.
    """
    del bags
    check(rates)
    parts, place = {}, strata(counts, measured)
    for part, name in enumerate(NAMES):
        genes = np.flatnonzero(place == part)
        chosen = rng.permutation(genes)[: min(EACH, -(-len(genes) // 2))]
        if len(chosen):
            parts[name] = np.isin(np.arange(len(measured)), chosen)
    if not parts:
        raise ValueError("no gene has a count in these cells: nothing to hide")
    yield np.broadcast_to(np.any(list(parts.values()), axis=0), counts.shape), parts
