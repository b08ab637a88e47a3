"""The logs of a run: JSON lines always, a progress bar on a terminal, TensorBoard and Weights & Biases.

On stderr a line says step, loss, validation loss, cells/s and the time that is left; all else is in the files.
metrics.jsonl holds what (config, seed, step) determine and nothing else, so two runs of one config are equal byte by
byte; timing.jsonl holds speeds and memory; tensorboard/ has both, written without TensorFlow. Each line carries its own
checksum (`saving.sealed`), and a checkpoint that of all of metrics.jsonl so far.
"""

import contextlib
import hashlib
import math
import os
import pathlib
import socket
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from scfm_jax.saving import sealed
from scfm_jax.saving.secret import masked
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
      digest: of metrics.jsonl at that step, "" where that is not known; a difference is told.

    Attributes:
      floor: the "metric/table" to show beside the validation, and its value; None for none.
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
        digest: str = "",
    ):
        workdir = pathlib.Path(workdir)
        self._metrics, self._sum = _open_metrics(workdir / "metrics.jsonl", start, length, digest)
        self._timing = sealed.open_lines(workdir / "timing.jsonl")
        self._board = _Board(workdir / "tensorboard") if tensorboard else None
        if self._board and start:  # TensorBoard forgets the steps that are about to be done again
            status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._board.add(event_pb2.Event(wall_time=time.time(), step=start + 1, session_log=status))
        self._wandb = _wandb_run(wandb, workdir, metadata or {}) if wandb else None
        self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None
        self._total = total
        self._began: tuple[float, int] | None = None
        self._validated = ""
        self.floor: tuple[str, float | None] | None = None

    def advance(self, step: int) -> None:
        """Note that `step` is done, and move the bar there."""
        self._began = self._began or (time.monotonic(), step)  # after the first step: it compiles
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Values, timing: Values | None = None) -> None:
        """Write one line of values, and one of timings where there are any; NaN and infinity become null."""
        values = {name: _finite(value) for name, value in values.items()}
        timing = {name: _finite(value) for name, value in (timing or {}).items()}
        self._sum.update(_append(self._metrics, {"step": step, **values}))
        if timing:
            _append(self._timing, {"step": step, "time": round(time.time(), 3), **timing})
        logged = {name: value for name, value in {**values, **timing}.items() if value is not None}
        if self._board:
            self._board.add(_event(step, logged))
        if self._wandb:
            self._wandb.log(logged, step=step)
        self.say(self.line(step, {**values, **timing}))

    def check(self) -> None:
        """Raise OSError where the files are not those of the workdir any more: somebody removed or replaced it."""
        for file in (self._metrics, self._timing):
            try:
                same = os.path.samestat(os.stat(file.name), os.fstat(file.fileno()))
            except FileNotFoundError:
                same = False
            if not same:
                raise FileNotFoundError(f"{file.name} was removed or replaced while the run was writing to it")

    def sync(self) -> tuple[int, str]:
        """Bring everything to disk and return the length of metrics.jsonl in bytes, and its digest."""
        for file in (self._metrics, self._timing):
            os.fsync(file.fileno())
        return self._metrics.tell(), self._sum.hexdigest()

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
            self._validated = f"val loss {_short(values['val/loss'])}{self._beside(values)}"
        parts += [f"{name} {_short(value)}" for name, value in values.items() if name.startswith("floor/")]
        parts += [self._validated] if self._validated else []
        if values.get("cells/s"):
            parts.append(f"{values['cells/s']:,.0f} cells/s")
        if self._began and self._began[1] < step < self._total:
            speed = (time.monotonic() - self._began[0]) / (step - self._began[1])
            parts.append(f"ETA {pace.words(speed * (self._total - step))}")
        return "  ".join(parts)

    def _beside(self, values: Values) -> str:
        """Return what is shown beside a validation loss: the metric that a floor is of, the floor, what is beyond."""
        if self.floor is None:
            return ""
        metric = f"val/{self.floor[0].partition('/')[0]}"
        same = values.get(metric) == values["val/loss"]
        text = "" if same else f"  val {metric.removeprefix('val/')} {_short(values.get(metric))}"
        return f"{text}  floor {_short(self.floor[1])}  residual {_short(values.get('val/residual'))}"


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


class _Board:
    """A file of events for TensorBoard, written at once: its own writer has a thread, which a full disk kills."""

    def __init__(self, folder: pathlib.Path):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self.add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, event: event_pb2.Event) -> None:
        """Write an event; OSError names the file."""
        with _naming(self._file):
            self._records.write(event.SerializeToString())
            self._records.flush()

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


def _open_metrics(path: pathlib.Path, start: int, length: int, digest: str) -> tuple[BinaryIO, Any]:
    """Return metrics.jsonl, cut back to a length, open to append to, and the running sha256 of what is in it.

    Says on stderr where it is not what it was at that step.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > length:
        os.truncate(path, length)
    file = sealed.open_lines(path)
    total = hashlib.sha256(path.read_bytes())
    if size < length:
        print(f"warning: {path} is shorter than at step {start}: lines are missing", file=sys.stderr)
    elif digest and total.hexdigest() != digest:
        which = "; ".join(sealed.read_lines(path).problems) or "lines were exchanged"
        print(f"warning: {path} is not what it was at step {start}: {which}", file=sys.stderr)
    return file, total


def _append(file: BinaryIO, row: Mapping[str, Any]) -> bytes:
    """Write a line with its checksum and return it; OSError names the file."""
    line = f"{sealed.dumps(row)}\n".encode()
    with _naming(file):
        file.write(line)
        file.flush()
    return line


@contextlib.contextmanager
def _naming(file: BinaryIO) -> Iterator[None]:
    """Give errors of the operating system the name of the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.name)) from error


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
    return wandb.init(project=project, dir=workdir, id=id, resume="allow", config=masked(metadata.get("config")))
