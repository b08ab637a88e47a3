"""sCT: golden parity, what a mask may tell, what padding may do, sizes, chunks, remat, meshes, published names."""

import functools
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import parity
from experiments.golden import sct as parity_sct
from scfm_jax import sharding
from scfm_jax.layers import position
from scfm_jax.models import sct
from scfm_jax.models.sct import bins, convolution, network, rotary
from scfm_jax.models.sct import published as convert
from scfm_jax.models.sct.objective import gene_logits, predict
from scfm_jax.types import Batch, Outputs
from tests.conftest import SHARED, needs_shared
from tests.harness import meshes

TINY = dict(num_downsamples=1, token_dim=32, embed_dim=32, ffn_dim=32, num_layers=2, num_heads=2, key_size=16)
GENES = 45
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bag(cells: int = 4, genes: int = GENES, seed: int = 0, bags: int = 1) -> Batch:
    """Return a batch of random counts with positions on a grid."""
    rng = np.random.default_rng(seed)
    shape = (bags, cells)
    order = np.argsort(rng.random((*shape, genes)), axis=-1)[..., : genes // 2]
    return Batch(
        genes=jnp.asarray(order, jnp.int32),
        counts=jnp.asarray(rng.poisson(2, order.shape) + 1, jnp.float32),
        cell_mask=jnp.ones(shape, bool),
        study=jnp.zeros(shape, jnp.int32),
        coords=jnp.asarray(rng.integers(0, 9, (*shape, 2)), jnp.float32),
        labels={},
    )


def constants(genes: int = GENES) -> dict:
    return {"slots": jnp.arange(genes + 1), "measured": jnp.ones((1, genes), bool)}


def prepared(batch: Batch, **options) -> dict:
    return sct.prepare(batch, constants(), jax.random.key(1), step=0, train=True, **options)


def built(inputs: dict, **options) -> tuple[sct.Model, dict]:
    """Return a model and random variables for it, without compiling its own."""
    model = sct.Model(n_genes=GENES, **TINY | options)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=True))
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


def dense(values: np.ndarray, **options) -> dict:
    return parity_sct.prepared(values.astype(np.float32), **options)


# ---------------------------------------------------------------------------------------------------------- originals


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted((SHARED / "golden" / "sct").glob("*")), ids=lambda path: path.name)
def test_golden_case(folder):
    result = parity.check(folder)
    assert result.passed, result.line


def test_published_size_has_the_parameters_of_the_released_weights():
    model = sct.Model(n_genes=19_965, **sct.VARIANTS["published"]["model"])
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(convert.shapes(model))) == 79_204_163


@pytest.mark.parametrize("scan", [False, True])
def test_published_names_there_and_back(scan):
    model, variables = built(prepared(bag()), scan=scan, spatial="code")
    state = convert.state_dict(variables, model)
    assert state["long_range_nt/deconv_block_0/de_conv_block/conv1_d_transpose/w"].shape == (5, 32, 32)
    back = convert.params(state, model)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), back)


def test_names_that_do_not_fit_are_listed():
    model, variables = built(prepared(bag()))
    state = convert.state_dict(variables, model)
    state["long_range_nt/linear/w"] = np.zeros((3, 3), np.float32)
    state["long_range_nt/other/w"] = state.pop("long_range_nt/linear/b")
    with pytest.raises(ValueError, match=r"^3 names .*missing .*linear/b.*|unknown .*other/w.*|shape of .*linear/w"):
        convert.params(state, model)


def test_published_files_are_loaded_with_their_gene_maps(tmp_path):
    model, variables = built(prepared(bag()))
    np.savez(tmp_path / "params.npz", **convert.state_dict(variables, model))
    published = {ours: getattr(model, ours) for ours in convert.SAME}
    published |= {theirs: getattr(model, ours) for theirs, ours in convert.RENAMED.items()}
    published |= {"alphabet_size": 7, "mask_token_id": 5, "pad_token_id": 6}
    vocab = {f"ENSG{i}": 100 + i for i in range(GENES - 1)}  # the last slot has no name
    slots = {str(100 + i): (i * 7) % GENES for i in range(GENES)}
    for name, content in (("config.json", published), (convert.VOCAB, vocab), (convert.SLOTS, slots)):
        (tmp_path / name).write_text(json.dumps(content))
    settings, loaded, genes = convert.load(tmp_path / "params.npz", tmp_path / "config.json")
    assert sct.Model(**settings["model"]) == model
    assert genes[7] == "ENSG1" and genes[(44 * 7) % GENES] == "census:144"
    jax.tree.map(np.testing.assert_array_equal, dict(variables), loaded)
    with pytest.raises(ValueError, match="pickle"):
        (tmp_path / "params.joblib").write_bytes(b"")
        convert.read(tmp_path / "params.joblib")


# ------------------------------------------------------------------------------------------------------------- binning


@pytest.mark.parametrize("n_bins", [5, 15])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_bins_are_those_of_numpy(n_bins, precision):
    rng = np.random.default_rng(3)
    values = np.where(rng.random((1, 300, 60)) < 0.4, rng.integers(1, 29, (1, 300, 60)) / np.float32(7), 0)  # ties
    values = values.astype(np.float32)
    values[0, 0], values[0, 1, :5], values[0, 2, 3:] = 0, 1.5, 0
    ours = dense(values, n_bins=n_bins, target_sum=0, log=False, edges=precision)["tokens"][0]
    for cell, tokens in zip(values[0], ours, strict=True):
        there, expected = cell[cell > 0].astype(precision), np.zeros(60, int)
        if len(there):
            edges = np.linspace(there.min(), there.max(), n_bins, dtype=precision)
            edges[-1] += 0.01
            edges = edges if there.min() < there.max() else [there[0] - 0.1, there[0] + 0.1]
            expected[cell > 0] = np.digitize(there, edges)
        np.testing.assert_array_equal(tokens, expected)


def test_genes_without_a_slot_and_padding_do_not_move_the_bins():
    batch = bag()
    inside = batch.genes < 30
    less = constants() | {"slots": jnp.where(jnp.arange(GENES + 1) < 30, jnp.arange(GENES + 1), GENES)}
    inputs = sct.prepare(batch, less, jax.random.key(1), step=0, train=True)
    alone = batch.replace(counts=jnp.where(inside, batch.counts, 0), genes=jnp.where(inside, batch.genes, GENES))
    np.testing.assert_array_equal(inputs["tokens"], prepared(alone)["tokens"])
    assert (inputs["tokens"][..., 30:] == 0).all() and inputs["tokens"].max() == 4


# --------------------------------------------------------------------------------------------------------------- masks


def test_masks_have_their_rates_and_spare_padding_and_the_unmeasured():
    batch = bag(cells=50)
    batch = batch.replace(cell_mask=batch.cell_mask.at[:, 40:].set(False))
    table = constants() | {"measured": jnp.arange(GENES)[None] < 40}
    inputs = sct.prepare(batch, table, jax.random.key(1), step=0, train=True, zero_rate=0.1, nonzero_rate=0.5)
    real, expressed = inputs["mask"][:, :40, :40], inputs["tokens"][:, :40, :40] > 0
    assert inputs["mask"].sum() == real.sum()
    assert abs(float(real[expressed].mean()) - 0.5) < 0.06 and abs(float(real[~expressed].mean()) - 0.1) < 0.04
    whole = prepared(batch, mask="cells", mask_cells=7)["mask"].mean(-1)
    assert whole.sum() == 7 and set(np.unique(whole)) == {0, 1} and not whole[:, 40:].any()
    genes = prepared(batch, mask="genes", mask_genes=(3, 9))["mask"]
    assert set(np.flatnonzero(genes.any((0, 1)))) == {3, 9} and genes.sum() == 80
    given = jnp.zeros((1, 50, GENES), bool).at[0, :, 5].set(True)
    assert prepared(batch, draws={"mask": given})["mask"].sum() == 40
    assert "mask" not in prepared(batch, mask="none")


def test_a_masked_value_does_not_influence_its_prediction():
    inputs = prepared(bag(), nonzero_rate=0.5)
    model, variables = built(inputs)
    other = inputs | {"tokens": jnp.where(inputs["mask"], 4 - inputs["tokens"], inputs["tokens"])}
    changed = inputs | {"tokens": jnp.where(inputs["mask"], inputs["tokens"], 4 - inputs["tokens"])}
    for train in (True, False):
        run = quick(lambda x, train=train: model.apply(variables, x, train=train).logits["features"])
        np.testing.assert_array_equal(run(inputs), run(other))
        assert np.abs(run(inputs) - run(changed)).max() > 1e-3


def test_counts_that_are_hidden_may_change_places_and_no_score_moves():
    """Sum, least and greatest are of all counts of a cell, as published; beyond them a hidden count tells nothing."""
    batch = bag()
    hidden = jnp.zeros((1, 4, GENES), bool).at[0, :, batch.genes[0, 0, :6]].set(True)
    there = hidden[0, 0][batch.genes]  # [B, C, P]
    swapped = jnp.stack(
        [
            jnp.where(t, 0, c).at[jnp.flatnonzero(t)].set(c[t][::-1])
            for t, c in zip(there[0], batch.counts[0], strict=True)
        ]
    )
    model, variables = built(prepared(batch))
    run = quick(lambda x: gene_logits(*(model.apply(variables, x, train=True).logits[k] for k in ("features", "head"))))
    first, second = (prepared(batch.replace(counts=c), draws={"mask": hidden}) for c in (batch.counts, swapped[None]))
    assert (first["tokens"] != second["tokens"]).any()
    np.testing.assert_array_equal(run(first), run(second))


def test_in_evaluation_the_embedding_sees_everything():
    inputs = prepared(bag(), nonzero_rate=0.5)
    model, variables = built(inputs)
    run = quick(lambda x, train: model.apply(variables, x, train=train).cells, static_argnums=1)
    bare = {name: value for name, value in inputs.items() if name != "mask"}
    np.testing.assert_array_equal(run(inputs, False), run(bare, True))
    assert np.abs(run(inputs, True) - run(inputs, False)).max() > 1e-4


# ------------------------------------------------------------------------------------------------ cells, order, padding


def test_a_short_bag_gives_what_it_gives_alone():
    long, short = bag(cells=6), bag(cells=4)
    short = jax.tree.map(lambda x: x[:, :4], long)
    long = long.replace(cell_mask=long.cell_mask.at[:, 4:].set(False))
    a, b = prepared(long, mask="none", coords="raw"), prepared(short, mask="none", coords="raw")
    model, variables = built(b, spatial="paper")
    run = quick(lambda x: model.apply(variables, x))
    for ours, alone in ((run(a).cells[:, :4], run(b).cells), (run(a).genes[:, :4], run(b).genes)):
        np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_padding_holds_reaches_nothing():
    """Cells that are padding, whatever is in them, and the length to which expressed genes are padded."""
    batch = bag(cells=6, bags=2)
    batch = batch.replace(cell_mask=batch.cell_mask.at[0, 4:].set(False))
    hidden = {"draws": {"mask": jax.random.bernoulli(jax.random.key(2), 0.3, (2, 6, GENES))}}
    clean = prepared(batch, **hidden)
    rubbish = batch.replace(
        counts=batch.counts.at[0, 4:].mul(7), genes=batch.genes[..., ::-1], coords=batch.coords.at[0, 4:].set(jnp.nan)
    )
    rubbish = rubbish.replace(genes=rubbish.genes.at[1].set(batch.genes[1]).at[0, :4].set(batch.genes[0, :4]))
    wide = ((0, 0), (0, 0), (0, 9))
    longer = batch.replace(genes=jnp.pad(batch.genes, wide, constant_values=GENES), counts=jnp.pad(batch.counts, wide))
    model, variables = built(clean, spatial="code")
    real = batch.cell_mask[..., None]

    def everything(inputs):
        value, grads = value_and_grad(model, variables, inputs)
        outputs = quick(lambda x: model.apply(variables, x, train=True))(inputs)
        return (value, jnp.where(real, outputs.cells, 0), jnp.where(real[..., None], outputs.genes, 0)), grads

    same = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)  # threads add in any order
    expected = everything(clean)
    for other in (rubbish, longer):
        found = everything(prepared(other, **hidden))
        jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
        jax.tree.map(same, found[1], expected[1])


def test_layers_without_attention_commute_with_the_order_of_cells_but_for_borders():
    """Norms and pooling do, to the last bit; convolutions do where their taps do not reach over a border."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 32, 8))
    order = jnp.array([2, 0, 3, 1])
    kernel = jax.random.normal(jax.random.key(1), (15, 8, 8))
    norm = convolution.GeneNorm()
    scale = norm.init(jax.random.key(0), x)
    for layer, reach in (
        (lambda x: norm.apply(scale, x), 0),
        (lambda x: convolution.pool(x, "max"), 0),
        (lambda x: convolution.pool(x, "avg"), 0),
        (lambda x: convolution.convolve(convolution.with_neighbours(x, 7, 7), kernel), 7),
        (lambda x: convolution.convolve(convolution.with_neighbours(x, 2, 2), kernel[:5]), 2),
        (lambda x: convolution.upsample(convolution.with_neighbours(x, 1, 1), kernel[:5]), 2),
    ):
        run = quick(layer)
        turned, straight = run(x[:, order]), run(x)[:, order]
        inside = slice(reach, turned.shape[2] - reach)
        np.testing.assert_array_equal(turned[:, :, inside], straight[:, :, inside])
        assert not reach or (turned != straight).any()


def test_rotary_positions_tell_only_how_far_apart_cells_are():
    """Empty places before the cells instead of behind them change nothing."""
    batch = bag(cells=6)
    late = jax.tree.map(lambda x: jnp.roll(x, 2, 1), batch)
    inputs = [
        prepared(b.replace(cell_mask=jnp.asarray([mask])), mask="none")
        for b, mask in ((batch, [True] * 4 + [False] * 2), (late, [False] * 2 + [True] * 4))
    ]
    model, variables = built(inputs[0])
    run = quick(lambda x: model.apply(variables, x).cells)
    np.testing.assert_allclose(run(inputs[0])[:, :4], run(inputs[1])[:, 2:], rtol=1e-4, atol=1e-5)


def test_order_of_cells_matters_only_through_borders_and_rotary_positions():
    """With convolutions that end at each cell and no positions, permuting the cells permutes the result."""
    inputs = prepared(bag(), mask="none")
    order = jnp.array([2, 0, 3, 1])
    turned = jax.tree.map(lambda x: x[:, order], inputs)
    together = convolution.with_neighbours

    def apart(x, before, after):  # each cell as a bag of its own
        return jnp.pad(x, ((0, 0), (0, 0), (before, after), (0, 0)))

    differences = {}
    for pos, cells in (("rope", together), ("none", together), ("none", apart)):
        model, variables = built(inputs, pos=pos)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "with_neighbours", cells)
            patch.setattr(network, "with_neighbours", cells)
            run = quick(lambda x, model=model, variables=variables: model.apply(variables, x).genes)
            differences[pos, cells is together] = float(jnp.abs(run(turned) - run(inputs)[:, order]).max())
    assert differences["none", False] < 1e-4 < 1e-2 < differences["none", True]
    assert differences["rope", True] > 1e-2


def test_the_embedding_is_of_a_cells_positions_their_mean_or_all_of_the_layer_asked_for():
    inputs = prepared(bag(), mask="none")
    model, variables = built(inputs)

    def every(v):
        kinds = [(layer, cells) for layer in ("last", "mean", "input") for cells in ("mean", "positions")]
        clones = {kind: model.clone(cell_layer=kind[0], cells=kind[1]) for kind in kinds}
        return {kind: clone.apply(v, inputs).cells for kind, clone in clones.items()}

    embedded = quick(every)(variables)
    extra = quick(lambda v: model.apply(v, inputs, mutable="intermediates")[1]["intermediates"])(variables)
    first, last = (extra[f"block_{i}"]["output"][0].reshape(1, 4, -1, 32) for i in range(2))
    for layer, x in (("last", last), ("mean", (first + last) / 2), ("input", extra["conv_out"][0].reshape(last.shape))):
        np.testing.assert_allclose(embedded[layer, "mean"], x.mean(2), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(embedded[layer, "positions"], x.reshape(1, 4, -1), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- parts and options


def test_upsampling_is_a_dilated_transposed_convolution():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 4, 6)), jax.random.normal(jax.random.key(1), (5, 6, 7))
    names, flat = ("NWC", "WIO", "NWC"), x.reshape(2, 12, 6)
    slow = jax.lax.conv_general_dilated(flat, kernel, (1,), [(3, 2)], lhs_dilation=(2,), dimension_numbers=names)
    ours = convolution.upsample(convolution.with_neighbours(x, 1, 1), kernel)
    np.testing.assert_allclose(ours, slow.reshape(2, 3, 8, 7), rtol=1e-5, atol=1e-5)


def test_convolution_of_cells_is_that_of_the_whole_bag():
    x, kernel = jax.random.normal(jax.random.key(0), (2, 3, 8, 6)), jax.random.normal(jax.random.key(1), (15, 6, 7))
    names, flat = ("NWC", "WIO", "NWC"), x.reshape(2, 24, 6)
    whole = jax.lax.conv_general_dilated(flat, kernel, (1,), "SAME", dimension_numbers=names)
    ours = convolution.convolve(convolution.with_neighbours(x, *convolution.reach(15)), kernel)
    np.testing.assert_allclose(ours, whole.reshape(2, 3, 8, 7), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cells of 4 positions"):
        convolution.with_neighbours(x[:, :, :4], 7, 7)


def test_gradient_of_the_norm_is_the_derived_one():
    keys = jax.random.split(jax.random.key(0), 4)
    x, scale, offset, pull = (
        jax.random.normal(key, shape) for key, shape in zip(keys, [(2, 3, 8, 5), 8, 8, (2, 3, 8, 5)], strict=True)
    )

    def plain(x, scale, offset):
        centred = x - x.mean(2, keepdims=True)
        return centred / jnp.sqrt((centred**2).mean(2, keepdims=True) + 1e-5) * scale[:, None] + offset[:, None]

    def grads(f):
        return jax.grad(lambda *a: (f(*a) * pull).sum(), argnums=(0, 1, 2))(x, scale, offset)

    ours = grads(lambda *a: convolution.normalize(*a, 1e-5))
    for a, b in zip(ours, grads(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_norm_of_channels_is_that_of_each_position_with_one_scale_and_offset_for_each_channel():
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 8)).astype(np.float32)
    params = {"scale": jnp.arange(8.0), "offset": jnp.arange(8.0)[::-1]}
    ours = convolution.GeneNorm("channel").apply({"params": params}, x)
    unit = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(ours, unit * np.arange(8) + np.arange(8)[::-1], rtol=1e-4, atol=1e-4)
    model, variables = built(prepared(bag()), norm="channel")
    assert variables["params"]["down_0"]["norm"]["scale"].shape == (32,)
    back = convert.params(convert.state_dict(variables, model), model)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), back)


def test_the_mlp_is_drawn_as_asked_for():
    """A normal variate cut at two deviations keeps 0.774 of its variance, a uniform one has a third of its bound's."""
    cut = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    for init, times in (("he_uniform", 2.0), ("truncated", cut)):
        block = rotary.Block(2, 32, 512, mlp_init=init)
        params = quick(block.init)(jax.random.key(0), jnp.zeros((1, 2, 256)), jnp.ones((1, 2), bool))["params"]
        for name, fan_in, expected in (("mlp_in", 256, times), ("mlp_out", 512, times), ("query", 256, 2.0)):
            assert float(jnp.var(params[name]["kernel"])) * fan_in == pytest.approx(expected, rel=0.03), (init, name)


def test_spatial_features_of_paper_and_code():
    coords = jnp.array([[[3.0, 5.0]]])
    paper = position.scale_waves(coords, "paper", 3, 1.0, 4.0)[0, 0]
    scale = np.array([1, 2, 4])
    waves = [np.cos(3 / scale), np.cos(5 / scale), np.sin(3 / scale), np.sin(5 / scale)]
    np.testing.assert_allclose(paper, np.stack(waves, 1).ravel(), rtol=1e-5)
    code = position.scale_waves(coords, "code", 3, 1.0, 4.0)[0, 0]
    scale = 4 ** (np.array([1, 2.5, 4]) / 2)
    np.testing.assert_allclose(code, np.stack([np.cos(3 / scale), np.sin(5 / scale)], 1).ravel(), rtol=1e-5)


@pytest.mark.slow
def test_every_option_trains():
    batch = bag()
    for options in (
        {"norm": "standard", "pooling": "max", "pos": "none", "skip": False},
        {"norm": "no_affine", "n_bins": 15, "spatial": "paper", "dtype": "bfloat16", "mlp_init": "truncated"},
    ):
        inputs = prepared(batch, n_bins=options.get("n_bins", 5), nonzero_rate=0.5)
        model, variables = built(inputs, **options)
        value, grads = value_and_grad(model, variables, inputs)
        assert np.isfinite(value) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    texts = [{name: "x"} for name in ("mlp_init", "norm", "pooling", "pos", "spatial")]
    for wrong in (*texts, {"token_dim": 16}, {"n_bins": 15}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            jax.eval_shape(lambda wrong=wrong: built(prepared(batch), **wrong)[1])


def value_and_grad(model: sct.Model, variables: dict, inputs: dict, **options):
    def value(variables):
        return sct.loss(model.apply(variables, inputs, train=True), inputs, **options)[0]

    return quick(jax.value_and_grad(value))(variables)


@pytest.mark.slow
def test_chunks_remat_and_scan_change_nothing():
    inputs = prepared(bag(bags=2), nonzero_rate=0.5)
    model, variables = built(inputs)
    whole = value_and_grad(model, variables, inputs, chunk=0)
    scanned = dict(variables["params"])
    blocks = [scanned.pop(f"block_{i}") for i in range(2)]
    scanned["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
    for other in (
        value_and_grad(model.clone(remat="dots", query_chunk=30, cell_chunk=2), variables, inputs, chunk=60),
        value_and_grad(model.clone(scan=True, remat=True), {"params": scanned}, inputs),
    ):
        np.testing.assert_allclose(other[0], whole[0], rtol=1e-6)
        for name in ("tokens", "stem", "up_0", "head_0_kernel"):
            ours, theirs = other[1]["params"][name], whole[1]["params"][name]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), ours, theirs)


def test_predictions_are_counts_within_the_range_of_the_cell():
    inputs = prepared(bag(), nonzero_rate=0.5)
    model, variables = built(inputs)
    counts = quick(lambda v: predict(model.apply(v, inputs, train=True), inputs))(variables)
    assert counts.shape == (1, 4, GENES) and (counts >= 0).all() and counts.max() < bag().counts.max() * 1.2


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("target_sum", [0, 50.0])
def test_predictions_undo_what_prepare_did(log, target_sum):
    """A model that is sure of the truth predicts each count to half a bin, in whatever units the bins are."""
    batch = bag()
    inputs = quick(lambda b: prepared(b, mask="none", log=log, target_sum=target_sum, n_bins=15))(batch)
    sure = {"kernel": jnp.eye(17) * 1e3, "bias": jnp.zeros(17)}
    features = jax.nn.one_hot(inputs["tokens"], 17)
    counts = predict(Outputs(cells=None, logits={"features": features, "head": [sure]}), inputs)
    truth = jnp.zeros((1, 4, GENES + 1)).at[0, jnp.arange(4)[:, None], batch.genes[0]].set(batch.counts[0])[..., :-1]
    values, scale = bins.normalized(truth, target_sum, log)
    predicted = counts * scale[..., None]
    predicted = jnp.log1p(predicted) if log else predicted
    half = (inputs["edges"][..., 1:] - inputs["edges"][..., :-1]).max(-1, keepdims=True) / 2
    assert (jnp.abs(predicted - values) <= half * 1.001).all() and (counts[truth == 0] == 0).all()


def test_flops_are_those_that_xla_counts():
    model = sct.Model(n_genes=1024, **sct.VARIANTS["small"]["model"])
    inputs = jax.eval_shape(lambda: prepared_like(1024))
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), inputs)

    def forward(variables, inputs):
        return sct.loss(model.apply(variables, inputs, train=True), inputs, chunk=0)[0]

    counted = jax.jit(forward).lower(variables, inputs).cost_analysis()["flops"]
    assert counted == pytest.approx(sct.flops(model, inputs), rel=0.05)


def prepared_like(genes: int, cells: int = 4) -> dict:
    shape = (1, cells, genes)
    cell = {"cell_mask": jnp.ones((1, cells), bool), "coords": jnp.zeros((1, cells, 2))}
    return {
        "tokens": jnp.zeros(shape, jnp.int32),
        "mask": jnp.ones(shape, bool),
        "edges": jnp.zeros((1, cells, 5)),
    } | cell


def losses(dtype: str, steps: int, **options) -> np.ndarray:
    """Return the losses of Adam steps on bags of cells whose genes differ in how often they are expressed."""
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 2, GENES)
    counts = jnp.asarray(rng.poisson(rate, (steps, 1, 8, GENES)), jnp.float32)
    batch = bag(cells=8).replace(genes=jnp.broadcast_to(jnp.arange(GENES), (1, 8, GENES)))
    model = sct.Model(n_genes=GENES, dtype=dtype, **TINY | options)
    inputs = prepared(batch.replace(counts=counts[0]))
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=True))(inputs)
    optimizer = optax.adam(3e-3)

    def step(carry, drawn):
        variables, state = carry
        counts, key = drawn
        inputs = sct.prepare(batch.replace(counts=counts), constants(), key, step=0, train=True, nonzero_rate=0.5)

        def value(variables):
            return sct.loss(model.apply(variables, inputs, train=True), inputs)[0]

        loss, grads = jax.value_and_grad(value)(variables)
        changes, state = optimizer.update(grads, state)
        return (optax.apply_updates(variables, changes), state), loss

    keys = jax.random.split(jax.random.key(1), steps)
    return np.asarray(
        jax.jit(lambda *x: jax.lax.scan(step, *x)[1])((variables, optimizer.init(variables)), (counts, keys))
    )


@pytest.mark.slow
def test_training_in_bfloat16_stays_near_float32():
    exact, rough = losses("float32", 40), losses("bfloat16", 40)
    assert exact[-10:].mean() < 0.7 * exact[:2].mean()
    assert 0 < np.abs(rough - exact).max() < 0.3 and abs((rough - exact)[-10:].mean()) < 0.1


# --------------------------------------------------------------------------------------------------------------- meshes


MESHES = [  # and how many bags
    ({"data": 8}, 8),
    ({"data": 1, "fsdp": 8}, 8),
    ({"data": 1, "seq": 8}, 1),
    ({"data": 2, "fsdp": 2, "seq": 2}, 4),
]


def on_mesh(bags: int, **mesh: int) -> dict[str, np.ndarray]:
    """Return loss, features and gradients of bags of 8 cells, parameters and batch on a mesh of the devices."""
    devices = sharding.make_mesh(**mesh)
    inputs = prepared(bag(cells=8, bags=bags), nonzero_rate=0.5)
    model, variables = built(inputs, cell_chunk=max(4, devices.shape["seq"]))

    def value(variables, inputs):
        outputs = model.apply(variables, inputs, train=True)
        return sct.loss(outputs, inputs)[0], outputs.genes

    with jax.set_mesh(devices):
        placed = jax.tree.map(lambda x: jax.device_put(x, sharding.batch_sharding(devices, x.ndim)), inputs)
        layout = sharding.state_shardings({"params": variables["params"]}, devices, min_size=0)
        kernel = layout["params"]["up_0"]["conv"]["kernel"]
        assert kernel.shard_shape((5, 32, 32)) == (5, 32 // devices.shape["fsdp"], 32)
        step = quick(jax.value_and_grad(value, has_aux=True))
        compiled = step.lower(jax.device_put(dict(variables), layout), placed).compile()
        if devices.shape["seq"] > 1:  # a neighbour's ends travel; no map of a whole bag is ever on one device
            assert "collective-permute" in compiled.as_text()
            assert not re.search(r"f32\[\d+,\d+,\d+,32\]\S* all-gather\(", compiled.as_text())
        (loss, genes), grads = compiled(jax.device_put(dict(variables), layout), placed)
    split = devices.shape["data"] * devices.shape["fsdp"]
    assert genes.sharding.shard_shape(genes.shape)[:2] == (bags // split, 8 // devices.shape["seq"])
    return {"loss": np.asarray(loss), "genes": np.asarray(genes)} | meshes.named(grads)


@pytest.mark.slow
def test_bags_parameters_and_cells_split_over_devices_give_the_same_numbers(tmp_path):
    meshes.apart(__name__, 8, tmp_path)
    one = {bags: on_mesh(bags, data=1) for bags in (1, 4, 8)}
    for i, (mesh, bags) in enumerate(MESHES):
        with np.load(tmp_path / f"{i}.npz") as sharded:
            meshes.assert_same(sharded, one[bags], 1e-3, 2e-5, mesh)


def test_cells_that_do_not_divide_over_the_devices_are_refused():
    mesh = jax.sharding.AbstractMesh((1, 1, 8), sharding.AXES)
    with pytest.raises(ValueError, match=r"1 bags of 10 cells does not divide .* seq = 8 .*config.data.bag") as error:
        sharding.put_batch(jax.tree.map(np.asarray, bag(cells=10)), mesh)
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    for i, (mesh, bags) in enumerate(MESHES):
        np.savez(pathlib.Path(sys.argv[1]) / f"{i}.npz", **on_mesh(bags, **mesh))
