"""Fine-tuning inside a suite sees all cells and no hidden gene, helps, and is the same every time."""

import json
import pathlib
import re

import numpy as np
import pandas as pd
import pytest

from experiments.suite import adaptation, entrants, tuning
from experiments.suite.counts import imputer
from experiments.suite.tasks import integration, tuned_integration
from scfm_jax.saving import leaves
from scfm_jax.tasks.imputation import imputation
from scfm_jax.training import tuning as tuning_methods
from tests.harness import suites


def held_out(genes: np.ndarray, n: int = 90) -> imputation.Problem:
    """Return cells of two samples without `genes`, and 30 others that have them, but not gene 3."""
    measured = np.arange(suites.V) != 3
    hidden = np.broadcast_to(np.isin(np.arange(suites.V), genes), (n, suites.V))
    return imputation.pose(
        suites.counts(n, 0),
        np.ones(suites.V, bool),
        hidden,
        [np.arange(n)],
        samples=np.arange(n) % 2,
        coords=np.random.default_rng(0).random((n, 2)).astype(np.float32),
        reference=(suites.counts(30, 1), measured),
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
    assert all(seen[part] == set(range(suites.V + 1)) - {5, 9, 40} for part in (0, 1)), "V is the padding"
    assert {5, 9, 40} < seen[2] and 3 not in seen[2]
    again = tuning.Bags(held_out(genes), bag=16, batch=2, labels=["batch"], seed=0)
    assert all((again.batch(7)[name] == batches[7][name]).all() for name in ("genes", "counts", "index"))
    assert sorted(i for b in loader.epoch_batches() for i in b["index"][b["cell_mask"]]) == list(range(120))


def test_a_new_study_is_not_taken_for_the_first_of_pretraining():
    run = suites.entrant("cellplm", "first", classes={"study": ["a", "b", "c"]})
    ask = imputer(run)
    problem = held_out(np.arange(0, suites.V, 5))
    ruler = imputation.bins.fit(problem.counts, problem.depth)
    flat = leaves.flatten(run.run.variables)
    tables = [name for name in flat if "study" in name and flat[name].shape[0] == 3]
    other = leaves.nest(flat | {name: flat[name][::-1] for name in tables})
    assert tables and not np.allclose(flat[tables[0]], flat[tables[0]][::-1])
    np.testing.assert_allclose(*(ask(v, problem, ruler) for v in (run.run.variables, other)), rtol=1e-4)


def test_adaptation_learns_from_other_cells_than_it_validates_on_and_from_no_label(tmp_path):
    study = entrants.Study(suites.write(tmp_path / "x.h5ad", spatial=True))
    learn, validate = adaptation.problems(suites.entrant("scemb", "first"), study, 3, 60)
    rows = study.draw(3, 60)
    np.testing.assert_array_equal(np.concatenate([learn.counts, validate.counts]), suites.counts(90, 0)[rows])
    assert len(learn.counts) == 54 and learn.known.all() and not learn.hidden.any()
    np.testing.assert_array_equal(np.concatenate([learn.samples, validate.samples]), rows % 2)
    np.testing.assert_array_equal(validate.coords, study.coords[rows[54:]])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scemb", "cellplm"])
def test_adaptation_trains_what_its_method_adds_and_keeps_what_validated_best(name, tmp_path, monkeypatch):
    entrant, study = suites.entrant(name, "first", batch=2), entrants.Study(suites.write(tmp_path / "x.h5ad"))
    cells, losses, fit = adaptation.problems(entrant, study, 0), {}, tuning.loop.fit

    def watched(objective, loader, constants, metadata, folder, **options):
        state = fit(objective, loader, constants, metadata, folder, **options)
        lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
        losses.update({line["step"]: line["val/loss"] for line in lines if "val/loss" in line})
        return state

    monkeypatch.setattr(tuning.loop, "fit", watched)
    before = leaves.flatten(entrant.run.variables["params"])
    for method in ("lora", "prefix"):
        losses.clear()
        run = adaptation.adapt(entrant.run, cells, 0, method=method, steps=6, every=2, patience=2)
        best = min(losses, key=losses.get)
        assert len(losses) > 1 and run.source.endswith(f"adapted by {method} for {best} updates")
        after = leaves.flatten(run.variables["params"])
        moved = {path for path in after if path not in before or not np.array_equal(after[path], before[path])}
        pattern = entrant.run.module.TUNING["lora"] if method == "lora" else (tuning_methods.PREFIX,)
        assert moved == {path for path in after if any(re.search(p, path) for p in pattern)} and moved
        assert run.model.prefix == (10 if method == "prefix" else 0) and entrant.run.model.prefix == 0
        again = adaptation.adapt(entrant.run, cells, 0, method=method, steps=6, every=2, patience=2)
        embedded = [entrant.embed_by(each, study, 0, 60) for each in (run, again)]
        np.testing.assert_array_equal(*embedded)
        assert np.abs(embedded[0] - entrant.embed(study, 0, 60, False)).max() > 1e-6


@pytest.mark.slow
def test_the_task_scores_a_run_adapted_and_as_it_is_and_a_twin_adapted_alike(tmp_path):
    entrant, study = suites.entrant("scemb", "first", batch=2), entrants.Study(suites.write(tmp_path / "x.h5ad"))
    options = {"cells": 60, "methods": ("lora",), "tuning": {"steps": 2, "every": 2, "patience": 1}}
    rows = pd.DataFrame(tuned_integration.score(entrant, study, 0, **options))
    total = rows[rows["metric"] == "total"].set_index("method")["value"]
    assert list(total.index) == ["first, as it is", "first", "first, random twin"] and set(rows["case"]) == {"lora"}
    zero_shot = pd.DataFrame(integration.score(entrant, study, 0, cells=60)).set_index(["method", "metric"])["value"]
    assert total["first, as it is"] == zero_shot["first", "total"]


@pytest.mark.slow
def test_fine_tuned_runs_predict_held_out_genes_better_and_the_same_every_time():
    run = suites.entrant("cellplm", "first", bag=32, batch=1)
    ask = imputer(run)
    genes = np.arange(0, suites.V, 5)
    problem, truth = held_out(genes), suites.counts(90, 0)[:, genes].ravel()
    changes = {"cellplm": {"inputs": {"score": "all"}, "loss": {"dae": False}}}
    options = {"learning_rate": 5e-3, "changes": changes}
    ruler = imputation.bins.fit(problem.counts, problem.depth)

    def tuned_answer() -> np.ndarray:
        tuned = tuning.fine_tune(run.run, problem, 0, steps=60, **options)
        assert tuned.source.endswith("fine-tuned for 60 updates") and run.run.source == "random weights of seed 100"
        return ask(tuned.variables, problem, ruler)

    before, after = ask(run.run.variables, problem, ruler), tuned_answer()
    assert np.corrcoef(after, truth)[0, 1] > np.corrcoef(before, truth)[0, 1] + 0.2
    np.testing.assert_array_equal(after, tuned_answer())
