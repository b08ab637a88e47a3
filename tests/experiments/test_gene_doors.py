"""One awkward study, the same counts of every gene through every door.

Its genes: symbols that two ids have, one that stands there twice, ids with versions beside the symbols, genes without a
name, some of them with an id, and one that no model knows.
"""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
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


@pytest.fixture(scope="module", params=["h5ad", "zarr", "rows.h5ad", "made unique.h5ad"])
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
    if request.param == "zarr":
        path = path.with_name("study.zarr")
        cells.write_zarr(path)
    else:
        cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module", params=["symbols", "ids"])
def run(request):
    """A run whose genes are symbols, or Ensembl ids, and that knows the others; its kind of genes."""
    genes, second = GENES[request.param]
    run = suites.entrant("cellplm", "run", genes=genes).run
    return dataclasses.replace(run, meta=run.meta | {"second_names": second}), request.param


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
        assert {"unnamed": "genes without a name are left out" in str(mapping.report)} == {"unnamed": True}
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


def test_cells_of_a_store_have_the_same_counts_when_a_run_is_fine_tuned_on_them(path, run, tmp_path):
    run, which = run
    ingest(file_sources([str(path)], ["s"]), tmp_path / "store", workers=0, settings=Settings(), say=lambda _: None)
    assert (trained_on(tmp_path / "store", run) == expected(which)).all()


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
