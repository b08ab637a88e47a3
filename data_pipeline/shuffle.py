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
            with open(self._folder / str(bucket[start]), "ab") as file:
                for values in (target[start:stop], np.diff(part.indptr), part.indices, part.data.astype(np.uint32)):
                    np.save(file, values)

    def sorted(self) -> Iterator[sp.csr_matrix]:
        """Yield the rows in the order of their targets, a bucket at a time; its file is removed once it is read."""
        for path in sorted(self._folder.iterdir(), key=lambda path: int(path.name)):
            parts = []
            with open(path, "rb") as file:
                while file.peek(1):
                    parts.append([np.load(file) for _ in range(4)])
            path.unlink()
            target, lengths, indices, data = (np.concatenate(column) for column in zip(*parts, strict=True))
            del parts
            indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            rows = sp.csr_matrix((data, indices, indptr), shape=(len(target), self._n_columns))
            yield rows[np.argsort(target)]
        self._folder.rmdir()
