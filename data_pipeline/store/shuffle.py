"""Put the rows of a sparse matrix larger than memory in another order, in two passes over the disk.

Rows arrive in the order of the source file. Each goes to the bucket that holds its target position; buckets are plain
files. Then one bucket after the other is read, sorted in memory and handed on. What is in memory is one bucket.
"""

import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

BUCKET_NNZ = 1 << 23
# A bucket is a row of blocks: (rows, counts), then target and length of each row, gene and value of each count.
LAYOUT = (np.int64, np.int64, np.int32, np.int32, np.uint32)


class Shuffle:
    """Takes rows in any order with their target positions, gives them back sorted by target.

    Positions that no row is sent to are left out, so a filter needs no second pass over the source.
    """

    def __init__(self, folder: pathlib.Path, n_columns: int):
        folder.mkdir(parents=True)
        self._folder = folder
        self._n_columns = n_columns
        self._rows_per_bucket = 0

    def add(self, target: np.ndarray, rows: sp.csr_matrix) -> None:
        """Keep `rows` (counts below 2**32) for positions `target` [len(rows)]."""
        if not self._rows_per_bucket:
            self._rows_per_bucket = max(1, BUCKET_NNZ * rows.shape[0] // max(rows.nnz, rows.shape[0]))
        bucket = target // self._rows_per_bucket
        order = np.argsort(bucket, kind="stable")
        rows, target, bucket = rows[order], target[order], bucket[order]
        borders = np.flatnonzero(np.diff(bucket, prepend=-1, append=-1))
        for start, stop in itertools.pairwise(borders):
            part = rows[start:stop]
            columns = (
                [len(part.indptr) - 1, part.nnz],
                target[start:stop],
                np.diff(part.indptr),
                part.indices,
                part.data,
            )
            with open(self._folder / str(bucket[start]), "ab") as file:
                for values, dtype in zip(columns, LAYOUT, strict=True):
                    file.write(np.ascontiguousarray(values, dtype).data)

    @property
    def buckets(self) -> int:
        """Number of buckets that have rows."""
        return len(list(self._folder.iterdir()))

    def sorted(self) -> Iterator[sp.csr_matrix]:
        """Yield the rows in the order of their targets, a bucket at a time; its file is removed once it is read."""
        for path in sorted(self._folder.iterdir(), key=lambda path: int(path.name)):
            target, lengths, indices, data = _load(path)
            path.unlink()
            indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            rows = sp.csr_matrix((data, indices, indptr), shape=(len(target), self._n_columns))
            yield rows[np.argsort(target)]
        self._folder.rmdir()


def _load(path: pathlib.Path) -> list[np.ndarray]:
    """Return the columns of a bucket, its blocks one after the other."""
    blocks = []
    with open(path, "rb") as file:
        while len(sizes := np.fromfile(file, LAYOUT[0], 2)):
            rows, nnz = sizes
            counts = (rows, rows, nnz, nnz)
            blocks.append([np.fromfile(file, dtype, n) for dtype, n in zip(LAYOUT[1:], counts, strict=True)])
    return [np.concatenate(column) for column in zip(*blocks, strict=True)]
