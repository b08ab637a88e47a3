"""From rows of a store to a batch: ranges read through TensorStore, ragged counts laid into padded arrays.

P is the smallest bucket that holds the longest cell of the *global* batch, found from index pointers in memory, so
every host ships the same shapes to the device without asking the others.
"""

import sys
import threading
from collections.abc import Sequence

import numpy as np

from data_pipeline.batches import obs
from data_pipeline.files import panels
from data_pipeline.store import spatial

BUCKETS = (256, 512, 1024, 2048, 4096, 8192, 16384)
ROUND = 128  # the last bucket is the longest cell of the store, rounded up to a multiple of this
GAP = 1 << 14  # ranges that lie closer than this many counts are read as one: half a chunk of the store
SPARE = 16  # arrays that are kept for later use, more than are ever read ahead as a rule
_LONE = [object()]
UNUSED = sys.getrefcount(_LONE[0])  # how many references are counted of what only a list refers to


class Reader:
    """Reads cells of an open store by their row (number in the store: the study's offset + row in the study).

    Args:
      store: an open store.
      labels: obs columns to give as class indices. unlabelled: words of theirs that are no class, in lower case.
      buckets: sizes of P. The last one is always the longest cell of the store, so no gene is ever dropped.
      keep: genes that are wanted; the others take no room in a batch. How many each cell has of them is counted in one
        pass over the store. All, if left out. [G]
      same: the gene that each gene is, where several are one and their counts are summed; else its own number. [G]
      cell_buckets: sizes of C to cut batches to, where all bags leave the rest empty.

    Attributes:
      classes: {column: class names}, "study" among them.
      offsets: row of the first cell of each study, and the number of cells. [studies + 1]
    """

    def __init__(
        self,
        store,
        labels: Sequence[str] = (),
        buckets: Sequence[int] = BUCKETS,
        cell_buckets: Sequence[int] = (),
        keep: np.ndarray | None = None,
        same: np.ndarray | None = None,
        unlabelled: Sequence[str] = (),
    ):
        self._studies = obs.studies(store)
        self._padding = len(store.genes)
        self.offsets: np.ndarray = store.offsets
        nnz = np.concatenate([np.diff(s.indptr) for s in self._studies])
        self._first = np.concatenate([[0], np.cumsum(nnz)])  # where each cell's counts begin, all studies in turn
        self._keep = None if keep is None or keep.all() else keep
        self._same = None if same is None or np.array_equal(same, np.arange(len(same))) else same
        self._lengths = nnz if self._keep is None else np.concatenate([s.numbers(self._keep) for s in self._studies])
        longest = max(ROUND, -(-int(self._lengths.max()) // ROUND) * ROUND)
        self._buckets = [b for b in _checked_sizes("buckets", buckets) if b < longest] + [longest]
        self._memory = _Memory()
        self._cell_buckets = _checked_sizes("cell_buckets", cell_buckets)
        self.classes = obs.class_names(store, labels, unlabelled)
        self._labels = {
            name: np.concatenate([obs.class_codes(s, name, self.classes[name]) for s in self._studies])
            for name in labels
        }
        self._panels = panels.rows(self._studies)
        self._coords = None
        if any(s.coords is not None for s in self._studies):
            self._coords = np.full((2, int(self.offsets[-1]), 2), np.nan, np.float32)  # as they are, in their field
            for start, study in zip(self.offsets, self._studies, strict=False):
                if study.coords is not None:
                    field = np.repeat(np.arange(len(study.groups)), np.diff(study.group_starts))
                    cells = slice(start, start + study.n_cells)
                    self._coords[:, cells] = study.coords, spatial.in_fields(study.coords, field)

    def batch(self, rows: np.ndarray, share: slice = slice(None)) -> dict:
        """Read a share of the global batch of these rows, -1 in the padding; sizes are those of the whole. [B, C]

        Returns the fields of `scfm_jax.types.Batch` and "index", the rows. Raises OSError where the store is damaged.
        """
        here = rows >= 0
        cells = 1 + int(np.flatnonzero(here.any(axis=0)).max(initial=0))
        rows = rows[:, : min((c for c in self._cell_buckets if c >= cells), default=rows.shape[1])]
        longest = self.lengths(rows[rows >= 0]).max(initial=0)
        width = min(b for b in self._buckets if b >= longest)
        rows = rows[share]
        here = rows >= 0
        genes, counts = self._counts(rows.reshape(-1), width)
        coords = np.full((2, *rows.shape, 2), np.nan, np.float32)
        if self._coords is not None:
            coords[:, here] = self._coords[:, rows[here]]
        study = np.where(here, np.searchsorted(self.offsets, rows, side="right") - 1, 0).astype(np.int32)
        return {
            "genes": genes.reshape(*rows.shape, width),
            "counts": counts.reshape(*rows.shape, width),
            "cell_mask": here,
            "study": study,
            "panel": study if self._panels is None else np.where(here, self._panels[rows], 0),
            "coords": coords[0],
            "field_coords": coords[1],
            "labels": {name: np.where(here, codes[rows], np.int32(-1)) for name, codes in self._labels.items()},
            "index": rows,
        }

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of expressed genes of these rows, from memory."""
        return self._lengths[rows]

    def _counts(self, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (genes int32, counts float32) of these rows, padded. [n, P]"""
        at = np.flatnonzero(rows >= 0)
        at = at[np.argsort(rows[at], kind="stable")]
        rows_read = rows[at]
        starts, reads = self._request(np.unique(rows_read))
        genes = self._memory.array((len(rows), width), np.int32, self._padding)
        counts = self._memory.array((len(rows), width), np.float32, 0)
        which = np.searchsorted(starts, rows_read, side="right") - 1
        base = self._first[starts[which]]
        begins, ends = self._first[rows_read] - base, self._first[rows_read + 1] - base
        last = -1
        cells = zip(at.tolist(), which.tolist(), begins.tolist(), ends.tolist(), strict=True)
        for i, k, begin, end in cells:  # slice by slice is faster than one masked or indexed assignment
            if k != last:
                (ids, values), reads[k], last = reads[k].result(), None, k
            if self._keep is None and self._same is None:
                genes[i, : end - begin], counts[i, : end - begin] = ids[begin:end], values[begin:end]
                continue
            kept, sums = self._wanted(ids[begin:end], values[begin:end])
            genes[i, : len(kept)], counts[i, : len(kept)] = kept, sums
        return genes, counts

    def _wanted(self, ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (genes, counts) of a cell: those to keep, those that are one gene summed."""
        if self._keep is not None:
            wanted = self._keep[ids]
            ids, values = ids[wanted], values[wanted]
        if self._same is None:
            return ids, values
        genes, place = np.unique(self._same[ids], return_inverse=True)
        return genes, np.bincount(place, values, len(genes))

    def _request(self, rows: np.ndarray) -> tuple[np.ndarray, list]:
        """Begin to read sorted, distinct rows in as few ranges as is sensible: (first row of each range, the reads)."""
        if not len(rows):
            return rows, []
        study = np.searchsorted(self.offsets, rows, side="right") - 1
        between = self._first[rows[1:]] - self._first[rows[:-1] + 1]
        cut = 1 + np.flatnonzero((between > GAP) | (study[1:] != study[:-1]))
        starts, stops = rows[np.r_[0, cut]], rows[np.r_[cut - 1, -1]] + 1
        reads = []
        for s, start, stop in zip(study[np.r_[0, cut]].tolist(), starts.tolist(), stops.tolist(), strict=True):
            offset = int(self.offsets[s])
            reads.append(self._studies[s].read(start - offset, stop - offset))
        return starts, reads


class _Memory:
    """Arrays in memory that is used again once nobody refers to it: new pages cost far more than filling old ones."""

    def __init__(self):
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...], dtype: type, value: float) -> np.ndarray:
        """Return an array full of `value`, unlike any that is still in use."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._lock:
            free = [i for i in range(len(self._buffers)) if sys.getrefcount(self._buffers[i]) == UNUSED]
            fits = [i for i in free if self._buffers[i].nbytes >= size]
            if fits:
                buffer = self._buffers[fits[0]]
                for i in reversed(fits[SPARE:]):
                    del self._buffers[i]
            else:
                self._buffers = [b for i, b in enumerate(self._buffers) if i not in free]
                self._buffers.append(buffer := np.empty(size, np.uint8))
        array = buffer[:size].view(dtype).reshape(shape)  # refers to the buffer, and so does all that is made of it
        array.fill(value)
        return array


def _checked_sizes(name: str, sizes: Sequence[int]) -> list[int]:
    """Return the sizes in ascending order; ValueError for one that is no positive whole number."""
    for size in sizes:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={tuple(sizes)!r}: {size!r} is not a positive whole number")
    return sorted(set(sizes))
