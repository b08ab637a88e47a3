"""Interactions are fitted and scored as their formulas say, and drugs' profiles as DeepCE's."""

import numpy as np
import pytest
import scipy.stats

from scfm_jax.tasks.drugs import l1000
from scfm_jax.tasks.perturbation import interaction


def effects(k=40, n_genes=60, seed=0):
    rng = np.random.default_rng(seed)
    singles, pairs = rng.normal(size=(10, n_genes)), np.array([rng.choice(10, 2, False) for _ in range(k)])
    weights = rng.uniform(0.2, 2, (k, 2))
    doubles = weights[:, :1] * singles[pairs[:, 0]] + weights[:, 1:] * singles[pairs[:, 1]] + 0.1
    return singles, doubles, pairs, weights


@pytest.mark.parametrize("preset", ["paper", "repo"])
def test_coefficients_are_those_that_made_the_double_and_what_is_not_determined_is_left_out(preset):
    singles, doubles, pairs, weights = effects()
    genes = np.tile(np.arange(60), (40, 1))
    fits = interaction.fit_all(singles, doubles, pairs, genes, preset)
    np.testing.assert_allclose([(f.alpha, f.beta) for f in fits], weights, rtol=1e-6)
    assert fits[0].gamma == pytest.approx(0.1) and fits[0].magnitude == pytest.approx(np.linalg.norm(weights[0]))
    n = interaction.PRESETS[preset]["genes"]
    matrix = np.c_[singles[pairs[0, 0], :n], singles[pairs[0, 1], :n], np.ones(n)]
    assert fits[0].condition == pytest.approx(np.linalg.cond(matrix))
    same = singles.copy()
    same[pairs[0, 1]] = same[pairs[0, 0]] * (1 + 1e-6)
    summary = interaction.summary(interaction.fit_all(same, doubles, pairs, genes, preset))
    assert np.isnan(summary["magnitude"][0]) and summary["left_out"] == np.isnan(summary["magnitude"]).sum()
    with pytest.raises(ValueError, match="2 genes cannot tell 3"):
        interaction.coefficients(*np.ones((3, 2)))


def test_effects_are_mean_changes_of_conditions():
    predicted, x = np.array([[3.0, 1], [5, 1], [0, 0]]), np.array([[1.0, 1], [2, 0], [1, 1]])
    wanted = [[2.5, 0.5], [np.nan, np.nan], [-1, -1]]
    np.testing.assert_array_equal(interaction.effects(predicted, x, np.array([0, 0, 2]), 3), wanted)


def test_gears_fit_is_robust_and_has_no_intercept():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 20))
    double = 0.7 * first + 1.2 * second
    double[3] += 50
    fit = interaction.coefficients(first, second, double, "theil_sen", intercept=False)
    assert (fit.alpha, fit.beta) == pytest.approx((0.7, 1.2), abs=0.02) and fit.gamma == 0
    least = interaction.coefficients(first, second, double, intercept=False)
    assert abs(least.alpha - 0.7) + abs(least.beta - 1.2) > 0.5


def test_magnitudes_are_scored_by_both_ends_and_additive_ones_correlate_with_nothing():
    measured = np.arange(40.0)
    predicted = measured.copy()
    predicted[[39, 0]] = predicted[[0, 39]]
    scores = interaction.magnitude_scores(predicted, measured)
    assert scores["synergy_overlap"] == scores["suppression_overlap"] == 14
    assert scores["overlap_expected"] == pytest.approx(scipy.stats.hypergeom(40, 15, 15).mean())
    assert scores["pearson"] == pytest.approx(np.corrcoef(predicted, measured)[0, 1])
    assert scores["synergy_ap"] == pytest.approx((sum(i / (i + 1) for i in range(1, 15)) + 15 / 40) / 15)
    singles, _, pairs, _ = effects()
    flat = interaction.fit_all(singles, interaction.additive(singles, pairs), pairs, np.tile(np.arange(60), (40, 1)))
    magnitudes = np.array([fit.magnitude for fit in flat])
    np.testing.assert_allclose(magnitudes, np.sqrt(2))
    scores = interaction.magnitude_scores(np.full(40, 2**0.5), measured)
    assert np.isnan(scores["pearson"]) and scores["synergy_overlap"] == pytest.approx(15 * 15 / 40)
    assert interaction.magnitude_scores(np.where(measured == 0, np.nan, predicted), measured)["doubles"] == 39


def test_residuals_beyond_the_bulk_are_called_and_found():
    singles, _, pairs, _ = effects(80)
    rng = np.random.default_rng(2)
    planted = rng.random((80, 60)) < 0.02
    noise = 0.3 * rng.normal(size=(80, 60))
    doubles = interaction.additive(singles, pairs) + noise + 4 * planted
    residual = interaction.residuals(singles, doubles, pairs)
    np.testing.assert_allclose(residual, noise + 4 * planted, atol=1e-9)
    p, q = interaction.empirical_null(residual)
    assert (q[planted] < 0.05).mean() > 0.99 and ((q < 0.05) & ~planted).sum() < 0.1 * planted.sum()
    assert scipy.stats.kstest(p[~planted], "uniform").statistic < 0.05
    good, chance = (interaction.residual_scores(x, residual) for x in (planted + 0.1 * noise, rng.normal(size=p.shape)))
    assert good["ap"] > 0.9 and chance["ap"] < 3 * chance["ap_expected"]
    error, rows, columns = interaction.error_map(residual, np.zeros_like(residual), 5, 7)
    np.testing.assert_array_equal(error, np.abs(residual)[np.ix_(rows, columns)])
    assert set(rows) == set(np.argsort(-np.abs(residual).mean(1))[:5])


def test_ridge_on_the_lengths_of_singles_tells_a_magnitude_that_hangs_on_them():
    singles, _, pairs, _ = effects()
    singles *= np.arange(1, 11)[:, None]
    length = np.linalg.norm(singles, axis=1)
    magnitudes = 0.1 * length[pairs].max(1) + 0.02 * length[pairs].min(1)
    predicted = interaction.ridge_magnitudes(singles, pairs[30:], pairs[:30], magnitudes[:30], penalty=1e-6)
    np.testing.assert_allclose(predicted, magnitudes[30:], rtol=1e-4)
    assert (interaction.mean_double(np.array([[1.0, 2], [3, 6]]), 3) == [2, 4]).all()


def test_profiles_are_scored_each_and_a_precision_compares_with_as_many_true_genes():
    rng = np.random.default_rng(3)
    predicted, true = rng.normal(size=(2, 4, 150))
    scores = l1000.scores(predicted, true, [5])
    each = list(zip(predicted, true, strict=True))
    assert scores["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - true) ** 2)))
    assert scores["pearson"] == pytest.approx(np.mean([scipy.stats.pearsonr(p, t)[0] for p, t in each]))
    assert scores["spearman"] == pytest.approx(np.mean([scipy.stats.spearmanr(p, t)[0] for p, t in each]))
    for name, sign in (("positive@5", -1), ("negative@5", 1)):
        for published, size in ((False, 5), (True, 100)):
            top = [set(np.argsort(sign * p)[:5]) & set(np.argsort(sign * t)[:size]) for p, t in each]
            ours = l1000.scores(predicted, true, [5], published_truth=published)[name]
            assert ours == pytest.approx(np.mean([len(hits) / 5 for hits in top])), (name, published)
    with pytest.raises(ValueError, match="there are 150 genes"):
        l1000.precision(predicted, true, 151)
