"""The door for notebooks: what `import scfm_jax` gives, what a run says of itself, and what it leaves behind."""

import dataclasses
import json
import os
import subprocess
import sys

import anndata
import jax
import numpy as np
import pytest

import scfm_jax
from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from scfm_jax import api, models
from scfm_jax.inference import bags, infer
from scfm_jax.saving import weights
from scfm_jax.tasks.cells import cell_type
from scfm_jax.types import Batch
from tests.harness import ROOT, suites
from tests.inference.test_infer import QUIET, cells, make_run

SLOW = pytest.mark.slow


def test_the_door_is_there_once_the_package_is_and_is_imported_when_asked_for():
    code = "import sys, scfm_jax; print('jax' in sys.modules, scfm_jax.api.load.__name__, 'api' in dir(scfm_jax))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.split() == ["False", "load", "True"]
    with pytest.raises(AttributeError, match="module 'scfm_jax' has no attribute 'apy'"):
        _ = scfm_jax.apy


def test_a_run_says_in_five_lines_what_it_is():
    run = make_run()
    lines = repr(run).splitlines()
    assert len(lines) == 5 and len(repr(run)) < 400
    assert lines[0] == "cellplm" and lines[1] == "  weights: random weights of seed 0"
    assert lines[2] == "  genes: 60 (GENE0, GENE1, GENE2, ...)" and lines[3] == "  classes: batch (2)"
    assert lines[4].startswith("  parameters: ") and int(lines[4].split()[1].replace(",", "")) > 1000


def test_an_embedding_is_added_to_the_anndata_if_asked_and_only_then(tmp_path):
    run, adata = make_run(), cells()
    embedding = run.embed(adata, **QUIET)
    assert not adata.obsm and not adata.uns
    run.embed(adata, key_added="X_cellplm", **QUIET)
    np.testing.assert_array_equal(adata.obsm["X_cellplm"], embedding)
    adata.write_h5ad(tmp_path / "x.h5ad")
    h5ad.write_embedding(cells(), tmp_path / "y.h5ad", "X_cellplm", embedding, run.provenance)
    one, two = (anndata.read_h5ad(tmp_path / name).uns["X_cellplm"] for name in ("x.h5ad", "y.h5ad"))
    assert one == two and one["model"] == "cellplm" and json.loads(one["genes"])["mapped"] == 60
    with pytest.raises(ValueError, match=r"key_added=X: .*x.h5ad is not an AnnData in memory; read it first"):
        run.embed(tmp_path / "x.h5ad", key_added="X", **QUIET)


@pytest.mark.parametrize("name", [n if n == "cellplm" else pytest.param(n, marks=SLOW) for n in models.names()])
def test_a_file_of_few_genes_is_embedded_alike_by_these_alone_and_in_the_whole_vocabulary(name, monkeypatch):
    run, adata = suites.entrant(name, name).run, cells(20)[:, ::4].copy()
    adata.var_names = suites.GENES[3:60:4]
    whole = run.embed(adata, min_mapped=0.0, **QUIET)
    compact = vocab.Mapping.compact
    monkeypatch.setattr(vocab.Mapping, "compact", lambda mapping: compact(mapping, 16, 0.5))
    few = run.embed(adata, min_mapped=0.0, **QUIET)
    np.testing.assert_allclose(few, whole, rtol=1e-5, atol=1e-6)
    assert np.ptp(whole, axis=0).max() > 0


def test_annotations_have_the_names_of_the_cells():
    run, adata = make_run(), cells()
    run.task = {"linear_0": {"kernel": np.eye(8, 3, dtype=np.float32), "bias": np.zeros(3, np.float32)}}
    run.meta = run.meta | {"classes": {"cell_type": ["a", "b", "c"]}}
    run.meta["config"] = run.meta["config"] | {"task": {"name": "cell_type", "label": "cell_type"}}
    shares = run.annotate(adata, **QUIET)
    assert list(shares.index) == list(adata.obs_names) and list(shares.columns) == ["a", "b", "c"]
    adata.obs["predicted"] = shares.idxmax(axis=1)
    assert adata.obs["predicted"].notna().all()
    expected = cell_type.probabilities(run.task, cell_type.OPTIONS, run.embed(adata, **QUIET))
    np.testing.assert_allclose(shares.to_numpy(), expected)


@pytest.mark.slow
def test_the_layers_of_an_embedding_are_chosen_after_training():
    config = models.options("scemb", "tiny")
    config["model"] |= {"embed_dim": 16, "ffn_dim": 16, "num_layers": 2, "num_heads": 2}
    adata = cells(20)
    meta = {"model": "scemb", "config": config, "genes": list(adata.var_names), "step": 0}
    run = api.build(meta, {"params": {}}, {}, "a test").twin(0)
    last, mean = run.embed(adata, **QUIET), run.embed(adata, cell_layer="all_layers", **QUIET)
    assert run.provenance["cell_layer"] == "all_layers" and run.model.cell_layer == "last"
    batch = bags.pack(adata.X.tocsr(), np.arange(20)[:, None])
    batch = Batch(**{field: batch[field] for field in infer.FIELDS})
    constants = bags.own_vocabulary(np.ones((1, 60), bool))
    inputs = run.module.prepare(batch, constants, jax.random.key(0), step=0, train=False, mask_rate=0.0)
    _, inner = run.model.apply(run.variables, inputs, mutable="intermediates")
    real = np.asarray(inputs["tokens"])[:, 0, :, None] > 0
    outputs = [np.asarray(inner["intermediates"][f"block_{i}"]["output"][0]) for i in range(2)]
    by_layer = [(x * real).sum(1) / np.maximum(real.sum(1), 1) for x in outputs]
    np.testing.assert_allclose(last, by_layer[1], atol=1e-4)
    np.testing.assert_allclose(mean, (by_layer[0] + by_layer[1]) / 2, atol=1e-4)
    assert np.abs(mean - last).max() > 1e-3

    other = run.with_cell_layer("all_layers")
    assert other.twin(1).model.cell_layer == other.config.model.cell_layer == "all_layers"
    assert run.with_cell_layer(None) is run and run.config.model.cell_layer == "last"
    other = api.build({**meta, "model": "cellplm", "config": {"model": {}}}, {}, {}, "a test")
    with pytest.raises(ValueError, match=r"cell_layer=mean: cellplm has no choice of layers .scemb, sct have.; leave"):
        other.embed(adata, cell_layer="mean", **QUIET)
    with pytest.raises(ValueError, match="cell_layer 'mean': there are 'last', 'all_layers'"):
        run.embed(adata, cell_layer="mean", **QUIET)
    tuned = dataclasses.replace(run, task={"linear_0": {}})
    tuned.meta["config"]["task"] = {"name": "cell_type"}
    with pytest.raises(ValueError, match="cell_layer=all_layers: the head has learned from 'last'"):
        tuned.annotate(adata, cell_layer="all_layers", **QUIET)


def test_errors_fit_the_notebook_as_well_as_the_shell():
    adata = cells()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    for options, says in (({}, r"choose with layer=counts\Z"), ({"layer": "x"}, r"layer=NAME and raw=True choose")):
        with pytest.raises(ValueError, match=says) as caught:
            make_run().embed(adata, **options, **QUIET)
        assert "--" not in str(caught.value)
    adata.var_names = [f"other{i}" for i in range(60)]
    with pytest.raises(ValueError, match="lower min_mapped") as caught:
        make_run().embed(adata, layer="counts", **QUIET)
    assert "--" not in str(caught.value)


def test_files_of_weights_are_as_open_as_the_umask_has_them(tmp_path):
    before = os.umask(0o022)
    try:
        weights.export(tmp_path / "a.safetensors", {"x": np.zeros(3)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o644


def test_what_is_known_of_genes_is_reported_and_not_printed(tmp_path, capsys):
    np.savez(tmp_path / "v.npz", genes=np.array(["A", "B"]), vectors=np.ones((2, 3), np.float32))
    said = []
    found = api.gene_constants({"gene_vectors": tmp_path / "v.npz"}, ["A", "B"], say=said.append)
    assert found["gene_vectors"].shape[0] == 2 and said[0].startswith("gene vectors: ")
    assert not capsys.readouterr().out
