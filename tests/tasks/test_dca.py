"""DCA's likelihood is that of the distribution, and a fit to spoiled or hidden counts beats the gene's mean."""

import numpy as np
import pytest
import scipy.stats

from scfm_jax.tasks.imputation import baselines, dca, denoising, imputation


def test_the_likelihood_is_that_of_a_zero_inflated_negative_binomial():
    counts, mean, theta = np.arange(6.0), np.array([0.1, 0.5, 2, 3, 9, 4.0]), np.array([0.5, 1, 2, 9, 1, 100.0])
    log_nb = scipy.stats.nbinom(theta, theta / (theta + mean)).logpmf(counts)
    np.testing.assert_allclose(dca.nll(counts, mean, theta), -log_nb, rtol=1e-4, atol=1e-5)
    dropout = np.array([-2.0, 0, 3, -1, 1, 0])
    share = 1 / (1 + np.exp(-dropout))
    inflated = np.log(share * (counts == 0) + (1 - share) * np.exp(log_nb))
    np.testing.assert_allclose(dca.nll(counts, mean, theta, dropout), -inflated, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_planted_counts_of_low_rank_are_told_better_than_by_the_mean_of_the_gene():
    rng = np.random.default_rng(0)
    profiles = rng.gamma(1, 1, (3, 400)) * (rng.random((3, 400)) < 0.5) + 0.05
    rates = rng.gamma(4, 0.25, (160, 1)) * profiles[rng.integers(0, 3, 160)]
    counts = rng.poisson(rates).astype(np.float32)
    spoiled, flipped = denoising.flip(counts, 0.1, rng)
    everything, rows = np.ones(counts.shape, bool), [np.arange(160)]
    problem = imputation.Problem(spoiled, everything, everything, everything[0], rows, np.zeros(160, int))
    table, network = (f(problem).reshape(counts.shape) for f in (baselines.gene_mean, dca.predict))
    scores = [denoising.score(x, counts, flipped)["rmse"] for x in (network, table)]
    assert scores[0] < 0.92 * scores[1]
    errors = [np.square(np.log1p(x) - np.log1p(rates)).mean() for x in (network, table)]
    assert errors[0] < 0.4 * errors[1]
    hidden = rng.random(counts.shape) < 0.2
    problem = imputation.pose(counts, everything[0], hidden, rows)
    network, table = (np.log1p(f(problem)) - np.log1p(rates[hidden]) for f in (dca.predict, baselines.gene_mean))
    assert (network**2).mean() < 0.4 * (table**2).mean(), "what is hidden is not taken for zeros"
