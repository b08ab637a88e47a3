"""Genes perturbed in silico: masks of every model, a planted effect is found, no effect is chance, strata count."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from data_pipeline import synthetic
from experiments.analyses import perturbation, perturbation_bars, perturbation_screen
from scfm_jax import api, models
from scfm_jax.inference import bags
from scfm_jax.tasks.perturbation import in_silico as task
from tests.harness import commands

QUIET = {"say": lambda _: None}
SMALL = {"sct": {"num_downsamples": 1, "head_layers": 0}, "sclong": {"graph": False}}


def run_of(name: str, genes: list[str]) -> api.Run:
    """Return a tiny model with random weights."""
    config = models.options(name, "tiny") | {"data": {"bag": 6, "labels": []}}
    config["model"] |= SMALL.get(name, {})
    meta = {"model": name, "config": config, "genes": genes, "classes": {}, "step": 0}
    return api.build(meta, {"params": {}}, {}, "a test").twin(0)


def embedder(name: str, n_genes: int) -> task.Embedder:
    """Return the embedder of a tiny model."""
    run = run_of(name, [f"G{i}" for i in range(n_genes)])
    batch = bags.pack(counts(genes=n_genes), np.arange(12)[:, None])
    constants = run.complete_constants([batch], np.ones((1, n_genes), bool), **QUIET)
    return task.Embedder(name, run.module, run.model, run.variables, constants, run.meta["config"])


def counts(n: int = 12, genes: int = 40, seed: int = 0) -> sparse.csr_matrix:
    """Return raw counts of which about half are zero."""
    return sparse.csr_matrix(np.random.default_rng(seed).poisson(0.8, (n, genes)).astype(np.float32))


def test_deleted_and_overexpressed_counts():
    x = counts()
    gene = np.arange(12) % 5
    for how, value in (("delete", np.zeros(12)), ("overexpress", x.max(1).toarray().ravel())):
        new = task.changed(x, gene, how).toarray()
        assert np.array_equal(new[np.arange(12), gene], value)
        new[np.arange(12), gene] = x.toarray()[np.arange(12), gene]
        assert np.array_equal(new, x.toarray())
    with pytest.raises(ValueError, match="how 'burn': there are mask, delete, overexpress"):
        task.changed(x, gene, "burn")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n != "cellplm" else n for n in models.names()]
)
def test_a_mask_changes_the_cells_that_express_the_gene(name):
    x, embed = counts(), embedder(name, 40)
    group = np.repeat([0, 1], 6)
    plain = embed(x, None, group)
    assert np.allclose(plain, embed(x, np.full(12, -1), group), atol=1e-5)
    gene = 3
    masked = embed(x, np.full(12, gene), group)
    moved = np.abs(masked - plain).max(1) > 1e-6
    has = x[:, gene].toarray().ravel() > 0
    if name in ("exceiver", "scemb", "sclong"):
        assert np.array_equal(moved, has)
    else:
        assert moved[has].all()
    other = x.toarray()
    other[6:] = other[6:, ::-1]  # cells of another group are never seen
    assert np.allclose(embed(sparse.csr_matrix(other), None, group)[:6], plain[:6], atol=1e-5)


def test_cells_in_which_a_gene_ranks_beyond_the_sentence_are_not_counted(monkeypatch):
    x = counts(80, seed=1).toarray()
    rank = np.argsort(np.argsort(-x, axis=1, kind="stable"), axis=1)
    inside = (rank < 12) & (x > 0)  # equal counts: the lower id first
    config = {"model": {}, "inputs": {"max_len": 12}}
    meta = {"model": "scemb", "config": config, "genes": [f"G{i}" for i in range(40)]}
    run = api.build(meta, {}, {}, "no weights: genes are ranked alike by any")
    known = run.complete_constants([], np.ones((1, 40), bool), **QUIET)
    seen = task.read_genes(run.module, known, run.meta["config"], sparse.csr_matrix(x)).toarray()
    assert np.array_equal(seen, np.where(inside, x, 0)) and (x[~inside] > 0).any()
    assert task.read_genes(models.get("exceiver"), {}, {}, sparse.csr_matrix(x)).nnz == (x > 0).sum()

    condition = np.repeat(["control", "G30"], [70, 10])
    adata = anndata.AnnData(
        sparse.csr_matrix(x), pd.DataFrame({"perturbation": condition}, [f"c{i}" for i in range(80)]),
        pd.DataFrame(index=run.genes),
    )  # fmt: skip
    simple = lambda run, constants, counts, seed: [("PCA-50", task.Components(counts))]  # noqa: E731
    monkeypatch.setattr(perturbation, "methods", simple)
    says = []
    given = {"column": "perturbation", "control": "control", "how": "mask", "null": 20}
    found = perturbation.evaluate(run, adata, **given, say=says.append)
    n, all_of = int(inside[:70, 30].sum()), int((x[:70, 30] > 0).sum())
    assert n < all_of and {row["cells"] for row in found["rows"]} == {n}
    line = f"ranks beyond the genes that the model reads: G30 {all_of - n}."
    assert any(text.endswith(line) for text in says) and line in perturbation.table(found)
    found = perturbation.evaluate(run, adata, **given | {"how": "overexpress"}, **QUIET)
    assert found["beyond"] == {} and {row["cells"] for row in found["rows"]} == {70}


def test_a_model_without_a_mask_says_what_else_there_is(monkeypatch):
    monkeypatch.delattr(models.get("exceiver"), "mask_gene")
    with pytest.raises(ValueError, match=r"model exceiver has no mask.*delete or overexpress"):
        embedder("exceiver", 40)(counts(), np.zeros(12, int), np.zeros(12, int))


def test_shifts_are_means_over_the_cells_of_each_gene():
    x = counts(30)
    weights = np.random.default_rng(0).normal(size=(40, 4))

    def embed(c, masked, group):
        return c.toarray() @ weights

    cells = {g: np.flatnonzero(x[:, g].toarray().ravel()) for g in range(6)}
    found = task.shifts(embed, x, cells, "delete")
    for g, rows in cells.items():
        before, after = found[g]
        assert before == pytest.approx((x[rows].toarray() @ weights).mean(0))
        assert after - before == pytest.approx(-x[rows][:, [g]].toarray().mean() * weights[g])


def test_the_real_shift_is_taken_within_strata():
    rng = np.random.default_rng(0)
    kind = np.array([[5.0, 0], [0, 5.0]])
    of_control, of_treated = np.repeat([0, 1], [80, 20]), np.repeat([0, 1], [20, 80])
    noise = lambda n: 0.01 * rng.normal(size=(n, 2))  # noqa: E731
    control, treated = kind[of_control] + noise(100), kind[of_treated] + [1, 1] + noise(100)
    low, high = task.real_shift(control, treated, of_control, of_treated)
    assert high - low == pytest.approx([1, 1], abs=0.02)
    assert task.reliability(control, treated, of_control, of_treated) > 0.99
    chance = task.reliability(*rng.normal(size=(2, 100, 60)), of_control, of_treated)
    assert abs(chance) < 0.4
    with pytest.raises(ValueError, match="no stratum in common"):
        task.real_shift(control, treated, of_control, of_treated + 2)


def test_scores_p_and_null():
    score = task.score(np.zeros(2) + 1, np.array([1.0, 2]), np.array([1.0, 1]), np.array([1.0, 3]))
    assert score["direction"] == pytest.approx(1) and score["share"] == pytest.approx(0.5) and score["gain"] > 0
    assert score["cosine"] == pytest.approx(7 / 50**0.5) and score["before"] == pytest.approx(4 / 20**0.5)
    assert score["gain"] == pytest.approx(score["cosine"] - score["before"])
    assert task.percentile(2, [0, 1, 2, 3]) == 62.5
    assert task.p_value(1.0, np.zeros(99)) == 0.01 and task.p_value(0.0, np.zeros(99)) == 1.0
    level = np.array([1.0, 5, 1.1, 0.9, 8, 1.05])
    assert sorted(task.matched(level, 0, range(6), 3)) == [2, 3, 5]


def screen(effect: bool) -> anndata.AnnData:
    """Return control cells, and for six genes cells in which, with `effect`, the gene is all but gone."""
    adata = synthetic.make(700, 120, n_types=2, depth=1500.0, batch_effect=0.0)
    x, rng = adata.X.toarray(), np.random.default_rng(1)
    order = np.argsort(-x[:100].mean(0))
    targets = order[10:40:5]
    names = adata.var_names
    condition = np.array(["control"] * 100 + [names[g] for g in targets for _ in range(100)])
    for i, g in enumerate(targets if effect else []):
        rows = slice(100 + 100 * i, 200 + 100 * i)
        x[rows, g] = rng.binomial(x[rows, g].astype(int), 0.05)
    obs = pd.DataFrame({"perturbation": condition, "good": np.arange(700) % 7 > 0}, adata.obs_names)
    return anndata.AnnData(sparse.csr_matrix(x), obs, adata.var)


@pytest.mark.slow
def test_a_planted_knock_out_is_found_directly_but_not_downstream():
    adata = screen(True)
    run = run_of("exceiver", list(adata.var["ensembl_id"]))
    given = {"column": "perturbation", "control": "control", "cells": 100, "null": 60, "how": "delete"}
    found = perturbation.evaluate(run, adata, **given, **QUIET)
    rows = [row for row in found["rows"] if row["method"] == "PCA-50"]
    assert len(rows) == 6 and sum(row["direction_q"] < 0.05 for row in rows) >= 4
    assert np.mean([row["downstream_p"] for row in rows]) > 0.2
    for row in rows:
        assert row["null_directions"] and row["ceiling"] <= 1 and row["direction_p"] >= 1 / 61
    assert "of 6 targets" in perturbation.summary(found)


@pytest.mark.slow
def test_without_an_effect_p_is_chance():
    adata = screen(False)
    run = run_of("exceiver", list(adata.var["ensembl_id"]))
    given = {"column": "perturbation", "control": "control", "cells": 100, "null": 60, "filter": "good == True"}
    found = perturbation.evaluate(run, adata, **given, **QUIET)
    ps = [row[f"{score}_p"] for row in found["rows"] for score in perturbation.SCORES]
    assert 0.25 < np.mean(ps) < 0.75
    assert max(row["treated"] for row in found["rows"]) <= 86


def test_a_screen_without_treated_cells_finds_the_gene_that_cases_lack(monkeypatch):
    x = np.random.default_rng(2).poisson(2.0, (160, 60)).astype(np.float32)
    x[80:, 7] = 0
    genes = [f"G{i}" for i in range(60)]
    obs = pd.DataFrame({"state": np.repeat(["ctrl", "case"], 80)}, [f"c{i}" for i in range(160)])
    adata = anndata.AnnData(sparse.csr_matrix(x), obs, pd.DataFrame(index=genes))
    meta = {"model": "scemb", "config": {"model": {}, "inputs": {"max_len": 60}}, "genes": genes}
    run = api.build(meta, {}, {}, "no weights: components stand in for it")
    monkeypatch.setattr(perturbation, "methods", lambda run, _, counts, seed: [(run.name, task.Components(counts))])
    given = {"column": "state", "control": "ctrl", "how": "delete", "most": 30, "null": 20, "genes": ["G7"]}
    found = perturbation_screen.evaluate(run, adata, **given, case="case", **QUIET)
    best = perturbation_screen.strongest(found, "scemb")[0]
    assert best["gene"] == "G7" and best["cosine"] > 0.9 and best["p"] == 1 / 21 and len(found["rows"]) in (30, 31)
    assert (
        "from ctrl to case" in perturbation_screen.table(found) and perturbation_bars.of_screen(found)[:4] == b"\x89PNG"
    )
    alone = perturbation_screen.evaluate(run, adata, **given, **QUIET)
    row = next(row for row in alone["rows"] if row["gene"] == "G7")
    other = next(row for row in found["rows"] if row["gene"] == "G7")
    assert row["length"] == pytest.approx(other["length"], rel=0.2) and "cosine" not in row
    with pytest.raises(ValueError, match="genes=XYZ: no gene that the file and the model share"):
        perturbation_screen.evaluate(run, adata, **given | {"genes": ["XYZ"]}, **QUIET)


def test_mistakes_are_one_line():
    adata = screen(False)[:200]
    run = run_of("exceiver", list(adata.var["ensembl_id"]))
    given = {"column": "perturbation", "control": "control"}
    for change, text in (
        ({"column": "guide"}, "--column=guide: no such obs column; there are perturbation"),
        ({"control": "none"}, r"obs\['perturbation'\] is 'none' in 0 cells"),
        ({"targets": [("control", "XYZ")]}, "--targets: XYZ: no gene that the file and the model share"),
        ({"within": "lane"}, "--within=lane: no such obs column"),
        ({"filter": "nope == 1"}, "--filter=nope: no such obs column"),
    ):
        with pytest.raises(ValueError, match=text):
            perturbation.evaluate(run, adata, **given | change, **QUIET)


@pytest.mark.slow
def test_command_writes_all_or_nothing(tmp_path):
    screen(True).write_h5ad(tmp_path / "x.h5ad")
    run_of("exceiver", list(screen(True).var["ensembl_id"])).export(tmp_path / "w.safetensors")
    args = [f"--workdir={tmp_path}/w.safetensors", f"--input={tmp_path}/x.h5ad", f"--output={tmp_path}/out"]
    args += ["--control=control", "--cells=40", "--null=20"]
    done = commands.run("perturb", *args, "--targets=STAT1", folder=tmp_path, timeout=600)
    assert done.code == 2 and "--targets=STAT1: write VALUE=GENE" in done.err and not list(tmp_path.glob(".out*"))
    done = commands.run("perturb", *args, folder=tmp_path, timeout=600)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"perturb.md", "perturb.json", "perturb.png", "top.png"}
    found = json.loads((tmp_path / "out" / "perturb.json").read_text())
    assert len(found["rows"]) == 18 and found["how"] == "mask" and found["null"] == 20
