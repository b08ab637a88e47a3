"""A suite computes what is not there, survives death and failures, knows its contamination, and orders its controls."""

import json
import pathlib
import subprocess
import sys
import time
import types

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from experiments.analyses import embedding
from experiments.suite import contamination, tuning
from experiments.suite import counts as suite_counts
from experiments.suite import entrants as suite_data
from experiments.suite import fill as suite
from experiments.suite import keys as suite_keys
from scfm_jax import api, models
from scfm_jax.models.exceiver import published as convert
from scfm_jax.saving import leaves
from scfm_jax.tasks.imputation import imputation
from tests.conftest import SHARED, needs_shared
from tests.harness import commands

V = 64
GENES = [f"GENE{i}" for i in range(V)]
SMALL = {
    "cellplm": {"enc_hid": 16, "enc_layers": 1, "enc_head": 2, "latent_dim": 8, "num_clusters": 4, "dec_hid": 16},
    "scemb": {"embed_dim": 16, "ffn_dim": 16, "num_layers": 1, "num_heads": 2},
}
TASKS = {"gene_imputation": {"rates": (0.4,)}, "cell_typing": {}}


def counts(n: int, seed: int) -> np.ndarray:
    """Return counts of three types of cells of two batches."""
    rng = np.random.default_rng(seed)
    own = (np.arange(n)[:, None] % 3) == (np.arange(V) % 3)
    batch = 1 + 0.5 * ((np.arange(n)[:, None] % 2) & (np.arange(V) % 5 == 0))
    return rng.poisson(np.where(own, 5.0, 0.4) * batch * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def write(path: pathlib.Path, seed: int = 0, n: int = 90, spatial: bool = False, **obs) -> str:
    """Write a study."""
    table = {"cell_type": [f"type {i % 3}" for i in range(n)], "batch": [f"batch {i % 2}" for i in range(n)]} | obs
    obs, var = pd.DataFrame(table, [f"c{i}" for i in range(n)]), pd.DataFrame(index=GENES)
    obsm = {"spatial": np.random.default_rng(0).random((n, 2))} if spatial else {}
    anndata.AnnData(sp.csr_matrix(counts(n, seed)), obs=obs, var=var, obsm=obsm).write_h5ad(path)
    return str(path)


def entrant(
    model: str, name: str, seed: int = 0, genes: list[str] = GENES, classes: dict | None = None, **data
) -> suite_data.Entrant:
    """Return a small model of random weights in a suite."""
    sections = models.options(model, "tiny")
    config = {**sections, "model": sections["model"] | SMALL[model], "data": {"labels": [], **data}}
    meta = {"model": model, "config": config, "genes": genes, "classes": classes or {}, "step": 3}
    return suite_data.Entrant(name, name, api.build(meta, {"params": {}}, {}, "a test").twin(100 + seed))


def make(folder: pathlib.Path, entrants, paths, tasks=TASKS, **options) -> suite.Suite:
    """Return a suite on studies."""
    options = {"cells": 60, "seeds": 2, "say": lambda _: None} | options
    return suite.Suite("test", tasks, entrants, [suite_data.Study(p) for p in paths], folder, **options)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with studies, the runs, and the folder of a suite that has run."""
    folder = tmp_path_factory.mktemp("suite")
    paths = [write(folder / "one.h5ad"), write(folder / "two.h5ad", 1)]
    entrants = [entrant("cellplm", "first"), entrant("scemb", "second")]
    counts = make(folder / "out", entrants, paths).run()
    return folder, paths, entrants, counts


# ------------------------------------------------------------------------------------------------------------- cells


def test_every_cell_is_there_once_and_says_what_it_is(ground):
    folder, _, _, done = ground
    metrics, cells = suite.read(folder / "out")
    assert done == {"done": 20, "inapplicable": 4}
    assert len(cells) == 3 * 2 * 2 * 2 and cells["key"].is_unique
    assert set(cells[cells["status"] == "inapplicable"]["model"]) == {"scemb"}
    assert cells[cells["model"] == "scemb"].groupby("task")["status"].first().to_dict() == {
        "cell_typing": "done",
        "gene_imputation": "inapplicable",
    }
    assert {"model", "twin", "baseline", "positive", "negative"} == set(metrics["kind"])
    per_method = metrics.groupby(["task", "case", "dataset", "metric", "method"])["seed"]
    assert (per_method.nunique() == 2).all() and (per_method.size() == 2).all()
    table = pd.read_csv(folder / "out" / "table.csv")
    one = table[(table["method"] == "PCA-50") & (table["metric"] == "accuracy") & (table["dataset"] == "one")].iloc[0]
    values = metrics.query("method == 'PCA-50' and metric == 'accuracy' and dataset == 'one'")["value"]
    mean, half = imputation.interval(values)
    assert one["mean"] == pytest.approx(mean) and one["half"] == pytest.approx(half)
    text = (folder / "out" / "table.md").read_text()
    assert "| first, random twin | twin | unknown |" in text and "scemb does not predict expression" in text


def test_pictures_are_of_the_cells_that_were_scored(ground):
    folder, paths, entrants, _ = ground
    for name in ("first", "second", "PCA-50"):
        found = np.load(folder / "out" / "pictures" / f"{name}@one.npz")
        assert found["embedding"].shape[0] == 60 == found["confusion"].sum() and len(found["types"]) == 3
    study = suite_data.Study(paths[0])
    found = np.load(folder / "out" / "pictures" / "first@one.npz")
    assert (found["label"] == study.labels[study.draw(0, 60)].astype(str)).all()
    np.testing.assert_allclose(found["embedding"], entrants[0].embed(study, 0, 60, False), rtol=1e-4, atol=1e-5)


def test_a_second_time_nothing_is_computed(ground, monkeypatch):
    folder, paths, entrants, _ = ground
    before = [(folder / "out" / name).read_bytes() for name in ("results.jsonl", "table.csv")]
    monkeypatch.setattr(suite.Suite, "fill", None)
    monkeypatch.setattr(suite_data.Entrant, "embed", None)
    assert make(folder / "out", entrants, paths).run() == {"kept": 24}
    assert before == [(folder / "out" / name).read_bytes() for name in ("results.jsonl", "table.csv")]


def test_what_changed_is_computed_again_and_nothing_else(ground, tmp_path):
    folder, paths, entrants, _ = ground
    keys = {cell.key for cell in make(folder / "out", entrants, paths).plan}

    def new(*args, **options) -> set[tuple]:
        plan = make(tmp_path, *args, **options).plan
        return {(cell.names["run"], cell.task, cell.study.name, cell.seed) for cell in plan if cell.key not in keys}

    copied = tmp_path / "one.h5ad"
    copied.write_bytes(pathlib.Path(paths[0]).read_bytes())
    assert not new(entrants, [str(copied), paths[1]]), "where a file lies does not matter"
    copied.unlink()  # the plans before may have it open
    write(copied, seed=7)
    assert {name for _, _, name, _ in new(entrants, [str(copied), paths[1]])} == {"one"}
    assert {run for run, *_ in new([entrant("cellplm", "first", 1), entrants[1]], paths)} == {"first"}
    more = new(entrants, paths, {**TASKS, "gene_imputation": {"rates": (0.5,)}})
    assert {task for _, task, *_ in more} == {"gene_imputation"}
    assert {seed for *_, seed in new(entrants, paths, seeds=3)} == {2}
    assert len(new(entrants, paths, cells=61)) == len(keys)


def test_code_counts_and_comments_do_not(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["def f():\n    return 1\n", '"""Now said."""\n\n\ndef f():\n    """One."""\n    return 1  # why\n']
    for name, text in zip(
        ("suite_code_a", "suite_code_b", "suite_code_c"), (*texts, "def f():\n    return 2\n"), strict=True
    ):
        (tmp_path / f"{name}.py").write_text(text)
    hashes = [suite_keys._source(f"suite_code_{x}")[0] for x in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]
    followed = suite_keys._source("experiments.suite.counts")[1]
    assert "scfm_jax.tasks.imputation.denoising" in followed and "scfm_jax.tasks.imputation.baselines" in followed


@pytest.mark.parametrize("cut", [20, 0])
def test_a_killed_suite_goes_on_to_the_same_table(cut, ground, monkeypatch):
    folder, paths, entrants, _ = ground
    fill, calls = suite.Suite.fill, []

    def die(self, cell):
        calls.append(cell)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return fill(self, cell)

    monkeypatch.setattr(suite.Suite, "fill", die)
    with pytest.raises(KeyboardInterrupt):
        make(folder / f"again {cut}", entrants, paths).run()
    results = folder / f"again {cut}" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    tables = [pd.read_csv(folder / name / "table.csv") for name in ("out", f"again {cut}")]
    assert 0 < len(tables[1]) < len(tables[0]), "what there is so far"
    assert not [i for i, line in enumerate(lines[-3:-1]) if "status" in line]
    results.write_text("".join(lines[:-2]) + lines[-2][:cut])  # it died while it wrote the cell before
    counts = make(folder / f"again {cut}", entrants, paths).run()
    assert counts["kept"] == 6 and sum(counts.values()) == 24
    tables = [pd.read_csv(folder / name / "table.csv") for name in ("out", f"again {cut}")]
    pd.testing.assert_frame_equal(*tables)


def test_a_cell_that_fails_stands_in_the_table_and_the_others_go_on(ground, monkeypatch, tmp_path):
    _, paths, entrants, _ = ground
    whole = suite_counts.TASKS["gene_imputation"]

    def broken(run, study, *args, **options):
        if run is not None and study.name == "two":
            raise RuntimeError("out of\nluck")
        yield from whole(run, study, *args, **options)

    monkeypatch.setitem(suite_counts.TASKS, "gene_imputation", broken)
    counts = make(tmp_path, entrants[:1], paths).run()
    assert counts == {"done": 14, "failed": 2}
    table = pd.read_csv(tmp_path / "table.csv").fillna("")
    failed = table[table["status"] == "failed"]
    assert len(failed) == 1 and failed.iloc[0]["reason"] == "RuntimeError: out of luck" and failed.iloc[0]["seeds"] == 2
    assert failed.iloc[0]["method"] == "first" and "failed: RuntimeError" in (tmp_path / "table.md").read_text()
    assert not table[
        (table["run"] == "first") & (table["dataset"] == "one") & (table["task"] == "gene_imputation")
    ].empty
    monkeypatch.setitem(suite_counts.TASKS, "gene_imputation", whole)
    assert make(tmp_path, entrants[:1], paths).run() == {"kept": 14, "done": 2}, "failed cells are tried again"
    assert "failed" not in set(pd.read_csv(tmp_path / "table.csv")["status"])


# ------------------------------------------------------------------------------------------------ the same for all runs


def test_runs_have_names_of_their_own():
    texts = ["runs/x", "old/x", "exceiver:w/published.ckpt:genes.txt", "scemb:weights.pt", "y.safetensors"]
    assert suite_data.names(texts) == ["x 1", "x 2", "published", "weights", "y"]


def test_runs_of_other_genes_are_asked_the_same_entries(ground, tmp_path):
    _, paths, entrants, _ = ground
    study = suite_data.Study(paths[0])
    turned = entrant("cellplm", "turned", genes=GENES[:4:-1])
    stranger = entrant("cellplm", "stranger", genes=[f"OTHER{i}" for i in range(80)])
    columns = suite_data.shared_genes(study, [entrants[0], turned, stranger])
    assert columns.tolist() == list(range(5, V)), "what the stranger does not know is no loss to the others"
    table = suite_counts.draw(study, columns, 0, 60)
    hidden = np.random.default_rng(0).random(table.counts.shape) < 0.3
    problem = imputation.pose(table.counts, np.ones(len(columns), bool), hidden, table.bags)
    slots = study.slots(turned.run.genes)[columns]
    asked, order = suite_counts.onto(problem, slots, V - 5, 7)
    assert max(map(len, asked.bags)) <= 7 and sum(map(len, asked.bags)) == len(table.counts)
    assert (asked.counts[:, slots] == problem.counts).all()
    there = np.empty(len(order))
    there[order] = asked.counts[asked.entries] + 1000 * asked.entries[0]
    assert (there == problem.counts[problem.entries] + 1000 * problem.entries[0]).all()
    same = table.counts[problem.entries]
    moved = np.zeros((len(table.counts), V - 5))
    moved[:, slots] = table.counts
    back = np.empty(len(order))
    back[order] = moved[asked.entries]
    assert (back == same).all()
    lines = make(tmp_path, [stranger], paths[:1], {"gene_imputation": {"rates": (0.4,)}}, seeds=1)
    lines.columns["one"] = columns
    assert lines.run()["failed"] == 1


SPATIAL = {
    "spatial_imputation": {"reference_cells": 30},
    "tuned_spatial_imputation": {
        "reference_cells": 30,
        "tuning": {"steps": 2, "learning_rate": 1e-2, "changes": {}},
    },
}


def in_space(tmp_path, ground, names: list[str], done: dict[str, int]) -> pd.DataFrame:
    """Return the mean of each metric of each method, of tasks on tissue and on a study without positions."""
    _, paths, entrants, _ = ground
    tissue, reference = write(tmp_path / "tissue.h5ad", 3, spatial=True), [suite_data.Study(paths[1])]
    tasks = {name: SPATIAL[name] for name in names}
    made = make(tmp_path / "out", entrants, [tissue, paths[0]], tasks, seeds=1, reference=reference)
    assert made.run() == done
    metrics, _ = suite.read(tmp_path / "out")
    assert set(metrics["dataset"]) == {"tissue"} and set(metrics["metric"]) == {"rmse", "mae", "corr", "cos"}
    return metrics.groupby(["task", "method", "metric"])["value"].mean().unstack()


def test_spatial_imputation_hands_the_reference_to_models_of_samples(ground, tmp_path):
    mean = in_space(tmp_path, ground, ["spatial_imputation"], {"done": 2, "inapplicable": 4}).loc["spatial_imputation"]
    assert mean.loc["5 neighbours in the reference", "corr"] > mean.loc["gene mean", "corr"] + 0.2
    assert mean.loc["5 neighbours", "corr"] > 0.3 > mean.loc["truth, exchanged among cells", "corr"]
    assert mean.loc["truth, one in fifty exchanged", "mae"] < 0.7 * mean.loc["5 neighbours", "mae"]


@pytest.mark.slow
def test_fine_tuned_spatial_imputation_asks_the_same_and_changes_the_model_and_its_twin(ground, tmp_path):
    both = in_space(tmp_path, ground, list(SPATIAL), {"done": 4, "inapplicable": 8})
    plain, tuned = both.loc["spatial_imputation"], both.loc["tuned_spatial_imputation"]
    ours = ["first", "first, random twin"]
    pd.testing.assert_frame_equal(plain.drop(ours), tuned.drop(ours), check_exact=True)
    assert (plain.loc[ours] != tuned.loc[ours]).all(axis=None)


def held_out(genes: np.ndarray, n: int = 90) -> imputation.Problem:
    """Return cells of two samples without `genes`, and 30 others that have them, but not gene 3."""
    there = np.arange(V) != 3
    hidden = np.broadcast_to(np.isin(np.arange(V), genes), (n, V))
    return imputation.pose(
        counts(n, 0),
        np.ones(V, bool),
        hidden,
        [np.arange(n)],
        samples=np.arange(n) % 2,
        coords=np.random.default_rng(0).random((n, 2)).astype(np.float32),
        reference=(counts(30, 1), there),
    )


def test_fine_tuning_sees_all_cells_and_no_hidden_gene():
    genes = np.array([5, 9, 40])
    loader = tuning.Bags(held_out(genes), bag=16, batch=2, labels=["batch"], seed=0)
    assert [np.flatnonzero(~part).tolist() for part in loader.measured] == [[5, 9, 40], [5, 9, 40], [3]]
    batches = [loader.batch(step) for step in range(60)]
    assert len({batch["genes"].shape for batch in batches}) == 1, "one compilation"
    seen = {part: set() for part in range(3)}
    for batch in batches:
        (part,) = np.unique(batch["study"])
        seen[part] |= set(batch["genes"][batch["cell_mask"]].ravel())
        assert batch["cell_mask"].sum() == (32 if part < 2 else 30)
        assert np.isnan(batch["coords"][batch["cell_mask"]]).all() == (part == 2)
    assert all(seen[part] == set(range(V + 1)) - {5, 9, 40} for part in (0, 1)), "V is the padding"
    assert {5, 9, 40} < seen[2] and 3 not in seen[2]
    again = tuning.Bags(held_out(genes), bag=16, batch=2, labels=["batch"], seed=0)
    assert all((again.batch(7)[name] == batches[7][name]).all() for name in ("genes", "counts", "index"))
    assert sorted(i for b in loader.epoch_batches() for i in b["index"][b["cell_mask"]]) == list(range(120))


def test_a_new_study_is_not_taken_for_the_first_of_pretraining():
    run = entrant("cellplm", "first", classes={"study": ["a", "b", "c"]})
    problem = held_out(np.arange(0, V, 5))
    ruler = imputation.bins.fit(problem.counts, problem.depth)
    flat = leaves.flatten(run.run.variables)
    tables = [name for name in flat if "study" in name and flat[name].shape[0] == 3]
    other = leaves.nest(flat | {name: flat[name][::-1] for name in tables})
    assert tables and not np.allclose(flat[tables[0]], flat[tables[0]][::-1])
    np.testing.assert_allclose(*(run.imputer(v, problem, ruler) for v in (run.run.variables, other)), rtol=1e-4)


@pytest.mark.slow
def test_fine_tuned_runs_predict_held_out_genes_better_and_the_same_every_time(compilation_cache):
    run = entrant("cellplm", "first", bag=32, batch=1)
    genes = np.arange(0, V, 5)
    problem, truth = held_out(genes), counts(90, 0)[:, genes].ravel()
    changes = {"cellplm": {"inputs": {"score": "all"}, "loss": {"dae": False}}}
    options = {"learning_rate": 5e-3, "changes": changes}
    ruler = imputation.bins.fit(problem.counts, problem.depth)

    def said() -> np.ndarray:
        tuned = tuning.fine_tune(run.run, problem, 0, steps=60, **options)
        assert tuned.source.endswith("fine-tuned for 60 updates") and run.run.source == "random weights of seed 100"
        return run.imputer(tuned.variables, problem, ruler)

    before, after = run.imputer(run.run.variables, problem, ruler), said()
    assert np.corrcoef(after, truth)[0, 1] > np.corrcoef(before, truth)[0, 1] + 0.2
    np.testing.assert_array_equal(after, said())


def test_a_head_is_scored_on_the_batch_that_it_did_not_see(ground, tmp_path):
    paths = ground[1]
    lone = write(tmp_path / "lone.h5ad", 4, batch="all")
    parted = write(
        tmp_path / "parted.h5ad", 4, cell_type=["new" if i < 60 and i % 2 else f"type {i % 3}" for i in range(90)]
    )
    done = make(tmp_path / "out", [], [paths[0], lone, parted], {"annotation": {}}, cells=90).run()
    assert done == {"done": 6}
    metrics, _ = suite.read(tmp_path / "out")
    mean = metrics[metrics["metric"] == "f1"].groupby(["dataset", "method"])["value"].mean()
    for study in ("one", "lone"):
        assert mean[study, "labels with noise"] > 0.9 > 0.6 > mean[study, "PCA-50, cells exchanged"]
        assert mean[study, "logistic regression"] > mean[study, "most common type"] + 0.2
    taken = metrics.query("dataset == 'parted' and metric == 'accuracy' and method == 'labels with noise'")["value"]
    assert (taken > 0.8).all(), "cells of a type that the other batch does not have are not asked for"


def test_weights_whose_genes_have_no_names_are_asked_nothing_and_stop_nobody(ground, tmp_path):
    _, paths, entrants, _ = ground
    unnamed = entrant("cellplm", "published", genes=[f"{convert.UNKNOWN}:{i}" for i in range(V)])
    assert make(tmp_path, [unnamed, entrants[0]], paths[:1], seeds=1).run() == {"done": 4, "inapplicable": 2}
    metrics, cells = suite.read(tmp_path)
    assert set(metrics["run"]) == {"", "first"}
    assert cells[cells["run"] == "published"]["reason"].str.contains("order was never published").all()
    named = make(tmp_path, [entrant("cellplm", "published")], paths[:1], seeds=1)
    assert named.run() == {"kept": 2, "done": 2}, "with the names it is asked all"


@needs_shared
@pytest.mark.slow
def test_released_weights_are_a_run_of_a_suite(ground, tmp_path):
    pytest.importorskip("torch", reason="reading the released checkpoints needs torch: pip install 'scfm_jax[convert]'")
    weights = SHARED / "data/checkpoints/exceiver/pretrained_TS_exceiver.ckpt"
    ground[2][0].run.export(tmp_path / "first.safetensors")
    runs = f"--runs=exceiver:{weights},{tmp_path}/first.safetensors"
    args = [runs, f"--data={ground[1][0]}", f"--output={tmp_path}/out", "--tasks=cell_typing,gene_imputation"]
    ended = commands.run("evaluate", "--suite=zero_shot:tiny", *args, folder=tmp_path)
    assert ended.code == 0 and "8 done, 4 inapplicable" in ended.out.splitlines()[-1], ended.err
    assert "pretrained_TS_exceiver: inapplicable: the weights came" in (tmp_path / "out" / "table.md").read_text()


def test_harmony_is_a_baseline_where_it_is_installed(ground, tmp_path, monkeypatch):
    calls = []

    def run_harmony(x, meta, name, *, verbose, random_state):
        calls.append((x.shape, len(meta[name]), random_state))
        return types.SimpleNamespace(Z_corr=x[:, :5])

    def fill(module, done: dict[str, int]) -> pd.DataFrame:
        monkeypatch.setitem(sys.modules, "harmonypy", module)
        assert make(tmp_path, [], ground[1][:1], {"integration": {}}, seeds=1).run() == done
        table = pd.read_csv(tmp_path / "table.csv").fillna("")
        assert {"PCA-50", "PCA-50, batch means removed"} < set(table["method"])
        return table[table["method"] == "Harmony on PCA-50"]

    absent = fill(None, {"done": 1})
    assert absent["status"].tolist() == ["inapplicable"] and "pip install" in absent["reason"].item()
    assert "Harmony on PCA-50: inapplicable: Harmony is not installed" in (tmp_path / "table.md").read_text()
    found = fill(types.SimpleNamespace(__version__="2.1.0", run_harmony=run_harmony), {"done": 1})
    assert set(found["status"]) == {"done"} and "total" in set(found["metric"])
    assert calls == [((60, 50), 60, 0)]


# -------------------------------------------------------------------------------------------- controls, contamination


def test_controls_are_above_and_below_everything_else(ground, tmp_path):
    _, paths, _, _ = ground
    tasks = {
        "gene_imputation": {"rates": (0.4,)},
        "cell_imputation": {"rates": (10,)},
        "denoising": {"keep": 0.5, "rate": 0.1},
        "cell_typing": {},
        "clustering": {},
        "metadata": {},
    }
    assert make(tmp_path, [], paths[:1], tasks, cells=90).run() == {"done": 12}
    content = json.loads((tmp_path / "suite.json").read_text())
    metrics, _ = suite.read(tmp_path)
    for (task, case, metric), part in metrics.groupby(["task", "case", "metric"]):
        if case == "batch" or "flipped" in case:
            continue  # the positive control knows types alone; where all was expressed, more is better
        sign = -1 if content["metrics"][task][metric]["higher"] is False else 1
        mean = sign * part.groupby(["kind", "method"])["value"].mean()
        best = mean["baseline"].max()
        assert mean["positive"].max() > min(best, 0.97), (task, case, metric)
        if task != "cell_imputation":  # where nothing of a cell is seen, there is nothing to know it by
            assert best > mean["negative"].max(), (task, case, metric)


def test_a_study_in_pretraining_is_found_by_name_by_file_and_by_its_cells(ground, tmp_path):
    paths = ground[1]
    done = commands.run("ingest", f"--input={paths[0]}", f"--store={tmp_path}/store", "--workers=0", folder=tmp_path)
    assert done.code == 0, done.err
    adata = anndata.read_h5ad(paths[0])
    (tmp_path / "renamed.h5ad").write_bytes(pathlib.Path(paths[0]).read_bytes())
    adata[::3, 10:].copy().write_h5ad(tmp_path / "part.h5ad")
    named = tmp_path / "named"
    named.mkdir()
    write(named / "one.h5ad", seed=5)
    given = [tmp_path / "renamed.h5ad", tmp_path / "part.h5ad", named / "one.h5ad", pathlib.Path(paths[1])]
    studies = [suite_data.Study(str(path)) for path in given]
    flags = contamination.flags(entrant("cellplm", "first", store=f"{tmp_path}/store"), studies)
    assert {name: flag["seen"] for name, flag in flags.items()} == {
        "renamed": True,
        "part": True,
        "one": True,
        "two": False,
    }
    assert "the file" in flags["renamed"]["why"] and "100% of its cells" in flags["part"]["why"]
    assert "name" in flags["one"]["why"] and "0.0% of its cells" in flags["two"]["why"]
    unknown = contamination.flags(entrant("cellplm", "first"), studies[:1])["renamed"]
    assert unknown["seen"] is None


# ------------------------------------------------------------------------------------------------------------ command


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--suite=zero_shot --data=x.h5ad --output=d", "--runs is missing"),
        ("--suite=one_shot --runs=w --data=x --output=d", "there are zero_shot"),
        ("--suite=zero_shot --runs=w --data=nowhere.h5ad --output=d", "nowhere.h5ad"),
        ("--suite=zero_shot --runs=w --data=x --output=d --tasks=guessing", "guessing"),
    ],
)
def test_mistakes_are_one_line(args, says, tmp_path):
    ended = commands.run("evaluate", *args.split(), folder=tmp_path)
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(lines) == 1 and says in lines[0] and "Traceback" not in ended.err


def test_a_file_that_was_embedded_before_is_scored_as_the_file_it_was_made_of(ground, tmp_path):
    _, paths, entrants, _ = ground
    options = {"seeds": (0,), "say": lambda _: None}
    first = embedding.evaluate(entrants[0].run, paths[0], tmp_path, **options)
    (tmp_path / "embedding.h5ad").rename(tmp_path / "embedded.h5ad")
    again = embedding.evaluate(entrants[0].run, tmp_path / "embedded.h5ad", tmp_path, **options)
    assert first["rows"] == again["rows"] and "X_cellplm" in anndata.read_h5ad(tmp_path / "embedding.h5ad").obsm


@pytest.mark.slow
def test_command_fills_a_table(ground, tmp_path):
    _, paths, entrants, _ = ground
    entrants[0].run.export(tmp_path / "first.safetensors")
    args = [f"--runs={tmp_path}/first.safetensors", f"--data={paths[0]}", f"--output={tmp_path}/out"]
    for words in ("done", "kept"):
        ended = commands.run("evaluate", "--suite=zero_shot:tiny", *args, folder=tmp_path)
        assert ended.code == 0 and words in ended.out.splitlines()[-1], ended.err
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(table["task"]) >= {"gene_imputation", "denoising", "integration", "metadata"}
    assert "failed" not in set(table["status"]), table[table["status"] == "failed"]


@pytest.mark.slow
def test_a_command_killed_outright_goes_on_to_the_same_table_byte_by_byte(ground, compilation_cache, tmp_path):
    _, paths, entrants, _ = ground
    entrants[0].run.export(tmp_path / "first.safetensors")
    args = ["--suite=zero_shot:tiny", f"--runs={tmp_path}/first.safetensors", f"--data={paths[0]},{paths[1]}"]
    args += ["--tasks=cell_typing,gene_imputation,annotation"]
    results = tmp_path / "killed" / "results.jsonl"
    command = [sys.executable, "-m", "experiments.evaluate", *args, f"--output={tmp_path}/killed"]
    process = subprocess.Popen(command, cwd=commands.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and (not results.exists() or results.read_text().count('"status"') < 4):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9, "it was over before it could be killed"
    for folder in ("whole", "killed"):
        ended = commands.run("evaluate", *args, f"--output={tmp_path}/{folder}", folder=tmp_path)
        assert ended.code == 0, ended.err
    assert "kept" in ended.out.splitlines()[-1]
    for name in ("table.csv", "table.md"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
