"""One awkward study, the same counts of every gene through every door.

Its genes: symbols that two ids have, one that stands there twice, ids with versions beside the symbols, genes without a
name, some of them with an id, and one that no model knows.
"""

import gzip
import io

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from data_pipeline.files import h5ad
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from experiments.analyses import annotation, imputation
from experiments.analyses import cells as model_cells
from experiments.analyses.pretraining_floors import Pool
from experiments.suite import counts as suite_counts
from experiments.suite import entrants
from experiments.training import data as training_data
from scfm_jax import api, models
from tests.harness import suites

N = 40
SYMBOLS = [f"GENE{i}" for i in range(30)]
IDS = [f"ENSG{100000 + i:011d}" for i in range(34)]
NAMES = [*SYMBOLS, "GENE3", "GENE4", "", "", "nan", "nan", "OTHER"]
BESIDE = [f"{id}.{i % 7}" for i, id in enumerate(IDS[:31])]
BESIDE += [f"{IDS[4]}.9", f"{IDS[31]}.2", "", "", "", f"{IDS[33]}.1"]
X = np.random.default_rng(0).poisson(1.5, (N, len(NAMES)))
GENES = {"symbols": (SYMBOLS, IDS[:30]), "ids": (IDS[:32], [*SYMBOLS, "GENE3", ""])}


def expected(which):
    """Return the counts of each gene of the model. [N, V]"""
    x = np.zeros((N, len(GENES[which][0])), int)
    x[:, :30] = X[:, :30]
    x[:, 4] += X[:, 31]
    if which == "ids":
        x[:, 30], x[:, 31] = X[:, 30], X[:, 32]
    else:
        x[:, 3] += X[:, 30]
    return x


@pytest.fixture(scope="module")
def study():
    """The study, cells of two types and donors."""
    odd = np.arange(N) % 2
    obs = pd.DataFrame({"cell_type": np.where(odd, "T", "B"), "donor": np.where(np.arange(N) % 4 < 2, "D0", "D1")})
    obs.index = [f"cell{i:02}" for i in range(N)]
    var = pd.DataFrame({"gene_ids": BESIDE}, index=pd.Index(NAMES, dtype=object))
    return anndata.AnnData(sp.csr_matrix(X.astype(np.float32)), obs, var)


@pytest.fixture(scope="module", params=["h5ad", "zarr", "10x.h5", "mtx", "rows.h5ad", "made unique.h5ad"])
def path(request, study, tmp_path_factory):
    """The study as a file: of each layout, with row numbers for an index, with names that were made unique."""
    path = tmp_path_factory.mktemp("awkward") / request.param.replace(" ", "_")
    cells = study.copy()
    if request.param.startswith("rows"):
        cells.var = pd.DataFrame(
            {"feature_id": BESIDE, "feature_name": NAMES}, index=[str(i) for i in range(len(NAMES))]
        )
    if request.param.startswith("made"):
        cells.var_names_make_unique()
    if request.param == "10x.h5":
        write_10x(path)
    elif request.param == "mtx":
        write_mtx(path)
    elif request.param == "zarr":
        path = path.with_name("study.zarr")
        cells.write_zarr(path)
    else:
        cells.write_h5ad(path)
    return path


def write_10x(path):
    """Write the study as CellRanger 3 does."""
    x = sp.csr_matrix(X)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([f"cell{i:02}" for i in range(N)], "S")
        group["data"], group["indices"], group["indptr"], group["shape"] = x.data, x.indices, x.indptr, x.shape[::-1]
        group["features/id"], group["features/name"] = np.array(BESIDE, "S"), np.array(NAMES, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * len(NAMES), "S")


def write_mtx(folder):
    """Write the study as CellRanger 3 does, in text."""
    folder.mkdir()
    tables = {"features": zip(BESIDE, NAMES, strict=True), "barcodes": [[f"cell{i:02}"] for i in range(N)]}
    for name, rows in tables.items():
        text = "".join("\t".join([*row, *["Gene Expression"] * (name == "features")]) + "\n" for row in rows)
        (folder / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    file = io.BytesIO()
    scipy.io.mmwrite(file, sp.coo_matrix(X.T))
    (folder / "matrix.mtx.gz").write_bytes(gzip.compress(file.getvalue()))


@pytest.fixture(scope="module", params=["symbols", "ids"])
def run(request):
    """A run whose genes are symbols, or Ensembl ids, and that knows the others; its kind of genes."""
    genes, second = GENES[request.param]
    sections = models.options("cellplm", "tiny")
    config = {**sections, "model": sections["model"] | suites.SMALL["cellplm"], "data": {"labels": []}}
    meta = {"model": "cellplm", "config": config, "genes": genes, "second_names": second, "step": 3}
    return api.build(meta, {"params": {"weights": np.ones(3)}}, {}, "no weights"), request.param


def sorted_by_cell(counts, names):
    """Return dense counts in the order of the names of the cells."""
    counts = counts.toarray() if sp.issparse(counts) else np.asarray(counts)
    return counts[np.argsort(np.asarray(names, str), kind="stable")]


def test_every_door_gives_the_same_counts(study, path, run, tmp_path):
    run, which = run
    right, names = expected(which), study.obs_names
    whole, rows = {}, np.arange(N)
    with h5ad.read_counts(path) as counts:
        mapping = run.map_genes(counts)
        whole["run"] = mapping.apply(counts.take(rows))
        assert mapping.report.merged == {"symbols": 2, "ids": 1}[which], "what is summed is said"
        assert "3 genes without a name are left out" in str(mapping.report)
        file = model_cells.Cells(counts, run.genes, run.gene_table(), 0.5)
        whole["imputation"] = file.take(rows)
    whole["analyses"] = model_cells.read(run, path, say=lambda _: None).counts
    whole["reference"] = imputation.reference_cells([path], run.genes, run.gene_table(), 0.5, N)[0]
    whole["floors"] = Pool.read([str(path)], run.genes, run.gene_table(), 0.5).counts
    compared, entrant = entrants.Study(str(path)), entrants.Entrant("run", "run", run)
    taken = compared.take(rows, entrant.mapping(compared), run.genes)
    assert list(taken.var_names) == [gene for gene, any_count in zip(run.genes, right.any(0), strict=True) if any_count]
    whole["suite, embedded"] = taken.X
    shared = entrants.shared_genes(compared, [entrant])
    drawn = suite_counts.draw(compared, shared, 0, N)
    order = np.argsort(entrant.slots(compared)[shared.columns])
    assert len(drawn.counts) == N and (np.sort(drawn.counts[:, order].sum(1)) == np.sort(right.sum(1))).all()
    whole["suite"] = shared.of(compared.counts.take(rows))[:, order]
    assert not [door for door, counts in whole.items() if not (sorted_by_cell(counts, names) == right).all()]
    (tmp_path / "genes.txt").write_text("\n".join(run.genes))
    ingest(file_sources([str(path)], ["s"]), tmp_path / "listed", vocabulary=str(tmp_path / "genes.txt"), workers=0)
    stored = anndata.read_zarr(tmp_path / "listed/studies/s.zarr")
    assert (sorted_by_cell(stored.X, stored.obs_names) == right).all()


LAYOUTS = pytest.mark.parametrize("path", ["rows.h5ad", "made unique.h5ad"], indirect=True)


@LAYOUTS
@pytest.mark.parametrize("split", [False, True])
def test_cells_to_annotate_and_those_to_learn_from_have_the_same_counts(study, path, run, split, tmp_path):
    run, which = run
    right = expected(which)
    chosen = ("donor", ("D1",)) if split else None
    plan = annotation.Plan((str(path),), None if split else str(path), chosen, "cell_type", "cell_type", {}, 0, 1, 0.5)
    annotation.prepare(plan, tmp_path, say=lambda _: None)
    test = np.flatnonzero(study.obs["donor"] == "D1") if split else np.arange(N)
    parts = sorted((tmp_path / "data").glob("test*.h5ad"))
    for part in parts:
        with h5ad.read_counts(part) as counts:
            mapped = run.map_genes(counts).apply(counts.take(np.arange(counts.n_cells)))
            assert (sorted_by_cell(mapped, counts.obs.index) == right[test]).all()
    train = np.flatnonzero(study.obs["donor"] == "D0") if split else np.arange(N)
    assert (trained_on(tmp_path / "data/store", run) == right[train]).all()


@LAYOUTS
def test_cells_of_a_store_have_the_same_counts_when_a_run_is_fine_tuned_on_them(path, run, tmp_path):
    run, which = run
    ingest(file_sources([str(path)], ["s"]), tmp_path / "store", workers=0, settings=Settings(), say=lambda _: None)
    assert (trained_on(tmp_path / "store", run) == expected(which)).all()


@LAYOUTS
def test_second_names_travel_with_the_weights_and_old_runs_do_without(path, run, tmp_path):
    run, which = run
    run.export(tmp_path / "run.safetensors")
    again = api.load(tmp_path / "run.safetensors")
    assert again.second_names == GENES[which][1]
    del again.meta["second_names"]
    again.export(tmp_path / "old.safetensors")
    old = api.load(tmp_path / "old.safetensors")
    assert old.second_names == [""] * len(old.genes)
    with h5ad.read_counts(path) as counts:
        mapped = old.map_genes(counts).apply(counts.take(np.arange(N)))
    assert (sorted_by_cell(mapped, [f"cell{i:02}" for i in range(N)]) == expected(which)).all()


@pytest.mark.parametrize(("model", "file"), [("ids", SYMBOLS[:3]), ("symbols", IDS[:3])])
def test_a_file_of_the_other_names_alone_is_read_by_a_run_that_knows_both(model, file):
    genes, second = GENES[model]
    run = api.Run(None, None, {}, {}, {"genes": genes, "second_names": second}, "no weights")
    var = pd.DataFrame(index=[*file, "GENE28" if model == "ids" else IDS[28]])
    with h5ad.read_counts(anndata.AnnData(sp.csr_matrix(np.arange(8.0).reshape(2, 4)), var=var)) as counts:
        assert run.map_genes(counts).index.tolist() == [0, 1, 2, 28]
        bare = api.Run(None, None, {}, {}, {"genes": genes}, "no weights")
        with pytest.raises(ValueError, match="only 0 of 4"):
            bare.map_genes(counts)


def trained_on(store, run):
    """Return the counts of the cells of a store as training gives them to a run, in the order of their names."""
    options = {"store": str(store), "batch": 4, "bag": 5, "genes": "base", "labels": (), "split": None}
    data = training_data.read(options, run.module, 0, run)
    x, names = np.zeros((N, len(run.genes) + 1)), []
    opened = open_store(store)
    for batch in data.loaders()["train"].epoch_batches():
        for genes, counts, index in zip(*(batch[k].reshape(-1, batch[k].shape[-1]) for k in ("genes", "counts")),
                                        batch["index"].ravel(), strict=True):  # fmt: skip
            if index >= 0:
                np.add.at(x[index], data.slots[genes], counts)
                used = data.slots[genes[counts > 0]]
                assert len(set(used)) == len(used), "a gene comes once in a cell"
    for name in opened.studies:
        names += list(opened.study(name).obs.index)
    return sorted_by_cell(x[: len(names), :-1], names)
