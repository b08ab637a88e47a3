"""Open a single-cell file of any kind, without reading its matrices: the only place that knows formats."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from data_pipeline.files import matrix

if TYPE_CHECKING:  # it costs a second to import
    import anndata


@dataclass
class Source:
    """An opened file: matrices by name ("X", "layers/counts", "raw"), tables ("obs", "var", "raw/var") and obsm.

    `root` is the file's or the folder's group where it has AnnData's layout.
    """

    path: str
    matrices: dict[str, Any]
    table: Callable[[str], pd.DataFrame]
    obsm: Mapping[str, np.ndarray]
    close: Callable[[], None] = lambda: None
    root: Any = None


def open_source(source: "str | os.PathLike | anndata.AnnData") -> Source:
    """Open a .h5ad, an AnnData .zarr folder, a 10x .h5, a 10x mtx folder, or an AnnData object.

    FileNotFoundError, PermissionError or ValueError, in one line, where it is none of these.
    """
    return _from_path(Path(source)) if isinstance(source, str | os.PathLike) else _from_anndata(source)


def _from_path(path: Path) -> Source:
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


def _from_groups(path: Path, root: Any, close: Callable[[], None] = lambda: None) -> Source:
    """Open AnnData's layout in an HDF5 file or a zarr group."""
    from anndata.io import read_elem  # here, for what it costs to import

    missing = [name for name in ("obs", "var") if name not in root]
    if missing:
        raise ValueError(
            f"{path}: not an AnnData file: no {' and no '.join(missing)} in it, but {', '.join(root) or '-'}"
        )
    if not hasattr(root["obs"], "keys"):
        raise ValueError(f"{path}: written by anndata before 0.7: read it with anndata and write it again")
    places = {"X": "X"} | {f"layers/{name}": f"layers/{name}" for name in _keys(root, "layers")} | {"raw": "raw/X"}
    matrices = {name: root[place] for name, place in places.items() if place in root}
    matrices = {name: part for name, part in matrices.items() if part.attrs.get("encoding-type") != "null"}

    def table(name: str) -> pd.DataFrame:
        try:
            return read_elem(root[name])
        except Exception as error:  # anndata raises many kinds for a damaged table
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: the table {name} cannot be read: {text}") from error

    obsm = _Lazy({name: lambda name=name: root[f"obsm/{name}"] for name in _keys(root, "obsm")}, read_elem)
    return Source(str(path), matrices, table, obsm, close, root)


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


def _from_zarr(path: Path) -> Source:
    import zarr  # here, for what it costs to import

    try:
        root = zarr.open_group(path, mode="r")
    except Exception as error:  # zarr raises many kinds for a damaged folder
        raise ValueError(f"{path}: not a zarr group: {' '.join(str(error).split())}") from error
    return _from_groups(path, root)


def _from_anndata(adata: "anndata.AnnData") -> Source:
    layers = {f"layers/{name}": adata.layers[name] for name in adata.layers if name is not None}
    matrices = {"X": adata.X} | layers  # from anndata 0.13 on, X is also the layer None
    tables = {"obs": adata.obs, "var": adata.var}
    if adata.raw is not None:
        matrices["raw"], tables["raw/var"] = adata.raw.X, adata.raw.var
    matrices = {name: value for name, value in matrices.items() if value is not None}
    obsm = _Lazy({name: lambda name=name: adata.obsm[name] for name in adata.obsm}, np.asarray)
    return Source("AnnData", matrices, tables.__getitem__, obsm)


def _from_mtx(path: Path) -> Source:
    import scanpy  # here, for what it costs to import

    try:
        adata = scanpy.read_10x_mtx(path)
    except Exception as error:  # a folder with missing or damaged parts
        raise ValueError(f"{path}: not a whole 10x folder: {' '.join(str(error).split())}") from error
    opened = _from_anndata(adata)
    opened.path = str(path)
    return opened


def _from_10x(path: Path, file: h5py.File, genomes: list[str]) -> Source:
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
    return Source(str(path), {"X": rows}, tables.__getitem__, {}, file.close)
