"""Checkpoints, written completely or not at all: Orbax arrays, checksums beside them, one rename at the end.

    <directory>/<step>/state/      the arrays, written by Orbax (OCDBT), a nested dict of the state's leaves
    <directory>/<step>/meta.json   {"sha256": of the rest, "content": {"step", "meta", "best",
                                    "leaves": {name: {"shape", "dtype", "checksum"}}, "files": {path: sha256}}}

A step is written as `<step>.partial` and renamed when everything is on disk, so a killed save leaves nothing that looks
like a checkpoint. Where that step is there already, it is `<step>.stale` for the moment between two renames; it counts
as the step while there is no other, and the next save puts it back. Orbax 0.12 restores wrong numbers without an error
for most single flipped bits of its data files; here the files are checked before it reads them and every leaf after
(`checksums.py`), and a damaged step is passed over, by name, for the newest valid one. The sums of leaves do not depend
on the mesh, so a checkpoint moves between any numbers of devices and processes.

Multi-process: all processes call `save` and `restore` with the same arguments; process 0 writes the JSON and renames.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from scfm_jax.saving.checksums import changed_files, digests
from scfm_jax.saving.leaves import difference, flatten, nest, table_of
from scfm_jax.saving.sealed import Damaged, one_line, seal, sync, unseal
from scfm_jax.saving.together import agree, on_first

PathLike = str | os.PathLike
Tree = Any
_LEFTOVER = re.compile(r"\d+\.(partial|stale|pruned)")
_STEP = re.compile(r"(\d+)(\.stale)?")
_ENTRIES = ("step", "meta", "best", "leaves", "files")


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
    on_first(lambda: _prepare(directory), f"checkpoint of step {step} in {directory}")
    error = None
    try:
        with _orbax() as orbax:
            orbax.save(partial / "state", args=ocp.args.PyTreeSave(nest(stored)), force=True)
    except Exception as e:  # Orbax and TensorStore raise many types for a full disk
        error = e
    on_first(lambda: _commit(partial, final, content, error), f"checkpoint of step {step} in {directory}")
    on_first(lambda: _prune(directory, step, keep), f"removing old checkpoints in {directory}")


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
            content = _read_content(_place(directory, candidate))
            state = _read_state(_place(directory, candidate) / "state", content, like, only)
        except Damaged as damage:
            skipped.append(f"step {candidate}: {damage}")
        except (KeyError, TypeError, AttributeError) as error:  # it carries the right checksum, so nobody damaged it
            skipped.append(f"step {candidate}: meta.json is not of our making: {one_line(error)}")
        else:
            return Restored(state, content["meta"], content["step"], skipped)
    if not any((_place(directory, s) / "meta.json").exists() for s in saved) and step is None:
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
    names = [(_STEP.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    return sorted({int(name[1]) for name, path in names if name and (not name[2] or (path / "meta.json").exists())})


def _place(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Return the folder of a step: what a killed save had put aside, where there is no other."""
    folder = directory / str(step)
    aside = folder.with_name(f"{step}.stale")
    return aside if aside.is_dir() and not folder.is_dir() else folder


def read_meta(directory: PathLike, step: int | None = None) -> dict[str, Any]:
    """Return the metadata of `step`, or of the newest step whose metadata are whole; FileNotFoundError if none is."""
    directory = pathlib.Path(directory)
    for candidate in reversed(steps(directory)) if step is None else [step]:
        try:
            return _read_content(_place(directory, candidate))["meta"]
        except Damaged as damage:
            if step is not None:
                raise Damaged(f"checkpoint step {step} of {directory}: {damage}") from None
    raise FileNotFoundError(f"{directory}: no checkpoint there")


def read_best(directory: PathLike) -> tuple[int, dict[str, Any]] | None:
    """Return the best step so far and the record it was saved with, None where no step was saved as the best.

    Damaged where that cannot be told: the step that was the best, or may have been, is damaged or missing.
    """
    directory, damaged = pathlib.Path(directory), []
    for step in reversed(steps(directory)):
        try:
            content = _read_content(_place(directory, step))
        except Damaged as damage:
            damaged.append(f"step {step}: {damage}")
            continue
        best = content["meta"].get("progress", {}).get("best_step")
        if damaged and (content["best"] or best is not None):
            advice = f"the best of the others is step {step if content['best'] else best}"
            raise Damaged(f"{directory}: which step is the best is not known ({'; '.join(damaged)}); {advice}")
        if content["best"]:
            return step, content["best"]
        if best is not None and best not in steps(directory):
            raise Damaged(
                f"{directory}: the best step, {best}, is not there any more; choose one of {steps(directory)}"
            )
    if damaged:
        raise Damaged(f"{directory}: which step is the best is not known ({'; '.join(damaged)})")
    return None


def drop_after(directory: PathLike, step: int) -> None:
    """Remove the steps after `step`, on process 0 while the others wait."""
    directory = pathlib.Path(directory).absolute()

    def work() -> None:
        _prepare(directory)
        for late in (late for late in steps(directory) if late > step):
            _remove(directory, late)

    on_first(work, f"removing the checkpoints after step {step} in {directory}")


def _read_content(path: pathlib.Path) -> dict[str, Any]:
    try:
        return unseal((path / "meta.json").read_bytes(), _ENTRIES)
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
    if damage := agree(changed_files(path, content["files"]) if jax.process_index() == 0 else ""):
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
    if damage := agree(damage):
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
    told = sys.unraisablehook
    sys.unraisablehook = lambda raised: str(raised.exc_value) == "Event loop is closed" or told(raised)
    try:
        yield ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        sys.unraisablehook = told  # after a failure its threads go on for a while
    finally:
        logger.removeFilter(silent)


def _prepare(directory: pathlib.Path) -> None:
    """Make the folder, put a step back that a killed save had put aside, and remove what else killed saves left."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if not _LEFTOVER.fullmatch(path.name):
            continue
        if path.suffix == ".stale" and not path.with_suffix("").exists() and (path / "meta.json").exists():
            path.rename(path.with_suffix(""))
        else:
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
                sync(pathlib.Path(root, name))
        if final.exists():
            final.rename(final.with_name(f"{final.name}.stale"))
        partial.rename(final)
        sync(final.parent)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(final.with_name(f"{final.name}.stale"), ignore_errors=True)


def _prune(directory: pathlib.Path, step: int, keep: int) -> None:
    """Remove the steps before `step` that are neither among the newest `keep` nor the best."""
    best = None
    with contextlib.suppress(Damaged):
        best = read_best(directory)
    past = [s for s in steps(directory) if s <= step]
    for old in past[: -max(keep, 1)]:
        if best is None or old != best[0]:
            _remove(directory, old)


def _remove(directory: pathlib.Path, step: int) -> None:
    """Remove a step; a rename comes first, so that no half of it is taken for a checkpoint."""
    shutil.rmtree((directory / str(step)).rename(directory / f"{step}.pruned"))
