"""Thirty ways to get it wrong: one line that names the value, an exit status that is not zero, nothing half-written."""

import pathlib
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.store.store import open_store
from tests.harness.commands import run

N_CELLS, N_GENES = 60, 40


def cells(**layers) -> anndata.AnnData:
    """Return a small, sound data set."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32))
    obs = pd.DataFrame({"batch": ["a", "b"] * (N_CELLS // 2)}, index=[f"cell{i}" for i in range(N_CELLS)])
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    return anndata.AnnData(counts, obs=obs, var=var, layers=layers)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> pathlib.Path:
    """Return a folder of files, most of them wrong in one way, one sound store and one trained run."""
    folder = tmp_path_factory.mktemp("malformed")
    good = cells()
    good.write_h5ad(folder / "good.h5ad")

    def spoiled(name: str, change) -> None:
        adata = cells()
        change(adata)
        adata.write_h5ad(folder / f"{name}.h5ad")

    def set_value(value):
        def change(adata):
            adata.X[N_CELLS - 1, 3] = value

        return change

    def log_with_layer(adata):
        adata.layers["counts"] = adata.X.copy()
        adata.X = adata.X.log1p()

    spoiled("negative", set_value(-2.0))
    spoiled("nan", set_value(np.nan))
    spoiled("fraction", set_value(0.5))
    spoiled("logged", log_with_layer)
    anndata.AnnData(sp.csr_matrix((0, N_GENES), dtype=np.float32), var=good.var).write_h5ad(folder / "no_cells.h5ad")
    anndata.AnnData(sp.csr_matrix((N_CELLS, 0), dtype=np.float32), obs=good.obs).write_h5ad(folder / "no_genes.h5ad")
    anndata.AnnData(sp.csr_matrix((N_CELLS, N_GENES), dtype=np.float32), good.obs, good.var).write_h5ad(
        folder / "all_zero.h5ad"
    )
    (folder / "truncated.h5ad").write_bytes((folder / "good.h5ad").read_bytes()[:9000])
    (folder / "empty.h5ad").write_bytes(b"")
    (folder / "text.h5ad").write_text("gene\tcount\n")
    (folder / "other_genes.txt").write_text("\n".join(f"OTHER{i}" for i in range(100)))
    (folder / "blank.txt").write_text("")
    (folder / "file").write_text("a file where a folder should be")
    (folder / "not_a_store").mkdir()
    (folder / "not_a_store" / "thesis.docx").write_text("precious")
    (folder / "twin").mkdir()
    shutil.copy(folder / "good.h5ad", folder / "twin" / "good.h5ad")
    sound = run("ingest", f"--input={folder}/good.h5ad", f"--store={folder}/store", "--workers=0", folder=folder)
    assert sound.code == 0, sound.err
    shutil.copytree(folder / "store", folder / "damaged")
    victim = max((p for p in (folder / "damaged/studies").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (folder / "existing.h5ad").write_bytes((folder / "good.h5ad").read_bytes())
    (folder / "broken_case").mkdir()
    (folder / "broken_case" / "case.json").write_text("{")
    trained = run(
        "train", *TRAIN.format(d=folder).split(), f"--workdir={folder}/run", "--config.train.steps=2", folder=folder
    )
    assert trained.code == 0, trained.err
    return folder


TRAIN = (
    "--config=configs/pretrain_cellplm.py:tiny --config.data.store={d}/store --config.data.bag=8 --config.data.batch=1 "
    "--config.model.enc_hid=16 --config.model.enc_layers=1 --config.model.enc_head=2 --config.model.latent_dim=8 "
    "--config.model.num_clusters=4 --config.model.dec_hid=16 --config.train.tensorboard=False"
)

# name: (command, arguments, what the line must say, what must not be there afterwards)
CASES = {
    "ingest: no input": ("ingest", "--store={d}/new", "--input", "new"),
    "ingest: wrong path": ("ingest", "--input={d}/nowhere.h5ad --store={d}/new", "nowhere.h5ad", "new/manifest.json"),
    "ingest: truncated": ("ingest", "--input={d}/truncated.h5ad --store={d}/new", "truncated.h5ad", "new/studies/*"),
    "ingest: empty file": ("ingest", "--input={d}/empty.h5ad --store={d}/new", "empty", "new/studies/*"),
    "ingest: text file": ("ingest", "--input={d}/text.h5ad --store={d}/new", "text.h5ad", "new/studies/*"),
    "ingest: no cells": ("ingest", "--input={d}/no_cells.h5ad --store={d}/new", "empty: 0 cells", "new/studies/*"),
    "ingest: no genes": ("ingest", "--input={d}/no_genes.h5ad --store={d}/new", "x 0 genes", "new/studies/*"),
    "ingest: empty cells": ("ingest", "--input={d}/all_zero.h5ad --store={d}/new", "all_zero", "new/studies/*"),
    "ingest: negative": ("ingest", "--input={d}/negative.h5ad --store={d}/new", "-2", "new/studies/*"),
    "ingest: NaN": ("ingest", "--input={d}/nan.h5ad --store={d}/new", "nan", "new/studies/*"),
    "ingest: fraction": ("ingest", "--input={d}/fraction.h5ad --store={d}/new", "0.5", "new/studies/*"),
    "ingest: logged": (
        "ingest",
        "--input={d}/logged.h5ad --store={d}/new",
        "choose with --layer=counts",
        "new/studies/*",
    ),
    "ingest: unknown layer": ("ingest", "--input={d}/good.h5ad --store={d}/new --layer=x", "x", "new/studies/*"),
    "ingest: no raw": ("ingest", "--input={d}/good.h5ad --store={d}/new --raw", "raw", "new/studies/*"),
    "ingest: no mapped gene": (
        "ingest",
        "--input={d}/good.h5ad --store={d}/new --vocab={d}/other_genes.txt",
        "gene table (gene_table,",
        "new/studies/*",
    ),
    "ingest: vocabulary missing": (
        "ingest",
        "--input={d}/good.h5ad --store={d}/new --vocab={d}/no.txt",
        "no.txt",
        "new/studies/*",
    ),
    "ingest: vocabulary empty": (
        "ingest",
        "--input={d}/good.h5ad --store={d}/new --vocab={d}/blank.txt",
        "blank.txt",
        "new/studies/*",
    ),
    "ingest: obs column missing": (
        "ingest",
        "--input={d}/good.h5ad --store={d}/new --group_by=patient",
        "patient",
        "new/studies/*",
    ),
    "ingest: same name twice": (
        "ingest",
        "--input={d}/good.h5ad,{d}/twin/good.h5ad --store={d}/new",
        "--names",
        "new/studies/*",
    ),
    "ingest: store is a file": ("ingest", "--input={d}/good.h5ad --store={d}/file", "file", "file/manifest.json"),
    "ingest: folder of something else": (
        "ingest",
        "--input={d}/good.h5ad --store={d}/not_a_store",
        "not_a_store",
        "not_a_store/manifest.json",
    ),
    "ingest: unwritable": ("ingest", "--input={d}/good.h5ad --store=/proc/scfm_store", "/proc", "new"),
    "ingest: other settings": ("ingest", "--input={d}/good.h5ad --store={d}/store --seed=5", "seed", "new"),
    "ingest: unknown flag": ("ingest", "--inptu={d}/good.h5ad --store={d}/new", "inptu", "new"),
    "ingest: verify damaged": ("ingest", "--verify={d}/damaged", "damaged", "new"),
    "ingest: verify no store": ("ingest", "--verify={d}/not_a_store", "not_a_store", "new"),
    "train: wrong key": (
        "train",
        TRAIN + " --workdir={d}/new --config.model.enc_hidd=3",
        "enc_hid",
        "new/checkpoints/*",
    ),
    "train: wrong type": ("train", TRAIN + " --workdir={d}/new --config.train.steps=many", "many", "new/checkpoints/*"),
    "train: no config": ("train", "--workdir={d}/new", "--config", "new"),
    "train: wrong config file": ("train", "--config=configs/nothing.py:tiny --workdir={d}/new", "nothing.py", "new"),
    "train: wrong variant": ("train", "--config=configs/pretrain_cellplm.py:huge --workdir={d}/new", "huge", "new"),
    "train: no store": (
        "train",
        "--config=configs/pretrain_cellplm.py:tiny --config.data.store={d}/nope --workdir={d}/new",
        "nope",
        "new/checkpoints/*",
    ),
    "train: damaged store": (
        "train",
        TRAIN.replace("/store", "/damaged") + " --workdir={d}/new --config.train.steps=40",
        "damaged",
        "new/checkpoints/40",
    ),
    "train: workdir is a file": ("train", TRAIN + " --workdir={d}/file", "file", "file/checkpoints"),
    "train: unwritable": ("train", TRAIN + " --workdir=/proc/scfm_run", "/proc", "new"),
    "train: filter column": (
        "train",
        TRAIN + " --workdir={d}/new --config.data.filter=tisue=='x'",
        "tisue",
        "new/checkpoints/*",
    ),
    "train: filter keeps none": (
        "train",
        TRAIN + " --workdir={d}/new --config.data.filter=batch=='zz'",
        "zz",
        "new/checkpoints/*",
    ),
    "train: other model there": (
        "train",
        TRAIN + " --workdir={d}/run --config.model.enc_hid=32",
        "enc_hid",
        "run/checkpoints/3",
    ),
    "embed: no run": (
        "embed",
        "--workdir={d}/not_a_store --input={d}/good.h5ad --output={d}/out.h5ad",
        "not_a_store",
        "out.h5ad",
    ),
    "embed: no input": (
        "embed",
        "--workdir={d}/run --input={d}/nowhere.h5ad --output={d}/out.h5ad",
        "nowhere.h5ad",
        "out.h5ad",
    ),
    "embed: output exists": (
        "embed",
        "--workdir={d}/run --input={d}/good.h5ad --output={d}/existing.h5ad",
        "existing.h5ad",
        "out.h5ad",
    ),
    "embed: sample column": (
        "embed",
        "--workdir={d}/run --input={d}/good.h5ad --output={d}/out.h5ad --sample_key=slide",
        "slide",
        "out.h5ad",
    ),
    "embed: unwritable": (
        "embed",
        "--workdir={d}/run --input={d}/good.h5ad --output=/proc/out.h5ad",
        "/proc",
        "out.h5ad",
    ),
    "report: no run": ("report", "--workdir={d}/nope", "nope", "nope/report.html"),
    "parity: no case": ("parity", "{d}/nope", "nope", "new"),
    "parity: broken case": ("parity", "{d}/broken_case", "broken_case", "new"),
    "bench: unknown part": ("bench", "everything", "everything", "new"),
    "quickstart: wrong path": (
        "quickstart",
        "--input={d}/nowhere.h5ad --workdir={d}/new",
        "nowhere.h5ad",
        "new/report.html",
    ),
}


def one_line(text: str) -> str:
    """Return the one line of an error; progress and library chatter may stand before it, nothing after it."""
    lines = [line for line in text.splitlines() if line.startswith(("error:", "damaged:", "FAIL"))]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_nothing_left(name, ground, tmp_path):
    command, args, says, gone = CASES[name]
    ended = run(command, *args.format(d=ground).split(), folder=tmp_path)
    try:
        assert ended.code not in (0, None) and ended.code > 0
        assert "Traceback" not in ended.err + ended.out
        assert says in one_line(ended.err + ended.out)
        assert not list(ground.glob(gone)), "something was left behind"
    finally:
        shutil.rmtree(ground / "new", ignore_errors=True)


def test_no_mapped_gene_stops_an_embedding(ground, tmp_path):
    other = cells()
    other.var_names = [f"OTHER{i}" for i in range(N_GENES)]
    other.write_h5ad(tmp_path / "other.h5ad")
    ended = run(
        "embed",
        f"--workdir={ground}/run",
        f"--input={tmp_path}/other.h5ad",
        f"--output={tmp_path}/y.h5ad",
        folder=tmp_path,
    )
    assert ended.code == 2 and "OTHER0" in one_line(ended.err)
    assert not (tmp_path / "y.h5ad").exists()


@pytest.mark.parametrize("what", ["ingest", "embed"])
def test_full_disk_leaves_nothing_that_looks_whole(what, ground, tmp_path):
    args = {
        "ingest": [f"--input={ground}/good.h5ad", f"--store={tmp_path}/new", "--workers=0"],
        "embed": [f"--workdir={ground}/run", f"--input={ground}/good.h5ad", f"--output={tmp_path}/y.h5ad"],
    }[what]
    ended = run(what, *args, folder=tmp_path, limit_bytes=2000)
    assert ended.code not in (0, None) and ended.code > 0
    assert "Traceback" not in ended.err
    assert not (tmp_path / "y.h5ad").exists()
    assert not (tmp_path / "new" / "manifest.json").exists() or not open_store(tmp_path / "new").studies


def test_duplicated_names_are_summed_and_said(ground, tmp_path):
    twice = cells()
    twice.var_names = ["GENE0", "GENE0", *twice.var_names[2:]]
    twice.write_h5ad(tmp_path / "twice.h5ad")
    ended = run("ingest", f"--input={tmp_path}/twice.h5ad", f"--store={tmp_path}/new", "--workers=0", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "GENE0" in ended.out and "merged" in ended.out
    store = open_store(tmp_path / "new")
    total = sum(int(store.study(0).read(0, store.study(0).n_cells).result()[1].sum()) for _ in (0,))
    assert total == int(twice.X.sum())
