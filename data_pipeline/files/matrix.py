"""Rows of a cells x genes matrix in bounded memory, wherever it lies: CSR, CSC or dense, in HDF5, zarr or memory.

A matrix stored by gene (CSC) is turned once into a temporary file by a bucket sort: two reads of the source, whatever
its size, and about `BUCKET` entries in memory.
"""

import errno
import tempfile
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.files import trust

BLOCK = 1 << 23  # entries of a matrix read at a time
BUCKET = 1 << 23  # entries sorted in memory at a time
SAMPLES, SAMPLE = 8, 1 << 16  # places looked at by `sample`, and entries at each


def open_rows(element: Any) -> "Csr | Csc | Dense | Columns":
    """Return the reader for `element`: an HDF5 or zarr group or array, an anndata backed matrix, or a matrix in memory.

    ValueError where it is none of these.
    """
    from anndata.abc import CSCDataset, CSRDataset  # here, for what it costs to import

    if isinstance(element, Csr | Csc | Dense | Columns):
        return element
    if isinstance(element, CSRDataset | CSCDataset):
        element = element.group
    if sparse.issparse(element):
        element = element if element.format in ("csr", "csc") else element.tocsr()
        parts, kind, shape = (element.data, element.indices, element.indptr), element.format, element.shape
    elif hasattr(element, "keys") and hasattr(element, "attrs"):
        kind = element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "unknown"))
        if not str(kind).startswith(("csr", "csc")):
            raise ValueError(f"a matrix of encoding {kind!r} cannot be read: only csr_matrix, csc_matrix and array can")
        shape = element.attrs["shape"] if "shape" in element.attrs else element.attrs["h5sparse_shape"]
        for name in ("data", "indices"):
            trust.check_chunks(element[name], name)
        trust.check_stored(element["indptr"], "indptr")
        parts = element["data"], element["indices"], element["indptr"][:]
    elif len(getattr(element, "shape", ())) == 2:
        if hasattr(element, "attrs"):
            trust.check_chunks(element, "the matrix")
        return Dense(element)
    else:
        raise ValueError(f"a {type(element).__name__} is not a matrix of cells x genes")
    return (Csr if str(kind).startswith("csr") else Csc)(*parts, (int(shape[0]), int(shape[1])))


class Csr:
    """A matrix stored by cell; `data` and `indices` need only give slices."""

    def __init__(self, data: Any, indices: Any, indptr: np.ndarray, shape: tuple[int, int]):
        self.data, self.indices, self.shape = data, indices, shape
        self.indptr = np.asarray(indptr, np.int64)
        _check_indptr(self.indptr, shape[0], indices.shape[0], data.shape[0])

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows `start` to `stop`, sorted, without duplicates and stored zeros, in the dtype of the source."""
        low, high = self.indptr[start], self.indptr[stop]
        data, indices = np.array(self.data[low:high]), np.array(self.indices[low:high])  # a copy: changed in place
        return _canonical(data, indices, self.indptr[start : stop + 1] - low, (stop - start, self.shape[1]))

    def sample(self) -> np.ndarray:
        """Return some of the stored values, from places spread over the matrix."""
        return np.concatenate([self.data[low:high] for low, high in _spread(self.data.shape[0], SAMPLE)])

    def close(self) -> None:
        """Nothing to let go of."""


class Csc(Csr):
    """A matrix stored by gene, turned into a temporary file at the first read."""

    def __init__(self, data: Any, indices: Any, indptr: np.ndarray, shape: tuple[int, int]):
        super().__init__(data, indices, indptr, shape[::-1])
        self.shape = shape

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows `start` to `stop`, as `Csr.read`."""
        file, indptr = self._turned
        records = _load(file, self._record, indptr[start], indptr[stop])
        pointers = indptr[start : stop + 1] - indptr[start]
        return _canonical(records["value"].copy(), records["gene"].copy(), pointers, (stop - start, self.shape[1]))

    def close(self) -> None:
        """Delete the temporary file."""
        if "_turned" in self.__dict__:
            self.__dict__.pop("_turned")[0].close()

    @property
    def _record(self) -> np.dtype:
        return np.dtype([("cell", np.int32), ("gene", np.int32), ("value", self.data.dtype)])

    @cached_property
    def _turned(self) -> tuple[Any, np.ndarray]:
        """The open temporary file of records sorted by cell then gene, and where each cell begins in it."""
        per_cell = np.zeros(self.shape[0], np.int64)
        for low, high in _blocks(self.indices.shape[0], BLOCK):
            per_cell += np.bincount(_inside(self.indices[low:high], self.shape[0]), minlength=self.shape[0])
        indptr = np.concatenate([[0], np.cumsum(per_cell)])
        firsts = np.unique(np.searchsorted(indptr[:-1], np.arange(0, max(indptr[-1], 1), BUCKET)))  # cells of a bucket
        file = tempfile.TemporaryFile(prefix="scfm-by-cell-")  # noqa: SIM115
        try:
            self._scatter(file, firsts, indptr[firsts].copy())
            for low, high in zip(indptr[firsts], np.append(indptr[firsts[1:]], indptr[-1]), strict=True):
                records = _load(file, self._record, low, high)
                _store(file, records[np.argsort(records["cell"], kind="stable")], low)
            file.flush()
        except BaseException as error:
            file.close()
            if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            size = f"{indptr[-1] * self._record.itemsize / 2**30:.1f} GiB in {tempfile.gettempdir()}"
            text = f"stored by gene (CSC), it needs a temporary file of {size}: set TMPDIR to a folder with more room"
            raise OSError(text) from error
        return file, indptr

    def _scatter(self, file: Any, firsts: np.ndarray, ends: np.ndarray) -> None:
        """Append every entry to its bucket of cells; `ends`: where each bucket is to be written next, moved along."""
        for low, high in _blocks(self.data.shape[0], BLOCK):
            records = np.empty(high - low, self._record)
            records["cell"], records["value"] = self.indices[low:high], self.data[low:high]
            first = np.searchsorted(self.indptr, low, "right") - 1
            last = np.searchsorted(self.indptr, high, "left")
            lengths = np.diff(np.clip(self.indptr[first : last + 1], low, high))
            records["gene"] = np.repeat(np.arange(first, last, dtype=np.int32), lengths)
            bucket = np.searchsorted(firsts, records["cell"], "right") - 1
            records = records[np.argsort(bucket, kind="stable")]
            sizes = np.bincount(bucket, minlength=len(firsts))
            borders = np.concatenate([[0], np.cumsum(sizes)])
            for i in np.flatnonzero(sizes):
                _store(file, records[borders[i] : borders[i + 1]], ends[i])
            ends += sizes


class Dense:
    """A two-dimensional array, read in blocks of at most `BLOCK` entries."""

    def __init__(self, array: Any):
        self.array, self.shape = array, (int(array.shape[0]), int(array.shape[1]))

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows `start` to `stop`, as `Csr.read`."""
        rows = max(1, BLOCK // max(1, self.shape[1]))
        stored = (getattr(self.array, "chunks", None) or (1,))[0]  # whole chunks, so that none is unpacked twice
        rows -= rows % stored if isinstance(stored, int) and rows > stored else 0
        parts = [_sparse(self._block(start + a, start + b)) for a, b in _blocks(stop - start, rows)]
        return sparse.vstack(parts, "csr") if parts else sparse.csr_matrix((0, self.shape[1]), dtype=self.array.dtype)

    def sample(self) -> np.ndarray:
        """Return some of the values, from places spread over the matrix."""
        rows = max(1, SAMPLE // max(1, self.shape[1]))
        blocks = [_sparse(self._block(a, b)).data for a, b in _spread(self.shape[0], rows)]
        return np.concatenate(blocks)

    def close(self) -> None:
        """Nothing to let go of."""

    def _block(self, start: int, stop: int) -> np.ndarray | sparse.spmatrix:
        block = self.array[start:stop]
        block = block.compute() if hasattr(block, "compute") else block  # dask
        return block if sparse.issparse(block) else np.asarray(block)


class Columns:
    """Some columns of another matrix."""

    def __init__(self, rows: Csr, keep: np.ndarray):
        self.rows, self.keep, self.shape = rows, keep, (rows.shape[0], len(keep))

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return rows `start` to `stop`, as `Csr.read`."""
        return self.rows.read(start, stop)[:, self.keep]

    def sample(self) -> np.ndarray:
        """Return some of the stored values, of these columns."""
        blocks = [self.read(a, b).data for a, b in _spread(self.shape[0], max(1, SAMPLE // max(1, self.shape[1])))]
        return np.concatenate(blocks)

    def close(self) -> None:
        """Let go of the other matrix."""
        self.rows.close()


def _sparse(block: np.ndarray | sparse.spmatrix) -> sparse.csr_matrix:
    """Return a block as CSR; of a dense one in a third of the time that scipy takes."""
    if sparse.issparse(block):
        return sparse.csr_matrix(block)
    full = block != 0
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(full, axis=1))])
    flat = np.flatnonzero(full)
    indices = flat - np.repeat(np.arange(len(block)) * block.shape[1], np.diff(indptr))
    return sparse.csr_matrix((block.ravel()[flat], indices, indptr), shape=block.shape)


def _canonical(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    rows = sparse.csr_matrix((data, _inside(indices, shape[1]), indptr), shape=shape)
    if rows.has_canonical_format or rows.data.dtype.kind not in "bui":
        rows.sum_duplicates()
    else:  # sums of small integers would run over
        dtype, rows.data = rows.data.dtype, rows.data.astype(np.int64)
        rows.sum_duplicates()
        if not rows.nnz or rows.data.max() <= (1 if dtype.kind == "b" else np.iinfo(dtype).max):
            rows.data = rows.data.astype(dtype)
    rows.eliminate_zeros()
    return rows


def _inside(indices: np.ndarray, limit: int) -> np.ndarray:
    if len(indices) and not (indices.min() >= 0 and indices.max() < limit):
        raise ValueError(f"damaged matrix: an index of {indices.min()} or {indices.max()} lies outside 0..{limit - 1}")
    return indices


def _check_indptr(indptr: np.ndarray, rows: int, n_indices: int, n_data: int) -> None:
    if len(indptr) != rows + 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ValueError(f"damaged matrix: indptr has {len(indptr)} entries, not {rows + 1} that begin at 0 and grow")
    if not indptr[-1] == n_indices == n_data:
        raise ValueError(f"damaged matrix: {indptr[-1]} entries by indptr, {n_indices} indices, {n_data} values")


def _blocks(n: int, size: int) -> list[tuple[int, int]]:
    return [(low, min(low + size, n)) for low in range(0, n, size)]


def _spread(n: int, size: int) -> list[tuple[int, int]]:
    return [(low, min(low + size, n)) for low in np.unique(np.linspace(0, max(0, n - size), SAMPLES).astype(int))]


def _load(file: Any, dtype: np.dtype, low: int, high: int) -> np.ndarray:
    file.seek(int(low) * dtype.itemsize)
    return np.frombuffer(file.read(int(high - low) * dtype.itemsize), dtype)


def _store(file: Any, records: np.ndarray, low: int) -> None:
    file.seek(int(low) * records.dtype.itemsize)
    file.write(records.data.cast("B") if records.flags.c_contiguous else records.tobytes())
