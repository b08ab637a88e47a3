"""A head that is fitted to a screen predicts the cells of a user, and says what it cannot; heads in the table go on."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from data_pipeline.genes import graph_file
from experiments.analyses import predicted_by_cells, predicted_by_gears
from experiments.analyses import predicted_perturbation as analysis
from experiments.analyses.perturbation_data import Plan, prepare, read
from scfm_jax.api import perturbation
from scfm_jax.tasks import heads
from tests.experiments.test_predict_perturbation import QUIET, TARGETS, TRUE, mean, screen
from tests.harness import suites

SETTINGS = {"hidden": 8, "epochs": 40, "decay": 1.0, "validation": 0.0}


def written_graph(path, genes=suites.GENES) -> str:
    """Write a graph of genes in a ring, and return its path."""
    ring = np.arange(len(genes))
    graph_file.write(path, graph_file.GeneGraph.of(genes, ring, np.roll(ring, 1), np.ones(len(genes)), kind="a ring"))
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a run, the head that is fitted to a screen on it, and the folder of both."""
    folder = tmp_path_factory.mktemp("perturbed")
    path, graph = screen(folder / "x.h5ad"), written_graph(folder / "go.npz")
    run = suites.entrant("cellplm", "a run").run
    return run, run.fit_perturbations(path, graph=graph, least=30, **SETTINGS, **QUIET), folder


@pytest.mark.slow
def test_cells_of_a_user_are_predicted_as_the_screen_has_it(fitted):
    run, head, folder = fitted
    adata = anndata.read_h5ad(folder / "x.h5ad")
    cells = adata[adata.obs.condition == "ctrl"][:20].copy()
    after = run.perturb(cells, ["GENE4", "GENE0+GENE3"], head, **QUIET)
    assert after.shape == (40, suites.V) and after.obs.perturbation.tolist() == ["GENE4"] * 20 + ["GENE0+GENE3"] * 20
    counts = cells.X.toarray()
    before = np.log1p(counts / counts.sum(1, keepdims=True) * head.meta["depth"])
    np.testing.assert_allclose(after.layers["before"].toarray(), np.tile(before, (2, 1)), rtol=1e-5)
    change = (after.X - after.layers["before"].toarray()).reshape(2, 20, -1).mean(1)
    true = 0.5 * TRUE @ TRUE[:10].T
    alike = np.corrcoef(np.column_stack([change[0], true]).T)[0, 1:]
    assert alike[4] == alike.max() > 0.6
    head.save(folder / "head.safetensors")
    again = run.perturb(cells[:, ::-1].copy(), ["GENE4"], folder / "head.safetensors", **QUIET)
    np.testing.assert_allclose(again.X, after.X[:20], atol=1e-4)
    assert after.uns["perturbed"]["synthetic"] == "" and "10 targets seen" in repr(head)
    logged = cells.copy()
    logged.X = sp.csr_matrix(before)
    for source, genes, what in (
        (cells, ["NOBODY"], "target NOBODY is no gene of the vocabulary; check its spelling"),
        (cells[:, 5:].copy(), ["GENE4"], "target GENE4 was not measured, so its own expression cannot be changed"),
        (cells, "GENE4", r"genes='GENE4': a list of what to perturb, such as"),
        (logged, ["GENE4"], "X does not hold raw counts"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            run.perturb(source, genes, head, **QUIET)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="fitted on other weights than cellplm"):
        run.twin(3).perturb(cells, ["GENE4"], head, **QUIET)
    with pytest.raises(ValueError, match="not a whole weights file"):
        perturbation.load(written_graph(folder / "other.npz"))


@pytest.mark.slow
def test_heads_stand_in_the_table_beside_their_twins_and_a_killed_table_goes_on_with_the_same_bits(tmp_path):
    run = tmp_path / "run"
    suites.entrant("cellplm", "a run").run.export(run)
    path = screen(tmp_path / "x.h5ad", doubles=True)
    plan, out = Plan(path, least=30, split="simulation"), tmp_path / "out"
    data = read(plan, **QUIET)
    prepare(plan, out)
    settings = predicted_by_gears.Settings(width=8, epochs=2)
    options = predicted_by_gears.Options(settings, cells=20, controls=20, graph=written_graph(tmp_path / "go.npz"))
    trained = predicted_by_gears.methods(plan, data, out, [run], options)
    trained += predicted_by_cells.methods(plan, data, out, [run], options)
    names = [method.name for method in trained]
    words = " (h 8, 2 epochs, 20 cells, 20 controls)"
    assert names[:3] == [f"GEARS{words}", f"GEARS, run{words}", f"GEARS, run, random twin{words}"]
    assert [name.partition(" (")[0] for name in names[3:]] == [
        "CellPLM's head, run",
        "CellPLM's head, run, random twin",
        "CellPLM's head, run, frozen",
        "CellPLM's head, run, random twin, frozen",
    ]
    listed = analysis.methods(plan, data, out, [run], None, trained)
    rows = analysis.fill(plan, data, out, listed, 1, **QUIET)
    assert set(names) < {row["method"] for row in rows} and all(
        np.isfinite(row["energy"]) for row in rows if row["method"] in names
    )
    assert mean(rows, names[1], "mse_top") != mean(rows, names[2], "mse_top")
    assert all(np.isfinite(mean(rows, name, "rmse")) for name in names)
    compiled = [f._cache_size() for f in (heads._batch, heads._tally, heads._outputs)]
    more = analysis.fill(plan, data, out, listed, 2, **QUIET)  # another split
    assert len(more) > len(rows) and [row for row in more if row["seed"] == 0] == rows
    assert [f._cache_size() for f in (heads._batch, heads._tally, heads._outputs)] == compiled
    files = sorted((out / "predictions").glob("GEARS_run*_0_0*")) + sorted(
        (out / "predictions").glob("CellPLM_s_head_run-*_0_0*")
    )
    assert len(files) >= 2
    for file in files:
        file.unlink()  # where it was killed
    assert analysis.fill(plan, data, out, listed, 1, **QUIET) == rows


def test_heads_say_in_a_line_what_they_lack(tmp_path):
    path = screen(tmp_path / "x.h5ad")
    plan = Plan(path, least=30)
    data = read(plan, **QUIET)
    others = written_graph(tmp_path / "other.npz", [f"OTHER{i}" for i in range(20)])
    for graph, what in (
        (others, r"other.npz: no edge between genes of the screen \(GENE0, GENE1, GENE2, ...\); check the species"),
        (None, "heads=gears: needs the genes' GO graph: give graph=FILE"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            predicted_by_gears.graph_edges(graph, None, data)
        assert "\n" not in str(caught.value)
    assert (
        len(TARGETS) == 10
        and len(predicted_by_gears.graph_edges(written_graph(tmp_path / "go.npz"), None, data)[0]) == 64
    )
    with pytest.raises(ValueError, match="logged=True: a run reads raw counts of control cells"):
        suites.entrant("scemb", "a run").run.fit_perturbations(path, graph=others, logged=True)
