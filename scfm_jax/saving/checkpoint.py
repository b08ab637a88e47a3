"""Checkpoints, written completely or not at all: Orbax arrays, checksums beside them, one rename at the end.

    <directory>/<step>/state/      the arrays, written by Orbax (OCDBT), a nested dict of the state's leaves
    <directory>/<step>/meta.json   {"sha256": of the rest, "content": {"step", "meta", "best",
                                    "leaves": {name: {"shape", "dtype", "checksum"}}, "files": {path: sha256}}}

A step is written as `<step>.partial` and renamed when everything is on disk, so a killed save leaves nothing that looks
like a checkpoint. Orbax 0.12 restores wrong numbers without an error for most single flipped bits of its data files;
here the files are checked before it reads them and every leaf after (`checksums.py`), and a damaged step is passed
over, by name, for the newest valid one. The sums of leaves do not depend on the mesh, so a checkpoint moves between any
numbers of devices and processes.

Multi-process: all processes call `save` and `restore` with the same arguments; process 0 writes the JSON and renames.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from scfm_jax.saving.checksums import Damaged, changed_files, digests, one_line, seal, unseal
from scfm_jax.saving.leaves import difference, flatten, nest, table_of

PathLike = str | os.PathLike
Tree = Any
_LEFTOVER = re.compile(r"\d+\.(partial|stale)")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored step.

    Attributes:
      state: the tree of `like`, or without `like` a nested dict of numpy arrays.
      meta: the run's metadata as it was saved.
      step: the step it is from.
      skipped: one line per newer step that was passed over, and why.
    """

    state: Tree
    meta: dict[str, Any]
    step: int
    skipped: list[str]


def save(
    directory: PathLike, step: int, state: Tree, meta: Mapping, *, keep: int = 2, best: Mapping | None = None
) -> None:
    """Write `state` (any tree of arrays) and `meta` (JSON) as `directory/<step>`, replacing that step if it is there.

    Of the steps up to this one the newest `keep` stay, and the newest that was saved with `best`: a JSON record of what
    made it the best so far, e.g. {"metric": "val/loss", "value": 0.3} (see `read_best`). OSError if the disk refuses;
    then there is no new step and the old ones are untouched.
    """
    directory = pathlib.Path(directory).absolute()
    partial, final = directory / f"{step}.partial", directory / str(step)
    leaves = flatten(state)
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}  # Orbax refuses arrays of size 0
    content = {"step": int(step), "leaves": table_of(leaves), "meta": dict(meta), "best": best and dict(best)}
    _on_first(lambda: _prepare(directory), f"checkpoint of step {step} in {directory}")
    error = None
    try:
        with _orbax() as orbax:
            orbax.save(partial / "state", args=ocp.args.PyTreeSave(nest(stored)), force=True)
    except Exception as e:  # Orbax and TensorStore raise many types for a full disk
        error = e
    _on_first(lambda: _commit(partial, final, content, error), f"checkpoint of step {step} in {directory}")
    _on_first(lambda: _prune(directory, step, keep), f"removing old checkpoints in {directory}")


def restore(
    directory: PathLike, like: Tree | None = None, step: int | None = None, *, only: Collection[str] = ()
) -> Restored | None:
    """Restore the newest valid step of `directory` (or exactly `step`); None if there is no checkpoint.

    Args:
      like: a tree of arrays or `jax.ShapeDtypeStruct`s of the wanted state. Leaves with a sharding come back as jax
        arrays laid out by it, on whatever mesh; leaves without one, and all when there is no `like`, as numpy arrays.
      only: without `like`, the top-level entries to read; by default all.

    Raises:
      ValueError: the checkpoint is of another model than `like`; the step asked for is damaged, or every step is.
      FileNotFoundError: the step asked for is not there.
    """
    directory = pathlib.Path(directory).absolute()
    saved = steps(directory)
    if step is not None and step not in saved:
        raise FileNotFoundError(f"checkpoint step {step}: not in {directory}; there are {saved or 'none'}")
    skipped = []
    for candidate in reversed(saved) if step is None else [step]:
        try:
            content = _read_content(directory / str(candidate))
            state = _read_state(directory / str(candidate) / "state", content, like, only)
        except Damaged as damage:
            skipped.append(f"step {candidate}: {damage}")
        else:
            return Restored(state, content["meta"], content["step"], skipped)
    if not any((directory / str(s) / "meta.json").exists() for s in saved) and step is None:
        return None
    raise ValueError(
        f"{directory}: no valid checkpoint ({'; '.join(skipped)}); restore another step or delete them to start again"
    )


def latest_valid(directory: PathLike) -> int | None:
    """Return the newest step that passes every check (it reads all of it), or None."""
    for step in reversed(steps(directory)):
        try:
            return restore(directory, step=step).step
        except ValueError:
            continue
    return None


def steps(directory: PathLike) -> list[int]:
    """Return the steps that lie in `directory`, oldest first, checked for nothing but their names."""
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal() and p.is_dir())


def read_meta(directory: PathLike, step: int | None = None) -> dict[str, Any]:
    """Return the metadata of `step`, or of the newest step whose metadata are whole; FileNotFoundError if none is."""
    directory = pathlib.Path(directory)
    for candidate in reversed(steps(directory)) if step is None else [step]:
        try:
            return _read_content(directory / str(candidate))["meta"]
        except Damaged as damage:
            if step is not None:
                raise Damaged(f"checkpoint step {step} of {directory}: {damage}") from None
    raise FileNotFoundError(f"{directory}: no checkpoint there")


def read_best(directory: PathLike) -> tuple[int, dict[str, Any]] | None:
    """Return the best step so far and the record it was saved with, or None."""
    directory = pathlib.Path(directory)
    for step in reversed(steps(directory)):
        try:
            record = _read_content(directory / str(step))["best"]
        except Damaged:
            continue
        if record:
            return step, record
    return None


def _read_content(path: pathlib.Path) -> dict[str, Any]:
    try:
        return unseal((path / "meta.json").read_bytes())
    except FileNotFoundError:
        raise Damaged("meta.json is missing, it is not a whole checkpoint") from None
    except Damaged as damage:
        raise Damaged(f"meta.json {damage}") from None


def _read_state(path: pathlib.Path, content: dict, like: Tree | None, only: Collection[str]) -> Tree:
    """Restore the arrays of one step onto `like`, checking the files before and every leaf after."""
    table = {n: row for n, row in content["leaves"].items() if not only or n.split("/")[0] in only}
    wanted = dict.fromkeys(table) if like is None else flatten(like)
    if like is not None:
        _check_same_model(path.parent, table, wanted)
    if damage := _agree(changed_files(path, content["files"]) if jax.process_index() == 0 else ""):
        raise Damaged(damage)
    items, args, leaves = {}, {}, {}
    for name, row in table.items():
        shape, dtype, sharding = tuple(row["shape"]), np.dtype(row["dtype"]), getattr(wanted[name], "sharding", None)
        if 0 in shape:
            leaves[name] = (
                np.zeros(shape, dtype) if sharding is None else jax.device_put(np.zeros(shape, dtype), sharding)
            )
            continue
        items[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        args[name] = (
            ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
            if sharding is None
            else ocp.ArrayRestoreArgs(sharding=sharding, global_shape=shape, dtype=dtype)
        )
    try:
        with _orbax() as orbax:
            request = ocp.args.PyTreeRestore(item=nest(items), restore_args=nest(args), partial_restore=bool(only))
            restored = orbax.restore(path, args=request)
        leaves |= flatten(restored)
        damage = difference(leaves, table)
    except Exception as error:  # Orbax and TensorStore raise many types for damaged files
        damage = f"Orbax cannot read the arrays: {one_line(error)}"
    if damage := _agree(damage):
        raise Damaged(damage)
    leaves = {name: leaves[name] for name in wanted}
    return nest(leaves) if like is None else jax.tree.unflatten(jax.tree.structure(like), list(leaves.values()))


def _check_same_model(path: pathlib.Path, table: dict, wanted: dict[str, Any]) -> None:
    """Raise ValueError if the leaves of `wanted` have other names, shapes or dtypes than the checkpoint's."""
    mine = {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in wanted.items()}
    theirs = {name: (tuple(row["shape"]), row["dtype"]) for name, row in table.items()}
    if mine == theirs:
        return
    differs = [f"{n} is {theirs[n]}, not {mine[n]}" for n in mine if n in theirs and mine[n] != theirs[n]]
    missing, extra = [n for n in mine if n not in theirs], [n for n in theirs if n not in mine]
    parts = [
        f"{len(names)} leaves {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for names, what in (
            (missing, "of the model are not in it"),
            (extra, "in it are not the model's"),
            (differs, "differ"),
        )
        if names
    ]
    raise ValueError(
        f"{path}: this checkpoint is of another model or optimizer: {'; '.join(parts)}; "
        "use the config it was trained with (meta.json) or another workdir"
    )


@contextlib.contextmanager
def _orbax() -> Iterator[ocp.Checkpointer]:
    """Yield an Orbax checkpointer whose background threads keep their tracebacks to themselves: we report the error."""
    logger, silent = logging.getLogger("absl"), lambda record: "orbax" not in record.pathname
    logger.addFilter(silent)
    try:
        yield ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    finally:
        logger.removeFilter(silent)


def _prepare(directory: pathlib.Path) -> None:
    """Make the folder and remove what killed saves left in it."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path)


def _commit(partial: pathlib.Path, final: pathlib.Path, content: dict, error: Exception | None) -> None:
    """Write meta.json, push everything to disk and name the step; if anything fails remove the partial step."""
    try:
        if error is not None:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            raise OSError(os.strerror(int(code[1])) if code else one_line(error)) from error
        (partial / "meta.json").write_text(seal(content | {"files": digests(partial / "state")}))
        for root, _, files in os.walk(partial):
            for name in [*files, "."]:
                _sync(pathlib.Path(root, name))
        if final.exists():
            final.rename(final.with_name(f"{final.name}.stale"))
        partial.rename(final)
        _sync(final.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final.with_name(f"{final.name}.stale"), ignore_errors=True)


def _prune(directory: pathlib.Path, step: int, keep: int) -> None:
    """Remove the steps before `step` that are neither among the newest `keep` nor the best; a rename comes first."""
    best = read_best(directory)
    past = [s for s in steps(directory) if s <= step]
    for old in past[: -max(keep, 1)]:
        if best is None or old != best[0]:
            shutil.rmtree((directory / str(old)).rename(directory / f"{old}.stale"))


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _on_first(work: Callable[[], None], what: str) -> None:
    """Run `work` on process 0 while the others wait; OSError on every process if it fails there."""
    error = None
    if jax.process_index() == 0:
        try:
            work()
        except OSError as e:
            error = e
    if _agree("failed" if error else ""):
        raise OSError(f"{what}: {one_line(error) if error else 'process 0 could not write'}") from error


def _agree(problem: str) -> str:
    """Return this process's problem, or that another one has one; "" if no process has."""
    if jax.process_count() == 1:
        return problem
    anywhere = multihost_utils.process_allgather(np.array(bool(problem))).any()
    return problem or ("damaged on another process" if anywhere else "")
