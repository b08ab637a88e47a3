"""A file of a stranger runs no code, reads no other file, fills no memory, and stops no other file from being read."""

import gzip
import json
import os
import pathlib
import shutil
import zipfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from data_pipeline.files import matrix, trust
from data_pipeline.files.h5ad import read_counts
from data_pipeline.genes import vocab
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store, verify
from experiments.pages import run as page

CELLS, GENES = 20, 6
INDEX = "obs/_index/values" if int(pd.__version__.split(".")[0]) > 2 else "obs/_index"
"""Where names lie: from pandas 3 on they are text and a mask."""


def cells(seed=0, **obs):
    x = sparse.csr_matrix(np.random.default_rng(seed).poisson(2, (CELLS, GENES)).astype(np.float32))
    names = [f"c{i}" for i in range(CELLS)]
    return anndata.AnnData(x, pd.DataFrame(obs, index=names), pd.DataFrame(index=[f"G{i}" for i in range(GENES)]))


@pytest.fixture
def h5ad(tmp_path):
    cells(kind=["a"] * CELLS).write_h5ad(tmp_path / "x.h5ad")
    return tmp_path / "x.h5ad"


def put(path, version):
    with anndata.settings.override(zarr_write_format=version):
        cells(kind=["a"] * CELLS).write_zarr(path)
    return path


def change(file, **values):
    """Change the metadata of a zarr array."""
    file = pathlib.Path(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(source, says):
    with pytest.raises(ValueError, match=says) as error, read_counts(source) as counts:
        counts.rows(0, counts.n_cells)
    assert "\n" not in str(error.value) and str(source) in str(error.value)


# ------------------------------------------------------------------------------------------------------------ code

PICKLE = {"id": "pickle", "protocol": 5}
CODECS = {
    "a filter of zarr 2": (2, f"{INDEX}/.zarray", {"filters": [{"id": "vlen-utf8"}, PICKLE]}),
    "a compressor of zarr 2": (2, "X/data/.zarray", {"compressor": PICKLE}),
    "a codec of zarr 3": (3, f"{INDEX}/zarr.json", {"codecs": [{"name": "vlen-utf8"}, {"name": "numcodecs.pickle"}]}),
    "by a long name": (3, "X/data/zarr.json", {"codecs": [{"name": "https://zarr.dev/numcodecs/pickle"}]}),
    "within shards": (
        3,
        "X/data/zarr.json",
        {"codecs": [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "numcodecs.Pickle"}]}}]},
    ),
    "of the shards' index": (
        3,
        "X/data/zarr.json",
        {"codecs": [{"name": "sharding_indexed", "configuration": {"index_codecs": ["pickle"]}}]},
    ),
    "where nothing is read": (2, "obs/kind/codes/.zarray", {"compressor": PICKLE}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", CODECS)
def test_a_codec_that_runs_code_is_refused_before_anything_is_decoded(how, packed, tmp_path):
    version, place, values = CODECS[how]
    source = put(tmp_path / "x.zarr", version)
    change(source / place, **values)
    chunks = [p for p in (source / place).parent.rglob("*") if p.is_file() and p.name[0] not in ".z"]
    chunk = chunks[0] if chunks else (source / place).with_name("0")
    chunk.write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")  # a pickle that makes a folder
    if packed:
        source = pathlib.Path(shutil.make_archive(str(tmp_path / "x.zarr"), "zip", source))
    refused(source, r"is stored with the codec 'pickle', which can run code; refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("codec", ["json2", "msgpack2", "categorize", "a_package_of_mine"])
def test_codecs_that_are_not_on_the_list_are_refused(codec, tmp_path):
    source = put(tmp_path / "x.zarr", 2)
    change(source / f"{INDEX}/.zarray", filters=[{"id": codec}])
    refused(source, f"is stored with the codec '{codec}'; refused")


def test_what_anndata_writes_is_on_the_list(tmp_path):
    for version in (2, 3):
        with read_counts(put(tmp_path / f"{version}.zarr", version)) as counts:
            assert np.array_equal(counts.rows(0, CELLS).toarray(), cells().X.toarray())


def test_consolidated_metadata_that_lie_are_not_believed(tmp_path):
    source = put(tmp_path / "x.zarr", 2)
    zarr.consolidate_metadata(source)
    told = json.loads((source / ".zmetadata").read_text())
    told["metadata"][f"{INDEX}/.zarray"]["filters"] = [{"id": "vlen-utf8"}, PICKLE]
    told["metadata"]["X/data/.zarray"]["shape"] = [10**12]
    (source / ".zmetadata").write_text(json.dumps(told))
    with read_counts(source) as counts:
        assert np.array_equal(counts.rows(0, CELLS).toarray(), cells().X.toarray())


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]", "{", '{"codecs": 5}'])
def test_metadata_that_are_none_are_one_line(content, tmp_path):
    source = put(tmp_path / "x.zarr", 3)
    (source / f"{INDEX}/zarr.json").write_text(content)
    refused(source, f"{INDEX}/zarr.json is not metadata of zarr")


def test_nothing_in_the_project_unpickles_arrays(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    sources = [
        p for package in ("data_pipeline", "experiments", "scfm_jax", "configs") for p in (root / package).rglob("*.py")
    ]
    texts = {path: path.read_text() for path in sources}
    assert not [path for path, text in texts.items() if "allow_pickle=True" in text or "import pickle" in text]


# ----------------------------------------------------------------------------------------------------- other files


def test_links_into_other_files_are_refused(h5ad, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("line\n" * CELLS)
    cells().write_h5ad(tmp_path / "other.h5ad")

    def external_link(file):
        file["obs/stolen"] = h5py.ExternalLink("other.h5ad", "/X/data")

    def deep_link(file):
        file.create_group("uns/a/b")["c"] = h5py.ExternalLink(str(tmp_path / "other.h5ad"), "/")

    def virtual(file):
        layout = h5py.VirtualLayout((CELLS,), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5ad"), "X/data", (CELLS,))
        file["obs"].create_virtual_dataset("stolen", layout)

    def storage(file):
        file["obs"].create_dataset("stolen", (CELLS,), "u1", external=[(str(secret), 0, CELLS)])

    for how, says in (
        (external_link, r"obs/stolen is a link into another file, other.h5ad; refused"),
        (deep_link, "uns/a/b/c is a link into another file"),
        (virtual, r"obs/stolen is put together from other files \(a virtual dataset\); refused"),
        (storage, r"obs/stolen lies in another file, .*secret.txt \(external storage\); refused"),
    ):
        copy = tmp_path / f"{how.__name__}.h5ad"
        shutil.copy(h5ad, copy)
        with h5py.File(copy, "r+") as file:
            how(file)
        refused(copy, says)


def test_a_report_reads_no_other_file_either(h5ad, tmp_path):
    with h5py.File(h5ad, "r+") as file:
        file["obs/stolen"] = h5py.ExternalLink("other.h5ad", "/X/data")
    with pytest.raises(ValueError, match="obs/stolen is a link into another file"):
        page._read_embedding(h5ad)


def test_links_within_a_file_are_followed_and_circles_end(h5ad):
    with h5py.File(h5ad, "r+") as file:
        file["layers/same"] = h5py.SoftLink("/X")
        file["uns/circle"] = file["/"]
        file["uns/nowhere"] = h5py.SoftLink("/not/there")
    with read_counts(h5ad, layer="same") as counts:
        assert np.array_equal(counts.rows(0, CELLS).toarray(), cells().X.toarray())
    with h5py.File(h5ad, "r+") as file:
        file["obs/round"] = file["obs"]
        file["obs"].attrs["column-order"] = ["round"]
    refused(h5ad, "table obs cannot be read")


@pytest.mark.parametrize("what", ["file", "folder", "by a relative path"])
def test_links_out_of_a_zarr_folder_are_refused(what, tmp_path):
    source, other = put(tmp_path / "x.zarr", 3), put(tmp_path / "other.zarr", 3)
    place = source / (f"{INDEX}/c/0" if what == "file" else "obs/_index")
    target = other / place.relative_to(source)
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(os.path.relpath(target, place.parent) if what == "by a relative path" else target)
    refused(source, r"is a link out of the folder, to .*other.zarr")
    (tmp_path / "link.zarr").symlink_to(other)  # the user's own link to a whole folder
    with read_counts(tmp_path / "link.zarr") as counts:
        assert counts.n_cells == CELLS


# ---------------------------------------------------------------------------------------------------------- memory


def absurd_h5ad(path, dense):
    """Write a file of a few kilobytes that claims 10^12 cells."""
    n = 10**12
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["X"]
        if dense:
            file.create_dataset("X", (n, GENES), "f4", chunks=(1024, GENES)).attrs["encoding-type"] = "array"
        else:
            group = file.create_group("X")
            group.attrs.update({"encoding-type": "csr_matrix", "shape": [n, GENES]})
            group.create_dataset("indptr", (n + 1,), "i8", chunks=(1024,))
            group["data"], group["indices"] = np.zeros(0, "f4"), np.zeros(0, "i4")
        del file["obs/_index"]
        file["obs"].create_dataset("_index", (n,), h5py.string_dtype(), chunks=(1024,))
    return path


@pytest.mark.parametrize("dense", [False, True])
def test_shapes_that_are_not_stored_are_refused_before_memory_is_taken(dense, tmp_path):
    refused(absurd_h5ad(tmp_path / "x.h5ad", dense), r"claims 1,000,000,000,00[01] entries in 0 stored bytes")


def test_columns_and_arrays_of_zarr_that_claim_too_much_are_refused(tmp_path):
    source = put(tmp_path / "index.zarr", 3)
    change(source / f"{INDEX}/zarr.json", shape=[10**12])
    refused(source, f"{INDEX} claims 1,000,000,000,000 entries")
    source = put(tmp_path / "column.zarr", 3)
    change(source / "obs/kind/codes/zarr.json", shape=[10**12])
    refused(source, "obs/kind/codes has 1,000,000,000,000 entries, the table 20 rows")
    source = put(tmp_path / "categories.zarr", 3)
    change(source / "obs/kind/categories/zarr.json", shape=[10**12])
    refused(source, "obs/kind/categories claims 1,000,000,000,000 entries")
    source = put(tmp_path / "chunk.zarr", 3)
    grid = {"name": "regular", "configuration": {"chunk_shape": [10**12]}}
    change(source / "X/data/zarr.json", chunk_grid=grid)
    refused(
        source, "a chunk of data claims 4,000,000,000,000 bytes|Chunk edge length 1000000000000"
    )  # zarr 3.4 sees it


def test_true_files_of_one_value_are_not_taken_for_bombs(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "MANY", 4)
    adata = cells(flag=np.zeros(CELLS, bool), same=pd.Categorical(["one"] * CELLS))
    adata.write_h5ad(tmp_path / "x.h5ad", compression="gzip")
    with read_counts(tmp_path / "x.h5ad") as counts:
        assert not counts.obs["flag"].any()


@pytest.mark.parametrize("part", ["barcodes.tsv.gz", "features.tsv.gz", "matrix.mtx.gz"])
def test_text_that_inflates_beyond_measure_is_refused(part, tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "LARGE", 1 << 22)
    folder = tmp_path / "m"
    folder.mkdir()
    head = f"%%MatrixMarket matrix coordinate integer general\n{GENES} {CELLS} 1\n1 1 1\n"
    for name, text in (
        ("barcodes.tsv.gz", "".join(f"c{i}\n" for i in range(CELLS))),
        ("features.tsv.gz", "".join(f"E{i}\tG{i}\tGene Expression\n" for i in range(GENES))),
        ("matrix.mtx.gz", head),
    ):
        (folder / name).write_bytes(gzip.compress(text.encode()))
    with read_counts(folder) as counts:
        assert counts.rows(0, CELLS).sum() == 1
    begin = head.replace(" 1\n1 1 1", " 999999999\n1 1 1").encode() if part.startswith("matrix") else b""
    with gzip.open(folder / part, "wb", compresslevel=9) as file:
        file.write(begin)
        for _ in range(16):
            file.write((b"1 1 1\n" if begin else b"a\n") * (1 << 18))
    with pytest.raises(ValueError, match=r"inflate to over|not a table of text"):
        read_counts(folder)


def test_a_zip_file_that_inflates_beyond_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "LARGE", 1 << 20)
    source = put(tmp_path / "x.zarr", 3)
    (source / "X/data/c/0").write_bytes(bytes(1 << 22))
    with zipfile.ZipFile(tmp_path / "x.zarr.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in source.rglob("*"):
            archive.write(path, path.relative_to(source))
    refused(tmp_path / "x.zarr.zip", r"X/data/c/0: refused: [\d,]+ bytes that inflate to over 4,194,304")
    whole = (tmp_path / "x.zarr.zip").read_bytes()
    (tmp_path / "cut.zarr.zip").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.zarr.zip", "damaged or encrypted zip file")


# -------------------------------------------------------------------------------------------------- one fails alone


def test_a_bad_file_fails_alone(tmp_path):
    for i in (0, 1):
        cells(i).write_h5ad(tmp_path / f"good{i}.h5ad")
    for name, link in (("soft", h5py.SoftLink("/not/there")), ("external", h5py.ExternalLink("none.h5", "/x"))):
        cells().write_h5ad(tmp_path / f"{name}.h5ad")
        with h5py.File(tmp_path / f"{name}.h5ad", "r+") as file:
            file["layers/counts"] = link
    absurd_h5ad(tmp_path / "absurd.h5ad", False)
    (tmp_path / "half.h5ad").write_bytes((tmp_path / "good0.h5ad").read_bytes()[:4000])
    for name, sign in (("broken", "\n"), ("tabbed", "\t")):
        adata = cells()
        adata.var_names = [f"A{sign}B", *adata.var_names[1:]]
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    second = cells()
    second.var["gene_ids"] = ["A\nB", *second.var_names[1:]]
    second.write_h5ad(tmp_path / "second.h5ad")
    put(tmp_path / "pickled.zarr", 2)
    change(tmp_path / "pickled.zarr/X/data/.zarray", compressor=PICKLE)
    inputs = sorted(path for path in tmp_path.iterdir())
    failed = ingest(file_sources([str(p) for p in inputs]), tmp_path / "store", workers=0, say=lambda _: None)
    assert set(failed) == {"soft", "external", "absurd", "half", "broken", "tabbed", "second", "pickled"}
    assert all("\n" not in reason for reason in failed.values())
    assert "layers/counts is a link to /not/there, which is not in the file" in failed["soft"]
    assert "line break" in failed["broken"] and "line break" in failed["tabbed"] and "line break" in failed["second"]
    assert "claims" in failed["absurd"] and "codec 'pickle'" in failed["pickled"]
    store = open_store(tmp_path / "store")
    assert store.studies == ["good0", "good1"] and verify(tmp_path / "store") == []
    assert store.genes == [f"G{i}" for i in range(GENES)]


# ----------------------------------------------------------------------------------------------------- sums of counts


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
def test_the_sum_of_two_names_of_a_gene_does_not_run_over(dtype):
    most = min(np.iinfo(dtype).max, 2**31 - 1)
    counts = sparse.csr_matrix(np.array([[most, 0, 3], [most - 5, 5, 1]], dtype))
    mapping = vocab.map_genes(["A", "A", "B"], ["A", "B"])
    assert mapping.apply(counts).toarray().tolist() == [[most, 3], [most, 1]]
    assert mapping.apply(counts).dtype == dtype
    counts = sparse.csr_matrix(np.array([[most, 1, 3]], dtype))  # each may be stored
    with pytest.raises(ValueError, match=f"add up to {most + 1:,} in a cell, above {most:,}"):
        mapping.apply(counts)


def test_two_columns_that_sum_above_the_limit_fail_in_a_store(tmp_path):
    adata = cells()
    adata.X = adata.X.toarray().astype(np.int64)
    adata.X[3, :2] = 2**30
    adata.var_names = ["A", "A", *adata.var_names[2:]]
    adata.write_h5ad(tmp_path / "x.h5ad")
    failed = ingest(file_sources([str(tmp_path / "x.h5ad")]), tmp_path / "s", workers=0, say=lambda _: None)
    assert "add up to 2,147,483,648 in a cell, above 2,147,483,647" in failed["x"]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "bool"])
def test_entries_that_are_stored_twice_are_summed_without_running_over(dtype):
    most = 1 if dtype == "bool" else int(np.iinfo(dtype).max)
    twice = sparse.csr_matrix((np.array([most, most, 1], dtype), np.array([2, 2, 0]), np.array([0, 3])), shape=(1, 3))
    rows = matrix.open_rows(twice).read(0, 1)
    assert rows.toarray().tolist() == [[1, 0, 2 * most]]
    if dtype == "int32":
        with read_counts(anndata.AnnData(twice.copy())) as counts, pytest.raises(ValueError, match="too large"):
            counts.rows(0, 1)
