"""The door to what models say of genes: kinds, names, what is unknown, and what is kept on disk."""

import dataclasses

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scfm_jax import api, models
from scfm_jax.api import gene_features
from scfm_jax.inference import gene_representations
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.layers import graph
from scfm_jax.models.sclong.genes import GeneVectors
from scfm_jax.saving import sealed
from scfm_jax.tasks.genes import features
from tests.harness import suites

QUIET = {"say": lambda _: None}
IDS = [f"ENSG{100000 + i:011d}" for i in range(suites.V)]


def sclong() -> api.Run:
    """Return a small scLong with a graph in which each gene has the next as its source, its gene vectors alone."""
    sections = models.options("sclong", "tiny")
    nodes = np.arange(suites.V)
    edges = graph.build(np.roll(nodes, -1), nodes, np.ones(suites.V), n_nodes=suites.V + 1, weighted=True)
    config = {**sections, "model": sections["model"] | {"graph": True}, "data": {"labels": []}}
    meta = {"model": "sclong", "config": config, "genes": IDS, "second_names": suites.GENES, "step": 0}
    run = api.build(meta, {"params": {}}, graph.constants(edges), "a test")
    identity = GeneVectors(run.model.positions, run.model.base_dim, run.model.graph_layers, table=True)
    run.variables["params"]["identity"] = identity.init(jax.random.key(0), None, edges)["params"]
    return run


@pytest.fixture(scope="module")
def cellplm():
    """Return a small CellPLM of random weights."""
    return suites.entrant("cellplm", "x").run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Return a file of 12 cells that call the genes by symbols."""
    return suites.write(tmp_path_factory.mktemp("cells") / "x.h5ad", n=12)


def test_tables_and_graphs_are_the_models_own_and_genes_go_by_any_name():
    run = sclong()
    assert gene_features.kinds(run) == ["table", "graph", "table+graph"]
    table, convolved, both = (run.gene_vectors(kind) for kind in gene_features.kinds(run))
    assert table.names == IDS and table.found.all() and table.values.shape == convolved.values.shape
    np.testing.assert_array_equal(table.values, np.asarray(run.variables["params"]["identity"]["genes"])[: suites.V])
    np.testing.assert_allclose(both.values, table.values + convolved.values, rtol=1e-6)
    asked = run.gene_vectors("table", names=["GENE3", "nobody", IDS[5], "GENE3"], **QUIET)
    assert asked.found.tolist() == [True, False, True, True] and "2 of 4" not in asked.report and asked.report
    np.testing.assert_array_equal(asked.values[[0, 2, 3]], table.values[[3, 5, 3]])
    np.testing.assert_allclose(asked.values[1], table.values[[3, 5, 3]].mean(0), rtol=1e-5)
    standard = asked.standardised()[asked.found]
    assert standard.mean(0) == pytest.approx(0, abs=1e-6) and standard.std(0) == pytest.approx(1)
    assert table.projected(5, 1).values == pytest.approx(table.values @ gene_representations.projection(
        table.values.shape[1], 5, 1
    ))  # fmt: skip


def test_a_kind_that_a_run_has_not_is_said_in_one_line(cellplm, file):
    run = cellplm
    for options, what in (
        ({"kind": "tabel"}, "kind=tabel: no such gene vectors; there are table, graph, .* of cellplm table, context"),
        ({"kind": "graph"}, r"kind=graph: cellplm \(random weights of seed 100\) has none; it has table, context"),
        ({"kind": "context"}, "kind=context: needs cells to average over: give source"),
        ({"kind": "context", "source": file}, "model cellplm has no representations of the genes in a cell"),
        ({"names": ["A", "B"]}, r"\(table\): knows none of the 2 genes \(A, B\); check the species"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            run.gene_vectors(**options, **QUIET)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"kind=table: sct .* has none; it has context"):
        sct = {"model": "sct", "config": models.options("sct", "tiny"), "genes": IDS}
        api.build(sct, {"params": {}}, {}, "a test").gene_vectors("table")
    with pytest.raises(ValueError, match="kind=table: no vectors of genes in a cell; context and table"):
        gene_features.stream(run, file, "table")


@pytest.mark.slow
def test_genes_that_a_model_did_not_read_have_the_mean(file):
    run = suites.entrant("scemb", "x").run
    made = run.gene_vectors("context", source=file, names=[*suites.GENES, "nobody"], **QUIET)
    each = np.full((12, suites.V, made.values.shape[1]), np.nan)
    for rows, values in run.gene_representations(file, **QUIET):
        each[rows] = values
    assert np.isnan(each).any() and np.isfinite(made.values).all()
    np.testing.assert_allclose(made.values[:-1], np.nanmean(each, 0), rtol=1e-4, atol=1e-5)
    assert made.found.tolist() == [True] * suites.V + [False]
    filled = np.concatenate([values for _, values in gene_features.stream(run, file, **QUIET)])
    np.testing.assert_allclose(filled, np.where(np.isnan(each), np.nanmean(each, 0), each), rtol=1e-4, atol=1e-5)


def test_what_is_kept_is_not_computed_again_unless_it_is_damaged(cellplm, file, tmp_path, monkeypatch):
    run, kind = cellplm, gene_features.COMPOSED
    options = {"source": file, "keep": tmp_path, "rows": [1, 4, 5], **QUIET}
    made = run.gene_vectors(kind, **options)
    stream = {"keep": tmp_path, "width": 4, **QUIET}
    cells = np.concatenate([values for _, values in gene_features.stream(run, file, kind, **stream)])

    def fail(*_, **__):
        raise AssertionError("it is computed again")

    other = dataclasses.replace(run, variables=jax.tree.map(lambda x: x + 1, run.variables))
    (vectors,), (folder,) = tmp_path.glob("*.npz"), tmp_path.glob("*.zarr")
    with monkeypatch.context() as patched:
        patched.setattr(api.Run, "embed", fail)
        np.testing.assert_array_equal(run.gene_vectors(kind, **options).values, made.values)
        assert np.array_equal(gene_features.stream(run, file, kind, **stream).rows, np.arange(12))
        data = vectors.read_bytes()
        for change in (
            lambda: other.gene_vectors(kind, **options),
            lambda: run.gene_vectors(kind, **{**options, "rows": [1, 4]}),
            lambda: vectors.write_bytes(data[: len(data) // 2]) and run.gene_vectors(kind, **options),
        ):
            with pytest.raises(AssertionError, match="it is computed again"):
                change()
    np.testing.assert_array_equal(run.gene_vectors(kind, **options).values, made.values)
    assert vectors.read_bytes() == data
    (chunk,) = folder.glob("values/c/7/0/0")
    chunk.write_bytes(chunk.read_bytes()[:-9] + b"123456789")
    with pytest.raises(sealed.Damaged, match=r"zarr, cells 0\.\.\d+: .*; remove it to have it made again"):
        list(gene_representations.read(folder))
    chunk.unlink()
    with pytest.raises(sealed.Damaged, match="is not whole: 1 of 12 cells are lost"):
        gene_representations.read(folder)
    said = []
    again = gene_features.stream(run, file, kind, **{**stream, "say": said.append})
    np.testing.assert_array_equal(np.concatenate([values for _, values in again]), cells)
    assert any("it is made again" in line for line in said)
    with pytest.raises(ValueError, match="keep: features are kept by their file, an AnnData in memory has none"):
        run.gene_vectors(kind, **{**options, "source": anndata.read_h5ad(file)})


def test_a_model_without_genes_in_cells_has_table_cell_and_expression(cellplm, file):
    run = cellplm
    assert not np.allclose(run.twin(1).gene_vectors("auto").values, run.gene_vectors("auto").values)
    kind, table, cells = "table+cell+expression", run.gene_vectors("table").values, run.embed(file, **QUIET)
    stream = gene_features.stream(run, file, kind, rows=[3, 8], **QUIET)
    (rows, values), = list(stream)  # fmt: skip
    assert rows.tolist() == [3, 8] and values.shape == (2, suites.V, table.shape[1] + 8 + 1)
    np.testing.assert_array_equal(values[1, :, : table.shape[1]], table)
    np.testing.assert_array_equal(values[1, 5, table.shape[1] : -1], cells[8])
    counts = suites.counts(12, 0)[8]
    np.testing.assert_allclose(values[1, :, -1], np.log1p(1e4 * counts / counts.sum()), rtol=1e-5)
    mean = run.gene_vectors(kind, source=file, rows=[3, 8], width=4, **QUIET)
    expected = values.mean(0) @ gene_representations.projection(values.shape[2], 4)
    np.testing.assert_allclose(mean.values, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exceiver", "sct", "sclong"])
def test_means_over_cells_of_the_other_models(name, file):
    run = suites.entrant(name, "x").run
    made = run.gene_vectors("context", source=file, names=["GENE9", "GENE2"], **QUIET)
    means, _ = run.gene_representations(file, **QUIET).mean_of(np.ones((12, 1), bool))
    np.testing.assert_allclose(made.values, means[0][[9, 2]], rtol=1e-4, atol=1e-5)
    assert made.found.all() and made.kind == "context" and name in made.source


def test_controls_say_what_they_should():
    names = ["B", "A", "B", "C"]
    drawn, one = features.random(names, 1, 7), features.one_hot(names)
    assert np.array_equal(drawn.values[0], drawn.values[2]) and drawn.values.shape == (4, 7)
    assert not np.allclose(drawn.values, features.random(names, 2, 7).values)
    assert one.values.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    rng = np.random.default_rng(0)
    of = np.arange(40) % 4
    terms = rng.random((40, 60)) < np.where(np.arange(60) % 4 == of[:, None], 0.6, 0.05)
    terms[7] = False  # a gene without a term
    made = features.term_components(sparse.csr_matrix(terms), np.arange(-1, 40), range(41), width=4)
    assert made.found.tolist() == [False, *(i != 7 for i in range(40))]
    unit = made.values[1:] / np.linalg.norm(made.values[1:], axis=1, keepdims=True)
    near = unit @ unit.T
    same = (of[:, None] == of) & made.found[1:] & made.found[1:, None]
    assert near[same].mean() > 0.6 > 0.3 > near[of[:, None] != of].mean()
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 8))
    loadings = features.loadings(x, np.array([2, -1, 0]), "cba", width=3, scaled=False)
    centred = x - x.mean(0)
    inner = centred.T @ centred
    assert loadings.values[[0, 2]] @ loadings.values[[0, 2]].T == pytest.approx(inner[np.ix_([2, 0], [2, 0])], rel=1e-3)
    with pytest.raises(ValueError, match="not finite: are the weights whole"):
        features.taken(np.array([[1.0, np.inf]]), np.array([0]), ["A"], "table", "x")


def test_cells_stream_to_disk_a_batch_at_a_time(tmp_path):
    held, most = [0], [0]

    def batches():
        for start in range(0, 60, 20):
            held[0] += 1
            most[0] = max(most[0], held[0])
            yield np.arange(start, start + 20)[None], np.full((1, 20, 5, 3), start, np.float32)
            held[0] -= 1

    obs = pd.DataFrame(index=range(60))
    made = GeneRepresentations(list("abcde"), np.arange(5), 3, np.arange(60), obs, batches, {})
    made.projected(2).write(tmp_path / "x.zarr")
    again = gene_representations.read(tmp_path / "x.zarr")
    assert most[0] == 1 and again.width == 2 and again.genes == list("abcde")
    means, seen = again.mean_of(np.ones((60, 1), bool))
    assert (seen == 60).all()
    np.testing.assert_allclose(means[0, 0], 20 * np.ones(3) @ gene_representations.projection(3, 2), rtol=1e-5)
