"""GEARS' head and loss follow their formulas, a planted additive effect is learnt, and recorded cases are met."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import parity
from scfm_jax.tasks import heads
from scfm_jax.tasks.perturbation import gears
from tests.conftest import SHARED, needs_shared

G = 12


def edges(seed=0):
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, G, (2, 40))
    return source, target, rng.random(40)


def test_the_last_of_repeated_self_edges_counts_and_every_gene_has_one():
    source, target, weight = np.array([0, 1, 1, 0]), np.array([1, 1, 1, 2]), np.array([0.5, 9.0, 0.25, 0.75])
    graph = gears.go_graph(source, target, weight, 3)
    matrix = np.zeros((3, 3))
    matrix[graph.receivers, graph.senders] = graph.edges
    plain = np.array([[1, 0, 0], [0.5, 0.25, 0], [0.75, 0, 1]])
    degree = plain.sum(1)
    np.testing.assert_allclose(matrix, plain / np.sqrt(degree[:, None] * degree), rtol=1e-6)


def test_the_loss_is_a_mean_over_perturbations_of_their_retained_genes():
    rng = np.random.default_rng(1)
    p, y, x, c = rng.normal(size=(4, 5, 6)).astype(np.float32)
    control, condition = c[0], np.array([2, 0, 2, 2, 1])
    kept = rng.random((3, 6)) < 0.6
    kept[:, 0], kept[0] = True, True
    batch, shared = {"x": x, "y": y, "condition": condition}, {"retained": kept, "control": control}
    for loss, reference in ((gears.Loss(0.3), control), (gears.Loss(0.3, 2, "own"), x)):
        wanted = []
        for i in range(3):
            rows, genes = condition == i, kept[i]
            apart = np.abs(p - y)[rows][:, genes] ** loss.power
            signs = (np.sign(y - reference) - np.sign(p - reference))[rows][:, genes]
            wanted.append(apart.mean() + 0.3 * np.square(signs).mean())
        np.testing.assert_allclose(loss(p, batch, shared), np.mean(wanted), rtol=1e-5)
    slope = jax.grad(lambda p: gears.Loss(0.3)(p, batch, shared) - gears.Loss(0.0)(p, batch, shared))(p)
    assert not np.asarray(slope).any(), "signs have no gradient"
    with pytest.raises(ValueError, match="there are control, own"):
        gears.Loss(reference="mine")


def test_validation_is_the_error_of_condition_means_on_their_genes():
    rng = np.random.default_rng(2)
    p, y = rng.normal(size=(2, 9, 5))
    condition, genes = np.repeat([0, 1, 2], 3), np.array([[0] * 5, [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], bool)
    shared = {"de": genes}
    parts = [gears.tally(p[r], {"y": y[r], "condition": condition[r]}, shared) for r in (slice(0, 4), slice(4, 9))]
    means = [(p[condition == i].mean(0) - y[condition == i].mean(0)) ** 2 for i in (1, 2)]
    wanted = np.mean([means[0][[0, 2]].mean(), means[1][4]])
    assert gears.mse_de([np.sum(x, axis=0) for x in zip(*parts, strict=True)], shared) == pytest.approx(
        wanted, rel=1e-5
    )
    names, measured = gears.with_targets(["a", "b"], ["b", "z", "z"])
    assert names == ["a", "b", "z"] and measured.tolist() == [True, True, False]
    kept = gears.retained(np.array([[0, 1.0], [0, 0], [2, 0]]), np.array([0, 1, 0]), 2, control=1)
    assert kept.tolist() == [[True, True], [True, True]]


def problem(preset):
    """Return a small head, a batch of four cells and what all share."""
    rng = np.random.default_rng(3)
    batch = {"x": rng.random((4, G)), "flags": np.eye(4, G), "features": rng.normal(size=(4, G, 9))}
    if preset == "gears":
        del batch["features"]
    shared = {"graph": gears.go_graph(*edges(), G), "coexpression": gears.go_graph(*edges(1), G)}
    return gears.head(preset, G, width=6), batch, shared


@pytest.mark.parametrize("preset", gears.PRESETS)
def test_presets_have_their_parts(preset):
    head, batch, shared = problem(preset)
    init = functools.partial(head.network.init, train=True)
    params = jax.eval_shape(init, jax.random.key(0), batch, shared)["params"]
    assert ("gene_table" in params) == ("position_table" in params) == (preset == "gears")
    assert ("linear_1" in params["cross"]) == (preset != "paper")
    assert params["recover"]["linear_0"]["kernel"].shape == (6, 12)
    with pytest.raises(ValueError, match="there are repo, paper, gears"):
        gears.head("scgpt", G)


@pytest.mark.slow
def test_rows_of_tables_are_shortened_in_the_network_and_its_gradients_are_those_of_the_short_rows():
    head, batch, shared = problem("repo")
    init = functools.partial(head.network.init, train=True)
    variables = jax.jit(init)(jax.random.key(0), batch, shared)
    long, short = variables["params"], gears.project(variables["params"])
    assert np.linalg.norm(long["perturbed_table"], axis=1).max() > 1
    assert np.linalg.norm(short["perturbed_table"], axis=1).max() <= 1 + 1e-6

    def total(params):
        out, _ = head.network.apply({**variables, "params": params}, batch, shared, True, mutable=True)
        return jnp.square(out).sum()

    value = jax.jit(jax.value_and_grad(total))
    (one, grads), (other, wanted) = value(long), value(short)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(grads["perturbed_table"], wanted["perturbed_table"], atol=1e-4)


@pytest.mark.slow
def test_a_planted_additive_effect_is_learnt_and_told_of_a_pair_of_genes_not_seen_together():
    rng = np.random.default_rng(0)
    effects = np.where(rng.random((4, G)) < 0.4, rng.normal(0, 1.5, (4, G)), 0)
    groups = [(), (0,), (1,), (2,), (3,), (0, 1), (1, 2), (0, 2), (0, 3), (1, 3)]
    flags = np.zeros((len(groups), G), np.float32)
    for row, targets in enumerate(groups):
        flags[row, list(targets)] = 1

    def cells(flags, n):
        condition = np.tile(np.arange(len(flags)), n)
        x = 3 + 0.3 * rng.normal(size=(len(condition), G))
        y = x + flags[condition][:, :4] @ effects
        arrays = {"x": x, "flags": flags[condition], "y": y}
        return heads.Examples.of(
            **{k: v.astype(np.float32) for k, v in arrays.items()}, condition=condition.astype(np.int32)
        )

    pair = np.zeros((1, G), np.float32)
    pair[0, [2, 3]] = 1
    graph = gears.go_graph(*edges(), G)
    every = np.ones((len(groups), G), bool)
    shared = {
        "graph": graph,
        "coexpression": graph,
        "control": np.full(G, 3, np.float32),
        "retained": every,
        "de": every,
    }
    training = heads.Training({"learning_rate": 1e-2}, epochs=40, rows=50, decay=0.95)
    head = gears.head("gears", G, width=16)
    fitted = heads.fit(head, cells(flags, 20), cells(flags, 5), shared, training, seed=1)
    test = cells(pair, 20)
    predicted = heads.predict(head.network, fitted.variables, test, shared)
    rows = test.take(np.arange(20))
    delta = (predicted - rows["x"]).mean(0)
    assert np.corrcoef(delta, effects[2] + effects[3])[0, 1] > 0.7


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["head_gears", "head_deepsem_inverse", "head_deepsem_cholesky_inverse", "metrics"])
def test_golden_case_passes(name):
    result = parity.check(SHARED / "golden/sclong" / name)
    assert result.passed, result.line
