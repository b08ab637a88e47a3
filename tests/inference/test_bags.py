"""One rule for which cells are seen together and which constants are complete, whichever command reads the cells."""

import ast
import dataclasses
import functools
import pathlib
import tempfile
import types

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from configs import finetune_cell_type, finetune_pretraining
from data_pipeline import synthetic
from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from data_pipeline.store.ingest import file_sources, ingest
from experiments import train
from experiments.analyses import cells as model_cells
from experiments.analyses import class_token, gene_clusters, perturbation, prediction, transfer
from experiments.suite import entrants
from experiments.suite import tuning as suite_tuning
from scfm_jax import api, models
from scfm_jax.api import cells as file_cells
from scfm_jax.inference import bags
from scfm_jax.tasks.imputation import bins, imputation
from scfm_jax.tasks.imputation.imputer import Imputer
from tests.harness import ROOT

SAID = "mean, scale are taken of these cells"
V = 120


@functools.cache
def study():
    """Return cells of four types, half of them treated."""
    cells = synthetic.make(60, V, depth=2000.0)
    cells.obs["tissue"] = cells.obs["cell_type"].astype(str).to_numpy()
    cells.obs["condition"] = np.where(np.arange(60) % 2, "control", "treated")
    return cells


def genes() -> list[str]:
    """Return the names of the genes in the model."""
    return list(study().var["ensembl_id"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> pathlib.Path:
    """Exported weights without a scaler."""
    path = tmp_path_factory.mktemp("weights") / "bare.safetensors"
    made().export(path)
    return path


def made() -> api.Run:
    """Return a tiny Exceiver of random weights, with a class token and a head for types, that lacks its scaler."""
    config = models.options("exceiver", "tiny")
    config |= {"data": {"bag": 1, "batch": 16, "labels": ["tissue"]}, "task": {"name": "cell_type"}}
    names = [f"type{i}" for i in range(4)]
    meta = {"model": "exceiver", "config": config, "genes": genes(), "step": 0}
    meta["classes"] = {"tissue": names, "cell_type": names}
    run = api.build(meta, {"params": {}}, {}, "a test").twin(3)
    width, rng = run.model.query_len * run.model.query_dim, np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(width, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}
    return dataclasses.replace(run, task={"linear_0": head})


def with_scaler(run: api.Run, counts: np.ndarray) -> api.Run:
    """Return the run with the mean and deviation of log1p of counts per 10,000, straight from their definition."""
    logs = np.log1p(np.asarray(counts, np.float64) * 1e4 / np.maximum(counts.sum(1, keepdims=True), 1e-9))
    deviation = logs.std(0)
    scaler = {"mean": logs.mean(0), "scale": np.where(deviation > 1e-12, deviation, 1)}
    scaler["expressed"] = logs.sum(0) / np.maximum((logs > 0).sum(0), 1)
    return dataclasses.replace(run, constants={name: x.astype(np.float32) for name, x in scaler.items()})


def problem() -> imputation.Problem:
    """Return a problem of two bags, a third of its entries hidden."""
    counts = study().X.toarray()
    hidden = np.random.default_rng(0).random(counts.shape) < 0.3
    return imputation.pose(counts, np.ones(V, bool), hidden, [np.arange(30), np.arange(30, 60)])


def impute(run: api.Run, say) -> np.ndarray:
    """Impute by a run."""
    posed = problem()
    imputer = Imputer(run.module, run.model, run.meta["config"], run.constants, say)
    return imputer(run.variables, posed, bins.fit(posed.counts, posed.depth))


def perturb(run: api.Run, say) -> list[dict]:
    """Delete and score one gene."""
    how = {"how": "delete", "cells": 20, "null": 5, "column": "condition", "control": "control"}
    found = perturbation.evaluate(run, study(), targets=[("treated", genes()[0])], say=say, **how)
    return [row for row in found["rows"] if row["method"] == run.name]


def transferred(run: api.Run, say) -> dict:
    """Return what both starts of a transfer share."""
    return transfer._prepared(run, model_cells.read(run, study(), say=say), 0, None, 0.3)["constants"]


def clustered(run: api.Run, say) -> np.ndarray:
    """Return the vectors that genes are clustered by."""
    data = model_cells.read(run, study(), say=lambda _: None)
    return gene_clusters._means(run, study(), data, np.arange(V), 60, 0, (), {}, say)


class OfASuite:
    """The cells as a study of a suite."""

    name = "s"

    def onto(self, genes, second_names):
        """Return the model's place of each gene."""
        return vocab.map_genes(genes, genes)

    def draw(self, seed, cells):
        """Return all rows."""
        return np.arange(60)

    def take(self, rows, mapping, genes):
        """Return cells under the names of the model."""
        cells = study()[rows].copy()
        cells.var = cells.var[[]].set_axis(list(genes))
        return cells


def suite_embedding(run: api.Run, say) -> np.ndarray:
    """Embed in a suite."""
    return entrants.Entrant("a", "a", run).embed(OfASuite(), 0, 60, False)


def suite_tuned(run: api.Run, say) -> dict:
    """Fine-tune for an update on what is visible, as a suite does, and return the weights."""
    return suite_tuning.fine_tune(run, problem(), 0, steps=2, learning_rate=1e-2, changes={}).variables["params"]


def predicted(run: api.Run, say) -> np.ndarray:
    """Name types by the neighbours of cells in two files."""
    how = {"label": "cell_type", "neighbours": 3, "say": say, "min_mapped": None}
    with tempfile.TemporaryDirectory() as folder:
        study().write_h5ad(f"{folder}/a.h5ad")
        return prediction.by_neighbours(run, f"{folder}/a.h5ad", [f"{folder}/a.h5ad"], **how)[0].to_numpy()


DOORS = {
    "embed": lambda run, say: run.embed(study(), say=say),
    "annotate": lambda run, say: run.annotate(study(), say=say).to_numpy(),
    "predict": predicted,
    "gene_representations": lambda run, say: run.gene_representations(study(), say=say).mean("cell_type").values,
    "impute": impute,
    "perturb": perturb,
    "class_token": lambda run, say: class_token.evaluate(run, [study()], seeds=1, say=say)["rows"][:1],
    "gene_clusters": clustered,
    "transfer": transferred,
    "suite: embed": suite_embedding,
    "suite: fine-tuning": suite_tuned,
}
VISIBLE = ("impute", "suite: fine-tuning")
"""Doors that are given the visible counts alone."""
RUNS = ("run", "base", "entrant.run", "self.run")
SILENT = ("transfer", "suite: embed", "suite: fine-tuning")
"""Doors that say nothing: transfer always takes the scaler of the new study; a suite keeps a table."""


def numbers(found) -> np.ndarray:
    """Return all numbers of nested rows, one after the other."""
    return np.concatenate([np.ravel(x).astype(np.float64) for x in jax.tree.leaves(found) if not isinstance(x, str)])


SLOW = ("class_token", "perturb", "suite: fine-tuning")


@pytest.mark.parametrize("door", [pytest.param(d, marks=pytest.mark.slow) if d in SLOW else d for d in DOORS])
def test_a_run_without_its_scaler_is_one_with_the_scaler_of_the_cells_at_hand(door, weights):
    said, run = [], api.load(weights)
    counts = problem().counts if door in VISIBLE else study().X.toarray()
    found = numbers(DOORS[door](run, said.append))
    expected = numbers(DOORS[door](with_scaler(run, counts), lambda _: None))
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    assert sum(SAID in line for line in map(str, said)) == (door not in SILENT) + (door == "predict")


def test_each_file_has_its_own_scaler_where_asked(weights, tmp_path):
    trained = with_scaler(api.load(weights), study().X.toarray() ** 2)
    per_split = {f"val_{name}": x + 1 for name, x in trained.constants.items()}
    dataclasses.replace(trained, constants=trained.constants | per_split).export(tmp_path / "trained.safetensors")
    asked = {name: api.load(tmp_path / "trained.safetensors", scaler=name) for name in ("training", "file")}
    quiet = {"say": lambda _: None}
    found = {name: run.embed(study(), **quiet) for name, run in asked.items()}
    np.testing.assert_array_equal(found["file"], api.load(weights).embed(study(), **quiet))
    np.testing.assert_array_equal(found["training"], trained.embed(study(), **quiet))
    assert np.abs(found["file"] - found["training"]).max() > 0.1
    with pytest.raises(ValueError, match="scaler='x': must be one of training, file"):
        api.load(weights, scaler="x")


@pytest.mark.slow  # that tuning completes constants is also kept by the door "suite: fine-tuning"
@pytest.mark.parametrize("config", ["pretraining", "cell_type"])
def test_fine_tuning_begins_with_the_scaler_of_its_cells_and_keeps_it(config, tmp_path, capsys):
    study().write_h5ad(tmp_path / "cells.h5ad")
    assert not ingest(file_sources([str(tmp_path / "cells.h5ad")]), tmp_path / "store", workers=0, say=lambda _: None)
    run = dataclasses.replace(made(), task=None)
    other, states = with_scaler(run, study().X.toarray() ** 2), {}
    for name, start in (("bare", run), ("whole", with_scaler(run, study().X.toarray())), ("other", other)):
        start.export(tmp_path / f"{name}.safetensors")
        options = (finetune_pretraining if config == "pretraining" else finetune_cell_type).get_config("lora")
        options.init_from = str(tmp_path / f"{name}.safetensors")
        options.tune.scaler = "file" if name == "other" else "training"
        options.data.update({"store": str(tmp_path / "store"), "buckets": (128,)})
        options.data.split = {"by": "cell", "val": 0.0, "test": 0.0, "seed": 0}
        options.train.update({"steps": 2, "log_every": 0, "eval_every": 0, "checkpoint_every": 0, "tensorboard": False})
        states[name] = train.pretrain(options, str(tmp_path / name))
        assert (SAID in capsys.readouterr().out) == (name != "whole")
    for part in ("constants", "params"):
        one, two, three = (numbers(getattr(states[name], part)) for name in ("bare", "whole", "other"))
        np.testing.assert_array_equal(one, three)
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-4)
    for name in ("bare", "other"):  # of another file the scaler stays the same
        tuned = api.load(tmp_path / name / "tuned.safetensors")
        np.testing.assert_array_equal(tuned.constants["mean"], np.asarray(states[name].constants["mean"]))


def test_a_model_does_not_make_up_constants_that_are_missing():
    module, batch = models.get("exceiver"), bags.pack(study().X, np.arange(60)[:, None])
    batch = jax.tree.map(np.asarray, {name: value for name, value in batch.items() if name != "index"})
    with pytest.raises(ValueError, match="constants: no mean, scale of the genes"):
        module.prepare(
            types.SimpleNamespace(**batch),
            bags.own_vocabulary(np.ones((1, V), bool)),
            jax.random.key(0),
            step=0,
            train=False,
        )


def test_whoever_reads_the_constants_of_a_run_completes_them():
    """Elsewhere they are completed: by `Imputer`, `bags.refitted` or `TrainingData.complete`; or hashed, or named."""
    completing = {"analyses/networks", "suite/counts", "suite/keys", "training/data", "training/finetuning"}
    completing |= {f"analyses/{name}" for name in ("imputation", "shared_bins", "transfer")}
    places = set()
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "constants" and ast.unparse(node.value) in RUNS:
                places.add(path.relative_to(ROOT / "experiments").with_suffix("").as_posix())
    assert places == completing


def test_what_a_model_says_of_bags_and_constants_is_read_in_one_place():
    names = {"SAMPLE", "BATCH", "FITTED"}
    for path in sorted(p for package in ("scfm_jax", "experiments", "configs") for p in (ROOT / package).rglob("*.py")):
        if path == ROOT / "scfm_jax/inference/bags.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            read = isinstance(node, ast.Attribute) and node.attr in names and "module" in ast.unparse(node.value)
            asked = isinstance(node, ast.Call) and any(
                isinstance(a, ast.Constant) and a.value in names for a in node.args
            )
            assert not read and not asked, f"{path}:{node.lineno} {ast.unparse(node)}"


@pytest.mark.parametrize("name", models.names())
def test_rules_are_those_of_the_model_and_the_run(name):
    module = models.get(name)
    rules, trained = (bags.rules(module, config) for config in ({}, {"data": {"bag": 7}}))
    together = {"cellplm": True, "sct": "bag"}.get(name, False)
    assert rules.together == trained.together == together
    assert rules.bag == (bags.BAG if together else 1) and trained.bag == 7
    assert trained.fixed_bag == (7 if name == "sct" else None)
    assert rules.cells == {"sclong": 16}.get(name, bags.CELLS)


def test_batches_hold_every_row_once_and_groups_stay_apart():
    groups = bags.by_code(np.array([1, 0, 1, 1, 0, 1, 1]))
    apart = bags.Rules(False, cells=3).batches(groups)
    assert [index.shape for index in apart] == [(3, 1)] * 3
    assert [int(i) for index in apart for i in index.ravel()] == [1, 4, 0, 2, 3, 5, 6, -1, -1]
    whole = bags.Rules(True).batches(groups)
    assert [index.shape for index in whole] == [(1, 64)] * 2 and list(whole[0][0, :3]) == [1, 4, -1]
    rules = bags.Rules("bag", bag=2)
    cut = rules.batches(rules.cut(groups))
    assert [index.tolist() for index in cut] == [[[1, 4]], [[0, 2]], [[3, 5]], [[6, -1]]]
    assert rules.index(np.arange(3)).shape == (1, 3)  # a bag that was asked for is not cut


def test_tiles_hold_every_cell_once_and_begin_in_their_middle():
    coords = np.random.default_rng(0).random((430, 2)) * [2, 1]
    rows = np.arange(430)[::-1]
    parts = bags.tiles(rows, coords, 9)
    assert sorted(np.concatenate(parts)) == list(range(430)) and {len(part) for part in parts} == {47, 48}
    for part in parts:
        assert np.ptp(coords[part], 0).prod() < 0.6
        middle, first = coords[part].mean(0), coords[part[0]]
        assert np.linalg.norm(first - middle) == np.linalg.norm(coords[part] - middle, axis=1).min()
        assert (np.diff(np.linalg.norm(coords[part] - first, axis=1)) >= 0).all()


def test_measurements_name_no_samples():
    obs = pd.DataFrame({"batch": [0.5, 1.0, 2.0], "lane": [1.0, 2.0, 1.0]})
    parts, how = bags.samples(obs, "auto", 10, 0)
    assert [part.tolist() for part in parts] == [[0, 1, 2]] and 'obs["batch"] holds measurements' in how
    with pytest.raises(ValueError, match="sample_key=batch: this obs column holds measurements"):
        bags.samples(obs, "batch", 10, 0)
    assert [part.tolist() for part in bags.samples(obs, "lane", 10, 0)[0]] == [[0, 2], [1]]


def test_a_negative_value_is_refused_where_cells_are_packed():
    counts = sparse.csr_matrix(np.array([[0.0, -1.5, 2.0]], np.float32))
    with pytest.raises(ValueError, match=r"counts: -1.5: .* 0 or more; below that scLong reads its mask"):
        bags.pack(counts, np.zeros((1, 1), int))


def test_a_file_says_what_its_batches_measured_and_where_cells_lie_in_their_field():
    cells = study().copy()
    names = np.where(np.arange(60) < 20, "a", "b")
    cells.obs["batch"] = names
    cells.obsm["spatial"] = np.random.default_rng(0).random((60, 2)) * 90
    cells.var["measured_a"] = np.arange(V) % 2 == 0
    with h5ad.read_counts(cells) as counts:
        mapping, rules = vocab.onto(counts, genes()), bags.Rules(together=True)
        per_cell, measured = file_cells.of_file(counts, mapping, V, rules, "batch")
    assert measured.sum(1).tolist() == [V, V // 2] and (per_cell["panel"] == (names == "a")).all()
    for name in "ab":
        rows = per_cell["field_coords"][names == name]
        assert rows.min(0).tolist() == [0, 0] and rows.max(0).tolist() == [1, 1]
    three = {name: values[18:21] for name, values in per_cell.items()}
    packed = bags.pack(sparse.csr_matrix((3, V)), np.array([[0, 1, 2, -1]]), **three)
    assert packed["panel"].tolist() == [[1, 1, 0, 0]] and np.isnan(packed["field_coords"][0, 3]).all()
    np.testing.assert_array_equal(packed["field_coords"][0, :3], per_cell["field_coords"][18:21])
