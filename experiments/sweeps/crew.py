"""Run the points of a sweep in child processes: a few at a time, each point under a lock.

A point's folder holds point.json (what it is, the cpu and wall seconds it took so far, why it failed), train.log,
evaluate.log, run/ and, once it is finished, result.json. All are written in one go. A result that is damaged is as one
that is not there: the point is scored again.
"""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.pages import output
from experiments.sweeps import plan as sweep_plan
from experiments.sweeps.plan import Plan, Point
from scfm_jax.saving.secret import masked
from scfm_jax.training import pace, signals

POLL_S, PATIENCE_S = 0.1, 300.0
"""Between two looks at the children; how long a stopped training may take to save."""


class Job:
    """A point that is being worked on: its child process, and the lock that the child inherits.

    Who holds the lock is at work on this point, a child that outlived a killed sweep included. BlockingIOError where
    another process holds it.
    """

    def __init__(self, plan: Plan, point: Point, workdir: pathlib.Path, version: str):
        self.plan, self.point, self.folder = plan, point, workdir / point.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise
        self.notes = output.finished(self.folder / "point.json") or {}
        self.notes |= {"label": point.label, "axis": point.axis, "set": masked(point.changes), "seed": point.seed}
        self.notes |= {"settings": {**masked(point.settings), "store": version}}
        self.notes.pop("failed", None)
        self.times = self.notes.setdefault("seconds", {})
        self.cache = workdir / "compiled"
        trained = self.times.get("train", {}).get("done") and (self.folder / "run").is_dir()
        self.start("evaluate" if trained else "train")

    def start(self, stage: str) -> None:
        """Start the command of a stage; its output is added to <stage>.log."""
        output.write_file(self.folder / "point.json", self.notes)
        self.stage, self.began = stage, time.monotonic()
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.cache.resolve()), **os.environ}
        with open(self.folder / f"{stage}.log", "ab") as log:
            self.offset = log.tell()
            self.process = subprocess.Popen(
                sweep_plan.command(getattr(self.point, stage)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self.lock,),
                start_new_session=True,  # a Ctrl-C is for the sweep, which tells its children
            )

    def ended(self) -> int | None:
        """Return the exit status of the stage, None while it runs, and note what it took."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return None
        self.process.returncode = os.waitstatus_to_exitcode(status)
        taken = self.times.setdefault(self.stage, {"wall": 0.0, "cpu": 0.0})
        taken["wall"] = round(taken["wall"] + time.monotonic() - self.began, 2)
        taken["cpu"] = round(taken["cpu"] + usage.ru_utime + usage.ru_stime, 2)
        return self.process.returncode

    def said(self) -> str:
        """Return what the stage printed this time."""
        with open(self.folder / f"{self.stage}.log", "rb") as log:
            log.seek(self.offset)
            return log.read().decode(errors="replace")

    def note(self, **more: Any) -> None:
        """Add to the notes of the point on disk."""
        self.notes |= more
        output.write_file(self.folder / "point.json", self.notes)

    def finish(self) -> None:
        """Put the scores of the evaluation into result.json; ValueError where it has none of the model."""
        path = self.folder / "run" / self.plan.result
        if not path.exists():
            raise ValueError(f"the evaluation wrote no {path.name}")
        scores = output.read(path)
        if "rows" not in scores:
            raise ValueError(f"{path}: no entry 'rows'")
        means = mean_scores(scores["rows"], self.plan.metrics)
        if self.plan.method not in means:
            raise ValueError(f"{path.name} has no row of {self.plan.method}; there are {', '.join(means) or 'none'}")
        output.write_file(self.folder / "result.json", {**self.notes, "scores": means})

    def close(self) -> None:
        """Let go of the lock."""
        os.close(self.lock)


class Crew:
    """Works through points, so many at a time. `failed`: {name of the point: reason}."""

    def __init__(self, plan: Plan, workdir: pathlib.Path, version: str, parallel: int):
        self.plan, self.workdir, self.version, self.parallel = plan, workdir, version, parallel
        self.failed: dict[str, str] = {}
        self._stopping, self._ended, self._points, self._began = False, 0, 0, time.monotonic()

    def run(self, points: Sequence[Point]) -> bool:
        """Run the points; return whether a signal stopped them before the end."""
        waiting, jobs, told = list(points), [], 0.0
        self._ended, self._points, self._began = 0, len(points), time.monotonic()
        previous = {number: signal.signal(number, self._stop) for number in signals.SIGNALS}
        try:
            while jobs or (waiting and not self._stopping):
                while waiting and len(jobs) < self.parallel and not self._stopping:
                    point = waiting.pop(0)
                    if result(self.plan, self.workdir, point):
                        continue  # another sweep in this folder was quicker
                    try:
                        jobs.append(Job(self.plan, point, self.workdir, self.version))
                        print(f"{point.name}: at work, see the logs in {self.workdir / point.name}", flush=True)
                    except BlockingIOError:
                        self._fail(point, "another process is at work on it")
                if self._stopping and jobs and not told:
                    told = time.monotonic()
                    for job in jobs:
                        job.process.terminate()
                if told and time.monotonic() - told > PATIENCE_S:
                    for job in jobs:
                        job.process.kill()
                time.sleep(POLL_S)
                jobs = [job for job in jobs if not self._over(job)]
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._stopping and bool(waiting or told)

    def _over(self, job: Job) -> bool:
        """Take a job as far as it goes; return whether nothing of it is running."""
        status = job.ended()
        if status is None:
            return False
        reason = None
        if status:
            reason = f"{job.stage} ended with status {status}: {last_words(job.said())}"
        elif job.stage == "train" and signals.RESUME in job.said():
            reason = f"training was stopped; {signals.RESUME}"
        elif job.stage == "train":
            job.times["train"]["done"] = True
            job.note()
            if not self._stopping:
                job.start("evaluate")
                return False
        else:
            try:
                job.finish()
                self._ended += 1
                print(f"{job.point.name}: {_line(job)}; {self._standing()}", flush=True)
            except (ValueError, KeyError, TypeError) as error:
                reason = str(error)
        if reason and self._stopping:
            job.note()
        elif reason:
            job.note(failed=reason)
            self._fail(job.point, reason)
        job.close()
        return True

    def _standing(self) -> str:
        """Return how many of the points have ended, and how long the others take."""
        left = self._points - self._ended
        seconds = (time.monotonic() - self._began) / self._ended * left
        return f"{self._ended} of {self._points}" + (f", ETA {pace.words(seconds)}" if left else "")

    def _fail(self, point: Point, reason: str) -> None:
        self.failed[point.name] = reason
        self._ended += 1
        print(f"failed: {point.name}: {reason}", file=sys.stderr, flush=True)

    def _stop(self, number: int, _frame: object) -> None:
        self._stopping = True


def result(plan: Plan, workdir: pathlib.Path, point: Point) -> dict[str, Any] | None:
    """Return the result of a finished point; None where there is none, or it lacks a metric that is asked for now."""
    content = output.finished(workdir / point.name / "result.json")
    if not content or "scores" not in content or "seconds" not in content:
        return None
    return content if set(plan.metrics) <= content["scores"].get(plan.method, {}).keys() else None


def _line(job: Job) -> str:
    scores = output.read(job.folder / "result.json")["scores"][job.plan.method]
    cpu = sum(stage["cpu"] for stage in job.times.values())
    return ", ".join(f"{name} {scores[name]:.3f}" for name in job.plan.metrics) + f" ({cpu:.0f} cpu s)"


def mean_scores(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {method: {metric: mean over rows}}; the method of a row is its "method" or its "embedding"."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        method = scores.setdefault(row.get("method") or row["embedding"], {})
        for metric in metrics:
            method.setdefault(metric, []).append(float(row[metric]))
    return {method: {m: sum(v) / len(v) for m, v in values.items()} for method, values in scores.items()}


def last_words(text: str) -> str:
    """Return the last line that begins with "error: ", without that, else the last line there is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1]


def check_same(workdir: pathlib.Path, point: Point, version: str) -> None:
    """Raise ValueError where the folder of a point holds something of other settings than this call's."""
    notes = output.finished(workdir / point.name / "point.json")
    if notes is None or "settings" not in notes:
        return
    old, new = _flat(notes["settings"]), _flat({**masked(point.settings), "store": version})
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differ:
        key = differ[0]
        raise ValueError(
            f"{workdir / point.name} was made with other settings: {key} is {old.get(key)!r} there and "
            f"{new.get(key)!r} here; give the old values to go on with it, or another --workdir to start anew"
        )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"config.train.steps": 100, "evaluate.bag": "50", "store": checksum}."""
    flat = {f"{part}.{key}": v for part in ("config", "evaluate") for key, v in settings.get(part, {}).items()}
    return flat | {"store": settings.get("store")}
