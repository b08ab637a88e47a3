"""A column of labels says the same at every door, whatever it is made of, in pandas 2 and 3: missing stays missing."""

import importlib.util

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.batches import obs
from data_pipeline.files import columns, h5ad
from data_pipeline.genes.vocab import map_genes
from data_pipeline.store.store import write_study
from experiments.analyses import annotation, markers
from experiments.analyses.cells import ModelCells
from scfm_jax.inference import bags
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.tasks.cells import embedding, latent_ami

N = 24
WORDS, NUMBERS, FLAGS = ("b", "a"), (2, 1), (True, False)
GENES = [f"GENE{i}" for i in range(8)]


def values(pair, missing):
    """Return N values of two, every sixth of them missing."""
    return [missing if i % 6 == 5 else pair[i % 2] for i in range(N)]


def series(pair, missing, dtype):
    """Return these values as a column."""
    return pd.Series(values(pair, missing), dtype=dtype)


ARROW = importlib.util.find_spec("pyarrow") is not None
COLUMNS = {
    "objects, None": lambda: series(WORDS, None, object),
    "objects, NaN": lambda: series(WORDS, np.nan, object),
    "objects, NA": lambda: series(WORDS, pd.NA, object),
    "objects, empty text": lambda: series(WORDS, "", object),
    "categories": lambda: series(WORDS, None, object).astype("category"),
    "strings": lambda: series(WORDS, pd.NA, "string[python]"),
    "strings of arrow": lambda: series(WORDS, pd.NA, "string[pyarrow]"),
    "pandas' own choice": lambda: pd.Series(values(WORDS, None)),
    "nullable numbers": lambda: series(NUMBERS, pd.NA, "Int64"),
    "categories of numbers": lambda: series(NUMBERS, None, "Int64").astype("category"),
    "floats": lambda: series(NUMBERS, np.nan, np.float64),
    "nullable flags": lambda: series(FLAGS, pd.NA, "boolean"),
    "flags in objects": lambda: series(FLAGS, None, object),
    "flags": lambda: pd.Series([FLAGS[i % 2] for i in range(N)]),
}


def expected(name):
    """Return the text of each cell, None where there is none."""
    pair = {"nullable numbers": ("2", "1"), "categories of numbers": ("2", "1"), "floats": ("2.0", "1.0")}
    pair = pair.get(name, ("True", "False") if "flags" in name else WORDS)
    return [pair[i % 2] for i in range(N)] if name == "flags" else values(pair, None)


def classes_and_codes(texts):
    """Return the sorted classes and the class of each cell, -1 where there is none."""
    classes = sorted(set(texts) - {None})
    return classes, [classes.index(text) if text is not None else -1 for text in texts]


@pytest.fixture(params=COLUMNS)
def labelled(request):
    """An AnnData with the column as label and batch, and what it says."""
    if "arrow" in request.param and not ARROW:
        pytest.skip("pyarrow is not installed")
    column = COLUMNS[request.param]()
    column.index = [f"cell{i}" for i in range(N)]
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2, (N, len(GENES))).astype(np.float32))
    frame = pd.DataFrame({"cell_type": column, "batch": column})
    return anndata.AnnData(counts, frame, pd.DataFrame(index=GENES)), expected(request.param)


def test_a_column_as_text(labelled):
    adata, texts = labelled
    assert columns.text(adata.obs["cell_type"]).tolist() == texts
    index, names = columns.codes(adata.obs["cell_type"])
    assert [names[i] if i >= 0 else None for i in index] == texts


def test_the_classes_of_a_store(labelled, tmp_path):
    adata, texts = labelled
    with h5ad.read_counts(adata) as counts:
        study = write_study(tmp_path / "store", "s", counts, map_genes(counts.genes, GENES, min_mapped=None), GENES)
    order = [int(name.removeprefix("cell")) for name in study.obs.index]
    classes, codes = classes_and_codes(texts)
    assert sorted({obs.coded(study, "cell_type")[1][i] for i in obs.coded(study, "cell_type")[0] if i >= 0}) == classes
    assert obs.class_codes(study, "cell_type", classes).tolist() == [codes[i] for i in order]
    scoped = obs.class_codes(study, "batch", [f"s/{name}" for name in classes])
    assert scoped.tolist() == [codes[i] for i in order]
    word = classes[0]
    if texts[0] in WORDS:
        assert obs.Filter(f"cell_type == {word!r}")(study).tolist() == [texts[i] == word for i in order]


def test_the_cells_to_annotate(labelled, tmp_path):
    adata, texts = labelled
    cells = annotation.read(adata, "cell_type", {})
    kept = [i for i in range(N) if texts[i] is not None]
    assert cells.obs["cell_type"].tolist() == [texts[i] for i in kept] == cells.obs["batch"].tolist()
    assert cells.obs_names.tolist() == [f"cell{i}" for i in kept]
    cells.write_h5ad(tmp_path / "x.h5ad")
    assert anndata.read_h5ad(tmp_path / "x.h5ad").obs["cell_type"].tolist() == [texts[i] for i in kept]
    other = annotation.read(anndata.AnnData(adata.X, adata.obs.assign(cell_type="T"), adata.var), "cell_type", {})
    assert columns.text(other.obs["batch"]).tolist() == texts


def test_the_types_of_markers(labelled):
    adata, texts = labelled
    types = markers._types(adata.obs, "cell_type", {texts[0]: None})
    assert types.tolist() == texts


def test_the_condition_of_a_perturbation(labelled):
    adata, texts = labelled
    cells = ModelCells("x", adata.X, adata.obs, np.ones(len(GENES), bool), GENES, False)
    assert cells.column("cell_type", "column").tolist() == [text or "" for text in texts]


def test_the_labels_of_scores(labelled):
    adata, texts = labelled
    _, codes = classes_and_codes(texts)
    column = adata.obs["cell_type"]
    for labels in (columns.text(column), column, column.to_numpy(), column.astype(object), list(column)):
        assert embedding.encode(labels).tolist() == codes
    found = latent_ami.columns(adata.obs, ("cell_type",))
    assert found["cell_type"].tolist() == codes


def test_what_astype_makes_of_a_missing_value_is_no_label_either():
    assert embedding.encode([str(value) for value in (None, np.nan, pd.NA, "a")]).tolist() == [-1, -1, -1, 0]


def test_samples_are_the_same_and_cells_of_none_are_together(labelled):
    adata, texts = labelled
    parts, _ = bags.samples(adata.obs, "batch", 100, 0)
    names = list(dict.fromkeys(texts))
    assert {tuple(rows) for rows in parts} == {tuple(i for i in range(N) if texts[i] == name) for name in names}


def test_the_groups_of_mean_representations(labelled):
    adata, texts = labelled
    rows = np.arange(N)
    whole = GeneRepresentations(GENES, rows, 2, rows, adata.obs, lambda: iter(()), {})
    assert [text if isinstance(text, str) else None for text in whole._labels("cell_type")] == texts


def test_a_type_cut_at_its_comma_is_shown_in_quotes():
    obs_table = pd.DataFrame({"kind": ["CD4-positive, alpha-beta T cell"] * 9 + ["B"] * 9})
    wanted = {"CD4-positive": None, "alpha-beta T cell": None}
    with pytest.raises(ValueError, match="""--types='"CD4-positive, alpha-beta T cell"'"""):
        markers._types(obs_table, "kind", wanted)
    assert markers._types(obs_table, "kind", {"CD4-positive, alpha-beta T cell": None}).tolist() == list(obs_table.kind)
