"""Open a single-cell file of any kind, without reading its matrices: the only place that knows formats."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from data_pipeline.files import features, tables, tenx, trust, whole

if TYPE_CHECKING:  # it costs a second to import
    import anndata


GZIP, ZIP = b"\x1f\x8b", b"PK"
KINDS = ".h5ad, 10x .h5, an AnnData .zarr folder (or .zarr.zip) or a 10x mtx folder are read"


@dataclass
class Source:
    """An opened file: matrices by name ("X", "layers/counts", "raw"), tables ("obs", "var", "raw/var") and obsm.

    `root` is the file's or the folder's group where it has AnnData's layout. `notes` are lines on what is left out.
    """

    path: str
    matrices: dict[str, Any]
    table: Callable[[str], pd.DataFrame]
    obsm: Mapping[str, np.ndarray]
    close: Callable[[], None] = lambda: None
    root: Any = None
    notes: tuple[str, ...] = ()


def open_source(source: "str | os.PathLike | anndata.AnnData") -> Source:
    """Open a .h5ad, an AnnData .zarr folder or .zarr.zip, a 10x .h5, a 10x mtx folder, or an AnnData object.

    Of a MuData, file or object, the modality of gene expression is opened. FileNotFoundError, PermissionError or
    ValueError, in one line, where it is none of these, or does what no file of a stranger may (see `trust`).
    """
    return _from_path(Path(source)) if isinstance(source, str | os.PathLike) else _from_anndata(source)


def parts(path: Path) -> list[Path]:
    """Return all the files that an input consists of."""
    if path.is_dir():
        return [path / name for name in whole.files(path)]
    return tenx.mtx_parts(path) if tenx.is_mtx(path) else [path]


def _from_path(path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: no permission to read it")
    if path.is_dir():
        return _from_folder(path)
    if not path.stat().st_size:
        raise ValueError(f"{path}: an empty file")
    if tenx.is_mtx(path):
        return _from_mtx(path)
    with open(path, "rb") as file:
        begins = file.read(2)
    if begins == GZIP:
        tar = path.name.endswith((".tgz", ".tar.gz"))
        raise ValueError(f"{path}: a gzipped file: {'tar -xzf' if tar else 'gunzip'} it first, and give what comes out")
    if begins == ZIP:
        return _from_zip(path)
    file = _open_hdf5(path)
    try:
        trust.check_hdf5(path, file)
        groups = tenx.h5_groups(file)
        if groups:
            rows, obs, var = tenx.read_h5(path, file, groups)
            return Source(str(path), {"X": rows}, {"obs": obs, "var": var}.__getitem__, {}, file.close)
        return _from_groups(path, file, file.close)
    except (RuntimeError, KeyError, OSError) as error:  # h5py has many kinds for a damaged file
        file.close()
        raise ValueError(f"{path}: damaged file: {' '.join(str(error).split())}") from error
    except BaseException:
        file.close()
        raise


def _from_folder(path: Path) -> Source:
    if any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        trust.check_zarr(path)
        return _from_zarr(path, path)
    if tenx.is_mtx(path):
        return _from_mtx(path)
    deeper = [place.name for place in sorted(path.iterdir()) if place.is_dir() and tenx.is_mtx(place)]
    way = f"; but {', '.join(deeper)} in it {'is' if len(deeper) == 1 else 'are'}: give one" if deeper else ""
    raise ValueError(f"{path}: a folder that is neither an AnnData .zarr nor a 10x folder with matrix.mtx{way}")


def _open_hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", rdcc_nbytes=1 << 24)
    except OSError as error:
        text = str(error)
        if "unable to lock" in text or "already open" in text:
            way = "close it there, or set HDF5_USE_FILE_LOCKING=FALSE if nothing writes to it"
            raise OSError(f"{path}: the file is open elsewhere, or its file system cannot lock: {way}") from error
        if "truncated" in text:
            raise ValueError(f"{path}: a truncated file, its end is missing: copy it again") from error
        raise ValueError(f"{path}: not an HDF5 file: {KINDS}") from error


def _from_groups(
    path: Path, root: Any, close: Callable[[], None] = lambda: None, notes: tuple[str, ...] = ()
) -> Source:
    """Open AnnData's layout in an HDF5 file or a zarr group; of MuData's, that of gene expression."""
    from anndata.io import read_elem  # here, for what it costs to import

    if "mod" in root and "X" not in root:
        name, notes = _modality(path, list(root["mod"]))
        return _from_groups(path, root["mod"][name], close, notes)
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
            return tables.read(root[name], name)
        except Exception as error:  # anndata raises many kinds for a damaged table
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{path}: the table {name} cannot be read: {text}") from error

    obsm = _Lazy({name: lambda name=name: root[f"obsm/{name}"] for name in _keys(root, "obsm")}, read_elem)
    return Source(str(path), matrices, table, obsm, close, root, notes)


def _modality(path: Any, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """Return the modality of gene expression, and a line on the others; ValueError where there is none, or several."""
    chosen = [name for name in names if features.is_gene_expression(name)]
    if len(chosen) != 1:
        text = f"{len(chosen) or 'no'} modalities of gene expression (rna, gex) among {', '.join(names) or 'none'}"
        raise ValueError(f"{path}: {text}: write the one to read as a file of its own")
    others = [name for name in names if name not in chosen]
    return chosen[0], (f"modality {chosen[0]} is read; left out: {', '.join(others)}",) if others else ()


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


def _from_zarr(path: Path, store: Any, folder: str | None = None, close: Callable[[], None] = lambda: None) -> Source:
    import zarr  # here, for what it costs to import

    try:
        # not by consolidated metadata, a copy that may say what no array says
        root = zarr.open_group(store, mode="r", path=folder, use_consolidated=False)
        return _from_groups(path, root, close)
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a zarr group: {' '.join(str(error).split())}") from error
    except Exception as error:  # zarr raises many kinds for a damaged folder
        raise ValueError(f"{path}: not a zarr group: {' '.join(str(error).split())}") from error


def _from_zip(path: Path) -> Source:
    from zarr.storage import ZipStore

    folder = trust.check_zip(path)
    store = ZipStore(path, mode="r")
    try:
        return _from_zarr(path, store, folder or None, store.close)
    except BaseException:
        store.close()
        raise


def _from_anndata(adata: "anndata.AnnData") -> Source:
    notes: tuple[str, ...] = ()
    if hasattr(adata, "mod"):  # a MuData
        name, notes = _modality("MuData", list(adata.mod))
        adata = adata.mod[name]
    layers = {f"layers/{name}": adata.layers[name] for name in adata.layers if name is not None}
    matrices = {"X": adata.X} | layers  # from anndata 0.13 on, X is also the layer None
    frames = {"obs": adata.obs, "var": adata.var}
    if adata.raw is not None:
        matrices["raw"], frames["raw/var"] = adata.raw.X, adata.raw.var
    matrices = {name: value for name, value in matrices.items() if value is not None}
    obsm = _Lazy({name: lambda name=name: adata.obsm[name] for name in adata.obsm}, np.asarray)
    return Source("AnnData", matrices, frames.__getitem__, obsm, notes=notes)


def _from_mtx(path: Path) -> Source:
    rows, obs, var, close = tenx.read_mtx(path)
    return Source(str(path), {"X": rows}, {"obs": obs, "var": var}.__getitem__, {}, close)
