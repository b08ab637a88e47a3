"""Expression as tasks and their baselines read it: log1p of counts per 10,000 in a cell."""

import numpy as np
import scipy.sparse as sp

TARGET_SUM = 1e4


def log_normalised(
    counts: sp.csr_matrix | np.ndarray,
    depth: np.ndarray | None = None,
    *,
    target_sum: float = TARGET_SUM,
    dtype: type | None = None,
) -> sp.csr_matrix | np.ndarray:
    """Return log1p of counts per `target_sum` in each cell, sparse or dense as the counts are. [n, V]

    Negative values (of predictions) count as 0. A cell without counts stays 0 if sparse, and is NaN if dense.

    Args:
      depth: counts of each cell in all, where `counts` are not all of them. [n]
      dtype: of the result; float64 for sparse counts and whole numbers, else theirs, if left out.
    """
    if sp.issparse(counts):
        total = np.maximum(np.asarray(counts.sum(1)).ravel() if depth is None else depth, 1)
        return sp.csr_matrix(sp.diags(target_sum / total) @ counts, dtype=dtype or np.float64).log1p()
    dtype = dtype or (counts.dtype if np.issubdtype(counts.dtype, np.floating) else np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = (target_sum / (counts.sum(1) if depth is None else depth)).astype(dtype)
        return np.log1p(np.maximum(counts * factor[:, None], 0))
