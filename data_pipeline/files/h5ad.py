"""Read raw counts from single-cell files, and write embeddings back into them.

Reads .h5ad (X, a layer or raw; CSR, CSC or dense), AnnData .zarr folders and .zarr.zip, 10x .h5 and 10x mtx folders
from disk, a run of cells at a time, and AnnData objects from memory. What is not raw counts is refused: by a sample at
first, and later in every run of cells that is read.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files import features, whole
from data_pipeline.files.count_values import FRACTION, LOGGED, looks, not_counts, percent, rounded, why_not_counts
from data_pipeline.files.matrix import Columns, open_rows
from data_pipeline.files.sources import Source, open_source

if TYPE_CHECKING:  # it costs a second to import
    import anndata

CHUNK = 4096  # cells read at a time
LOOKED_AT = 200  # cells that are looked at to tell what became of counts
BREAKS = ("\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
GAP = 32  # rows between two wanted ones that are read rather than skipped


PLACE = ("layer", "raw", "round")
"""Options of `read_counts` that say where counts are and how they are taken."""


def read_counts(
    source: "str | os.PathLike | anndata.AnnData",
    *,
    layer: str | None = None,
    raw: bool | None = None,
    round: bool | None = None,
    check: bool = True,
) -> "Counts":
    """Open `source`, a file, a folder or an AnnData, for reading its raw counts: X, or the `layer`, or `raw`.

    Of several kinds of measurements gene expression alone is read (see `features`). With `check`, what is not counts
    (negative, not an integer, NaN, infinite) raises a ValueError that says where in the file counts are and what option
    chooses them; without, values come as they are. With `round`, values are taken to the nearest whole number first:
    for counts that were estimated (RSEM, kallisto) or corrected (SoupX, CellBender). ValueError, FileNotFoundError or
    PermissionError, in one line, where there is nothing to read.
    """
    if layer and raw:
        raise ValueError(f"layer={layer} and raw=True exclude each other: counts come from one place")
    opened = open_source(source)
    try:
        return Counts(opened, f"layers/{layer}" if layer else "raw" if raw else "X", check, bool(round))
    except BaseException:
        opened.close()
        raise


def place(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of some options that `read_counts` takes: where in a file counts are, and how they are taken."""
    return {name: options[name] for name in PLACE if name in options}


class Counts:
    """Raw counts of one study, read a run of cells at a time; a context manager.

    Attributes:
      path: the file, or "AnnData". source: where in it the counts are: "X", "layers/<name>" or "raw".
      n_cells, n_genes: the size of the matrix. genes: names of its columns, str. [n_genes]
      var, obs: tables of the genes and of the cells. obsm: arrays by name, read when asked for. {name: [n_cells, ...]}
      round: whether values are taken to the nearest whole number.
      notes: a line on each thing that is left out or done to what the file holds, for the user to see.
    """

    def __init__(self, opened: Source, source: str, check: bool, round: bool = False):
        self._opened, self.path, self.source, self.check = opened, opened.path, source, check
        self.obsm, self.round = opened.obsm, round
        self._rows = self._open(source)
        self.n_cells, self.n_genes = self._rows.shape
        if not self.n_cells or not self.n_genes:
            raise ValueError(f"{self.path}: {source} is empty: {self.n_cells} cells x {self.n_genes} genes")
        var = opened.table("raw/var" if source == "raw" else "var")
        for axis, listed, wanted in (("var", len(var), self.n_genes), ("obs", len(self.obs), self.n_cells)):
            if listed != wanted:
                raise ValueError(f"{self.path}: damaged file: {source} is of {wanted} {axis}, the table lists {listed}")
        keep, self.var, notes = features.select(var, self.path)
        self.notes = [*opened.notes, *notes]
        if keep is not None:
            self._rows, self.n_genes = Columns(self._rows, keep), len(keep)
        self.genes = self._names()
        with self._reading(source):
            values = self._rows.sample()
        if round and values.dtype.kind == "f":
            self._round(values)
        fault = why_not_counts(rounded(values) if round else values) if check else None
        if fault:
            like = self._looks(values) if fault.startswith(FRACTION) else ""
            raise ValueError(f"{self.path}: {source} does not hold raw counts ({fault}{like}); {self._way_out(like)}")

    def __enter__(self) -> "Counts":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and delete what was put aside."""
        self._rows.close()
        self._opened.close()

    @cached_property
    def obs(self) -> pd.DataFrame:
        """The table of the cells."""
        return self._opened.table("obs")

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return counts of cells `start` to `stop`: int32 (unchecked: the file's dtype), sorted, no stored zeros."""
        if not 0 <= start <= stop <= self.n_cells:
            raise ValueError(f"{self.path}: rows {start}..{stop} do not lie within its {self.n_cells} cells")
        with self._reading(f"cells {start}..{stop} of {self.source}"):
            block = self._rows.read(start, stop)
        if self.round:
            block.data = rounded(block.data)
            block.eliminate_zeros()
        return self._checked(block, start) if self.check else block

    def take(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the counts of the cells `rows`, any of them in any order, as `rows` does."""
        wanted, inverse = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > GAP) + 1)
        parts = [self.rows(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs if len(run)]
        return (sparse.vstack(parts, "csr") if parts else self.rows(0, 0))[inverse]

    def chunks(self, size: int = CHUNK) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """Yield (first cell, counts of the next `size` cells) over all cells."""
        for start in range(0, self.n_cells, size):
            yield start, self.rows(start, min(start + size, self.n_cells))

    def _open(self, source: str) -> Any:
        if source not in self._opened.matrices:
            matrices = ", ".join(self._opened.matrices) or "no matrix at all"
            raise ValueError(f"{self.path}: no {source} in it; there is {matrices} (layer=NAME and raw=True choose)")
        with self._reading(source):
            return open_rows(self._opened.matrices[source])

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Give the file and what is read there to any error of a storage library, in one line."""
        try:
            yield
        except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.path}: {what} cannot be read: {text}") from error

    def _names(self) -> np.ndarray:
        """Return the names of the genes; ValueError where one cannot be a line of a list. [n_genes] str"""
        names = self.var.index.to_numpy().astype(str)
        wrong = next((name for name in names if not name.isprintable()), None)
        if wrong is not None and any(sign in wrong for sign in BREAKS):
            text = "a tab or a line break cannot be part of a gene's name; rename it"
            raise ValueError(f"{self.path}: gene {wrong!r}: {text}")
        return names

    def _round(self, values: np.ndarray) -> None:
        """Note that values are rounded; ValueError where that does not give counts."""
        whole = float(np.mean(rounded(values) == values)) if len(values) else 1.0
        if whole < 1 and self._looks(values) == LOGGED:
            text = "looks log-transformed: round=True gives no counts of it"
            raise ValueError(f"{self.path}: {self.source} {text}; {self._way_out()}")
        self.notes.append(f"{self.source} rounded to whole numbers: {percent(whole)} of its values were whole")

    def _looks(self, values: np.ndarray) -> str:
        """Say what became of counts, see `count_values.looks`."""
        with self._reading(self.source):
            return looks(values, self._rows.read(0, min(LOOKED_AT, self.n_cells)))

    def _checked(self, block: sparse.csr_matrix, start: int) -> sparse.csr_matrix:
        bad = not_counts(block.data)
        if bad.any():
            i = int(bad.argmax())
            row, gene = start + int(np.searchsorted(block.indptr, i, "right")) - 1, self.genes[block.indices[i]]
            raise ValueError(
                f"{self.path}: {self.source} does not hold raw counts (cell {row}, gene {gene}: "
                f"{why_not_counts(block.data[i : i + 1])}); {self._way_out()}"
            )
        block.data = block.data.astype(np.int32, copy=False)
        return block

    def _way_out(self, like: str = "") -> str:
        """Where else in the file counts are, and the option that chooses them, in Python's notation."""
        others = [name for name in self._opened.matrices if name != self.source]
        good = [name for name in others if self._holds_counts(name)]
        if good:
            ways = {"X": "no layer and no raw", "raw": "raw=True"}
            options = [ways.get(name) or name.replace("layers/", "layer=") for name in good]
            return f"counts are in {' and '.join(good)}: choose with {' or '.join(options)}"
        looked = f"{', '.join(others)} hold none either" if others else "it has no layers and no raw to look in"
        way = f"{looked}: give the file of counts that this one was made from"
        return f"{way}, or, for counts that were estimated or corrected, round=True" if "whole" in like else way

    def _holds_counts(self, name: str) -> bool:
        try:
            return why_not_counts(self._open(name).sample()) is None
        except ValueError:  # damaged: not what is asked
            return False


def write_embedding(
    source: "str | os.PathLike | anndata.AnnData",
    output: str | os.PathLike,
    key: str,
    embedding: np.ndarray,
    provenance: Mapping[str, Any],
    *,
    replace: bool = False,
) -> None:
    """Write `source` as the .h5ad file `output` with `embedding` [n_cells, D] in obsm and `provenance` in uns.

    An .h5ad is copied as it is; of other files the matrices are streamed (dense ones become sparse). Values of
    `provenance` that are not plain (text, number, bool) are written as JSON text. Refuses, with a ValueError or an
    OSError of one line, to overwrite `output`, to overwrite `key` without `replace`, and an embedding of another number
    of cells; whatever fails leaves nothing behind.
    """
    from anndata.io import write_elem  # here, for what it costs to import

    output, embedding = Path(output), np.asarray(embedding, np.float32)
    check_output(output)
    with closing(open_source(source)) as cells:
        n_cells = len(cells.table("obs"))
        if embedding.ndim != 2 or len(embedding) != n_cells:
            raise ValueError(f"{cells.path}: an embedding of shape {embedding.shape} does not fit its {n_cells} cells")
        if key in cells.obsm and not replace:
            raise ValueError(f"{cells.path}: obsm[{key!r}] is there already: choose another key, or replace it")
        with copied(source, cells, output) as file:
            for group in ("obsm", "uns"):
                if group not in file:
                    write_elem(file, group, {})
            write_elem(file["obsm"], key, embedding)
            write_elem(file["uns"], key, plain(provenance))


@contextmanager
def copied(source: "str | os.PathLike | anndata.AnnData", cells: Source, output: Path) -> Iterator[h5py.File]:
    """Give the .h5ad `output`, a copy of `source` (opened: `cells`), to add to; whole or not at all."""
    with _whole(output) as partial:
        if not isinstance(source, str | os.PathLike):
            source.write_h5ad(partial)
        elif isinstance(cells.root, h5py.File):
            shutil.copyfile(cells.path, partial)
        else:
            _stream(cells, partial)
        with h5py.File(partial, "r+") as file:
            yield file


def check_output(output: Path) -> None:
    """Raise OSError where `output` is there already, or its folder is not."""
    if output.exists():
        raise FileExistsError(f"{output}: exists already and is not overwritten: choose another name or remove it")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output}: there is no folder {output.parent}: make it first")


@contextmanager
def _whole(output: Path) -> Iterator[Path]:
    """As `whole.writing`, but what goes wrong is one line that names the file."""
    try:
        with whole.writing(output) as partial:
            yield partial
    except (OSError, RuntimeError) as error:  # HDF5 has a RuntimeError for a full disk too
        text = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise OSError(f"{output}: cannot be written: {text}") from error


def _stream(cells: Source, path: Path) -> None:
    """Write tables and what else is small, then every matrix a run of cells at a time."""
    import anndata
    from anndata.io import read_elem, sparse_dataset, write_elem

    frame = anndata.AnnData(obs=cells.table("obs"), var=cells.table("var"), obsm=dict(cells.obsm))
    frame.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for name in ("uns", "varm", "varp", "obsp"):
            if cells.root is not None and name in cells.root:
                write_elem(file, name, read_elem(cells.root[name]))
        for name, element in cells.matrices.items():
            rows = open_rows(element)
            if name == "raw":
                write_elem(file, "raw", {})
                file["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})
                write_elem(file["raw"], "var", cells.table("raw/var"))
            folder, _, key = ("raw/X" if name == "raw" else name).rpartition("/")
            group = file.require_group(folder) if folder else file
            if key in group:
                del group[key]
            for start in range(0, rows.shape[0], CHUNK):
                block = rows.read(start, min(start + CHUNK, rows.shape[0]))
                block.indptr = block.indptr.astype(np.int64)
                if start:
                    sparse_dataset(group[key]).append(block)
                else:
                    write_elem(group, key, block)  # not "layers/counts": anndata 0.13 refuses paths
            rows.close()


def plain(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was done in the form in which it lies in uns: text and numbers, everything else as JSON."""
    values = {name: x.item() if isinstance(x, np.generic) else x for name, x in provenance.items()}
    return {name: x if isinstance(x, str | int | float | bool) else json.dumps(x) for name, x in values.items()}
