"""Annotation of cells: the objective, with CellPLM's own head inside it, scores, baselines, and the table."""

import dataclasses
import json
import pathlib
import shutil
import warnings

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import balanced_accuracy_score, f1_score

from configs import finetune_cell_type, finetune_cellplm_annotation, pretrain_cellplm
from data_pipeline import synthetic
from data_pipeline.store.store import open_store
from experiments import train
from experiments.analyses import annotation, annotation_table
from experiments.training import finetuning
from scfm_jax import api, models
from scfm_jax.inference import bags, infer
from scfm_jax.saving import checkpoint
from scfm_jax.tasks.cells import annotation_baselines, cell_type, heads
from scfm_jax.types import Batch
from tests.harness import suites

LITTLE = {"data.bag": 32, "data.batch": 1, "data.buckets": (64,), "train.eval_every": 0, "train.checkpoint_every": 0}
LITTLE |= {"train.tensorboard": False, "train.log_every": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """Two studies with types of two namings, four donors in the first."""
    folder = tmp_path_factory.mktemp("annotation")
    paths = folder / "known.h5ad", folder / "new.h5ad"
    cells = synthetic.make(200, 60, seed=0, depth=300.0)
    cells[:140].copy().write_h5ad(paths[0])
    new = cells[140:].copy()
    new.obs["sorted"] = ["T0" if name == "type0" else name for name in new.obs["cell_type"]]
    new.write_h5ad(paths[1])
    return paths


@pytest.fixture(scope="module")
def table(files, tmp_path_factory):
    """The folder of a table that is prepared, its plan, and a base run of CellPLM at step 0."""
    out = tmp_path_factory.mktemp("table")
    plan = annotation.Plan((str(files[0]),), str(files[1]), None, "cell_type", "sorted", {"T0": "type0"}, 0, 60, 0.5)
    annotation.prepare(plan, out, say=lambda _: None)
    config = pretrain_cellplm.get_config("tiny")
    config.update_from_flattened_dict({"data.store": str(out / "data/store"), "train.steps": 0, **LITTLE})
    train.pretrain(config, str(out / "cellplm"))
    return plan, out, out / "cellplm"


@pytest.fixture(scope="module")
def frozen(table):
    """The folder of a head trained on the base run as it is, and its scores."""
    plan, out, base = table
    return out / "runs/cellplm_frozen_0", annotation.tune(plan, out, str(base), "frozen", 0)


# ------------------------------------------------------------------------------------------------------- objective


def little(head: str, **fields):
    """Return CellPLM's module and a small model of it."""
    module = models.get("cellplm")
    options = models.options("cellplm", "tiny")["model"] | {
        "n_genes": 12,
        "latent_mod": "ae",
        "dropout": 0.0,
        "head": head,
    }
    return module, module.Model(**{**options, **fields})


def test_cellplms_own_head_is_this_objective():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (6, 12)).astype(np.float32))
    packed = bags.pack(counts, np.arange(6)[None], labels=["cell_type"])
    packed["labels"]["cell_type"] = np.array([[0, 1, 2, -1, 1, 0]], np.int32)
    batch = Batch(**{name: packed[name] for name in infer.FIELDS})
    constants = bags.own_vocabulary(np.ones((1, 12), bool))
    module, theirs = little("annotation", n_classes=3, dec_layers=1)
    inputs = module.prepare(batch, constants, jax.random.key(0), step=0, train=False)
    params = theirs.init(jax.random.key(1), inputs)["params"]
    expected, _ = module.loss(theirs.apply({"params": params}, inputs), inputs, objective="annotation")
    _, model = little("embedder")
    task = params["head"]
    own = {name: x for name, x in params.items() if name != "head"}
    made = cell_type.objective(module, model, {}, [2, 2, 1], layers=1, standardise=False)
    loss, (metrics, _) = made.loss({**own, "task": task}, {}, batch, constants, jax.random.key(2), 0, False)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert float(metrics["accuracy"][1]) == 5, "a cell without a label counts"


@pytest.mark.slow
def test_training_sees_what_evaluation_sees_unless_noise_is_asked_for():
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (6, 12)).astype(np.float32))
    packed = bags.pack(counts, np.arange(6)[None], labels=["cell_type"])
    packed["labels"]["cell_type"] = np.array([[0, 1, 2, 2, 1, 0]], np.int32)
    batch = Batch(**{name: packed[name] for name in infer.FIELDS})
    constants = bags.own_vocabulary(np.ones((1, 12), bool))
    module, model = little("decoder", latent_mod="gmvae", dropout=0.3)

    def losses(**options) -> list[float]:
        made = cell_type.objective(module, model, {"mask_node_rate": 0.0}, [2, 2, 2], **options)
        variables = dict(made.init(jax.random.key(0), batch, constants))
        params = variables.pop("params")
        keys = [jax.random.key(i) for i in (1, 2)]
        trained = [made.loss(params, variables, batch, constants, key, 0, True)[0] for key in keys]
        return [float(x) for x in (*trained, made.loss(params, variables, batch, constants, keys[0], 0, False)[0])]

    still, noisy = losses(), losses(noise=True)
    assert still == [still[2]] * 3 and noisy[2] == still[2]
    assert len(set(noisy)) == 3 and min(abs(x - still[2]) for x in noisy[:2]) > 1e-3


@pytest.mark.parametrize("name", ["scemb", pytest.param("exceiver", marks=pytest.mark.slow)])
def test_noise_keeps_the_dropout_of_every_model_that_has_it(name):
    """CellPLM is asked above; sCT and scLong have none."""
    module, run = models.get(name), small(name, dropout=0.2)
    batch, constants = labelled(run)
    inputs, losses = {**run.meta["config"]["inputs"], **module.TUNING["visible"]}, {}
    width = 16 if name == "scemb" else run.model.query_len * run.model.query_dim
    head = {"kernel": np.random.default_rng(0).normal(size=(width, 3)), "bias": np.zeros(3)}
    params = {**run.variables["params"], "task": {"linear_0": head}}
    for noise in (False, True):
        made = cell_type.objective(module, run.model, inputs, [2, 2, 2], noise=noise)
        loss = jax.jit(lambda key, made=made: made.loss(params, {}, batch, constants, key, 0, True)[0])
        losses[noise] = [float(loss(jax.random.key(i))) for i in (1, 2)]
    assert losses[False][0] == losses[False][1]
    assert abs(losses[True][0] - losses[True][1]) > 1e-4 < abs(losses[True][0] - losses[False][0])


def small(name: str, **fields) -> api.Run:
    """Return a small run of random weights for twelve genes."""
    config = models.options(name, "tiny") | {"data": {"labels": ["cell_type"]}}
    sizes = {"embed_dim": 16, "ffn_dim": 16, "num_layers": 1, "num_heads": 2} if name == "scemb" else {"num_layers": 1}
    config["model"] |= sizes | fields
    meta = {"model": name, "config": config, "genes": [f"G{i}" for i in range(12)], "step": 0}
    return api.build(meta | {"classes": {"cell_type": ["a", "b", "c"]}}, {"params": {}}, {}, "a test").twin(0)


def labelled(run: api.Run) -> tuple[Batch, dict]:
    """Return a bag of six cells of three types, and the constants for them."""
    packed = bags.pack(six(), np.arange(6)[None], labels=["cell_type"])
    constants = run.complete_constants([packed], np.ones((1, 12), bool), say=lambda _: None)
    packed["labels"]["cell_type"] = np.array([[0, 1, 2, 2, 1, 0]], np.int32)
    return Batch(**{field: packed[field] for field in infer.FIELDS}), jax.tree.map(jnp.asarray, constants)


def six() -> sp.csr_matrix:
    """Return counts of six cells, some of which express few genes."""
    return sp.csr_matrix(np.random.default_rng(0).poisson(np.linspace(0.3, 2, 6)[:, None], (6, 12)).astype(np.float32))


@pytest.mark.slow
def test_a_transformer_head_reads_the_genes_and_annotates_as_it_was_trained():
    run = small("scemb")
    batch, constants = labelled(run)
    inputs = {**run.meta["config"]["inputs"], "mask_rate": 0.0}
    made = cell_type.objective(run.module, run.model, inputs, [2, 2, 2], head="transformer")
    task = jax.jit(made.init)(jax.random.key(0), batch, constants)["params"]["task"]
    assert set(task) == {"block", "linear_0", "mean", "map"} and task["map"].shape == (16, 16)
    params = {**run.variables["params"], "task": task}
    loss, (metrics, _) = jax.jit(made.loss, static_argnums=6)(params, {}, batch, constants, jax.random.key(1), 0, False)
    config = run.meta["config"] | {"task": {"name": "cell_type", "label": "cell_type", "head": "transformer"}}
    config["inputs"] = inputs
    tuned = dataclasses.replace(run, task=jax.tree.map(np.asarray, task), meta=run.meta | {"config": config})
    cells = anndata.AnnData(six(), var=pd.DataFrame(index=run.genes))
    shares = tuned.annotate(cells, say=lambda _: None)
    expected = -np.log(shares.to_numpy()[np.arange(6), [0, 1, 2, 2, 1, 0]]).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-4) and float(metrics["loss"][1]) == 6
    assert tuned.provenance["shape"] == [6, 16] and tuned.mapping.report.mapped == 12

    still = jax.tree.map(np.zeros_like, {name: task["block"][name] for name in ("out", "mlp_out")})
    plain = {"block": {**task["block"], **still}}  # what is left of the block: two norms
    prepared = run.module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)
    outputs = run.model.apply(run.variables, prepared)
    genes, real = np.asarray(outputs.genes, np.float64)[0], np.asarray(run.module.gene_ids(prepared))[0] >= 0
    assert 0 < real.sum(1).min() < real.sum(1).max()
    for _ in range(2):
        genes = (genes - genes.mean(-1, keepdims=True)) / genes.std(-1, keepdims=True)
    mean = np.stack([row[here].mean(0) for row, here in zip(genes, real, strict=True)])
    seen = heads.read(plain, run.module, outputs, prepared)
    np.testing.assert_allclose(seen[0], mean, atol=1e-3)
    drawn = [heads.read(task, run.module, outputs, prepared, 0.5, jax.random.key(i)) for i in (0, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2, "the head's dropout is the block's"


def test_a_head_that_a_model_cannot_have_is_refused():
    module, model = little("embedder")
    batch, constants = labelled(small("scemb"))
    for head, says in (("transformer", "cellplm represents no genes of a cell"), ("mlp", "there are embedding, trans")):
        made = cell_type.objective(module, model, {}, [2, 2, 2], head=head)
        with pytest.raises(ValueError, match=rf"task.head='{head}': {says}"):
            jax.eval_shape(made.init, jax.random.key(0), batch, constants)


@pytest.mark.slow
def test_a_table_asks_for_the_layers_of_its_plan(table, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(annotation.train, "pretrain", lambda config, _: asked.append(config) or 1 / 0)
    for layer in ("all_layers", None):
        with pytest.raises(ZeroDivisionError):
            annotation.tune(dataclasses.replace(table[0], cell_layer=layer), tmp_path, str(table[2]), "lora", 0)
    assert [config.model.cell_layer for config in asked] == ["all_layers", None]
    with pytest.raises(ValueError, match="cell_layer=all_layers: cellplm has no choice of layers"):
        finetuning.resolve(asked[0].to_dict(), api.load(table[2]))


@pytest.mark.slow
def test_a_running_mean_is_that_of_the_batches_and_what_shifts_all_cells_is_not_seen():
    module, model = little("embedder")
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (6, 12)).astype(np.float32))
    packed = bags.pack(counts, np.array([[0, 1, 2, 3, 4, 5, -1, -1]]), labels=["cell_type"])
    packed["labels"]["cell_type"] = np.array([[0, 1, 0, 1, 0, 1, -1, -1]], np.int32)
    batch = Batch(**{name: packed[name] for name in infer.FIELDS})
    constants = bags.own_vocabulary(np.ones((1, 12), bool))
    made = cell_type.objective(module, model, {"mask_node_rate": 0.0}, [3, 3], mean="running")
    buffers = dict(made.init(jax.random.key(0), batch, constants))
    params = buffers.pop("params")
    own = {name: x for name, x in params.items() if name != "task"}
    inputs = module.prepare(batch, constants, jax.random.key(0), step=0, train=False, mask_node_rate=0.0)
    cells = np.asarray(model.apply({"params": own}, inputs).cells)[0, :6]

    def loss(mean, train):
        value, (_, changed) = made.loss(
            params, {**buffers, "task": {"mean": mean}}, batch, constants, jax.random.key(0), 0, train
        )
        return float(value), np.asarray(changed["task"]["mean"])

    here, moved = loss(np.ones(32), True)
    np.testing.assert_allclose(moved, 0.95 + 0.05 * cells.mean(0), rtol=1e-5)
    seen, kept = loss(cells.mean(0), False)
    assert here == pytest.approx(seen, rel=1e-5) and here != pytest.approx(loss(np.ones(32), False)[0], rel=1e-3)
    np.testing.assert_array_equal(kept, cells.mean(0))
    with pytest.raises(ValueError, match=r"task\.mean='x': must be one of start, running"):
        cell_type.objective(module, model, {}, [3, 3], mean="x")


def test_balanced_weighs_types_alike():
    module, model = little("embedder")
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (6, 12)).astype(np.float32))
    packed = bags.pack(counts, np.arange(6)[None], labels=["cell_type"])
    packed["labels"]["cell_type"] = np.array([[0, 0, 0, 0, 0, 1]], np.int32)
    batch = Batch(**{name: packed[name] for name in infer.FIELDS})
    constants = bags.own_vocabulary(np.ones((1, 12), bool))
    made = cell_type.objective(module, model, {"mask_node_rate": 0.0}, [5, 1], balanced=True)
    variables = dict(made.init(jax.random.key(0), batch, constants))
    params = variables.pop("params")
    params["task"]["linear_0"] = {"kernel": jnp.zeros((32, 2)), "bias": jnp.asarray([0.0, -1e9])}
    _, (metrics, _) = made.loss(params, variables, batch, constants, jax.random.key(0), 0, False)
    ratio = {name: float(metrics[name][0] / metrics[name][1]) for name in ("accuracy", "balanced_accuracy")}
    assert ratio == pytest.approx({"accuracy": 5 / 6, "balanced_accuracy": 0.5})


def test_a_head_alone_learns_the_types_and_leaves_the_model_as_it_was(table, frozen):
    (_, out, base), (tuned, row) = table, frozen
    assert row["accuracy"] > 0.6 and row["cells"] == 60 and row["types"] == 4
    there = checkpoint.restore(base / "checkpoints").state["params"]
    here = checkpoint.restore(tuned / "checkpoints").state["params"]
    task = here.pop("task")
    assert jax.tree.all(jax.tree.map(np.array_equal, there, here))
    assert np.abs(task["mean"]).max() > 0 and (np.abs(task["map"]).max(0) > 0).all()
    run = api.load(tuned)
    shares = run.annotate(out / "data/test.h5ad", say=lambda _: None)
    assert list(shares.columns) == [f"type{i}" for i in range(4)]
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    with pytest.raises(ValueError, match="no head for cell types"):
        api.load(base).annotate(out / "data/test.h5ad")


@pytest.mark.slow  # what factors learn and keep is in training/test_tune.py
def test_factors_do_not_lose_what_a_head_alone_knows(table, frozen):
    plan, out, base = table
    row = annotation.tune(plan, out, str(base), "lora", 0)
    assert row["accuracy"] > frozen[1]["accuracy"] - 0.1, (row, frozen[1])


def test_the_embeddings_that_a_head_sees_are_standardised(table, frozen):
    run = api.load(frozen[0])
    x = run.embed(table[1] / "data/train_0.h5ad", say=lambda _: None, sample_key=None)
    seen = np.asarray(cell_type.features(run.task, x))
    assert np.abs(seen.mean(0)).max() < 0.1 and 0.5 < (seen**2).sum(1).mean() < 2


def test_a_head_sees_components_of_like_deviation_and_no_rounding_errors():
    rng = np.random.default_rng(0)
    inner = np.linalg.qr(rng.normal(size=(300, 3)))[0] * [100.0, 10.0, 5.0]
    x = np.concatenate([inner @ rng.normal(size=(3, 8)), 7 + 1e-9 * rng.normal(size=(300, 2))], 1)
    mean, made = cell_type.whitening(x, 5)
    seen = np.asarray(cell_type.features({"mean": mean.astype(np.float32), "map": made.astype(np.float32)}, x))
    variances = np.cov(seen.T, ddof=0)
    even = np.diag(variances)
    assert np.abs(variances - np.diag(even)).max() < 1e-4 * even[0], "components are correlated"
    plain = np.linalg.svd((x - mean) / np.maximum(x.std(0), 1e-3 * np.sqrt((x**2).mean())))[1]
    np.testing.assert_allclose((even[:3] / even[0]), (plain[:3] / plain[0]) ** 0.5, rtol=1e-3)
    assert even[3:].max() < 1e-3 * even[0], "numbers without a difference are blown up"
    assert 0.8 < even.sum() <= 1.001
    few = cell_type.whitening(x[:4], 6)[1]
    assert few.shape == (10, 6) and np.isfinite(few).all() and not few[:, 4:].any()
    assert not np.isnan(cell_type.whitening(np.ones((5, 4)), 2)[1]).any()


@pytest.mark.slow
def test_cellplms_own_recipe_runs_and_leaves_its_norm_alone(table, tmp_path):
    _, out, base = table
    config = finetune_cellplm_annotation.get_config("tiny")
    changes = {"data.store": str(out / "data/store"), "init_from": str(base), "train.steps": 3, **LITTLE}
    config.update_from_flattened_dict(changes)
    train.pretrain(config, str(tmp_path / "run"))
    there = checkpoint.restore(base / "checkpoints").state["params"]
    here = checkpoint.restore(tmp_path / "run/checkpoints").state["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, there["pre_latent_norm"], here["pre_latent_norm"]))
    moved = {name: np.abs(here[name]["kernel"] - there[name]["kernel"]).max() for name in ("embed_linear",)}
    assert 0 < moved["embed_linear"] < 3 * 5e-4 * 1.01, "the embedder learns at a tenth of the rate"
    assert set(here["latent"]) == {"linear"}
    assert api.load(tmp_path / "run").model.head == "embedder"


def test_a_task_or_method_that_there_is_not_is_refused(table, tmp_path):
    _, out, base = table
    for change, words in {
        "task.name": "must be one of cell_type",
        "tune.start": "must be one of base, random",
        "init_from": "no checkpoint",
        "model_name": "a run of cellplm, not x",
    }.items():
        config = finetune_cell_type.get_config("frozen")
        given = {"data.store": str(out / "data/store"), "init_from": str(base), change: str(tmp_path / "x")}
        given[change] = "x" if change != "init_from" else given[change]
        config.update_from_flattened_dict(given)
        with pytest.raises((ValueError, OSError), match=words):
            train.pretrain(config, str(tmp_path / "run"))
    config = finetune_cell_type.get_config("frozen")
    with pytest.raises(ValueError, match="init_from is missing"):
        train.pretrain(config, str(tmp_path / "run"))


def test_an_update_has_as_many_cells_of_every_model_where_asked():
    alone, samples, fixed = bags.Rules(), bags.Rules(True, bag=64), bags.Rules("bag", bag=10)
    cases = (alone, 1, (1, 60)), (samples, 64, (60, 1)), (samples, 20, (20, 3)), (fixed, 10, (10, 6))
    for rules, bag, expected in cases:
        assert finetuning.equal_cells(60, rules, bag) == dict(zip(("bag", "batch"), expected, strict=True))
    for cells, rules in ((96, samples), (64, fixed), (5, fixed), (-1, alone)):
        with pytest.raises(ValueError, match=rf"tune\.batch_cells={cells}: .*give a multiple"):
            finetuning.equal_cells(cells, rules, rules.bag)
    run = suites.entrant("scemb", "run", bag=10, batch=2).run
    task = {"name": "cell_type", "label": "cell_type"}
    options = {"init_from": "x", "tune": {"method": "frozen", "batch_cells": 60}, "task": task, "data": {}}
    assert finetuning.resolve(options, run)["data"]["batch"] == 6
    options["tune"]["batch_cells"] = 0
    assert finetuning.resolve(options, run)["data"]["batch"] == 2


# ---------------------------------------------------------------------------------------------------------- scores


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(4), 300)
    classes = ["a", "b", "c", "d"]
    truth = [classes[i] for i in rng.integers(0, 3, 300)]  # nobody is a d, though some are taken for one
    found = cell_type.score(truth, shares, classes)
    predicted = [classes[i] for i in shares.argmax(1)]
    assert found["f1"] == pytest.approx(f1_score(truth, predicted, labels=["a", "b", "c"], average="macro"))
    with pytest.warns(UserWarning, match="y_pred"):
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    pairs = [
        np.mean(shares[np.array(truth) == c, i][:, None] > shares[np.array(truth) != c, i]) for i, c in enumerate("abc")
    ]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["types"] == 3
    matrix = cell_type.confusion(truth, shares, classes)
    assert matrix.sum() == 300 and matrix[3].sum() == 0 and np.trace(matrix) / 300 == pytest.approx(found["accuracy"])
    with pytest.raises(ValueError, match="true types e"):
        cell_type.score(["e"], shares[:1], classes)


def test_calibration_is_the_gap_between_confidence_and_accuracy():
    shares = np.array([[0.9, 0.1]] * 10)
    assert cell_type.calibration_error(np.array([0] * 9 + [1]), shares) == pytest.approx(0, abs=1e-9)
    assert cell_type.calibration_error(np.array([1] * 10), shares) == pytest.approx(0.9)
    mixed = np.array([[0.9, 0.1]] * 5 + [[0.6, 0.4]] * 5)
    assert cell_type.calibration_error(np.zeros(10, int), mixed) == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)


def test_baselines_know_types_that_differ_and_shares_add_up():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 2], 40)
    means = np.where(np.arange(50) < 25, 4.0, 0.5)
    counts = sp.csr_matrix(rng.poisson(np.where(y[:, None] == 0, means, means[::-1])).astype(np.float32))
    for name, classify in annotation_baselines.BASELINES.items():
        shares = classify(counts[::2], y[::2], counts[1::2], 3, 0)
        np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
        assert (shares[:, 1] == 0).all(), "a type that nobody has"
        assert (shares.argmax(1) == y[1::2]).mean() == (0.5 if name == "most common type" else 1.0)


# ------------------------------------------------------------------------------------------------------- the table


def test_a_table_goes_on_where_it_stopped_and_another_plan_is_refused(table, frozen, tmp_path, monkeypatch):
    plan, out, base = table[0], tmp_path / "table", table[2]
    shutil.copytree(table[1], out, ignore=shutil.ignore_patterns("*_lora_*"))  # of a test that may have come before
    monkeypatch.setattr(annotation.train, "pretrain", lambda *_: pytest.fail("trained again"))
    classes = annotation.prepare(plan, out)
    for name in annotation_baselines.BASELINES:
        annotation.baseline(plan, out, name, 0, classes)
    assert annotation.tune(plan, out, str(base), "frozen", 0) == frozen[1]
    text = annotation_table.write(out)
    assert "| cellplm, frozen | " in text and "| 5-NN on PCA-50 | " in text and "60 cells annotated" in text
    written = json.loads((out / "annotation.json").read_text())
    assert [row["model"] for row in written["rows"]] == ["cellplm", *annotation_baselines.BASELINES]
    assert (out / "confusion_cellplm_frozen.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "annotation.csv").read_text().splitlines()) == 5
    with pytest.raises(ValueError, match="another steps"):
        annotation.prepare(dataclasses.replace(plan, steps=7), out)


def test_held_out_donors_are_annotated_and_not_trained_on(files, tmp_path):
    donors = sorted(set(anndata.read_h5ad(files[0]).obs["donor"]))
    plan = annotation.Plan(
        (str(files[0]),), None, ("donor", (donors[0],)), "cell_type", "cell_type", {"type3": "-"}, 12, 5, 0.5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", anndata.ImplicitModificationWarning)
        classes = annotation.prepare(plan, tmp_path, say=lambda _: None)
    known, new = (anndata.read_h5ad(tmp_path / f"data/{name}.h5ad") for name in ("train_0", "test"))
    assert set(new.obs["donor"]) == {donors[0]} and donors[0] not in set(known.obs["donor"])
    assert classes == ["type0", "type1", "type2"] and new.n_obs <= 12 and "type3" not in set(known.obs["cell_type"])


def test_what_is_missing_stays_missing_and_is_no_class(files, tmp_path):
    cells = anndata.read_h5ad(files[0])
    donor = cells.obs["donor"].astype(object).to_numpy(copy=True)
    label = cells.obs["cell_type"].astype(object).to_numpy(copy=True)
    donor[:5], label[3:9] = None, None
    cells.obs["donor"], cells.obs["cell_type"] = pd.Categorical(donor), pd.Categorical(label)
    cells.obs["batch"] = np.nan
    cells.write_h5ad(tmp_path / "x.h5ad")
    known = annotation.read(str(tmp_path / "x.h5ad"), "cell_type", {})
    assert known.n_obs == cells.n_obs - 6 and set(known.obs["cell_type"]) == set(label) - {None}
    assert known.obs["donor"].isna().sum() == 3 and set(known.obs["donor"].dropna()) == set(donor) - {None}
    assert known.obs["batch"].isna().all()
    held = sorted(set(donor) - {None})[0]
    plan = (str(tmp_path / "x.h5ad"),), None, ("donor", (held,)), "cell_type", "cell_type", {}, 0, 5, 0.5
    classes = annotation.prepare(annotation.Plan(*plan), tmp_path / "out", say=lambda _: None)
    assert classes == sorted(set(label) - {None})
    stored = open_store(tmp_path / "out/data/store").study("train_0").obs
    assert stored["donor"].isna().sum() == 3 and not {"nan", held} & set(stored["donor"])
