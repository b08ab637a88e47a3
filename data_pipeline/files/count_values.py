"""Which numbers are raw counts, what values that are none look like, and what rounding makes of them."""

import itertools

import numpy as np
from scipy import sparse

LARGEST = 2**31 - 1
FRACTION = "not an integer"
LOGGED = ", looks log-transformed"


def rounded(values: np.ndarray) -> np.ndarray:
    """Return the nearest whole numbers; what is truly negative, NaN or infinite stays as it is."""
    if values.dtype.kind != "f":
        return values
    return np.where(values > -0.001, np.abs(np.rint(values)), values).astype(values.dtype)


def ratios(block: sparse.csr_matrix) -> str:
    """Say whether all values of a cell are whole multiples of its smallest: "log" of their exponentials, "linear", "".

    So it is with counts that were divided by one number per cell, and with the logarithms of one more than that.
    """
    votes = {"linear": 0, "log": 0}
    cells = [np.sort(block.data[a:b].astype(np.float64)) for a, b in itertools.pairwise(block.indptr) if b - a >= 5]
    cells = [values for values in cells if values[0] > 0 and values[-1] < np.inf]
    for values in cells:
        ways = {"linear": [values]}
        ways["log"] = [np.expm1(values * scale) for scale in (1, np.log(2), np.log(10))] if values[-1] < 20 else []
        for way, several in ways.items():
            steps = [one / one[0] for one in several]
            steps = [step[1:][step[1:] < 10] for step in steps]
            votes[way] += any(len(step) >= 4 and np.mean(np.abs(step - np.rint(step)) < 0.02) > 0.9 for step in steps)
    best = max(votes, key=votes.get)
    return best if votes[best] > len(cells) / 2 else ""


def percent(share: float) -> str:
    """Return a share in words; 0 % and 100 % are none and all of them."""
    return f"{100 * share:.4g} %" if share in (0, 1) else f"{min(max(100 * share, 0.01), 99.99):.4g} %"


def not_counts(values: np.ndarray) -> np.ndarray:
    """Return which values are not whole numbers from 0 to LARGEST. bool"""
    if values.dtype.kind in "ub":
        return values > LARGEST
    if values.dtype.kind == "i":
        return (values < 0) | (values > LARGEST)
    with np.errstate(invalid="ignore"):
        return ~((values >= 0) & (values <= LARGEST) & (np.rint(values) == values))


def why_not_counts(values: np.ndarray) -> str | None:
    """Say why `values` are not raw counts, with the first that is not, or return None where they are."""
    if values.dtype.kind not in "uibf":
        return f"values of dtype {values.dtype}"
    bad = values[not_counts(values)]
    if not len(bad):
        return None
    for name, wrong in (("NaN", np.isnan(bad)), ("infinite", np.isinf(bad)), ("negative", bad < 0)):
        if wrong.any():
            return f"{name}" if name == "NaN" else f"{name}: {bad[wrong][0]:g}"
    if (bad > LARGEST).any():
        return f"too large: {bad.max():g}"
    return f"{FRACTION}: {bad[0]!s}"


def looks(values: np.ndarray, block: sparse.csr_matrix) -> str:
    """Say what became of counts that are no whole numbers any more, and how many of them still are.

    Args:
      values: a sample of them. [n]
      block: some whole cells. [C, G]
    """
    whole = np.rint(values) == values
    near = np.abs(values - np.rint(values)) <= np.minimum(0.05, 0.005 * np.abs(values))
    way = ratios(block)
    if near[~whole].mean() >= 0.95:
        like = ", looks a rounding error off"
    elif whole.mean() >= 0.5:
        like = ", looks estimated or corrected (RSEM, SoupX)"
    elif way:
        return LOGGED if way == "log" else ", looks normalised"
    elif values.max() < 20:
        like = ", looks log-transformed or corrected (SoupX)"
    else:
        like = ", looks corrected or estimated (SoupX, RSEM), or normalised"
    return f"{like}: {percent(whole.mean())} of its values are whole"
