"""States against a screen by files: a planted reversal, a table that was killed, predicted genes, bad input."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline import synthetic_state
from experiments.analyses import state_correlation as analysis
from experiments.analyses import state_data, state_table
from experiments.analyses.perturbation_data import prepare
from scfm_jax.api import vector_file
from tests.harness import commands, suites

QUIET = {"say": lambda _: None}
TARGETS = suites.GENES[:8]
DIRECTION = np.random.default_rng(5).normal(size=suites.V)
VECTORS = np.random.default_rng(6).normal(size=(suites.V, 3))


def write(path, x: np.ndarray, obs: dict, genes=suites.GENES) -> str:
    """Write counts and return the path."""
    frame = pd.DataFrame(obs, [f"c{i}" for i in range(len(x))])
    anndata.AnnData(sp.csr_matrix(x.astype(np.float32)), frame, pd.DataFrame(index=list(genes))).write_h5ad(path)
    return str(path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Return the plan of a state and a screen: GENE0 turns the state back, GENE1 acts along it, others act across."""
    folder, rng = tmp_path_factory.mktemp("state"), np.random.default_rng(0)
    case = np.arange(160) % 2
    rate = 4 * np.exp(0.5 * case[:, None] * DIRECTION) * rng.uniform(0.7, 1.4, (160, 1))
    obs = {"condition": np.where(case, "stim", "ctrl"), "donor": [f"d{i // 40}" for i in range(160)], "type": "T"}
    state = write(folder / "state.h5ad", rng.poisson(rate), obs)
    effects = np.vstack([0 * DIRECTION, -0.4 * DIRECTION, 0.4 * DIRECTION, 0.4 * rng.normal(size=(6, suites.V))])
    names = np.repeat(["NT", *TARGETS], 40)
    screen = write(folder / "screen.h5ad", rng.poisson(np.repeat(4 * np.exp(effects), 40, 0)), {"perturbation": names})
    return state_data.StatePlan(
        input=screen, column="perturbation", control=("NT",), least=30, state=state, state_column="condition",
        case="stim", state_control="ctrl", donor="donor", types="type", permutations=300, folds=2, seeds=1,
    )  # fmt: skip


def filled(plan, out, runs=(), lists=None):
    """Return (parts, table) of a plan."""
    question = state_data.read(plan, **QUIET)
    prepare(plan, out)
    parts = analysis.fill(question, out, runs, **QUIET)
    return parts, state_table.write(out, question, parts, lists or {}, "# A title")


def test_a_planted_reversal_is_found_and_a_killed_table_goes_on(plan, tmp_path, capsys):
    parts, text = filled(plan, tmp_path / "out", lists={"mine": {"GENE0", "GENE1"}})
    rows = {row["gene"]: row for row in parts["expression"]["rows"]}
    assert rows["GENE0"]["cosine"] < -0.8 and rows["GENE1"]["cosine"] > 0.8
    assert [state_table.effect(rows[f"GENE{i}"]) for i in (0, 1)] == ["reverses", "resembles"]
    assert rows["GENE0"]["q"] < 0.02 and rows["GENE0"]["halves"] > 0.8
    assert "1 of 8 genes reverse the state" in text and "of each of 4 donors and type" in text
    assert "mine: 2 of 8 genes are on the list" in text and "with probability 1.00" in text
    assert len(parts["expression"]["violins"]) == 9 and len(pd.read_csv(tmp_path / "out/table.csv")) == 8
    assert (tmp_path / "out/violin.png").read_bytes()[:4] == b"\x89PNG"
    file = next((tmp_path / "out/spaces").iterdir())
    file.write_text(file.read_text()[:-30])  # where it was killed
    again, same = filled(plan, tmp_path / "out", lists={"mine": {"GENE0", "GENE1"}})
    assert again == parts and same == text and "it is made again" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds a table with another case, state_control; choose another folder"):
        prepare(dataclasses.replace(plan, case="ctrl", state_control="stim"), tmp_path / "out")


def test_lists_of_genes_are_lines_or_a_column(tmp_path):
    (tmp_path / "a.txt").write_text("GENE0\nGENE1\n\n")
    (tmp_path / "b.tsv").write_text("disease\tgene\nthis, early\tGENE2\nthat\tGENE2\n")
    lists = state_table.read_lists([str(tmp_path / "a.txt"), str(tmp_path / "b.tsv")], **QUIET)
    assert lists == {"a.txt": {"GENE0", "GENE1"}, "b.tsv": {"GENE2"}}
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"c.csv: columns a, b: one is to be called gene"):
        state_table.read_lists([str(tmp_path / "c.csv")], **QUIET)


def test_a_made_up_state_raises_its_programme_and_says_so_in_every_table(plan, tmp_path):
    x = np.random.default_rng(0).poisson(6, (240, suites.V)).astype(np.float32)
    frame = pd.DataFrame({"donor": "real"}, [f"c{i}" for i in range(240)])
    cells = anndata.AnnData(sp.csr_matrix(x), frame, pd.DataFrame(index=suites.GENES))
    made = synthetic_state.spiked(cells, [*suites.GENES[:9], "NOBODY"], "a programme", donors=8, fold=3, between=0.1)
    case, y = (made.obs.condition == "case").to_numpy(), made.X.toarray()
    ratio = y[case].mean(0) / y[~case].mean(0)
    assert (y <= x).all() and abs(ratio[:9].mean() - 3) < 0.4 and abs(ratio[9:].mean() - 1) < 0.1
    assert made.obs.groupby("donor").condition.nunique().eq(1).all() and made.obs.donor.nunique() == 8
    made.write_h5ad(tmp_path / "made.h5ad")
    change = {"state": str(tmp_path / "made.h5ad"), "case": "case", "state_control": "control", "types": None}
    parts, text = filled(dataclasses.replace(plan, permutations=60, **change), tmp_path / "out")
    assert "SYNTHETIC, not a measurement: made.h5ad: real cells, of which donors are made up and 9 genes" in text
    assert "labels exchanged among 8 donors, each a case or a control" in text and len(parts["expression"]["rows"]) == 8
    with pytest.raises(ValueError, match="donors=7, 240 cells, 9 genes of the programme"):
        synthetic_state.spiked(cells, suites.GENES[:9], "", donors=7)


@pytest.mark.slow
def test_genes_that_were_not_screened_are_predicted_and_judged_and_go_is_named(plan, tmp_path):
    vector_file.write(tmp_path / "v.npz", suites.GENES, VECTORS, "graph attention", "GO graph x.npz")
    given = {"vectors_file": str(tmp_path / "v.npz"), "predict": ("GENE20", "GENE21", "GENE0")}
    parts, text = filled(dataclasses.replace(plan, permutations=50, **given), tmp_path / "out")
    assert [row["gene"] for row in parts["expression, predicted"]["rows"]] == ["GENE20", "GENE21"]
    assert "that genes of a GO term stand out here is no evidence for it" in text
    judged = (tmp_path / "out/predictor/table.md").read_text()
    for method in (
        "ridge, graph attention (v.npz)",
        "nearest gene",
        "cell and gene, PCA-50",
        "PCA-50, no gene vectors",
        "PCA-50, shuffled gene vectors",
    ):
        assert f"{method} |" in judged
    assert "| its other cells |" in (tmp_path / "out/predictor/cells_out/table.md").read_text()
    with pytest.raises(ValueError, match="has none of the genes to predict"):
        filled(dataclasses.replace(plan, **given | {"predict": ("NOBODY", "GENE0", "GENE30x")}), tmp_path / "none")


def test_bad_input_is_one_line(plan, tmp_path):
    rng = np.random.default_rng(0)
    x, obs = rng.poisson(4, (80, suites.V)), {"condition": ["stim", "ctrl"] * 40, "donor": "d", "type": "T"}
    others = write(tmp_path / "mouse.h5ad", x, obs, [f"Mouse{i}" for i in range(suites.V)])
    logged = write(tmp_path / "log.h5ad", np.log1p(x), obs)
    scaled = write(tmp_path / "z.h5ad", (x - x.mean(0)) / x.std(0), obs)
    one = write(tmp_path / "one.h5ad", x, obs)
    for change, what in (
        ({"state_control": "healthy"}, "state.h5ad: state_control=healthy: no cell has it; there are ctrl, stim"),
        ({"case": "sick"}, "state.h5ad: case=sick: no cell has it; there are ctrl, stim"),
        ({"state_column": "kind"}, "state.h5ad: state_column=kind: no such obs column; there are condition"),
        ({"control": ("none",)}, r"screen.h5ad: obs\['perturbation'\] has no control cells \(none\)"),
        ({"donor": "patient"}, "state.h5ad: donor=patient: no such obs column; there are condition, donor, type"),
        ({"within": "lane"}, "screen.h5ad: within=lane: no such obs column"),
        (
            {"state": others, "donor": None},
            "mouse.h5ad and screen.h5ad have 0 genes in common, 10 are needed; check the species",
        ),
        ({"state": logged}, "log.h5ad: X does not hold raw counts"),
        ({"state": scaled}, "z.h5ad: X does not hold raw counts"),
        ({"state": scaled, "logged": True}, "z.h5ad: negative values, as of z-scores"),
        ({"state": one}, "one.h5ad: 1 donors with case and control cells, .*: two donors are needed"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            state_data.read(dataclasses.replace(plan, **change), **QUIET)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_commands_from_graph_to_vectors_to_states_in_runs(plan, tmp_path):
    run = suites.entrant("cellplm", "cellplm").run
    run.export(tmp_path / "cellplm")
    edges = [f"GENE{i}\tGENE{j}\t0.9\n" for i in range(64) for j in range(i) if i // 8 == j // 8]
    (tmp_path / "ppi.tsv").write_text("gene_a\tgene_b\tscore\n" + "".join(edges))
    args = [f"--ppi={tmp_path}/ppi.tsv", f"--output={tmp_path}/vectors", "--epochs=20"]
    done = commands.run("gene_embedding", *args, f"--workdir={tmp_path}/cellplm", "--vectors=table", folder=tmp_path)
    assert done.code == 0, done.err
    for method in ("graph attention", "names shuffled", "untrained network", "common neighbours"):
        assert f"| {method} |" in done.out
    read, _ = vector_file.read(tmp_path / "vectors/vectors.npz", suites.GENES)
    assert read.found.all() and read.values.shape == (64, 64)
    (tmp_path / "mouse.txt").write_text("Mouse1\nMouse2\n")
    args[1] = f"--output={tmp_path}/none"
    wrong = commands.run("gene_embedding", *args, f"--genes={tmp_path}/mouse.txt", folder=tmp_path)
    assert wrong.code == 2 and "no edge joins two of the 2 genes (Mouse1, Mouse2, ...)" in wrong.err
    wrong = commands.run("gene_embedding", *args, "--graph=x.npz", folder=tmp_path)
    assert wrong.code == 2 and "one of --graph and --ppi says what the edges are" in wrong.err

    texts = ("input", "column", "state", "state_column", "case", "state_control", "donor", "least", "folds")
    args = [f"--{name}={getattr(plan, name)}" for name in texts] + ["--control=NT", f"--output={tmp_path}/out"]
    args += [f"--runs={tmp_path}/cellplm", f"--vectors_file={tmp_path}/vectors/vectors.npz", "--seeds=1"]
    args += ["--permutations=100"]
    done = commands.run("correlate_states", *args, folder=tmp_path)
    assert done.code == 0, done.err
    for space in ("expression", "cellplm", "cellplm, random twin", "expression, predicted"):
        assert f"## {space}: " in done.out
    assert "of 56 genes reverse" in done.out
    assert "The run knows 64 of 64 genes of state.h5ad, 64 of 64 genes of screen.h5ad." in done.out
    assert "Gene Ontology" not in done.out
    again = commands.run("correlate_states", *args, folder=tmp_path)
    assert again.code == 0 and again.out.endswith(done.out[done.out.index("# stim") :])
