"""The walk that a user takes: files, a store, a trained run, an embedding beside the cells, by the commands alone."""

import json

import anndata
import numpy as np
import pytest

from scfm_jax import api, pretrained
from scfm_jax.saving import checkpoint
from tests.harness import commands, suites

CONFIG = "--config=pretrain_cellplm:tiny"
OPTIONS = {
    **{f"model.{name}": value for name, value in suites.SMALL["cellplm"].items()},
    "data.bag": 16,
    "data.batch": 2,
    "data.buckets": "(64,)",
    "train.steps": 3,
    "train.log_every": 1,
    "train.eval_every": 3,
    "train.tensorboard": False,
}


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Return a folder with two files, a store of the first, a run on it, and the second file embedded by that run."""
    folder = tmp_path_factory.mktemp("walk")
    suites.write(folder / "known.h5ad")
    suites.write(folder / "all.h5ad", 1)
    new = anndata.read_h5ad(folder / "all.h5ad")[::-1, ::-2].copy()  # cells and genes in another order, half the genes
    new.write_h5ad(folder / "new.h5ad")
    options = [f"--config.{key}={value}" for key, value in OPTIONS.items()]
    store, workdir = f"{folder}/store", f"{folder}/run"
    steps = [
        ("ingest", f"--input={folder}/known.h5ad", f"--store={store}", "--group_by=batch", "--workers=0"),
        ("train", CONFIG, f"--workdir={workdir}", f"--config.data.store={store}", *options),
        ("embed", f"--workdir={workdir}", f"--input={folder}/new.h5ad", f"--output={folder}/embedded.h5ad"),
    ]
    for command, *arguments in steps:
        ended = commands.run(command, *arguments, folder=folder)
        assert ended.code == 0, ended.err
    return folder


def test_each_cell_has_the_embedding_that_the_api_gives(walked):
    run = api.load(walked / "run")
    embedding = run.embed(walked / "new.h5ad", say=lambda _: None)
    written = anndata.read_h5ad(walked / "embedded.h5ad")
    np.testing.assert_array_equal(written.obsm["X_cellplm"], embedding)
    assert embedding.shape == (90, 8) and len(np.unique(embedding, axis=0)) == 90
    turned = run.embed(anndata.read_h5ad(walked / "new.h5ad")[::-1].copy(), say=lambda _: None)
    np.testing.assert_allclose(turned[::-1], embedding, rtol=1e-4, atol=1e-5)


def test_the_cells_are_as_they_were_and_the_embedding_says_where_it_is_from(walked):
    new, written = (anndata.read_h5ad(walked / name) for name in ("new.h5ad", "embedded.h5ad"))
    assert list(written.obs_names) == [f"c{i}" for i in reversed(range(90))] and (written.obs == new.obs).all(axis=None)
    assert list(written.var_names) == list(new.var_names) and (written.X != new.X).nnz == 0
    said = written.uns["X_cellplm"]
    assert (said["model"], said["step"], said["input"]) == ("cellplm", 3, "new.h5ad")
    assert json.loads(said["shape"]) == [90, 8] and "batch" in said["sample"]
    assert json.loads(said["genes"])["mapped"] == 32


def test_the_run_was_trained_on_the_store(walked):
    restored = checkpoint.restore(walked / "run/checkpoints")
    assert restored.step == 3 and sorted(restored.meta["genes"]) == sorted(suites.GENES)
    logged = [json.loads(line) for line in (walked / "run/metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["step"] == 3 and np.isfinite([line["loss"] for line in logged if "loss" in line]).all()
    weights = api.load(walked / "run")
    new = walked / "new.h5ad"
    embeddings = [one.embed(new, say=lambda _: None) for one in (weights, weights.twin(0))]
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def test_a_packed_run_is_loaded_by_its_name_and_its_card_says_what_it_is(walked, monkeypatch):
    lists = walked / "studies.tsv"
    lists.write_text("study\tlicence\tsource\nother\tMIT\there\n")
    flags = [f"--workdir={walked}/run", f"--licences={lists}", f"--output={walked}/packed.safetensors"]
    ended = commands.run("pack", *flags, folder=walked)
    assert ended.code == 2 and "no line for known, which the run was trained on" in ended.err.splitlines()[-1]
    assert not list(walked.glob("packed*"))
    lists.write_text("study\tlicence\tsource\nknown\tCC BY 4.0\tmade up\n")
    ended = commands.run("pack", *flags, folder=walked)
    assert ended.code == 0, ended.err
    monkeypatch.setattr(pretrained, "FOLDER", walked)
    packed, run = api.load("scfm:packed"), api.load(walked / "run")
    assert str(walked) not in str(packed.meta) and packed.config.data.store == "store"
    same = [x.embed(walked / "new.h5ad", say=lambda _: None) for x in (packed, run)]
    np.testing.assert_array_equal(*same)
    card = pretrained.card("scfm:packed")
    assert "| known | 90 | 2 | CC BY 4.0 | made up |" in card and str(walked) not in card
    floors = [line for line in (walked / "run/metrics.jsonl").read_text().splitlines() if "floor/" in line]
    value = json.loads(floors[0])["floor/nb/gene rate x depth"]
    assert f"| nb, gene rate x depth | {value:.4g} |" in card
