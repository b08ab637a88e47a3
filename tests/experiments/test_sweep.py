"""Sweeps promise: nothing runs twice, one failure stops nobody, a signal loses nothing, tables are the textbook's."""

import csv
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import types

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats

from data_pipeline.genes import lists
from data_pipeline.store import expression
from experiments.analyses import shared_bins
from experiments.sweeps import crew as sweep_crew
from experiments.sweeps import plan as sweep_plan
from experiments.sweeps import report, slurm
from experiments.sweeps.plan import Plan, Point
from scfm_jax.tasks.imputation import bins, imputation
from tests.harness import commands

SCT, CELLPLM = "configs/sweep_sct_ablation.py", "configs/sweep_cellplm_ablation.py"
SCLONG = "configs/sweep_sclong_ablation.py"
FILE = """
def get_sweep(variant="a"):
    return {{
        "question": "which?", "config": "configs/pretrain_cellplm.py:tiny", "seeds": (0, 1),
        "evaluate": {{"command": "evaluate", "flags": {{"seeds": 1}}, "result": "scores.json", "method": "ours"}},
        "metrics": {{"accuracy": "share that is right"}},
        "points": [{{"axis": "base", "label": "as it is", "set": {{}}}}, {point}],
    }}
"""
POINT = '{"axis": "size", "label": "wide", "set": {"model.enc_hid": 32}, "paper": {"accuracy": 0.5}}'


def write(folder: pathlib.Path, text: str = FILE, point: str = POINT) -> str:
    """Write a sweep file and return its path."""
    (folder / "sweep_file.py").write_text(text.format(point=point) if text is FILE else text)
    return str(folder / "sweep_file.py")


def read(folder: pathlib.Path, **options) -> Plan:
    """Return the plan of a file with one point beside the base."""
    return sweep_plan.read(write(folder), folder / "w", options.pop("overrides", {}), **options)


# ---------------------------------------------------------------------------------------------------- names and plans


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "base"),
        ({"inputs.mask": "uniform"}, "inputs.mask=uniform"),
        ({"data.bag": 10, "data.batch": 5, "optim.clip_norm": 1e-3}, "data.bag=10,data.batch=5,optim.clip_norm=0.001"),
    ],
)
def test_folders_are_named_by_what_is_changed(changes, name):
    assert sweep_plan.folder_name(changes) == name


def test_names_are_safe_and_differ_where_the_changes_do():
    hard = [{"a": "x y"}, {"a": "x/y"}, {"a": "../y"}, {"a": "é"}, {"a": (1, 2)}, {"a": "z" * 500}, {"a": "z" * 501}]
    names = [sweep_plan.folder_name(changes) for changes in hard]
    assert len(set(names)) == len(hard) and names == [sweep_plan.folder_name(changes) for changes in hard]
    assert all(re.fullmatch(r"[A-Za-z0-9_.+=,-]{1,120}", name) for name in names)
    logins = [sweep_plan.folder_name({"data.store": f"s3://me:{word}@host/cells"}) for word in ("pw1", "pw2")]
    assert len(set(logins)) == 2 and not any("me" in name or "pw" in name for name in logins)


def test_plan_has_every_point_for_every_seed_and_overrides_in_its_commands(tmp_path):
    given = {"config": ["data.store=S", "model.enc_hid=8"], "evaluate": ["input=x.h5ad", "seeds=2"]}
    points = read(tmp_path, overrides=given).points
    assert [(p.index, p.label, p.seed) for p in points] == [
        (0, "as it is", 0), (1, "wide", 0), (2, "as it is", 1), (3, "wide", 1),
    ]  # fmt: skip
    assert points[3].name == "model.enc_hid=32/seed=1"
    assert points[3].train[-4:] == [
        f"--config.{text}" for text in (*given["config"], "model.enc_hid=32", "train.seed=1")
    ]
    assert points[3].settings["config"]["model.enc_hid"] == 32 and points[0].settings["config"]["model.enc_hid"] == 8
    assert set(points[3].evaluate[1:]) == {
        f"--workdir={tmp_path}/w/{points[3].name}/run",
        "--seeds=2",
        "--input=x.h5ad",
    }
    assert [p.seed for p in read(tmp_path, seeds=[7]).points] == [7, 7]


@pytest.mark.parametrize("path", [SCT, CELLPLM, SCLONG])
def test_our_sweeps_set_keys_that_exist(path):
    for variant in ("tiny", "small"):
        plan = sweep_plan.read(f"{path}:{variant}", pathlib.Path("w"), {})
        seeds = {point.seed for point in plan.points}
        assert sum(point.base for point in plan.points) == len(seeds) >= 3
        assert len({point.name for point in plan.points}) == len(plan.points)


def test_points_of_the_sct_ablation_see_as_many_cells_and_are_scored_as_they_trained():
    for point in sweep_plan.read(SCT, pathlib.Path("w"), {}).points:
        config = point.settings["config"]
        assert config["data.bag"] * config["data.batch"] == 50 and config["train.steps"] == 100
        assert point.settings["evaluate"]["bag"] == str(config["data.bag"])
        assert config["model.n_bins"] == config["inputs.n_bins"]


@pytest.mark.parametrize(
    ("text", "point", "overrides", "says"),
    [
        ("x = 1", "", {}, "it has no function get_sweep"),
        ("def get_sweep(:", "", {}, "SyntaxError"),
        ("def get_sweep():\n    return {'question': 'q'}", "", {}, "'config' is missing"),
        (FILE, '{"axis": "a", "lable": "b", "set": {}}', {}, "lable: no such key; did you mean label?"),
        (FILE, '{"axis": "a", "label": "b", "set": {"model.enc_hids": 3}}', {}, "did you mean model.enc_hid?"),
        (FILE, '{"axis": "a", "label": "b", "set": {"model.enc_hid": "wide"}}', {}, "enc_hid"),
        (FILE, '{"axis": "a", "label": "b", "set": {}}', {}, "sets the same as point 'as it is'"),
        (FILE, '{"axis": "a", "label": "b", "set": {}, "paper": {"acuracy": 1}}', {}, "did you mean accuracy?"),
        (FILE, '{"axis": "a", "label": "b", "set": {}, "evaluate": {"lable": 1}}', {}, "did you mean label?"),
        (FILE, POINT, {"config": ["data.stor=x"]}, "data.stor: no such key; did you mean data.store?"),
        (FILE, POINT, {"config": ["train.seed=3"]}, "give --seeds"),
        (FILE, POINT, {"evaluate": ["imput=x"]}, "did you mean input?"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused_in_one_line(text, point, overrides, says, tmp_path):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        sweep_plan.read(write(tmp_path, text, point), tmp_path / "w", overrides)
    assert "\n" not in str(error.value) and not (tmp_path / "w").exists()


# -------------------------------------------------------------------------------------------------------- the running

SCORES = "import json, sys; json.dump({'rows': [{'method': 'ours', 'accuracy': %s}]}, open(sys.argv[1], 'w'))"


@pytest.fixture
def plain(monkeypatch):
    """Let commands be anything that this Python takes."""
    monkeypatch.setattr(sweep_plan, "command", lambda arguments: [sys.executable, "-S", *map(str, arguments)])
    monkeypatch.setattr(sweep_crew, "POLL_S", 0.02)


def make_plan(folder: pathlib.Path, trains: list[str], accuracy: float = 0.5) -> Plan:
    """Return a plan whose trainings are lines of Python; each notes that it was started."""
    points = []
    for i, code in enumerate(trains):
        run = folder / f"p{i}" / "run"
        note = f"import pathlib, sys; pathlib.Path({str(run)!r}).mkdir(parents=True, exist_ok=True); "
        note += f"open({str(folder / 'started')!r}, 'a').write('{i}'); "
        points.append(
            Point(i, f"point {i}", "axis", i == 0, {}, 0, {}, f"p{i}", ["-c", note + code],
                  ["-c", SCORES % accuracy, run / "scores.json"], {"config": {}, "evaluate": {}})
        )  # fmt: skip
    return Plan("q", {"accuracy": "share"}, "scores.json", "ours", None, points)


def crew_of(plan: Plan, folder: pathlib.Path, parallel: int = 2) -> tuple[sweep_crew.Crew, bool]:
    """Run what has no result, as the command does."""
    crew = sweep_crew.Crew(plan, folder, "crc", parallel)
    return crew, crew.run([p for p in plan.points if not (folder / p.name / "result.json").exists()])


def test_one_failure_is_recorded_and_stops_nobody_and_is_tried_again(plain, tmp_path):
    wrong = "print('step 1'); print('error: no such file: x', file=sys.stderr); print('bye'); sys.exit(2)"
    plan = make_plan(tmp_path, ["pass", wrong, "pass", "1 / 0"])
    crew, stopped = crew_of(plan, tmp_path)
    assert not stopped and set(crew.failed) == {"p1", "p3"}
    assert crew.failed["p1"] == "train ended with status 2: no such file: x"
    assert crew.failed["p3"] == "train ended with status 1: ZeroDivisionError: division by zero"
    assert json.loads((tmp_path / "p1" / "point.json").read_text())["failed"] == crew.failed["p1"]
    result = json.loads((tmp_path / "p2" / "result.json").read_text())
    assert result["scores"] == {"ours": {"accuracy": 0.5}} and result["seconds"]["train"]["cpu"] > 0
    assert sorted((tmp_path / "started").read_text()) == list("0123")
    crew_of(plan, tmp_path)
    again = (tmp_path / "started").read_text()
    assert again.count("0") == again.count("2") == 1 and again.count("1") == again.count("3") == 2


def test_what_failed_in_evaluation_is_not_trained_again(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass"], accuracy="nothing")
    assert "NameError" in crew_of(plan, tmp_path)[0].failed["p0"]
    plan = make_plan(tmp_path, ["pass"])
    assert not crew_of(plan, tmp_path)[0].failed and (tmp_path / "started").read_text() == "0"


def test_a_result_without_a_metric_that_is_new_is_scored_again_and_not_trained(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass"])
    crew_of(plan, tmp_path)
    more = Plan("q", {"accuracy": "share", "entries": "n"}, plan.result, plan.method, None, plan.points)
    assert sweep_crew.result(plan, tmp_path, plan.points[0]) and not sweep_crew.result(more, tmp_path, plan.points[0])
    plan.points[0].evaluate[1] = (SCORES % 0.5).replace("'accuracy'", "'entries': 3, 'accuracy'")
    assert not sweep_crew.Crew(more, tmp_path, "crc", 1).run(more.points)
    assert sweep_crew.result(more, tmp_path, plan.points[0])["scores"]["ours"] == {"accuracy": 0.5, "entries": 3}
    assert (tmp_path / "started").read_text() == "0"


@pytest.mark.parametrize("text", ["", "{", None])
def test_a_damaged_result_is_named_and_made_again_without_training(text, plain, tmp_path, capsys):
    plan = make_plan(tmp_path, ["pass"])
    crew_of(plan, tmp_path)
    path = tmp_path / "p0" / "result.json"
    path.write_text(path.read_text().replace("0.5", "0.9") if text is None else text)
    assert sweep_crew.result(plan, tmp_path, plan.points[0]) is None
    assert "p0/result.json" in capsys.readouterr().err
    assert not sweep_crew.Crew(plan, tmp_path, "crc", 1).run(plan.points)
    assert sweep_crew.result(plan, tmp_path, plan.points[0])["scores"]["ours"] == {"accuracy": 0.5}
    assert (tmp_path / "started").read_text() == "0", "it is scored again, not trained again"


def test_a_damaged_point_stops_neither_sweep_nor_table(plain, tmp_path, capsys):
    plan = make_plan(tmp_path, ["pass"])
    crew_of(plan, tmp_path)
    (tmp_path / "p0" / "point.json").write_text("")
    sweep_crew.check_same(tmp_path, plan.points[0], "crc")
    (tmp_path / "p0" / "result.json").unlink()
    assert "no result: p0" in report.unfinished(plan, tmp_path)
    assert "point.json is empty" in capsys.readouterr().err
    assert not crew_of(plan, tmp_path)[0].failed


def test_an_evaluation_whose_scores_are_damaged_is_a_failure(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass"])
    torn = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{')"
    plan.points[0].evaluate[1] = torn
    assert "scores.json is torn or damaged" in crew_of(plan, tmp_path)[0].failed["p0"]


def test_an_evaluation_without_rows_of_the_model_is_a_failure(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass"])
    other = Plan(plan.question, plan.metrics, plan.result, "theirs", None, plan.points)
    assert "no row of theirs; there are ours" in crew_of(other, tmp_path)[0].failed["p0"]
    assert not (tmp_path / "p0" / "result.json").exists()


def test_a_training_that_was_stopped_is_not_scored(plain, tmp_path):
    plan = make_plan(tmp_path, ["print('resume with the same command', file=sys.stderr)"])
    crew, _ = crew_of(plan, tmp_path)
    assert "training was stopped" in crew.failed["p0"] and not (tmp_path / "p0" / "evaluate.log").exists()


def test_a_point_that_another_process_works_on_is_left_alone(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass", "pass"])
    (tmp_path / "p0").mkdir()
    with open(tmp_path / "p0" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        crew, _ = crew_of(plan, tmp_path)
    assert "another process" in crew.failed["p0"] and (tmp_path / "started").read_text() == "1"


def test_a_child_that_outlives_its_sweep_keeps_the_lock(plain, tmp_path):
    plan = make_plan(tmp_path, ["import time; time.sleep(20)"])
    job = sweep_crew.Job(plan, plan.points[0], tmp_path, "crc")
    job.close()  # as the death of the sweep does
    assert "another process" in crew_of(plan, tmp_path)[0].failed["p0"]
    job.process.kill()
    job.process.wait()


def test_at_most_so_many_at_a_time(plain, tmp_path):
    code = f"import os, time; d = {str(tmp_path)!r}; n = len([f for f in os.listdir(d) if f.startswith('on')]); "
    code += "open(f'{d}/on{os.getpid()}', 'w'); time.sleep(0.3); os.remove(f'{d}/on{os.getpid()}'); sys.exit(n > 1)"
    assert not crew_of(make_plan(tmp_path, [code] * 5), tmp_path, parallel=2)[0].failed


@pytest.mark.slow
def test_sigterm_stops_children_and_the_same_plan_goes_on(tmp_path, monkeypatch):
    """The real way a training stops: the tiny model saves, and goes on from there to the end."""
    monkeypatch.setattr(sweep_plan, "command", lambda arguments: [sys.executable, *map(str, arguments)])
    plan = make_plan(tmp_path, ["pass", "pass"])
    run = tmp_path / "p0" / "run"
    first = {"steps": 60, "slow": 0.1, "log_every": 1, "checkpoint_every": 0}
    plan.points[0].train[:] = ["-m", "tests.harness.tiny", run, json.dumps(first)]
    log = tmp_path / "p0" / "train.log"

    def interrupt() -> None:
        for _ in range(3000):  # a busy machine takes long to import
            time.sleep(0.1)
            if log.exists() and "step 3/60" in log.read_text():
                return os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    crew, stopped = crew_of(plan, tmp_path, parallel=1)
    thread.join()
    assert stopped and not crew.failed and "is saved in" in log.read_text()
    assert not (tmp_path / "p0" / "evaluate.log").exists() and not (tmp_path / "p1").exists()
    plan.points[0].train[-1] = json.dumps(first | {"slow": 0})
    crew, stopped = crew_of(plan, tmp_path)
    assert not stopped and not crew.failed and "going on from step" in log.read_text()
    assert (tmp_path / "p0" / "result.json").exists() and (tmp_path / "p1" / "result.json").exists()


def test_a_folder_of_other_settings_is_refused(plain, tmp_path):
    plan = make_plan(tmp_path, ["pass"])
    crew_of(plan, tmp_path)
    sweep_crew.check_same(tmp_path, plan.points[0], "crc")
    with pytest.raises(ValueError, match="store is 'crc' there and 'other' here"):
        sweep_crew.check_same(tmp_path, plan.points[0], "other")
    plan.points[0].settings["config"]["train.steps"] = 9
    with pytest.raises(ValueError, match=r"config.train.steps is None there and 9 here; give the old values"):
        sweep_crew.check_same(tmp_path, plan.points[0], "crc")


# -------------------------------------------------------------------------------------------------------------- SLURM


def test_job_array_has_an_element_for_each_point(tmp_path):
    command = ["python", "-m", "experiments.sweep", "--workdir=w", "--config.data.filter=a == 'b'"]
    text = slurm.script(pathlib.Path("w"), 24, 4, ["time=2:00:00", "gres=gpu:1"], command, tmp_path)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash" and "#SBATCH --array=0-23%4" in lines and "#SBATCH --time=2:00:00" in lines
    assert "#SBATCH --signal=B:TERM@120" in lines and lines[-2] == f"cd {tmp_path}"
    assert lines[-1].startswith("exec python") and lines[-1].endswith('--point="$SLURM_ARRAY_TASK_ID"')
    echo = text.replace("exec python", "printf '%s\\n'")
    env = {**os.environ, "SLURM_ARRAY_TASK_ID": "7"}
    said = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True, env=env).stdout.splitlines()
    assert said[-2:] == ["--config.data.filter=a == 'b'", "--point=7"]
    with pytest.raises(ValueError, match="time 2h"):
        slurm.script(pathlib.Path("w"), 1, 1, ["time 2h"], command, tmp_path)


# -------------------------------------------------------------------------------------------------------------- tables


def finished(folder: pathlib.Path, plan: Plan, accuracy) -> None:
    """Write a result for each point that `accuracy(label, seed)` gives a number."""
    for point in plan.points:
        if (value := accuracy(point.label, point.seed)) is not None:
            scores = {"ours": {"accuracy": value}, "gene mean": {"accuracy": 0.1}}
            path = folder / point.name / "result.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"scores": scores, "seconds": {"train": {"cpu": 30}, "evaluate": {"cpu": 10}}}))


def test_table_is_mean_and_students_interval_and_differences_are_paired(tmp_path):
    plan, base, wide = read(tmp_path, seeds=[0, 1, 2]), [0.5, 0.6, 0.9], [0.4, 0.51, 0.79]
    finished(tmp_path, plan, lambda label, seed: (base if label == "as it is" else wide)[seed])
    table = report.write(plan, tmp_path)
    half = scipy.stats.sem(base) * 4.302653
    gap = scipy.stats.sem([-0.1, -0.09, -0.11]) * 4.302653
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[2] == ["base", "**as it is** (base)", "3 of 3", f"0.667 ± {half:.3f}", "–", "–", "40"]
    assert lines[3][1:6] == [
        "wide",
        "3 of 3",
        f"0.567 ± {scipy.stats.sem(wide) * 4.302653:.3f}",
        f"-0.100 ± {gap:.3f}",
        "0.50",
    ]
    assert lines[4][:4] == ["not trained here", "gene mean", "3 of 3", "0.100 ± 0.000"]
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["accuracy"]) == pytest.approx(np.mean(wide)) and rows[1]["accuracy_paper"] == "0.5"
    assert float(rows[1]["accuracy_difference_half"]) == pytest.approx(gap, rel=1e-5)
    assert json.loads((tmp_path / "table.json").read_text())[0]["accuracy_values"] == base
    picture = (tmp_path / "plot.svg").read_text()
    assert "as it is" in picture and "size: wide" in picture and "the paper" in picture
    assert "no result" not in (tmp_path / "table.md").read_text() and not list(tmp_path.glob("*.partial"))


def test_every_metric_has_its_paired_difference():
    plan = types.SimpleNamespace(metrics={"a": "one", "b": "two"})
    base = report.Row("base", "x", True, {}, {"a": [1, 2], "b": [3, 5]}, {}, 1.0, 2)
    other = report.Row("size", "y", False, {}, {"a": [2, 3], "b": [3, 4]}, {"a": [1, 1], "b": [0, -1]}, 1.0, 2)
    text = report.markdown(plan, [base, other])
    assert "| 4.000 ± 12.706 |" in text and "| 3.500 ± 6.353 (-0.500 ± 6.353) |" in text
    assert "difference from the base, paired by seed" in text


def test_a_table_of_half_a_sweep_says_what_is_missing(tmp_path):
    plan = read(tmp_path)
    assert report.write(plan, tmp_path) == "" and not (tmp_path / "table.md").exists()
    finished(tmp_path, plan, lambda label, seed: 0.5 if (label, seed) == ("wide", 1) else None)
    (tmp_path / "base" / "seed=0").mkdir(parents=True)
    (tmp_path / "base" / "seed=0" / "point.json").write_text('{"failed": "out of luck"}')
    report.write(plan, tmp_path)
    written = (tmp_path / "table.md").read_text()
    assert "- no result: base/seed=0: out of luck\n" in written and "- no result: model.enc_hid=32/seed=0\n" in written
    assert "| wide | 1 of 2 | 0.500 | – | 0.50 |" in written, "one seed has no interval and no base to differ from"


# ------------------------------------------------------------------------------------------------- scoring, gene lists


def test_shares_of_fifteen_bins_are_laid_over_five():
    shares = np.random.default_rng(0).dirichlet(np.ones(15), 20)
    np.testing.assert_allclose(shared_bins.rebin(shares, 15), shares)
    five = shared_bins.rebin(shares, 5)
    np.testing.assert_allclose(five.sum(1), 1)
    np.testing.assert_allclose(five[:, 0], shares[:, 0])
    np.testing.assert_allclose(five[:, 1], shares[:, 1:4].sum(1) + shares[:, 4] / 2)
    np.testing.assert_allclose(five[:, 4], shares[:, 11] / 2 + shares[:, 12:].sum(1))


def test_scores_are_those_of_imputation_where_bins_are_the_models_own():
    rng = np.random.default_rng(0)
    truth = rng.poisson(1.5, (12, 30)).astype(np.float32)
    hidden = rng.random(truth.shape) < 0.3
    problem = imputation.pose(truth, np.ones(30, bool), hidden, [np.arange(12)])
    five = bins.fit(problem.counts, problem.depth), bins.fit(truth, truth.sum(1))
    parts = {"all": np.ones(30, bool)}
    for prediction in (rng.dirichlet(np.ones(5), hidden.sum()), rng.gamma(1, 2, hidden.sum())):
        theirs = imputation.score(prediction, problem, truth, *five, parts)["all"]
        ours = shared_bins.score(prediction, problem, truth, five, five)
        assert ours["mcc"] == ours["mcc_own"] == pytest.approx(theirs["mcc_expressed"])
        assert ours["mae"] == pytest.approx(theirs["mae_expressed"])
        assert ours["mcc_all"] == pytest.approx(theirs["mcc_all"])
    rare = shared_bins.score(
        bins.even(shares := rng.dirichlet(np.ones(5), hidden.sum()), 15), problem, truth, five, five, 1 / 15
    )
    assert rare["mcc_all"] == shared_bins.score(shares, problem, truth, five, five)["mcc_all"] != 0, (
        "masks are corrected"
    )
    perfect = shared_bins.score(truth[problem.entries], problem, truth, (five[1],) * 2, (five[1],) * 2)
    assert perfect["mcc"] == 1 and perfect["mae"] == perfect["msle"] == 0


def test_genes_are_taken_at_equal_distances_among_those_measured_everywhere():
    share = np.array([0.9, np.nan, 0.8, 0.7, 0.01, 0.6, 0.5, 0.4])
    assert lists.spread(share, 3, 0.02).tolist() in ([0, 5, 7], [0, 3, 7])
    assert lists.spread(share, 6, 0.02).tolist() == [0, 2, 3, 5, 6, 7]
    with pytest.raises(ValueError, match="--number=7: 6 genes"):
        lists.spread(share, 7, 0.02)


def _store(*studies):
    """A store of studies (counts of cells, which genes were measured) in memory."""

    def study(rows, measured):
        counts = sp.csr_matrix(np.array(rows, np.float32))

        def read(start, stop):
            part = counts[start:stop]
            return types.SimpleNamespace(result=lambda: (part.indices, part.data))

        known = {"n_cells": len(rows), "measured": np.array(measured), "indptr": counts.indptr}
        return types.SimpleNamespace(read=read, **known)

    made = [study(*one) for one in studies]
    return types.SimpleNamespace(genes=made[0].measured, studies=range(len(made)), study=made.__getitem__)


def test_the_most_variable_genes_vary_beyond_their_mean_and_a_panel_is_kept():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(1, 9, 60), (300, 60))
    for gene in (7, 23, 41):
        counts[:, gene] = rng.permutation(np.where(np.arange(300) < 150, 0, 2 * counts[:, gene]))
    counts[5] = 0
    store = _store((counts, np.arange(60) != 9))
    scores, share = expression.variability(store, run=64), expression.expressed(store)
    np.testing.assert_allclose(scores, expression.variability(store), err_msg="runs of cells do not matter")
    assert lists.most_variable(scores, share, 3, 0.0, np.zeros(0, int)).tolist() == [7, 23, 41]
    assert lists.most_variable(scores, share, 5, 0.0, np.array([3, 7, 9])).tolist() == [3, 7, 9, 23, 41]
    with pytest.raises(ValueError, match="--number=1: --keep names 2 genes"):
        lists.most_variable(scores, share, 1, 0.0, np.array([3, 50]))


def test_shares_of_cells_are_means_over_studies():
    store = _store(([[1, 0, 2], [1, 0, 0], [3, 0, 0]], [True] * 3), ([[0, 5, 0], [0, 0, 1]], [True, False, True]))
    for run in (1, 4096):
        found = expression.expressed(store, run)
        np.testing.assert_allclose(found[[0, 2]], [0.5, (1 / 3 + 1 / 2) / 2])
        assert np.isnan(found[1])


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with a file and a store of it."""
    folder = tmp_path_factory.mktemp("sweep")
    rng, names = np.random.default_rng(0), [f"GENE{i}" for i in range(32)]
    counts = sp.csr_matrix(rng.poisson(1.0, (60, 32)).astype(np.float32))
    adata = anndata.AnnData(counts, pd.DataFrame(index=[f"cell{i}" for i in range(60)]), pd.DataFrame(index=names))
    adata.write_h5ad(folder / "x.h5ad")
    made = commands.run("ingest", f"--input={folder}/x.h5ad", f"--store={folder}/store", "--workers=0", folder=folder)
    assert made.code == 0, made.err
    return folder


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--config.data.store={d}/store --evaluate.input={d}/nowhere.h5ad", "nowhere.h5ad: no such file"),
        ("--config.data.store={d}/none --evaluate.input={d}/x.h5ad", "none"),
        ("--evaluate.input={d}/x.h5ad", "--config.data.store is missing"),
        ("--config.data.stor=x", "did you mean data.store?"),
    ],
)
def test_mistakes_are_one_line_and_run_nothing(args, says, ground, tmp_path):
    given = [f"--sweep={SCT}:tiny", f"--workdir={tmp_path}/w", *args.format(d=ground).split()]
    ended = commands.run("sweep", *given, folder=tmp_path)
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(lines) == 1 and says in lines[0] and "Traceback" not in ended.err
    assert not (tmp_path / "w").exists()


def test_dry_run_prints_the_commands_and_runs_nothing(tmp_path):
    given = [f"--sweep={CELLPLM}:tiny", f"--workdir={tmp_path}/w", "--dry_run", "--seeds=0", "--config.data.store=S"]
    ended = commands.run("sweep", *given, folder=tmp_path)
    assert ended.code == 0 and not (tmp_path / "w").exists()
    assert ended.out.count("-m experiments.train ") == ended.out.count("-m experiments.sweep_expression ") == 5
    assert "--config.data.store=S" in ended.out and "--config.model.enc_mod=mlp" in ended.out


@pytest.mark.slow
def test_a_sweep_from_one_command(ground, tmp_path):
    bad = '{"axis": "norm", "label": "bad", "set": {"model.norm": "sharde"}}'
    text = FILE.format(point=bad).replace("configs/pretrain_cellplm.py:tiny", f"{SCT}:tiny").replace("(0, 1)", "(0,)")
    flags = '"command": "sweep_impute", "flags": {"cells": 60, "bag": 10}'
    text = text.replace('"command": "evaluate", "flags": {"seeds": 1}', flags).replace("accuracy", "mcc")
    text = text.replace("scores.json", "sweep_imputation.json").replace('"ours"', '"sct"')
    given = [f"--sweep={write(tmp_path, text)}", f"--workdir={tmp_path}/w", "--parallel=2", "--config.data.bag=10"]
    given += [f"--config.data.store={ground}/store", f"--evaluate.input={ground}/x.h5ad"]
    ended = commands.run("sweep", *given, folder=tmp_path, timeout=500)
    assert ended.code == 1, ended.err
    assert "error: 1 of 2 points have no result: model.norm=sharde/seed=0: train ended with status 2: norm" in ended.err
    assert "**as it is** (base)" in ended.out and "gene mean" in ended.out
    before = (tmp_path / "w" / "base" / "seed=0" / "result.json").stat().st_mtime_ns
    array = commands.run("sweep", *given, "--point=0", folder=tmp_path)
    assert array.code == 0 and "1 finished before" in array.out
    assert (tmp_path / "w" / "base" / "seed=0" / "result.json").stat().st_mtime_ns == before
    other = commands.run("sweep", *given, "--config.train.steps=3", folder=tmp_path)
    assert other.code == 2 and "config.train.steps is 2 there and 3 here" in other.err
