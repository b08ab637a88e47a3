"""Which cells make up step k: index arithmetic on (seed, epoch), nothing is read.

Cells lie in the store permuted within their group, so a *run* of consecutive eligible cells is a random draw from it.
Every pass over a study cuts each of its units (its groups; the whole study where a bag is one cell) into runs whose
borders are shifted by a seeded offset, wrapping around inside the unit: each cell once per pass, the number of runs
constant. The random order of the runs spreads every unit evenly over the pass and every study evenly over the epoch, so
that a batch of few runs has the mixture of the whole (stratified sampling). Where a bag is one cell, runs are also
dealt over `mix` batches in turn, which costs little: the chunks they lie in stay in TensorStore's cache. They can be
dealt by length instead, so that the cells of a batch have about as many expressed genes and little of it is padding:
the cells of `mix` batches are sorted, cut, and the batches put in random order. Epochs follow each other without end or
padding, and no cell of the next comes before the last of one is drawn; the state of all this is one integer, the step.
"""

import dataclasses
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np

KINDS = ("run", "study", "neighbours")


@dataclasses.dataclass(frozen=True)
class Eligible:
    """The cells that may be drawn, in store order. A cell has a row (number in the store) and a place (rank in here).

    Attributes:
      starts: first row of each stretch of consecutive eligible rows. [stretches]
      places: its place; the last entry is the number of eligible cells. [stretches + 1]
      groups: the place where each group starts, all groups of all studies in turn, and the end. [groups + 1]
      studies: the same for studies. [studies + 1]
    """

    starts: np.ndarray
    places: np.ndarray
    groups: np.ndarray
    studies: np.ndarray

    @classmethod
    def of(cls, masks: Sequence[np.ndarray], group_starts: Sequence[np.ndarray]) -> "Eligible":
        """Build from one bool mask and one array of group borders per study."""
        starts, lengths, groups, first, place = [], [], [], 0, 0
        studies = [0]
        for mask, borders in zip(masks, group_starts, strict=True):
            flips = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
            starts.append(first + flips[::2])
            lengths.append(flips[1::2] - flips[::2])
            groups.append(place + np.concatenate([[0], np.cumsum(mask)])[borders[:-1]])
            first, place = first + len(mask), place + int(mask.sum())
            studies.append(place)
        places = np.cumsum(np.concatenate([[0], *lengths]))
        return cls(np.concatenate(starts), places, np.concatenate([*groups, [place]]), np.array(studies))

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the store rows of these places."""
        stretch = np.searchsorted(self.places, places, side="right") - 1
        return self.starts[stretch] + places - self.places[stretch]

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """Return which of these store rows are eligible."""
        stretch = np.maximum(np.searchsorted(self.starts, rows, side="right") - 1, 0)
        offset = rows - self.starts[stretch]
        return (offset >= 0) & (offset < self.places[stretch + 1] - self.places[stretch])


class Sampler:
    """The order of cells: `rows(step)` is the global batch of a step, the same on every host.

    Args:
      eligible: the cells to draw from.
      kind: "run", a bag is a run of one group (with bag=1, a run of `run` cells makes `run` bags);
        "study", a bag is bag/run runs of a study, of as many groups as can be; "neighbours", a bag is a cell and its
        nearest eligible neighbours, and the `run` cells of a run are the centres of `run` bags.
      batch, bag: bags of a batch, cells of a bag.
      run: cells of a run; by default the bag, at most 64 where bags are cut from runs or runs from bags, 1 centre.
      mix: with bag=1, how many batches share their runs, taking run/mix cells of each; 4 by default, or 1. By length it
        is how many are sorted together, 64 by default.
      seed: of the order.
      weights: of each study; by default each cell is drawn once per epoch.
      nearest: rows [n] -> their bags of rows, -1 padded [n, bag]; for kind "neighbours".
      lengths: rows [n] -> their expressed genes [n]; deals cells by length.

    Attributes:
      epoch_records: records (a bag, or a run that makes several bags) of an epoch.
      epoch_steps: batches of an epoch, the last one counted whole; in the endless order it runs into the next epoch.
      signature: a text that differs where the order differs.
    """

    def __init__(
        self,
        eligible: Eligible,
        *,
        kind: str,
        batch: int,
        bag: int,
        run: int | None = None,
        mix: int | None = None,
        seed: int = 0,
        weights: Sequence[float] | None = None,
        nearest: Callable[[np.ndarray], np.ndarray] | None = None,
        lengths: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        run = _checked_run(kind, batch, bag, run)
        self._mix = _checked_mix(mix, run, dealt=bag == 1 and kind == "run", sorts=lengths is not None)
        single = bag == 1 or kind == "neighbours"
        self._eligible, self._seed, self._run = eligible, seed, run
        self._shape = (batch, bag)
        self._nearest = nearest if kind == "neighbours" else None
        self._lengths = lengths
        self._runs_per_record = bag // run if kind == "study" else 1
        self._per_batch = batch // run if single else batch

        borders = np.unique(eligible.studies if single else eligible.groups)
        self._unit_start, self._unit_size = borders[:-1], np.diff(borders)
        self._unit_runs = -(-self._unit_size // run)
        self._study_units = np.searchsorted(borders, eligible.studies)
        runs = np.diff(np.concatenate([[0], np.cumsum(self._unit_runs)])[self._study_units])
        self._records = -(-runs // self._runs_per_record)
        self._quotas = self._records if weights is None else _quotas(np.asarray(weights, float), self._records)
        self.epoch_records = int(self._quotas.sum())
        self.epoch_steps = -(-self.epoch_records // self._per_batch)

        parts = [eligible.starts, eligible.places, eligible.groups, eligible.studies, self._quotas]
        crc = zlib.crc32(b"".join(np.ascontiguousarray(a, "<i8").tobytes() for a in parts))
        self.signature = f"{kind}-{batch}x{bag}-run{run}-{'sort' if lengths else 'mix'}{self._mix}-seed{seed}-{crc:08x}"
        self._epochs: dict[int, np.ndarray] = {}
        self._sorted: dict[tuple[int, bool], np.ndarray] = {}
        self._lock = threading.Lock()

    def rows(self, step: int) -> np.ndarray:
        """Return the store rows of the endless order's batch `step`, -1 in the padding. [B, C]"""
        window, turn = divmod(step, self._mix)
        if self._lengths:
            return self._by_length(window, endless=True)[turn]
        return self._cells(self._records_of(window, endless=True)[0], turn, self._mix)

    def pass_rows(self, step: int) -> np.ndarray:
        """Return the store rows of batch `step` of the first epoch alone, whose last batch is padded. [B, C]"""
        if self._lengths:
            window, turn = divmod(step, self._mix)
            return self._by_length(window, endless=False)[turn]
        records = self._epoch(0)[step * self._per_batch : (step + 1) * self._per_batch]
        return self._cells(self._whole_batches(records))

    def _records_of(self, window: int, endless: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return (records, epoch of each) of `mix` batches: of the endless order, or of the first epoch alone."""
        runs = self._per_batch * self._mix
        if not endless:
            records = self._whole_batches(self._epoch(0)[window * runs : (window + 1) * runs])
            return records, np.zeros(len(records), int)
        epochs, places = np.divmod(np.arange(window * runs, (window + 1) * runs), self.epoch_records)
        return np.concatenate([self._epoch(e)[places[epochs == e]] for e in np.unique(epochs).tolist()]), epochs

    def _whole_batches(self, records: np.ndarray) -> np.ndarray:
        """Add empty records up to a multiple of what a batch has."""
        return np.pad(records, [(0, -len(records) % self._per_batch), (0, 0), (0, 0)])

    def _by_length(self, window: int, endless: bool) -> np.ndarray:
        """Return the rows of `mix` batches of bags of one cell, those of a batch of similar length. [batches, B, 1]

        Batches are in random order, but those of an epoch before those of the next. Padding is spread over them.
        """
        with self._lock:
            cached = self._sorted.get((window, endless))
        if cached is not None:
            return cached
        records, epochs = self._records_of(window, endless)
        rows, epochs = self._cells(records)[:, 0], np.repeat(epochs, self._run)
        rng = np.random.default_rng((self._seed, 0, window, 1))
        length, empty = self._lengths(rows), rows < 0
        length[empty] = rng.choice(length[~empty], empty.sum())
        order = np.lexsort((rng.random(len(rows)), length, epochs))
        rows, epochs = (x[order].reshape(-1, *self._shape) for x in (rows, epochs))
        rows = rows[np.lexsort((rng.random(len(rows)), epochs[:, 0, 0] + epochs[:, -1, 0]))]
        with self._lock:
            last = {key: value for key, value in self._sorted.items() if key == (window - 1, endless)}
            self._sorted = last | {(window, endless): rows}
        return rows

    def _cells(self, records: np.ndarray, turn: int = 0, turns: int = 1) -> np.ndarray:
        """Return the rows of the bags of these records [n, runs, 3], or of one turn of dealing them. [B, C]"""
        unit, first, count = np.moveaxis(records, -1, 0)[..., None]
        dealt = self._run // turns
        nth = np.arange(turn * dealt, (turn + 1) * dealt)
        places = self._unit_start[unit] + (first + nth) % self._unit_size[unit]
        rows = np.where(nth < count, self._eligible.rows(places), -1)  # [n, runs, run]
        if self._nearest:
            return self._nearest(rows.reshape(-1))
        rows = rows.reshape(-1, self._shape[1])
        if self._runs_per_record > 1:  # short runs leave holes: the cells of a bag come first
            rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)
        return rows

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return the records of an epoch in their order, (unit, first cell, cells) of each run. [n, runs, 3]"""
        with self._lock:
            if epoch not in self._epochs:
                drawn = [self._draws(s, epoch * q, q) for s, q in enumerate(self._quotas.tolist()) if q]
                order = _evenly(self._quotas, np.random.default_rng((self._seed, 0, epoch)))
                last = {e: records for e, records in self._epochs.items() if abs(e - epoch) == 1}
                self._epochs = last | {epoch: np.concatenate(drawn)[order]}
            return self._epochs[epoch]

    def _draws(self, study: int, first: int, n: int) -> np.ndarray:
        """Return the n records of a study from its `first` one on, of its endless sequence of passes."""
        size = int(self._records[study])
        passes = range(first // size, (first + n - 1) // size + 1)
        return np.concatenate([self._pass(study, p)[max(first - p * size, 0) : first + n - p * size] for p in passes])

    def _pass(self, study: int, number: int) -> np.ndarray:
        """Return all records of a study in the order of its pass `number`."""
        units = np.arange(self._study_units[study], self._study_units[study + 1])
        size, runs = self._unit_size[units], self._unit_runs[units]
        rng = np.random.default_rng((self._seed, 1 + study, number))
        shift = np.repeat(rng.integers(0, size), runs)
        nth = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
        unit, size = np.repeat(units, runs), np.repeat(size, runs)
        count = np.minimum(self._run, size - nth * self._run)
        table = np.stack([unit, (shift + nth * self._run) % size, count], axis=-1)
        table = table[np.lexsort((rng.random(len(table)), unit))][_evenly(runs, rng)]
        table = np.pad(table, [(0, -len(table) % self._runs_per_record), (0, 0)])
        return table.reshape(-1, self._runs_per_record, 3)


def _evenly(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an order of sum(sizes) things, laid out stratum by stratum, that spreads each stratum over the whole."""
    size = np.repeat(sizes, sizes)
    nth = np.arange(len(size)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.argsort((nth + np.repeat(rng.random(len(sizes)), sizes)) / size, kind="stable")


def _quotas(weights: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Return the records of each study per epoch in proportion to the weights (largest remainders)."""
    total = int(records[weights > 0].sum())
    exact = weights / weights.sum() * total
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: total - quotas.sum()]] += 1
    return quotas


def _checked_run(kind: str, batch: int, bag: int, run: int | None) -> int:
    """Return the cells of a run; ValueError where the sizes do not fit each other."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: no such kind of bag; there are {', '.join(KINDS)}")
    for name, value in {"batch": batch, "bag": bag, "run": 1 if run is None else run}.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number of at least 1")
    if kind == "neighbours":
        whole, name, run = batch, "batch", run or 1
    elif kind == "study":
        whole, name, run = bag, "bag", run or _divisor(bag)
    elif bag == 1:
        whole, name, run = batch, "batch", run or _divisor(batch)
    else:
        whole, name, run = bag, "bag", run or bag
        if run != bag:
            raise ValueError(f"run={run}: a bag of {bag} cells of one group is one run; leave run out or make it {bag}")
    if whole % run:
        raise ValueError(f"run={run}: must divide {name}={whole}")
    return run


def _checked_mix(mix: int | None, run: int, dealt: bool, sorts: bool) -> int:
    """Return the batches that share their runs; ValueError where it does not fit."""
    if sorts and not dealt:
        raise ValueError("by_length: only bags of one cell, of kind 'run', can be sorted; leave by_length out")
    if mix is None:
        return 64 if sorts else 4 if dealt and run % 4 == 0 else 1
    if not isinstance(mix, int) or mix < 1 or (run % mix and not sorts):
        raise ValueError(f"mix={mix}: must be a whole number that divides run={run}")
    if mix > 1 and not dealt:
        raise ValueError(f"mix={mix}: only bags of one cell can share their runs; leave mix out")
    return mix


def _divisor(n: int) -> int:
    """Return the largest divisor of n up to 64: runs short enough to mix, long enough to read."""
    return next(d for d in range(min(n, 64), 0, -1) if n % d == 0)
