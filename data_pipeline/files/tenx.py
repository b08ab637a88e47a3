"""Read what 10x Genomics' programs write, and those that write like them: .h5 of CellRanger 2 and 3, folders of mtx.

A folder holds `matrix.mtx`, `barcodes.tsv` and `features.tsv` (or `genes.tsv`), gzipped or not: of CellRanger, STARsolo
or alevin-fry; at GEO the three have a prefix, "GSM123_sample_matrix.mtx.gz". Symbols are kept as they are, also where
two genes have the same one; ids lie beside. Text is turned into temporary files, so that memory stays small.
"""

import contextlib
import gzip
import io
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files import features, matrix, trust

LINES = 1 << 20
"""Entries of a text file that are read at a time."""
_MATRIX = re.compile(r"(.*?)matrix\.mtx(?:\.gz)?")


def h5_groups(file: h5py.File) -> list[str]:
    """Return the groups of an HDF5 file in which 10x counts are: one, or a group for each genome."""
    return [name for name in file if isinstance(file[name], h5py.Group) and "barcodes" in file[name]]


def read_h5(path: Path, file: h5py.File, genomes: list[str]) -> tuple[Any, pd.DataFrame, pd.DataFrame]:
    """Return (rows, obs, var) of CellRanger's .h5, of version 3 (`matrix`) or 2 (a group per genome)."""
    if len(genomes) > 1:
        raise ValueError(f"{path}: counts of several genomes ({', '.join(genomes)}): give a file of one")
    group = file[genomes[0]]
    table = group.get("features", group)
    new = "features" in group
    ids, names = ("id", "name") if new else ("genes", "gene_names")
    missing = [part for part in ("data", "indices", "indptr", "shape") if part not in group]
    missing += [f"{ids} or {names}"] if ids not in table and names not in table else []
    if missing:
        raise ValueError(f"{path}: no {missing[0]} in {genomes[0]}; there are {', '.join(sorted({*group, *table}))}")
    for part in (group["barcodes"], group["indptr"], *(table[key] for key in (ids, names) if key in table)):
        trust.check_stored(part, part.name)
    columns = {name: table[name].asstr()[:].astype(str) for name in (ids, names) if name in table}
    var = _genes(columns.get(ids), columns.get(names))
    for column, part in (("feature_types", "feature_type"), ("genome", "genome")):
        if new and part in table:
            var[column] = table[part].asstr()[:]
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    rows = matrix.Csr(group["data"], group["indices"], group["indptr"][:], (n_cells, n_genes))
    return rows, pd.DataFrame(index=pd.Index(group["barcodes"].asstr()[:].astype(str))), var


def _genes(ids: Any, names: Any) -> pd.DataFrame:
    """Return a table of genes by name, or by id where there is none, with the ids beside."""
    if ids is None or names is None:
        return pd.DataFrame(index=pd.Index(names if ids is None else ids, dtype=object))
    index = [name.strip() or id for id, name in zip(ids, names, strict=True)]
    return pd.DataFrame({"gene_ids": ids}, index=pd.Index(index, dtype=object))


def is_mtx(path: Path) -> bool:
    """Return whether `path` is a folder with a `matrix.mtx`, or such a file, whatever stands before its name."""
    return bool(_matrices(path) if path.is_dir() else path.name.endswith((".mtx", ".mtx.gz")))


def mtx_parts(path: Path) -> list[Path]:
    """Return the files of the matrix, the genes and the cells, by the folder or by the file of the matrix.

    FileNotFoundError names the one that is missing; ValueError where a folder has several matrices.
    """
    matrices = _matrices(path) if path.is_dir() else {path.name.rpartition("matrix.mtx")[0]: path}
    if len(matrices) > 1:
        names = ", ".join(sorted(place.name for place in matrices.values()))
        raise ValueError(f"{path}: a folder of several matrices: give one of the files instead: {names}")
    prefix, place = next(iter(matrices.items()))
    parts = [place]
    for names in (("features.tsv", "genes.tsv"), ("barcodes.tsv",)):
        choice = [place.parent / f"{prefix}{name}{end}" for name in names for end in ("", ".gz")]
        file = next((part for part in choice if part.is_file()), None)
        if file is None:
            beside = ", ".join(sorted(part.name for part in place.parent.iterdir() if part != place)[:8]) or "nothing"
            wanted = " or ".join(f"{prefix}{name}" for name in names)
            raise FileNotFoundError(
                f"{path}: not a whole 10x folder: no {wanted} (or .gz) beside {place.name}, but {beside}"
            )
        parts.append(file)
    return parts


def _matrices(folder: Path) -> dict[str, Path]:
    """Return the matrices of a folder by their prefix; of a plain and a gzipped one of that name the plain one."""
    files = sorted((file for file in folder.iterdir() if _MATRIX.fullmatch(file.name)), reverse=True)
    return {_MATRIX.fullmatch(file.name)[1]: file for file in files}


def read_mtx(path: Path) -> tuple[Any, pd.DataFrame, pd.DataFrame, Callable[[], None]]:
    """Return (rows, obs, var, what closes them) of a folder with `matrix.mtx` or of such a file."""
    place, genes, barcodes = mtx_parts(path)
    var, cells = _features(genes), _text_table(barcodes)[0].to_numpy(object)
    files = contextlib.ExitStack()
    try:
        rows = _rows(place, len(var), len(cells), (genes.name, barcodes.name), files)
    except BaseException:
        files.close()
        raise
    return rows, pd.DataFrame(index=pd.Index(cells, dtype=object)), var, files.close


def _features(path: Path) -> pd.DataFrame:
    """Return the genes of features.tsv or genes.tsv: id, symbol and feature type, or only the first one or two."""
    table = _text_table(path)
    ids, rest = table[0].to_numpy(object), [table[i].to_numpy(object) for i in range(1, table.shape[1])]
    types = rest[1] if len(rest) > 1 else None
    if len(rest) == 1 and all(map(features.is_kind, rest[0])):
        types, rest = rest[0], []
    var = _genes(ids, rest[0] if rest else None)
    return var if types is None else var.assign(feature_types=types)


def _text_table(path: Path) -> pd.DataFrame:
    """Return the columns of a file of text with tabs between, all as they are written, "" for what is missing."""
    try:
        with _opened(path) as file:
            return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: not a table of text: {' '.join(str(error).split())}") from error


class _Inflated(io.RawIOBase):
    """What a gzipped file holds; ValueError where it inflates beyond all measure."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file, self._stored = path, file, path.stat().st_size

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with the next bytes and return how many."""
        data = self._file.read(len(buffer))
        trust.check_inflation(str(self._path), self._stored, self._file.tell())
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(path, "rb") as file:
        gzipped = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if gzipped else open(path, "rb") as file:
        yield io.BufferedReader(_Inflated(path, file), 1 << 20) if gzipped else file


def _rows(place: Path, n_genes: int, n_cells: int, names: tuple[str, str], files: contextlib.ExitStack) -> Any:
    """Return a reader of the rows of an mtx file: genes x cells as 10x writes it, or cells x genes."""
    try:
        with _opened(place) as file:
            kind, shape, entries = _header(file)
            if (n_genes, n_cells) not in (shape, shape[::-1]):
                raise ValueError(
                    f"it is of {shape[0]:,} x {shape[1]:,}, {names[0]} lists {n_genes:,} genes and {names[1]} "
                    f"{n_cells:,} cells; a first line that names columns is to be removed"
                )
            turned = shape != (n_genes, n_cells)
            parts = [files.enter_context(tempfile.TemporaryFile(prefix="scfm-mtx-")) for _ in range(3)]  # noqa: SIM115
            first, second = _parse(file, kind, shape, entries, parts)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{place}: not a whole matrix: {' '.join(str(error).split())}") from error
    major, minor, values = (_mapped(part, dtype) for part, dtype in zip(parts, (np.int32, np.int32, kind), strict=True))
    genes, cells = (minor, major) if turned else (major, minor)
    by_gene, by_cell = (second, first) if turned else (first, second)
    size = (n_cells, n_genes)
    if by_cell is not None:
        return matrix.Csr(values, genes, by_cell, size)
    if by_gene is not None:
        return matrix.Csc(values, cells, by_gene, size)
    return matrix.open_rows(sparse.coo_matrix((values, (cells, genes)), shape=size).tocsr())


def _header(file: Any) -> tuple[np.dtype, tuple[int, int], int]:
    """Return the type of the values, the shape and the number of entries, and leave the file behind them."""
    words = file.readline(1 << 16).decode("latin1").lower().split()
    if words[:1] != ["%%matrixmarket"] or len(words) < 5:
        raise ValueError("it does not begin with %%MatrixMarket")
    if words[2] != "coordinate" or words[3] not in ("integer", "real") or words[4] != "general":
        raise ValueError(f"{' '.join(words[1:])}: only 'matrix coordinate integer general' and 'real' are read")
    line = file.readline(1 << 16)
    while line.startswith(b"%") or (line and not line.strip()):
        line = file.readline(1 << 16)
    sizes = line.split()
    if len(sizes) != 3 or not all(size.isdigit() for size in sizes):
        raise ValueError(f"rows, columns and entries are to stand in {line[:40].decode('latin1').strip()!r}")
    rows, columns, entries = map(int, sizes)
    return np.dtype(np.int64 if words[3] == "integer" else np.float64), (rows, columns), entries


def _parse(
    file: Any, kind: np.dtype, shape: tuple[int, int], entries: int, parts: list[Any]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Write rows, columns and values of all entries into three files; return where each row and each column begins.

    None for rows, or columns, where entries are not in their order.
    """
    numbers = [np.zeros(size, np.int64) for size in shape]
    ordered, last, total = [True, True], [0, 0], 0
    types = {0: np.int64, 1: np.int64, 2: kind}
    options = dict(sep=r"\s+", header=None, names=[0, 1, 2], dtype=types, chunksize=LINES)
    for block in pd.read_csv(file, **options) if entries else ():
        total += len(block)
        if total > entries:
            break
        for axis in (0, 1):
            place = block[axis].to_numpy() - 1
            low, high = int(place.min()), int(place.max())
            if low < 0 or high >= shape[axis]:
                raise ValueError(f"an entry lies at {low + 1} or {high + 1}, outside 1 to {shape[axis]:,}")
            numbers[axis][low : high + 1] += np.bincount(place - low, minlength=high - low + 1)
            ordered[axis] &= bool(place[0] >= last[axis] and (np.diff(place) >= 0).all())
            last[axis] = int(place[-1])
            parts[axis].write(place.astype(np.int32).data)
        parts[2].write(block[2].to_numpy(kind).data)
    if total != entries:
        number = "more" if total > entries else f"{total:,}"
        raise ValueError(f"its first lines announce {entries:,} entries, there are {number}")
    starts = [np.concatenate([[0], np.cumsum(number)]) for number in numbers]
    return tuple(start if sorted_ else None for start, sorted_ in zip(starts, ordered, strict=True))


def _mapped(file: Any, dtype: np.dtype) -> np.ndarray:
    file.flush()
    return np.memmap(file, dtype, "r") if file.tell() else np.zeros(0, dtype)
