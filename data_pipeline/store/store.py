"""A store of many studies: open it, read runs of cells, write a study into it.

A study's cells lie permuted within their group, the groups one after the other, so a contiguous run of rows is a random
bag of its group and is read as one range of each array (see `manifest` for what is on disk, `arrays` for how). A study
is also an ordinary AnnData group: `anndata.read_zarr(store / "studies" / "pbmc3k.zarr")`.
"""

import os
import pathlib
import re
import tempfile
from functools import cached_property

import numpy as np
import pandas as pd
import zarr

from data_pipeline.files import panels
from data_pipeline.store import manifest as ledger
from data_pipeline.store.arrays import open_array
from data_pipeline.store.manifest import PARTIAL, verify
from data_pipeline.store.study import Settings, build

__all__ = ["Read", "Store", "Study", "open_store", "verify", "write_study"]

UNREADABLE = "damaged or unreadable; python -m experiments.ingest --verify names the file"


class Read:
    """A run of cells on its way from the disk; `result()` waits for it."""

    def __init__(self, study: "Study", start: int, stop: int, indices, data):
        self._what = f"study {study.name!r} of {study.store}, cells {start} to {stop}"
        self._indices, self._data = indices, data

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (store ids int32 [nnz], counts [nnz]) of the run; OSError where the bytes on disk are damaged."""
        try:
            return self._indices.result(), self._data.result()
        except ValueError as error:
            raise OSError(f"{self._what}: {UNREADABLE} ({error})") from error


class Study:
    """One study of a store. What is large (counts, obs, coordinates) is read when it is asked for.

    Attributes:
      name: of the study.
      index: its place in `Store.studies`.
      n_cells: number of cells.
      nnz: number of stored counts.
      groups: names of the groups (tissue samples, fields of view).
      group_starts: first row of every group, and the number of cells, int64. [len(groups) + 1]
    """

    def __init__(self, store: pathlib.Path, record: dict, index: int, n_genes: int):
        self.store, self.record = store, record
        self.name, self.index = record["name"], index
        self.n_cells, self.nnz = record["shape"][0], record["nnz"]
        self.groups = record["groups"]
        self.group_starts = np.asarray(record["group_starts"], np.int64)
        self.path = store / "studies" / f"{self.name}.zarr"
        self._n_genes = n_genes

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self.n_cells} cells, {len(self.groups)} groups)"

    def __getstate__(self) -> dict:
        kept = ("store", "record", "name", "index", "n_cells", "nnz", "groups", "group_starts", "path", "_n_genes")
        return {key: self.__dict__[key] for key in kept}

    def read(self, start: int, stop: int) -> Read:
        """Begin to read the counts of rows `start` to `stop`; `indptr` has the borders of the rows."""
        if not 0 <= start <= stop <= self.n_cells:
            raise ValueError(f"cells {start} to {stop}: study {self.name!r} has cells 0 to {self.n_cells}")
        first, last = self.indptr[start], self.indptr[stop]
        indices, data = self._arrays
        return Read(self, start, stop, indices[first:last].read(), data[first:last].read())

    def numbers(self, keep: np.ndarray, run: int = 1 << 14) -> np.ndarray:
        """Return how many counts of each cell are of the genes to `keep` [G], from one pass, remembered. [n_cells]"""
        cached = self.__dict__.get("_numbers")
        if cached is None or not np.array_equal(cached[0], keep):
            counted = []
            for start in range(0, self.n_cells, run):
                stop = min(start + run, self.n_cells)
                ids, _ = self.read(start, stop).result()
                before = np.concatenate([[0], np.cumsum(keep[ids])])
                counted.append(np.diff(before[self.indptr[start : stop + 1] - self.indptr[start]]))
            cached = self._numbers = keep.copy(), np.concatenate(counted)
        return cached[1]

    @property
    def _arrays(self):
        """The TensorStore handles of indices and data, opened once in every process."""
        if self.__dict__.get("_opened_by") != os.getpid():
            self._check("X/")
            self._handles = tuple(open_array(self.path / "X" / key) for key in ("indices", "data"))
            self._opened_by = os.getpid()
        return self._handles

    @cached_property
    def indptr(self) -> np.ndarray:
        """Where each row begins in the arrays of counts, int64. [n_cells + 1]"""
        return self._whole("X/indptr")

    @cached_property
    def obs(self) -> pd.DataFrame:
        """All obs columns of the source, in the store's order of cells; the index is the source's cell names."""
        return self._table("obs")

    @cached_property
    def measured(self) -> np.ndarray:
        """Which genes of the store the study measured, bool. [G]"""
        measured = np.zeros(self._n_genes, bool)
        measured[: self.record["shape"][1]] = self._var["measured"].to_numpy()
        return measured

    @cached_property
    def panels(self) -> tuple[np.ndarray, np.ndarray]:
        """Row of each cell in a table [n_cells], the genes that were measured, bool [panels, G]; see `files.panels`."""
        if not panels.flags(self._var):
            return np.zeros(self.n_cells, np.int32), self.measured[None]
        row, table = panels.of_cells(self._var, self.obs, self._var["measured"].to_numpy())
        return row, np.pad(table, ((0, 0), (0, self._n_genes - table.shape[1])))

    @cached_property
    def coords(self) -> np.ndarray | None:
        """Positions of the spots, float32, or None. [n_cells, 2]"""
        return self._whole("obsm/spatial") if self.record["spatial"] else None

    @cached_property
    def neighbours(self) -> np.ndarray | None:
        """Rows of the nearest spots of the group, itself first, int32, -1 in the padding; or None. [n_cells, 50]"""
        return self._whole("obsm/neighbours") if self.record["spatial"] else None

    @cached_property
    def _var(self) -> pd.DataFrame:
        return self._table("var")

    def _table(self, key: str) -> pd.DataFrame:
        from anndata.io import read_elem  # here, for what it costs to import

        self._check(f"{key}/", everything=True)
        return read_elem(zarr.open_group(self.path, mode="r")[key])

    def _whole(self, key: str) -> np.ndarray:
        self._check(f"{key}/")
        try:
            return np.asarray(open_array(self.path / key).read().result())
        except ValueError as error:
            raise OSError(f"{self.path / key}: {UNREADABLE} ({error})") from error

    def _check(self, under: str, everything: bool = False) -> None:
        """Raise OSError where files below `under` are damaged; chunks of arrays carry their own check, so not those."""
        names = [n for n in self.record["files"] if n.startswith(under) and (everything or n.endswith("zarr.json"))]
        for name in names:
            if wrong := ledger.damage(self.store, self.record, name):
                raise OSError(f"{self.store}: {wrong[0]}; restore it from a copy or ingest the study again")


class Store:
    """A store, open for reading.

    Attributes:
      path: its folder.
      manifest: all that `manifest.json` says.
      genes: the vocabulary; a gene's place in it is its store id.
      second_names: a second name of each gene (its Ensembl id, where the sources tell), "" where there is none.
      studies: names of the studies, in the order of their index.
      offsets: global number of the first cell of every study, and the store's number of cells, int64. [studies + 1]
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(os.path.expanduser(path))  # of --store=~/x the shell leaves the ~
        self.manifest = ledger.read(self.path)
        pairs = ledger.read_genes(self.path, self.manifest)
        self.genes = [gene for gene, _ in pairs]
        self.second_names = [other for _, other in pairs]
        records = ledger.records(self.manifest)
        self.studies = [record["name"] for record in records]
        self._studies = [Study(self.path, record, i, len(self.genes)) for i, record in enumerate(records)]
        self.offsets = np.cumsum([0] + [study.n_cells for study in self._studies], dtype=np.int64)

    def __repr__(self) -> str:
        sizes = f"{len(self.studies)} studies, {self.offsets[-1]} cells, {len(self.genes)} genes"
        return f"Store({str(self.path)!r}, {sizes})"

    def study(self, which: str | int) -> Study:
        """Return the study of that name or index; ValueError names the studies there are."""
        if isinstance(which, str):
            if which not in self.studies:
                raise ValueError(f"study {which!r}: not in {self.path}; there are {', '.join(self.studies) or 'none'}")
            which = self.studies.index(which)
        return self._studies[which]


def open_store(path: str | os.PathLike) -> Store:
    """Open the store at `path`; FileNotFoundError or ValueError where there is none, OSError where it is damaged."""
    return Store(path)


def check_name(name: str) -> str:
    """Return the study name, which is also a folder's; ValueError where it cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name):
        raise ValueError(f"study name {name!r}: letters, digits and _ . + - only; give another with --names")
    return name


def partial(path: pathlib.Path, name: str) -> pathlib.Path:
    """Return a new folder name below the store's partial folder, unlike any other writer's."""
    return pathlib.Path(tempfile.mkdtemp(prefix=f"{name}-", dir=path / PARTIAL)) / "study"


def write_study(
    path: str | os.PathLike, name: str, counts, mapping, genes: list[str], settings: Settings | None = None
) -> Study:
    """Write one study into the store at `path` (made where there is none) in this process and return it.

    Args:
      path: folder of the store.
      name: of the study, new to the store.
      counts: an open `h5ad.Counts` or anything like it.
      mapping: of its genes to `genes`, from `vocab.map_genes`.
      genes: the vocabulary; it begins with the genes that the store has already.
      settings: what to keep and how to order it.

    Raises ValueError where the store has a study of that name or another vocabulary.
    """
    path = pathlib.Path(path)
    with ledger.writing(path) as manifest:
        if check_name(name) in manifest["studies"]:
            raise ValueError(f"study {name!r} is already in {path}; choose another name or another store")
        ledger.extend_genes(path, manifest, [(gene, "") for gene in genes], kind="union")
        folder = partial(path, name)
        record = build(folder, name, counts, mapping, genes, settings or Settings())
        manifest["plan"] += [name] * (name not in manifest["plan"])
        ledger.commit(path, manifest, folder, record)
    return open_store(path).study(name)
