"""scEMB: golden parity, numpy's bins, what a mask may tell, padding and order, sizes, names, LoRA, prefixes, meshes."""

import functools
import gzip
import json
import math
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import pretrain_scemb
from data_pipeline import synthetic
from data_pipeline.store.ingest import file_sources, ingest
from experiments import parity
from scfm_jax import api, models
from scfm_jax.layers import dropout
from scfm_jax.layers.parts import chunk_parts
from scfm_jax.models import cellplm, scemb, sct
from scfm_jax.models.scemb import published as convert
from scfm_jax.models.scemb import softmax
from scfm_jax.models.scemb.inputs import MASK, PAD, SPECIAL, hide, perturb
from scfm_jax.models.scemb.variants import GENEFORMER
from scfm_jax.saving.published import stacks
from scfm_jax.training import lora, optim, signals, step
from scfm_jax.types import Batch
from tests.conftest import SHARED, needs_shared
from tests.harness import ROOT, tiny

TINY = dict(embed_dim=16, ffn_dim=24, num_layers=2, num_heads=2, n_positions=11, dropout=0.0, attention_dropout=0.0)
GENES = 50
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def cells(n: int = 4, expressed: int = 30, genes: int = GENES, seed: int = 0) -> Batch:
    """Return bags of one cell, of `expressed` or fewer genes in random order."""
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((n, 1, genes)), axis=-1)[..., :expressed]
    counts = rng.poisson(2, order.shape)
    return Batch(
        genes=jnp.asarray(np.where(counts > 0, order, genes), jnp.int32),
        counts=jnp.asarray(counts, jnp.float32),
        cell_mask=jnp.ones((n, 1), bool),
        study=jnp.zeros((n, 1), jnp.int32),
        coords=jnp.full((n, 1, 2), jnp.nan),
        labels={},
    )


def constants(genes: int = GENES) -> dict:
    return {"slots": jnp.arange(genes + 1), "measured": jnp.ones((1, genes), bool)}


def prepared(batch: Batch, seed: int = 1, train: bool = True, **options) -> dict:
    options = {"n_bins": 10} | options
    return scemb.prepare(batch, constants(), jax.random.key(seed), step=0, train=train, **options)


def built(inputs: dict, **options) -> tuple[scemb.Model, dict]:
    """Return a model and random variables for it, without compiling its own."""
    model = scemb.Model(n_genes=GENES, **TINY | options)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))
    return model, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), leaf.dtype), shapes)


def size(model: scemb.Model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(convert.shapes(model)))


# ---------------------------------------------------------------------------------------------------------- originals


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted((SHARED / "golden" / "scemb").glob("*")), ids=lambda path: path.name)
def test_golden_case(folder):
    result = parity.check(folder)
    assert result.passed, result.line


def test_sizes_are_those_of_bert_and_geneformer():
    body = 12 * 7_087_872 + 592_128
    paper = scemb.Model(**models.options("scemb", "paper")["model"] | {"n_genes": 25_424})
    assert size(paper) == body + 25_426 + 768 * (25_426 + 101 + 2) + 1536
    published = {"vocab_size": 25_426, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    published |= {"intermediate_size": 512, "max_position_embeddings": 2048, "hidden_act": "relu"}
    published |= {"hidden_dropout_prob": 0.02, "attention_probs_dropout_prob": 0.02}
    settings = convert.config(published)
    assert scemb.Model(**settings["model"]) == scemb.Model(n_genes=25_424, **GENEFORMER)
    ranks = {"position": "rank", "medians": "file", "target_sum": 1e4}
    assert settings["inputs"] == {**ranks, "max_len": 2048} and scemb.VARIANTS["geneformer"]["inputs"] == ranks
    assert size(scemb.Model(**settings["model"])) == 10_288_722


@pytest.mark.parametrize("scan", [False, True])
def test_published_names_there_and_back(scan):
    model, variables = built(prepared(cells()), scan=scan)
    state = convert.state_dict(variables, model)
    assert state["bert.encoder.layer.1.intermediate.dense.weight"].shape == (24, 16)
    tied = {theirs: state[same] for theirs, same in convert.TIED.items()}
    unused = {"bert.pooler.dense.weight": np.zeros(3), "bert.embeddings.position_ids": np.arange(4)}
    back = convert.params(state | tied | unused, model)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), back)


def test_names_that_do_not_fit_are_listed():
    model, variables = built(prepared(cells()))
    state = convert.state_dict(variables, model)
    state["cls.predictions.transform.dense.weight"] = np.zeros((3, 3), np.float32)
    state["bert.other.weight"] = state.pop("bert.embeddings.LayerNorm.bias")
    with pytest.raises(ValueError) as error:
        convert.params(state, model)
    for part in ("missing bert.embeddings.LayerNorm.bias", "unknown bert.other.weight", "shape of"):
        assert part in str(error.value)
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"] + 1
    with pytest.raises(ValueError, match="tied"):
        convert.params(state, model)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_published_files_are_loaded_with_their_vocabulary(kind, tmp_path):
    model, variables = built(prepared(cells(), position="rank"), n_positions=32)
    state, path = convert.state_dict(variables, model), tmp_path / f"model.{kind}"
    if kind == "bin":
        torch = pytest.importorskip("torch", reason="torch files need torch")
        torch.save({name: torch.tensor(value) for name, value in state.items()}, path)
    else:
        save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    published = {theirs: getattr(model, ours) for theirs, ours in convert.SAME.items()}
    published |= {theirs: getattr(model, ours) for theirs, (ours, _) in convert.OPTIONAL.items()}
    vocab = {f"ENSG{i}": i + 2 for i in range(GENES)} | {"<pad>": 0, "<mask>": 1}
    (tmp_path / "config.json").write_text(json.dumps(published | {"vocab_size": GENES + 2}))
    (tmp_path / "token_dictionary.json").write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match="medians=FILE is missing: weights of Geneformer's layout") as refused:
        convert.load(path, tmp_path / "config.json")
    assert "\n" not in str(refused.value)
    settings, loaded, genes = convert.load(path, tmp_path / "config.json", medians="medians.tsv")
    assert scemb.Model(**settings["model"]) == model and genes == [f"ENSG{i}" for i in range(GENES)]
    jax.tree.map(np.testing.assert_array_equal, dict(variables), loaded)
    with pytest.raises(ValueError, match="each id"):
        convert.genes(vocab | {"ENSG0": 1}, GENES)
    with pytest.raises(ValueError, match="hidden_act='swish'"):
        convert.config(published | {"vocab_size": 9, "hidden_act": "swish"})


# ----------------------------------------------------------------------------------------------------------- sentences


def sentence(values: np.ndarray, seed: int = 0, **options) -> dict:
    """Return the inputs of one cell with these counts."""
    n = len(values)
    one = Batch(
        genes=jnp.arange(n, dtype=jnp.int32)[None, None],
        counts=jnp.asarray(values, jnp.float32)[None, None],
        cell_mask=jnp.ones((1, 1), bool),
        study=jnp.zeros((1, 1), jnp.int32),
        coords=jnp.zeros((1, 1, 2)),
        labels={},
    )
    options = {"mask_rate": 0, "max_len": n, "train": True, "step": 0} | options
    return jax.tree.map(lambda x: x[0, 0], sentences(n, tuple(options.items()))(one, jax.random.key(seed)))


@functools.cache
def sentences(n: int, options: tuple):
    """Return `prepare` of `n` genes, compiled once for all seeds."""
    return jax.jit(lambda x, key: scemb.prepare(x, constants(n), key, **dict(options)))


@pytest.mark.parametrize("n_bins", [10, 99, 100])
def test_bins_are_those_of_numpy(n_bins):
    """Also where an edge falls on a value but for the rounding of a float64, which happens at every third length."""
    rng, length = np.random.default_rng(0), 600
    rows = np.zeros((60, length), np.float32)
    for row, n in zip(rows, [1, 2, 3, 10, 12, 16, 100, 199, *rng.integers(1, length, 52)], strict=True):
        row[rng.permutation(length)[:n]] = np.ceil(rng.lognormal(1, 1, n))
    batch = Batch(
        genes=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (60, 1, length)),
        counts=jnp.asarray(rows)[:, None],
        **{name: getattr(cells(60), name) for name in ("cell_mask", "study", "coords", "labels")},
    )
    options = {"step": 0, "train": True, "n_bins": n_bins, "mask_rate": 0}
    inputs = jax.jit(lambda x: scemb.prepare(x, constants(length), jax.random.key(0), **options))(batch)
    inputs = jax.tree.map(lambda x: np.asarray(x)[:, 0], {k: inputs[k] for k in ("positions", "tokens", "values")})
    for counts, positions, tokens, values in zip(rows, *inputs.values(), strict=True):
        there = values[values > 0]
        np.testing.assert_allclose(there, np.log1p(np.sort(counts[counts > 0])[::-1] / counts.sum() * 1e6), rtol=1e-5)
        edges = np.quantile(there, np.linspace(0, 1, n_bins))
        np.testing.assert_array_equal(positions[: len(there)], np.digitize(there, edges))
        expected = np.lexsort((np.arange(length), -counts))[: len(there)] + SPECIAL
        np.testing.assert_array_equal(tokens, np.pad(expected, (0, length - len(there))))
        assert not positions[len(there) :].any()


# ------------------------------------------------------------------------------------------------------------- medians


def test_genes_are_ranked_by_count_over_depth_over_median():
    """Worked by hand: of 25 counts each is worth 400; over the medians 400, 1200, 2400, 2000, and one gene has none."""
    counts, medians = np.array([10.0, 6, 3, 1, 5]), np.array([10, 2, 0.5, 0.2, 0], np.float32)
    options = {"position": "rank", "medians": "file", "target_sum": 1e4, "mask_rate": 0.0}
    batch = cells(1).replace(genes=jnp.arange(5)[None, None], counts=jnp.asarray(counts, jnp.float32)[None, None])
    known = constants(5) | {"medians": medians}
    inputs = scemb.prepare(batch, known, jax.random.key(0), step=0, train=False, **options)
    np.testing.assert_array_equal(scemb.gene_ids(inputs)[0, 0], [2, 3, 1, 0, PAD - SPECIAL])
    np.testing.assert_allclose(np.expm1(inputs["values"][0, 0, :4]), [2400, 2000, 1200, 400], rtol=1e-5)
    plain = scemb.prepare(batch, known, jax.random.key(0), step=0, train=False, **options | {"medians": "none"})
    np.testing.assert_array_equal(scemb.gene_ids(plain)[0, 0], [0, 1, 4, 2, 3])
    with pytest.raises(ValueError, match=r"inputs.medians='file' .* config.data.medians=FILE of a training, med"):
        scemb.prepare(batch, constants(5), jax.random.key(0), step=0, train=False, **options)


def test_medians_of_the_training_cells_are_those_of_numpy_to_one_percent():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.lognormal(0, 1.5, 40), (301, 1, 40)).astype(np.float32)
    counts[:, :, 7] = 0
    mask = np.arange(301)[:, None] != 5
    share = np.where(mask[..., None], counts / counts.sum(-1, keepdims=True), 0)[:, 0]
    genes = np.broadcast_to(np.arange(40), counts.shape)
    halves = [{"genes": genes[i], "counts": counts[i], "cell_mask": mask[i]} for i in (slice(150), slice(150, None))]
    found, inputs = scemb.fit({"train": halves}, constants(40), {"medians": "train", "target_sum": 1e4})
    assert inputs == {"medians": "train", "target_sum": 1e4} and found["medians"][7] == 0
    expected = [1e4 * np.median(x[x > 0]) if (x > 0).any() else 0 for x in share.T]
    np.testing.assert_allclose(found["medians"], expected, rtol=0.01)
    again = scemb.fit({"train": halves[:1]}, found, {"medians": "train"})[0]
    assert again["medians"] is found["medians"], "medians belong to the weights"
    with pytest.raises(ValueError, match="there are no medians"):
        scemb.fit({}, constants(40), {"medians": "file"})


def test_a_run_keeps_the_medians_of_its_file(tmp_path):
    genes, rng = [f"GENE{i}" for i in range(GENES)], np.random.default_rng(0)
    medians = rng.uniform(0.5, 5, GENES)
    rows = [f"{gene}\t{median}" for gene, median in zip(genes, medians, strict=True)]
    path = tmp_path / "medians.tsv.gz"
    path.write_bytes(gzip.compress("\n".join(["gene\tmedian_nonzero", *rows[::-1][:-1], "OTHER\t3"]).encode()))
    says, expected = [], np.where(np.arange(GENES) > 0, medians, 0).astype(np.float32)
    made = api.gene_constants({"medians": path}, genes, say=says.append)
    np.testing.assert_array_equal(made["medians"], expected)
    assert says[0].endswith("; 1 genes of the model have none and are never read")
    config = models.options("scemb", "tiny") | {"data": {"medians": str(path)}}
    config["inputs"] |= {"medians": "file", "position": "rank"}
    meta = {"model": "scemb", "config": config, "genes": genes}
    api.build(meta, {"params": {"x": np.zeros(1)}}, made, "a test").export(tmp_path / "w.safetensors")
    path.unlink()
    run = api.load(tmp_path / "w.safetensors")
    batch, inputs = cells(), run.meta["config"]["inputs"]
    inside = run.complete_constants([], np.ones((1, GENES), bool))
    tokens = run.module.gene_ids(scemb.prepare(batch, inside, jax.random.key(0), step=0, train=False, **inputs))
    counts = np.zeros((4, GENES + 1))
    np.put_along_axis(counts, np.asarray(batch.genes[:, 0]), np.asarray(batch.counts[:, 0]), 1)
    for row, sentence_ids in zip(counts[:, :-1], np.asarray(tokens)[:, 0], strict=True):
        value = np.where(expected > 0, row / np.maximum(medians, 1e-9), 0)
        np.testing.assert_array_equal(sentence_ids[sentence_ids >= 0], np.argsort(-value)[: (value > 0).sum()])
    for text, wrong in (("A\t1\nB\t-1\n", "line 2"), ("A\t1\nB\tx", "line 2"), ("gene\tmedian\n", "no line")):
        path.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            api.gene_constants({"medians": path}, genes)
    with pytest.raises(ValueError, match="the weights of cellplm do not rank genes by them"):
        api.from_published("cellplm", "w.ckpt", "config.json", medians=path)


@needs_shared
def test_the_published_medians_are_of_all_genes_of_geneformer():
    lists = json.loads(gzip.decompress((SHARED / "data/genes/model_gene_lists.json.gz").read_bytes()))
    genes = lists["geneformer_tokens"]["genes"]
    path = SHARED / "data/genes/geneformer_median_nonzero_expression.tsv.gz"
    found = api.gene_constants({"medians": path}, genes)["medians"]
    assert found[genes.index("ENSG00000000003")] == np.float32(2.001186019549122) and (found > 0).all()


def test_bins_of_equal_values_are_drawn_from_all_of_theirs_in_training_only():
    counts = np.array([1.0] * 60 + [2.0] * 30 + [3.0] * 10)
    drawn = np.concatenate([sentence(counts, ties="both", n_bins=11, seed=s)["positions"][40:] for s in range(40)])
    share = np.bincount(drawn)[1:8]
    assert (drawn >= 1).all() and drawn.max() == 6 and share[:6].min() > 0.7 * share[:6].max()
    same = [sentence(counts, ties=t, n_bins=11, train=False)["positions"] for t in ("both", "one")]
    np.testing.assert_array_equal(*same)
    assert set(np.unique(same[0])) == {6, 9, 11}


def test_sentences_are_cut_after_binning_and_leave_out_what_the_model_has_not():
    counts = np.arange(1, 41)[::-1]
    whole, cut = sentence(counts, n_bins=10), sentence(counts, n_bins=10, max_len=7)
    for name in ("tokens", "positions", "values"):
        np.testing.assert_array_equal(whole[name][:7], cut[name])
    ranks = sentence(counts, position="rank", max_len=7)
    np.testing.assert_array_equal(ranks["positions"], np.arange(7))
    less = constants() | {"slots": jnp.where(jnp.arange(GENES + 1) < 20, jnp.arange(GENES + 1), GENES)}
    batch = cells()
    inside = (batch.genes < 20) & (batch.counts > 0)
    alone = batch.replace(counts=jnp.where(inside, batch.counts, 0), genes=jnp.where(inside, batch.genes, GENES))
    options = {"step": 0, "train": True, "n_bins": 10}
    a = scemb.prepare(batch, less, jax.random.key(1), **options)
    jax.tree.map(np.testing.assert_array_equal, a, scemb.prepare(alone, constants(), jax.random.key(1), **options))
    assert a["tokens"].max() < 20 + SPECIAL


def test_neither_order_of_genes_in_the_file_nor_padding_changes_an_output():
    batch, rng = cells(), np.random.default_rng(5)
    order = np.argsort(rng.random(batch.genes.shape), -1)
    turned = batch.replace(
        genes=jnp.take_along_axis(batch.genes, order, -1), counts=jnp.take_along_axis(batch.counts, order, -1)
    )
    jax.tree.map(np.testing.assert_array_equal, prepared(batch), prepared(turned))
    wide = {"genes": (batch.genes, GENES), "counts": (batch.counts, 0.0)}
    wide = {k: jnp.pad(x, ((0, 0), (0, 0), (0, 19)), constant_values=fill) for k, (x, fill) in wide.items()}
    a, b = prepared(batch, mask_rate=0), prepared(batch.replace(**wide), mask_rate=0)
    assert b["tokens"].shape[-1] == a["tokens"].shape[-1] + 19
    for kind in ("last", "all_layers"):
        model, variables = built(a, cell_layer=kind)
        run = quick(lambda x, model=model, variables=variables: model.apply(variables, x))
        np.testing.assert_allclose(run(a).cells, run(b).cells, rtol=1e-5, atol=1e-5)
        real = (a["tokens"] != PAD)[..., None]
        np.testing.assert_allclose(run(a).genes * real, run(b).genes[:, :, :30] * real, rtol=1e-4, atol=1e-5)


def test_an_empty_cell_is_finite_and_zero():
    batch = cells()
    batch = batch.replace(cell_mask=batch.cell_mask.at[2].set(False))
    inputs = prepared(batch)
    model, variables = built(inputs)
    assert not inputs["weights"][2].any() and (inputs["tokens"][2] == PAD).all()
    outputs = quick(lambda v: model.apply(v, inputs))(variables)
    assert np.isfinite(outputs.genes).all() and not outputs.cells[2].any() and outputs.cells[1].any()


# --------------------------------------------------------------------------------------------------------------- masks


def test_rates_are_those_of_bert_and_what_has_no_room_is_not_hidden():
    tokens = jnp.broadcast_to(jnp.arange(40) + 2, (100_000, 1, 40))
    found = jax.jit(lambda key: hide(key, tokens, 40, 0.15, (0.8, 0.1, 0.1)))(jax.random.key(0))
    hidden, masked = np.zeros((100_000, 40), bool), np.asarray(found["masked"][:, 0])
    row, places, weights = np.arange(100_000)[:, None], np.asarray(found["places"][:, 0]), found["weights"][:, 0] > 0
    hidden[np.broadcast_to(row, places.shape)[weights], places[weights]] = True
    assert abs(hidden.mean() - 0.15) < 1e-3 and hidden.sum(1).max() == places.shape[1] == 16
    assert (masked[~hidden] == np.asarray(tokens[:, 0])[~hidden]).all()
    new, old = masked[hidden], np.asarray(tokens[:, 0])[hidden]
    assert abs((new == MASK).mean() - 0.8) < 2e-3 and new.min() == MASK and new.max() == 41
    assert abs((new == old).mean() - (0.1 + 0.1 / 40)) < 2e-3
    targets = np.asarray(found["targets"][:, 0])
    assert (targets[weights] == places[weights] + 2).all() and (targets[~weights] == PAD).all()
    text = hide(jax.random.key(0), tokens[:9], 40, 0.15, (1.0, 0.0, 0.0))
    assert ((text["masked"] == MASK).sum(-1) == text["weights"].sum(-1)).all()
    with pytest.raises(ValueError, match="add up to 1"):
        hide(jax.random.key(0), tokens[:9], 40, 0.15, (0.8, 0.1, 0.2))


def test_padding_is_never_hidden():
    inputs = prepared(cells(n=200, expressed=8), mask_rate=0.5)
    there = np.take_along_axis(np.asarray(inputs["tokens"]), np.asarray(inputs["places"]), -1)
    assert (there[np.asarray(inputs["weights"]) > 0] >= SPECIAL).all() and inputs["weights"].sum() > 100
    assert (inputs["masked"][inputs["tokens"] == PAD] == PAD).all()


def test_a_masked_gene_is_never_seen_by_its_own_prediction():
    inputs = prepared(cells(), mask_rate=0.4, mask_replace=(1.0, 0.0, 0.0))
    model, variables = built(inputs)
    hidden = inputs["masked"] == MASK
    other = inputs | {"tokens": jnp.where(hidden, 3, inputs["tokens"]), "targets": inputs["targets"] * 0 + 3}
    changed = inputs | {"masked": jnp.where(hidden | (inputs["tokens"] == 0), inputs["masked"], 3)}
    for train in (True, False):
        run = quick(lambda x, train=train: model.apply(variables, x, train=train).logits["features"])
        np.testing.assert_array_equal(run(inputs), run(other))
        assert np.abs(run(inputs) - run(changed)).max() > 1e-3


def test_in_evaluation_the_embedding_sees_everything():
    inputs = prepared(cells(), mask_rate=0.5)
    model, variables = built(inputs)
    run = quick(lambda x, train: model.apply(variables, x, train=train).cells, static_argnums=1)
    bare = {name: inputs[name] for name in ("tokens", "positions", "edges")}
    np.testing.assert_array_equal(run(inputs, False), run(bare, True))
    assert np.abs(run(inputs, True) - run(inputs, False)).max() > 1e-3
    with pytest.raises(ValueError, match="mask_rate=0"):
        scemb.loss(model.apply(variables, bare), bare)


@pytest.mark.parametrize("position", ["bin", "rank"])
def test_a_deleted_gene_leaves_the_cell_as_if_it_had_not_been_in_the_sentence(position):
    inputs = prepared(cells(), mask_rate=0, position=position)
    model, variables = built(inputs, n_positions=11 if position == "bin" else 30)
    gene = int(inputs["tokens"][0, 0, 4]) - SPECIAL
    keep = np.arange(30) != 4
    by_hand = {name: inputs[name][..., keep] for name in ("tokens", "positions")}
    if position == "rank":
        by_hand["positions"] = inputs["positions"][..., :29]
    by_hand |= {"edges": inputs["edges"]} if position == "bin" else {}
    run = quick(lambda x: model.apply(variables, x).cells)
    deleted, masked = (run(perturb(inputs, gene, how)) for how in ("delete", "mask"))
    np.testing.assert_allclose(deleted[0], run(by_hand)[0], rtol=1e-5, atol=1e-5)
    assert np.abs(deleted[0] - masked[0]).max() > 1e-4 and np.abs(run(inputs)[0] - masked[0]).max() > 1e-4
    absent = [i for i in range(4) if not (inputs["tokens"][i] == gene + SPECIAL).any()]
    np.testing.assert_array_equal(masked[np.array(absent, int)], run(inputs)[np.array(absent, int)])


# ---------------------------------------------------------------------------------------------------- parts and options


def test_cross_entropy_and_its_gradients_are_the_plain_ones():
    keys = jax.random.split(jax.random.key(0), 5)
    features, table = jax.random.normal(keys[0], (3, 2, 12, 8)), jax.random.normal(keys[1], (30, 8))
    bias, targets = jax.random.normal(keys[2], (30,)), jax.random.randint(keys[3], (3, 2, 12), 0, 30)
    weights = jax.random.bernoulli(keys[4], 0.6, targets.shape).astype(jnp.float32)

    def plain(features, table, bias):
        scores = features @ table.T + bias
        nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), targets[..., None], -1)[..., 0]
        return (weights * nll).sum() * 0.7, (weights * (scores.argmax(-1) == targets)).sum()

    (value, hits), grads = jax.value_and_grad(plain, argnums=(0, 1, 2), has_aux=True)(features, table, bias)
    for chunk in (0, 20):

        def ours(*arrays, chunk=chunk):
            nll, hits = softmax.cross_entropy(*arrays, targets, weights, chunk)
            return 0.7 * nll, hits

        found = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True))(features, table, bias)
        np.testing.assert_allclose(found[0], (value, hits), rtol=1e-5)
        np.testing.assert_allclose(jax.jit(ours)(features, table, bias), (value, hits), rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found[1], grads)
    assert chunk_parts(targets.shape, 20) == 4


def test_attention_maps_are_those_of_the_fused_path_and_never_of_padding():
    inputs = prepared(cells(), mask_rate=0)
    model, variables = built(inputs)
    fused = quick(lambda v: model.apply(v, inputs).genes)(variables)
    outputs, extra = quick(lambda v: model.apply(v, inputs, mutable=["intermediates"]))(variables)
    np.testing.assert_allclose(outputs.genes, fused, rtol=1e-4, atol=1e-5)
    maps = np.asarray(extra["intermediates"]["block_1"]["attention"][0])
    assert maps.shape == (4, 2, 30, 30)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    assert not (maps * np.asarray(inputs["tokens"] == PAD)[:, :, None]).any()


def test_dropout_has_its_rate_and_keeps_the_mean():
    x = dropout.dropped(jnp.ones((200, 301)), 0.1, jax.random.key(0))
    assert abs(float((x == 0).mean()) - 0.1) < 4e-3 and abs(float(x.mean()) - 1) < 5e-3
    inputs = prepared(cells())
    model, variables = built(inputs, dropout=0.3, attention_dropout=0.2)

    def run(variables, key, train):
        return model.apply(variables, inputs, train=train, rngs={"dropout": key}).logits["features"]

    run = quick(run, static_argnums=2)
    a, b = jax.random.split(jax.random.key(0))
    np.testing.assert_array_equal(run(variables, a, False), run(variables, b, False))
    assert np.abs(run(variables, a, True) - run(variables, b, True)).max() > 1e-2


def value_and_grad(model: scemb.Model, variables: dict, inputs: dict, **options):
    def value(variables):
        return scemb.loss(model.apply(variables, inputs, train=True), inputs, **options)[0]

    return quick(jax.value_and_grad(value))(variables)


@pytest.mark.slow
def test_chunks_remat_and_scan_change_nothing():
    inputs = prepared(cells())
    model, variables = built(inputs)
    value, grads = value_and_grad(model, variables, inputs, chunk=0)
    scanned = {"params": stacks.stack(variables["params"], *convert.BLOCKS, model.num_layers)}
    for options in ({"remat": "dots"}, {"scan": True, "remat": True}):
        other = model.clone(**options)
        found = value_and_grad(other, scanned if other.scan else variables, inputs, chunk=10)
        np.testing.assert_allclose(found[0], value, rtol=1e-6)
        theirs = stacks.unstack(found[1]["params"], *convert.BLOCKS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), theirs, grads["params"])


def test_options_that_do_not_fit_are_refused():
    inputs = prepared(cells())
    wrong = {"num_heads": 3, "activation": "swish", "cell_layer": "mean", "remat": "most", "n_positions": 12}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            built(inputs, **{name: value})
    with pytest.raises(ValueError, match="max_len"):
        built(prepared(cells(), position="rank"))
    for options in ({"position": "place"}, {"ties": "none"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            prepared(cells(), **options)


@pytest.mark.slow
def test_half_precision_trains():
    inputs = prepared(cells())
    model, variables = built(inputs, dtype="bfloat16")
    value, grads = value_and_grad(model, variables, inputs)
    exact, _ = value_and_grad(model.clone(dtype="float32"), variables, inputs)
    assert abs(value / exact - 1) < 0.05 and all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))


def test_flops_are_those_of_the_compiled_program():
    inputs = prepared(cells())
    model, variables = built(inputs, embed_dim=256, ffn_dim=1024)
    run = jax.jit(lambda v: scemb.loss(model.apply(v, inputs, train=True), inputs)[0])
    counted = run.lower(variables).compile().cost_analysis()["flops"]
    assert 1 < counted / scemb.flops(model, inputs) < 1.1


# ------------------------------------------------------------------------------------------------- LoRA and prefixes


def test_prefixes_are_learned_or_projected_and_seen_by_every_token():
    inputs = prepared(cells(), mask_rate=0) | {"prefix": jnp.ones((4, 1, 3, 5))}
    model, variables = built(inputs, prefix=2)
    block = variables["params"]["block_0"]
    assert block["prefix_key"].shape == (2, 16) and block["prefix_value_map"]["kernel"].shape == (5, 16)
    run = quick(lambda v, x: model.apply(v, x).cells)
    before = run(variables, inputs)
    assert np.abs(run(variables, inputs | {"prefix": -inputs["prefix"]}) - before).max() > 1e-3
    other = jax.tree.map(jnp.copy, variables)
    other["params"]["block_1"]["prefix_key"] += 1
    assert np.abs(run(other, inputs) - before).max() > 1e-3
    maps = model.apply(variables, inputs, mutable=["intermediates"])[1]["intermediates"]["block_0"]["attention"][0]
    assert maps.shape == (4, 2, 30, 35) and (maps[..., :5] > 0).all()


ADAPTED = ("query/kernel", "value/kernel")


def adapted(params: dict, rank: int = 3) -> tuple[lora.Adapter, lora.Adapter]:
    """Return a fresh adapter and one whose B is not zero any more."""
    fresh = lora.init(jax.random.key(3), params, ADAPTED, rank, alpha=6)
    rng = np.random.default_rng(1)
    return fresh, jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), fresh)


@pytest.mark.parametrize("scan", [False, True])
def test_an_adapter_begins_as_nothing_and_is_a_product_beside_the_layer(scan):
    inputs = prepared(cells(), mask_rate=0)
    model, variables = built(inputs, scan=scan)
    params = variables["params"]
    fresh, trained = adapted(params)
    assert len(fresh.factors) == (2 if scan else 4)
    run = quick(lambda params: model.apply({"params": params}, inputs).cells)
    np.testing.assert_array_equal(run(lora.apply(params, fresh)), run(params))
    merged = lora.merge(params, trained)
    np.testing.assert_array_equal(run(lora.apply(params, trained)), run(merged))
    assert np.abs(run(merged) - run(params)).max() > 1e-3
    name = "blocks/query/kernel" if scan else "block_0/query/kernel"
    a, b = (trained.factors[name][side][0] if scan else trained.factors[name][side] for side in "ab")
    kernels = [
        (tree["blocks"]["query"]["kernel"][0] if scan else tree["block_0"]["query"]["kernel"])
        for tree in (params, merged)
    ]
    x = np.random.default_rng(0).normal(0, 1, (5, 16))
    np.testing.assert_allclose(x @ kernels[1], x @ kernels[0] + 2 * (x @ a) @ b, rtol=1e-4, atol=1e-5)


def test_training_an_adapter_leaves_every_weight_bitwise_as_it_was(tmp_path):
    inputs = prepared(cells())
    model, variables = built(inputs)
    params = jax.device_get(variables["params"])
    adapter = lora.init(jax.random.key(3), params, ADAPTED, 3, alpha=6)

    def loss(both):
        params, adapter = both
        return scemb.loss(model.apply({"params": lora.apply(params, adapter)}, inputs, train=True), inputs)[0]

    value, (frozen, grads) = quick(jax.value_and_grad(loss))((params, adapter))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(frozen))
    assert all(np.any(f["b"]) and not np.any(f["a"]) for f in grads.factors.values()), "A is still where B holds it"
    tuned = jax.tree.map(lambda p, g: p - 0.05 * g, adapter, grads)
    assert quick(loss)((params, tuned)) < value
    changed = jax.device_get(lora.merge(params, tuned))
    for block in ("block_0", "block_1"):
        assert (changed[block]["query"]["kernel"] != params[block]["query"]["kernel"]).any()
        for name in ("query", "value"):
            changed[block][name] = dict(changed[block][name], kernel=params[block][name]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, changed, params)
    lora.save(tmp_path / "adapter.safetensors", tuned, {"base": "run 7"})
    again, meta = lora.load(tmp_path / "adapter.safetensors")
    assert meta == {"base": "run 7"} and again.scale == 2
    jax.tree.map(np.testing.assert_array_equal, tuned, again)
    assert (tmp_path / "adapter.safetensors").stat().st_size < sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2


ELSEWHERE = {
    "cellplm": (
        cellplm.Model(**cellplm.VARIANTS["tiny"]["model"], n_genes=GENES, scan=True),
        ("query/kernel", "decoder/.*kernel"),
    ),
    "sct": (
        sct.Model(**sct.VARIANTS["tiny"]["model"], n_genes=GENES),
        ("down_./.*conv/kernel", "mlp_in/kernel", "head_0_kernel"),
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_models_are_adapted_alike(name):
    model, patterns = ELSEWHERE[name]
    objective = step.pretraining(models.get(name), model, {}, {})
    bag = jax.tree.map(lambda x: x.swapaxes(0, 1), cells())
    shapes = jax.eval_shape(objective.init, jax.random.key(0), bag, constants())["params"]
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    adapter = lora.init(jax.random.key(0), params, patterns, 1, alpha=2)
    hit = jax.tree.leaves(optim.matches(params, patterns, "patterns"))
    ones = lora.Adapter(jax.tree.map(jnp.ones_like, adapter.factors), adapter.scale)
    for changed, expected in zip(jax.tree.leaves(lora.merge(params, ones)), hit, strict=True):
        assert (changed == (3 if expected else 1)).all()
    assert len(adapter.factors) == sum(hit) > 2


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    _, variables = built(prepared(cells()))
    params = variables["params"]
    for patterns, rank, message in (
        (("qurey",), 2, "matches no parameter"),
        (("query/bias",), 2, "must be a matrix"),
        (("query/kernel",), 17, "at least rank=17"),
        ((), 2, "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.init(jax.random.key(0), params, patterns, rank, alpha=1)
    adapter, _ = adapted(params)
    smaller = {name: x for name, x in params.items() if name != "block_1"}
    with pytest.raises(ValueError, match=r"2 kernels do not fit.*block_1/query/kernel missing"):
        lora.merge(smaller, adapter)


# -------------------------------------------------------------------------------------------------- command and mesh


def test_every_variant_is_a_config_whose_sizes_fit():
    for variant, parts in scemb.VARIANTS.items():
        made = pretrain_scemb.get_config(variant)
        inputs, n_positions = made.inputs, made.model.n_positions
        assert n_positions == (inputs.max_len if inputs.position == "rank" else inputs.n_bins + 1)
        assert all(made.model[key] == value for key, value in parts.get("model", {}).items())


def test_the_rate_rises_and_falls_in_straight_lines():
    config = pretrain_scemb.get_config("paper").optim
    options = {key: config[key] for key in ("learning_rate", "schedule")}
    rate = optim.build({"x": jnp.zeros(1)}, **options, warmup=10, steps=110).schedule
    np.testing.assert_allclose([rate(i) for i in (0, 5, 10, 60, 110)], np.array([0, 0.5, 1, 0.5, 0]) * 1e-4, atol=1e-9)


OPTIONS = {
    "data.batch": 8,
    "model.embed_dim": 16,
    "model.ffn_dim": 32,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "train.steps": 12,
    "train.log_every": 3,
    "train.eval_every": 6,
    "train.checkpoint_every": 6,
}


@pytest.mark.slow
def test_the_command_trains_is_stopped_and_resumes(tmp_path):
    for i in range(2):
        synthetic.make(50, 60, seed=i, depth=100.0).write_h5ad(tmp_path / f"study{i}.h5ad")
    files = [str(tmp_path / f"study{i}.h5ad") for i in range(2)]
    assert not ingest(file_sources(files), tmp_path / "store", workers=0, say=lambda text: None)
    options = [f"--config.{key}={value}" for key, value in {**OPTIONS, "data.store": tmp_path / "store"}.items()]
    start = [sys.executable, "-m", "experiments.train", "--config=configs/pretrain_scemb.py:tiny", *options]
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    piped |= {"cwd": ROOT, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}}

    def command(workdir: str) -> subprocess.Popen:
        return subprocess.Popen([*start, f"--workdir={tmp_path / workdir}"], **piped)

    tiny.finish(command("whole"))
    process = command("parts")
    while (line := process.stdout.readline()) and "step 3/" not in line:
        pass
    process.send_signal(signal.SIGTERM)
    assert tiny.finish(process).splitlines()[-1] == signals.RESUME
    assert "going on from step" in tiny.finish(command("parts"))
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts", 12)


MESH = """
import functools, json, sys
import jax
from jax.sharding import AxisType
from tests.models.test_scemb import TINY, GENES, cells, constants
from scfm_jax.training import optim, step
from scfm_jax import sharding
from scfm_jax.models import scemb
found = []
one = jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])
for mesh in (one, sharding.make_mesh(data=2), sharding.make_mesh(data=1, fsdp=2)):
    with jax.set_mesh(mesh):
        objective = step.pretraining(scemb, scemb.Model(n_genes=GENES, **TINY), {"n_bins": 10}, {})
        build = functools.partial(optim.build, steps=9, learning_rate=0.01)
        begin = functools.partial(step.init_state, objective, build, 0)
        layout = sharding.state_shardings(jax.eval_shape(begin, cells(), constants()), mesh, min_size=64)
        state = jax.jit(begin, out_shardings=layout)(cells(), constants())
        update = jax.jit(functools.partial(step.train_step, objective, build(state.params), 1))
        losses = []
        for seed in range(3):
            batch = sharding.put_batch(jax.device_get(cells(seed=seed)), mesh)
            state, metrics = update(state, batch)
            losses.append(float(metrics["loss"][0]) / float(metrics["loss"][1]))
        found.append(losses)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_mesh_of_two_devices_agrees():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", MESH], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, *others = json.loads(done.stdout.splitlines()[-1])
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-5)
    assert len(set(one)) == 3
