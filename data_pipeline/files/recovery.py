"""Counts from a file that kept only rounded log1p values, as the cells that ship with scanpy do."""

import numpy as np
from scipy import sparse


def recover_counts(lognormal: sparse.csr_matrix, decimals: int = 3) -> sparse.csr_matrix:
    """Return the counts of log1p values that were normalised by one factor per cell and rounded. [n, G]

    The smallest positive value of a cell is a count of one. ValueError unless the counts give the rounded values back.
    """
    row = np.repeat(np.arange(lognormal.shape[0]), np.diff(lognormal.indptr))
    values = np.expm1(lognormal.data.astype(np.float64))
    one = np.full(lognormal.shape[0], np.inf)
    np.minimum.at(one, row, values)
    counts = np.rint(values / one[row])
    factor = np.bincount(row, values) / np.bincount(row, counts)  # less rounded than the smallest value alone
    counts = np.rint(values / factor[row])
    error = np.abs(np.log1p(counts * factor[row]) - lognormal.data)
    if counts.min() < 1 or error.max() > 10.0**-decimals:
        raise ValueError(f"values are not log1p of counts times one factor per cell: off by {error.max():.2g}")
    return sparse.csr_matrix((counts.astype(np.float32), lognormal.indices, lognormal.indptr), lognormal.shape)
