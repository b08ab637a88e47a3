"""Graph layers: the same numbers as dense matrices give, whatever the order, the padding, the blocks or the devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scfm_jax.layers import graph
from tests.harness import ROOT

N, D = 12, 5


@pytest.fixture
def edges():
    """A directed weighted graph with self-edges, several isolated nodes, and nodes with only outgoing edges."""
    rng = np.random.default_rng(0)
    matrix = (rng.random((N, N)) < 0.35) * rng.random((N, N))  # [target, source]
    matrix[[3, 7]] = 0
    matrix[:, [3, 9]] = 0
    target, source = np.nonzero(matrix)
    order = rng.permutation(len(source))
    return source[order], target[order], matrix[target, source][order]


def matrix_of(source, target, weight, n=N):
    dense = np.zeros((n, n))
    dense[target, source] = weight
    return dense


def normalised(dense):
    degree = dense.sum(1)
    scale = np.zeros(len(dense))
    scale[degree > 0] = degree[degree > 0] ** -0.5
    return scale[:, None] * dense * scale


def run(layer, x, built, **options):
    variables = layer.init(jax.random.key(0), x, built)
    variables = jax.tree.map(lambda p: p + 0.1, variables)  # biases that are not zero
    return jax.jit(lambda v, x, g: layer.apply(v, x, g, **options))(variables, x, built), variables


X = np.random.default_rng(1).normal(size=(N, D)).astype(np.float32)


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_weighted_convolution_is_a_product_of_dense_matrices(edges, hops):
    built = graph.build(*edges, n_nodes=N)
    y, variables = run(graph.GraphConvolution(4, hops=hops), X, built)
    linear = variables["params"]["linear"]
    matrix = np.linalg.matrix_power(normalised(matrix_of(*edges)), hops)
    np.testing.assert_allclose(y, matrix @ X @ linear["kernel"] + linear["bias"], rtol=1e-5, atol=1e-6)


def test_gcn_adds_self_loops_and_ignores_weights(edges):
    built = graph.build(*edges, n_nodes=N, weighted=False, self_loops=True)
    y, variables = run(graph.GraphConvolution(4), X, built)
    linear = variables["params"]["linear"]
    matrix = normalised(np.maximum(matrix_of(*edges) > 0, np.eye(N)))
    np.testing.assert_allclose(y, matrix @ X @ linear["kernel"] + linear["bias"], rtol=1e-5, atol=1e-6)


def dense_attention(params, x, adjacency, heads, slope=0.2):
    rows = (x @ params["kernel"]).reshape(len(x), heads, -1)
    score = np.einsum("thk,hk->th", rows, params["target"])[:, None] + np.einsum("shk,hk->sh", rows, params["source"])
    score = np.where(score > 0, score, slope * score)  # [target, source, H]
    weight = np.exp(score) * adjacency[..., None]
    weight = weight / np.where(weight.sum(1) > 0, weight.sum(1), 1)[:, None]
    return np.einsum("tsh,shk->thk", weight, rows)


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("concat", [False, True])
def test_attention_is_a_dense_masked_softmax(edges, self_loops, concat):
    built = graph.build(*edges, n_nodes=N, normalise=False, self_loops=self_loops, pad_to=200)
    y, variables = run(graph.GraphAttention(3, heads=4, concat=concat), X, built)
    adjacency = (matrix_of(*edges) > 0) | (self_loops & np.eye(N, dtype=bool))
    wanted = dense_attention(jax.device_get(variables["params"]), X, adjacency, 4)
    wanted = wanted.reshape(N, -1) if concat else wanted.mean(1)
    np.testing.assert_allclose(y, wanted + 0.1, rtol=1e-5, atol=1e-5)


LAYERS = [graph.GraphConvolution(4, hops=2), graph.GraphAttention(3, heads=2)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_nodes_may_be_in_any_order(edges, layer):
    source, target, weight = edges
    place = np.random.default_rng(2).permutation(N)  # node i becomes node place[i]
    moved = np.empty_like(X)
    moved[place] = X
    y, variables = run(layer, X, graph.build(*edges, n_nodes=N))
    again = layer.apply(variables, moved, graph.build(place[source], place[target], weight, n_nodes=N))
    np.testing.assert_allclose(again[place], y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_a_node_without_incoming_edges_is_the_bias_alone(edges, layer):
    y = np.asarray(run(layer, X, graph.build(*edges, n_nodes=N))[0])
    bias = np.asarray(run(layer, np.zeros_like(X), graph.build(*edges, n_nodes=N))[0][3])
    np.testing.assert_array_equal(y[[3, 7]], [bias, bias])
    assert (np.abs(y[0] - bias) > 1e-3).any()


def gradients(layer, variables, x, built):
    def loss(variables, x):
        y = layer.apply(variables, x, built)
        return (y * jnp.cos(jnp.arange(y.size).reshape(y.shape))).sum()

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("self_loops", [False, True])
def test_padding_edges_change_nothing(edges, layer, self_loops):
    x = X.copy()
    x[0] = 30  # padding edges start at node 0: its large scores and rows must not get anywhere by them
    plain, padded = (
        graph.build(*edges, n_nodes=N, self_loops=self_loops, normalise=False, pad_to=size) for size in (None, 300)
    )
    assert len(padded.edges) == 300
    variables = run(layer, x, plain)[1]
    wanted, found = (gradients(layer, variables, x, built) for built in (plain, padded))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda x: type(x).__name__)
def test_gradients_are_those_of_finite_differences(edges, layer):
    built = graph.build(*edges, n_nodes=N)
    variables = run(layer, X, built)[1]
    _, (by_params, by_x) = gradients(layer, variables, X, built)
    rng = np.random.default_rng(3)
    step = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32) * 1e-2, (variables, X))
    ahead, behind = (
        gradients(layer, *jax.tree.map(lambda p, s, sign=sign: p + sign * s, (variables, X), step), built)[0]
        for sign in (1, -1)
    )
    slope = sum((g * s).sum() for g, s in zip(jax.tree.leaves((by_params, by_x)), jax.tree.leaves(step), strict=True))
    np.testing.assert_allclose(ahead - behind, 2 * slope, rtol=2e-2)


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("heads", [0, 3])
def test_blocks_of_edges_do_not_show(edges, block, heads):
    built = graph.build(*edges, n_nodes=N, normalise=False)
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(len(built.edges), heads) if heads else len(built.edges)).astype(np.float32)
    x = rng.normal(size=(N, heads, 2) if heads else (N, 2)).astype(np.float32)
    wanted = np.zeros_like(x)
    rows = x[built.senders] * weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
    np.add.at(wanted, built.receivers, rows)
    np.testing.assert_allclose(graph.aggregate(x, weight, built, block), wanted, rtol=1e-5, atol=1e-6)


def test_a_graph_without_edges_gives_the_bias():
    none = np.zeros(0, np.int32)
    for layer in LAYERS:
        y, _ = run(layer, X, graph.build(none, none, n_nodes=N))
        assert np.isfinite(y).all() and (np.asarray(y) == np.asarray(y)[0]).all()


def test_a_degree_is_the_weight_that_comes_in():
    # 0 -> 1 twice as heavy as 1 -> 1; node 0 has no incoming weight, so its edge is worth nothing
    built = graph.build([0, 1, 1, 2], [1, 1, 2, 2], [2.0, 1.0, 4.0, 1.0], n_nodes=3)
    values = {(s, t): w for s, t, w in zip(built.senders, built.receivers, built.edges, strict=True)}
    assert values[0, 1] == 0
    np.testing.assert_allclose(values[1, 1], 1 / 3)
    np.testing.assert_allclose(values[1, 2], 4 / np.sqrt(3 * 5), rtol=1e-6)
    assert (np.diff(built.receivers) >= 0).all()


def test_self_loops_are_added_once():
    built = graph.build([0, 1], [0, 0], [0.5, 1.0], n_nodes=3, self_loops=True, normalise=False)
    pairs = sorted(zip(built.senders.tolist(), built.receivers.tolist(), built.edges.tolist(), strict=True))
    assert pairs == [(0, 0, 0.5), (1, 0, 1.0), (1, 1, 1.0), (2, 2, 1.0)]


def test_constants_bring_the_graph_back(edges):
    built = graph.build(*edges, n_nodes=N, pad_to=100)
    kept = graph.constants(built) | {"slots": np.arange(3)}
    assert all(value.dtype in (np.int32, np.float32) for value in graph.constants(built).values())
    again = graph.from_constants(jax.tree.map(jnp.asarray, kept))
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(built), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    layer = graph.GraphConvolution(2)
    y, variables = run(layer, X, built)
    np.testing.assert_allclose(
        jax.jit(lambda k: layer.apply(variables, X, graph.from_constants(k)))(kept), y, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 12], [0, 1], [1.0, 1.0]), "nodes 0 to 12"),
        (([0, -1], [0, 1], [1.0, 1.0]), "nodes -1 to 1"),
        (([0, 1], [0, 1], [1.0, -1.0]), "not negative"),
        (([0, 1], [0, 1], [1.0, np.nan]), "finite"),
        (([0, 1], [0], [1.0, 1.0]), "one of each"),
    ],
)
def test_what_is_no_graph_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        graph.build(*arguments, n_nodes=N)


def test_more_edges_than_the_padding_are_refused(edges):
    with pytest.raises(ValueError, match="pad_to=3"):
        graph.build(*edges, n_nodes=N, pad_to=3)


def test_dropout_of_attention_is_on_in_training_only(edges):
    layer = graph.GraphAttention(3, heads=2, dropout=0.5)
    built = graph.build(*edges, n_nodes=N)
    y, variables = run(layer, X, built)
    np.testing.assert_array_equal(y, run(layer, X, built)[0])
    dropped = layer.apply(variables, X, built, train=True, rngs={"dropout": jax.random.key(1)})
    assert not np.allclose(dropped, y)


ON_FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from scfm_jax import sharding
from scfm_jax.layers import graph
rng = np.random.default_rng(0)
built = graph.build(*rng.integers(0, 50, (2, 400)), rng.random(400), n_nodes=50)
x = rng.normal(size=(50, 8)).astype(np.float32)
mesh = sharding.make_mesh(data=1, fsdp=4)
for layer in (graph.GraphConvolution(8, hops=2), graph.GraphAttention(4, heads=2)):
    variables = layer.init(jax.random.key(0), x, built)
    step = jax.jit(jax.value_and_grad(lambda x, g: (layer.apply(variables, x, g) ** 2).sum()))
    wanted = step(x, built)
    with jax.set_mesh(mesh):
        for spec in (PartitionSpec(None, "fsdp"), PartitionSpec()):
            found = step(jax.device_put(x, NamedSharding(mesh, spec)), built)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    total = jax.jit(lambda x, g: graph.aggregate(x, g.edges, g), in_shardings=(split, None), out_shardings=split)
    text = total.lower(x, built).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all")), "rows were sent around"
print("same")
"""


@pytest.mark.slow
def test_rows_split_over_devices_stay_split():
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = ROOT
    done = subprocess.run([sys.executable, "-c", ON_FOUR_DEVICES], capture_output=True, text=True, env=env, cwd=root)
    assert done.stdout.strip() == "same", done.stderr[-2000:]
