"""A suite's tasks keep their contract, a new file is a new task, and controls stand where they should."""

import inspect
import json
import sys
import types

import numpy as np
import pandas as pd
import pytest

from configs import suite_zero_shot
from experiments.suite import entrants, keys, results, tasks
from tests.harness import suites

NEW = '''
"""How many genes a cell expresses."""

from experiments.suite.tasks import rows

METRICS = {"genes": {"text": "expressed genes of a cell", "higher": True}}
NEEDS = frozenset({"labels"})


def score(entrant, study, seed, *, cells, factor=1):
    """Yield the mean number of genes, times a factor."""
    counts = study.counts.take(study.draw(seed, cells)).toarray()
    name, kind = ("counts", "baseline") if entrant is None else (entrant.name, "model")
    yield from rows(name, kind, "", {"genes": factor * (counts > 0).sum(1).mean()})
'''


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("name", tasks.names())
def test_a_task_keeps_the_contract(name):
    task = tasks.get(name)
    assert task.METRICS and json.loads(json.dumps(task.METRICS)) == task.METRICS
    for about in task.METRICS.values():
        assert about.keys() == {"text", "higher"} and about["text"] and about["higher"] in (True, False, None)
    assert set(task.NEEDS) <= set(tasks.NEEDS)
    parameters = list(inspect.signature(task.score).parameters)
    assert parameters[:3] == ["entrant", "study", "seed"] and set(parameters[3:]) == set(tasks.keywords(task))
    assert "cells" in parameters and ("reference" in parameters or "reference" not in task.NEEDS)
    assert ("columns" in parameters) == ("expression" in task.NEEDS)
    assert task.__doc__ and task.score.__doc__


@pytest.mark.parametrize("variant", suite_zero_shot.VARIANTS)
def test_the_suite_names_tasks_and_options_that_there_are(variant):
    config = suite_zero_shot.get_config(variant)
    assert set(config.order) == set(config.tasks) == set(tasks.names())
    for name in config.order:
        tasks.check_options(name, config.tasks[name].to_dict())


def test_baselines_have_every_metric_that_a_task_names(ground, tmp_path):
    config = suite_zero_shot.get_config("tiny")
    chosen = {name: config.tasks[name].to_dict() for name in config.order}
    screen = {"perturbation": [("control", "GENE1", "GENE2", "GENE3", "GENE4")[i % 5] for i in range(90)]}
    study = suites.write(tmp_path / "tissue.h5ad", 3, spatial=True, **screen)
    (tmp_path / "edges.csv").write_text("TF,target\n" + "".join(f"GENE{i % 4},GENE{i}\n" for i in range(4, 40)))
    options = {"reference": [entrants.Study(ground[1][1])], "truth": [("edges", str(tmp_path / "edges.csv"), "")]}
    done = suites.make(tmp_path / "out", [], [study], chosen, seeds=1, **options).run()
    assert done == {"done": len(chosen)}
    metrics, _ = results.read(tmp_path / "out")
    content = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert list(content["metrics"]) == list(chosen), "in the order of the suite"
    for name, about in content["metrics"].items():
        rows = metrics[(metrics["task"] == name) & (metrics["metric"] != "")]
        assert set(rows["metric"]) == set(about) and {"baseline", "negative", "positive"} <= set(rows["kind"]), name
    names = {"results.jsonl", "suite.json", "table.csv", "table.md", "pictures"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names, "nothing half-written is left"
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == ["PCA-50@tissue.npz"]


def test_a_wrong_task_or_option_names_those_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"task 'guessing': no such task of a suite; there are annotation, cell_imp"):
        suites.make(tmp_path, [], [], {"guessing": {}})
    with pytest.raises(ValueError, match=r"task 'denoising': no option 'kept'; there are keep, rate"):
        suites.make(tmp_path, [], [], {"denoising": {"kept": 0.5}})
    with pytest.raises(ValueError, match=r"task 'metadata': no option 'cells'; there are none"):
        suites.make(tmp_path, [], [], {"metadata": {"cells": 5}})


@pytest.fixture
def new_task(tmp_path, monkeypatch):
    """Return the name of a task whose file was just written."""
    folder, name = tmp_path / "tasks", "expressed_genes"
    folder.mkdir()
    (folder / f"{name}.py").write_text(NEW.lstrip())
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(folder)])
    yield name
    sys.modules.pop(f"{tasks.__name__}.{name}", None)
    vars(tasks).pop(name, None)
    keys.source.cache_clear()


def test_a_new_file_is_a_task_of_suite_table_and_key(new_task, ground, tmp_path):
    _, paths, runs, _ = ground
    alone = suites.write(tmp_path / "alone.h5ad", cell_type="one")
    chosen = {new_task: {"factor": 2}, "cell_typing": {}}
    assert new_task in tasks.names()
    suite = suites.make(tmp_path / "out", runs[:1], [paths[0], alone], chosen, seeds=1)
    assert suite.run() == {"done": 4, "inapplicable": 4}, "as it needs labels"
    study = entrants.Study(paths[0])
    expressed = 2 * (suites.counts(90, 0)[study.draw(0, 60)] > 0).sum(1).mean()
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    means = table[(table["task"] == new_task) & (table["status"] == "done")].set_index("method")["mean"]
    assert means.to_dict() == pytest.approx({"counts": expressed, "first": expressed})
    assert f"## {new_task}" in (tmp_path / "out" / "table.md").read_text()
    module = f"{tasks.__name__}.{new_task}"
    before = {cell.task: cell.key for cell in suite.plan if cell.study.name == "one" and cell.entrant}

    def read(name: str) -> str | None:
        return NEW.replace("factor *", "1 + factor *") if name == module else keys.source(name)

    again = suites.make(tmp_path / "out", runs[:1], paths[:1], chosen, seeds=1, source=read)
    after = {cell.task: cell.key for cell in again.plan if cell.entrant}
    assert [name for name in after if after[name] != before[name]] == [new_task]


# -------------------------------------------------------------------------------------------------------------- tasks


SPATIAL = {
    "spatial_imputation": {"reference_cells": 30},
    "tuned_spatial_imputation": {
        "reference_cells": 30,
        "tuning": {"steps": 2, "learning_rate": 1e-2, "changes": {}},
    },
}


def in_space(tmp_path, ground, names: list[str], done: dict[str, int]) -> pd.DataFrame:
    """Return the mean of each metric of each method, of tasks on tissue and on a study without positions."""
    _, paths, runs, _ = ground
    tissue, reference = suites.write(tmp_path / "tissue.h5ad", 3, spatial=True), [entrants.Study(paths[1])]
    chosen = {name: SPATIAL[name] for name in names}
    made = suites.make(tmp_path / "out", runs, [tissue, paths[0]], chosen, seeds=1, reference=reference)
    assert made.run() == done
    metrics, _ = results.read(tmp_path / "out")
    assert set(metrics["dataset"]) == {"tissue"} and set(metrics["metric"]) == {
        "rmse",
        "mae",
        "corr",
        "cos",
        "mcc_within_gene",
    }
    return metrics.groupby(["task", "method", "metric"])["value"].mean().unstack()


def test_spatial_imputation_hands_the_reference_to_models_of_samples(ground, tmp_path):
    mean = in_space(tmp_path, ground, ["spatial_imputation"], {"done": 2, "inapplicable": 4}).loc["spatial_imputation"]
    assert mean.loc["5 neighbours in the reference", "corr"] > mean.loc["gene mean", "corr"] + 0.2
    assert mean.loc["5 neighbours", "corr"] > 0.3 > mean.loc["truth, exchanged among cells", "corr"]
    assert mean.loc["truth, one in fifty exchanged", "mae"] < 0.7 * mean.loc["5 neighbours", "mae"]
    for name in ("mapping of cells, as Tangram", "aligned neighbours, as SpaGE"):
        assert mean.loc[name, "corr"] > mean.loc["gene mean", "corr"] + 0.2, name
        assert mean.loc[name, "rmse"] < mean.loc["gene constant", "rmse"], name
    assert (mean.loc[["gene constant", "most common bin"], ["corr"]] < 0.2).all(axis=None)
    assert mean.loc["common bin, never 0", "mcc_within_gene"] == 0 < mean.loc["5 neighbours", "mcc_within_gene"]
    assert "gene x sample mean, never 0" in mean.index


def test_imputation_is_scored_by_both_rulers_apart_also_where_everything_is_hidden(ground, tmp_path):
    chosen = {"gene_imputation": {"rates": (0.4, 1.0), "ruler": ("cell",)}}
    chosen |= {name: {"rates": (10,), "ruler": ("visible", "cell")} for name in ("cell_imputation",)}
    suite = suites.make(tmp_path / "out", ground[2][:1], ground[1][:1], chosen, seeds=1)
    assert suite.run() == {"done": 4}
    metrics, _ = results.read(tmp_path / "out")
    whole = ", ruler of the whole cell"
    cases = metrics.groupby("task")["case"].unique()
    assert list(cases["gene_imputation"]) == [f"40%{whole}", f"100%{whole}"]
    assert list(cases["cell_imputation"]) == ["10 of 50 cells", f"10 of 50 cells{whole}"]
    value = metrics.set_index(["case", "method", "metric"])["value"]
    for metric, least in (("mcc_all", 0.1), ("mcc_within_gene", 0.1)):
        assert value[f"40%{whole}", "5 neighbours", metric] > least
    assert value[f"100%{whole}", "5 neighbours", "mae_all"] == value[f"100%{whole}", "gene mean", "mae_all"]
    assert value[f"40%{whole}", "common bin, never 0", "mcc_within_gene"] == 0
    assert value[f"10 of 50 cells{whole}", "gene mean", "mae_all"] < value["10 of 50 cells", "gene mean", "mae_all"]
    wrong = suites.make(tmp_path / "no", [], ground[1][:1], {"gene_imputation": {"rates": (1.0,)}}, seeds=1)
    assert wrong.run() == {"failed": 1}
    assert "take ruler=cell alone" in results.read(tmp_path / "no")[1]["reason"].item()


@pytest.mark.slow
def test_fine_tuned_spatial_imputation_asks_the_same_and_changes_the_model_and_its_twin(ground, tmp_path):
    both = in_space(tmp_path, ground, list(SPATIAL), {"done": 4, "inapplicable": 8})
    plain, tuned = both.loc["spatial_imputation"], both.loc["tuned_spatial_imputation"]
    ours = ["first", "first, random twin"]
    pd.testing.assert_frame_equal(plain.drop(ours), tuned.drop(ours), check_exact=True)
    assert (plain.loc[ours] != tuned.loc[ours]).all(axis=None)


def test_a_head_is_scored_on_the_batch_that_it_did_not_see(ground, tmp_path):
    paths = ground[1]
    lone = suites.write(tmp_path / "lone.h5ad", 4, batch="all")
    parted = suites.write(
        tmp_path / "parted.h5ad", 4, cell_type=["new" if i < 60 and i % 2 else f"type {i % 3}" for i in range(90)]
    )
    done = suites.make(tmp_path / "out", [], [paths[0], lone, parted], {"annotation": {}}, cells=90).run()
    assert done == {"done": 6}
    metrics, _ = results.read(tmp_path / "out")
    mean = metrics[metrics["metric"] == "f1"].groupby(["dataset", "method"])["value"].mean()
    for study in ("one", "lone"):
        assert mean[study, "labels with noise"] > 0.9 > 0.6 > mean[study, "PCA-50, cells exchanged"]
        assert mean[study, "logistic regression"] > mean[study, "most common type"] + 0.2
    taken = metrics.query("dataset == 'parted' and metric == 'accuracy' and method == 'labels with noise'")["value"]
    assert (taken > 0.8).all(), "cells of a type that the other batch does not have are not asked for"


@pytest.mark.slow
def test_controls_are_above_and_below_everything_else(ground, tmp_path):
    _, paths, _, _ = ground
    chosen = {
        "gene_imputation": {"rates": (0.4,)},
        "cell_imputation": {"rates": (10,)},
        "denoising": {"keep": 0.5, "rate": 0.1},
        "cell_typing": {},
        "clustering": {},
        "metadata": {},
    }
    assert suites.make(tmp_path, [], paths[:1], chosen, cells=90).run() == {"done": 12}
    content = json.loads((tmp_path / "suite.json").read_text())
    metrics, _ = results.read(tmp_path)
    metrics = metrics[metrics["metric"] != ""]
    denoised = metrics[metrics["task"] == "denoising"]
    assert list(denoised["case"].unique()) == ["zero flips 10%: flipped", "zero flips 10%: all", "thinned to 50%"]
    flipped = denoised[denoised["case"].str.endswith("flipped")].groupby(["metric", "method"])["value"].mean()
    assert {"as it is", "gene mean", "5 neighbours", "diffusion", "ALRA", "DCA"} < set(flipped["rmse"].index)
    assert flipped["rmse", "as it is"] == flipped["rmse"].max(), "leaving the counts is the worst answer"
    for (task, case, metric), part in metrics.groupby(["task", "case", "metric"]):
        if case == "batch" or "flipped" in case:
            continue  # the positive control knows types alone; where all was expressed, more is better
        sign = -1 if content["metrics"][task][metric]["higher"] is False else 1
        mean = sign * part.groupby(["kind", "method"])["value"].mean()
        best = mean["baseline"].max()
        assert mean["positive"].max() > min(best, 0.97), (task, case, metric)
        if task != "cell_imputation":  # where nothing of a cell is seen, there is nothing to know it by
            assert best > mean["negative"].max(), (task, case, metric)


@pytest.mark.slow
def test_tuned_denoising_has_the_run_as_it_was_tuned_and_from_scratch(ground, tmp_path):
    _, paths, runs, _ = ground
    tuning = {"steps": 4, "learning_rate": 1e-2, "rate": 0.1, "every": 2, "patience": 3}
    chosen = {"denoising": {"keep": 0.5, "rate": 0.1}, "tuned_denoising": {"rate": 0.1, "tuning": tuning}}
    suites.make(tmp_path, runs[:1], paths[:1], chosen, seeds=1).run()
    metrics, _ = results.read(tmp_path)
    values = metrics.set_index(["task", "case", "method", "metric"])["value"].sort_index()
    plain, tuned = values["denoising", "zero flips 10%: flipped"], values["tuned_denoising", ""]
    baselines = metrics.query("task == 'tuned_denoising' and run == ''")["method"].unique()
    pd.testing.assert_series_equal(plain[list(baselines)], tuned[list(baselines)])
    run = runs[0].name
    assert set(tuned.index.get_level_values(0)) - set(baselines) == {run, f"{run}, random twin", f"{run}, zero-shot"}
    assert (tuned[f"{run}, zero-shot"] == plain[run]).all()
    assert (tuned[run] != plain[run]).all() and (tuned[f"{run}, random twin"] != plain[f"{run}, random twin"]).all()


def test_scvi_is_a_baseline_of_embeddings_where_it_is_installed(tmp_path, monkeypatch):
    path, chosen = suites.write(tmp_path / "even.h5ad"), ("cell_typing", "annotation")
    types_of, told = np.eye(3)[entrants.Study(path).draw(0, 90) % 3], []

    class SCVI:
        """A model that knows the types of the cells, and notes what it was told."""

        def __init__(self, cells):
            told.append(cells.obs["batch"].nunique())

        def setup_anndata(cells, batch_key):
            told.append(batch_key)

        def train(self, **options):
            told.append(options["accelerator"])

        def get_latent_representation(self, cells):
            assert (cells.X.sum(1) > 0).all() and cells.X.max() == np.rint(cells.X.max()), "raw counts"
            return types_of

    def fill(folder: str, module) -> pd.DataFrame:
        """Return the rows of scVI in the table."""
        monkeypatch.setitem(sys.modules, "scvi", module)
        tasks_of = {name: {} for name in chosen}
        assert suites.make(tmp_path / folder, [], [path], tasks_of, seeds=1, cells=90).run() == {"done": 2}
        table = pd.read_csv(tmp_path / folder / "table.csv", dtype=str, keep_default_na=False)
        return table[table["method"] == "scVI"].set_index(["task", "metric"])

    without = fill("without", None)
    assert set(without["status"]) == {"inapplicable"} and len(without) == 2
    assert without["reason"].str.contains(r"scVI is not installed: pip install 'scfm_jax\[scvi\]'").all()
    package = types.SimpleNamespace(settings=types.SimpleNamespace(), model=types.SimpleNamespace(SCVI=SCVI))
    scores = fill("with", package)["mean"].astype(float)
    assert told == ["batch", 2, "cpu"], "one fit for all tasks of a seed"
    assert scores["cell_typing", "accuracy"] == 1 and scores["annotation", "f1"] > 0.9 and package.settings.seed == 0


def test_harmony_is_a_baseline_where_it_is_installed(tmp_path, monkeypatch):
    path = suites.write(tmp_path / "even.h5ad")  # three types, two batches, each pair of them fifteen times
    types_of = np.eye(3)[entrants.Study(path).draw(0, 90) % 3]

    def fill(module) -> pd.Series:
        """Return the scores of Harmony, by metric."""
        monkeypatch.setitem(sys.modules, "harmonypy", module)
        assert suites.make(tmp_path / "out", [], [path], {"integration": {}}, seeds=1, cells=90).run() == {"done": 1}
        table = pd.read_csv(tmp_path / "out" / "table.csv", dtype=str, keep_default_na=False)
        assert {"PCA-50", "PCA-50, batch means removed", "scVI"} < set(table["method"])
        table = table[table["method"] == "Harmony on PCA-50"]
        if module is None:
            assert table["status"].tolist() == ["inapplicable"] and "pip install" in table["reason"].item()
        return table.set_index("metric")["mean"]

    def harmony(version: str, correct) -> types.SimpleNamespace:
        """Return a package whose result is `correct` of the components and of the batch of each cell."""

        def run_harmony(x, meta, name, *, verbose, random_state):
            return types.SimpleNamespace(Z_corr=correct(x, np.asarray(meta[name])))

        return types.SimpleNamespace(__version__=version, run_harmony=run_harmony)

    assert fill(None).tolist() == [""]
    assert "Harmony on PCA-50: inapplicable: Harmony is not installed" in (tmp_path / "out" / "table.md").read_text()
    perfect = fill(harmony("2.1.0", lambda x, batch: types_of)).astype(float)
    for metric in ("nmi", "ari", "asw_label", "isolated_asw", "asw_batch", "pcr"):
        assert perfect[metric] == pytest.approx(1, abs=1e-6), f"{metric}: all cells of a type are in one place"
    useless = fill(harmony("2.2.0", lambda x, batch: np.eye(2)[batch])).astype(float)
    for metric in ("asw_batch", "ilisi", "kbet", "pcr"):
        assert useless[metric] == pytest.approx(0, abs=1e-6), f"{metric}: all cells of a batch are in one place"
    assert useless["total"] < perfect["total"] - 0.5


# -------------------------------------------------------------------------------------------------------- gene vectors


def test_gene_vectors_are_asked_for_perturbations_and_networks_where_a_study_has_them(ground, tmp_path):
    screen = {"condition": [("ctrl", "GENE1+ctrl", "ctrl+GENE2", "GENE3+ctrl")[i % 4] for i in range(90)]}
    paths = [suites.write(tmp_path / "screen.h5ad", 3, **screen), suites.write(tmp_path / "plain.h5ad", 4)]
    (tmp_path / "edges.csv").write_text("TF,target\n" + "".join(f"GENE{i % 4},GENE{i}\n" for i in range(4, 40)))
    chosen = {"perturbation": {"least": 5, "folds": 3}, "networks": {"n_genes": 40}}
    runs, truth = ground[2][:1], [("edges", str(tmp_path / "edges.csv"), "")]
    done = suites.make(tmp_path / "out", runs, paths, chosen, seeds=1, truth=truth).run()
    assert done == {"done": 6, "inapplicable": 2}, "no perturbation of the plain study"
    metrics, cells = results.read(tmp_path / "out")
    reason = cells.loc[cells["status"] == "inapplicable", "reason"].iloc[0]
    assert (
        reason == "needs a study with control cells and 3 perturbed genes, in obs.perturbation or GEARS' obs.condition"
    )
    values = metrics[metrics["dataset"] == "screen"].set_index(["task", "metric", "method"])["value"]
    told = values["perturbation"]["discrimination"]
    assert {"first", "first, random twin"} <= set(told.index) and told["no change"] == pytest.approx(0.5, abs=0.2)
    epr = values["networks"]["epr"]
    assert epr["edges with noise"] > 2 > epr["|Pearson|, names exchanged"] and np.isfinite(epr["first"])
