"""scLong: golden parity, masks, what may and may not be felt, redrawn features, sizes, options, files."""

import functools
import itertools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from data_pipeline.genes import gene_vectors, graph_file
from experiments import parity
from scfm_jax import api, models
from scfm_jax.layers import graph
from scfm_jax.layers.gene_start import start
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.models import sclong
from scfm_jax.models.sclong import performer
from scfm_jax.models.sclong import published as convert
from scfm_jax.models.sclong.genes import GeneHead, GeneVectors
from scfm_jax.models.sclong.inputs import MASK, TRANSFORMS, to_counts
from scfm_jax.models.sclong.network import split
from scfm_jax.saving import checkpoint
from scfm_jax.saving.published import torch_state
from scfm_jax.tasks.cells import embedding
from scfm_jax.tasks.genes import gene_clusters
from scfm_jax.training import optim, step
from scfm_jax.types import Batch, Outputs
from tests.conftest import SHARED, needs_shared

GENES, PADDED = 60, 24
TINY = sclong.VARIANTS["tiny"]["model"] | {"top_seq_len": 16, "base_dim": 16, "large_dim": 24, "graph": True}
KINDS = {"model", "masking", "preprocess", "reindex", "lr_schedule", "go_graph"}
GOLDEN = sorted((SHARED / "golden" / "sclong").glob("*")) if SHARED.exists() else []
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bag(cells: int = 3, expressed: int = 20, seed: int = 0) -> Batch:
    """Return single cells with random counts of `expressed` genes, padded to PADDED."""
    rng = np.random.default_rng(seed)
    genes = np.full((cells, 1, PADDED), GENES)
    genes[..., :expressed] = np.argsort(rng.random((cells, 1, GENES)), axis=-1)[..., :expressed]
    counts = np.where(genes < GENES, rng.poisson(3, genes.shape) + 1, 0)
    return Batch(
        genes=jnp.asarray(genes, jnp.int32),
        counts=jnp.asarray(counts, jnp.float32),
        cell_mask=jnp.ones((cells, 1), bool),
        study=jnp.zeros((cells, 1), jnp.int32),
        coords=jnp.full((cells, 1, 2), jnp.nan),
        labels={},
    )


def constants(genes: int = GENES) -> dict:
    rng = np.random.default_rng(1)
    edges = np.unique(rng.integers(0, genes, (200, 2)), axis=0).T
    built = graph.build(*edges, rng.random(edges.shape[1]), n_nodes=genes + 1)
    return {"slots": jnp.arange(genes + 1), "measured": jnp.ones((1, genes), bool), **graph.constants(built)}


def prepared(batch: Batch, train: bool = True, **options) -> dict:
    return sclong.prepare(batch, constants(), jax.random.key(1), step=0, train=train, **options)


def built(**options) -> tuple[sclong.Model, dict]:
    """Return a model and random variables for it, without compiling its own."""
    model = sclong.Model(n_genes=GENES, **TINY | options)
    inputs = prepared(bag())
    if not model.graph:
        inputs.pop("graph")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=True))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(0, 0.3, leaf.shape) if leaf.dtype == jnp.float32 else 0, leaf.dtype)

    return model, jax.tree.map(draw, shapes)


@functools.cache
def compiled(**options):
    """Return a function of inputs, compiled: (outputs in evaluation, outputs in training)."""
    model, variables = built(**options)
    run = quick(lambda x, train: model.apply(variables, x, train=train), static_argnums=1)
    return lambda inputs, train=False: run(inputs, train)


# ---------------------------------------------------------------------------------------------------------- originals


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_golden_case(folder):
    kind = json.loads((folder / "case.json").read_text())["kind"]
    if kind not in KINDS:
        pytest.skip(f"kind {kind}: a downstream task's")
    result = parity.check(folder)
    assert result.passed, result.line


@needs_shared
@pytest.mark.parametrize("name", ["masking_b4_n50", "derived_preprocessing", "reindex", "lr_schedule"])
def test_small_golden_case(name):
    result = parity.check(SHARED / "golden" / "sclong" / name)
    assert result.passed, result.line


@pytest.mark.slow
def test_published_size_has_the_parameters_of_the_released_weights():
    shapes = convert.shapes(sclong.Model(n_genes=27_874, **sclong.VARIANTS["published"]["model"]))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == 1_006_086_461


@pytest.mark.parametrize("scan", [False, True])
def test_published_names_there_and_back(scan):
    model, variables = built(scan=scan, dec_depth=3)
    state = convert.state_dict(variables, model)
    assert state["large_encoder.net.layers.1.0.fn.fast_attention.projection_matrix"].shape == (44, 16)
    assert state["decoder.net.layers.2.1.fn.fn.w1.weight"].shape == (64, 16) and state["mask_emb.weight"].shape == (
        1,
        16,
    )
    back = flatten_dict(convert.params(state, model))
    assert set(back) == set(flatten_dict(variables))
    for path, value in flatten_dict(variables).items():
        np.testing.assert_array_equal(value, back[path], err_msg=str(path))


def test_published_files_become_a_run_that_needs_none_of_them_afterwards(tmp_path):
    torch = pytest.importorskip("torch", reason="torch writes the files that this test reads")
    model, variables = built()
    state = {name: torch.tensor(np.array(x)) for name, x in convert.state_dict(variables, model).items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    check_published(tmp_path, model)


@pytest.mark.slow
def test_published_run_is_exported_with_its_graph(tmp_path, monkeypatch):
    model, variables = built()
    monkeypatch.setattr(torch_state, "read", lambda _: convert.state_dict(variables, model))
    check_published(tmp_path, model)


def check_published(folder, model):
    """Load weights beside a gene list, a csv graph and a JSON config, export, delete all of them, embed the same."""
    names = [f"ENSG{i:011}" for i in range(GENES)]
    (folder / "genes.txt").write_text("\n".join([*names, "PAD"]))
    edges = [f"{names[i]},{names[j]},{1 / (1 + i + j)}" for i in range(GENES) for j in (i, (i + 7) % GENES)]
    (folder / "graph.csv").write_text("\n".join(["source,target,importance", *edges]))
    theirs = {theirs: getattr(model, ours) for theirs, ours in convert.RENAMED.items()}
    theirs |= {name: getattr(model, name) for name in convert.SAME}
    assert "go_num_layers" in theirs, "the authors' word"
    (folder / "config.json").write_text(json.dumps({"genes": "genes.txt", "graph": "graph.csv", **theirs}))
    run = api.from_published("sclong", folder / "weights.pth", folder / "config.json")
    assert run.genes == names and run.constants["graph_weight"].shape == (2 * GENES,)
    run.export(folder / "run.safetensors")
    for name in ("genes.txt", "graph.csv", "config.json"):
        (folder / name).unlink()
    back = api.load(folder / "run.safetensors")
    np.testing.assert_array_equal(back.constants["graph_weight"], run.constants["graph_weight"])
    assert back.model == run.model


def test_two_graph_layers_of_a_config_in_the_authors_words_are_their_formula():
    """X1 = relu(S X0 W0^T + b0), X2 = S X1 W1^T + b1, S[t, s] = w / sqrt(deg[t] deg[s]), deg of incoming weights."""
    theirs = {name: getattr(built()[0], ours) for name, ours in convert.RENAMED.items()}
    theirs |= {name: TINY.get(name, False) for name in convert.SAME if name in TINY} | {"go_num_layers": 2}
    settings = convert.config({**theirs, "max_seq_len": GENES + 1})["model"]
    assert settings["graph_layers"] == 2 and settings["n_genes"] == GENES
    model = sclong.Model(**settings)
    rng = np.random.default_rng(3)
    state = convert.state_dict(built(graph_layers=2)[1], model)
    assert {f"go_conv.sim_layers.{i}.lin.weight" for i in (0, 1)} < set(state)
    edges, n = np.unique(rng.integers(0, GENES, (200, 2)), axis=0).T, GENES + 1
    weight = rng.random(edges.shape[1])
    dense = np.zeros((n, n))
    dense[edges[1], edges[0]] = weight
    degree = dense.sum(1)
    rate = np.where(degree > 0, degree, np.inf) ** -0.5
    dense = rate[:, None] * dense * rate
    x = np.asarray(state["go_conv.emb.weight"], float)
    for i in (0, 1):
        lin = [np.asarray(state[f"go_conv.sim_layers.{i}.lin.{leaf}"], float) for leaf in ("weight", "bias")]
        x = dense @ (np.maximum(x, 0) if i else x) @ lin[0].T + lin[1]
    network = graph.build(*edges, weight, n_nodes=n)
    params = convert.params(state, model)["params"]["identity"]
    layer = GeneVectors(n, model.base_dim, layers=2, table=False)
    np.testing.assert_allclose(layer.apply({"params": params}, None, network), x, rtol=1e-4, atol=1e-5)


def test_a_gene_list_of_another_length_than_the_config_is_refused(tmp_path):
    (tmp_path / "genes.txt").write_text("A\nB\nPAD\n")
    config = {"genes": "genes.txt", "graph": "graph.csv", "max_seq_len": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="max_seq_len=5, but 2 genes and PAD"):
        convert.load(tmp_path / "weights.pth", tmp_path / "config.json")


# --------------------------------------------------------------------------------------------------- values and masks


@pytest.mark.parametrize("expressed", [0, 1, 6, 7, 20, 24])
def test_exactly_so_many_expressed_genes_are_scored(expressed):
    batch = bag(expressed=expressed)
    inputs = prepared(batch, replace_rate=0.5)
    number = math.ceil(0.15 * expressed)
    np.testing.assert_array_equal(inputs["weights"].sum(-1), np.full((3, 1), number))
    for cell in range(3):
        rows, weights = inputs["rows"][cell, 0], inputs["weights"][cell, 0] > 0
        assert len(set(rows[weights].tolist())) == number and set(rows[weights].tolist()) <= set(
            batch.genes[cell, 0].tolist()
        )
        np.testing.assert_array_equal(inputs["targets"][cell, 0][weights], inputs["values"][cell, 0][rows[weights]])
        hidden = np.flatnonzero(inputs["masked"][cell, 0] == MASK)
        assert set(hidden) <= set(rows[weights].tolist())
        kept = np.setdiff1d(np.arange(GENES), hidden)
        np.testing.assert_array_equal(inputs["masked"][cell, 0][kept], inputs["values"][cell, 0][kept])


def test_share_of_hidden_genes_among_the_scored():
    inputs = prepared(bag(cells=400, expressed=24))
    hidden = (inputs["masked"] == MASK).sum() / inputs["weights"].sum()
    assert abs(float(hidden) - 0.9) < 0.03
    everything = prepared(bag(), replace_rate=1.0)
    assert (everything["masked"] == MASK).sum() == everything["weights"].sum()
    assert "masked" not in prepared(bag(), mask_rate=0.0)


def test_values_are_turned_back_into_counts():
    batch = bag()
    batch = batch.replace(counts=jnp.minimum(batch.counts, 10))
    for transform in TRANSFORMS:
        inputs = prepared(batch, transform=transform)
        expected = np.zeros((3, 1, GENES + 1))
        np.put_along_axis(expected, np.asarray(batch.genes), np.asarray(batch.counts), -1)
        found = to_counts(inputs["values"], inputs, transform)
        np.testing.assert_allclose(found, expected[..., :GENES], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(inputs["values"].max(-1), 10, rtol=1e-6)


def test_order_of_genes_and_genes_without_a_slot_do_not_matter():
    batch = bag()
    order = np.random.default_rng(0).permutation(PADDED)
    turned = batch.replace(genes=batch.genes[..., order], counts=batch.counts[..., order])
    foreign = batch.replace(counts=jnp.where(batch.genes == GENES, 99.0, batch.counts))
    cells = compiled()
    ours = cells(prepared(batch, False, mask_rate=0.0)).genes
    for other in (turned, foreign):
        np.testing.assert_allclose(cells(prepared(other, False, mask_rate=0.0)).genes, ours, rtol=1e-5, atol=1e-5)
    silent = batch.replace(counts=batch.counts.at[:, :, 0].set(0))
    assert np.abs(cells(prepared(silent, False, mask_rate=0.0)).genes - ours).max() > 1e-3


# --------------------------------------------------------------------------------------------------- what may be felt


def test_a_hidden_value_does_not_influence_its_prediction():
    inputs, run = prepared(bag(), replace_rate=1.0), compiled()
    hidden = inputs["masked"] == MASK
    other = inputs | {"values": jnp.where(hidden, 10 - inputs["values"], inputs["values"])}
    seen = inputs | {"masked": jnp.where(hidden, MASK, 10 - inputs["masked"])}
    for train in (True, False):
        scored = [np.asarray(run(x, train).logits["scored"]) for x in (inputs, other, seen)]
        np.testing.assert_array_equal(scored[0], scored[1])
        assert np.abs(scored[0] - scored[2]).max() > 1e-3


def test_in_evaluation_the_embedding_sees_everything():
    inputs, run = prepared(bag()), compiled()
    bare = {name: value for name, value in inputs.items() if name not in ("masked", "rows", "targets", "weights")}
    np.testing.assert_allclose(run(inputs).cells, run(bare).cells, rtol=1e-5, atol=1e-6)
    assert np.abs(run(inputs, True).cells - run(bare).cells).max() > 1e-4


def test_scored_genes_alone_get_what_all_genes_get():
    inputs = prepared(bag())
    logits = compiled(dec_depth=2)(inputs, True).logits
    np.testing.assert_allclose(
        logits["scored"], np.take_along_axis(logits["genes"], inputs["rows"], -1), rtol=1e-4, atol=1e-5
    )


def test_cells_of_a_batch_do_not_feel_each_other():
    inputs, run = prepared(bag(), False, mask_rate=0.0), compiled()
    louder = inputs | {"values": inputs["values"].at[2].multiply(0.3)}
    np.testing.assert_allclose(run(louder).genes[:2], run(inputs).genes[:2], rtol=1e-6, atol=1e-6)
    short = bag().replace(cell_mask=jnp.array([[True], [True], [False]]))
    found = compiled(key_max="global")(prepared(short, False, mask_rate=0.0))
    alone = compiled(key_max="global")(jax.tree.map(lambda x: x[:2], prepared_cells(short)) | shared(short))
    np.testing.assert_allclose(found.genes[:2], alone.genes, rtol=1e-5, atol=1e-5)
    assert np.isfinite(found.cells).all()


def prepared_cells(batch: Batch) -> dict:
    return {name: x for name, x in prepared(batch, False, mask_rate=0.0).items() if name != "graph"}


def shared(batch: Batch) -> dict:
    return {"graph": prepared(batch, False, mask_rate=0.0)["graph"]}


def test_the_loss_is_a_mean_over_genes_or_within_cells_first():
    """The paper's Eq. 2 averages over a cell's genes, then over cells: a deep cell weighs as much as a shallow one."""
    deep, shallow = bag(2, 20), bag(1, 5, seed=3)
    batch = jax.tree.map(lambda *parts: jnp.concatenate(parts), deep, shallow)
    inputs = prepared(batch, mask_rate=0.5)
    scored = jnp.asarray(np.random.default_rng(0).normal(size=inputs["targets"].shape), jnp.float32)
    outputs = Outputs(cells=None, logits={"scored": scored})
    square, weights = np.asarray((scored - inputs["targets"]) ** 2)[:, 0], np.asarray(inputs["weights"])[:, 0]
    assert weights.sum(1).tolist() == [10, 10, 3]
    assert float(sclong.loss(outputs, inputs)[0]) == pytest.approx((square * weights).sum() / 23, rel=1e-5)
    each = [square[i][weights[i] > 0].mean() for i in range(3)]
    assert float(sclong.loss(outputs, inputs, average="cells")[0]) == pytest.approx(np.mean(each), rel=1e-5)
    with pytest.raises(ValueError, match="genes, cells"):
        sclong.loss(outputs, inputs, average="batch")


def test_what_layers_add_up_stays_in_float32():
    """As autocast has it: a hundredth of a unit beside 8 is lost in bfloat16, sixteen of them are not in float32."""
    layer = dict(heads=1, key_size=4, kind="exact", dtype="bfloat16")
    stack = performer.Performer(16, layer)
    x, mask = jnp.full((1, 3, 8), 8.0).at[..., ::2].set(-8.0), jnp.ones((1, 3), bool)
    shapes = jax.eval_shape(lambda: stack.init({"params": jax.random.key(0)}, x, mask))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    for name, params in variables["params"].items():
        params["mlp_out"]["bias"] = jnp.full_like(params["mlp_out"]["bias"], 0.01)
        assert name.startswith("layer_")
    y, _ = quick(lambda x: stack.apply(variables, x.astype(jnp.bfloat16), mask))(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y - x, 0.16, rtol=0.01)


def test_the_graphs_vectors_are_the_convolution_of_their_table():
    model = sclong.Model(n_genes=GENES, **TINY | {"gene_table": False})
    rng, edges = np.random.default_rng(0), constants()
    rows, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((GENES + 1, 16), (16, 16), 16))
    identity = {"graph_genes": rows, "graph_0": {"linear": {"kernel": kernel, "bias": bias}}}
    variables = {"params": {"identity": identity}}
    spread = np.zeros((GENES + 1, GENES + 1))
    np.add.at(spread, (edges["graph_target"], edges["graph_source"]), edges["graph_weight"])
    vectors = gene_clusters.vectors("sclong", variables, GENES, "graph", model, edges)
    np.testing.assert_allclose(vectors, (spread @ rows @ kernel + bias)[:GENES], rtol=1e-4, atol=1e-4)

    def kinds(graph: bool, **table) -> list[str]:
        parts = {"model": model.clone(graph=graph), "variables": {"params": {"identity": identity | table}}}
        return gene_clusters.kinds(types.SimpleNamespace(module=sclong, **parts))

    assert kinds(True) == ["graph"] and kinds(True, genes=rows) == ["table", "graph"]
    assert kinds(False, genes=rows) == ["table"]
    with pytest.raises(ValueError, match="no graph convolution; give an input"):
        gene_clusters.vectors("sclong", variables, GENES, "graph", model.clone(graph=False), {})


def test_the_heads_second_layer_starts_as_torchs_do_or_as_before():
    for kind, bound in (("width", 64**-0.5), ("fan_in", 4**-0.5)):
        params = GeneHead(400, 4, kind).init(jax.random.key(0), jnp.ones((1, 400, 64)))["params"]
        for name, most in {"kernel": 0.125, "bias": 0.125, "out_kernel": bound, "out_bias": bound}.items():
            assert 0.98 * most < float(jnp.abs(params[name]).max()) <= most, (kind, name)
    assert sclong.VARIANTS["paper"]["model"]["head_init"] == "fan_in"


def test_a_mean_over_what_a_norm_has_centred_is_void_at_the_start():
    model = sclong.Model(n_genes=GENES, **TINY | {"cells": "outsiders"})
    norm = np.random.default_rng(0).normal(size=(30, GENES, model.base_dim)).astype(np.float32)
    norm = np.asarray(LayerNorm().apply({"params": {"scale": jnp.ones(16), "bias": jnp.zeros(16)}}, norm))
    assert embedding.void(norm.sum(2)) and not embedding.void(norm.mean(1)) and not embedding.void(norm[:, 0, :1])


def test_without_the_low_group_only_the_top_genes_count():
    inputs, run = prepared(bag(), False, mask_rate=0.0), compiled(context="top")
    order = np.argsort(-np.asarray(inputs["values"]), axis=-1, kind="stable")
    low = np.take_along_axis(np.asarray(inputs["values"]), order[..., 16:], -1)
    assert (low > 0).any()
    silent = np.array(inputs["values"])
    np.put_along_axis(silent, order[..., 16:], 0, -1)
    other = inputs | {"values": jnp.asarray(silent)}
    np.testing.assert_array_equal(run(inputs).genes, run(other).genes)
    assert np.abs(compiled()(inputs).genes - compiled()(other).genes).max() > 1e-3


def test_the_groups_and_back():
    x = jnp.array([[0.0, 3, 0, -10, 5], [1, 1, 1, 1, 1]])
    order, inverse = split(x, 2)
    np.testing.assert_array_equal(order, [[4, 1, 0, 2, 3], [0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(np.take_along_axis(order, inverse, 1), np.tile(np.arange(5), (2, 1)))
    np.testing.assert_array_equal(split(x[:1], 2, jnp.array([[[0, 4]]]))[0], [[0, 4, 1, 2, 3]])


# ------------------------------------------------------------------------------------------------------------- options


def value_and_grad(model: sclong.Model, variables: dict, inputs: dict):
    rest = {name: x for name, x in variables.items() if name != "params"}

    def value(params):
        return sclong.loss(model.apply({"params": params, **rest}, inputs, train=True), inputs)[0]

    return quick(jax.value_and_grad(value))(variables["params"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"head": "gene", "gene_table": False, "readd": False, "expression_norm": False, "pad_token": False},
        {"graph": False, "context": "top", "cells": "outsiders", "kernel": "relu", "dtype": "bfloat16"},
        {"attention": "exact", "graph_layers": 2, "qkv_bias": True, "key_max": "per_head", "detach_max": True},
    ],
    ids=["paper", "without", "more"],
)
def test_every_option_trains(options):
    model, variables = built(**options)
    inputs = prepared(bag())
    value, grads = value_and_grad(model, variables, inputs)
    assert np.isfinite(value)
    for path, leaf in flatten_dict(grads).items():
        silent = path == ("mask",) and options.get("context") == "top"  # no hidden gene is among the top ones
        assert np.isfinite(leaf).all() and ((leaf != 0).any() or silent), path
    cells = quick(model.apply)(variables, inputs).cells
    assert cells.shape == (3, 1, GENES + 1 if options.get("cells") == "outsiders" else 16)


def test_options_there_are_not():
    for wrong in (
        {"head": "x"},
        {"context": "x"},
        {"cells": "x"},
        {"key_max": "x"},
        {"remat": "x"},
        {"attention": "x"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            built(**wrong)
    with pytest.raises(ValueError, match="gene_table"):
        built(graph=False, gene_table=False)
    with pytest.raises(ValueError, match="transform"):
        prepared(bag(), transform="x")
    model, variables = built()
    inputs = prepared(bag())
    inputs.pop("graph")
    with pytest.raises(ValueError, match=r"config\.data\.graph"):
        jax.eval_shape(model.apply, variables, inputs)


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    inputs = prepared(bag())
    model, variables = built(dec_depth=2)
    whole = value_and_grad(model, variables, inputs)
    other = model.clone(scan=True, remat=True)
    stacked = convert.params(convert.state_dict(variables, model), other)
    value, grads = value_and_grad(other, stacked, inputs)
    np.testing.assert_allclose(value, whole[0], rtol=1e-5)
    expected = convert.state_dict({"params": whole[1]}, model)
    for name, grad in convert.state_dict({"params": grads}, other).items():
        np.testing.assert_allclose(grad, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_flops_are_those_of_the_compiler():
    inputs = prepared(bag())
    wide = {"base_dim": 128, "large_dim": 256, "dec_depth": 2}
    wide |= {
        f"{stack}_{field}": n for stack in ("mini", "large", "dec") for field, n in (("heads", 4), ("key_size", 64))
    }
    model = sclong.Model(n_genes=GENES, **TINY | wide)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=True))

    def forward(variables, inputs):
        return sclong.loss(model.apply(variables, inputs, train=True), inputs)[0]

    counted = jax.jit(forward).lower(variables, inputs).compile().cost_analysis()["flops"]
    assert counted == pytest.approx(sclong.flops(model, inputs), rel=0.1)


# ------------------------------------------------------------------------------------------------------------ training


@functools.cache
def training(redraw: int):
    """Return (first state, a compiled update) of a tiny model whose features are drawn anew every `redraw` + 1."""
    model = sclong.Model(n_genes=GENES, **TINY | {"redraw": redraw})
    objective = step.pretraining(sclong, model, {}, {})
    make = functools.partial(optim.build, steps=10, name="adam", learning_rate=1e-2, schedule="constant")
    state = quick(lambda: step.init_state(objective, make, 0, bag(), constants()))()
    update = quick(lambda state, batch: step.train_step(objective, make(state.params), 1, state, batch))
    return state, update


@pytest.mark.slow
def test_features_are_drawn_anew_after_so_many_forwards():
    state, update = training(2)
    drawn, calls = [], []
    for i in range(7):
        state, _ = update(state, bag(seed=i))
        drawn.append(np.asarray(state.buffers["buffers"]["large"]["projection"]))
        calls.append(int(state.buffers["buffers"]["large"]["calls"]))
    assert calls == [1, 2, 0, 1, 2, 0, 1]
    changed = [bool((a != b).any()) for a, b in itertools.pairwise(drawn)]
    assert changed == [False, True, False, False, True, False]
    assert not np.array_equal(drawn[2][0], drawn[2][1]), "layers have features of their own"


@pytest.mark.slow
def test_a_run_resumed_across_a_redraw_is_the_same_bit_by_bit(tmp_path):
    state, update = training(2)
    for i in range(6):
        if i == 2:  # the next forward draws
            checkpoint.save(tmp_path, 2, state, {"step": 2}, keep=1)
        state, _ = update(state, bag(seed=i))
    resumed = checkpoint.restore(tmp_path, like=jax.tree.map(lambda x: x, state)).state
    for i in range(2, 6):
        resumed, _ = update(resumed, bag(seed=i))
    jax.tree.map(np.testing.assert_array_equal, resumed, state)


def test_numbers_of_expressed_genes_compile_nothing_anew():
    state, update = training(2)
    state, _ = update(state, bag())
    before = update._cache_size()
    for expressed in (0, 3, 17, 24):
        state, metrics = update(state, bag(expressed=expressed))
        assert np.isfinite(metrics["loss"][0])
    assert update._cache_size() == before


@pytest.mark.slow
def test_the_masks_vector_stays_in_the_unit_ball_and_learns():
    state, update = training(2)
    before = np.asarray(state.params["mask"])
    for i in range(3):
        state, _ = update(state, bag(seed=i))
        assert np.linalg.norm(state.params["mask"]) <= 1 + 1e-6
    assert np.abs(state.params["mask"] - before).max() > 1e-3


def test_restarts_go_down_in_longer_and_lower_cycles():
    build = functools.partial(optim.build, {}, steps=120, schedule="cosine_restarts", warmup=5, learning_rate=1.0)
    rates = np.array([float(build(final_rate=0.1).schedule(i)) for i in range(45)])
    np.testing.assert_allclose(rates[[0, 5, 15, 20, 40]], [0.1, 1, 0.1, 0.9, 0.1], rtol=1e-5)
    assert (np.diff(rates[5:15]) < 0).all() and (np.diff(rates[20:40]) < 0).all()
    slow = build(final_rate=0.1, schedule_every=7).schedule
    assert float(slow(35)) == float(slow(41)) == 1.0 > float(slow(42))
    for wrong in ({"warmup": 15}, {"cycle_growth": 0.5}, {"schedule_every": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            build(**wrong)


# --------------------------------------------------------------------------------------------------------- side files


def test_gene_vectors_of_every_format_start_the_tables(tmp_path):
    names, vectors = ["B", "A", "X"], np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    lines = [f"{name}\t{' '.join(map(str, row))}" for name, row in zip(names, vectors, strict=True)]
    (tmp_path / "gene2vec.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "word2vec.txt").write_text("\n".join(["3 2", *lines]) + "\n")
    np.savez(tmp_path / "both.npz", genes=np.array(names), vec=vectors.astype(np.float16))
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "vectors.txt").write_text("\n".join(names))
    for file in ("gene2vec.txt", "word2vec.txt", "both.npz", "vectors.npy"):
        found = gene_vectors.read(tmp_path / file)
        assert found[0] == names, file
        np.testing.assert_array_equal(found[1], vectors)
    given = api.gene_constants({"gene_vectors": tmp_path / "both.npz"}, ["A", "B", "C"])["gene_vectors"]
    np.testing.assert_array_equal(given, [[3, 4], [1, 2], [0, 0]])
    table = start(jax.random.key(0), jnp.asarray(given), (4, 2), 0.3, "base_dim")
    np.testing.assert_array_equal(table[jnp.array([0, 1, 3])], [[3, 4], [1, 2], [0, 0]])
    assert (table[2] != 0).all(), "a gene without a vector starts at random"
    with pytest.raises(ValueError, match="base_dim=5"):
        start(jax.random.key(0), jnp.asarray(given), (4, 5), 0.3, "base_dim")


@pytest.mark.parametrize(
    ("content", "message"),
    [("A 1 2\nB 1", "line 2 has 1"), ("A 1 x", "not a gene"), ("", "one row for each"), ("A nan 1", "not finite")],
)
def test_broken_gene_vectors_are_one_line(tmp_path, content, message):
    (tmp_path / "vectors.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        gene_vectors.read(tmp_path / "vectors.txt")
    with pytest.raises(FileNotFoundError, match="gene vectors"):
        gene_vectors.read(tmp_path / "nowhere")


def test_a_graph_is_taken_with_its_weights_or_without(tmp_path):
    edges = np.array([0, 1, 2]), np.array([1, 1, 0]), np.array([0.5, 1.0, 0.25])
    graph_file.write(tmp_path / "graph.npz", graph_file.GeneGraph.of(["A", "B", "C"], *edges, kind="test"))
    weighted = api.gene_constants({"graph": tmp_path / "graph.npz"}, ["C", "B", "A"])
    assert weighted["graph_weight"].shape == (3,) and weighted["graph_nodes"] == [4]
    plain = api.gene_constants({"graph": tmp_path / "graph.npz", "graph_weighted": False}, ["C", "B", "A"])
    assert plain["graph_weight"].shape == (3 + 3,), "and an edge from each of the other nodes to itself"
    assert api.gene_constants({"graph": None}, ["A"]) == {}


def test_a_graph_that_nobody_would_give_its_edges_to_itself_is_refused(tmp_path):
    edges = np.array([0, 1]), np.array([1, 2]), np.array([1.0, 1.0])
    made = graph_file.GeneGraph.of(["A", "B", "C"], *edges, kind="GO graph", options={"self_edge": False})
    graph_file.write(tmp_path / "paper.npz", made)
    with pytest.raises(ValueError, match=r"paper's reading.*graph_weighted=False"):
        api.gene_constants({"graph": tmp_path / "paper.npz"}, ["A", "B", "C"])
    plain = api.gene_constants({"graph": tmp_path / "paper.npz", "graph_weighted": False}, ["A", "B", "C"])
    assert plain["graph_weight"].shape == (2 + 4,)


def test_config_variants_are_complete():
    assert models.options("sclong", "published")["model"]["large_depth"] == 42
    assert models.options("sclong", "paper")["inputs"]["replace_rate"] == 1.0
