"""Single-cell files in, raw counts out, and embeddings back in: the only place that knows file formats.

Reads .h5ad (X, a layer or raw; CSR, CSC or dense), AnnData .zarr folders and 10x .h5 from disk, a run of cells at a
time; 10x mtx folders (text) and AnnData objects from memory. What is not raw counts is refused, at the door by a sample
and deep in the file by every run of cells that is read.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline import matrix
from data_pipeline.matrix import open_rows

LARGEST = 2**31 - 1
GAP = 32  # rows between two wanted ones that are read rather than skipped


@dataclass
class _Source:
    """An opened file: matrices by name ("X", "layers/counts", "raw"), tables ("obs", "var", "raw/var") and obsm."""

    path: str
    matrices: dict[str, Any]
    table: Callable[[str], pd.DataFrame]
    obsm: Mapping[str, np.ndarray]
    close: Callable[[], None] = lambda: None


def read_counts(
    source: str | os.PathLike | anndata.AnnData,
    *,
    layer: str | None = None,
    raw: bool | None = None,
    check: bool = True,
) -> "Counts":
    """Open `source`, a file, a folder or an AnnData, for reading its raw counts: X, or the `layer`, or `raw`.

    With `check`, what is not counts (negative, not an integer, NaN, infinite) raises a ValueError that says where in
    the file counts are and which flag chooses them; without, values come as they are. ValueError, FileNotFoundError or
    PermissionError, in one line, where there is nothing to read.
    """
    if layer and raw:
        raise ValueError(f"--layer={layer} and --raw exclude each other: counts come from one place")
    opened = _from_anndata(source) if isinstance(source, anndata.AnnData) else _from_path(Path(source))
    try:
        return Counts(opened, f"layers/{layer}" if layer else "raw" if raw else "X", check)
    except BaseException:
        opened.close()
        raise


class Counts:
    """Raw counts of one study, read a run of cells at a time; a context manager.

    Attributes:
      path: the file, or "AnnData". source: where in it the counts are: "X", "layers/<name>" or "raw".
      n_cells, n_genes: the size of the matrix. genes: names of its columns, str. [n_genes]
      var, obs: tables of the genes and of the cells. obsm: arrays by name, read when asked for. {name: [n_cells, ...]}
    """

    def __init__(self, opened: _Source, source: str, check: bool):
        self._opened, self.path, self.source, self.check = opened, opened.path, source, check
        self.obsm = opened.obsm
        self._rows = self._open(source)
        self.n_cells, self.n_genes = self._rows.shape
        if not self.n_cells or not self.n_genes:
            raise ValueError(f"{self.path}: {source} is empty: {self.n_cells} cells x {self.n_genes} genes")
        for axis, found, wanted in (("var", len(self.var), self.n_genes), ("obs", len(self.obs), self.n_cells)):
            if found != wanted:
                raise ValueError(f"{self.path}: damaged file: {source} is of {wanted} {axis}, the table lists {found}")
        fault = why_not_counts(self._rows.sample()) if check else None
        if fault:
            raise ValueError(f"{self.path}: {source} does not hold raw counts ({fault}); {self._way_out()}")

    def __enter__(self) -> "Counts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and delete what was put aside."""
        self._rows.close()
        self._opened.close()

    @cached_property
    def var(self) -> pd.DataFrame:
        """The table of the genes."""
        return self._opened.table("raw/var" if self.source == "raw" else "var")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The table of the cells."""
        return self._opened.table("obs")

    @cached_property
    def genes(self) -> np.ndarray:
        """Names of the genes, str. [n_genes]"""
        return self.var.index.to_numpy().astype(str)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return counts of cells `start` to `stop`: int32 (unchecked: the file's dtype), sorted, no stored zeros."""
        if not 0 <= start <= stop <= self.n_cells:
            raise ValueError(f"{self.path}: rows {start}..{stop} do not lie within its {self.n_cells} cells")
        try:
            block = self._rows.read(start, stop)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: cells {start}..{stop} of {self.source} cannot be read: {error}") from error
        return self._checked(block, start) if self.check else block

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the counts of the cells `rows`, any of them in any order, as `rows` does."""
        wanted, inverse = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > GAP) + 1)
        parts = [self.rows(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs if len(run)]
        return (sparse.vstack(parts, "csr") if parts else self.rows(0, 0))[inverse]

    def chunks(self, size: int = 4096) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yield (first cell, counts of the next `size` cells) over all cells."""
        for start in range(0, self.n_cells, size):
            yield start, self.rows(start, min(start + size, self.n_cells))

    def _open(self, source: str) -> Any:
        if source not in self._opened.matrices:
            there = ", ".join(self._opened.matrices) or "no matrix at all"
            raise ValueError(f"{self.path}: no {source} in it; there is {there} (--layer=NAME and --raw choose)")
        try:
            return open_rows(self._opened.matrices[source])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self.path}: {source}: {' '.join(str(error).split())}") from error

    def _checked(self, block: sparse.csr_matrix, start: int) -> sparse.csr_matrix:
        bad = _not_counts(block.data)
        if bad.any():
            i = int(bad.argmax())
            row, gene = start + int(np.searchsorted(block.indptr, i, "right")) - 1, self.genes[block.indices[i]]
            raise ValueError(
                f"{self.path}: {self.source} does not hold raw counts (cell {row}, gene {gene}: "
                f"{why_not_counts(block.data[i : i + 1])}); {self._way_out()}"
            )
        block.data = block.data.astype(np.int32, copy=False)
        return block

    def _way_out(self) -> str:
        """Where else in the file counts are, and the flag that chooses them."""
        others = [name for name in self._opened.matrices if name != self.source]
        good = [name for name in others if why_not_counts(self._open(name).sample()) is None]
        if good:
            flags = [name.replace("layers/", "--layer=") if "/" in name else f"--{name}" for name in good]
            flags = ["no --layer and no --raw" if flag == "--X" else flag for flag in flags]
            return f"counts are in {' and '.join(good)}: choose with {' or '.join(flags)}"
        looked = f"{', '.join(others)} hold none either" if others else "it has no layers and no raw to look in"
        return f"{looked}: give the file of counts that this one was made from"


def _not_counts(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "ub":
        return values > LARGEST
    if values.dtype.kind == "i":
        return (values < 0) | (values > LARGEST)
    with np.errstate(invalid="ignore"):
        return ~((values >= 0) & (values <= LARGEST) & (np.rint(values) == values))


def why_not_counts(values: np.ndarray) -> str | None:
    """Say why `values` are not raw counts, with the first that is not, or return None where they are."""
    if values.dtype.kind not in "uibf":
        return f"values of dtype {values.dtype}"
    bad = values[_not_counts(values)]
    if not len(bad):
        return None
    for name, wrong in (("NaN", np.isnan(bad)), ("infinite", np.isinf(bad)), ("negative", bad < 0)):
        if wrong.any():
            return f"{name}" if name == "NaN" else f"{name}: {bad[wrong][0]:g}"
    if (bad > LARGEST).any():
        return f"too large: {bad.max():g}"
    looks = "log-transformed" if len(values) > 1 and values.max() < 20 else "normalised"
    return f"not an integer: {bad[0]:.6g}" + (f", looks {looks}" if len(values) > 1 else "")


def _from_path(path: Path) -> _Source:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            return _from_zarr(path)
        if any((path / name).exists() for name in ("matrix.mtx", "matrix.mtx.gz")):
            return _from_mtx(path)
        raise ValueError(f"{path}: a folder that is neither an AnnData .zarr nor a 10x folder with matrix.mtx")
    if not path.stat().st_size:
        raise ValueError(f"{path}: an empty file")
    try:
        file = h5py.File(path, "r", rdcc_nbytes=1 << 24)
    except OSError as error:
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path}: no permission to read it") from error
        if "truncated" in str(error):
            raise ValueError(f"{path}: a truncated file, its end is missing: copy it again") from error
        text = "not an HDF5 file: .h5ad, 10x .h5, an AnnData .zarr folder or a 10x mtx folder are read"
        raise ValueError(f"{path}: {text}") from error
    try:
        tenx = [name for name in file if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]
        return _from_10x(path, file, tenx) if tenx else _from_groups(path, file, file.close)
    except BaseException:
        file.close()
        raise


def _from_groups(path: Path, root: Any, close: Callable[[], None] = lambda: None) -> _Source:
    """Open AnnData's layout in an HDF5 file or a zarr group."""
    missing = [name for name in ("obs", "var") if name not in root]
    if missing:
        raise ValueError(
            f"{path}: not an AnnData file: no {' and no '.join(missing)} in it, but {', '.join(root) or '-'}"
        )
    if not hasattr(root["obs"], "keys"):
        raise ValueError(f"{path}: written by anndata before 0.7: read it with anndata and write it again")
    found = {"X": "X"} | {f"layers/{name}": f"layers/{name}" for name in _keys(root, "layers")} | {"raw": "raw/X"}
    matrices = {name: root[place] for name, place in found.items() if place in root}
    matrices = {name: part for name, part in matrices.items() if part.attrs.get("encoding-type") != "null"}

    def table(name: str) -> pd.DataFrame:
        try:
            return anndata.io.read_elem(root[name])
        except Exception as error:  # anndata raises many kinds for a damaged table
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: the table {name} cannot be read: {text}") from error

    obsm = _Lazy({name: lambda name=name: root[f"obsm/{name}"] for name in _keys(root, "obsm")}, anndata.io.read_elem)
    return _Source(str(path), matrices, table, obsm, close)


def _keys(root: Any, group: str) -> list[str]:
    return sorted(root[group]) if group in root else []


class _Lazy(Mapping):
    """Arrays by name, read when asked for."""

    def __init__(self, places: dict[str, Callable[[], Any]], read: Callable[[Any], Any]):
        self._places, self._read = places, read

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._read(self._places[name]()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _from_zarr(path: Path) -> _Source:
    import zarr

    try:
        root = zarr.open_group(path, mode="r")
    except Exception as error:  # zarr raises many kinds for a damaged folder
        raise ValueError(f"{path}: not a zarr group: {' '.join(str(error).split())}") from error
    return _from_groups(path, root)


def _from_anndata(adata: anndata.AnnData) -> _Source:
    matrices = {"X": adata.X} | {f"layers/{name}": adata.layers[name] for name in adata.layers}
    tables = {"obs": adata.obs, "var": adata.var}
    if adata.raw is not None:
        matrices["raw"], tables["raw/var"] = adata.raw.X, adata.raw.var
    matrices = {name: value for name, value in matrices.items() if value is not None}
    return _Source("AnnData", matrices, tables.__getitem__, {name: np.asarray(adata.obsm[name]) for name in adata.obsm})


def _from_mtx(path: Path) -> _Source:
    import scanpy

    try:
        adata = scanpy.read_10x_mtx(path)
    except Exception as error:  # a folder with missing or damaged parts
        raise ValueError(f"{path}: not a whole 10x folder: {' '.join(str(error).split())}") from error
    opened = _from_anndata(adata)
    opened.path = str(path)
    return opened


def _from_10x(path: Path, file: h5py.File, genomes: list[str]) -> _Source:
    """Open CellRanger's .h5, of version 3 (`matrix`) or 2 (a group per genome); only gene expression is kept."""
    if len(genomes) > 1:
        raise ValueError(f"{path}: counts of several genomes ({', '.join(genomes)}): give a file of one")
    group = file[genomes[0]]
    features = group.get("features", group)
    ids, names = ("id", "name") if "features" in group else ("genes", "gene_names")
    var = pd.DataFrame({"gene_ids": features[ids].asstr()[:]}, index=pd.Index(features[names].asstr()[:].astype(str)))
    if "feature_type" in features:
        var["feature_types"] = features["feature_type"].asstr()[:]
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    rows: Any = matrix.Csr(group["data"], group["indices"], group["indptr"][:], (n_cells, n_genes))
    if "feature_types" in var and (var["feature_types"] != "Gene Expression").any():
        keep = np.flatnonzero(var["feature_types"] == "Gene Expression")
        rows, var = matrix.Columns(rows, keep), var.iloc[keep]
    tables = {"obs": pd.DataFrame(index=pd.Index(group["barcodes"].asstr()[:].astype(str))), "var": var}
    return _Source(str(path), {"X": rows}, tables.__getitem__, {}, file.close)
