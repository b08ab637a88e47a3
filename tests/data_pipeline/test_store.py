"""A store gives back what was put in: the same counts, random bags within a group, and every flipped bit named."""

import json
import pickle
import shutil
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from data_pipeline.files.h5ad import read_counts
from data_pipeline.genes.vocab import map_genes
from data_pipeline.store import arrays, filters
from data_pipeline.store.shuffle import Shuffle
from data_pipeline.store.spatial import neighbours
from data_pipeline.store.store import open_store, verify, write_study
from data_pipeline.store.study import Settings
from tests.harness import ROOT

N_CELLS, N_GENES = 300, 90
GENES = [f"GENE{i}" for i in range(N_GENES)]


def cells(seed=0, genes=GENES, largest=300):
    """Return counts of cells in three batches of unequal size, on a plane, each with its own number in obs."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.4, (N_CELLS, len(genes))).astype(np.float32)
    counts[:, 0], counts[0, 0] = 1, largest
    obs = pd.DataFrame(
        {
            "number": np.arange(N_CELLS),
            "batch": rng.choice(["b10", "b2", "b1"], N_CELLS, p=[0.6, 0.3, 0.1]),
            "cell_type": pd.Categorical(rng.choice(["B", "T", "unused"], N_CELLS, p=[0.5, 0.5, 0])),
            "score": rng.random(N_CELLS),
            "donor": [None if i % 7 == 0 else f"d{i % 3}" for i in range(N_CELLS)],
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    places = rng.random((N_CELLS, 2)) * 100
    return ad.AnnData(sp.csr_matrix(counts), obs, pd.DataFrame(index=list(genes)), obsm={"spatial": places})


def put(path, adata, name="s", vocabulary=GENES, **settings):
    """Write `adata` as a study and return the study."""
    with read_counts(adata) as counts:
        mapping = map_genes(counts.genes, vocabulary, min_mapped=None)
        return write_study(path, name, counts, mapping, list(vocabulary), Settings(**settings))


def matrix(study, n_genes):
    """Return all counts of a study as CSR, as the loader would read them."""
    indices, data = study.read(0, study.n_cells).result()
    return sp.csr_matrix((data, indices, study.indptr), shape=(study.n_cells, n_genes))


@pytest.fixture(scope="module")
def source():
    return cells()


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    put(path, source, group_by="batch")
    return path


def test_every_count_comes_back(stored, source):
    study = open_store(stored).study("s")
    got = matrix(study, N_GENES)
    np.testing.assert_array_equal(got.toarray(), source[study.obs.index].X.toarray())
    assert got.has_sorted_indices and study.nnz == source.X.nnz
    assert got.data.dtype == np.uint16, "the smallest type that holds 300"
    assert study.read(3, 3).result()[0].size == 0
    for start, stop in ((0, 1), (17, 204), (299, 300)):
        indices, data = study.read(start, stop).result()
        np.testing.assert_array_equal(indices, got[start:stop].indices)
        np.testing.assert_array_equal(data, got[start:stop].data)
    with pytest.raises(ValueError, match="has cells 0 to 300"):
        study.read(0, 301)


@pytest.mark.parametrize(("largest", "dtype"), [(255, "uint8"), (65536, "uint32")])
def test_counts_take_the_smallest_type(tmp_path, largest, dtype):
    study = put(tmp_path / "store", cells(largest=largest))
    assert study.read(0, N_CELLS).result()[1].dtype == dtype
    assert matrix(study, N_GENES).max() == largest


def test_a_study_is_an_ordinary_anndata(stored, source):
    study = open_store(stored).study("s")
    read = ad.read_zarr(study.path)
    wanted = source[read.obs_names]
    assert isinstance(read.X, sp.csr_matrix)
    assert (read.X != wanted.X).nnz == 0
    assert list(read.var_names) == GENES and read.var["measured"].all()
    np.testing.assert_array_equal(read.obsm["spatial"], wanted.obsm["spatial"].astype(np.float32))
    for column in source.obs:
        got, want = read.obs[column], wanted.obs[column]
        assert (got.isna() == want.isna()).all()
        assert (got.dropna() == want.dropna()).all(), column
    assert list(read.obs["cell_type"].cat.categories) == ["B", "T"]
    pd.testing.assert_frame_equal(study.obs, read.obs)


@pytest.mark.parametrize("way", ["..", "relative", "link", "link and ..", "slash", "~"])
def test_a_store_is_the_same_whichever_way_leads_to_it(stored, tmp_path, monkeypatch, way):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(stored)
    (tmp_path / "there").symlink_to(stored.parent)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(stored.parent))
    path = {
        "..": f"{stored.parent}/../{stored.parent.name}/{stored.name}",
        "relative": "../link",
        "link": tmp_path / "link",
        "link and ..": f"{tmp_path}/there/../{stored.parent.name}/{stored.name}",  # of where the link leads to
        "slash": f"{stored}/",
        "~": f"~/{stored.name}",
    }[way]
    study, wanted = open_store(path).study("s"), open_store(stored).study("s")
    assert (matrix(study, N_GENES) != matrix(wanted, N_GENES)).nnz == 0 and study.obs.equals(wanted.obs)
    np.testing.assert_array_equal(study.coords, wanted.coords)
    assert verify(path) == []


def test_a_store_is_written_by_a_path_that_goes_up(source, tmp_path):
    (tmp_path / "a").mkdir()
    put(f"{tmp_path}/a/../store", source)
    assert open_store(tmp_path / "store").study("s").n_cells == N_CELLS


def test_cells_are_permuted_within_their_group(stored, source, tmp_path):
    study = open_store(stored).study("s")
    assert study.groups == ["b1", "b10", "b2"]
    for i, group in enumerate(study.groups):
        rows = study.obs.iloc[study.group_starts[i] : study.group_starts[i + 1]]
        assert set(rows["batch"]) == {group}
        assert not rows["number"].is_monotonic_increasing
    assert sorted(study.obs["number"]) == list(range(N_CELLS))
    same = put(tmp_path / "same", source, group_by="batch")
    other = put(tmp_path / "other", source, group_by="batch", seed=1)
    named = put(tmp_path / "named", source, name="t", group_by="batch")
    assert list(same.obs.index) == list(study.obs.index)
    assert list(other.obs.index) != list(study.obs.index) != list(named.obs.index)
    whole = put(tmp_path / "whole", source)
    assert whole.groups == ["all"] and list(whole.group_starts) == [0, N_CELLS]


def test_the_permutation_is_uniform(source, tmp_path):
    """The place of a cell says nothing of where it was: over seeds, correlations are as small as chance makes them."""
    table = source.obs
    places = [
        put(tmp_path / str(seed), source[:, :3], vocabulary=GENES[:3], seed=seed).obs["number"] for seed in range(12)
    ]
    found = np.array([np.corrcoef(np.arange(len(table)), place)[0, 1] for place in places])
    assert np.abs(found).max() < 4 / np.sqrt(N_CELLS)
    assert 0.2 < found.std() * np.sqrt(N_CELLS) < 2.5


def test_rows_larger_than_memory_are_permuted_bucket_by_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.store.shuffle.BUCKET_NNZ", 500)
    rng = np.random.default_rng(0)
    rows = sp.random(400, 50, 0.2, "csr", rng=rng)
    rows.data = rng.integers(1, 9, rows.nnz)
    place = rng.permutation(500)[:400]
    shuffle = Shuffle(tmp_path / "rows", 50)
    for start in range(0, 400, 64):
        shuffle.add(place[start : start + 64], rows[start : start + 64])
    assert len(list((tmp_path / "rows").iterdir())) > 5
    parts = list(shuffle.sorted())
    assert max(part.nnz for part in parts) < 1000
    assert (sp.vstack(parts) != rows[np.argsort(place)]).nnz == 0
    assert not (tmp_path / "rows").exists()


def test_neighbours_are_the_nearest_of_the_same_field(stored):
    study = open_store(stored).study("s")
    assert study.neighbours.shape == (N_CELLS, 50)
    group = np.searchsorted(study.group_starts, np.arange(N_CELLS), "right")
    for row in range(0, N_CELLS, 11):
        inside = np.flatnonzero(group == group[row])
        distance = np.linalg.norm(study.coords[inside] - study.coords[row], axis=1)
        nearest = inside[np.argsort(distance)][:50]
        found = study.neighbours[row]
        assert found[0] == row
        np.testing.assert_array_equal(found[found >= 0], nearest)
        assert (found >= 0).sum() == min(50, len(inside))


def test_neighbours_where_spots_coincide_or_have_no_place():
    places = np.zeros((9, 2), np.float32)
    places[8] = np.nan
    found = neighbours(places, np.array([0, 6, 9]), k=4)
    np.testing.assert_array_equal(found[:, 0], np.arange(9))
    assert all(len(set(row)) == 4 and max(row) < 6 for row in found[:6].tolist())
    assert sorted(found[6].tolist()) == [-1, -1, 6, 7] and found[8].tolist() == [8, -1, -1, -1]


def test_appended_studies_keep_the_ids(tmp_path):
    first = put(tmp_path / "store", cells())
    before = matrix(first, N_GENES)
    more = [*GENES, "NEW1", "NEW2"]
    second = put(tmp_path / "store", cells(1, ["NEW2", *GENES[:20]]), "second", more)
    store = open_store(tmp_path / "store")
    assert store.genes == more and store.studies == ["s", "second"]
    assert store.offsets.tolist() == [0, N_CELLS, 2 * N_CELLS]
    assert (matrix(store.study(0), N_GENES) != before).nnz == 0
    np.testing.assert_array_equal(store.study("s").measured, [True] * N_GENES + [False] * 2)
    np.testing.assert_array_equal(np.flatnonzero(second.measured), [*range(20), N_GENES + 1])
    with pytest.raises(ValueError, match="gene 0 is 'GENE0'"):
        put(tmp_path / "store", cells(), "third", GENES[::-1])
    with pytest.raises(ValueError, match="already in"):
        put(tmp_path / "store", cells(), "second", more)
    assert verify(tmp_path / "store") == []


def test_odd_obs_columns_are_kept_as_text(tmp_path):
    adata = cells()
    adata.obs["a/b"] = [[1, 2]] * N_CELLS
    adata.obs["mixed"] = [1 if i % 2 else "one" for i in range(N_CELLS)]
    adata.obs["day"] = pd.Timestamp("2020-01-01")
    adata.obs["interval"] = pd.cut(adata.obs["score"], 3)
    adata.obs["flag"] = pd.array([True, None] * (N_CELLS // 2), "boolean")
    adata.obs_names = ["same"] * N_CELLS
    study = put(tmp_path / "store", adata)
    row = study.obs.set_index("number").loc[1]
    assert (row["a_b"], row["mixed"], row["day"]) == ("[1, 2]", "1", "2020-01-01")
    assert str(row["interval"]).startswith("(") and pd.isna(row["flag"]) and set(study.obs.index) == {"same"}
    assert ad.read_zarr(study.path).obs.shape == study.obs.shape


def test_measured_genes_of_each_batch_are_kept(tmp_path):
    adata = cells(genes=[*GENES[:5], "ELSEWHERE"])
    adata.var["measured_b1"] = [True, False] * 3
    study = put(tmp_path / "store", adata)
    var = ad.read_zarr(study.path).var
    assert np.flatnonzero(var["measured"]).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(var["measured_b1"]).tolist() == [0, 2, 4]


def test_filters_do_what_they_say_and_are_recorded(tmp_path):
    adata = cells(genes=["MT-ND1", *GENES[1:]])
    counts = adata.X.toarray()
    counts[:3, 1:] = 0
    counts[3:6] = 0
    counts[6:9, 0] = 10_000
    counts[9:, 5], counts[9, 5] = 0, 1
    adata.X = sp.csr_matrix(counts)
    study = put(
        tmp_path / "store", adata, vocabulary=["MT-ND1", *GENES[1:]], min_genes=2, max_mito=0.5, min_gene_fraction=0.01
    )
    assert sorted(study.obs["number"]) == list(range(9, N_CELLS))
    assert study.record["removed"] == {"cells": {"min_genes": 6, "max_mito": 3}, "genes": 1}
    assert study.record["settings"]["min_gene_fraction"] == 0.01
    counts[:, 5] = 0
    np.testing.assert_array_equal(matrix(study, N_GENES).toarray(), counts[study.obs["number"]])
    var = ad.read_zarr(study.path).var
    assert list(var.index[var["zeroed"]]) == ["GENE5"] and var["measured"].all()


def test_mitochondrial_genes_are_found_by_symbol_or_id():
    var = pd.DataFrame({"symbol": ["mt-Co1", "ACTB", "X"], "length": [1, 2, 3]})
    found = filters.mitochondrial(np.array(["a", "b", "ENSG00000198888.2"]), var)
    assert found.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"group_by": "section"},
            "no obs column 'section' to group by; there are number, batch, cell_type, score, donor",
        ),
        ({"group_by": "donor"}, "'donor' is empty in 43 of 300 cells"),
        ({"max_mito": 0.1}, "no mitochondrial gene"),
        ({"min_genes": 1000}, r"no cell is left of 300 \(300 by min_genes\)"),
        ({"min_gene_fraction": 1e6}, "no count is left"),
        ({"vocabulary": ["ELSE"]}, r"no cell is left of 300 \(300 by unmapped\)"),
        ({"name": "../x"}, "study name '../x'"),
        ({"places": np.zeros((N_CELLS, 1))}, r"obsm\['spatial'\] is of shape \(300, 1\)"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing_behind(source, tmp_path, settings, message):
    source = source.copy()
    source.obsm["spatial"] = settings.get("places", source.obsm["spatial"])
    with pytest.raises(ValueError, match=message):
        put(tmp_path / "store", source, **{key: value for key, value in settings.items() if key != "places"})
    assert not (tmp_path / "store").exists()


def places_to_flip(path, rng):
    """Return 20 (file, bit) pairs: the manifest, the vocabulary, and files of every kind, each at a random bit."""
    every = [p for p in sorted(path.rglob("*")) if p.is_file() and ".lock" not in p.name and p.stat().st_size]
    kinds = ["manifest.json", "genes.tsv", "X/data/c/0", "X/indices/c/0", "X/indptr/c/0", "X/data/zarr.json"]
    kinds += ["obs/batch/codes/c/0", "obsm/neighbours/c/0/0", "X/zarr.json", "var/measured/c/0"]
    chosen = [next(p for p in every if p.as_posix().endswith(kind)) for kind in kinds]
    chosen += list(rng.choice(np.array(every, object), 20 - len(kinds)))
    return [(p, int(rng.integers(8 * p.stat().st_size))) for p in chosen]


def flip(place, bit):
    data = bytearray(place.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    place.write_bytes(data)


def everything(path):
    """Read all that a run would: counts, borders, obs, coordinates, neighbours, measured genes."""
    store = open_store(path)
    study = store.study("s")
    indices, data = study.read(0, study.n_cells).result()
    parts = (indices, data, study.indptr, study.coords, study.neighbours, study.measured, study.group_starts)
    return [part.tobytes() for part in parts] + [store.genes, study.obs.to_csv()]


def test_a_flipped_bit_is_named_and_never_read_as_a_count(stored, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(stored, path)
    assert verify(path) == []
    whole, noticed = everything(path), 0
    for place, bit in places_to_flip(path, np.random.default_rng(0)):
        flip(place, bit)
        wrong = verify(path)
        noticed += len(wrong) == 1 and str(place.relative_to(path)) in wrong[0] and "damaged" in wrong[0]
        try:
            assert everything(path) == whole, f"{place} bit {bit} changed what is read, and nothing was said"
        except OSError as error:
            assert "damaged" in str(error) and "\n" not in str(error)
        flip(place, bit)
    assert noticed == 20
    assert verify(path) == []


def test_missing_and_foreign_files_are_named(stored, tmp_path):
    path = tmp_path / "store"
    shutil.copytree(stored, path)
    (path / "studies/s.zarr/X/data/c/0").unlink()
    (path / "studies/s.zarr/X/data/c/7").write_text("x")
    assert verify(path) == ["studies/s.zarr/X/data/c/0: missing", "studies/s.zarr/X/data/c/7: not in the manifest"]
    with pytest.raises(OSError, match=r"'s' of .*damaged or unreadable"):
        open_store(path).study("s").read(0, 10).result()


def test_stores_that_are_none_are_refused_in_one_line(tmp_path, stored):
    with pytest.raises(FileNotFoundError, match="no such store; make one"):
        open_store(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a store"):
        open_store(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other things \(notes.txt"):
        put(tmp_path, cells())
    with pytest.raises(ValueError, match="a file, not a folder"):
        put(tmp_path / "notes.txt", cells())
    with pytest.raises(ValueError, match="there are s"):
        open_store(stored).study("t")
    shutil.copytree(stored, tmp_path / "new")
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    (tmp_path / "new/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(OSError, match="damaged"):
        open_store(tmp_path / "new")


def test_a_store_goes_to_other_processes(stored):
    study = open_store(stored).study("s")
    want = study.read(5, 50).result()
    code = (
        "import pickle, sys; s = pickle.load(sys.stdin.buffer); pickle.dump(s.read(5, 50).result(), sys.stdout.buffer)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(study), capture_output=True, check=True
    ).stdout
    for got, wanted in zip(pickle.loads(out), want, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "values", [np.arange(9_000_000, dtype=np.int64), np.full((5, 50), -1, np.int32), np.zeros(0, "i4")]
)
def test_arrays_are_plain_zarr(tmp_path, values):
    import zarr

    arrays.write_array(tmp_path / "a", values)
    np.testing.assert_array_equal(arrays.open_array(tmp_path / "a").read().result(), values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)


def test_an_array_of_another_length_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="wrote 3 of 4"), arrays.Appender(tmp_path / "a", (4,), np.int32) as array:
        array.append(np.zeros(3, np.int32))


MILLION = """
import resource, sys
import numpy as np, pandas as pd, scipy.sparse as sp
from data_pipeline.store.store import write_study
from data_pipeline.store.study import Settings
from data_pipeline.genes.vocab import map_genes

class Generated:
    path, source, n_cells, n_genes = "generated", "X", int(sys.argv[2]), 2000
    genes = np.array([f"GENE{i}" for i in range(2000)])
    var, obs, obsm = pd.DataFrame(index=genes), pd.DataFrame(index=np.arange(n_cells).astype(str)), {}
    def chunks(self, size=4096):
        for start in range(0, self.n_cells, size):
            rng, n = np.random.default_rng(start), min(size, self.n_cells - start)
            indices = (rng.integers(0, 10, (n, 200)) + 10 * np.arange(200)).ravel()
            yield start, sp.csr_matrix((rng.integers(1, 9, n * 200), indices, np.arange(n + 1) * 200), (n, 2000))

counts = Generated()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_study(sys.argv[1], "s", counts, map_genes(counts.genes, list(counts.genes)), list(counts.genes), Settings())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cells(tmp_path):
    """100,000 cells are 20 million counts, 160 MB in memory at 8 bytes; 400,000 are 640 MB."""
    grown = []
    for n in (100_000, 400_000):
        args = [sys.executable, "-c", MILLION, str(tmp_path / str(n)), str(n)]
        out = subprocess.run(args, capture_output=True, text=True, check=True, cwd=ROOT)
        grown.append(int(out.stdout) / 1024)
    assert grown[1] < 700 and grown[1] - grown[0] < 200, grown
