"""The layouts that programs are compiled for without running them: a bench's rows, and the variants of configs.

A variant has its config's network, options and optimiser, on the shapes of the bench's first row: as many genes, as
many of them expressed in a cell, and its own number of cells in a bag.
"""

import ast
import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from configs import finetune_cell_type
from experiments.benches import step
from experiments.benches.step import Case
from scfm_jax import models, sharding, tasks
from scfm_jax.training import step as steps
from scfm_jax.training import tuning
from scfm_jax.types import Batch

TYPES = 20
"""Cell types that a fine-tuning tells apart."""


def layout(model: str, row: str | None, changes: Sequence[str] = (), dtype: str | None = None) -> Case:
    """Return the case of a bench's row, or of a variant of the model's pre-training config.

    Args:
      changes: "field:value" of the network. dtype: what it computes in, not its own.

    ValueError names the rows and variants, or the fields, that there are.
    """
    bench, first = step.find(model, None)
    if row in (None, *bench.ROWS):
        case = bench.case(row or first, False)
    else:
        case = _variant(model, row, bench.case(first, row == "tiny"), bench.ROWS)
    options = pairs("network", changes) | ({"dtype": dtype} if dtype else {})
    fields = {field.name for field in dataclasses.fields(case.network)}
    for name in options:
        if name not in fields:
            raise ValueError(f"--network={name}: {model} has no such field; there are {', '.join(sorted(fields))}")
    return case._replace(network=case.network.clone(**options))


def pairs(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Return {name: value} of texts "name:value"; values are Python's where they can be read so."""
    values = {}
    for text in texts:
        name, colon, value = text.partition(":")
        if not colon:
            raise ValueError(f"--{flag}={text}: write name:value, with commas between")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    return values


def mesh_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Return the keywords of `sharding.mesh_of` of texts "axis:number"; ValueError names an axis that there is not."""
    sizes = pairs("mesh", texts)
    for axis, size in sizes.items():
        if axis not in sharding.AXES or not isinstance(size, int):
            raise ValueError(f"--mesh={axis}:{size}: write a number for each of {', '.join(sharding.AXES)}")
    return sizes


def numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """Return the numbers of a flag; ValueError names one that is none."""
    for text in texts:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"--{flag}={text}: give whole numbers above 0, with commas between")
    return [int(text) for text in texts]


def _variant(model: str, row: str, like: Case, rows: Mapping[str, Any]) -> Case:
    module, configs = models.get(model), importlib.import_module(f"configs.pretrain_{model}")
    if row not in configs.SIZES:
        raise ValueError(f"--row={row}: {model} has the rows {', '.join(rows)} and variants {', '.join(configs.SIZES)}")
    config = configs.get_config(row).to_dict()
    sizes = {field: getattr(like.network, field) for field in module.SIZES}
    fitted = like.inputs if hasattr(module, "fit") else {}
    return like._replace(
        network=module.Model(**config["model"] | sizes),
        inputs=config["inputs"] | fitted,
        loss=config["loss"],
        batch=resized(like.batch, len(like.batch.genes), config["data"]["bag"]),
        optimizer={name: x for name, x in config["optim"].items() if name != "schedule_unit"},
    )


def resized(batch: Batch, bags: int, cells: int | None = None) -> Batch:
    """Return the shapes of a batch of so many bags, of so many cells where `cells` says that."""

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((bags, cells or leaf.shape[1], *leaf.shape[2:]), leaf.dtype)

    return jax.tree.map(shape, batch)


def tuned(model: str, case: Case, method: str) -> tuple[steps.Objective, Case]:
    """Return objective and case of telling cell types by a model that is fine-tuned by a `method` of `tuning`."""
    module = models.get(model)
    config = finetune_cell_type.get_config(method).to_dict()
    tune, task = tuning.options(module, method=method), config["task"]
    inputs = {**case.inputs, **module.TUNING["visible"]}
    inputs |= {"covariates": False} if "covariates" in models.defaults(module, "inputs") else {}
    network = case.network.clone(**tuning.model_options(tune))
    made = tasks.get(task.pop("name"))
    codes = jax.ShapeDtypeStruct(case.batch.cell_mask.shape, "int32")
    batch = case.batch.replace(labels={task["label"]: codes})
    inner = made.objective(module, network, inputs, [1] * TYPES, **task)
    frozen = (*config["optim"]["frozen"], *tuning.frozen(tune), *(made.FROZEN if task["standardise"] else ()))
    optimizer = {**config["optim"], "frozen": frozen}
    return tuning.objective(inner, tune), case._replace(network=network, batch=batch, optimizer=optimizer)
