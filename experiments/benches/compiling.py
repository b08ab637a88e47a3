"""Compile a training step or inference for devices that are not here, and say what it takes of them.

Nothing is run and no array of it is ever made. What is compiled is what a run compiles: `training.step.jitted` on the
mesh of the target's devices, state and batch spread over them as `sharding` spreads those of a run.
"""

import functools
import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benches import hlo, layouts, roofline
from experiments.benches.step import Case
from experiments.benches.targets import Target
from scfm_jax import models, sharding
from scfm_jax.training import optim
from scfm_jax.training import step as steps
from scfm_jax.types import Batch

TOP = 10
"""Kernels that are listed one by one."""
USABLE = 0.95
"""Of a device's memory: the rest is the libraries'."""


class Program(NamedTuple):
    """A compiled program, the cells that it takes, and the FLOPs of the model in it, of all devices together."""

    compiled: jax.stages.Compiled
    cells: int
    flops: float
    seconds: float


class Wanted(NamedTuple):
    """What is to be compiled: a model's case on a target.

    Attributes:
      infer: inference, not training. tune: a method of fine-tuning to train by.
      microbatches: of a batch, each of as many bags as are asked for.
    """

    model: str
    case: Case
    target: Target
    mesh: Mesh
    infer: bool = False
    tune: str | None = None
    microbatches: int = 1


def compiled(wanted: Wanted, bags: int) -> Program:
    """Return the program for so many bags on each device.

    ValueError: the cells do not divide over the devices. JaxRuntimeError: the compiler refuses, for want of memory too.
    """
    mesh = wanted.mesh
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    batch = layouts.resized(wanted.case.batch, bags * devices * wanted.microbatches)
    if batch.genes.shape[1] % mesh.shape["seq"]:
        raise ValueError(f"--mesh=seq:{mesh.shape['seq']}: does not divide a bag of {batch.genes.shape[1]} cells")
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered, flops = (_inference if wanted.infer else _training)(wanted, batch)
        made = lowered.compile(compiler_options=wanted.target.options)
    return Program(made, batch.cell_mask.size, flops, time.perf_counter() - started)


def _training(wanted: Wanted, batch: Batch) -> tuple[Any, float]:
    """Return (the lowered training step, its FLOPs)."""
    module, case, mesh = models.get(wanted.model), wanted.case, wanted.mesh
    if wanted.tune:
        objective, case = layouts.tuned(wanted.model, case, wanted.tune)
        labels = {name: jax.ShapeDtypeStruct(batch.cell_mask.shape, x.dtype) for name, x in case.batch.labels.items()}
        batch = batch.replace(labels=labels)
    else:
        objective = steps.pretraining(module, case.network, case.inputs, case.loss)
    options = {"schedule": "constant", **case.optimizer}
    optimizer = functools.partial(optim.build, steps=100_000, layers=module.TUNING, **options)
    begin = functools.partial(steps.init_state, objective, optimizer, 0)
    shapes = jax.eval_shape(begin, batch, case.constants)
    layout, place = sharding.state_shardings(shapes, mesh), NamedSharding(mesh, PartitionSpec())
    step = steps.jitted(objective, optimizer(shapes.params), wanted.microbatches, layout, place)
    lowered = step.lower(sharding.abstract(shapes, layout), spread(batch, mesh))
    return lowered, objective.step_flops(batch, shapes.constants)


def _inference(wanted: Wanted, batch: Batch) -> tuple[Any, float]:
    """Return (the lowered embedding of a batch, its FLOPs)."""
    module, case, mesh = models.get(wanted.model), wanted.case, wanted.mesh
    inputs = {**case.inputs, **case.infer}

    def prepare(batch: Batch, constants: Any) -> Any:
        return module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)

    def embed(variables: Any, constants: Any, batch: Batch) -> Any:
        return case.network.apply(variables, prepare(batch, constants), rngs={"latent": jax.random.key(0)}).cells

    def begin(batch: Batch, constants: Any) -> Any:
        key = jax.random.key(0)
        return case.network.init({"params": key, "latent": key}, prepare(batch, constants)), constants

    shapes = jax.eval_shape(begin, batch, case.constants)
    held = sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))
    flops = module.flops(case.network, jax.eval_shape(prepare, batch, case.constants), embed=True)
    return jax.jit(embed).lower(*held, spread(batch, mesh)), flops


def spread(batch: Batch, mesh: Mesh) -> Batch:
    """Return the shapes of a batch as it lies on the devices."""
    return sharding.abstract(batch, jax.tree.map(lambda x: sharding.batch_sharding(mesh, x.ndim), batch))


def sections(wanted: Wanted, bags: Sequence[int]) -> dict[str, list[dict]]:
    """Return {title: rows}: memory for each number of bags on a device, and of the first that fits what a step takes.

    ValueError where none can be compiled.
    """
    rows, program, first = [], None, 0
    for number in bags:
        row, made = _memory(wanted, number)
        rows.append(row)
        if program is None and made is not None:
            program, first = made, number
    if program is None:
        raise ValueError(f"--target={wanted.target.name}: {rows[0]['refused']}")
    cells = wanted.case.batch.genes.shape[1] / wanted.mesh.shape["seq"]
    rows += largest(rows, wanted.target.each.memory, cells)
    return {"memory of each device": rows, **described(wanted, program, first)}


def _memory(wanted: Wanted, bags: int) -> tuple[dict, Program | None]:
    """Return (row of the memory that so many bags on a device take, their program); no program where it is refused."""
    cells = bags * wanted.case.batch.genes.shape[1] / wanted.mesh.shape["seq"]
    row, memory = {"part": "compiled", "bags": bags, "cells": cells}, wanted.target.each.memory
    try:
        program = compiled(wanted, bags)
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        used = re.search(r"[Uu]sed ([\d.]+)G of", text)
        row |= {"peak_gb": float(used[1]) * 2**30 / 1e9, "of_memory": float(used[1]) * 1.074 / memory} if used else {}
        return row | {"refused": text[:300]}, None
    used = program.compiled.memory_analysis()
    state, new = used.argument_size_in_bytes, used.output_size_in_bytes - used.alias_size_in_bytes
    peak = (state + used.temp_size_in_bytes + new) / 1e9
    row |= {"state_gb": state / 1e9, "temporaries_gb": used.temp_size_in_bytes / 1e9, "peak_gb": peak}
    return row | {"of_memory": peak / memory, "compile_s": program.seconds}, program


def largest(rows: Sequence[dict], memory: float, cells: float) -> list[dict]:
    """Return a row for the most bags that fit by the line through the first and the last that were compiled.

    [] where there is one alone, or memory does not rise. `cells`: of a bag on each device.
    """
    ends = [row for row in rows if "peak_gb" in row]
    if len(ends) < 2 or ends[-1]["bags"] == ends[0]["bags"] or ends[-1]["peak_gb"] <= ends[0]["peak_gb"]:
        return []
    (low, high), bags = (ends[0], ends[-1]), ends[-1]["bags"] - ends[0]["bags"]
    each = (high["peak_gb"] - low["peak_gb"]) / bags
    most = math.floor((USABLE * memory - low["peak_gb"]) / each + low["bags"])
    peak = low["peak_gb"] + each * (most - low["bags"])
    row = {"part": "largest that fits", "bags": max(0, most), "cells": max(0, most) * cells}
    return [row | ({"peak_gb": peak, "of_memory": peak / memory} if most > 0 else {})]


def described(wanted: Wanted, program: Program, bags: int) -> dict[str, list[dict]]:
    """Return what a program calls, exchanges and takes at least, of each device."""
    device, n = wanted.target.each, wanted.mesh.size
    text = program.compiled.as_text()
    walk = roofline.Walk(hlo.parse(text), device, n, on_chip=wanted.mesh.devices.flat[0].platform == "tpu")
    return {
        f"one step of {bags} bags on each of {n} devices, at least": [estimate(walk, program, n)],
        "kernels by kind": kinds(walk),
        "loops": [{"loop": name, "times": times, "source": source} for name, times, source in walk.loops],
        "exchanges between devices": exchanges(walk),
        f"the {TOP} most expensive kernels": top(walk),
    }


def estimate(walk: roofline.Walk, program: Program, devices: int) -> dict:
    """Return the time of a step and the share of the peak that the model's own FLOPs are of it (MFU)."""
    work, between, peak = walk.seconds(), walk.exchange_seconds(), walk.device.tflops * 1e12
    total = {name: sum(k.times * getattr(k.cost, name) for k in walk.kernels) for name in ("matrix", "vector", "size")}
    return {
        "s": work + between,
        "kernels_s": work,
        "exchanges_s": between,
        "mfu": program.flops / devices / peak / (work + between),
        "tflop": total["matrix"] / 1e12,
        "model_tflop": program.flops / devices / 1e12,
        "vector_tera": total["vector"] / 1e12,
        "memory_gb": total["size"] / 1e9,
        "cells_per_s": program.cells / (work + between),
        "started": sum(k.times for k in walk.kernels),
    }


def kinds(walk: roofline.Walk) -> list[dict]:
    """Return a row for each kind of kernel: how many stand in the text, how often they run, what they take."""
    rows: dict[str, dict] = {}
    for k in walk.kernels:
        row = rows.setdefault(k.kind, {"kind": k.kind, "number": 0, "times": 0, "ms": 0.0, "tflop": 0.0, "gb": 0.0})
        more = {"number": 1, "times": k.times, "ms": k.times * k.cost.seconds(walk.device) * 1e3}
        more |= {"tflop": k.times * k.cost.matrix / 1e12, "gb": k.times * k.cost.size / 1e9}
        row |= {name: row[name] + value for name, value in more.items()}
    return sorted(rows.values(), key=lambda row: -row["ms"])


def exchanges(walk: roofline.Walk) -> list[dict]:
    """Return a row for each kind of exchange and number of devices in it, with the bytes that a device sends."""
    rows: dict[tuple, dict] = {}
    for e in walk.exchanges:
        row = rows.setdefault((e.kind, e.among), {"kind": e.kind, "among": e.among, "number": 0, "times": 0, "gb": 0.0})
        row |= {"number": row["number"] + 1, "times": row["times"] + e.times, "gb": row["gb"] + e.times * e.size / 1e9}
    link = walk.device.link
    return [row | {"ms": row["gb"] / link * 1e3} for row in sorted(rows.values(), key=lambda row: -row["gb"])]


def top(walk: roofline.Walk) -> list[dict]:
    """Return a row for each of the kernels that take longest, all of their runs together."""
    longest = sorted(walk.kernels, key=lambda k: -k.times * k.cost.seconds(walk.device))[:TOP]
    return [
        {
            "kernel": k.name,
            "kind": k.kind,
            "times": k.times,
            "ms": k.times * k.cost.seconds(walk.device) * 1e3,
            "tflop": k.times * k.cost.matrix / 1e12,
            "gb": k.times * k.cost.size / 1e9,
            "source": k.source,
        }
        for k in longest
    ]
