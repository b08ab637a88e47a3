"""A suite computes what is not there, survives death and failures, and knows its contamination."""

import functools
import pathlib
import shutil
import subprocess
import sys
import time

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.store import manifest
from experiments.analyses import embedding
from experiments.suite import contamination, entrants, fill, results, tasks
from experiments.suite import counts as suite_counts
from scfm_jax.saving.published.files import UNKNOWN
from scfm_jax.tasks.imputation import imputation
from tests.conftest import SHARED, needs_shared
from tests.harness import commands, suites

# ---------------------------------------------------------------------------------------------------------------- cells


def test_every_cell_is_there_once_and_says_what_it_is(ground):
    folder, _, _, done = ground
    metrics, cells = results.read(folder / "out")
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
    folder, paths, runs, _ = ground
    for name in ("first", "second", "PCA-50"):
        found = np.load(folder / "out" / "pictures" / f"{name}@one.npz")
        assert found["embedding"].shape[0] == 60 == found["confusion"].sum() and len(found["types"]) == 3
    study = entrants.Study(paths[0])
    found = np.load(folder / "out" / "pictures" / "first@one.npz")
    assert (found["label"] == study.labels[study.draw(0, 60)].astype(str)).all()
    np.testing.assert_allclose(found["embedding"], runs[0].embed(study, 0, 60, False), rtol=1e-4, atol=1e-5)


def test_a_second_time_nothing_is_computed(ground, monkeypatch):
    folder, paths, runs, _ = ground
    before = [(folder / "out" / name).read_bytes() for name in ("results.jsonl", "table.csv")]
    monkeypatch.setattr(fill.Suite, "fill", None)
    monkeypatch.setattr(entrants.Entrant, "embed", None)
    assert suites.make(folder / "out", runs, paths).run() == {"kept": 24}
    assert before == [(folder / "out" / name).read_bytes() for name in ("results.jsonl", "table.csv")]


@pytest.mark.parametrize("cut", [20, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_suite_goes_on_to_the_same_table(cut, ground, monkeypatch):
    folder, paths, runs, _ = ground
    compute, calls = fill.Suite.fill, []

    def die(self, cell):
        calls.append(cell)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return compute(self, cell)

    monkeypatch.setattr(fill.Suite, "fill", die)
    with pytest.raises(KeyboardInterrupt):
        suites.make(folder / f"again {cut}", runs, paths).run()
    results = folder / f"again {cut}" / "results.jsonl"
    lines = results.read_text().splitlines(keepends=True)
    tables = [pd.read_csv(folder / name / "table.csv") for name in ("out", f"again {cut}")]
    assert 0 < len(tables[1]) < len(tables[0]), "what there is so far"
    assert not [i for i, line in enumerate(lines[-3:-1]) if "status" in line]
    results.write_text("".join(lines[:-2]) + lines[-2][:cut])  # it died while it wrote the cell before
    counts = suites.make(folder / f"again {cut}", runs, paths).run()
    assert counts["kept"] == 6 and sum(counts.values()) == 24
    tables = [pd.read_csv(folder / name / "table.csv") for name in ("out", f"again {cut}")]
    pd.testing.assert_frame_equal(*tables)


def test_a_cell_that_fails_stands_in_the_table_and_the_others_go_on(ground, monkeypatch, tmp_path):
    _, paths, runs, _ = ground
    task = tasks.get("gene_imputation")
    whole = task.score

    @functools.wraps(whole)
    def broken(run, study, *args, **options):
        if run is not None and study.name == "two":
            raise RuntimeError("out of\nluck")
        yield from whole(run, study, *args, **options)

    monkeypatch.setattr(task, "score", broken)
    counts = suites.make(tmp_path, runs[:1], paths).run()
    assert counts == {"done": 14, "failed": 2}
    table = pd.read_csv(tmp_path / "table.csv", dtype=str, keep_default_na=False)
    failed = table[table["status"] == "failed"]
    assert failed[["method", "seeds", "reason"]].values.tolist() == [["first", "2", "RuntimeError: out of luck"]]
    assert "failed: RuntimeError" in (tmp_path / "table.md").read_text()
    assert not table[
        (table["run"] == "first") & (table["dataset"] == "one") & (table["task"] == "gene_imputation")
    ].empty
    monkeypatch.setattr(task, "score", whole)
    assert suites.make(tmp_path, runs[:1], paths).run() == {"kept": 14, "done": 2}, "failed cells are tried again"
    assert "failed" not in set(pd.read_csv(tmp_path / "table.csv")["status"])


# ------------------------------------------------------------------------------------------------ the same for all runs


def test_runs_have_names_of_their_own():
    texts = ["runs/x", "old/x", "exceiver:w/published.ckpt:genes.txt", "scemb:weights.pt", "y.safetensors"]
    assert entrants.names(texts) == ["x 1", "x 2", "published", "weights", "y"]


def test_no_two_runs_have_one_name_and_none_has_that_of_the_baseline():
    texts = ["a/w", "b/w", "c/w 2", "runs/PCA-50", "runs/v.1", "runs/v.2", "."]
    names = entrants.names(texts)
    assert len(set(names)) == len(texts) and "PCA-50" not in names and all(names)
    assert names[:3] == ["w 1", "w 3", "w 2"] and names[4:6] == ["v 1", "v 2"]


def test_a_column_of_measurements_is_no_batch_of_a_study(tmp_path):
    path = suites.write(tmp_path / "x.h5ad", batch=np.random.default_rng(0).normal(size=90))
    study = entrants.Study(path)
    assert study.batches is None and study.labels is not None
    with pytest.raises(entrants.Inapplicable, match="fewer than two values in obs\\['batch'\\]"):
        tasks.check_needs({"batches"}, None, study)


@pytest.mark.slow
def test_runs_of_other_genes_are_asked_the_same_entries(ground, tmp_path):
    _, paths, runs, _ = ground
    study = entrants.Study(paths[0])
    turned = suites.entrant("cellplm", "turned", genes=suites.GENES[:4:-1])
    stranger = suites.entrant("cellplm", "stranger", genes=[f"OTHER{i}" for i in range(80)])
    columns = entrants.shared_genes(study, [runs[0], turned, stranger])
    assert columns.columns.tolist() == list(range(5, suites.V)), "the stranger is no measure for the others"
    table = suite_counts.draw(study, columns, 0, 60)
    hidden = np.random.default_rng(0).random(table.counts.shape) < 0.3
    problem = imputation.pose(table.counts, np.ones(len(columns), bool), hidden, table.bags)
    slots = turned.slots(study)[columns.columns]
    asked, order = suite_counts.onto(problem, slots, suites.V - 5, 7)
    assert max(map(len, asked.bags)) <= 7 and sum(map(len, asked.bags)) == len(table.counts)
    assert (asked.counts[:, slots] == problem.counts).all()
    asked_for = np.empty(len(order))
    asked_for[order] = asked.counts[asked.entries] + 1000 * asked.entries[0]
    assert (asked_for == problem.counts[problem.entries] + 1000 * problem.entries[0]).all()
    same = table.counts[problem.entries]
    moved = np.zeros((len(table.counts), suites.V - 5))
    moved[:, slots] = table.counts
    back = np.empty(len(order))
    back[order] = moved[asked.entries]
    assert (back == same).all()
    lines = suites.make(tmp_path, [stranger], paths[:1], {"gene_imputation": {"rates": (0.4,)}}, seeds=1)
    lines.columns["one"] = columns
    assert lines.run()["failed"] == 1


@pytest.mark.slow
def test_columns_that_are_one_gene_are_summed_and_those_that_runs_tell_apart_are_left_out(ground, tmp_path, capsys):
    x, ids = suites.counts(90, 0), [f"ENSG{i:011d}" for i in range(suites.V + 2)]
    whole = anndata.read_h5ad(ground[1][0])
    twice = np.hstack([np.zeros((90, 1)), x[:, 1:], x[:, :1], np.ones((90, 1))])
    names = [*suites.GENES, "GENE0", "GENE1"]
    for name, columns, beside in (("one", x, None), ("twice", twice[:, :-1], None), ("three", twice, ids)):
        var = pd.DataFrame({} if beside is None else {"gene_ids": beside}, index=names[: columns.shape[1]])
        cells = anndata.AnnData(sp.csr_matrix(columns), whole.obs, var)
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    one, double, three = (entrants.Study(str(tmp_path / f"{name}.h5ad")) for name in ("one", "twice", "three"))
    run = suites.entrant("cellplm", "first")
    both = [suite_counts.draw(study, entrants.shared_genes(study, [run]), 0, 60).counts for study in (one, double)]
    np.testing.assert_array_equal(*both)
    assert len(entrants.shared_genes(double, [])) == suites.V, "also where there is no run to tell"
    np.testing.assert_allclose(run.embed(double, 0, 60, False), run.embed(one, 0, 60, False), atol=1e-5)
    apart = suites.entrant("cellplm", "apart", genes=ids)
    shared = entrants.shared_genes(three, [run, apart])
    assert shared.columns.tolist() == list(range(2, suites.V)), "genes 0 and 1 are two to one run and one to the other"
    assert entrants.shared_genes(three, [apart]).columns.tolist() == list(range(suites.V + 2))
    alone = entrants.shared_genes(three, [run])
    x[:, 1] += 1
    np.testing.assert_array_equal(alone.of(three.counts.take(np.arange(90))).toarray(), x)
    said = []
    suites.make(tmp_path / "out", [run], [tmp_path / "twice.h5ad"], {"cell_typing": {}}, seeds=1, say=said.append).run()
    assert any("merged 1: GENE0 x 2" in line for line in said)


def test_weights_whose_genes_have_no_names_are_asked_nothing_and_stop_nobody(ground, tmp_path):
    _, paths, runs, _ = ground
    unnamed = suites.entrant("cellplm", "published", genes=[f"{UNKNOWN}:{i}" for i in range(suites.V)])
    assert suites.make(tmp_path, [unnamed, runs[0]], paths[:1], seeds=1).run() == {"done": 4, "inapplicable": 2}
    metrics, cells = results.read(tmp_path)
    assert set(metrics["run"]) == {"", "first"}
    assert cells[cells["run"] == "published"]["reason"].str.contains("order was never published").all()
    named = suites.make(tmp_path, [suites.entrant("cellplm", "published")], paths[:1], seeds=1)
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


# -------------------------------------------------------------------------------------------------------- contamination


def test_a_study_in_pretraining_is_found_by_name_by_file_and_by_its_cells(ground, tmp_path):
    paths = ground[1]
    done = commands.run("ingest", f"--input={paths[0]}", f"--store={tmp_path}/store", "--workers=0", folder=tmp_path)
    assert done.code == 0, done.err
    adata = anndata.read_h5ad(paths[0])
    (tmp_path / "renamed.h5ad").write_bytes(pathlib.Path(paths[0]).read_bytes())
    adata[::3, 10:].copy().write_h5ad(tmp_path / "part.h5ad")
    named = tmp_path / "named"
    named.mkdir()
    suites.write(named / "one.h5ad", seed=5)
    given = [tmp_path / "renamed.h5ad", tmp_path / "part.h5ad", named / "one.h5ad", pathlib.Path(paths[1])]
    studies = [entrants.Study(str(path)) for path in given]
    flags = contamination.flags(suites.entrant("cellplm", "first", store=f"{tmp_path}/store"), studies)
    assert {name: flag["seen"] for name, flag in flags.items()} == {
        "renamed": True,
        "part": True,
        "one": True,
        "two": False,
    }
    assert "the file" in flags["renamed"]["why"] and "100% of its cells" in flags["part"]["why"]
    assert "name" in flags["one"]["why"] and "0.0% of its cells" in flags["two"]["why"]
    unknown = contamination.flags(suites.entrant("cellplm", "first"), studies[:1])["renamed"]
    assert unknown["seen"] is None
    trained = suites.entrant("cellplm", "first", classes={"study": ["one"]}, store=f"{tmp_path}/store")
    trained.run.meta["store"] = manifest.read(tmp_path / "store")["crc32c"]
    seen = [True, True, True, False]
    assert [flag["seen"] for flag in contamination.flags(trained, studies).values()] == seen
    later = suites.entrant("cellplm", "later", init_from=None)
    trained.run.export(tmp_path / "first.safetensors")
    later.run.meta["config"]["init_from"] = str(tmp_path / "first.safetensors")
    assert contamination.flags(later, studies)["part"]["seen"] is True, "what it began with has seen it"
    later.run.meta["config"]["init_from"] = str(tmp_path / "removed")
    assert contamination.flags(later, studies)["two"]["seen"] is None
    trained.run.meta["store"] = "00000000"
    flags = contamination.flags(trained, studies)
    assert [flag["seen"] for flag in flags.values()] == [None, None, True, None]
    assert "has changed since, or is another one" in flags["two"]["why"]
    shutil.rmtree(tmp_path / "store")
    flags = contamination.flags(trained, studies)
    assert [flag["seen"] for flag in flags.values()] == [None, None, True, None]
    assert "not there any more" in flags["two"]["why"]


# -------------------------------------------------------------------------------------------------------------- command


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
    _, paths, runs, _ = ground
    options = {"seeds": (0,), "say": lambda _: None}
    first = embedding.evaluate(runs[0].run, paths[0], tmp_path, **options)
    (tmp_path / "embedding.h5ad").rename(tmp_path / "embedded.h5ad")
    again = embedding.evaluate(runs[0].run, tmp_path / "embedded.h5ad", tmp_path, **options)
    assert first["rows"] == again["rows"] and "X_cellplm" in anndata.read_h5ad(tmp_path / "embedding.h5ad").obsm


@pytest.mark.slow
def test_command_fills_a_table(ground, tmp_path):
    _, paths, runs, _ = ground
    runs[0].run.export(tmp_path / "first.safetensors")
    args = [f"--runs={tmp_path}/first.safetensors", f"--data={paths[0]}", f"--output={tmp_path}/out"]
    for words in ("done", "kept"):
        ended = commands.run("evaluate", "--suite=zero_shot:tiny", *args, folder=tmp_path)
        assert ended.code == 0 and words in ended.out.splitlines()[-1], ended.err
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert set(table["task"]) >= {"gene_imputation", "denoising", "integration", "metadata"}
    assert "failed" not in set(table["status"]), table[table["status"] == "failed"]


@pytest.mark.slow
def test_a_command_killed_outright_goes_on_to_the_same_table_byte_by_byte(ground, tmp_path):
    _, paths, runs, _ = ground
    runs[0].run.export(tmp_path / "first.safetensors")
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


def test_a_model_that_sees_cells_alone_embeds_all_of_a_study_once(tmp_path):
    study, one = entrants.Study(suites.write(tmp_path / "one.h5ad")), suites.entrant("scemb", "one")
    calls, plain = [], one.embed_by
    one.embed_by = lambda run, *rest: calls.append(rest) or plain(run, *rest)
    seeds = [one.embed(study, seed, study.n, False) for seed in range(3)]
    assert len(calls) == 1
    for seed, embedded in enumerate(seeds):
        np.testing.assert_allclose(embedded, plain(one.run, study, seed, study.n), rtol=1e-4, atol=1e-5)
    one.embed(study, 1, study.n, True), one.embed(study, 2, study.n - 1, False)
    assert len(calls) == 3
