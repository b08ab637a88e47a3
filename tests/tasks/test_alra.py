"""ALRA is the paper's formulas, keeps zeros of biology and fills those of dropout."""

import numpy as np
import pytest

from scfm_jax.tasks.imputation import alra


def planted(n: int = 240, v: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return log expression of rank 3 whose types lack a third of the genes each, and the same with a fifth dropped."""
    rng = np.random.default_rng(seed)
    types, genes = rng.integers(0, 3, n), np.arange(v)
    profiles = rng.uniform(1, 3, (3, v)) * (genes % 3 != np.arange(3)[:, None])
    truth = rng.uniform(0.7, 1.3, (n, 1)) * profiles[types]
    return truth, truth * (rng.random(truth.shape) > 0.2)


def test_zeros_of_a_low_rank_matrix_stay_and_dropouts_are_filled():
    truth, seen = planted()
    filled = alra.fill(seen, rank=3)
    absent, dropped = truth == 0, (truth > 0) & (seen == 0)
    assert (filled[absent] == 0).mean() > 0.97 and (filled[dropped] > 0).mean() > 0.97
    error = np.sqrt(((filled - truth)[dropped] ** 2).mean())
    gene_mean = np.broadcast_to(seen.mean(0), seen.shape)
    assert error < 0.4 < 0.5 * np.sqrt(((gene_mean - truth)[dropped] ** 2).mean())
    assert ((filled > 0) | (seen == 0)).all(), "nothing that was seen becomes a zero"


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_the_rank_is_that_before_the_last_large_drop(rank):
    rng = np.random.default_rng(rank)
    u, v = (np.linalg.qr(rng.normal(size=(n, 110)))[0] for n in (150, 130))
    spectrum = np.concatenate([np.linspace(60, 30, rank), np.linspace(3, 1, 110 - rank)])
    assert alra.choose_rank((u * spectrum) @ v.T) == rank


def test_values_are_those_of_the_formulas():
    _, seen = planted(40, 12, 1)
    seen[:, 3] = 0  # a gene without counts
    u, s, v = np.linalg.svd(seen, full_matrices=False)
    low, expected = (u[:, :3] * s[:3]) @ v[:3], np.zeros(seen.shape)
    for gene in range(12):
        x, y = seen[:, gene], low[:, gene].copy()
        y[y <= abs(np.quantile(y, 0.001))] = 0
        kept = y > 0
        if kept.sum() > 1 and (x > 0).sum() > 1:
            y[kept] = (y[kept] - y[kept].mean()) / y[kept].std(ddof=1) * x[x > 0].std(ddof=1) + x[x > 0].mean()
        y = np.maximum(y, 0)
        expected[:, gene] = np.where((y == 0) & (x > 0), x, y)
    np.testing.assert_allclose(alra.fill(seen, rank=3), expected, atol=1e-6)
