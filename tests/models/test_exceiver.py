"""Exceiver: golden parity, exact attention in parts, what a mask hides, order and padding, sizes, the scaler, a run."""

import functools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_exceiver
from data_pipeline import synthetic
from data_pipeline.store.ingest import file_sources, ingest
from experiments import parity
from experiments.benches import exceiver as bench_exceiver
from experiments.golden import exceiver as parity_exceiver
from scfm_jax import api, sharding
from scfm_jax.models import exceiver
from scfm_jax.models.exceiver import latent_attention, perceiver
from scfm_jax.models.exceiver import published as convert
from scfm_jax.models.exceiver import scaler as gene_statistics
from scfm_jax.models.exceiver.network import ZEROS, Head
from scfm_jax.models.exceiver.objective import slot_variance
from scfm_jax.saving import checkpoint
from scfm_jax.training import optim
from scfm_jax.types import Batch
from tests.conftest import SHARED, needs_shared
from tests.harness import commands, meshes, tiny

TINY = dict(seq_dim=8, query_len=6, query_dim=12, num_layers=2, num_heads=3, ffn_dim=16)
GENES = 50
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bag(cells: int = 4, expressed: int = 24, seed: int = 0) -> Batch:
    """Return a batch of bags of one cell."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((cells, 1, GENES)), axis=-1)[..., :expressed]
    one = jnp.zeros((cells, 1), jnp.int32)
    return Batch(
        genes=jnp.asarray(order, jnp.int32),
        counts=jnp.asarray(rng.poisson(2, order.shape) + 1, jnp.float32),
        cell_mask=one == 0,
        study=one,
        coords=jnp.full((cells, 1, 2), jnp.nan),
        labels={"tissue": jnp.asarray(rng.integers(0, 3, (cells, 1)), jnp.int32)},
    )


def constants(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    scaler = {"mean": jnp.asarray(rng.uniform(0, 2, GENES)), "scale": jnp.asarray(rng.uniform(0.5, 2, GENES))}
    return {"slots": jnp.arange(GENES + 1), "measured": jnp.ones((1, GENES), bool)} | scaler


def prepared(batch: Batch, known: dict | None = None, **options) -> dict:
    return exceiver.prepare(batch, known or constants(), jax.random.key(1), **{"step": 0, "train": True} | options)


def built(inputs: dict, **options) -> tuple[exceiver.Model, dict]:
    """Return a model and random variables for it, without compiling its own."""
    model = exceiver.Model(n_genes=GENES, **TINY | options)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=True))
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), leaf.dtype), shapes)


def value_and_grad(model: exceiver.Model, variables: dict, inputs: dict, **options):
    rngs = {"dropout": jax.random.key(0)}

    def value(variables):
        return exceiver.loss(model.apply(variables, inputs, train=True, rngs=rngs), inputs, **options)[0]

    return quick(jax.value_and_grad(value))(variables)


def loss(model: exceiver.Model, variables: dict, inputs: dict):
    """Return the loss of a pass in training, and what it measures."""
    return quick(lambda v, x: exceiver.loss(model.apply(v, x, train=True), x))(variables, inputs)


def same(ours, theirs, rtol=1e-4, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)


# ---------------------------------------------------------------------------------------------------------- originals


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted((SHARED / "golden" / "exceiver").glob("*")), ids=lambda path: path.name)
def test_golden_case(folder):
    result = parity.check(folder)
    assert result.passed, result.line


# what the recording itself is off a float64 evaluation, where that is more than the case's tolerance
ROUNDED = {
    "out/bool_mask/process_latent": 3.5e-5,
    "grad/float_mask/query_emb": 2.1e-4,
    "grad/float_mask/encoder_cross_attn.cross_attn.in_proj_weight": 4.0e-4,
    "grad/bool_mask/query_emb": 2.9e-4,
}


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rounded"), [("base_samedim", {}), ("classifier_diffdim", {}), ("published_ckpt", ROUNDED)]
)
def test_the_encoder_in_parts_gives_what_was_recorded_but_for_its_rounding(name, rounded):
    case = parity.read(SHARED / "golden" / "exceiver" / name)
    with jax.default_matmul_precision("highest"):
        ours = parity_exceiver.model(case, in_order=False)
    worst, where, failed = parity.compare(case, ours, {})
    assert set(failed) <= set(rounded), (worst, where, failed)
    for key, own in rounded.items():
        rtol, atol = parity.tolerance(case, key, {})
        assert parity.relative_error(ours[key], case.arrays[key], atol / rtol) <= own + rtol, key


@pytest.mark.parametrize(("variant", "classes", "published"), [("published", 0, 243_891), ("classifier", 24, 114_899)])
def test_published_sizes_have_the_parameters_of_the_released_weights(variant, classes, published):
    options = exceiver.VARIANTS["published_classifier" if classes else variant]["model"]
    model = exceiver.Model(**options | {"n_genes": 19_067})
    sizes = {
        name: sum(map(math.prod, (x.shape for x in jax.tree.leaves(leaf)))) for name, leaf in shapes(model).items()
    }
    template, mask = 18_532, 4  # in the files, but not trained
    assert sizes["process"] == model.num_layers * template
    assert sum(sizes.values()) + template + mask == published and model.n_classes == classes


def shapes(model: exceiver.Model) -> dict:
    return convert.shapes(model)["params"]


@pytest.mark.parametrize("options", [{}, {"n_classes": 3, "mask_token": "zero"}, {"query_dim": 8, "num_heads": 4}])
def test_published_names_there_and_back(options):
    model, variables = built(prepared(bag()), **options)
    state = convert.state_dict(variables, model)
    assert ("encoder_cross_attn.cross_attn.in_proj_weight" in state) == (model.query_dim == model.seq_dim)
    assert state["gene_emb.weight"].shape == (GENES + 1 + bool(model.n_classes), 8)
    assert state["gene_emb.weight"][GENES].any() == (model.mask_token == "learned")
    state["process_self_attn.encoder_layer.norm1.bias"] = np.zeros(12, np.float32)  # the unused template
    same(convert.params(state, model), dict(variables), 0, 0)


def test_names_that_do_not_fit_are_listed():
    model, variables = built(prepared(bag()))
    state = convert.state_dict(variables, model)
    state["query_emb"] = np.zeros((3, 3), np.float32)
    state["mlp.7.bias"] = state.pop("mlp.1.bias")
    with pytest.raises(ValueError, match=r"^3 names .*missing mlp.1.bias.*unknown mlp.7.bias"):
        convert.params(state, model)
    state["gene_emb.weight"] = state["gene_emb.weight"][1:]
    with pytest.raises(ValueError, match="genes, mask and class token"):
        convert.params(state, model)


def test_without_a_gene_list_the_loader_says_what_cannot_be_done(tmp_path, monkeypatch, capsys):
    model, variables = built(prepared(bag()), mask_token="zero", zero_mask="additive_one")
    published = dict(TINY, seq_len=GENES, nhead=3, dim_feedforward=16, dropout=0.0, frac=0.2)
    monkeypatch.setattr(convert, "read", lambda path: (convert.state_dict(variables, model), published))
    run = api.from_published("exceiver", tmp_path / "x.ckpt")
    assert "order of the published genes" in capsys.readouterr().err and run.genes[7] == "unknown:7"
    assert run.model == model and run.config.inputs.mask_rate == 0.2
    names = [f"GENE{i}" for i in range(GENES)]
    (tmp_path / "genes.txt").write_text("\n".join(names))
    run = api.from_published("exceiver", tmp_path / "x.ckpt", tmp_path / "genes.txt")
    assert run.genes == names and not capsys.readouterr().err
    cells, said = synthetic.make(30, GENES, seed=0, depth=200.0), []
    cells.var_names = names
    assert run.embed(cells, say=said.append).shape == (30, 72) and "mean, scale are taken of these cells" in said[1]
    (tmp_path / "genes.txt").write_text("\n".join(names[1:]))
    with pytest.raises(ValueError, match="49 different names for 50 rows"):
        convert.load(tmp_path / "x.ckpt", tmp_path / "genes.txt")
    with pytest.raises(ValueError, match="need the config"):
        api.from_published("cellplm", tmp_path / "x.ckpt")


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrained_TS_exceiver", "pretrained_TS_exceiver_classifier"])
def test_released_weights_read_cells_as_plain_attention_would(name):
    pytest.importorskip("torch", reason="reading the released checkpoints needs torch: pip install 'scfm_jax[convert]'")
    settings, variables, genes = convert.load(SHARED / f"data/checkpoints/exceiver/{name}.ckpt")
    model, rng = exceiver.Model(**settings["model"]), np.random.default_rng(0)
    order = rng.permutation(len(genes))[:1500]
    batch = bag(1).replace(genes=jnp.asarray(order)[None, None], counts=jnp.asarray(rng.poisson(2, (1, 1, 1500)) + 1.0))
    known = {"slots": jnp.arange(len(genes) + 1), "measured": jnp.ones((1, len(genes)), bool)}
    inputs = prepared(batch, known, n_mask=200)
    same(encoded(model, variables, inputs), plain_encoder(model, variables["params"], inputs), 1e-4, 1e-4)


# ----------------------------------------------------------------------------------------------- attention, exactly


def dense_attention(queries, keys, values, bias, background):
    """Return what `attend` should, all weights at once."""
    logits = jnp.einsum("nhqk,nhkp->nhqp", jnp.broadcast_to(queries, (len(keys), *queries.shape[1:])), keys)
    logits, shared = logits + bias[:, None, None], values
    if background is not None:
        more = jnp.einsum("nhqk,hkv->nhqv", jnp.broadcast_to(queries, (len(keys), *queries.shape[1:])), background.keys)
        more = jnp.where(background.seen[:, None, None] > 0, more + background.bias, -jnp.inf)
        logits = jnp.concatenate([logits, more], -1)
        wide = jnp.broadcast_to(background.values, (len(keys), *background.values.shape))
        shared = jnp.concatenate([values, wide], -1)
    return jnp.einsum("nhqp,nhdp->nhqd", jax.nn.softmax(logits, -1), shared)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_attention_in_parts_is_attention(width, shared):
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(0, 2, shape), jnp.float32)

    queries = normal(1 if shared else 3, 2, 7, width)
    keys, values = normal(3, 2, width, 10), normal(3, 2, 4, 10)
    bias = jnp.where(jnp.arange(10) < 8, 0.0, -jnp.inf) * jnp.ones((3, 1))
    seen = jnp.asarray(rng.random((3, 9)) < 0.5, jnp.float32)
    background = latent_attention.Background(normal(2, width, 9), normal(2, 4, 9), seen, 1.0) if shared else None
    pull = normal(3, 2, 7, 4)

    def ours(chunk, queries, keys, values, bias, there):
        found = latent_attention.attend(queries, keys, values, bias, chunk)
        more = there and latent_attention.look(queries[0], there, chunk)
        return (latent_attention.merged(found, more) if there else found)[0]

    def run(function):
        def value(queries, keys, values, pair):
            there = background and background._replace(keys=pair[0], values=pair[1])
            return (function(queries, keys, values, bias, there) * pull).sum()

        pair = background and background[:2]
        return quick(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))(queries, keys, values, pair)

    theirs = run(dense_attention)
    for chunk in (0, 2 * 7 * 10, 2 * 3 * 10, 1):  # all at once, a cell, a padded part of its queries, one query
        same(run(functools.partial(ours, chunk)), theirs, 1e-3, 1e-4)


def test_values_are_added_one_after_another_where_asked():
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, (2, 1, 1, 4096)).astype(np.float32)
    logits = jnp.asarray(rng.integers(0, 2, values.shape) * np.log(2), jnp.float32)
    bias = jnp.zeros((2, 4096))
    ours = jax.jit(latent_attention.attend_in_order)(jnp.ones((1, 1, 1, 1)), logits, jnp.asarray(values), bias)
    weight = np.where(np.asarray(logits) > 0, np.float32(1), np.float32(0.5))  # all sums of which are exact
    weight = weight / weight.sum(-1, keepdims=True)
    added = np.cumsum(weight * values, -1, dtype=np.float32)[..., -1:]
    np.testing.assert_array_equal(ours, added)
    assert not np.array_equal(added, (weight * values).sum(-1, keepdims=True))


def test_a_positive_head_starts_so_whatever_the_seed_and_is_else_the_released_one():
    def last(positive: bool, seed: int) -> float:
        head = Head(8, 1, positive)
        drawn = head.init(jax.random.key(seed), jnp.zeros((1, 1, 8)))["params"]
        return float(drawn["linear_1"]["kernel"][0, 0])

    free, safe = ([last(positive, seed) for seed in range(12)] for positive in (False, True))
    assert min(free) < 0 < max(free) and safe == [abs(x) for x in free]
    options = {name: variant["model"].get("positive_head", False) for name, variant in exceiver.VARIANTS.items()}
    assert {name for name, positive in options.items() if positive} == {"tiny", "small", "paper"}


@pytest.mark.parametrize("attend", [lambda *x: latent_attention.attend(*x)[0], latent_attention.attend_in_order])
def test_a_cell_without_a_key_gets_nothing(attend):
    x = jnp.ones((2, 1, 1, 3))
    bias = jnp.stack([jnp.zeros(3), jnp.full(3, -jnp.inf)])
    value, grads = jax.value_and_grad(lambda x: attend(jnp.ones((1, 1, 4, 1)), x, x, bias).sum())(x)
    assert value == 4 and np.isfinite(grads).all() and not grads[1].any()


def encoded(model, variables, inputs):
    outputs = quick(lambda v: model.apply(v, inputs, train=True, mutable=["intermediates"]))(variables)[1]
    return outputs["intermediates"]["encoder_latent"][0]


def plain_encoder(model, params, inputs):
    """Return the latents after the encoder, written as the paper has it: every gene's vector times its value."""

    def norm(x, p, times=1.0):
        x = x - x.mean(-1, keepdims=True)
        return times * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    params = jax.tree.map(np.asarray, params)
    block, n = params["encoder"], len(params["genes"])
    rows = [
        params["genes"],
        params.get("mask", np.zeros(model.seq_dim))[None],
        params.get("class", params["genes"][0])[None],
    ]
    table, latents, out = np.concatenate(rows), params["latents"], []
    for genes, values, hidden in zip(
        *(np.asarray(inputs[x])[:, 0] for x in ("genes", "values", "hidden")), strict=True
    ):
        ids, x = np.arange(n), np.asarray(inputs["zeros"]).copy()
        lift = np.ones(n) if model.zero_mask == "additive_one" else np.full(n, -np.inf)
        there = genes < n
        x[genes[there]], lift[genes[there]] = np.where(hidden, 1, values)[there], 0
        ids[genes[hidden]] = n
        if model.class_token_in_encoder:
            ids, x, lift = np.append(ids, n + 1), np.append(x, 1), np.append(lift, 0)
        first, then = (x[:, None], 1.0) if model.value_scale == "before_norm" else (1.0, x[:, None])
        kv = norm(first * table[ids], block["norm_kv"], then)
        maps = block["attention"]
        q, k, v = (
            linear(norm(latents, block["norm_q"]), maps["query"]),
            linear(kv, maps["key"]),
            linear(kv, maps["value"]),
        )
        q, k, v = (a.reshape(len(a), 4, -1) for a in (q, k, v))
        logits = np.einsum("qhk,phk->hqp", q, k) / q.shape[-1] ** 0.5 + lift
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        h = linear(np.einsum("hqp,phk->qhk", weights, v).reshape(len(q), -1), maps["out"]) + latents
        y = linear(norm(h, block["mlp_norm1"]), block["mlp_in"])
        y = np.asarray(jax.nn.gelu(y, approximate=False))
        out.append(h + linear(norm(y, block["mlp_norm2"]), block["mlp_out"]))
    return np.stack(out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_token": "zero", "zero_mask": "additive_one"},
        {"n_classes": 3, "class_token_in_encoder": True},
        {"n_classes": 3, "class_token_in_encoder": True, "in_order": True},
        {"n_classes": 3, "class_token_in_encoder": True, "zero_mask": "additive_one", "value_scale": "after_norm"},
    ],
)
def test_latents_read_every_gene_times_its_value(options):
    inputs = prepared(bag(), mask_rate=0.3)
    model, variables = built(inputs, **options)
    same(encoded(model, variables, inputs), plain_encoder(model, variables["params"], inputs))


@pytest.mark.slow
def test_the_order_of_the_sums_is_all_that_in_order_changes():
    inputs = prepared(bag(), mask_rate=0.3)
    model, variables = built(inputs, zero_mask="additive_one", n_classes=3, class_token_in_encoder=True, num_layers=1)
    ours, theirs = (value_and_grad(model.clone(in_order=x), variables, inputs) for x in (True, False))
    same(ours, theirs)


def test_maps_of_attention_are_weights_over_the_genes():
    inputs = prepared(bag())
    for zero_mask in ZEROS:
        model, variables = built(inputs, zero_mask=zero_mask)
        maps = quick(lambda v, model=model: model.apply(v, inputs, method="attention"))(variables)[:, 0]
        assert maps.shape == (4, 6, GENES)
        np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
        silent = np.ones((4, GENES), bool)
        np.put_along_axis(silent, np.asarray(inputs["genes"])[:, 0], False, 1)
        there = maps.sum(1)[silent] > 0
        assert there.all() if zero_mask == "additive_one" else not there.any()


# --------------------------------------------------------------------------------------------------------------- masks


def test_hidden_genes_are_distinct_expressed_and_as_many_as_asked():
    batch = bag(30)
    few = batch.replace(counts=batch.counts.at[:5, :, 9:].set(0))  # 9 expressed genes, less than 2 x 5
    inputs = prepared(few, n_mask=5)
    assert list(inputs["hidden"].sum(-1)[:, 0]) == [0] * 5 + [5] * 25
    same(inputs["weights"].sum(-1), inputs["hidden"].sum(-1))
    found = [
        sorted(np.asarray(genes[hidden]))
        for genes, hidden in zip(inputs["genes"][5:, 0], inputs["hidden"][5:, 0], strict=True)
    ]
    assert found == [sorted(row) for row in np.asarray(inputs["targets"][5:, 0]).tolist()]
    assert all(len(set(row)) == 5 and GENES not in row for row in found)
    assert list(prepared(few, mask_rate=0.5)["hidden"].sum(-1)[:, 0]) == [4] * 5 + [12] * 25
    assert not prepared(batch.replace(cell_mask=jnp.zeros((30, 1), bool)))["hidden"].any()
    counts = np.bincount(
        np.concatenate([np.flatnonzero(np.isin(batch.genes[5:, 0], row).any(0)) for row in found]), minlength=24
    )
    assert (counts > 0).all()  # wherever in the file


def test_values_are_seen_only_where_they_come_after_the_norm():
    """The released norm divides by the value: a change of values by half hardly moves the latents, a sign does."""
    inputs, moved = prepared(bag()), {}
    assert all(exceiver.VARIANTS[name]["model"]["value_scale"] == "after_norm" for name in ("tiny", "small"))
    noise = jnp.exp(jax.random.normal(jax.random.key(5), inputs["values"].shape))
    signs = jnp.where(jax.random.uniform(jax.random.key(6), noise.shape) < 0.2, -1, 1)
    for scale in ("before_norm", "after_norm"):
        model, variables = built(inputs, value_scale=scale)
        encode = quick(
            lambda values, model=model, v=variables, i=inputs: model.apply(
                v, i | {"values": values}, jnp.zeros_like(i["hidden"]), False, method="encode"
            )
        )
        latents = encode(inputs["values"])
        spread = float((latents - latents.mean(0)).std())
        for factor in (noise, signs):
            moved.setdefault(scale, []).append(float((encode(inputs["values"] * factor) - latents).std()) / spread)
    (values, flipped), (after, _) = moved.values()
    assert values < 0.1 < 0.3 < min(after, flipped), moved


def test_a_masked_value_is_not_seen_by_its_prediction():
    inputs = prepared(bag(), mask_rate=0.4)
    other = inputs | {"values": jnp.where(inputs["hidden"], 7.0, inputs["values"])}
    seen = inputs | {"values": jnp.where(inputs["hidden"], inputs["values"], -inputs["values"])}
    for options in ({}, {"mask_token": "zero", "zero_mask": "additive_one"}):
        model, variables = built(inputs, **options)
        for train in (True, False):
            run = quick(lambda x, model=model, v=variables, t=train: model.apply(v, x, train=t).logits["genes"])
            np.testing.assert_array_equal(run(inputs), run(other))
            assert (run(inputs) != run(seen)).any()


@pytest.mark.slow
def test_genes_without_counts_are_excluded_exactly():
    inputs = prepared(bag(1))
    silent = jnp.setdiff1d(jnp.arange(GENES), inputs["genes"])
    other = inputs | {"zeros": inputs["zeros"] + 3.0}
    for zero_mask in ZEROS:
        model, variables = built(inputs, zero_mask=zero_mask)
        changed = variables["params"] | {"genes": variables["params"]["genes"].at[silent].add(2.0)}
        run = quick(lambda v, x, model=model: model.apply(v, x).cells)
        here = run(variables, inputs)
        equal = [(run(*x) == here).all() for x in ((variables, other), ({"params": changed}, inputs))]
        assert all(equal) if zero_mask == "exclude" else not any(equal)
        grads = value_and_grad(model, variables, inputs)[1]["params"]["genes"]
        assert bool(grads[silent].any()) == (zero_mask == "additive_one")


def test_in_evaluation_the_embedding_sees_everything_and_every_gene_has_a_representation():
    inputs = prepared(bag(), mask_rate=0.5)
    model, variables = built(inputs)
    run = quick(lambda x: model.apply(variables, x))
    bare = run(inputs | {"hidden": jnp.zeros_like(inputs["hidden"])})
    outputs = run(inputs)
    np.testing.assert_array_equal(outputs.cells, bare.cells)
    assert outputs.cells.shape == (4, 1, 72) and outputs.genes.shape == (4, 1, GENES, 8)
    latents = outputs.cells.reshape(4, 6, 12)
    asked = jnp.broadcast_to(variables["params"]["genes"][3:5], (4, 2, 8))
    decoder = perceiver.CrossBlock(8, 12)
    same(outputs.genes[:, 0, 3:5], decoder.apply({"params": variables["params"]["decoder"]}, asked, latents))


@pytest.mark.slow
def test_neither_order_in_the_file_nor_padding_matters():
    batch, rng = bag(), np.random.default_rng(5)
    turned = np.argsort(rng.random(batch.genes.shape), axis=-1)
    other = {name: np.take_along_axis(np.asarray(getattr(batch, name)), turned, -1) for name in ("genes", "counts")}
    wide = {"genes": np.pad(other["genes"], ((0, 0), (0, 0), (3, 9)), constant_values=GENES)}
    wide["counts"] = np.pad(other["counts"], ((0, 0), (0, 0), (3, 9)))
    for options in ({}, {"mask_token": "zero", "zero_mask": "additive_one"}):
        a, b = (prepared(x, n_mask=4) for x in (batch, batch.replace(**{k: jnp.asarray(x) for k, x in wide.items()})))
        np.testing.assert_array_equal(a["targets"], b["targets"])
        model, variables = built(a, **options)
        same(value_and_grad(model, variables, a), value_and_grad(model, variables, b))
        run = [quick(lambda v, x=x, model=model: model.apply(v, x).cells)(variables) for x in (a, b)]
        same(*run)


# -------------------------------------------------------------------------------------------------------- the scaler


def test_the_scaler_is_that_of_all_cells_zeros_included():
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (40, GENES)) * (rng.random((40, GENES)) < 0.5)
    counts[:, 3], counts[20:, 5], counts[0] = 0, 0, 0
    study = (np.arange(40) >= 20).astype(int)  # the second did not measure gene 5
    measured = np.ones((2, GENES), bool)
    measured[1, 5] = False
    logs = np.log1p(counts * 1e4 / np.maximum(counts.sum(1, keepdims=True), 1))
    batches = []
    for rows in np.array_split(np.arange(40), 3):
        genes = np.where(counts[rows] > 0, np.arange(GENES), GENES)[:, None]
        batch = {"genes": genes, "counts": counts[rows][:, None], "study": study[rows][:, None]}
        batches.append(batch | {"cell_mask": np.ones((len(rows), 1), bool)})
    known = {"slots": np.arange(GENES + 1), "measured": measured}
    fitted, options = exceiver.fit({"train": batches[:], "val": batches[:1]}, known, {"scaler": "per_split"})
    mean, scale = logs.mean(0), logs.std(0)
    mean[5], scale[5], scale[3] = logs[:20, 5].mean(), logs[:20, 5].std(), 1
    same((fitted["mean"], fitted["scale"]), (mean, scale), 1e-6, 1e-6)
    assert options["n_mask"] == int(np.median((counts > 0).sum(1)) * 0.15)
    same(fitted["val_mean"], logs[:14].mean(0), 1e-6, 1e-6)
    assert exceiver.fit({"train": batches}, known, {"n_mask": -1})[1]["n_mask"] == -1
    for batch in batches:  # the same, said of a batch of one study
        batch["panel"], batch["study"] = batch["study"], np.zeros_like(batch["study"])
    same(exceiver.fit({"train": batches}, known, {"n_mask": -1})[0]["mean"], mean, 1e-6, 1e-6)


@pytest.mark.parametrize("numbers", [[3], [4, 9], [5, 1, 2], [1, 1, 8, 9], [2, 2, 2, 30, 31]])
def test_the_median_is_that_of_numpy(numbers):
    statistics = gene_statistics.Statistics(np.arange(GENES + 1), np.ones((1, GENES), bool), 1e4)
    genes = np.where(np.arange(GENES) < np.array(numbers)[:, None], np.arange(GENES), GENES)[:, None]
    one = np.zeros((len(numbers), 1), int)
    statistics.add({"genes": genes, "counts": (genes < GENES) * 1.0, "study": one, "cell_mask": one == 0})
    assert statistics.median() == np.median(numbers)


def test_values_are_shifted_clipped_from_above_and_of_the_own_split():
    batch = bag(2)
    known = constants() | {"val_mean": jnp.zeros(GENES), "val_scale": jnp.full(GENES, 0.01)}
    inputs = prepared(batch, known)
    logs = np.log1p(np.asarray(batch.counts * 1e4 / batch.counts.sum(-1, keepdims=True)))
    at = np.asarray(batch.genes)
    expected = (logs - np.asarray(known["mean"])[at]) / np.asarray(known["scale"])[at] + 1
    same(inputs["values"], np.minimum(expected, 11))
    same(inputs["zeros"], 1 - known["mean"] / known["scale"])
    same(prepared(batch, known, train=False)["values"], inputs["values"])
    assert (prepared(batch, known, train=False, scaler="per_split")["values"] == 11).all()
    same(prepared(batch, known, scaler="per_split")["values"], inputs["values"])
    with pytest.raises(ValueError, match="scaler 'x'"):
        prepared(batch, scaler="x")


# ------------------------------------------------------------------------------------------------- objective, options


@pytest.mark.slow
def test_explained_variance_flat_and_by_slot():
    inputs = prepared(bag(9), n_mask=3) | {"weights": jnp.ones((9, 1, 3))}
    model, variables = built(inputs)
    outputs = model.apply(variables, inputs, train=True)
    metrics = exceiver.loss(outputs, inputs, slotwise=True)[1]
    truth, error = np.asarray(inputs["truth"])[:, 0], np.asarray(outputs.logits["genes"] - inputs["truth"])[:, 0]
    flat, slots = (np.divide(*metrics[name]) for name in ("explained_variance", "slot_variance"))
    assert flat == pytest.approx(1 - error.var() / truth.var(), rel=1e-4, abs=1e-5)
    assert slots == pytest.approx((1 - error.var(0) / truth.var(0)).mean(), rel=1e-4, abs=1e-5)
    still = jnp.array([[1.0, 1, 2], [1, 1, 3]])
    assert slot_variance(jnp.array([[1.0, 0, 2], [1, 5, 3]]), still) == pytest.approx(2 / 3)


def test_predictions_start_at_the_mean_of_each_gene_where_it_is_expressed():
    batch = bag(9)
    known, _ = exceiver.fit(
        {"train": [{name: np.asarray(getattr(batch, name)) for name in ("genes", "counts", "cell_mask", "study")}]},
        {"slots": np.arange(GENES + 1), "measured": np.ones((1, GENES), bool)},
        {},
    )
    inputs = prepared(batch, known)
    genes, values = (np.asarray(inputs[name]).ravel() for name in ("genes", "values"))
    means = [values[genes == gene].mean() if (genes == gene).any() else 1.0 for gene in range(GENES)]
    assert values.max() < 11, "a clipped value"
    options = dict(n_genes=GENES, **TINY)
    model = exceiver.Model(**options, gene_bias=True)
    params = quick(lambda: model.init(jax.random.key(0), inputs, train=True))()["params"]
    same(params["output"]["bias"], np.asarray(means))
    read = quick(lambda bias: model.apply({"params": params | {"output": {"bias": bias}}}, inputs, train=True).logits)
    same(
        read(params["output"]["bias"])["genes"] - read(jnp.zeros(GENES))["genes"], np.asarray(means)[inputs["targets"]]
    )


@pytest.mark.parametrize("variant", ["tiny", "published"])
def test_the_vector_of_a_gene_that_is_never_seen_stays_unless_the_release_is_followed(variant):
    options = pretrain_exceiver.get_config(variant).optim.to_dict() | {"learning_rate": 1e-3, "warmup": 0}
    params = {"genes": jnp.ones((2, 4)), "output": {"bias": jnp.ones(2)}, "latents": jnp.ones(3)}
    built = optim.build(params, steps=300, **options)

    def update(step, state):
        grads = jax.tree.map(jnp.zeros_like, params)
        grads["genes"] = grads["genes"].at[0].set(jnp.sin(step.astype(float)))
        return optim.update(built, grads, state[1], state[0], step)

    ours, _ = jax.jit(lambda: jax.lax.fori_loop(0, 300, update, (params, built.transform.init(params))))()
    if variant == "published":
        assert (ours["genes"][1] < 0.8).all()
    else:
        np.testing.assert_array_equal(ours["genes"][1], 1.0)
        np.testing.assert_array_equal(ours["output"]["bias"], 1.0)
    assert (ours["latents"] < 0.8).all() and (ours["genes"][0] != 1).all()


def test_unknown_labels_and_padding_do_not_count():
    batch = bag()
    unknown = batch.replace(labels={"tissue": batch.labels["tissue"].at[2:].set(-1)})
    model, variables = built(prepared(batch), n_classes=3)
    value, metrics = loss(model, variables, prepared(unknown))
    short, fewer = loss(model, variables, y := prepared(jax.tree.map(lambda x: x[:2], batch)))
    same(metrics["cross_entropy"], fewer["cross_entropy"])
    assert metrics["accuracy"][1] == 2
    padded = prepared(batch.replace(cell_mask=batch.cell_mask.at[2:].set(False)))
    assert loss(model, variables, padded)[1]["mse"][1] == y["weights"].sum()
    assert float(value) != float(short)


@pytest.mark.slow
def test_every_option_trains():
    inputs = prepared(bag(), mask_rate=0.3)
    for options in (
        {"dropout": 0.3, "n_classes": 3, "chunk": 40},
        {"dtype": "bfloat16", "zero_mask": "additive_one", "class_token_in_encoder": True, "n_classes": 3},
    ):
        model, variables = built(inputs, **options)
        value, grads = value_and_grad(model, variables, inputs)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    for wrong in ({"zero_mask": "x"}, {"mask_token": "x"}, {"query_dim": 10}, {"num_heads": 5}):
        with pytest.raises(ValueError, match=r"must be a multiple|there are"):
            jax.eval_shape(lambda wrong=wrong: built(inputs, **wrong)[1])


@pytest.mark.slow
def test_all_layers_start_from_the_same_weights_if_asked():
    inputs = prepared(bag())
    for same_start in (True, False):
        model = exceiver.Model(n_genes=GENES, same_start=same_start, **TINY)
        kernel = quick(lambda m=model: m.init(jax.random.key(0), inputs, train=True))()["params"]["process"]["layers"]
        first, second = kernel["mlp_in"]["kernel"]
        assert bool((first == second).all()) == same_start


@pytest.mark.parametrize("options", [{}, {"zero_mask": "additive_one"}, {"in_order": True}])
def test_flops_are_those_that_xla_counts(options):
    model = exceiver.Model(
        n_genes=400, seq_dim=64, query_dim=64, query_len=64, num_layers=1, ffn_dim=512, chunk=2**40, **options
    )
    one, p, m = jnp.ones((4, 1), bool), jnp.zeros((4, 1, 256)), jnp.zeros((4, 1, 128))
    inputs = {"genes": p.astype(int), "values": p, "hidden": p > 0, "targets": m.astype(int), "truth": m, "weights": m}
    inputs |= {"zeros": jnp.zeros(400), "cell_mask": one, "label": one.astype(int)}
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), inputs)

    def forward(variables, inputs):
        return exceiver.loss(model.apply(variables, inputs, train=True), inputs)[0]

    counted = jax.jit(forward).lower(variables, inputs).cost_analysis()["flops"]
    assert counted == pytest.approx(exceiver.flops(model, inputs), rel=0.12)


@pytest.mark.parametrize("row", bench_exceiver.ROWS)
def test_bench_has_its_rows(row):
    case = bench_exceiver.case(row, small=True)
    inputs = jax.eval_shape(lambda batch: prepared(batch, case.constants, **case.inputs), case.batch)
    assert inputs["targets"].shape == (4, 1, 9) and inputs["genes"].shape[-1] == 200
    assert case.network.n_classes == (24 if row == "classifier" else 0)
    variables = jax.eval_shape(lambda x: case.network.init(jax.random.key(0), x, train=True), inputs)
    assert {"wide": (200, 64)}.get(row, (200, 4)) == variables["params"]["genes"].shape


# ----------------------------------------------------------------------------------------------------- meshes and runs


def on_mesh(**mesh: int) -> dict[str, np.ndarray]:
    """Return loss and gradients of eight cells on a mesh of the devices there are."""
    devices = sharding.make_mesh(**mesh)
    inputs = prepared(bag(8), n_mask=5)
    model, variables = built(inputs, zero_mask="additive_one", chunk=400)
    with jax.set_mesh(devices):
        whole = {name: inputs.pop(name) for name in ("zeros",)}
        placed = jax.tree.map(lambda x: jax.device_put(x, sharding.batch_sharding(devices, x.ndim)), inputs)
        value, grads = value_and_grad(model, variables, placed | whole)
    return {"loss": np.asarray(value)} | meshes.named(grads)


@pytest.mark.slow
def test_cells_split_over_two_devices_give_the_same_numbers(tmp_path):
    meshes.apart(__name__, 2, tmp_path / "sharded.npz")
    with np.load(tmp_path / "sharded.npz") as sharded:
        meshes.assert_same(sharded, on_mesh(data=1), 1e-3, 1e-5, "data=2")


@pytest.mark.slow
def test_a_run_stopped_and_resumed_equals_the_whole_and_embeds(tmp_path):
    cells = synthetic.make(60, GENES, seed=0, depth=200.0)
    cells.write_h5ad(tmp_path / "a.h5ad")
    ingest(file_sources([str(tmp_path / "a.h5ad")]), tmp_path / "store", workers=0, say=lambda text: None)

    def train(workdir: str, steps: int) -> None:
        options = {"data.store": tmp_path / "store", "data.batch": 8, "train.steps": steps, "train.log_every": 2}
        options |= {"train.eval_every": 4, "train.checkpoint_every": 4, "model.query_len": 4, "model.ffn_dim": 8}
        flags = [f"--config.{key}={value}" for key, value in options.items()]
        config = "--config=configs/pretrain_exceiver.py:tiny"
        ended = commands.run("train", config, f"--workdir={tmp_path / workdir}", *flags, folder=tmp_path, timeout=300)
        assert ended.code == 0, ended.err

    train("whole", 8)
    train("parts", 3)
    train("parts", 8)
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts", 8)
    meta = checkpoint.read_meta(tmp_path / "whole/checkpoints")
    assert meta["config"]["inputs"]["n_mask"] > 0
    run = api.load(tmp_path / "whole")
    assert {"mean", "scale"} <= set(run.constants) and run.embed(cells, say=lambda text: None).shape == (60, 32)


if __name__ == "__main__":
    np.savez(sys.argv[1], **on_mesh(data=2))
