"""Gene imputation (sCT paper, zero-shot): a random share of the genes of every cell is hidden, zeros among them."""

from collections.abc import Iterator, Sequence

import numpy as np

RATES = (0.15, 0.3, 0.4, 0.8)


def check(rates: Sequence[float]) -> None:
    """Raise ValueError for a rate that is not between 0 and 1."""
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(f"rates: {rate:g} is not a share of the genes between 0 and 1")


def cases(
    counts: np.ndarray,
    measured: np.ndarray,
    bags: Sequence[np.ndarray],
    rates: Sequence[float],
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield the masks of all rates, each measured gene of each cell hidden with that probability."""
    del bags
    check(rates)
    for rate in rates:
        yield (rng.random(counts.shape, np.float32) < rate) & measured, {f"{100 * rate:g}%": measured}
