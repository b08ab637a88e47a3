"""DeepSEM and the scores of networks follow their formulas; a planted network is recovered better than by chance."""

import jax
import numpy as np
import pytest
import scipy.stats
from scipy import sparse
from sklearn import metrics

from scfm_jax.tasks import heads
from scfm_jax.tasks.networks import baselines, deepsem, scores


def planted(n_cells=400, n=10, seed=0):
    """Return expression of genes of which the first three regulate the others, and which regulates which."""
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random((n, n)) < 0.4, rng.choice([-0.9, 0.9], (n, n)), 0)
    weight[:3], weight[:, 3:] = 0, 0
    own = rng.normal(size=(n_cells, n)) * np.where(np.arange(n) < 3, 1.5, 0.5)
    return 5 + own @ np.linalg.inv(np.eye(n) - weight.T), weight != 0


def test_values_are_standardised_over_expressed_entries_and_cut():
    x = np.array([[0, 1, 0], [2, 1, 0], [4, 1, 0], [0, 1, 0]] + [[3, 1, 0]] * 300, float)
    x[0, 0] = 1000
    values, mask = deepsem.standardised(x)
    expressed = x[:, 0][x[:, 0] > 0]
    np.testing.assert_allclose(values[1:, 0], (x[1:, 0] - expressed.mean()) / expressed.std(), rtol=1e-5)
    assert values[0, 0] == 10 and not values[:, 1:].any() and mask.sum() == (x > 0).sum()


def test_starts_have_unit_rows_and_no_diagonal():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(7, 5, 3))
    flat = features.transpose(1, 0, 2).reshape(5, -1)
    cosine = flat @ flat.T / np.linalg.norm(flat, axis=1)[:, None] / np.linalg.norm(flat, axis=1)
    np.testing.assert_allclose(deepsem.cosine(iter([features[:4], features[4:]])), cosine, rtol=1e-6)
    np.testing.assert_allclose(deepsem.cosine(flat), cosine, rtol=1e-6)
    cosine[2] = [0, 0, 1, 0, 0]
    start = deepsem.row_normalised(cosine)
    np.testing.assert_allclose(np.abs(start).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(start[2], [0.25, 0.25, 0, 0.25, 0.25])
    assert not np.diag(start).any() and start[0, 1] == pytest.approx(cosine[0, 1] / np.abs(cosine[0, 1:]).sum())
    drawn = deepsem.random_start(50, 3)
    assert not np.diag(drawn).any() and drawn[0, 1:].min() >= 1 / 49 - 1e-8 and drawn.max() <= 1 / 49 + 2e-4
    terms = sparse.csr_matrix(np.array([[1, 1, 0], [1, 0, 1], [0, 0, 1]], bool))
    np.testing.assert_allclose(baselines.jaccard_start(terms)[1], [0.4, 0, 0.6], rtol=1e-6)
    moved = baselines.shuffled(start, 1)
    assert not np.diag(moved).any() and np.allclose(np.sort(moved.ravel()), np.sort(start.ravel()))


def test_the_network_and_its_loss_are_the_formulas():
    rng = np.random.default_rng(1)
    x, noise = rng.normal(size=(2, 3, 4)).astype(np.float32)
    start = deepsem.row_normalised(rng.normal(size=(4, 4)))
    batch = {"x": x, "mask": (rng.random((3, 4)) < 0.7).astype(np.float32), "noise": noise}
    network, loss = deepsem.DeepSEM(width=5), deepsem.Loss(0.2, 0.05)
    params = jax.jit(network.init)(jax.random.key(0), batch, {"start": start + np.eye(4)})["params"]
    latent = jax.jit(network.apply)({"params": params}, batch, {"start": start})

    def layer(x, name):
        return x @ np.asarray(params[name]["kernel"], float) + np.asarray(params[name]["bias"])

    matrix = np.eye(4) - start.T
    hidden = np.tanh(layer(np.tanh(layer(np.stack([x, np.ones_like(x)], -1), "encode_0")), "encode_1"))
    mean, log_variance = (layer(hidden, f"encode_{name}")[..., 0] @ matrix for name in ("mean", "log_variance"))
    z = mean + noise * np.exp(log_variance / 2)
    hidden = np.tanh(layer(np.tanh(layer((z @ np.linalg.inv(matrix))[..., None], "decode_0")), "decode_1"))
    back = layer(hidden, "decode_out")[..., 0]
    prior = [
        layer(np.tanh(layer(np.ones(1), f"prior_{p}_0")), f"prior_{p}_1") @ matrix for p in ("mean", "log_variance")
    ]
    np.testing.assert_allclose(latent.x, back, atol=1e-5)
    log = scipy.stats.norm.logpdf
    divergence = log(z, mean, np.exp(log_variance / 2)) - log(z, prior[0], np.exp(prior[1] / 2))
    wanted = {
        "reconstruction": (batch["mask"] * (x - back) ** 2).sum() / batch["mask"].sum(),
        "divergence": 0.05 * divergence.mean(),
        "classes": 0.05 * np.log(10),
        "sparsity": 0.2 * (np.abs(start).sum() + 4) / 16,
    }
    parts = jax.jit(loss.parts)(latent, batch)
    for name, value in wanted.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-3, abs=1e-6), name
    assert float(jax.jit(loss)(latent, batch, {})) == pytest.approx(sum(wanted.values()), rel=1e-4)
    lower = np.tril(matrix)
    compat = jax.jit(deepsem.times_inverse, static_argnums=2)(z, matrix, "cholesky_inverse")
    np.testing.assert_allclose(compat, z @ np.linalg.inv(lower @ lower.T), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_networks_and_matrix_are_trained_in_turn_and_the_diagonal_never():
    x, mask = deepsem.standardised(planted(24, 6)[0])
    start, examples = deepsem.random_start(6, 0), heads.Examples.of(x=x, mask=mask)
    head, rule = heads.Head(deepsem.DeepSEM(4), deepsem.Loss()), deepsem.TRAINING
    after = []
    for epochs in (1, 3):
        training = heads.Training(rule.optimizers, rule.turns, epochs=epochs)
        after.append(heads.fit(head, examples, None, {"start": start}, training, 2).variables["params"])
    np.testing.assert_array_equal(after[0]["adjacency"], start)
    assert np.abs(after[1]["adjacency"] - start).max() > 1e-5 and not np.diag(after[1]["adjacency"]).any()
    names = [name for name in after[0] if name != "adjacency"]
    assert all(np.array_equal(after[0][name]["kernel"], after[1][name]["kernel"]) for name in names)


@pytest.mark.slow
def test_a_planted_network_is_recovered_better_than_by_chance():
    expression, truth = planted()
    x, mask = deepsem.standardised(expression)
    quick = tuple({**dict(keys), "learning_rate": 3e-3} for keys in deepsem.TRAINING.optimizers)
    training = heads.Training(quick, deepsem.TRAINING.turns, epochs=120, rows=40)
    start = lambda seed: deepsem.random_start(10, seed)  # noqa: E731
    before = heads._batch._cache_size()
    loss, network = deepsem.Loss(alpha=0.01, beta=1.0), deepsem.DeepSEM(16)
    strength = deepsem.infer(x, mask, start, seeds=range(2), training=training, network=network, loss=loss)
    assert heads._batch._cache_size() <= before + 2, "one program for the networks and one for A, whatever the seed"
    score, true, _ = scores.pairs(strength, truth, range(3))
    assert scores.auroc(score, true) > 0.8
    low, high = scores.permutation_interval(score, true, number=50)["aupr_ratio"]
    assert low < 1.2 and scores.aupr_ratio(score, true) > high


def test_scores_are_sklearns_and_ties_count_as_chance():
    rng = np.random.default_rng(4)
    score, true = np.round(rng.random(60), 1), rng.random(60) < 0.3
    assert scores.average_precision(score, true) == pytest.approx(metrics.average_precision_score(true, score))
    assert scores.auroc(score, true) == pytest.approx(metrics.roc_auc_score(true, score))
    assert scores.aupr_ratio(score, true) == pytest.approx(metrics.average_precision_score(true, score) / true.mean())
    assert scores.scores(np.ones(60), true) == pytest.approx({"epr": 1, "aupr_ratio": 1, "auroc": 0.5})
    hits = scores.early_hits(np.array([5.0, 3, 3, 3, 1, 0]), np.array([1, 1, 0, 0, 1, 0], bool))
    assert hits == pytest.approx(1 + 2 / 3), "the two places after the first are drawn from three tied"
    assert scores.early_precision_ratio(np.arange(6.0), np.arange(6) > 3) == pytest.approx(2 / (4 / 6))


def test_pairs_are_of_regulators_without_themselves_and_a_permutation_may_keep_their_degrees():
    strength, truth = -np.arange(16.0).reshape(4, 4), np.zeros((4, 4), bool)
    truth[[1, 2, 3, 0], [0, 0, 0, 2]] = True
    score, true, regulator = scores.pairs(strength, truth, [0, 2], [0, 1, 2, 3])
    assert score.tolist() == [2, 4, 6, 8, 12, 14] and true.tolist() == [True, True, False, True, True, False]
    assert scores.per_regulator(score, true, regulator) == {2: pytest.approx(1 / 3)}
    with pytest.raises(ValueError, match="0 of 3 pairs"):
        scores.pairs(strength, truth, [1])
    rng = np.random.default_rng(0)
    regulator = np.repeat([0, 1], 50)
    true = rng.random(100) < np.where(regulator, 0.1, 0.8)
    by_degree = 1.0 - regulator + 0.01 * rng.random(100)
    free, kept = (scores.permutation_interval(by_degree, true, r, number=40)["auroc"] for r in (None, regulator))
    assert free[0] < 0.5 < free[1] < kept[0], "the number of targets explains this ranking"


def test_baselines_are_correlations_and_importances():
    expression, truth = planted(200, 8)
    expression[:, 7] = 1
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = np.nan_to_num(np.abs(np.corrcoef(expression.T)))
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(baselines.pearson(expression), wanted, atol=1e-9)
    ranked = baselines.spearman(np.exp(expression))
    assert ranked[0, 5] == pytest.approx(abs(scipy.stats.spearmanr(expression[:, 0], expression[:, 5])[0]))
    strength = baselines.genie3(expression, [0, 1, 2], trees=10)
    assert not strength[7].any() and not strength[:, 3:].any() and not np.diag(strength).any()
    np.testing.assert_allclose(strength[3:7].sum(1), 1)
    score, true, _ = scores.pairs(strength, truth[:8, :8], [0, 1, 2], range(3, 7))
    assert scores.auroc(score, true) > 0.6
