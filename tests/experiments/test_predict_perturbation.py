"""The table of predicted perturbations: planted effects, a table that was killed, runs, doubles, bad input."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from experiments.analyses import perturbation_table
from experiments.analyses import predicted_perturbation as analysis
from experiments.analyses.perturbation_data import Plan, prepare, read, rounds
from scfm_jax.tasks.genes import features
from tests.harness import commands, suites

QUIET = {"say": lambda _: None}
TARGETS = suites.GENES[:10]
TRUE = np.random.default_rng(5).normal(size=(suites.V, 3))
"""The gene vectors that the planted effects are made of."""


def screen(path, doubles: bool = False, layer: bool = False, logged: bool = False) -> str:
    """Write a screen in GEARS' layout, 40 cells of each of ten singles, control, and two doubles; return its path."""
    rng = np.random.default_rng(0)
    effect = 0.5 * TRUE @ TRUE[:10].T  # of each target on each gene, in logarithms
    names = ["ctrl", *(f"{g}+ctrl" for g in TARGETS), *(["GENE0+GENE1", "GENE2+GENE9"] if doubles else [])]
    parts = [[TARGETS.index(g) for g in name.split("+") if g != "ctrl"] for name in names]
    rates = np.repeat(5 * np.exp([effect[:, part].sum(1) for part in parts]), 40, 0)
    x = rng.poisson(rates).astype(np.float32)
    obs = pd.DataFrame({"condition": np.repeat(names, 40)}, [f"c{i}" for i in range(len(x))])
    obs["type"] = np.where(np.arange(len(x)) % 2, "B", "T")
    adata = anndata.AnnData(sp.csr_matrix(np.log1p(x) if logged or layer else x), obs, pd.DataFrame(index=suites.GENES))
    if layer:
        adata.layers["counts"] = sp.csr_matrix(x)
    adata.write_h5ad(path)
    return str(path)


def filled(plan: Plan, out, listed=None, runs=(), seeds: int = 2):
    """Return the rows of a table."""
    data = read(plan, **QUIET)
    prepare(plan, out)
    listed = listed or analysis.methods(plan, data, out, runs, ["auto"])
    return analysis.fill(plan, data, out, listed, seeds, **QUIET)


def mean(rows, method: str, score: str, stratum: str = "") -> float:
    """Return the mean score of a method."""
    return np.mean([row[score] for row in rows if row["method"] == method and stratum in row["stratum"]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a screen."""
    folder = tmp_path_factory.mktemp("screen")
    screen(folder / "x.h5ad")
    return folder


def test_vectors_that_made_the_effects_win_and_what_is_there_is_not_made_again(folder, capsys):
    plan, out = Plan(str(folder / "x.h5ad"), least=30), folder / "out"
    data = read(plan, **QUIET)
    vectors = features.taken(TRUE, np.arange(suites.V), data.names, "planted", "a test")
    listed = [*analysis.methods(plan, data, out, [], []), analysis._ridge(data, "planted", lambda _: vectors, False)]
    rows = filled(plan, out, listed)
    assert mean(rows, "ridge, planted", "centred") > 0.8 > 0.3 > mean(rows, "ridge, random vectors", "centred")
    assert mean(rows, "ridge, planted", "discrimination") > 0.9 > 0.7 > mean(rows, "training mean", "discrimination")
    assert mean(rows, analysis.CEILING, "pearson") > 0.9 and mean(rows, analysis.CEILING, "energy") < 0.1
    assert mean(rows, "no change", "energy") > 0.5 and mean(rows, "no change", "pearson") == 0
    assert {row["seed"] for row in rows if row["method"] == "ridge, random vectors"} == {0, 1}
    assert {row["seed"] for row in rows if row["method"] == "training mean"} == {0}
    files = sorted((out / "predictions").glob("ridge_random_vectors-*_1_*.npz"))
    assert len(files) == 10
    files[0].unlink()  # where it was killed
    files[1].write_bytes(files[1].read_bytes()[:-30])
    calls = []

    def counting(method):
        return dataclasses.replace(method, predict=lambda *args: calls.append(method.name) or method.predict(*args))

    again = filled(plan, out, [counting(method) for method in listed])
    assert again == rows and calls == ["ridge, random vectors"] * 2
    assert "it is made again" in capsys.readouterr().err
    text = perturbation_table.write(out, rows, {method.name: method.note for method in listed}, "# A title")
    assert "| ridge, planted |" in text and "## seen 0/1: 10 conditions" in text
    assert {"table.md", "table.csv", "table.json", "table.png"} <= {path.name for path in out.iterdir()}
    assert len(pd.read_csv(out / "table.csv")) == len(rows)
    with pytest.raises(ValueError, match="holds a table with another split; choose another folder"):
        prepare(dataclasses.replace(plan, split="folds"), out)


def test_doubles_have_their_strata_and_their_sums(tmp_path):
    plan = Plan(screen(tmp_path / "x.h5ad", doubles=True), least=30, split="simulation")
    data = read(plan, **QUIET)
    split = rounds(plan, data, 0)[0]
    assert len(data.screen.conditions) == 12 and set(split.strata.values()) >= {"seen 0/1"}
    rows = filled(plan, tmp_path / "out")
    names = {row["method"] for row in rows}
    assert {"matching mean", "additive", "ridge, PCA-10", "ridge, one-hot"} <= names
    assert {row["seed"] for row in rows if row["method"] == "additive"} == {0, 1}  # each seed is another split
    groups = dataclasses.replace(plan, split="one_group_out", groups="type", least=15)
    rows = filled(groups, tmp_path / "groups")
    assert {row["stratum"] for row in rows} == {"unseen group"} and len({row["condition"] for row in rows}) == 24
    assert mean(rows, "matching mean", "pearson") < 1 and mean(rows, "no change", "pearson") == 0


def test_gears_layers_and_logarithms_are_read_and_what_is_no_expression_is_refused(tmp_path):
    path = screen(tmp_path / "x.h5ad", layer=True)
    with pytest.raises(ValueError, match=r"X does not hold raw counts .* choose with layer=counts"):
        read(Plan(path), **QUIET)
    counts = read(Plan(path, least=30, reading={"layer": "counts"}), **QUIET)
    logged = read(Plan(path, least=30, logged=True), **QUIET)
    names = counts.screen.conditions
    assert names == logged.screen.conditions and counts.names[:3] == ["GENE0", "GENE1", "GENE2"]
    same = np.corrcoef(counts.screen.effects(names).ravel(), logged.screen.effects(names).ravel())[0, 1]
    assert same > 0.9
    adata = anndata.read_h5ad(path)
    adata.X = sp.csr_matrix((adata.X.toarray() - 1) / 2)
    adata.write_h5ad(tmp_path / "z.h5ad")
    with pytest.raises(ValueError, match=r"z.h5ad: negative values, as of z-scores: .*; give raw counts"):
        read(Plan(str(tmp_path / "z.h5ad"), logged=True), **QUIET)
    for change, what in (
        ({"targets": ("GENE0", "NOBODY")}, "x.h5ad: targets=NOBODY: no cell has this perturbation; there are GENE0"),
        ({"column": "nothing"}, "x.h5ad: column=nothing: no such obs column; there are condition, type"),
        ({"control": ("NT",), "column": "condition"}, r"has no control cells \(NT\)"),
        ({"least": 41}, r"no condition has 41 cells .* \(the largest has 40, control 40 in all\)"),
        ({"groups": "kind"}, "x.h5ad: groups=kind: no such obs column"),
        ({"filter": "kind == 1"}, "x.h5ad: filter=kind: no such obs column"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            read(Plan(path, **{"logged": True, "least": 30} | change), **QUIET)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_shows_every_run_beside_its_twin_and_goes_on(folder, tmp_path):
    for model in ("cellplm", "scemb"):
        suites.entrant(model, model).run.export(tmp_path / model)
    terms = [f"GENE{i}\tGO:{i % 7:07d}\n" for i in range(64)] + [f"GENE{i}\tGO:{7 + i % 5:07d}\n" for i in range(50)]
    (tmp_path / "go.tsv").write_text("symbol\tgo_id\n" + "".join(terms))
    args = [f"--input={folder}/x.h5ad", f"--output={tmp_path}/out", "--least=30", "--seeds=2"]
    args += [f"--runs={tmp_path}/cellplm,{tmp_path}/scemb", f"--go={tmp_path}/go.tsv", "--split=folds", "--folds=3"]
    done = commands.run("predict_perturbation", *args, folder=tmp_path)
    assert done.code == 0, done.err
    for name in ("cellplm", "cellplm, random twin", "scemb", "scemb, random twin", "GO-SVD"):
        assert f"| ridge, {name} |" in done.out
    assert "ridge, GO-SVD: knows" not in done.out
    first = (tmp_path / "out/table.md").read_text()
    kept = sorted((tmp_path / "out/predictions").iterdir())
    kept[3].unlink()
    again = commands.run("predict_perturbation", *args, folder=tmp_path)
    assert again.code == 0 and (tmp_path / "out/table.md").read_text() == first
    for more, what in (
        ("--groups=type", "--split=one_group_out and --groups=COLUMN go together"),
        ("--vectors=tabel", "--vectors=tabel: must be of auto, table"),
        ("--go=nothing", "--go=nothing: no such file or folder"),
        ("--column=nothing", "x.h5ad: --column=nothing: no such obs column; there are condition, type"),
    ):
        wrong = commands.run("predict_perturbation", *args, more, folder=tmp_path)
        assert wrong.code == 2 and what in wrong.err and wrong.err.count("\n") == 1
