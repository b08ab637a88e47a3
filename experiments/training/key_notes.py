"""A config as text: each key with a note on its meaning, taken from the docstring of what takes the key."""

import inspect
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from data_pipeline.batches import loader
from experiments.training import data, settings
from scfm_jax import models, sharding, tasks
from scfm_jax.saving.secret import masked
from scfm_jax.training import loop, optim, tuning

WIDTH = 48
"""Columns before a note."""
NOTES = {
    "model_name": "a folder of scfm_jax/models",
    "init_from": "a run, or its checkpoints, whose weights are begun with",
    "optim.schedule_unit": "what the schedule counts: update or epoch",
    "data.split.by": "what is held out: single cells, or whole values of an obs column, or studies",
    "data.split.val": "share that is validated on",
    "data.split.test": "share that is kept for a test",
    "optim.learning_rate": "its peak",
    "task.label": "obs column of the classes",
    "train.steps": "updates of the whole run",
    "train.seed": "of the weights, the masks and the order of cells",
    "train.tensorboard": "write curves for TensorBoard too",
    "train.mesh.data": "devices that split the bags of a batch, -1 for the rest",
    "train.mesh.fsdp": "devices that split the parameters too",
    "train.mesh.seq": "devices that split the cells of a bag",
    "task.name": "a file of scfm_jax/tasks with an objective",
    "tune.batch_cells": "cells of an update, bags and batches being made of them; 0: bags and batches of init_from",
    "tune.scaler": '"training": statistics of genes that came with init_from; "file": those of these cells',
    "tune.start": '"base": weights of init_from; "random": a random twin of it',
} | {f"data.{name}": note for name, note in data.OPTIONS.items()}
"""Notes of keys whose own functions do not say them."""


def text(config: Mapping[str, Any], source: str) -> str:
    """Return a config as flags of the command line, one a line, with a note where there is one.

    Args:
      config: nested, as it was resolved. source: the value of --config.
    """
    notes = of(config)
    lines = [f"--config={shlex.quote(source)}"]
    for key, value in settings.flatten(masked(config)).items():
        line = f"--config.{key}" + ("" if value is None else f"={_quoted(value)}")
        note = "; ".join(filter(None, ("not set" if value is None else "", notes.get(key, ""))))
        lines.append(f"{line:{WIDTH}}  # {note}" if note else line)
    return "\n".join(lines)


def _quoted(value: Any) -> str:
    """Return a value as a shell takes it; quotes inside a tuple are those that need no others."""
    words = str(value)
    return shlex.quote(words.replace("'", '"') if isinstance(value, tuple | list) and '"' not in words else words)


def of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {"section.key": note} of the keys of a config that a docstring tells of."""
    taken: dict[str, Sequence[Callable]] = {
        "data": [loader.Options],
        "optim": optim.SECTIONS,
        "train": [loop.fit],
        "tune": [tuning.options],
    }
    if config.get("model_name"):
        module = models.get(config["model_name"])
        taken |= {"model": [module.Model], "inputs": [module.prepare], "loss": [module.loss]}
    if config.get("task"):
        taken["task"] = [tasks.get(config["task"]["name"]).objective]
    taken["train.mesh"] = [sharding.state_shardings]
    notes = {}
    for section, functions in taken.items():
        for function in functions:
            notes |= {f"{section}.{key}": note for key, note in described(function).items()}
    return notes | NOTES


def described(function: Callable) -> dict[str, str]:
    """Return {parameter: what the docstring of a function or class says of it, its first sentence}."""
    names = set(inspect.signature(function).parameters) - {"self", "parent"}
    body, arguments, *_ = [*re.split(r"(?:Args|Attributes):\n", inspect.cleandoc(function.__doc__ or "")), ""]
    arguments = re.split(r"\n(?=\S)", arguments)[0]
    notes = _ticked(" ".join(body.split()), names)
    return notes | _listed(" ".join(arguments.split()), names)


def _listed(words: str, names: Collection[str]) -> dict[str, str]:
    """Return the notes of "name: note. name, name: note; name: note"."""
    if not words or not names:
        return {}
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    marks = list(re.finditer(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*): ", words))
    notes = {}
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        note = _sentence(words[mark.end() : after.start() if after else len(words)])
        together = mark[1].split(", ")
        notes |= dict.fromkeys(together, note if len(together) == 1 else f"{mark[1]}: {note}")
    return notes


def _ticked(words: str, names: Collection[str]) -> dict[str, str]:
    """Return the notes of "`name`: note." and "`name` does this." at the beginning of sentences."""
    notes = {}
    for mark in re.finditer(r"(?:^|(?<=[.;] ))`(\w+)`(?: \d+)?:? ([^`].*?)(?=[.;] |[.;]?$)", words):
        if mark[1] in names:
            notes[mark[1]] = _sentence(mark[2])
    return notes


def _sentence(words: str) -> str:
    return re.split(r"\. ", words.strip())[0].rstrip(".; ")
