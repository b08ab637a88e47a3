"""The logs of a run: JSON lines always, a progress bar on a terminal, TensorBoard and Weights & Biases.

On stderr a line says step, loss, validation loss, cells/s and the time that is left; all else is in the files.
metrics.jsonl holds what (config, seed, step) determine and nothing else, so two runs of one config are equal byte by
byte; timing.jsonl holds speeds and memory; tensorboard/ has both, written without TensorFlow.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tqdm import tqdm

from scfm_jax.training import pace

Values = Mapping[str, float | None]


class Log:
    """The files of one run. Only the first process of a run has one.

    Args:
      workdir: where the files are.
      start: the step the run goes on from; `length`: the length of metrics.jsonl at that step in bytes. What is beyond
        it was written by steps that are about to be done again.
      total: steps of the whole run, for the bar.
      wandb: name of a Weights & Biases project, None for none; it is told the "config" of `metadata`.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        start: int,
        length: int,
        total: int,
        tensorboard: bool = True,
        wandb: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ):
        workdir = pathlib.Path(workdir)
        self._metrics = open(workdir / "metrics.jsonl", "ab")  # noqa: SIM115
        if self._metrics.tell() < length:
            print(f"warning: {self._metrics.name} is shorter than at step {start}: lines are missing", file=sys.stderr)
        else:
            self._metrics.truncate(length)
        self._timing = open(workdir / "timing.jsonl", "ab")  # noqa: SIM115
        self._board = EventFileWriter(str(workdir / "tensorboard")) if tensorboard else None
        if self._board and start:  # TensorBoard forgets the steps that are about to be done again
            status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._board.add_event(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=status))
        self._wandb = _wandb_run(wandb, workdir, metadata or {}) if wandb else None
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._total = total
        self._began: tuple[float, int] | None = None
        self._validated = ""

    def advance(self, step: int) -> None:
        """Note that `step` is done, and move the bar there."""
        self._began = self._began or (time.monotonic(), step)  # after the first step: it compiles
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Values, timing: Values | None = None) -> None:
        """Write one line of values, and one of timings where there are any; NaN and infinity become null."""
        values = {name: _finite(value) for name, value in values.items()}
        timing = {name: _finite(value) for name, value in (timing or {}).items()}
        self._metrics.write(f"{json.dumps({'step': step, **values})}\n".encode())
        if timing:
            line = json.dumps({"step": step, "time": round(time.time(), 3), **timing})
            self._timing.write(f"{line}\n".encode())
        self._metrics.flush()
        self._timing.flush()
        logged = {name: value for name, value in {**values, **timing}.items() if value is not None}
        if self._board:
            self._board.add_event(_event(step, logged))
        if self._wandb:
            self._wandb.log(logged, step=step)
        self.say(self.line(step, {**values, **timing}))

    def sync(self) -> int:
        """Bring everything to disk and return the length of metrics.jsonl in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        if self._board:
            self._board.flush()
        return self._metrics.tell()

    def close(self) -> None:
        """Finish all files."""
        self._metrics.close()
        self._timing.close()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Tell the user a line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def line(self, step: int, values: Values) -> str:
        """Return what the user sees of the values of a step; None stands for what is not finite."""
        parts = [f"step {step}/{self._total}"]
        if "loss" in values:
            parts.append(f"loss {_short(values['loss'])}")
        if "val/loss" in values:
            self._validated = f"val loss {_short(values['val/loss'])}"
        parts += [self._validated] if self._validated else []
        if values.get("cells/s"):
            parts.append(f"{values['cells/s']:,.0f} cells/s")
        if self._began and self._began[1] < step < self._total:
            speed = (time.monotonic() - self._began[0]) / (step - self._began[1])
            parts.append(f"ETA {pace.words(speed * (self._total - step))}")
        return "  ".join(parts)


class Clock:
    """Where the time of a run goes: waiting for data, pauses that are not training (compiling, validating, saving),
    steps. `clock` tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._restart()

    @contextlib.contextmanager
    def data(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = self._clock()
        yield
        self._data += self._clock() - start

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Count the time inside not at all."""
        start = self._clock()
        yield
        self._paused += self._clock() - start

    def count(self, cells: float, tokens: float, flops: float) -> None:
        """Count what was trained on, and the FLOPs it took, backward passes included."""
        self._cells, self._tokens, self._flops = self._cells + cells, self._tokens + tokens, self._flops + flops

    def report(self, peak: float | None, memory: int) -> dict[str, float]:
        """Return the speeds since the last report, and begin anew.

        Args:
          peak: FLOP/s of all devices at best (None: unknown, so no MFU). memory: bytes in use.
        """
        seconds = max(self._clock() - self._start - self._paused, 1e-9)
        speeds = {"cells/s": self._cells / seconds, "tokens/s": self._tokens / seconds}
        if peak:
            speeds["mfu"] = self._flops / seconds / peak
        speeds |= {"data_wait": self._data / seconds, "memory_gb": memory / 1e9}
        self._restart()
        return speeds

    def _restart(self) -> None:
        self._start, self._data, self._paused = self._clock(), 0.0, 0.0
        self._cells = self._tokens = self._flops = 0.0


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _event(step: int, values: Values) -> event_pb2.Event:
    summary = summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    )
    return event_pb2.Event(wall_time=time.time(), step=step, summary=summary)


def _wandb_run(project: str, workdir: pathlib.Path, metadata: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(f"train.wandb={project!r}: wandb is not installed (pip install 'scfm_jax[wandb]')") from None
    id = f"{workdir.name}-{zlib.crc32(bytes(workdir.absolute())):08x}"  # the same when the run goes on
    return wandb.init(project=project, dir=workdir, id=id, resume="allow", config=metadata.get("config"))
