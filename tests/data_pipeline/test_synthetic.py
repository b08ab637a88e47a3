"""Synthetic counts promise: seeded, integer, and every part of their structure is there to be found."""

import numpy as np
import pytest
from scipy.spatial import KDTree

from data_pipeline import synthetic
from data_pipeline.genes import vocab


@pytest.fixture(scope="module")
def cells():
    return synthetic.make(1500, seed=3)


def normalised(adata) -> np.ndarray:
    x = adata.X.toarray()
    return np.log1p(x / x.sum(1, keepdims=True) * 1e3)


def test_same_seed_same_data_another_seed_other_data():
    one, two, other = (synthetic.make(200, 100, seed=seed) for seed in (1, 1, 2))
    assert (one.X != two.X).nnz == 0 and one.obs.equals(two.obs)
    assert np.array_equal(one.obsm["spatial"], two.obsm["spatial"])
    assert (one.X != other.X).nnz > 1000 and one.var.equals(other.var)


def test_counts_are_integers_of_the_depth_asked_for(cells):
    assert (cells.X.data > 0).all() and (np.rint(cells.X.data) == cells.X.data).all()
    assert 950 < cells.X.sum(1).mean() < 1050


def test_types_are_separable_from_their_markers(cells):
    x, types = normalised(cells), cells.obs["cell_type"].to_numpy()
    marker_of = cells.var["marker_of"].to_numpy()
    means = np.stack([x[:, marker_of == i].mean(1) for i in range(4)], 1)
    means -= means.mean(0)
    assert (means.argmax(1) == [int(name.removeprefix("type")) for name in types]).mean() > 0.95


@pytest.mark.parametrize(("effect", "low", "high"), [(0.0, 0.0, 0.06), (0.5, 0.2, 1.0)])
def test_batches_shift_genes_by_as_much_as_asked(effect, low, high):
    adata = synthetic.make(1500, batch_effect=effect, seed=5)
    x, first = normalised(adata), (adata.obs["batch"] == "batch0").to_numpy()
    shift = np.abs(x[first].mean(0) - x[~first].mean(0)).mean()
    assert low <= shift < high


def test_genes_of_a_module_rise_together(cells):
    x, module = normalised(cells), cells.var["module"].to_numpy()
    inside, across = (np.corrcoef(x[:, module == i].mean(1), x[:, module == 1].mean(1))[0, 1] for i in (1, 2))
    halves = np.corrcoef(x[:, module == 1][:, ::2].mean(1), x[:, module == 1][:, 1::2].mean(1))[0, 1]
    assert inside == pytest.approx(1) and halves > 0.8 and abs(across) < 0.5


def test_spatial_genes_and_no_others_are_alike_among_neighbours(cells):
    spatial = cells.var["spatial"].to_numpy()
    x, others = normalised(cells), normalised(cells[:, ~spatial])
    near = KDTree(cells.obsm["spatial"]).query(cells.obsm["spatial"], k=7)[1][:, 1:]

    def moran(values):
        values = values - values.mean()
        return (values[:, None] * values[near]).mean() / values.var()

    assert moran(x[:, spatial].mean(1)) > 0.7
    assert abs(moran(others[:, :100].mean(1))) < 0.1


def test_donors_lie_within_batches_and_genes_have_ids(cells):
    assert (cells.obs.groupby("donor", observed=True)["batch"].nunique() == 1).all()
    assert vocab.second_names(cells.var) == cells.var["ensembl_id"].tolist()
    assert all(map(vocab.is_id, cells.var["ensembl_id"])) and cells.var["ensembl_id"].is_unique


def test_too_few_genes_for_the_structure_are_refused():
    with pytest.raises(ValueError, match="8 genes"):
        synthetic.make(10, 20, n_types=4)
