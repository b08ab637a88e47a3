"""Which cells are learned from and which are annotated: `--split` is `--test`, and what no file has is refused."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.batches.loader import Loader
from data_pipeline.store.store import open_store
from experiments.analyses import annotation, annotation_cells, annotation_table
from experiments.pages import output
from experiments.training import finetuning
from scfm_jax.saving import weights
from scfm_jax.tasks.cells.labels import UNLABELLED
from tests.harness import suites

IDS = [f"ENSG{i:011d}" for i in range(suites.V)]
PLAN = annotation.Plan((), None, ("donor_id", ("D2",)), "cell_type", "cell_type", {}, 0, 5, 0.01)
VARS = {
    "symbols in the index, ids beside": pd.DataFrame({"gene_ids": IDS}, suites.GENES),
    "ids in the index, symbols beside": pd.DataFrame({"feature_name": suites.GENES}, IDS),
    "a name that two genes have": pd.DataFrame(index=[*suites.GENES[:-1], suites.GENES[0]]),
}


def quiet(_: str) -> None:
    """Say nothing."""


def write(path, var=None, seed=0, n=60, **obs):
    """Write cells of three types and donors, and return the path."""
    table = {"cell_type": [f"type {i % 3}" for i in range(n)], "donor_id": [f"D{i // 3 % 3}" for i in range(n)]} | obs
    cells = sp.csr_matrix(suites.counts(n, seed))
    var = pd.DataFrame(index=suites.GENES) if var is None else var
    anndata.AnnData(cells, pd.DataFrame(table, [f"c{i}" for i in range(n)]), var).write_h5ad(path)
    return str(path)


def planned(*train, **changes):
    """Return a plan on some files."""
    return dataclasses.replace(PLAN, train=train, **changes)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("kind", VARS)
def test_held_out_cells_are_what_the_same_cells_are_in_a_file_of_their_own(kind, tmp_path):
    path = write(tmp_path / "all.h5ad", VARS[kind])
    cells = anndata.read_h5ad(path)
    held = (cells.obs["donor_id"] == "D2").to_numpy()
    for name, rows in {"rest": ~held, "held": held}.items():
        cells[rows].copy().write_h5ad(tmp_path / f"{name}.h5ad")
    plans = {
        "split": planned(path),
        "test": planned(str(tmp_path / "rest.h5ad"), test=str(tmp_path / "held.h5ad"), split=None),
    }
    run = suites.entrant("scemb", "run", genes=IDS if "gene_ids" in VARS[kind] else suites.GENES).run
    seen = {}
    for name, plan in plans.items():
        out = tmp_path / name
        classes = annotation.prepare(plan, out, quiet)
        (test,) = annotation.files(out, "test")
        genes = open_store(out / "data/store").genes
        scores = [annotation.baseline(plan, out, each, 0, classes)["f1"] for each in ("logistic regression",)]
        counts = annotation.matrix(test, genes).toarray()
        seen[name] = genes, classes, annotation.truth_of(out), scores, counts, run.embed(test, say=quiet)
    for split, test in zip(seen["split"], seen["test"], strict=True):
        np.testing.assert_array_equal(split, test)
    assert seen["test"][4].sum() == cells.X[held].sum(), "counts are lost"


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_two_files_in_which_other_names_come_twice_are_summed(tmp_path):
    twice = [pd.DataFrame(index=[*suites.GENES[:-1], suites.GENES[i]]) for i in (0, 5)]
    paths = [write(tmp_path / f"{name}.h5ad", var, seed) for name, var, seed in zip("ab", twice, (0, 1), strict=True)]
    annotation.prepare(planned(*paths), tmp_path / "out", quiet)
    files = annotation.files(tmp_path / "out", "test")
    assert [path.name for path in files] == ["test_0.h5ad", "test_1.h5ad"]
    held = np.arange(60) // 3 % 3 == 2
    for path, seed, gene in zip(files, (0, 1), (0, 5), strict=True):
        summed = annotation.matrix(path, suites.GENES).toarray()
        counts = suites.counts(60, seed)[held]
        np.testing.assert_array_equal(summed[:, gene], counts[:, gene] + counts[:, -1])
        assert summed[:, -1].sum() == 0 and summed.sum() == counts.sum()
    assert len(annotation.truth_of(tmp_path / "out")) == 2 * held.sum()
    some = annotation_cells.some([anndata.read_h5ad(path) for path in files], 6)
    assert sum(cells.n_obs for cells in some) == 6


WRONG = {
    "a held-out value": ({"split": ("donor_id", ("D2", "D9"))}, r"--held_out=D9: no labelled cell .*donor_id"),
    "a held-out value cut at its comma": ({"split": ("site", ("Bern", "CH"))}, r"--held_out='\"Bern, CH\"'"),
    "all held out": ({"split": ("donor_id", ("D0", "D1", "D2"))}, "none is left to learn from"),
    "a column": ({"split": ("donor", ("D2",))}, r"--split=donor: no such obs column; there are cell_type, donor_id"),
    "a label": ({"label": "celltype"}, r"--label=celltype: no such obs column"),
    "a type": ({"names": {"typ 0": "x"}}, r"--names=typ 0=\.\.\.: no file has this type; did you mean type 0"),
    "one type": (
        {"names": {"type 1": "-", "type 2": "-"}},
        r"--label=cell_type: .* two types or more; there are type 0",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_no_file_has_is_refused(kind, tmp_path):
    changes, words = WRONG[kind]
    site = ["Bern, CH" if i % 4 else "Basel, CH" for i in range(60)]
    with pytest.raises(ValueError, match=words) as error:
        annotation.prepare(planned(write(tmp_path / "x.h5ad", site=site), **changes), tmp_path / "out", quiet)
    assert "\n" not in str(error.value) and not (tmp_path / "out/plan.json").exists()


def test_four_cells_are_too_few_and_the_label_is_named(tmp_path):
    few = write(tmp_path / "few.h5ad", n=4)
    plan = planned(few, test=write(tmp_path / "x.h5ad"), split=None)
    with pytest.raises(ValueError, match=r"--label=cell_type: 4 cells to learn from, and at least 5 are needed"):
        annotation.prepare(plan, tmp_path / "out", quiet)


@pytest.mark.parametrize("labels", [None, "unknown", np.nan])
def test_a_query_without_labels_is_shown_the_way(labels, tmp_path):
    path = write(tmp_path / "query.h5ad", cell_type=pd.Categorical([labels] * 60))
    if labels is None:
        cells = anndata.read_h5ad(path)
        del cells.obs["cell_type"]
        cells.write_h5ad(path)
    plan = planned(write(tmp_path / "x.h5ad"), test=path, split=None)
    with pytest.raises(ValueError, match=r"experiments\.predict, or by Run\.annotate"):
        annotation.prepare(plan, tmp_path / "out", quiet)


def test_cells_without_a_type_are_counted_and_left_out(tmp_path):
    words = sorted(UNLABELLED)
    texts = [words[i // 3 % len(words)].upper() if i % 3 == 0 else f"type {i % 3}" for i in range(60)]
    said = []
    cells = annotation.read(write(tmp_path / "x.h5ad", cell_type=texts), "cell_type", {}, say=said.append)
    assert set(cells.obs["cell_type"]) == {"type 1", "type 2"} and cells.n_obs == 40
    assert said == [f"{tmp_path}/x.h5ad: 20 of 60 cells have no type and are left out"]


def test_what_says_of_a_cell_that_nobody_knows_is_no_class_to_learn(tmp_path):
    texts = ["Unassigned" if i % 3 == 0 else "unknown" if i % 3 == 1 else f"type {i % 2}" for i in range(60)]
    annotation.prepare(planned(write(tmp_path / "x.h5ad")), tmp_path / "out", quiet)
    store = open_store(tmp_path / "out/data/store")
    study = store.study("train_0")
    study.obs["cell_type"] = texts[: study.n_cells]
    task = {"name": "cell_type", "label": "cell_type"}
    options = {"init_from": "x", "tune": {"method": "frozen"}, "task": task, "data": {"batch": 1, "bag": 4}}
    data = finetuning.resolve(options, suites.entrant("scemb", "run").run)["data"]
    keywords = {name: data[name] for name in ("labels", "unlabelled", "batch", "bag")}
    loader = Loader(store, part="all", **keywords)
    named = np.array([text.startswith("type") for text in texts[: study.n_cells]])
    assert loader.classes["cell_type"] == ["type 0", "type 1"]
    assert finetuning.class_sizes(store, data, "cell_type") == [
        sum(text == name for text in texts[: study.n_cells]) for name in ("type 0", "type 1")
    ]
    labels = np.concatenate([batch["labels"]["cell_type"][batch["cell_mask"]] for batch in loader.epoch_batches()])
    assert (labels >= 0).sum() == named.sum() and len(labels) == study.n_cells


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    places = [tmp_path / folder / "run" for folder in ("first", "second")]
    for place in places:
        place.mkdir(parents=True)
    names = [
        annotation.name_of(tmp_path, str(place)) for place in (*places, places[0], f"{tmp_path}/first/../first/run")
    ]
    assert names == ["run", "run-2", "run", "run"]
    rows = [
        {"model": "cellplm", "run": str(place), "name": name, "method": "full", "seed": 0}
        for place, name in zip(places, names, strict=False)
    ]
    baseline = {"model": "majority", "run": "", "method": "", "seed": 0}
    named = annotation_table.groups([*rows, baseline])
    assert list(named) == ["cellplm run, full", "cellplm run-2, full", "majority"]
    assert list(annotation_table.groups([rows[0], baseline])) == ["cellplm, full", "majority"]


def test_scores_of_a_run_that_was_trained_anew_are_not_taken_for_its_own(tmp_path):
    weights.export(tmp_path / "run.safetensors", {"x": np.zeros(2)}, {})
    assert annotation.name_of(tmp_path, str(tmp_path / "run.safetensors")) == "run"
    weights.export(tmp_path / "run.safetensors", {"x": np.ones(2)}, {})
    with pytest.raises(ValueError, match=r"scores of other weights of this run; choose another --output"):
        annotation.name_of(tmp_path, str(tmp_path / "run.safetensors"))
    assert output.read(tmp_path / "names.json").keys() == {"run"}
