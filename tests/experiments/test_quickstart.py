"""The quickstart: counts recovered exactly, and the whole walk in one command."""

import json
import pathlib

import numpy as np
import pytest
from scipy import sparse

from data_pipeline import synthetic
from data_pipeline.files.recovery import recover_counts
from data_pipeline.store import expression
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from experiments import quickstart
from experiments.training import data
from tests.harness import commands


def lognormal(counts: np.ndarray, factor: np.ndarray, decimals: int = 3) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.round(np.log1p(counts * factor[:, None]), decimals).astype(np.float32))


def test_counts_come_back_exactly():
    rng = np.random.default_rng(0)
    counts = rng.negative_binomial(0.6, 0.05, (50, 200))
    counts[:, 0] = 1
    factor = rng.uniform(1, 5, 50)
    assert counts.max() > 60
    np.testing.assert_array_equal(recover_counts(lognormal(counts, factor)).toarray(), counts)


def test_what_is_no_count_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="not log1p of counts"):
        recover_counts(sparse.csr_matrix(rng.uniform(0.5, 3, (20, 30)).astype(np.float32)))


def test_scanpys_pbmcs_are_counts():
    import scanpy

    cells = scanpy.datasets.pbmc68k_reduced()
    raw = sparse.csr_matrix(cells.raw.X)
    counts = recover_counts(raw)
    assert counts.shape == (700, 765) and counts.data.min() == 1 and counts.data.max() == 259
    assert (counts.data == np.rint(counts.data)).all() and counts.nnz == raw.nnz and counts.sum() == 486_651
    factor = np.expm1(raw.toarray(), dtype=np.float64).sum(1) / counts.toarray().sum(1)
    total = cells.obs["n_counts"].to_numpy()  # of all genes, published beside the values: they were scaled to 10,000
    np.testing.assert_allclose(factor * total, 1e4, rtol=1e-3)


def store_of(tmp_path, n_genes: int):
    """Make the store of a walk with 200 synthetic cells."""
    synthetic.make(200, n_genes, seed=0).write_h5ad(tmp_path / "cells.h5ad")
    assert not ingest(file_sources([str(tmp_path / "cells.h5ad")], []), tmp_path / "store", workers=0, say=str)
    return open_store(tmp_path / "store")


def test_many_genes_are_cut_down_to_the_most_variable(tmp_path, capsys):
    store = store_of(tmp_path, 300)
    config = quickstart.configured(tmp_path, 50)
    chosen = pathlib.Path(config.data.genes).read_text().split()
    assert len(chosen) == len(set(chosen)) == 50 and [g for g in store.genes if g in chosen] == chosen
    scores = dict(zip(store.genes, expression.variability(store), strict=True))
    allowed = np.array(store.genes)[expression.expressed(store) >= quickstart.MIN_SHARE]
    assert set(chosen) == set(sorted(allowed, key=scores.get)[-50:])
    assert config.data.min_mapped == 0 and "the 50 most variable of 300 genes; --genes=0" in capsys.readouterr().out
    genes, slots, _ = data.gene_slots(store, config.data.genes, (), config.data.min_mapped)
    assert genes == chosen and [genes[s] for s in slots if s < 50] == chosen


def test_few_genes_are_all_taken(tmp_path):
    store_of(tmp_path, 60)
    config = quickstart.configured(tmp_path, 60)
    assert config.data.genes == "store" and config.data.min_mapped == 0.5


def test_more_cells_and_genes_take_longer():
    small, genes, cells = (
        quickstart.estimate(*size) for size in ((700, 765, 765), (700, 32_738, 2000), (7000, 765, 765))
    )
    assert 20 < small < genes < 10 * small and small < cells
    assert quickstart.estimate(800, 32_738, 32_738) > 3 * quickstart.estimate(800, 32_738, 2000)


@pytest.mark.slow
def test_the_whole_walk(tmp_path):
    done = commands.run("quickstart", f"--workdir={tmp_path}/w", folder=tmp_path, timeout=500)
    assert done.code == 0, done.err
    for part in (
        "700 cells x 765 genes: about",
        "1. embed by scfm:cellplm-small",
        "2. ingest",
        "3. pre-train",
        "4. embed and score",
        "5. report",
        "PCA-50",
        "random twin",
        "expect",
    ):
        assert part in done.out, part
    rows = json.loads((tmp_path / "w" / "scores.json").read_text())["rows"]
    accuracy = {
        name: np.mean([r["accuracy"] for r in rows if r["embedding"] == name]) for name in ("cellplm", "random twin")
    }
    assert accuracy["cellplm"] > accuracy["random twin"] + 0.1 and accuracy["cellplm"] > 0.7
    assert (tmp_path / "w" / "report.html").stat().st_size > 100_000
