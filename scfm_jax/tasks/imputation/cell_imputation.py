"""Whole-cell imputation (sCT paper, zero-shot): every gene of some cells of a bag of fifty is hidden."""

from collections.abc import Iterator, Sequence

import numpy as np

RATES = (1, 10, 20, 40)
OF = 50


def check(rates: Sequence[float]) -> None:
    """Raise ValueError for a rate that is not a number of cells of fifty."""
    for rate in rates:
        if rate % 1 or not 0 < rate < OF:
            raise ValueError(f"rates: {rate:g} is not a number of cells of {OF}, from 1 to {OF - 1}")


def cases(
    counts: np.ndarray,
    measured: np.ndarray,
    bags: Sequence[np.ndarray],
    rates: Sequence[float],
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yield the masks: of every bag the same share of cells, at least one hidden and, if it has two, one visible."""
    check(rates)
    for rate in rates:
        gone = np.zeros(len(counts), bool)
        for bag in bags:
            number = min(max(1, round(len(bag) * rate / OF)), len(bag) - 1)
            gone[rng.permutation(bag)[:number]] = True
        yield gone[:, None] & measured, {f"{int(rate)} of {OF} cells": measured}
