"""log1p of counts per 10,000: the same values for sparse and dense counts, and as scanpy has them."""

import anndata
import numpy as np
import pytest
import scanpy
import scipy.sparse as sp

from scfm_jax.tasks.expression import log_normalised


def test_values_are_those_of_the_formula_in_every_form():
    counts = np.random.default_rng(0).poisson(1.0, (20, 30)).astype(np.float32)
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(log_normalised(counts), expected, rtol=1e-6)
    assert log_normalised(counts).dtype == np.float32 and log_normalised(counts.astype(int)).dtype == np.float64
    sparse = log_normalised(sp.csr_matrix(counts))
    assert sparse.dtype == np.float64 and log_normalised(sp.csr_matrix(counts), dtype=np.float32).dtype == np.float32
    np.testing.assert_allclose(sparse.toarray(), expected, rtol=1e-6)
    part = log_normalised(counts[:, :10], counts.sum(1))
    np.testing.assert_allclose(part, expected[:, :10], rtol=1e-6)
    np.testing.assert_allclose(log_normalised(sp.csr_matrix(counts[:, :10]), counts.sum(1)).toarray(), part, rtol=1e-6)
    cells = anndata.AnnData(counts.copy())
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    np.testing.assert_allclose(cells.X, expected, rtol=1e-5)


def test_cells_without_counts_and_negative_predictions():
    counts = np.array([[0.0, 0.0], [3.0, 1.0]])
    assert not log_normalised(sp.csr_matrix(counts)).toarray()[0].any()
    assert np.isnan(log_normalised(counts)[0]).all()
    assert log_normalised(np.array([[5.0, -1.0]]))[0] == pytest.approx([np.log1p(5e4 / 4), 0])
