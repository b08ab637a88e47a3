"""Networks of files: a planted one, a table that was killed, the list of edges, runs as starts, bad input."""

import dataclasses
import functools
import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from experiments.analyses import networks, networks_data, networks_table
from experiments.analyses.networks_data import Plan, named, read
from experiments.analyses.perturbation_data import prepare
from scfm_jax.api import gene_features, gene_networks
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.networks import deepsem, problem, scores
from tests.harness import commands, suites

QUIET = {"say": lambda _: None}
N, TFS = 24, suites.GENES[:6]
EDGES = [(tf, 6 + (3 * tf + i) % 18) for tf in range(6) for i in range(5)]
"""Which of six regulators regulates which gene; targets of neighbours overlap."""


def counts(n_cells: int = 150) -> np.ndarray:
    """Return counts of genes of which six regulate others."""
    rng = np.random.default_rng(0)
    log = rng.normal(size=(n_cells, N)) * 0.2
    log[:, :6] = rng.normal(size=(n_cells, 6)) * 0.7
    for tf, target in EDGES:
        log[:, target] += 0.8 * log[:, tf]
    return rng.poisson(20 * np.exp(log)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a table of genes x cells, its logarithms, an .h5ad, two truths and GO terms."""
    folder = tmp_path_factory.mktemp("networks")
    x, cells = counts(), [f"c{i}" for i in range(150)]
    frame = pd.DataFrame(x.T, suites.GENES[:N], cells)
    frame.to_csv(folder / "counts.csv")
    np.log1p(frame / 7).to_csv(folder / "logged.csv.gz")
    pd.DataFrame(x.T - 20, suites.GENES[:N], cells).to_csv(folder / "z.csv")
    obs = pd.DataFrame({"batch": ["b"] * 150}, cells)
    anndata.AnnData(sp.csr_matrix(x), obs, pd.DataFrame(index=suites.GENES[:N])).write_h5ad(folder / "x.h5ad")
    names = [(suites.GENES[a], suites.GENES[b]) for a, b in EDGES]
    (folder / "chip.csv").write_text("Gene1,Gene2\n" + "".join(f"{a},{b}\n" for a, b in [*names, ("GENE0", "OTHER")]))
    (folder / "string.tsv").write_text("TF\ttarget\tsign\n" + "".join(f"{a}\t{b}\t-1\n" for a, b in names[:9]))
    terms = [f"{name}\tGO:{(7 * i + j) % 9:07d}\n" for i, name in enumerate(suites.GENES[:N]) for j in range(3)]
    (folder / "go.tsv").write_text("symbol\tgo_id\n" + "".join(terms))
    return folder


def plan(folder, name: str = "counts.csv", **options) -> Plan:
    """Return a small plan on a file of the folder."""
    truth = options.pop("truth", ("chip.csv", "string.tsv"))
    options = {"trees": 15, "go": str(folder / "go.tsv")} | options
    return Plan(str(folder / name), tuple(named(f"{folder}/{file}") for file in truth), **options)


@pytest.fixture
def quick(monkeypatch):
    """Let DeepSEM's training be a sum of its start and noise of its seed."""

    def trainer(plan, data):
        return lambda start, seed: start + 0.01 * np.random.default_rng(seed).random(start.shape)

    monkeypatch.setattr(networks, "_trainer", trainer)
    fewer = functools.partial(scores.permutation_interval, number=40)
    monkeypatch.setattr(networks.scores, "permutation_interval", fewer)


def made(asked: Plan, out, only=(), **numbers):
    """Return (data, methods, scores, strengths) of a plan, of some of its methods."""
    data = read(asked, **QUIET)
    prepare(asked, out)
    listed = [method for method in networks.methods(asked, data, out, []) if not only or method.name in only]
    return data, listed, *networks.fill(data, out, listed, **{"seeds": 2, "ensemble": 2} | numbers, **QUIET)


def test_a_planted_network_is_found_and_a_killed_table_goes_on(folder, tmp_path, quick, monkeypatch, capsys):
    asked = plan(folder)
    _, _, rows, strengths = made(asked, tmp_path / "whole")
    summary = networks_table.summarised(rows)["chip"]
    for method in ("|Pearson|", "|Spearman|", "GENIE3"):
        assert all(summary[method][score][3] for score in ("aupr_ratio", "auroc", "regulator_ap")), summary[method]
    assert not any(summary["start, random vectors"][score][3] for score in ("epr", "auroc"))
    assert summary["GENIE3"]["epr"][0] > 2 > summary["GENIE3"]["epr"][2]
    assert {row["seed"] for row in rows if row["method"] == "DeepSEM, random vectors"} == {0, 1}

    infer, calls = networks.baselines.row_normalised, []

    def dying(matrix):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return infer(matrix)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(networks.deepsem, "row_normalised", dying)
        made(asked, tmp_path / "killed")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed/matrices").iterdir()}
    assert 5 < len(kept) < len(list((tmp_path / "whole/matrices").iterdir())) and not list(tmp_path.rglob(".*"))
    torn = sorted(kept)[0]
    torn.write_bytes(torn.read_bytes()[:-30])
    _, _, again, same = made(asked, tmp_path / "killed")
    assert "it is made again" in capsys.readouterr().err
    assert json.dumps(again) == json.dumps(rows)
    assert all(np.array_equal(same[name], strengths[name]) for name in strengths)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items() if path != torn)
    with pytest.raises(ValueError, match="holds a table with another n_genes; choose another folder"):
        prepare(dataclasses.replace(asked, n_genes=5), tmp_path / "whole")


def test_the_list_of_edges_and_the_table_say_what_was_inferred(folder, tmp_path, quick):
    only = ("GENIE3", "DeepSEM, GO-Jaccard", "start, random vectors")
    data, listed, rows, strengths = made(plan(folder), tmp_path, only, ensemble=1, seeds=1)
    text = networks_table.write(tmp_path, data, listed, rows, strengths, "# A title")
    frame = pd.read_csv(tmp_path / "edges_GENIE3.tsv", sep="\t", dtype=str)
    assert list(frame.columns) == ["TF", "target", "weight", "rank", "in chip", "in string"]
    assert len(frame) == 6 * (N - 1) and set(frame.TF) == set(TFS) and (frame.target != frame.TF).all()
    of = {(row.TF, row.target): row for row in frame.itertuples(index=False)}
    strength = strengths["GENIE3"]
    for (tf, target), row in of.items():
        a, b = suites.GENES.index(tf), suites.GENES.index(target)
        assert float(row.weight) == pytest.approx(strength[b, a], rel=1e-5), "columns are regulators"
        assert row[4] == str(int((a, b) in EDGES))
        judged = a < 2 and b in {0, 1, *(target for _, target in EDGES[:9])}
        assert row[5] == str(int((a, b) in EDGES[:9])) if judged else pd.isna(row[5]), "no answer is not a no"
    weight = frame.weight.astype(float)
    assert (np.diff(weight) <= 0).all() and float(frame["rank"][0]) == 1 and frame["in chip"][:9].eq("1").all()
    assert "## chip: 30 edges of 6 TFs among 24 genes" in text and f"| {networks.ORACLE} |" in text
    said = text.split("## string")[1]
    assert "| DeepSEM, GO-Jaccard | † | † | † | † |" in said and "so not judged by them" in said
    assert "†" not in text.split("## string")[0]
    made_of = lambda name: (f"edges_{name}.tsv", f"network_{name}.png")  # noqa: E731
    written = {"table.md", "table.csv", "table.json", "table.png", *made_of("GENIE3"), *made_of("DeepSEM_GO_Jaccard")}
    assert written == {path.name for path in tmp_path.iterdir() if path.suffix} - {"plan.json"}
    alone = dataclasses.replace(data, truths=[])
    (tmp_path / "alone").mkdir()
    said = networks_table.write(tmp_path / "alone", alone, listed, [], {"GENIE3": strength}, "# A title")
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["edges_GENIE3.tsv", "network_GENIE3.png"]


def test_cells_genes_and_regulators_are_those_that_were_asked_for(folder):
    data = read(plan(folder), **QUIET)
    assert data.counts and data.names == suites.GENES[:N] and data.regulators.tolist() == list(range(6))
    assert data.x[3, 5] == pytest.approx(np.log1p(1e4 * counts()[3, 5] / counts()[3].sum()))
    assert [(t.name, int(t.edges.sum()), t.leaks) for t in data.truths] == [("chip", 30, False), ("string", 9, True)]
    assert data.truths[0].edges[EDGES[7][1], EDGES[7][0]] and data.truths[1].targets.tolist() == [0, 1, *range(6, 13)]
    some = read(plan(folder, "x.h5ad", n_genes=14, cells=60, truth=["string.tsv"]), **QUIET)
    assert len(some.rows) == 60 == len(some.x) and {"GENE0", "GENE1"} <= set(some.names) and 14 <= len(some.names) <= 16
    lines = []
    logged = read(plan(folder, "logged.csv.gz", truth=[]), say=lines.append)
    assert not logged.counts and len(logged.regulators) == N
    assert "log-normalised values" in lines[0] and "runs are asked for gene vectors" in lines[0]
    assert networks_data.named(f"A=B={folder}/chip.csv"[2:])[0] == "B"


def test_what_cannot_be_inferred_of_is_refused_in_one_line(folder, tmp_path):
    for name, text in {
        "nobody": "TF,target\nMYC,SOX2\nSOX2,MYC\n",
        "columns": "TF,gene_of_it\nGENE0,GENE1\n",
        "far": "TF,target\nGENE0,OTHER\n",
        "empty": "TF,target\n",
        "go": "symbol\tgo_id\nMYC\tGO:1\nSOX2\tGO:1\n",
        "words": ",c0,c1\nGENE0,1,x\n",
        "few": ",c0,c1\n" + "".join(f"{gene},1,2\n" for gene in TFS),
    }.items():
        (folder / f"{name}.csv").write_text(text)
    (folder / "tfs.txt").write_text("tf\nMYC\n")
    (folder / "others.txt").write_text("GENE20\n")
    way = "give raw counts, or log1p of normalised ones"
    for asked, what in (
        ({"truth": ["nobody.csv"]}, r"nobody.csv: none of its 2 TFs \(MYC, SOX2, ...\) is a gene of counts.csv; check"),
        (
            {"truth": ["columns.csv"]},
            "columns.csv: columns tf, gene_of_it: the genes of an edge are tf,target or gene1",
        ),
        ({"truth": ["far.csv"]}, "far.csv: none of its 1 edges is between two genes of counts.csv; leave it out"),
        (
            {"tfs": (f"{folder}/others.txt", "")},
            "chip has no edge between two of the 24 genes chosen of counts.csv; raise",
        ),
        ({"truth": ["empty.csv"]}, "empty.csv: no edges in it; a table has the columns TF,target"),
        ({"tfs": (str(folder / "tfs.txt"), "")}, "tfs.txt: none of its 1 genes is one of counts.csv"),
        ({"name": "z.csv"}, f"z.csv: negative values, as of z-scores, .*: {way}"),
        ({"name": "few.csv", "truth": []}, "few.csv: 2 cells: a network needs at least 20; give a file of more"),
        ({"name": "words.csv"}, "words.csv: no table of numbers, a gene's name in front of each line .*x"),
        ({"share": 1.0, "name": "rare.csv"}, "rare.csv: none of the 6 regulators .* 100% of the cells; lower --share"),
    ):
        frame = pd.read_csv(folder / "counts.csv", index_col=0)
        frame.iloc[:, 0] = 0
        frame.to_csv(folder / "rare.csv")
        with pytest.raises(ValueError, match=what) as caught:
            read(plan(folder, **asked), **QUIET)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"--truth=A=none\.csv: no such file"):
        named("A=none.csv")
    data = read(plan(folder), **QUIET)
    with pytest.raises(ValueError, match=r"go.csv: has none of the 24 genes \(GENE0, GENE1, GENE2, ...\); check"):
        networks.go_terms(str(folder / "go.csv"), data)


@pytest.fixture(scope="module")
def run():
    """Return a small run."""
    return suites.entrant("cellplm", "cellplm").run


def test_a_run_without_counts_has_its_gene_vectors_and_what_it_has_not_is_refused(folder, tmp_path, run):
    run.export(tmp_path / "run")
    dataclasses.replace(run, meta=run.meta | {"genes": [f"X{i}" for i in range(64)]}).export(tmp_path / "strange")
    logged, raw = (read(plan(folder, name), **QUIET) for name in ("logged.csv.gz", "x.h5ad"))
    enter = lambda data, kind="auto", run="run", **more: networks.entrants(  # noqa: E731
        plan(folder, "logged.csv.gz", **more), data, [str(tmp_path / run)], [kind]
    )
    assert [enter(data)[0].kind for data in (logged, raw)] == ["table", "cells"]
    assert enter(raw)[0].note == "cells, knows 24 of 24 genes"
    for asked, what in (
        ({"kind": "cells"}, "cells of cellplm needs raw counts, and logged.csv.gz has none: take --vectors=table, or"),
        ({"kind": "graph"}, "--vectors=graph: .*run has none; it has table, context, cells"),
        ({"kind": "table", "reading": {"min_mapped": 1.1}}, "run: knows 24 of the 24 genes: check"),
        ({"run": "strange"}, "strange: knows none of the 24 genes: check the species, give a --gene_table, or lower"),
    ):
        with pytest.raises(ValueError, match=what):
            enter(logged, **asked)


def test_similarities_are_cosines_of_standardised_features(folder, run):
    names = [*suites.GENES[3:9], "NOBODY"]
    vectors = run.gene_vectors("table", names=names, **QUIET)
    table = gene_networks.similarity(run, names, "table", **QUIET)
    np.testing.assert_allclose(table[:6, :6], deepsem.cosine(features.standardised(vectors.values[:6])), rtol=1e-5)
    assert not table[6].any() and not table[:, 6].any()
    path = str(folder / "x.h5ad")
    stream = gene_features.stream(run, path, gene_features.COMPOSED, rows=[2, 5, 9], **QUIET)
    values = np.concatenate([part for _, part in stream])[:, 3:9]
    flat = np.swapaxes(values, 0, 1).reshape(6, -1).astype(np.float64)
    cells = gene_networks.similarity(run, names, source=path, rows=[2, 5, 9], **QUIET)
    np.testing.assert_allclose(cells[:6, :6], deepsem.cosine(features.standardised(flat)), atol=1e-6)
    as_they_are = gene_networks.similarity(run, names, source=path, rows=[2, 5, 9], centred=False, **QUIET)
    np.testing.assert_allclose(as_they_are[:6, :6], deepsem.cosine(flat), atol=1e-6)
    assert not cells[6].any()


def test_intervals_are_of_either_permutation_and_the_oracle_knows_degrees():
    rng = np.random.default_rng(0)
    truth = np.zeros((30, 30), bool)
    truth[rng.choice(30, 20, False), 0], truth[rng.choice(30, 3, False), 1] = True, True
    np.fill_diagonal(truth, False)
    oracle = scores.oracle_of_degrees(truth)
    assert oracle[4, 0] == truth[4].sum() * truth[:, 0].sum()
    score, true, regulator = scores.pairs(np.ones((30, 1)) * [[3.0, 1] + [0] * 28], truth, [0, 1])
    free, kept = (scores.permutation_interval(score, true, regulator, within=w, number=60) for w in (False, True))
    value = scores.scores(score, true, regulator)
    assert value["auroc"] > free["auroc"][1] and kept["auroc"] == (value["auroc"], value["auroc"])
    assert value["regulator_ap"] == pytest.approx(np.mean([true[regulator == r].mean() for r in (0, 1)]))
    score = np.round(rng.random(len(true)), 1)
    many = scores._of_many(score, np.array([true, true[::-1]]), regulator)
    for row, one in enumerate((true, true[::-1])):
        wanted = scores.scores(score, one, regulator)
        assert {name: value[row] for name, value in many.items()} == pytest.approx(wanted)
    x = sp.csr_matrix(np.array([[1.0, 0, 2, 0], [0, 0, 1, 3], [2, 0, 0, 0]]))
    assert problem.chosen(x, np.array([False, True, False, True]), 1, 0.3).tolist() == [3]


@pytest.mark.slow
def test_the_command_shows_a_run_beside_its_twin_and_goes_on(folder, tmp_path):
    suites.entrant("scemb", "scemb").run.export(tmp_path / "scemb")
    args = [f"--input={folder}/x.h5ad", f"--truth=ChIP={folder}/chip.csv", f"--runs={tmp_path}/scemb"]
    args += ["--trees=5", "--epochs=2", "--rows=64", "--cells=60", "--ensemble=2"]
    done = commands.run("networks", *args, f"--output={tmp_path}/whole", folder=tmp_path)
    assert done.code == 0, done.err
    for name in ("scemb", "scemb, random twin", "scemb, shuffled names"):
        assert f"| DeepSEM, {name} |" in done.out and f"| start, {name} |" in done.out
    assert "- DeepSEM, scemb: cells, knows 24 of 24 genes" in done.out
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for path in sorted((tmp_path / "killed/matrices").iterdir())[::3]:
        path.unlink()
    again = commands.run("networks", *args, f"--output={tmp_path}/killed", folder=tmp_path)
    assert again.code == 0 and again.out == done.out
    files = [path for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    assert len(files) > 40
    for path in files:
        assert (tmp_path / "killed" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path
    for more, what in (
        ("--vectors=tabel", "--vectors=tabel: must be of auto, cells, table"),
        ("--go=nothing", "--go=nothing: no such file or folder"),
        (f"--truth={folder}/chip.csv,{folder}/chip.csv", "two of one name; tell them apart as NAME=FILE"),
    ):
        wrong = commands.run("networks", *args, more, f"--output={tmp_path}/wrong", folder=tmp_path)
        assert wrong.code == 2 and what in wrong.err and wrong.err.count("\n") == 1
        assert not (tmp_path / "wrong").exists()
