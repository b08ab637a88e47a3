"""Gene imputation (sCT paper, zero-shot): a random share of the genes of every cell is hidden, zeros among them.

At the rate 1 every gene of every cell is hidden, and what is left to know is of other studies, or the cell's ruler.
"""

from collections.abc import Iterator, Sequence

import numpy as np

RATES = (0.15, 0.3, 0.4, 0.8)


def check(rates: Sequence[float]) -> None:
    """Raise ValueError for a rate that is not above 0 and at most 1."""
    for rate in rates:
        if not 0 < rate <= 1:
            raise ValueError(f"rates: {rate:g} is not a share of the genes above 0 and at most 1")


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
