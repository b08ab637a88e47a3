"""Embeddings: of a cell alone or with its sample and nothing else, whole or in parts, on any mesh, from any file."""

import dataclasses
import itertools
import json
import subprocess
import sys
import textwrap
import types

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn
from scipy import sparse

from data_pipeline.files import h5ad
from experiments import train
from experiments.analyses import cells as model_cells
from experiments.training import data as training_data
from scfm_jax import api, models
from scfm_jax.inference import bags
from scfm_jax.saving import checkpoint, weights
from scfm_jax.saving.published import torch_state
from scfm_jax.tasks.cells import embedding as task
from scfm_jax.types import Outputs
from tests.conftest import SHARED, needs_shared
from tests.harness import ROOT, commands

GENES = [f"GENE{i}" for i in range(60)]
CONFIG = {
    "enc_hid": 16,
    "enc_layers": 1,
    "enc_head": 2,
    "latent_dim": 8,
    "num_clusters": 4,
    "dec_hid": 16,
    "dec_layers": 2,
}
QUIET = {"say": lambda _: None}


def cells(n: int = 90, seed: int = 0, batches: int = 2) -> anndata.AnnData:
    """Return cells of three types with their own genes, the last one without any count."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    rate = np.where(np.arange(60) // 20 == kind[:, None], 3.0, 0.3)
    counts = rng.poisson(rate)
    counts[-1] = 0
    obs = {"cell_type": [f"type {k}" for k in kind], "batch": [f"b{b}" for b in rng.integers(0, batches, n)]}
    index = [f"cell{i}" for i in range(n)]
    return anndata.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32), pd.DataFrame(obs, index), pd.DataFrame(index=GENES)
    )


def make_run(**model) -> api.Run:
    """Return a small CellPLM with random weights."""
    module = models.get("cellplm")
    fields = models.defaults(module, "model") | module.VARIANTS["tiny"]["model"] | CONFIG | model
    config = {"model": fields, "inputs": {}, "loss": {}, "data": {"labels": ["batch"]}}
    meta = {"model": "cellplm", "config": config, "genes": GENES, "classes": {"batch": ["x", "y"]}, "step": 3}
    return api.build(meta, {}, {}, "a test").twin(0)


class Alone(nn.Module):
    """A model that looks at one cell at a time, by the contract of model files."""

    @nn.compact
    def __call__(self, inputs, train=False):
        return Outputs(cells=nn.Dense(5)(inputs))


def alone() -> api.Run:
    """Return a run of a model of single cells."""

    def prepare(batch, constants, rng, *, step, train):
        slots = constants["slots"][batch.genes]
        dense = jax.nn.one_hot(slots, len(GENES)) * jnp.log1p(batch.counts)[..., None]
        return dense.sum(2)

    module = types.ModuleType("alone")
    module.prepare = prepare
    meta = {"model": "alone", "config": {"model": {}, "inputs": {}}, "genes": GENES, "step": 0}
    return api.Run(module, Alone(), {}, {}, meta, "a test").twin(0)


class Crowd(nn.Module):
    """A model whose cells are where their bag is: the middle of it, and its first cell."""

    @nn.compact
    def __call__(self, inputs, train=False):
        here = jnp.nan_to_num(inputs["coords"])
        middle = here.sum(1, keepdims=True) / inputs["mask"].sum(1)[:, None, None]
        cells = jnp.broadcast_to(jnp.concatenate([middle, here[:, :1]], -1), (*here.shape[:2], 4))
        return Outputs(cells=cells, genes=jnp.broadcast_to(cells[:, :, None], (*here.shape[:2], len(GENES), 4)))


def crowd(**data) -> api.Run:
    """Return a run of a model that sees bags, trained with these data options."""
    module = types.ModuleType("crowd")
    module.SAMPLE = "bag"
    module.prepare = lambda batch, *_, **__: {"coords": batch.coords, "mask": batch.cell_mask}
    meta = {"model": "crowd", "config": {"model": {}, "inputs": {}, "data": data}, "genes": GENES, "step": 0}
    return api.Run(module, Crowd(), {"params": {}}, {}, meta, "a test")


@pytest.fixture(scope="module")
def run() -> api.Run:
    return make_run()


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return cells()


def test_every_cell_has_a_finite_embedding_even_an_empty_one(run, adata):
    embedding = run.embed(adata, **QUIET)
    assert embedding.shape == (90, 8) and embedding.dtype == np.float32 and np.isfinite(embedding).all()
    assert (run.embed(adata, **QUIET) == embedding).all()


def test_a_cell_sees_its_sample_and_nothing_else(run, adata):
    together = run.embed(adata, **QUIET)
    for name in ("b0", "b1"):
        rows = (adata.obs["batch"] == name).to_numpy()
        np.testing.assert_allclose(run.embed(adata[rows], **QUIET), together[rows], rtol=1e-4, atol=1e-5)
    assert np.abs(run.embed(adata, sample_key=None, **QUIET) - together).max() > 1e-4
    assert run.provenance["sample"] == "the whole file is one sample"


def test_order_of_cells_and_of_genes_does_not_matter(run, adata):
    embedding = run.embed(adata, **QUIET)
    rng = np.random.default_rng(1)
    order, genes = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    np.testing.assert_allclose(run.embed(adata[order][:, genes], **QUIET), embedding[order], rtol=1e-4, atol=1e-5)


def test_large_samples_are_cut_at_random_and_say_so(run, adata):
    embedding = run.embed(adata, sample_key=None, max_cells=40, **QUIET)
    assert np.isfinite(embedding).all()
    assert "1 of more than 40 cells cut into random parts of equal size (seed 0)" in run.provenance["sample"]
    parts, _ = bags.samples(adata.obs, None, 40, 0)
    assert sorted(map(len, parts)) == [30, 30, 30] and sorted(np.concatenate(parts)) == list(range(90))
    part = run.embed(adata[parts[1]], sample_key=None, **QUIET)
    np.testing.assert_allclose(part, embedding[parts[1]], rtol=1e-4, atol=1e-5)


def test_a_run_trained_on_neighbours_sees_neighbours_of_the_same_sample():
    adata = cells(7)
    adata.obs["batch"] = list("aaaaabb")
    adata.obsm["spatial"] = np.array([[10, 0], [0, 0], [13, 0], [1, 0], [11, 0], [5, 2], [5, 0]], np.float32)
    run, bags_there = crowd(bag=3, kind="neighbours"), [[1, 3], [0, 2, 4], [5, 6]]
    first, middle = {1: 1, 0: 4, 5: 5}, {1: [0.5, 0], 0: [34 / 3, 0], 5: [5, 1]}
    embedding = run.embed(adata, **QUIET)
    streamed = np.concatenate([values[:, 0] for _, values in run.gene_representations(adata, **QUIET)])
    for rows in bags_there:
        expected = [*middle[rows[0]], *adata.obsm["spatial"][first[rows[0]]]]
        np.testing.assert_allclose(embedding[rows], [expected] * len(rows), rtol=1e-6)
        assert np.isclose(streamed, expected).all(1).sum() == len(rows)
    assert "1 of more than 3 cells cut into tiles of neighbours" in run.provenance["sample"]
    adata.obsm["spatial"][6, 0] = np.nan  # that sample, and a run trained on other bags, are cut at random
    run.embed(adata, max_cells=1, **QUIET)
    assert "1 of more than 1 cells cut into tiles" in run.provenance["sample"]
    assert "1 of more than 1 cells cut into random parts" in run.provenance["sample"]
    plain = crowd(bag=3, kind="run")
    plain.embed(adata, **QUIET)
    assert "1 of more than 3 cells cut into random parts" in plain.provenance["sample"]
    del adata.obsm["spatial"]
    how = bags.seen_together(run.rules, adata.obs, "batch", 9, 0)[1]
    assert "trained on neighbours, but the file has no positions" in how


def test_rare_genes_of_a_file_are_zeroed_as_those_of_the_training_studies_were(adata):
    counts = adata.X.toarray()
    counts[:9] = 0  # of 90 cells, 80 have counts: the last one is empty, too
    counts[:, :2] = 0
    counts[20:24, 0], counts[20:23, 1] = 1, 1  # 4 and 3, and 0.05 x 80 = 4
    file = anndata.AnnData(sparse.csr_matrix(counts), adata.obs, adata.var)
    counts[:, 1] = 0
    without = anndata.AnnData(sparse.csr_matrix(counts), adata.obs, adata.var)
    run = alone()
    plain, expected = run.embed(file, **QUIET), run.embed(without, **QUIET)
    run.meta["min_gene_fraction"] = 0.05
    np.testing.assert_array_equal(run.embed(file, **QUIET), expected)
    assert (np.abs(plain - expected).max(1) > 0).nonzero()[0].tolist() == [20, 21, 22]
    assert "1 genes with fewer counts than 0.05 times the cells are zeroed" in str(run.mapping.report)
    with h5ad.read_counts(file) as opened:
        read = model_cells.Cells(opened, GENES, None, 0.0, run.gene_fraction)
        np.testing.assert_array_equal(read.take(np.arange(90)), counts)
        assert read.measured.all()


def test_a_run_knows_the_gene_rule_that_its_store_was_made_by(capsys):
    def recorded(**fractions):
        studies = {
            name: types.SimpleNamespace(record={"name": name, "settings": {"min_gene_fraction": value}})
            for name, value in fractions.items()
        }
        store = types.SimpleNamespace(studies=list(studies), study=studies.get, manifest={"crc32c": ""})
        data = training_data.TrainingData(store, {}, GENES, [], np.arange(61), {}, {})
        loader = types.SimpleNamespace(classes={}, split_report={})
        options = {"model_name": "alone", "model": {}}
        return train.describe(options, types.SimpleNamespace(SIZES={}), data, loader)["min_gene_fraction"]

    assert recorded(a=0.003, b=0.003) == 0.003 and recorded(a=None, b=0.0) is None and not capsys.readouterr().out
    assert recorded(a=0.003, b=None) is None and "(a 0.003, b None)" in capsys.readouterr().out


def test_a_model_of_single_cells_does_not_depend_on_chunks(adata, monkeypatch):
    run = alone()
    embedding = run.embed(adata, **QUIET)
    monkeypatch.setattr(run.module, "BATCH", 7, raising=False)
    np.testing.assert_allclose(run.embed(adata, **QUIET), embedding, rtol=1e-5, atol=1e-6)
    one = run.embed(adata[5:6], **QUIET)
    np.testing.assert_allclose(one, embedding[5:6], rtol=1e-5, atol=1e-6)
    assert run.provenance["sample"] == "every cell is embedded by itself"


def test_cells_of_like_length_are_given_together_where_they_were_in_training(adata, monkeypatch):
    run, widths, pack = alone(), [], bags.pack
    run.module.BATCH = 8
    monkeypatch.setattr(api.run, "WINDOW", 2)
    monkeypatch.setattr(bags, "GENES_SIZE", 8)
    monkeypatch.setattr(bags, "pack", lambda *a, **k: widths.append((b := pack(*a, **k))["genes"].shape[-1]) or b)
    plain = run.embed(adata, **QUIET)
    before, widths[:] = list(widths), []
    run.meta["config"] = {**run.meta["config"], "data": {**run.meta["config"].get("data", {}), "by_length": True}}
    np.testing.assert_allclose(run.embed(adata, **QUIET), plain, rtol=1e-4, atol=1e-5)
    assert len(widths) == len(before) and sum(widths) < sum(before) and widths[:2] == sorted(widths[:2])


def test_a_file_gives_what_memory_gives(run, adata, tmp_path):
    adata.write_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(run.embed(tmp_path / "x.h5ad", **QUIET), run.embed(adata, **QUIET))


def test_packing_drops_nothing():
    counts = cells(20).X
    index = np.full((2, 16), -1)
    index[0, :12], index[1, :8] = np.arange(12), np.arange(12, 20)
    batch = bags.pack(sparse.csr_matrix(counts), index, labels=["batch"])
    dense = np.zeros((2, 16, 61))
    np.add.at(dense, (*np.indices(batch["genes"].shape)[:2], batch["genes"]), batch["counts"])
    assert (dense[..., :60][index >= 0] == counts.toarray()).all() and not dense[..., 60].any()
    assert (batch["cell_mask"] == (index >= 0)).all() and (batch["labels"]["batch"] == -1).all()


def test_sizes_grow_by_a_half_at_most():
    sizes = sorted({bags.size_up(n, 64) for n in range(1, 5000)})
    assert sizes[0] == 64 and all(b / a <= 1.5 for a, b in itertools.pairwise(sizes))
    assert all(bags.size_up(n, 64) >= n for n in range(1, 5000))


def test_saved_weights_embed_the_same(run, adata, tmp_path):
    embedding = run.embed(adata, **QUIET)
    run.export(tmp_path / "weights.safetensors")
    loaded = api.load(tmp_path / "weights.safetensors")
    assert loaded.genes == GENES and loaded.classes == {"batch": ["x", "y"]} and loaded.config.model.enc_hid == 16
    np.testing.assert_array_equal(loaded.embed(adata, **QUIET), embedding)
    state = {"params": run.variables["params"], "buffers": {}, "constants": {}, "step": np.int32(3)}
    checkpoint.save(tmp_path / "w" / "checkpoints", 3, state, run.meta)
    for path in ("w", "w/checkpoints", "w/checkpoints/3"):
        np.testing.assert_array_equal(api.load(tmp_path / path).embed(adata, **QUIET), embedding)
    average = jax.tree.map(lambda x: 0 * x, state["params"])
    checkpoint.save(tmp_path / "w" / "checkpoints", 4, state | {"ema": average}, run.meta, best={"value": 1})
    assert np.abs(api.load(tmp_path / "w").embed(adata, **QUIET) - embedding).max() > 1e-3
    assert "step 4" in api.load(tmp_path / "w", "best").source and "step 3" in api.load(tmp_path / "w", 3).source


def test_the_best_step_is_never_another_one(run, tmp_path):
    state = {"params": run.variables["params"], "buffers": {}, "constants": {}}
    checkpoint.save(tmp_path / "checkpoints", 3, state, run.meta)
    with pytest.raises(ValueError, match="this run was not validated"):
        api.load(tmp_path, "best")
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        api.load(tmp_path / "nowhere", "best")
    checkpoint.save(tmp_path / "checkpoints", 4, state, run.meta, best={"metric": "val/loss", "value": 1})
    checkpoint.save(tmp_path / "checkpoints", 5, state, run.meta)
    meta = tmp_path / "checkpoints/4/meta.json"
    meta.write_text(meta.read_text().replace("val/loss", "val/lass"))
    with pytest.raises(ValueError, match=r"step 4: meta.json does not match its checksum"):
        api.load(tmp_path, "best")
    assert "step 5" in api.load(tmp_path).source
    run.export(tmp_path / "weights.safetensors")
    for path in (tmp_path / "weights.safetensors", tmp_path / "checkpoints/5"):
        with pytest.raises(ValueError, match="step=best"):
            api.load(path, "best")
    assert "step 5" in api.load(tmp_path / "checkpoints/5", 5).source


@pytest.mark.parametrize("lacking", ["model", "config", "genes"])
def test_weights_whose_metadata_lack_an_entry_are_one_line(lacking, run, tmp_path):
    meta = {key: value for key, value in run.meta.items() if key != lacking}
    weights.export(tmp_path / "w.safetensors", {"variables": run.variables, "constants": {}}, meta)
    with pytest.raises(ValueError, match=f"w.safetensors.*no entry '{lacking}'") as error:
        api.load(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


@needs_shared
def test_published_weights_embed_as_the_original_did(tmp_path, monkeypatch):
    case = SHARED / "golden" / "cellplm" / "embed_vae_eval"
    arrays, about = np.load(case / "arrays.npz"), json.loads((case / "case.json").read_text())
    state = {name.removeprefix("param/"): arrays[name] for name in arrays if name.startswith("param/")}
    monkeypatch.setattr(torch_state, "read", lambda path: state)  # of the file; it would need torch
    genes = [f"ENSG{i:011}" for i in range(about["config"]["n_genes"])]
    (tmp_path / "config.json").write_text(json.dumps(about["config"] | {"gene_list": genes}))
    run = api.from_published("cellplm", tmp_path / "weights.ckpt", tmp_path / "config.json")
    names = pd.DataFrame(index=[genes[i] for i in arrays["in/gene_idx"]])
    embedding = run.embed(anndata.AnnData(sparse.csr_matrix(arrays["in/x"]), var=names), **QUIET)
    np.testing.assert_allclose(embedding, arrays["out/latent"], rtol=2e-4, atol=2e-5)
    with pytest.raises(ValueError, match="there are cellplm"):
        api.from_published("cellpml", tmp_path / "weights.ckpt", tmp_path / "config.json")


def test_twins_have_the_same_shapes_and_other_numbers(run):
    one, two = run.twin(1), run.twin(2)
    assert jax.tree.map(jnp.shape, one.variables) == jax.tree.map(jnp.shape, run.variables)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), one.variables["params"], two.variables["params"])
    assert any(jax.tree.leaves(different))


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"sample_key": "slide"}, ValueError, "sample_key=slide: no such obs column; there are cell_type, batch"),
        ({"max_cells": 0}, ValueError, "max_cells=0"),
        ({"layer": "counts"}, ValueError, "no layers/counts"),
    ],
)
def test_mistakes_are_one_line(run, adata, how, error, text):
    with pytest.raises(error, match=text) as raised:
        run.embed(adata, **how, **QUIET)
    assert "\n" not in str(raised.value)


def test_there_is_nothing_to_load(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        api.load(tmp_path)


def test_weights_that_are_not_finite_are_refused(run, adata):
    broken = dataclasses.replace(run, variables=jax.tree.map(lambda x: jnp.nan * x, run.variables))
    with pytest.raises(ValueError, match="embeddings of 90 cells are not finite"):
        broken.embed(adata, sample_key=None, **QUIET)


@pytest.mark.slow
def test_command_writes_embedding_and_provenance(run, adata, tmp_path):
    run.export(tmp_path / "weights.safetensors")
    adata.write_h5ad(tmp_path / "x.h5ad")
    given = [f"--workdir={tmp_path}/weights.safetensors", f"--input={tmp_path}/x.h5ad", f"--output={tmp_path}/y.h5ad"]
    done = commands.run("embed", *given, folder=tmp_path)
    assert done.code == 0, done.err
    assert "60 of the model's 60 genes (100.0%)" in done.out and "samples are obs" in done.out
    written = anndata.read_h5ad(tmp_path / "y.h5ad")
    np.testing.assert_array_equal(written.obsm["X_cellplm"], run.embed(adata, **QUIET))
    assert written.uns["X_cellplm"]["model"] == "cellplm" and written.uns["X_cellplm"]["step"] == 3
    assert json.loads(written.uns["X_cellplm"]["genes"])["mapped"] == 60
    again = commands.run("embed", *given, folder=tmp_path)
    assert again.code == 2 and again.err.startswith("error: ") and again.err.count("\n") == 1


@pytest.mark.slow
def test_any_mesh_gives_the_same_embedding(tmp_path):
    make_run().export(tmp_path / "weights.safetensors")
    cells().write_h5ad(tmp_path / "x.h5ad")
    code = """
        import sys, numpy as np
        from scfm_jax import api, sharding
        run = api.load(sys.argv[1])
        kept = {"say": lambda _: None, "sample_key": None}
        one = run.embed(sys.argv[2], **kept)
        for sizes in ({"data": 4}, {"data": 1, "seq": 4}, {"data": 1, "fsdp": 2, "seq": 2}):
            many = run.embed(sys.argv[2], mesh=sharding.make_mesh(**sizes), **kept)
            np.testing.assert_allclose(many, one, rtol=1e-3, atol=1e-4)
        print("fine")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path / "weights.safetensors", tmp_path / "x.h5ad"],
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "fine", done.stderr


def test_variable_genes_are_scanpys():
    import scanpy

    counts = sparse.csr_matrix(np.random.default_rng(0).negative_binomial(1, 0.3, (300, 400)).astype(np.float32))
    counts = counts.multiply(np.random.default_rng(1).random(400) ** 3 > 0.05).tocsr()
    adata = anndata.AnnData(counts)
    scanpy.pp.normalize_total(adata, target_sum=1e4)
    scanpy.pp.log1p(adata)
    mine = task.variable_genes(sparse.csr_matrix(adata.X), 100)
    scanpy.pp.highly_variable_genes(adata, n_top_genes=100)
    assert set(mine) == set(np.flatnonzero(adata.var["highly_variable"]))


def test_scores_of_separate_types_are_perfect_and_of_noise_are_chance():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", None], 50)
    apart = rng.normal(size=(200, 4)) + 30 * np.repeat(np.eye(4), 50, axis=0)
    scores = task.score(apart, labels, batch=np.tile(["x", "y"], 100))
    assert scores["cells"] == 150 and scores["types"] == 3 and scores["accuracy"] == scores["f1"] == 1
    assert scores["nmi_best"] == scores["ari_best"] == 1 and abs(scores["batch_accuracy"] - 0.5) < 0.15
    noise = task.score(rng.normal(size=(200, 4)), labels)
    assert abs(noise["accuracy"] - 1 / 3) < 0.15 and abs(noise["ari"]) < 0.1
    assert task.score(apart, labels) == task.score(apart, labels)


def test_scores_refuse_what_they_cannot_score():
    with pytest.raises(ValueError, match="one row per label"):
        task.score(np.zeros((3, 2)), ["a"] * 4)
    with pytest.raises(ValueError, match="not finite"):
        task.score(np.full((20, 2), np.nan), ["a", "b"] * 10)
    with pytest.raises(ValueError, match="fewer than two"):
        task.score(np.zeros((20, 2)), ["a"] * 18 + ["b"] * 2)
