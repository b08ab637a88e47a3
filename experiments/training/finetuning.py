"""What fine-tuning adds to a training run: options from the run that it begins with, a task, and what is written.

A config with the section `tune` begins with the run `init_from` and leaves out what that run has decided: the model,
its inputs, its genes, how cells come. Where the config sets one of these itself, its value holds. With the section
`task`, whose `name` is a file of `scfm_jax.tasks` with an `objective`, that is what is minimised; without it, what the
model was trained with.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from data_pipeline.batches import obs
from data_pipeline.batches.split import select
from data_pipeline.store.store import Store
from experiments.training import settings
from scfm_jax import models, tasks
from scfm_jax.api import Run
from scfm_jax.inference import bags
from scfm_jax.saving.leaves import path_name
from scfm_jax.tasks.cells import heads
from scfm_jax.tasks.cells.labels import UNLABELLED
from scfm_jax.training import optim, step, tuning
from scfm_jax.types import TrainState

AS_THERE = ("bag", "batch", "kind", "buckets", "cell_buckets", "by_length", "run", "mix")
"""Data options that are those of the run that is begun with, where they are None."""
STARTS = ("base", "random")


def resolve(options: Mapping[str, Any], base: Run) -> dict[str, Any]:
    """Return the options of a config with all that the run `base` decides.

    Raises ValueError for a config of another model, or options that there are not.
    """
    if options.get("model_name") not in (None, base.name):
        raise ValueError(f"config.init_from={options['init_from']}: a run of {base.name}, not {options['model_name']}")
    tune, task = dict(options["tune"]), dict(options.get("task") or {})
    start, scaler = tune.pop("start", "base"), tune.pop("scaler", "training")
    batch_cells = tune.pop("batch_cells", 0)
    if start not in STARTS:
        raise ValueError(f"tune.start={start!r}: must be one of {', '.join(STARTS)}")
    settings.check_names("config.tune", tune, settings.keywords(tuning.options))
    tune = tuning.options(base.module, **tune)
    theirs = base.meta["config"]
    inputs = {**models.defaults(base.module, "inputs"), **theirs.get("inputs", {})}
    inputs |= {"covariates": False} if "covariates" in inputs else {}  # batches and studies are others
    if task:
        settings.check_names("config.task", task, _task_keys(task))
        inputs |= {} if task.get("hide") else base.module.TUNING["visible"]
    data = dict(options["data"]) | {"genes": "base"}
    data |= {name: theirs.get("data", {}).get(name) for name in AS_THERE if data.get(name) is None}
    data = {name: value for name, value in data.items() if value is not None or name not in AS_THERE}
    model = {name: value for name, value in (options.get("model") or {}).items() if value is not None}
    base.with_cell_layer(model.get("cell_layer"))
    data |= equal_cells(batch_cells, base.rules, data.get("bag") or 1) if batch_cells else {}
    data["labels"] = (task["label"],) if task else ()
    data |= {"unlabelled": tuple(sorted(UNLABELLED))} if task else {}
    return {
        **options,
        "model_name": base.name,
        "model": {**theirs["model"], **tuning.model_options(tune), **model},
        "inputs": inputs | (options.get("inputs") or {}),
        "loss": {**theirs.get("loss", {}), **(options.get("loss") or {})},
        "data": data,
        "tune": {**tune, "start": start, "scaler": scaler, "batch_cells": batch_cells},
        "task": task,
        "optim": _optim(options.get("optim", {}), task),
    }


def _optim(options: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the optimiser, with a rate for the head's block where it has one; see `cells.heads`."""
    if task.get("head") != "transformer":
        return dict(options)
    block = {"match": (f"^{tuning.TASK}/{heads.BLOCK}/",), "rate": heads.RATE / options["learning_rate"]}
    return {**options, "groups": (block, *options.get("groups", ()))}


def accepted(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the keys that the sections tune and task may have; both may be absent."""
    keys = {"tune": [*settings.keywords(tuning.options), "start", "scaler", "batch_cells"]}
    return keys | ({"task": _task_keys(options["task"])} if options.get("task") else {})


def equal_cells(cells: int, rules: bags.Rules, bag: int) -> dict[str, int]:
    """Return the bags of an update of so many cells: those of `bag` cells, or one of fewer where the model takes any.

    Raises ValueError where no bags make so many cells.
    """
    bag = rules.fixed_bag or min(bag, cells)
    if cells < 1 or cells % bag:
        raise ValueError(f"tune.batch_cells={cells}: {bag} cells are seen together in this run; give a multiple of it")
    return {"bag": bag, "batch": cells // bag}


def objective(module: ModuleType, model: nn.Module, options: Mapping[str, Any], store: Store) -> step.Objective:
    """Return what the run minimises, of all parameters that it has."""
    tune, task = options["tune"], dict(options["task"])
    if not task:
        inner = step.pretraining(module, model, options["inputs"], options["loss"])
    else:
        made = tasks.get(task.pop("name")).objective
        sizes = class_sizes(store, options["data"], task["label"])
        inner = made(module, model, options["inputs"], sizes, **task)
    return tuning.objective(inner, tune)


def class_sizes(store: Store, data: Mapping[str, Any], label: str) -> list[int]:
    """Return how many training cells each class of an obs column has; ValueError with fewer than two classes."""
    names = obs.class_names(store, [label], data.get("unlabelled", ()))[label]
    masks, _ = select(store, data.get("split"), data.get("filter"))
    sizes = np.zeros(len(names), int)
    for study, mask in zip(obs.studies(store), masks[0], strict=True):
        codes = obs.class_codes(study, label, names)[mask]
        sizes += np.bincount(codes[codes >= 0], minlength=len(names))
    if (sizes > 0).sum() < 2:
        only = ", ".join(f"{name} ({n})" for name, n in zip(names, sizes, strict=True) if n) or "none"
        raise ValueError(f"task.label={label}: the training cells have fewer than two classes of it; there are {only}")
    return sizes.tolist()


def frozen(optimizer: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return regular expressions of all that is not trained."""
    task = options["task"]
    standardise = bool(task) and task.get("standardise", True)
    fixed = tasks.get(task["name"]).FROZEN if standardise else ()
    patterns = (*optimizer.get("frozen", ()), *tuning.frozen(options["tune"]), *fixed)
    if options["tune"]["method"] == "frozen" and not task:
        raise ValueError("tune.method=frozen: without a task there is nothing to train")
    return patterns


def beginning(
    module: ModuleType,
    model: nn.Module,
    options: Mapping[str, Any],
    base: Run,
    batches: Callable[[], Iterator[Mapping[str, Any]]],
) -> Callable[[TrainState], TrainState]:
    """Return the function that makes the first state: weights of `base`, and a task's own beginning."""
    start = begin_with(base.variables, base.source) if options["tune"]["start"] == "base" else lambda state: state
    task = options["task"]
    if not task or not task.get("standardise", True):
        return start
    standardised = tasks.get(task["name"]).standardised

    def begin(state: TrainState) -> TrainState:
        state = start(state)
        params = tuning.merged(state.params, options["tune"])
        model_params = {name: x for name, x in params.items() if name != tuning.TASK}
        return standardised(module, model, options["inputs"], model_params, state, batches())

    return begin


def begin_with(
    variables: Mapping[str, Any], source: str, say: Callable[[str], None] = print
) -> Callable[[TrainState], TrainState]:
    """Return a function that puts parameters and buffers into a state, where name and shape are the same, and says so.

    The function raises ValueError where no parameter is.
    """

    def start(state: TrainState) -> TrainState:
        kept, new = [], []

        def pick(saved: Mapping[str, Any], path: tuple, leaf: jax.Array) -> jax.Array:
            name = path_name(path)
            if name not in saved or saved[name].shape != leaf.shape:
                new.append(name)
                return leaf
            kept.append(name)
            return jax.device_put(saved[name].astype(leaf.dtype), leaf.sharding)

        def picked(tree: Any, source_tree: Any) -> Any:
            leaves = jax.tree_util.tree_leaves_with_path(source_tree)
            saved = {path_name(path): np.asarray(value) for path, value in leaves}
            return jax.tree_util.tree_map_with_path(lambda path, leaf: pick(saved, path, leaf), tree)

        params = picked(state.params, variables["params"])
        if not kept:
            raise ValueError(f"config.init_from={source}: no parameter has the name and shape of one of this model")
        say(f"init_from: {len(kept)} parameters taken; new: {', '.join(new) or 'none'}")
        buffers = picked(state.buffers, {name: x for name, x in variables.items() if name != "params"})
        ema = state.ema and jax.tree.map(jax.numpy.copy, params)
        return state.replace(params=params, buffers=buffers, ema=ema)

    return start


def write(
    path: pathlib.Path,
    state: TrainState,
    optimizer: Mapping[str, Any],
    base: Run,
    options: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> None:
    """Write what a finished run has trained, unless that is all of the model."""
    if options["tune"]["method"] == "full" or options["tune"]["start"] == "random" or jax.process_count() > 1:
        return
    trained = optim.build(state.params, steps=1, **optimizer).trained
    began = {"path": str(options["init_from"]), "digest": tuning.digest(base.variables["params"])}
    fitted = {name: state.constants[name] for name in bags.missing(base.module, base.constants)}
    tuning.save(path, state, trained, began, {**meta, "step": int(state.step)}, fitted)


def _task_keys(task: Mapping[str, Any]) -> list[str]:
    names = {"cell_type"}
    if task.get("name") not in names:
        raise ValueError(f"task.name={task.get('name')!r}: must be one of {', '.join(sorted(names))}")
    return ["name", *settings.keywords(tasks.get(task["name"]).objective)]
