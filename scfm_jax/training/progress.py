"""A run between two steps: everything that outlives a step, and the only thing that is saved.

The arrays are the `TrainState`, the rest (half a window of metrics, the best validation, the position in the data, the
length of metrics.jsonl) is the `Progress`. Both go into each checkpoint, which is why a resumed run repeats, bit by
bit, the parameters and the log of one that was never interrupted.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from scfm_jax.saving import checkpoint
from scfm_jax.saving.together import on_first
from scfm_jax.training import divergence, hardware
from scfm_jax.training.log import Clock, Log
from scfm_jax.training.step import Metrics
from scfm_jax.types import Batch, TrainState

Sums = dict[str, list[float]]
"""{name: [weighted sum, weight]} on the host, in double precision."""


class Program(NamedTuple):
    """A compiled training step for one shape of batch: `step(state, batch) -> (state, metrics)`, and its FLOPs."""

    step: Any
    flops: float


@dataclasses.dataclass
class Progress:
    """What a run knows beside its arrays; JSON-able.

    Attributes:
      step: updates done.
      loader: position in the data after them, as the loader states it.
      window: sums of metrics since the last line of the log.
      evaluated: step of the last validation. best: best value so far of what is monitored. stale: validations since
        then. best_step: of that value.
      skipped: updates in a row that were skipped because they were not finite.
      length: of metrics.jsonl, in bytes. digest: its sha256.
      norm: of the parameters when they were saved. first_norm: of the run's first parameters.
      floors: what tables score in validation, {"metric/table": value}; None where that is not measured.
    """

    step: int = 0
    loader: Any = None
    window: Sums = dataclasses.field(default_factory=dict)
    evaluated: int = 0
    best: float | None = None
    stale: int = 0
    skipped: int = 0
    length: int = 0
    best_step: int | None = None
    digest: str = ""
    norm: float | None = None
    first_norm: float | None = None
    floors: dict[str, float] | None = None


class Trainer:
    """The state on the devices, the progress on the host, and the metrics of the newest step, still on their way.

    Args:
      log: where lines go; None in all processes but the first.
      folder: of the checkpoints. metadata: JSON that is saved with each. keep: how many to keep beside the best.
      log_every: steps of a line. max_skipped: skipped updates in a row to give up after.
    """

    def __init__(
        self,
        state: TrainState,
        progress: Progress,
        log: Log | None,
        *,
        folder: pathlib.Path,
        metadata: Mapping[str, Any],
        keep: int,
        log_every: int,
        max_skipped: int,
    ):
        self.state, self.progress, self.clock = state, progress, Clock()
        self._log, self._folder, self._metadata, self._keep = log, folder, metadata, keep
        self._log_every, self._max_skipped = log_every, max_skipped
        self._newest: tuple[int, Metrics, float] | None = None
        self._saved = progress.step if progress.step else None
        if progress.first_norm is None:
            progress.first_norm = divergence.norm(state.params)

    def advance(self, program: Program, batch: Batch, position: Any) -> None:
        """Dispatch one step, then read the metrics of the one before; `position` is the loader's after `batch`."""
        self.state, metrics = program.step(self.state, batch)
        self.progress.step += 1
        self.progress.loader = position
        before, self._newest = self._newest, (self.progress.step, metrics, program.flops)
        self._read(before)

    def catch_up(self) -> None:
        """Read the metrics of the newest step, too."""
        newest, self._newest = self._newest, None
        self._read(newest)

    def held_against(self, floors: dict[str, float]) -> None:
        """Note what tables score in validation, "metric/table", for good, and log it as "floor/metric/table"."""
        self.progress.floors = floors
        self._write(self.progress.step, {f"floor/{name}": value for name, value in floors.items()})

    def validated(self, values: Mapping[str, float], monitor: str) -> dict[str, Any] | None:
        """Note the result of a validation; return the record of a new best, {"metric", "value"}, None if it is none.

        Args:
          monitor: the metric of which the smallest value is best; "-name" for the largest.
        """
        name, sign = monitor.removeprefix("-"), -1 if monitor.startswith("-") else 1
        if name not in values:
            raise ValueError(f"train.monitor={monitor!r}: validation reports {', '.join(sorted(values))}")
        progress, value = self.progress, values[name]
        self._write(progress.step, {f"val/{key}": value for key, value in values.items()})
        progress.evaluated = progress.step
        better = math.isfinite(value) and (progress.best is None or sign * value < sign * progress.best)
        progress.stale = 0 if better else progress.stale + 1
        if not better:
            return None
        progress.best, progress.best_step = value, progress.step
        return {"metric": f"val/{name}", "value": value}

    def save(self, best: Mapping[str, Any] | None = None) -> str:
        """Save a checkpoint, unless this step has one already and is not a new `best`; return what to tell the user.

        OSError in every process where the workdir is not there any more.
        """
        self.catch_up()
        progress = self.progress
        if progress.step != self._saved or best:
            on_first(self._log.check if self._log else lambda: None, f"step {progress.step} is not saved")
            progress.length, progress.digest = self._log.sync() if self._log else (0, "")
            progress.norm = divergence.norm(self.state.params)
            meta = {**self._metadata, "step": progress.step, "loader": progress.loader}
            meta["progress"] = dataclasses.asdict(progress)
            checkpoint.save(self._folder, progress.step, self.state, meta, keep=self._keep, best=best)
            self._saved = progress.step
        return f"step {progress.step} is saved in {self._folder}"

    def _read(self, newest: tuple[int, Metrics, float] | None) -> None:
        if newest is None:
            return
        step, metrics, flops = newest
        metrics = jax.device_get(metrics)
        progress = self.progress
        add(progress.window, metrics)
        self.clock.count(float(metrics["cells"][0]), float(metrics["tokens"][0]), flops)
        progress.skipped = progress.skipped + 1 if metrics["skipped"][0] else 0
        if self._log_every and step % self._log_every == 0:
            self._write(step, means(progress.window), self.clock.report(hardware.peak_flops(), hardware.memory_bytes()))
            progress.window = {}
        if self._log:
            self._log.advance(step)
        if progress.skipped >= self._max_skipped:
            raise ValueError(
                f"step {step}: loss or gradient was not finite {progress.skipped} times in a row (those updates were "
                f"skipped); {divergence.way_out(self._folder)}"
            )

    def _write(self, step: int, values: Mapping[str, float], timing: Mapping[str, float] | None = None) -> None:
        if self._log:
            self._log.write(step, values, timing)


def add(sums: Sums, metrics: Mapping[str, tuple[Any, Any]]) -> None:
    """Add the metrics of a batch to `sums`, in place; of arrays (in validation) element by element."""
    for name, pair in metrics.items():
        total = sums.setdefault(name, [0.0, 0.0])
        for i in range(2):
            total[i] = total[i] + (float(pair[i]) if np.ndim(pair[i]) == 0 else np.asarray(pair[i], np.float64))


def means(sums: Sums) -> dict[str, float]:
    """Divide sums by weights, the loss first; NaN where nothing was weighed."""
    names = sorted(sums, key=lambda name: (name != "loss", name))
    return {name: sums[name][0] / sums[name][1] if sums[name][1] else math.nan for name in names}
