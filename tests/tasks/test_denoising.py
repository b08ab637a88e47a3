"""Spoiled counts are spoiled as said, held-out genes are held out, and scores are those of the definitions."""

import numpy as np
import pytest

from scfm_jax.tasks.imputation import baselines, denoising, imputation, spatial_imputation


def counts(n: int = 200, v: int = 80, seed: int = 0) -> np.ndarray:
    """Return counts of genes of all levels."""
    rng = np.random.default_rng(seed)
    return rng.poisson(np.geomspace(0.02, 60, v) * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def test_thinning_is_binomial():
    x = counts()
    thinned = denoising.thin(x, 0.3, np.random.default_rng(0))
    assert (thinned <= x).all() and (thinned == np.rint(thinned)).all()
    big = x[:, -20:]
    rest = thinned[:, -20:] - 0.3 * big
    assert abs(rest.sum() / big.sum()) < 0.01
    assert (rest**2).sum() / (0.21 * big).sum() == pytest.approx(1, abs=0.1), "the variance of a binomial"
    with pytest.raises(ValueError, match=r"keep=1.0"):
        denoising.thin(x, 1.0, np.random.default_rng(0))


def test_flips_take_a_tenth_of_the_expressed_genes_and_low_counts_more_often():
    x = counts()
    x[0], x[0, :5] = 0, 3  # five expressed genes: left alone
    spoiled, flipped = denoising.flip(x, 0.1, np.random.default_rng(0))
    assert (spoiled[~flipped] == x[~flipped]).all() and (spoiled[flipped] == 0).all() and (x[flipped] > 0).all()
    expressed = (x > 0).sum(1)
    assert (flipped.sum(1) == np.where(expressed > 5, (expressed * 0.1).astype(int), 0)).all() and not flipped[0].any()
    share = [flipped[(x > low) & (x <= high)].mean() for low, high in ((0, 5), (20, 40), (60, 200))]
    assert share[0] > 1.5 * share[1] > 2 * share[2]
    with pytest.raises(ValueError, match=r"rate=0"):
        denoising.flip(x, 0, np.random.default_rng(0))


def test_denoising_scores_by_hand():
    true, said = np.array([[1.0, 3, 0], [2, 2, 4]]), np.array([[2.0, 2, 0], [1, 1, 2]])
    logs = [np.log1p(x / x.sum(1, keepdims=True) * 1e4) for x in (said, true)]
    error = (logs[0] - logs[1]).ravel()
    found = denoising.score(said, true)
    assert found["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-6)
    assert found["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(*logs, strict=True)]
    assert found["corr"] == pytest.approx(np.mean(each), rel=1e-6)
    one = np.array([[True, False, False], [False, True, True]])
    assert denoising.score(said, true, one)["mae"] == pytest.approx(np.abs(logs[0] - logs[1])[one].mean(), rel=1e-6)
    nothing = denoising.score(np.zeros_like(true), true)
    assert np.isfinite([nothing["rmse"], nothing["mae"]]).all() and np.isnan(nothing["corr"])


def test_held_out_genes_are_of_all_sparsities_and_leave_some():
    x = counts()
    held = spatial_imputation.hold_out(x, 0, each=5)
    zeros = (x == 0).mean(0)
    for low, high in ((0, 0.75), (0.75, 0.9), (0.9, 0.95), (0.95, 1)):
        inside = (zeros > low) & (zeros <= high)
        assert held[inside].sum() == min(5, inside.sum())
    assert not held[zeros == 0].any(), "genes without a zero are in no part"
    assert (spatial_imputation.hold_out(x, 0) == spatial_imputation.hold_out(x, 0)).all()
    assert spatial_imputation.hold_out(x[:, :10], 1).sum() <= 5
    with pytest.raises(ValueError, match="too few"):
        spatial_imputation.hold_out(np.zeros((4, 6)), 0)


def test_scores_are_means_over_genes_with_the_true_mean_of_roots():
    rng = np.random.default_rng(0)
    true, said = rng.poisson(3, (50, 6)).astype(float), rng.poisson(3, (50, 6)).astype(float)
    said[:, 2] = 1.5
    found = spatial_imputation.score(said, true, [0, 2, 5])
    logs = np.log1p(said), np.log1p(true)
    roots = [np.sqrt(((logs[0] - logs[1])[:, g] ** 2).mean()) for g in (0, 2, 5)]
    assert found["rmse"] == pytest.approx(np.mean(roots), rel=1e-9)
    correlations = [np.corrcoef(logs[0][:, g], logs[1][:, g])[0, 1] if g != 2 else 0 for g in (0, 2, 5)]
    assert found["corr"] == pytest.approx(np.mean(correlations), rel=1e-9)


def test_seen_together_the_entries_are_the_same_and_the_reference_is_visible():
    x, other = counts(30), counts(20, seed=1)
    hidden = np.broadcast_to(np.arange(80) % 4 == 0, x.shape)
    there, coords = np.arange(80) < 70, np.random.default_rng(0).random((30, 2))
    problem = imputation.pose(x, np.arange(80) < 60, hidden, [np.arange(30)], coords=coords, reference=(other, there))
    whole = spatial_imputation.together(problem)
    assert all((a == b).all() for a, b in zip(problem.entries, whole.entries, strict=True))
    assert whole.hidden.shape == (50, 80) and not whole.hidden[30:].any() and whole.measured.sum() == 70
    assert not whole.counts[:30][:, hidden[0]].any() and (whole.counts[30:, :70] == other[:, :70]).all()
    assert np.isnan(whole.coords[30:]).all() and [len(bag) for bag in whole.bags] == [50]


def test_entries_that_are_known_are_seen_and_smoothed():
    x = counts(60)
    everything = np.ones(x.shape, bool)
    problem = imputation.Problem(x, everything, everything, everything[0], [np.arange(60)], np.zeros(60, int))
    near = baselines.nearest_neighbours(problem, baselines.distances(problem)).reshape(x.shape)
    mean = baselines.gene_mean(problem).reshape(x.shape)
    assert (problem.depth == x.sum(1)).all()
    np.testing.assert_allclose(mean, np.outer(x.sum(1), x.sum(0)) / x.sum(), rtol=1e-5)
    assert np.corrcoef(np.log1p(near.ravel()), np.log1p(x.ravel()))[0, 1] > 0.8


def test_the_floor_of_flipped_entries_is_the_mean_of_the_gene_where_it_is_expressed():
    x = np.array([[1, 0, 3, 0], [3, 0, 0, 0], [0, 0, 1, 0]], np.float32)
    everything = np.ones(x.shape, bool)
    problem = imputation.Problem(x, everything, everything, everything[0], [np.arange(3)], np.zeros(3, int))
    all_genes = (2 * 4 * 4 * 2) ** (1 / 4) - 1
    expected = [8**0.5 - 1, all_genes, 8**0.5 - 1, all_genes]
    np.testing.assert_allclose(baselines.mean_where_expressed(problem).reshape(x.shape), [expected] * 3, rtol=1e-6)
