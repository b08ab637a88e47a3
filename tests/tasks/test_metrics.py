"""Metrics promise the textbook values, and the published ones where those differ."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from scfm_jax.tasks import metrics

RNG = np.random.default_rng(0)


def test_classification_is_macro_over_classes_that_occur():
    true, said = RNG.integers(0, 4, 80), RNG.integers(0, 4, 80)
    scores = metrics.classification_scores(said, true, n_classes=9)  # five classes never occur and do not count
    options = dict(average="macro", zero_division=0)
    assert scores["acc"] == scores["recall"] == pytest.approx(recall_score(true, said, **options))
    assert scores["precision"] == pytest.approx(precision_score(true, said, **options))
    assert scores["f1_score"] == pytest.approx(f1_score(true, said, **options))


def test_perfect_predictions_score_perfectly():
    x = RNG.gamma(1.0, 1.0, (30, 7))
    for scores in (metrics.imputation_scores(x, x), metrics.denoising_scores(x, x)):
        assert scores["mse"] == scores["rmse"] == scores["mae"] == 0
        assert scores["corr"] == pytest.approx(1) and scores["cos"] == pytest.approx(1)


def test_published_rmse_weighs_the_first_genes_most_and_the_true_one_does_not():
    true = np.zeros((10, 3))
    predicted = np.tile([3.0, 0.0, 0.0], (10, 1))
    assert metrics.imputation_scores(predicted, true)["rmse"] == pytest.approx(1.0)
    assert metrics.imputation_scores(predicted, true, published_rmse=True)["rmse"] == pytest.approx(1.5)


def test_negative_imputations_are_clipped_and_constant_genes_have_no_correlation():
    scores = metrics.imputation_scores(np.full((5, 1), -2.0), np.zeros((5, 1)))
    assert scores["mse"] == 0 and np.isnan(scores["corr"])


def test_denoising_ignores_depth_and_what_is_not_masked():
    true = RNG.poisson(3.0, (20, 6)) + 1.0
    mask = RNG.random(true.shape) < 0.3
    assert metrics.denoising_scores(true * 7, true, mask)["mse"] == pytest.approx(0, abs=1e-20)
    wrong = np.where(mask, true, true + 50)
    assert metrics.denoising_scores(wrong, true, mask, normalize=False)["mse"] == 0


def test_held_out_genes_fill_every_bin_and_depend_on_the_seed():
    rates = np.repeat([0.0, 0.5, 0.8, 0.93, 0.99], 40)
    counts = (np.arange(1000)[:, None] >= rates * 1000).astype(int)
    chosen = metrics.stratified_genes(counts, seed=3)
    bins = np.bincount(np.array(chosen) // 40, minlength=5)
    assert bins.tolist() == [0, 25, 25, 25, 25]  # genes without a zero are in no bin
    assert chosen == metrics.stratified_genes(counts, seed=3) != metrics.stratified_genes(counts, seed=4)
