"""A query of a Census becomes studies: the cells asked for, their counts, and only the genes each data set measured."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.files import census
from data_pipeline.store.ingest import census_sources, ingest
from data_pipeline.store.store import open_store

soma = pytest.importorskip("tiledbsoma", reason="tiledbsoma is not installed (extra `census`)")

N_CELLS, N_GENES = 60, 40
ABSENT = 7  # genes that data set "b" did not measure


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (N_CELLS, N_GENES)).astype(np.float32)
    dataset = np.where(np.arange(N_CELLS) % 3 == 0, "b", "a")
    counts[dataset == "b", :ABSENT] = 0
    tissue = rng.choice(["lung", "blood"], N_CELLS)
    obs = pd.DataFrame({"dataset_id": dataset, "tissue": tissue}, index=[f"cell{i}" for i in range(N_CELLS)])
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    var = pd.DataFrame({"feature_id": ids, "feature_name": [f"GENE{i}" for i in range(N_GENES)]}, index=ids)
    return ad.AnnData(sp.csr_matrix(counts), obs, var)


@pytest.fixture(scope="module")
def release(cells, tmp_path_factory):
    """A Census in miniature: the same collections, names and presence matrix as a real release."""
    root = tmp_path_factory.mktemp("census")
    _write_experiment(root / "experiment", cells)
    table = pd.DataFrame({"soma_joinid": [0, 1], "dataset_id": ["b", "a"]})
    presence = sp.coo_matrix(np.stack([np.arange(N_GENES) >= ABSENT, np.ones(N_GENES, bool)]).astype(np.uint8))
    _write_table(str(root / "datasets"), table)
    with soma.SparseNDArray.create(str(root / "presence"), type=_arrow("uint8"), shape=presence.shape) as array:
        array.write(_arrow_coo(presence))
    with soma.Measurement.open(str(root / "experiment" / "ms" / "RNA"), "w") as measurement:
        measurement.set(census.PRESENCE, soma.SparseNDArray.open(str(root / "presence")))
    with soma.Collection.create(str(root / "release")) as top:
        data, info = top.add_new_collection("census_data"), top.add_new_collection("census_info")
        data.set("homo_sapiens", soma.Experiment.open(str(root / "experiment")))
        info.set("datasets", soma.DataFrame.open(str(root / "datasets")))
    return str(root / "release")


def _write_experiment(place, cells):
    """Write what `tiledbsoma.io.from_anndata` would, which cannot read the AnnData objects of anndata 0.13."""
    with soma.Experiment.create(str(place)) as experiment:
        measurement = experiment.add_new_collection("ms").add_new_collection("RNA", soma.Measurement)
        measurement.add_new_collection("X")
    for table, part, names in ((cells.obs, "obs", "obs_id"), (cells.var, "ms/RNA/var", "var_id")):
        table = table.rename_axis(names).reset_index().rename_axis("soma_joinid").reset_index()
        _write_table(str(place / part), table)
    counts = cells.X.tocoo()
    with soma.SparseNDArray.create(str(place / "ms/RNA/X/raw"), type=_arrow("float32"), shape=counts.shape) as array:
        array.write(_arrow_coo(counts))
    for folder, kind, name in (
        ("", soma.Experiment, "obs"),
        ("ms/RNA", soma.Measurement, "var"),
        ("ms/RNA/X", soma.Collection, "raw"),
    ):
        with kind.open(str(place / folder), "w") as group:
            group.set(name, soma.open(str(place / folder / name)), use_relative_uri=True)


def _arrow(name):
    return getattr(pytest.importorskip("pyarrow"), name)()


def _arrow_coo(matrix):
    import pyarrow

    return pyarrow.SparseCOOTensor.from_scipy(matrix)


def _write_table(uri, table):
    import pyarrow

    rows = pyarrow.Table.from_pandas(table, preserve_index=False)
    with soma.DataFrame.create(uri, schema=rows.schema, domain=[(0, len(table) - 1)]) as frame:
        frame.write(rows)


def test_counts_are_those_of_the_cells_asked_for(release, cells):
    with census.CensusCounts(census.Query(release, 'tissue == "lung"')) as counts:
        wanted = cells[cells.obs["tissue"] == "lung"]
        assert list(counts.obs.index) == list(wanted.obs_names)
        assert list(counts.genes) == list(cells.var_names)
        blocks = [block for _, block in counts.chunks(7)]
        np.testing.assert_array_equal(sp.vstack(blocks).toarray(), wanted.X.toarray())


def test_a_study_per_data_set_with_the_genes_it_measured(release, cells, tmp_path):
    sources = census_sources(census.Query(release, 'tissue == "lung"'))
    assert [source.name for source in sources] == ["census_a", "census_b"]
    assert not ingest(sources, tmp_path / "store", workers=0, say=lambda _: None)
    store = open_store(tmp_path / "store")
    for source in sources:
        study = store.study(source.name)
        dataset = source.where.dataset
        wanted = cells[(cells.obs["tissue"] == "lung") & (cells.obs["dataset_id"] == dataset)]
        genes = pd.Index(store.genes).get_indexer(cells.var_names)
        np.testing.assert_array_equal(study.measured[genes], np.arange(N_GENES) >= (ABSENT if dataset == "b" else 0))
        stored = ad.read_zarr(study.path)[wanted.obs_names].X.toarray()
        np.testing.assert_array_equal(stored[:, genes], wanted.X.toarray())


def test_a_plain_experiment_is_read_like_a_release(release, cells):
    experiment = str(release).removesuffix("release") + "experiment"
    with census.CensusCounts(census.Query(experiment)) as counts:
        assert counts.n_cells == N_CELLS
        np.testing.assert_array_equal(counts.rows(0, N_CELLS).toarray(), cells.X.toarray())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uri": "nowhere"}, "nowhere"),
        ({"value_filter": "no_such_column == 1"}, "no_such_column"),
        ({"value_filter": "tissue =="}, "check its URI and the query"),
        ({"value_filter": 'tissue == "moon"'}, "loosen the query"),
        ({"organism": "martian"}, "there are homo_sapiens"),
    ],
)
def test_mistakes_are_one_line(release, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        census.datasets(census.Query(**({"uri": release} | change)))
    assert "\n" not in str(caught.value)
