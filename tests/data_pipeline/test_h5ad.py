"""Reading promises: the counts that are in the file, in bounded memory, or one line that says why not."""

import json
import subprocess
import sys
import textwrap

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy
import zarr
from scipy import io, sparse

from data_pipeline.files import matrix
from data_pipeline.files.h5ad import read_counts, write_embedding
from tests.conftest import SHARED, needs_shared
from tests.harness import ROOT

ONE_LINE = r"\A[^\n]+\Z"


def cells(n=60, g=23, seed=0, kind=sparse.csr_matrix) -> anndata.AnnData:
    rng = np.random.default_rng(seed)
    x = (rng.poisson(0.7, (n, g)) * rng.integers(0, 2, (n, g))).astype(np.float32)
    obs = pd.DataFrame({"cell_type": pd.Categorical(rng.choice(["a", "b"], n))}, index=[f"c{i}" for i in range(n)])
    var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(g)]}, index=[f"g{i}" for i in range(g)])
    return anndata.AnnData(kind(x), obs=obs, var=var, obsm={"spatial": rng.random((n, 2))})


def dense(adata) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


def check_same(counts, expected):
    whole = sparse.vstack([block for _, block in counts.chunks(7)]).toarray()
    assert np.array_equal(whole, expected) and [start for start, _ in counts.chunks(7)] == list(range(0, len(whole), 7))
    order = np.random.default_rng(1).integers(0, len(whole), 40)
    assert np.array_equal(counts.take(order).toarray(), expected[order])
    part = counts.rows(3, 9)
    assert part.dtype == np.int32 and part.has_canonical_format and (part.data != 0).all()
    assert counts.rows(5, 5).shape == (0, expected.shape[1]) and counts.take([]).shape == (0, expected.shape[1])


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray, sparse.csr_array])
@pytest.mark.parametrize("store", ["h5ad", "gzip", "zarr", "memory", "backed"])
def test_every_layout_in_every_store_gives_the_same_counts(tmp_path, kind, store, monkeypatch):
    monkeypatch.setattr(matrix, "BLOCK", 50)  # many blocks and buckets, though the file is small
    monkeypatch.setattr(matrix, "BUCKET", 40)
    adata = cells(kind=kind)
    source = tmp_path / f"x.{'zarr' if store == 'zarr' else 'h5ad'}"
    if store == "zarr":
        adata.write_zarr(source)
    elif store != "memory":
        adata.write_h5ad(source, compression="gzip" if store == "gzip" else None)
    opened = {"memory": adata, "backed": store == "backed" and anndata.read_h5ad(source, backed="r")}.get(store, source)
    before = dense(adata).copy()
    with read_counts(opened) as counts:
        assert (counts.n_cells, counts.n_genes, counts.source) == (60, 23, "X")
        assert counts.genes.tolist() == adata.var_names.tolist() and counts.obs["cell_type"].dtype == "category"
        assert list(counts.obsm) == ["spatial"] and np.array_equal(counts.obsm["spatial"], adata.obsm["spatial"])
        check_same(counts, before)
    assert np.array_equal(dense(adata), before)


def test_layers_and_raw_are_chosen_by_name(tmp_path):
    adata = cells()
    adata.layers["counts"] = adata.X * 2
    adata.raw = adata.copy()
    adata = adata[:, :10].copy()
    adata.write_h5ad(tmp_path / "x.h5ad")
    for source in (adata, tmp_path / "x.h5ad"):
        with read_counts(source, layer="counts") as counts:
            assert counts.source == "layers/counts"
            check_same(counts, adata.layers["counts"].toarray())
        with read_counts(source, raw=True) as counts:
            assert (counts.source, counts.n_genes, len(counts.genes)) == ("raw", 23, 23)
            check_same(counts, adata.raw.X.toarray())
        with pytest.raises(ValueError, match=r"no layers/spliced in it; there is X, layers/counts, raw"):
            read_counts(source, layer="spliced")
        with pytest.raises(ValueError, match="exclude each other"):
            read_counts(source, layer="counts", raw=True)
    with pytest.raises(ValueError, match="no raw in it"):
        read_counts(cells(), raw=True)


def test_unsorted_and_double_entries_and_stored_zeros_are_put_right(tmp_path):
    data, indices = np.array([1, 2, 3, 0, 5], np.float32), np.array([3, 1, 3, 0, 2])
    adata = anndata.AnnData(sparse.csr_matrix((data, indices, [0, 3, 5]), shape=(2, 4)))
    with read_counts(adata) as counts:
        block = counts.rows(0, 2)
    assert block.indices.tolist() == [1, 3, 2] and block.data.tolist() == [2, 4, 5]
    assert adata.X.data.tolist() == [1, 2, 3, 0, 5]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int64", "float64", "bool"])
def test_any_number_type_is_read(dtype):
    adata = cells(kind=lambda x: sparse.csr_matrix((x > 0).astype(dtype)))
    with read_counts(adata) as counts:
        check_same(counts, dense(adata).astype(np.int32))


FAULTS = {
    "log": (lambda x: np.log1p(x), r"not an integer: \S+, looks log-transformed"),
    "scaled": (lambda x: x - 1.5, "negative: -"),
    "normalised": (lambda x: x * 33.3, r"not an integer: \S+, looks normalised"),
    "nan": (lambda x: np.where(x > 2, np.nan, x), "NaN"),
    "infinite": (lambda x: np.where(x > 2, np.inf, x), "infinite"),
    "large": (lambda x: np.where(x > 2, 1e12, x), "too large"),
}


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_counts_is_refused_with_where_counts_are(tmp_path, fault, kind):
    change, text = FAULTS[fault]
    adata = cells()
    counts = adata.X.copy()
    adata.X = kind(change(counts.toarray()))
    adata.write_h5ad(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match=rf"none.h5ad: X does not hold raw counts \({text}.*no layers and no raw"):
        read_counts(tmp_path / "none.h5ad")
    adata.layers["scaled"], adata.layers["spliced"] = adata.X * 0.5, counts
    adata.raw = cells()
    adata.write_h5ad(tmp_path / "some.h5ad")
    with pytest.raises(ValueError, match=r"in layers/spliced and raw: choose with layer=spliced or raw=True\Z"):
        read_counts(tmp_path / "some.h5ad")
    with pytest.raises(ValueError, match="layers/scaled does not hold raw counts"):
        read_counts(tmp_path / "some.h5ad", layer="scaled")
    with read_counts(tmp_path / "some.h5ad", check=False) as unchecked:
        assert np.array_equal(unchecked.rows(0, 60).toarray(), change(counts.toarray()), equal_nan=True)


@pytest.mark.parametrize("kind", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.parametrize("value", [-1.0, np.nan, 2.5])
def test_a_fault_deep_in_the_file_is_named_with_its_cell_and_gene(tmp_path, kind, value, monkeypatch):
    monkeypatch.setattr(matrix, "SAMPLES", 1)
    monkeypatch.setattr(matrix, "SAMPLE", 1)
    adata = cells()
    x = adata.X.toarray()
    x[41, 17] = value
    adata.X = kind(x)
    adata.write_h5ad(tmp_path / "x.h5ad")
    with read_counts(tmp_path / "x.h5ad") as counts:
        assert counts.rows(0, 40).shape == (40, 23)
        with pytest.raises(ValueError, match=r"x.h5ad: X .*\(cell 41, gene g17: ") as caught:
            list(counts.chunks(10))
    assert "\n" not in str(caught.value)


def tenx_h5(path, adata, version, antibodies=0):
    """Write CellRanger's layout by hand: genes x cells in CSC, that is, by cell."""
    x = sparse.csr_matrix(adata.X)
    kinds = ["Gene Expression"] * (adata.n_vars - antibodies) + ["Antibody Capture"] * antibodies
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        group["data"], group["indices"], group["indptr"] = x.data.astype(np.int32), x.indices, x.indptr
        group["shape"] = np.array(x.shape[::-1], np.int32)
        features = group.create_group("features") if version == 3 else group
        features["id" if version == 3 else "genes"] = adata.var["gene_ids"].to_numpy().astype("S")
        features["name" if version == 3 else "gene_names"] = adata.var_names.to_numpy().astype("S")
        if version == 3:
            features["feature_type"] = np.array(kinds, "S")
            features["genome"] = np.array(["GRCh38"] * adata.n_vars, "S")


@pytest.mark.parametrize(("version", "antibodies"), [(2, 0), (3, 0), (3, 4)])
def test_10x_h5_is_read_as_scanpy_reads_it(tmp_path, version, antibodies):
    adata = cells()
    tenx_h5(tmp_path / "x.h5", adata, version, antibodies)
    expected = scanpy.read_10x_h5(tmp_path / "x.h5")
    with read_counts(tmp_path / "x.h5") as counts:
        assert counts.genes.tolist() == expected.var_names.tolist()
        assert counts.obs.index.tolist() == expected.obs_names.tolist()
        assert counts.var["gene_ids"].tolist() == expected.var["gene_ids"].tolist()
        check_same(counts, expected.X.toarray())
    assert expected.n_vars == 23 - antibodies


def tenx_mtx(folder, adata):
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(adata.X.T.astype(int)))
    for name, table in (
        ("barcodes", adata.obs_names.to_frame()),
        ("genes", adata.var.reset_index()[["gene_ids", "index"]]),
    ):
        table.to_csv(folder / f"{name}.tsv", sep="\t", header=False, index=False)


def test_10x_mtx_folder_is_read(tmp_path):
    adata = cells()
    tenx_mtx(tmp_path / "filtered", adata)
    with read_counts(tmp_path / "filtered") as counts:
        assert counts.genes.tolist() == adata.var_names.tolist() and counts.path == str(tmp_path / "filtered")
        check_same(counts, dense(adata))


def damage(path, how):
    """Make `path` into a malformed input of one kind."""
    adata = cells()
    if how == "missing":
        return
    if how == "folder":
        path.mkdir()
    elif how == "empty file":
        path.touch()
    elif how == "text":
        path.write_text("gene,c1\nCD3E,1\n")
    elif how == "other zarr":
        zarr.open_group(path, mode="w")
    elif how == "half mtx":
        tenx_mtx(path, adata)
        (path / "barcodes.tsv").unlink()
    elif how in ("no cells", "no genes"):
        (adata[:0] if how == "no cells" else adata[:, :0]).copy().write_h5ad(path)
    elif how == "no X":
        anndata.AnnData(obs=adata.obs, var=adata.var).write_h5ad(path)
    else:
        adata.write_h5ad(path)
        damage_h5ad(path, how)


def damage_h5ad(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    with h5py.File(path, "r+") as file:
        if how in ("obs", "var"):
            del file[how]
        elif how == "short var":
            del file["var"]
            anndata.io.write_elem(file, "var", cells(g=5).var)
        elif how == "indptr":
            file["X/indptr"][5] = 10**6
        elif how == "indices":
            file["X/indices"][-1] = 999
        elif how == "short data":
            data = file["X/data"][:-3]
            del file["X/data"]
            file["X/data"] = data
        elif how == "text matrix":
            data = np.array(["x"] * len(file["X/data"]), "S")
            del file["X/data"]
            file["X/data"] = data
        elif how == "encoding":
            file["X"].attrs["encoding-type"] = "awkward-array"


DAMAGES = {
    "missing": "no such file",
    "folder": "neither",
    "empty file": "empty file",
    "text": "not an HDF5 file",
    "other zarr": "not an AnnData",
    "half mtx": "10x folder",
    "no cells": "0 cells",
    "no genes": "0 genes",
    "no X": "no X in it",
    "truncated": "truncated",
    "obs": "no obs",
    "var": "no var",
    "short var": "damaged",
    "indptr": "indptr",
    "indices": "index of",
    "short data": "57|values",
    "text matrix": "dtype",
    "encoding": "awkward",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_malformed_files_end_in_one_line_that_names_them(tmp_path, how):
    damage(tmp_path / "bad.h5ad", how)
    with (
        pytest.raises((ValueError, OSError), match=DAMAGES[how]) as caught,
        read_counts(tmp_path / "bad.h5ad") as counts,
    ):
        list(counts.chunks())
    assert "\n" not in str(caught.value) and "bad.h5ad" in str(caught.value)


@pytest.mark.parametrize("store", ["h5ad", "zarr", "mtx", "10x", "memory"])
def test_an_embedding_lies_beside_all_that_was_there(tmp_path, store):
    adata = cells(n=5000, g=8)
    adata.layers["twice"], adata.uns["note"] = adata.X * 2, {"a": 1}
    adata.raw = adata.copy()
    source = {"h5ad": tmp_path / "x.h5ad", "zarr": tmp_path / "x.zarr", "mtx": tmp_path / "m"}.get(
        store, tmp_path / "x.h5"
    )
    {
        "h5ad": adata.write_h5ad,
        "zarr": adata.write_zarr,
        "mtx": lambda path: tenx_mtx(path, adata),
        "10x": lambda path: tenx_h5(path, adata, 3),
        "memory": lambda path: None,
    }[store](source)
    embedding = np.random.default_rng(0).random((5000, 3))
    provenance = {"model": "cellplm", "step": np.int64(3), "config": {"width": 4}, "seed": None}
    write_embedding(adata if store == "memory" else source, tmp_path / "y.h5ad", "X_new", embedding, provenance)
    written = anndata.read_h5ad(tmp_path / "y.h5ad")
    assert written.obsm["X_new"].dtype == np.float32
    assert np.array_equal(written.obsm["X_new"], embedding.astype(np.float32))
    assert written.uns["X_new"]["model"] == "cellplm" and written.uns["X_new"]["step"] == 3
    assert json.loads(written.uns["X_new"]["config"]) == {"width": 4}
    assert np.array_equal(dense(written), dense(adata)) and written.var_names.equals(adata.var_names)
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    if store in ("h5ad", "zarr", "memory"):
        assert np.array_equal(written.layers["twice"].toarray(), adata.layers["twice"].toarray())
        assert np.array_equal(written.raw.X.toarray(), adata.raw.X.toarray()) and written.uns["note"]["a"] == 1
        assert written.obs.equals(adata.obs) and "X_new" not in adata.obsm
        assert np.array_equal(written.obsm["spatial"], adata.obsm["spatial"])


def test_writing_refuses_and_leaves_nothing(tmp_path):
    adata, source, output = cells(), tmp_path / "x.h5ad", tmp_path / "y.h5ad"
    adata.write_h5ad(source)
    good = np.zeros((60, 2))
    for key, embedding, target, error in (
        ("X_a", good[:50], output, ValueError),
        ("X_a", good[:, 0], output, ValueError),
        ("spatial", good, output, ValueError),
        ("X_a", good, source, FileExistsError),
        ("X_a", good, tmp_path / "no" / "y.h5ad", FileNotFoundError),
    ):
        with pytest.raises(error, match=ONE_LINE):
            write_embedding(source, target, key, embedding, {})
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5ad"]
    write_embedding(source, output, "spatial", good, {}, replace=True)
    assert not anndata.read_h5ad(output).obsm["spatial"].any() and anndata.read_h5ad(source).obsm["spatial"].all()


def run(code: str, *arguments) -> subprocess.CompletedProcess:
    root = ROOT
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("limit", [20_000, 200_000, 260_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path, limit):
    adata = cells(n=3000)
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert (tmp_path / "x.h5ad").stat().st_size > 20_000
    code = """
        import resource, signal, sys
        import numpy as np
        from data_pipeline.files.h5ad import write_embedding
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        try:
            write_embedding(sys.argv[1], sys.argv[2], "X_a", np.zeros((3000, 64)), {})
        except OSError as error:
            print("refused:", error)
    """
    done = run(code, tmp_path / "x.h5ad", tmp_path / "y.h5ad", limit)
    assert "refused:" in done.stdout and "cannot be written" in done.stdout, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5ad"]


def test_no_room_to_turn_a_matrix_stored_by_gene_is_said_with_the_way_out(tmp_path):
    cells(n=3000, kind=sparse.csc_matrix).write_h5ad(tmp_path / "x.h5ad")
    code = """
        import resource, signal, sys
        from data_pipeline.files.h5ad import read_counts
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
        try:
            read_counts(sys.argv[1]).rows(0, 10)
        except ValueError as error:
            print("refused:", error)
    """
    done = run(code, tmp_path / "x.h5ad")
    assert "refused:" in done.stdout and "x.h5ad" in done.stdout and "TMPDIR" in done.stdout, done.stderr


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_a_damaged_chunk_is_one_line_that_names_the_file(tmp_path, store):
    adata, path = cells(n=3000), tmp_path / f"x.{store}"
    if store == "h5ad":
        adata.write_h5ad(path, compression="gzip")
        with h5py.File(path) as file:
            place = file["X/data"].id.get_chunk_info(0).byte_offset
        file = path
    else:
        adata.write_zarr(path)
        file, place = max((path / "X" / "data").rglob("*"), key=lambda part: part.stat().st_size), 0
    content = bytearray(file.read_bytes())
    content[place : place + 40] = bytes(40)
    file.write_bytes(content)
    with (
        pytest.raises(ValueError, match=rf"\A[^\n]*x\.{store}: X cannot be read: [^\n]+\Z"),
        read_counts(path) as counts,
    ):
        list(counts.chunks())


def generate(path, n_cells, kind, n_genes=2000, per_cell=100):
    """Write a file of `n_cells` in bounded memory, `kind` "csr" or "csc" (by gene: the same entries the other way)."""
    rows, columns, per = (
        (n_cells, n_genes, per_cell) if kind == "csr" else (n_genes, n_cells, n_cells * per_cell // n_genes)
    )
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        anndata.io.write_elem(file, "obs", pd.DataFrame(index=np.arange(n_cells).astype(str)))
        anndata.io.write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
        group = file.create_group("X")
        group.attrs.update(
            {"encoding-type": f"{kind}_matrix", "encoding-version": "0.1.0", "shape": (n_cells, n_genes)}
        )
        group["indptr"] = np.arange(rows + 1, dtype=np.int64) * per
        data = group.create_dataset("data", (rows * per,), np.float32, chunks=(1 << 18,), compression="gzip")
        indices = group.create_dataset("indices", (rows * per,), np.int32, chunks=(1 << 18,), compression="gzip")
        step, gap = max(1, (1 << 22) // per), columns // per
        for start in range(0, rows, step):
            n = min(step, rows - start)
            place = slice(start * per, (start + n) * per)
            indices[place] = (np.arange(per) * gap + rng.integers(gap, size=(n, per))).ravel().astype(np.int32)
            data[place] = rng.integers(1, 5, n * per).astype(np.float32)


PEAK = """
    import resource, sys, time
    from data_pipeline.files.h5ad import read_counts
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, start = peak(), time.perf_counter()
    with read_counts(sys.argv[1]) as counts:
        total = sum(block.nnz for _, block in counts.chunks())
    print(total, before, peak(), counts.n_cells / (time.perf_counter() - start))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "small", "large"), [("csr", 20_000, 200_000), ("csc", 100_000, 250_000)])
def test_memory_does_not_grow_with_the_file(tmp_path, kind, small, large):
    peaks = []
    for n_cells in (small, large):
        generate(tmp_path / "x.h5ad", n_cells, kind)
        done = run(PEAK, tmp_path / "x.h5ad")
        assert done.returncode == 0, done.stderr
        total, _, peak, _ = map(float, done.stdout.split())
        assert total == n_cells * 100
        peaks.append(peak)
        (tmp_path / "x.h5ad").unlink()
    assert peaks[1] - peaks[0] < 150 and peaks[1] < 1500  # MiB; the larger matrix is 160 MB and 200 MB


@needs_shared
@pytest.mark.parametrize("name", ["cells/pbmc3k", "spatial/her2st_labelled8", "perturb/papalexi_thp1_eccite_299genes"])
def test_real_files(name):
    path = SHARED / "data" / f"{name}.h5ad"
    expected = anndata.read_h5ad(path)
    with read_counts(path) as counts:
        total = np.zeros(counts.n_genes, np.int64)
        for _, block in counts.chunks(1000):
            total += np.asarray(block.sum(0)).ravel()
        assert np.array_equal(total, np.asarray(expected.X.sum(0, dtype=np.float64)).ravel())
        assert counts.obs.equals(expected.obs) and counts.genes.tolist() == expected.var_names.tolist()


@needs_shared
def test_real_intensities_are_not_taken_for_counts():
    with pytest.raises(ValueError, match="log-transformed"):
        read_counts(SHARED / "data" / "l1000" / "l1000_ht115_level3_681.h5ad")
