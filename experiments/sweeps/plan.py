"""What a sweep file says, checked before anything runs: points times seeds, their names, the commands of each.

See `configs` for what `get_sweep` returns.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from experiments.training import config_file
from experiments.training import settings as configs
from scfm_jax.saving.secret import masked

KEYS = ("question", "config", "seeds", "evaluate", "metrics", "points")
POINT_KEYS = ("axis", "label", "set", "evaluate", "paper")
EVALUATE_KEYS = ("command", "flags", "result", "method")
LOUD = tuple(key for key in configs.FREE if key not in ("train.steps", "train.patience", "train.max_skipped"))
"""Config keys that may differ between a finished result and this call: they do not change what is computed."""
LONGEST = 120
"""Characters of a folder's name; longer ones are cut and end in a hash."""
SEED = "train.seed"


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a sweep with one seed: two commands and a folder.

    Attributes:
      index: its place in the sweep, which is its index in a job array.
      label, axis, paper: what the table says of it; `paper` is {metric: number}. base: whether it is the first point.
      changes: {config key: value}, the seed apart. name: of its folder.
      train, evaluate: arguments of the two commands. settings: all that decides its result, JSON-able.
    """

    index: int
    label: str
    axis: str
    base: bool
    changes: Mapping[str, Any]
    seed: int
    paper: Mapping[str, float]
    name: str
    train: Sequence[str]
    evaluate: Sequence[str]
    settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep: its points times seeds, and how results are read.

    Attributes:
      question: its title. metrics: {name: what it is}, the paper's first. result: file that the evaluation writes.
      method: whose rows of it are the model's. store: the training data, None where none was named.
    """

    question: str
    metrics: Mapping[str, str]
    result: str
    method: str
    store: str | None
    points: Sequence[Point]


def read(path: str, workdir: pathlib.Path, overrides: Mapping[str, Sequence[str]], seeds: Sequence[int] = ()) -> Plan:
    """Return the plan of the sweep file at `path` (`file.py:variant`).

    Args:
      overrides: {"config": ["data.store=DIR", ...], "evaluate": ["input=x.h5ad", ...]}, for all points; what a point
        sets itself it keeps.
      seeds: instead of the file's.

    Raises:
      ValueError, OSError: in one line; a key that the config or the evaluation does not have is named with the closest.
    """
    sweep = _sections(path)
    seeds = list(seeds) or list(sweep["seeds"])
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{path}: seeds {seeds}: at least one, each once")
    ours = [text.partition("=")[0] for text in overrides.get("config", ())]
    if SEED in ours:
        raise ValueError(f"--config.{SEED}: each point has its own; give --seeds")
    evaluate_flags = dict(text.split("=", 1) for text in overrides.get("evaluate", ()))
    shared = overrides.get("config", ())
    points, names, store = [], {}, None
    for seed in seeds:  # outermost: a sweep that is cut short has every point once
        for place, point in enumerate(sweep["points"]):
            where = f"{path}, point {point['label']!r}"
            flagged = sweep["evaluate"]["flags"] | evaluate_flags | point.get("evaluate", {})
            _check_flags(where, sweep["evaluate"]["command"], flagged)
            point_overrides = [f"{key}={value}" for key, value in point["set"].items()]
            arguments = [f"--config.{text}" for text in (*shared, *point_overrides, f"{SEED}={seed}")]
            config = parse(where, sweep["config"], arguments)
            store = config.get("data", {}).get("store")
            name = f"{folder_name(point['set'])}/seed={seed}"
            twin = names.setdefault(name.casefold(), place)
            if twin != place:
                raise ValueError(f"{where}: sets the same as point {sweep['points'][twin]['label']!r}")
            run = f"--workdir={workdir / name / 'run'}"
            points.append(
                Point(
                    index=len(points),
                    label=point["label"],
                    axis=point["axis"],
                    base=place == 0,
                    changes=point["set"],
                    seed=seed,
                    paper=point.get("paper", {}),
                    name=name,
                    train=["experiments.train", f"--config={sweep['config']}", run, *arguments],
                    evaluate=[
                        f"experiments.{sweep['evaluate']['command']}", run, *(f"--{k}={v}" for k, v in flagged.items()),
                    ],
                    settings=_settings(config, flagged),
                )
            )  # fmt: skip
    return Plan(
        sweep["question"], sweep["metrics"], sweep["evaluate"]["result"], sweep["evaluate"]["method"], store, points
    )


def folder_name(changes: Mapping[str, Any]) -> str:
    """Return the name of a folder that says what is changed: "base", "inputs.mask=uniform".

    Letters, digits and _ . + - = , only; where that, LONGEST or the mask of a secret leaves something out, a hash
    of the whole keeps names apart.
    """
    if not changes:
        return "base"
    whole = ",".join(f"{key}={value}" for key, value in changes.items())
    shown = ",".join(f"{key}={value}" for key, value in masked(changes).items())
    safe = re.sub(r"[^\w.+=-]*[^\w.+=,-][^\w.+=-]*", "-", shown, flags=re.ASCII)
    if safe == whole and len(safe) <= LONGEST:
        return safe
    return f"{safe[: LONGEST - 9]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def parse(where: str, config: str, arguments: Sequence[str]) -> ConfigDict:
    """Return the config as `experiments.train` reads it with these arguments; ValueError for a key it has not."""
    keys = [argument.removeprefix("--config.").partition("=")[0] for argument in arguments]
    entries = configs.flatten(_parse(where, config, []).to_dict())
    configs.check_names(f"{where}: config", dict.fromkeys(keys), entries)
    return _parse(where, config, arguments)


def _parse(where: str, config: str, arguments: Sequence[str]) -> ConfigDict:
    values, argv = flags.FlagValues(), ["sweep", f"--config={config}", *arguments]
    config_file.define("config", "", values, argv)
    try:
        values(argv)
        return values.config
    except (flags.Error, OSError, ValueError, SyntaxError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{where}: --config={config}: {' '.join(str(error).split())}") from error


def _settings(config: ConfigDict, flagged: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides a result, but for the content of the data, JSON-able."""
    flat = configs.flatten(config.to_dict())
    wanted = {key: value for key, value in flat.items() if not _loud(key)}
    return json.loads(json.dumps({"config": wanted, "evaluate": {k: str(v) for k, v in flagged.items()}}, default=str))


def _loud(key: str) -> bool:
    return any(key == loud or key.startswith(f"{loud}.") for loud in LOUD)


def _sections(path: str) -> dict[str, Any]:
    """Return what `get_sweep` of a sweep file returns; ValueError where something is missing or too much."""
    file = path.partition(":")[0]
    try:
        module, variant = config_file.load(path, "sweep")
    except ValueError as error:
        raise ValueError(f"--sweep={file}: {error}") from error
    if not callable(getattr(module, "get_sweep", None)):
        raise ValueError(f"--sweep={file}: it has no function get_sweep; `configs` says what a sweep file is")
    sweep = module.get_sweep(*([variant] if variant else []))
    configs.check_names(f"{file}: sweep", sweep, KEYS)
    _require(file, sweep, KEYS)
    configs.check_names(f"{file}: evaluate", sweep["evaluate"], EVALUATE_KEYS)
    _require(f"{file}: evaluate", sweep["evaluate"], EVALUATE_KEYS)
    for number, point in enumerate(sweep["points"]):
        configs.check_names(f"{file}: point {number}", point, POINT_KEYS)
        _require(f"{file}: point {number}", point, ("axis", "label", "set"))
        configs.check_names(f"{file}: point {number}: paper", point.get("paper", {}), sweep["metrics"])
    if not sweep["points"] or not sweep["metrics"]:
        raise ValueError(f"{file}: no points or no metrics; a sweep has at least one of each")
    return sweep


def _require(where: str, given: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in keys:
        if key not in given:
            raise ValueError(f"{where}: {key!r} is missing; `configs` says what a sweep file is")


def _check_flags(where: str, command: str, flagged: Mapping[str, Any]) -> None:
    """Raise ValueError for a flag that the command experiments.<command> does not have."""
    spec = importlib.util.find_spec(f"experiments.{command}")
    options = getattr(importlib.import_module(f"experiments.{command}"), "OPTIONS", None) if spec else None
    if options is None:
        raise ValueError(f"{where}: evaluate: there is no command experiments.{command}")
    configs.check_names(f"{where}: evaluate", flagged, [name for name in options if name != "workdir"])


def command(arguments: Sequence[str]) -> list[str]:
    """Return the whole command of a module and its arguments."""
    return [sys.executable, "-m", *arguments]
