"""Packed molecules are what a dense graph of each would be; heads on drugs follow their formulas and recorded cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import parity
from scfm_jax.layers.norms import BatchNorm
from scfm_jax.tasks import heads
from scfm_jax.tasks.drugs import deepcdr, deepce, deepdds, molecules
from tests.conftest import SHARED, needs_shared

SIZES = np.array([3, 1, 5, 2])


def library(features=4, bonds=2, seed=0):
    """Return four molecules: chains of three, one, five and two atoms."""
    rng = np.random.default_rng(seed)
    ends = [(i, i + 1) for n in SIZES for i in range(n - 1)]
    edges = np.array([(a, b) for pair in ends for a, b in (pair, pair[::-1])])
    kinds = np.repeat(rng.random((len(ends), bonds)), 2, 0).astype(np.float32)
    x = rng.random((SIZES.sum(), features)).astype(np.float32)
    return molecules.Library(x, SIZES, edges, 2 * (SIZES - 1), kinds)


def dense(one, which, rows=0):
    """Return features and D^-1/2 (A + I) D^-1/2 of a molecule, with `rows` of padding."""
    first, n = SIZES[:which].sum(), SIZES[which]
    matrix = np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    matrix = matrix / np.sqrt(matrix.sum(0)[:, None] * matrix.sum(0))
    size = max(rows, n)
    x, full = np.zeros((size, one.x.shape[1])), np.eye(size)
    x[:n], full[:n, :n] = one.x[first : first + n], matrix
    return x, full


@pytest.mark.parametrize("drugs", [[2, 0, 2, 3, 1], [2, 2, 0], [1]], ids=["whole library", "some", "one"])
def test_a_packed_batch_is_the_graph_of_each_of_its_molecules(drugs):
    one, drugs = library(), np.array(drugs)
    batch = one.batch(drug=drugs)
    graphs, drug = batch["molecules"], batch["drug"]
    x = molecules.graph.aggregate(graphs.nodes["x"], graphs.edges["weight"], graphs)
    summed, means, most = (f(x, graphs)[drug] for f in (molecules.total, molecules.mean, molecules.largest))
    for row, which in enumerate(drugs):
        features, matrix = dense(one, which)
        near = matrix @ features
        np.testing.assert_allclose(summed[row], near.sum(0), rtol=1e-5)
        np.testing.assert_allclose(means[row], near.mean(0), rtol=1e-5)
        np.testing.assert_allclose(most[row], near.max(0), rtol=1e-5)
        atoms = graphs.globals["atoms"][drug[row]]
        np.testing.assert_allclose(graphs.nodes["x"][atoms], dense(one, which, 5)[0], rtol=1e-6)
    assert graphs.nodes["weight"].sum() == SIZES[drugs].sum(), "atoms count rows, padding nothing"
    assert (np.diff(graphs.receivers) >= 0).all() and graphs.n_node.sum() == len(x)
    bound = graphs.senders != graphs.receivers
    assert (graphs.edges["bond"][~bound] == 0).all() and (graphs.edges["bond"][bound] > 0).all()


def test_batches_of_a_large_library_have_few_shapes():
    rng = np.random.default_rng(0)
    sizes = rng.integers(10, 50, 300)
    none = np.zeros((0, 2), int)
    large = molecules.Library(np.ones((sizes.sum(), 1), np.float32), sizes, none, np.zeros(300, int))
    batches = (large.batch(drug=rng.integers(0, 300, 64))["molecules"] for _ in range(40))
    assert len({tuple(x.shape for x in jax.tree.leaves(graphs)) for graphs in batches}) <= 3
    assert [molecules.padded(n) for n in (1, 16, 17, 33, 41, 1921)] == [4, 16, 20, 40, 48, 2048]
    with pytest.raises(ValueError, match="do not belong together"):
        molecules.Library(np.ones((3, 1)), np.array([2, 0, 1]), none, np.zeros(3, int))


def test_weights_of_a_batch_norm_are_numbers_of_rows():
    rng = np.random.default_rng(1)
    x, number = rng.normal(size=(5, 3)).astype(np.float32), np.array([1, 3, 0, 2, 1])
    norm = BatchNorm(affine=False)
    variables = norm.init(jax.random.key(0), x)
    assert "params" not in variables
    weighed, one = norm.apply(variables, x, True, number.astype(np.float32), mutable=True)
    repeated, other = norm.apply(variables, np.repeat(x, number, 0), True, mutable=True)
    np.testing.assert_allclose(np.repeat(weighed, number, 0), repeated, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)


def start(network, batch, shared):
    """Return random variables of a network."""
    return jax.jit(lambda key: network.init(key, batch, shared))(jax.random.key(0))


@pytest.mark.slow
def test_deepce_says_of_a_row_what_it_says_of_it_alone():
    one, rng = library(), np.random.default_rng(2)
    drugs = np.array([0, 2, 2, 3])
    conditions = {"cell": np.eye(4, 3), "dose": np.eye(4, 2)}
    examples = deepce.examples(one, drugs, rng.normal(size=(4, 6)), **conditions)
    shared = {"genes": rng.normal(size=(6, 5)).astype(np.float32)}
    network = deepce.DeepCE(graph_widths=(3, 3), width=8, heads=2, feedforward=8, hidden=4)
    together, alone = examples.take(np.arange(4)), examples.take(np.array([2]))
    variables = start(network, together, shared)
    every = network.apply(variables, together, shared)
    np.testing.assert_allclose(network.apply(variables, alone, shared)[0], every[2], rtol=1e-4, atol=1e-5)
    assert np.abs(every[1] - every[2]).max() > 1e-4, "another cell and dose"
    sums = [deepce.tally(p, {"y": y}, {}) for p, y in ((every[:1], every[:1]), (every[1:3], -every[1:3]))]
    assert deepce.unexplained(np.sum(sums, axis=0), {}) == pytest.approx(1 - (1 - 2) / 3, abs=1e-3)


def test_a_layer_of_parts_is_the_layer_of_the_parts_side_by_side():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, a, b):
            return deepce.in_parts(3, "joined", self, a, b)

    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 5, 4)), rng.normal(size=(1, 5, 2))
    out, variables = Both().init_with_output(jax.random.key(0), a, b)
    joined = np.concatenate([a, np.repeat(b, 2, 0)], -1)
    params = variables["params"]
    np.testing.assert_allclose(out, joined @ params["joined_kernel"] + params["joined_bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", deepcdr.POOLS)
def test_deepcdr_normalises_over_atoms_or_over_the_padding_too(pool):
    one, drugs = library(), np.array([2, 0, 2])
    network = deepcdr.DeepCDR(graph_widths=(3, 2), pool=pool, dropout=0.0)
    lines = np.random.default_rng(4).normal(size=(2, 7)).astype(np.float32)
    batch = deepcdr.examples(one, drugs, np.array([0, 1, 0]), np.zeros(3)).take(np.arange(3))
    variables = start(network, batch, {"lines": lines})
    wanted = lambda module, _: "convolution_norm" in (module.name or "")  # noqa: E731
    _, inner = network.apply(variables, batch, {"lines": lines}, True, mutable=True, capture_intermediates=wanted)
    params, rows = variables["params"], 100 if pool == "padded" else 0
    x, matrix = zip(*(dense(one, which, rows) for which in drugs), strict=True)
    for i in range(2):
        kernel, bias = (params[f"convolution_{i}"]["linear"][name] for name in ("kernel", "bias"))
        x = [np.maximum(a @ h @ kernel + bias, 0) for a, h in zip(matrix, x, strict=True)]
        every = np.concatenate(x)
        x = [(h - every.mean(0)) / np.sqrt(every.var(0) + 1e-3) for h in x]
    made = inner["intermediates"]["convolution_norm_1"]["__call__"][0]
    graphs, drug = batch["molecules"], batch["drug"]
    for row, which in enumerate(drugs):
        atoms = graphs.globals["atoms"][drug[row]][: SIZES[which]]
        np.testing.assert_allclose(made[atoms], x[row][: SIZES[which]], rtol=1e-3, atol=1e-4)
    pooled = molecules.mean(jnp.asarray(made), graphs, 100 if pool == "padded" else None)[drug]
    np.testing.assert_allclose(pooled, [h.mean(0) for h in x], rtol=1e-3, atol=1e-4)
    assert params["out"]["kernel"].shape == (30, 1), "300 -> 151 -> 75 -> 71 -> 23 -> 19 -> 6 x 5"


@pytest.mark.slow
def test_deepcdr_reduces_genes_by_a_layer_or_a_mean_and_refuses_what_it_lacks():
    rng = np.random.default_rng(5)
    batch = deepcdr.examples(library(), np.array([0, 3]), np.array([1, 0]), np.zeros(2)).take(np.arange(2))
    shared = {"lines": rng.normal(size=(2, 6, 3)).astype(np.float32), "flags": np.zeros((2, 706), np.float32)}
    network = deepcdr.head("paper", graph_widths=(3,)).network
    variables = start(network, batch, shared)
    assert "reduce" not in variables["params"]
    as_means = network.apply(variables, batch, {"lines": shared["lines"].mean(-1)})
    np.testing.assert_allclose(network.apply(variables, batch, shared), as_means, rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(
        lambda k: deepcdr.head(graph_widths=(3,), dense=("flags",)).network.init(k, batch, shared), jax.random.key(0)
    )["params"]
    assert shapes["reduce"]["kernel"].shape == (3, 1) and shapes["joined"]["kernel"].shape == (203, 300)
    with pytest.raises(ValueError, match="flags: 706 columns are too few for convolutions; let a dense tower"):
        deepcdr.DeepCDR(convolved=("flags",)).init(jax.random.key(0), batch, shared)
    with pytest.raises(ValueError, match="preset 'repro': there are linear, paper, repo"):
        deepcdr.head("repro")


@pytest.mark.parametrize(
    "preset", [name if name == "paper" else pytest.param(name, marks=pytest.mark.slow) for name in deepdds.PRESETS]
)
def test_deepdds_says_the_same_of_a_pair_in_either_order(preset):
    rng = np.random.default_rng(6)
    first, second, line = np.array([0, 2, 3]), np.array([1, 0, 3]), np.array([0, 1, 1])
    lines = rng.normal(size=(2, 5) if preset == "deepdds" else (2, 5, 3)).astype(np.float32)
    pair, back = (
        deepdds.examples(library(), *sides, line, np.array([0, 1, 1])).take(np.arange(3))
        for sides in ((first, second), (second, first))
    )
    network = deepdds.head(preset, convolutions=(4, 6)).network
    variables = start(network, pair, {"lines": lines})
    logits = network.apply(variables, pair, {"lines": lines})
    np.testing.assert_allclose(network.apply(variables, back, {"lines": lines}), logits, rtol=1e-4, atol=1e-6)
    assert ("first_convolution_0" in variables["params"]) == (preset == "paper")
    ordered = network.clone(symmetric=False)
    one, other = (ordered.apply(variables, batch, {"lines": lines}) for batch in (pair, back))
    np.testing.assert_allclose((one + other) / 2, logits, rtol=1e-4, atol=1e-6)
    assert np.abs(one - other)[0].max() > 1e-6
    few = deepdds.examples(library(), first, second, line, np.zeros(3)).take(np.array([1]))
    np.testing.assert_allclose(network.apply(variables, few, {"lines": lines})[0], logits[1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_drug_and_line_say_together_is_learnt():
    rng = np.random.default_rng(7)
    lines = rng.normal(size=(30, 12)).astype(np.float32)
    drug, line = np.repeat(np.arange(4), 30), np.tile(np.arange(30), 4)
    y = (2.0 * SIZES[drug] + (SIZES[drug] - 2) * lines[line, 0]).astype(np.float32)
    kept = rng.random(len(y)) < 0.8
    train, test = (deepcdr.examples(library(), drug[some], line[some], y[some]) for some in (kept, ~kept))
    head, training = deepcdr.head(graph_widths=(16, 16)), heads.Training({"learning_rate": 3e-3}, epochs=60, rows=32)
    fitted = heads.fit(head, train, test, {"lines": lines}, training)
    predicted = heads.predict(head.network, fitted.variables, test, {"lines": lines})
    assert np.corrcoef(predicted, y[~kept])[0, 1] > 0.9


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["head_deepce", "head_deepdds"])
def test_golden_case_passes(name):
    result = parity.check(SHARED / "golden/sclong" / name)
    assert result.passed, result.line
