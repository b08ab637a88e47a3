"""Batches without end, from a store: Grain reads ahead in threads or processes, one integer is the whole state.

`split` says which cells, `sampler` in which order, `reader` brings them; here they are joined into an iterator.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from data_pipeline.batches import obs
from data_pipeline.batches.reader import BUCKETS, Reader
from data_pipeline.batches.sampler import Eligible, Sampler
from data_pipeline.batches.split import PARTS, select

ENDLESS = 1 << 48  # steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How cells of a store become batches; the keywords of `Loader`.

    Args:
      batch, bag: bags of a global batch (B), cells of a bag (C).
      run, mix, kind: cells of a run and how bags and batches are made of runs, see `sampler.Sampler`.
      by_length: with bag=1, make batches of cells with about as many expressed genes, so that little is padding; they
        are sorted `mix` batches at a time.
      split, part, filter: which cells, see `split.select`; part is train, val, test or all.
      labels: obs columns to ship as class indices.
      unlabelled: words, in lower case, that are no class of theirs but as unknown as a missing value.
      mixture: {study: weight} for every study that has cells here; by default each cell once per epoch.
      buckets, cell_buckets: sizes of P and C to pad to, see `reader.Reader`.
      keep, same: genes that take room in a batch, by default all, and which are one; see `reader.Reader`. [G]
      seed: of the order.
      host, n_hosts: which of equal contiguous shares of each batch is read here.
      threads, prefetch: threads that read, batches that are read ahead.
      workers: processes that read, each with its threads; 0 reads in this process.
    """

    batch: int
    bag: int
    run: int | None = None
    mix: int | None = None
    kind: str = "run"
    by_length: bool = False
    split: Mapping | None = None
    part: str = "train"
    filter: str | None = None
    labels: Sequence[str] = ()
    unlabelled: Sequence[str] = ()
    mixture: Mapping[str, float] | None = None
    buckets: Sequence[int] = BUCKETS
    cell_buckets: Sequence[int] = ()
    keep: np.ndarray | None = None
    same: np.ndarray | None = None
    seed: int = 0
    host: int = 0
    n_hosts: int = 1
    threads: int = 2
    prefetch: int = 4
    workers: int = 0


class Loader:
    """Batches of bags of cells: the fields of `scfm_jax.types.Batch`, and "index", the cells' rows in the store.

    The batch of a step is a function of the options alone: not of the hosts, threads or processes that read it.

    Args:
      store: an open store.
      options: keywords of `Options`.

    Attributes:
      options: the same as `Options`.
      genes: vocabulary of the store; `len(genes)` is the id of the padding.
      classes: {column: class names}, "study" among them.
      n_cells: cells of the part.
      epoch_steps: steps in which each cell has come once, rounded up.
      split_report: how the parts were cut and what is in them, JSON-able.

    Raises ValueError in one line for options that do not fit each other or the store.
    """

    def __init__(self, store: Any, **options: Any):
        self._store, self.options = store, Options(**options)
        o = self.options
        self.genes: list[str] = store.genes
        masks, self.split_report = select(store, o.split, o.filter)
        eligible = _part(store, masks, o.part)
        self.n_cells = int(eligible.places[-1])
        order = {"kind": o.kind, "batch": o.batch, "bag": o.bag, "run": o.run, "mix": o.mix, "seed": o.seed}
        if o.kind == "neighbours":
            order["nearest"] = _nearest(store, eligible, o.bag)
        self._reader = Reader(store, o.labels, o.buckets, o.cell_buckets, o.keep, o.same, o.unlabelled)
        self.classes = self._reader.classes
        if o.by_length:
            order["lengths"] = self._reader.lengths
        self._whole = self._sampler = Sampler(eligible, **order)
        if o.mixture is not None:
            self._sampler = Sampler(eligible, weights=_weights(store, eligible, o.mixture), **order)
        self.epoch_steps = self._sampler.epoch_steps
        if not 0 <= o.host < o.n_hosts or o.batch % o.n_hosts:
            raise ValueError(
                f"batch={o.batch}, host {o.host} of {o.n_hosts}: hosts count from 0 and must divide the batch"
            )
        self._share = slice(o.host * o.batch // o.n_hosts, (o.host + 1) * o.batch // o.n_hosts)
        if o.threads < 0 or o.prefetch < 1 or o.workers < 0:
            raise ValueError(f"threads={o.threads}, prefetch={o.prefetch}, workers={o.workers}: at least 0, 1 and 0")

    def __reduce__(self):
        return _rebuilt, (self._store, self.options)

    def batch(self, step: int, whole: bool = False) -> dict:
        """Read this host's share of one batch: of the endless order, or of the `whole` pass of `epoch_batches`."""
        rows = self._whole.pass_rows(step) if whole else self._sampler.rows(step)
        return self._reader.batch(rows, self._share)

    def iter(self, start_state: Mapping | None = None) -> "BatchIterator":
        """Return an endless iterator over batches, from a state of `BatchIterator.get_state` on."""
        batches = BatchIterator(lambda step: self._ahead(_Batches(self, step, ENDLESS)), self._sampler.signature)
        if start_state is not None:
            batches.set_state(start_state)
        return batches

    def epoch_batches(self) -> Iterator[dict]:
        """Yield every cell of the part exactly once, the last batch padded; always in the same order, for validation.

        Studies are mixed as in training (but without its weights), so the first batches are a fair sample.
        """
        with contextlib.closing(self._ahead(_Batches(self, 0, self._whole.epoch_steps, whole=True))) as batches:
            yield from batches

    def _ahead(self, source: "_Batches") -> grain.DatasetIterator:
        """Return Grain's iterator, which reads ahead in threads and processes."""
        o = self.options
        reading = grain.ReadOptions(num_threads=o.threads, prefetch_buffer_size=max(o.prefetch, o.threads))
        batches = grain.MapDataset.source(source).to_iter_dataset(reading)
        if o.workers:
            _let_grain_read_its_flags()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=o.workers))
        return iter(batches)


class BatchIterator:
    """An endless iterator whose state is the next step. Close it after use; a `next` after that goes on from there."""

    def __init__(self, open_at: Callable[[int], grain.DatasetIterator], signature: str):
        self._open_at, self._signature = open_at, signature
        self._step = 0
        self._batches: grain.DatasetIterator | None = None

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict:
        try:
            if self._batches is None:
                self._batches = self._open_at(self._step)
            batch = next(self._batches)
        except BaseException:  # also a signal handler's: what was read ahead no longer fits the step
            self.close()
            raise
        self._step += 1
        return batch

    def get_state(self) -> dict:
        """Return the state, JSON-able: the step that comes next, and the order it belongs to."""
        return {"step": self._step, "order": self._signature}

    def set_state(self, state: Mapping) -> None:
        """Go to a state; ValueError where it belongs to another order of cells (other options, another store)."""
        if state.get("order", self._signature) != self._signature:
            raise ValueError(
                f"loader state of order {state['order']!r}, but this one is {self._signature!r}: resume with the same "
                "store and data options, or drop 'order' from the state to go on with another order"
            )
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """Let go of threads, processes and what was read ahead."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Batches:
    """The batches of a loader from `start` to `stop`, as Grain's random access source; pickled to worker processes."""

    def __init__(self, loader: Loader, start: int, stop: int, whole: bool = False):
        self._loader, self._start, self._stop, self._whole = loader, start, stop, whole

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, index: int) -> dict:
        return self._loader.batch(self._start + index, self._whole)


def _rebuilt(store: Any, options: Options) -> Loader:
    """Make a loader again, in another process."""
    return Loader(store, **vars(options))


def _let_grain_read_its_flags() -> None:
    """Give Grain's own absl flags their defaults where no command has parsed flags; nobody else's are touched.

    Its worker processes read them, and absl refuses to tell a flag that was not parsed.
    """
    if not flags.FLAGS.is_parsed():
        for name in (name for name in flags.FLAGS if name.startswith("grain_")):
            flags.FLAGS[name].present = 1


def _part(store, masks: list[list[np.ndarray]], part: str) -> Eligible:
    """Return the cells of a part; ValueError where there are none."""
    if part not in (*PARTS, "all"):
        raise ValueError(f"part {part!r}: no such part; there are {', '.join(PARTS)} and all")
    chosen = [np.logical_or.reduce(m) for m in zip(*masks, strict=True)] if part == "all" else masks[PARTS.index(part)]
    if not any(mask.any() for mask in chosen):
        raise ValueError(f"part {part!r} has no cell; change the split or the filter")
    return Eligible.of(chosen, [study.group_starts for study in obs.studies(store)])


def _weights(store, eligible: Eligible, mixture: Mapping[str, float]) -> list[float]:
    """Return the weight of each study by index; ValueError for names, weights or studies that do not fit."""
    cells = dict(zip(store.studies, np.diff(eligible.studies).tolist(), strict=True))
    for name, weight in mixture.items():
        if name not in cells:
            raise ValueError(f"mixture: no study {name!r} in the store; there are {', '.join(cells)}")
        if not weight >= 0 or (weight > 0 and not cells[name]):
            why = "it has no cell in this part" if weight > 0 else "a weight is 0 or more"
            raise ValueError(f"mixture: {name}={weight!r}: {why}")
    if missing := [name for name, n in cells.items() if n and name not in mixture]:
        raise ValueError(f"mixture: no weight for {', '.join(missing)}; give 0 to leave a study out")
    if not any(mixture.values()):
        raise ValueError("mixture: all weights are 0; give one study a weight")
    return [float(mixture.get(name, 0)) for name in cells]


def _nearest(store, eligible: Eligible, bag: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from centres [n] to their bags, nearest eligible cell first, -1 padded. [n, bag]"""
    studies = obs.studies(store)
    offsets = store.offsets
    for study, n in zip(studies, np.diff(eligible.studies), strict=True):
        if n and study.neighbours is None:
            raise ValueError(
                f"kind 'neighbours': study {study.name!r} has no positions; filter it out (study != {study.name!r})"
            )
        if n and study.neighbours.shape[1] < bag:
            raise ValueError(
                f"bag={bag}: the store keeps {study.neighbours.shape[1]} neighbours of a cell; ask for no more"
            )

    def nearest(centres: np.ndarray) -> np.ndarray:
        bags = np.full((len(centres), bag), -1, np.int64)
        study = np.where(centres < 0, -1, np.searchsorted(offsets, centres, side="right") - 1)
        for s in np.unique(study[study >= 0]).tolist():
            of_study = np.flatnonzero(study == s)
            near = studies[s].neighbours[centres[of_study] - offsets[s]].astype(np.int64)
            rows = np.where(near < 0, -1, near + offsets[s])
            rows[~eligible.contains(rows)] = -1
            order = np.argsort(rows < 0, axis=1, kind="stable")[:, :bag]
            bags[of_study] = np.take_along_axis(rows, order, axis=1)
        return bags

    return nearest
