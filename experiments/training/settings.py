"""Checks of a config: an unknown key is refused with a suggestion, and so is resuming the run of another config."""

import difflib
import inspect
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from experiments.pages import output
from scfm_jax.saving import checkpoint
from scfm_jax.saving.secret import masked
from scfm_jax.training import divergence

SECTIONS = ("model_name", "model", "inputs", "loss", "data", "optim", "train", "init_from", "tune", "task")

FREE = (
    "data.store", "data.threads", "data.prefetch", "data.workers", "train.steps", "train.log_every", "train.eval_every",
    "train.checkpoint_every", "train.keep", "train.monitor", "train.patience", "train.max_skipped", "train.mesh",
    "train.tensorboard", "train.wandb", "train.rewind", "train.floors",
)  # fmt: skip
"""What may change when a run goes on: it changes how long, how loud and where, not what is computed."""


def check(config: Mapping[str, Any], accepted: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError for the first key of `config` that is not a section, or not `accepted` in its section."""
    check_names("config", config, SECTIONS)
    for section, keys in accepted.items():
        check_names(f"config.{section}", config.get(section) or {}, keys)


def keywords(function: Callable, without: Collection[str] = ()) -> list[str]:
    """Return the names of the keyword-only arguments of `function`."""
    named = inspect.signature(function).parameters.values()
    return [p.name for p in named if p.kind is p.KEYWORD_ONLY and p.name not in without]


def parameters(function: Callable) -> list[str]:
    """Return the names of all arguments of `function`."""
    return list(inspect.signature(function).parameters)


def check_workdir(workdir: str | os.PathLike) -> pathlib.Path:
    """Make the folder of a run where there is none; OSError where it is no folder, or cannot be written to."""
    path = pathlib.Path(workdir)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"--workdir={path}: it is a file; name a folder")
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(f"--workdir={path}: the folder cannot be written to; name another one")
    return path


def prepare_workdir(workdir: str | None, metadata: Mapping[str, Any]) -> pathlib.Path:
    """Make the folder of a run, or check that it holds a run of the same config, and write its config.json.

    Raises:
      ValueError: its checkpoints are of another config (the keys are named) or another state of the store.
      OSError: it is not a folder, or cannot be written.
    """
    path = check_workdir(workdir)
    if checkpoint.steps(path / "checkpoints"):
        _check_same_run(path, checkpoint.read_meta(path / "checkpoints"), metadata)
    output.write_file(path / "config.json", masked(metadata["config"]))
    return path


def _check_same_run(path: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    if there["store"] != here["store"]:  # before the config: sizes that the data decide differ, too
        raise ValueError(
            f"--workdir={path} holds a run on another store, or the store has changed since (a study was added?); "
            "give the old store to go on with it, or another --workdir to start anew"
        )
    old, new = flatten(there["config"]), flatten(json.loads(json.dumps(here["config"])))
    differ = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    back = divergence.rewinds(here["config"].get("train", {}).get("rewind", 0), there, here)
    free = (*FREE, *(["optim"] if back else []))
    differ = [key for key in differ if not any(key == name or key.startswith(f"{name}.") for name in free)]
    if differ:
        pairs = [(key, masked(old.get(key), key), masked(new.get(key), key)) for key in differ[:4]]
        changes = [f"{key} is {before!r} there and {now!r} here" for key, before, now in pairs]
        more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
        raise ValueError(
            f"--workdir={path} holds a run of another config: {'; '.join(changes)}{more}; "
            "give the old values to go on with it, or another --workdir to start anew"
        )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"model.enc_hid": 64, ...}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_names(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for the first name that is not known, with the closest one that is."""
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"{where}.{name}: no such key; {hint}")
