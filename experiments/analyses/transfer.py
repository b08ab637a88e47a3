"""Train a model on a new study from its weights and from random ones, and draw all by epoch: runs, table, picture."""

import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import scfm_jax
from experiments.analyses import cells as model_cells
from experiments.pages import figures, output
from experiments.training import finetuning, settings
from scfm_jax import sharding
from scfm_jax.api import Run
from scfm_jax.inference import bags
from scfm_jax.saving import sealed
from scfm_jax.tasks import floors
from scfm_jax.tasks.cells import transfer as task
from scfm_jax.training import loop, pace
from scfm_jax.training.validation import measured
from scfm_jax.types import TrainState

NAMES = {
    "explained_variance": "explained variance, all masked entries",
    "slot_variance": "explained variance by mask slot",
}


def evaluate(
    run: Run,
    source: Any,
    runs: pathlib.Path,
    *,
    epochs: int = 10,
    epochs_random: int | None = None,
    starts: Sequence[str] = (),
    seeds: int = 5,
    batch: int | None = None,
    learning_rate: float | None = None,
    validation: float = task.VALIDATION,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return {"rows": a validation each, {start, seed, epoch, metrics}, ...}; epoch 0 is before the first update.

    "floors" has {floor, seed, metrics} of the tables that stand beside the model.

    Args:
      runs: folder of the runs, <start>_<seed> each; a run that is there goes on from its newest checkpoint.
      epochs: of each run. epochs_random: of those whose network starts from random weights, if it is another number.
      starts: of `task.STARTS`, by default all that the model has. seeds: runs of each.
      validation: share of the cells.
      batch, learning_rate: those that the model was trained with, if left out.
      options: of `model_cells.read`.

    Raises:
      ValueError, OSError: too few cells, too few known genes; in one line.
    """
    cells = model_cells.read(run, source, say=say, **options)
    rows: list[dict[str, Any]] = []
    tables: list[dict[str, Any]] = []
    starts = starts or task.starts(run.module, run.variables, len(run.genes))
    lengths = {start: (epochs_random or epochs) if start in task.FROM_RANDOM else epochs for start in starts}
    for seed in pace.counted(range(seeds), "trained seed", say):
        prepared = _prepared(run, cells, seed, batch, validation)
        tables += _floors(run, prepared, seed)
        for start in pace.counted(starts, "trained start", say):
            folder = runs / f"{start}_{seed}"
            rows += _curve(run, cells, prepared, start, seed, lengths[start], learning_rate, folder)
            say(f"{start}, seed {seed}: {_line(rows[-1])}")
    return {
        "model": run.name,
        "weights": run.source,
        "input": cells.name,
        "trained_on": cells.trained_on,
        "genes": int(cells.measured.sum()),
        "cells": {
            part: len(part_rows) for part, part_rows in zip(("train", "validation"), prepared["rows"], strict=True)
        },
        "epoch_steps": prepared["loader"].epoch_steps,
        "epochs": epochs,
        "lengths": lengths,
        "floors": tables,
        "seeds": seeds,
        "rows": rows,
    }


def _prepared(
    run: Run, cells: model_cells.ModelCells, seed: int, batch: int | None, validation: float
) -> dict[str, Any]:
    """Return what both starts share: rows and loaders of the two parts, constants and inputs fitted to the first."""
    trained = run.meta["config"].get("data", {})
    loader_options = {"bag": trained.get("bag") or 1, "batch": batch or trained.get("batch", 64), "seed": seed}
    loader_options["labels"] = list(trained.get("labels", ()))
    rows = task.split(cells.counts.shape[0], seed, validation)
    loaders = [task.CellsInMemory(cells.counts, part, **loader_options) for part in rows]
    constants, inputs = run.constants | bags.own_vocabulary(cells.measured[None]), run.meta["config"].get("inputs", {})
    inputs = inputs | ({"n_mask": 0} if "n_mask" in inputs else {})  # of the new study's genes
    parts = dict(zip(("train", "val"), (loader.epoch_batches() for loader in loaders), strict=True))
    constants, inputs = bags.refitted(run.module, constants, parts, inputs)
    data = zlib.crc32(cells.counts.data, zlib.crc32(cells.counts.indices))
    return {
        "data": data,
        "rows": rows,
        "loader": loaders[0],
        "validation": loaders[1],
        "constants": constants,
        "inputs": inputs,
    }


def _floors(run: Run, prepared: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return what tables learnt from the cells to train on score on the others, where the same genes are hidden."""
    loss = task.loss_options(run.module, run.meta["config"].get("loss", {}))
    tables, constants = floors.of(run.name, prepared["inputs"], loss), prepared["constants"]
    if tables is None:
        return []
    key, zero = jax.random.key_data(jax.random.key(seed)), np.zeros((), np.int32)
    state = TrainState(step=zero, rng=key, params={}, opt_state=(), buffers={}, constants=dict(constants))
    parts, mesh = (prepared["loader"], prepared["validation"]), sharding.make_mesh()
    with jax.set_mesh(mesh):
        values = measured(tables, state, constants, *parts, mesh, cells=len(prepared["rows"][0]))
    rows: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        metric, table = name.split("/", 1)
        rows.setdefault(table, {"floor": table, "seed": seed})[metric] = value
    return [row for table, row in rows.items() if table != floors.TRUTH]


def _curve(
    run: Run,
    cells: model_cells.ModelCells,
    prepared: Mapping[str, Any],
    start: str,
    seed: int,
    epochs: int,
    learning_rate: float | None,
    folder: pathlib.Path,
) -> list[dict[str, Any]]:
    """Train one model, or go on, and return its validations."""
    loader, every = prepared["loader"], prepared["loader"].epoch_steps
    objective = task.objective(run.module, run.model, prepared["inputs"], run.meta["config"].get("loss", {}))
    optimizer = dict(run.meta["config"].get("optim", {}))
    if optimizer.pop("schedule_unit", "update") == "epoch":
        optimizer["schedule_every"] = every
    if learning_rate:
        optimizer["learning_rate"] = learning_rate
    config = run.meta["config"] | {"optim": optimizer, "inputs": prepared["inputs"], "init_from": start}
    config["data"] = {**config.get("data", {}), "input": cells.name}
    metadata = {**run.meta, "config": config, "code_version": scfm_jax.__version__, "store": prepared["data"]}
    folder = settings.prepare_workdir(str(folder), metadata)
    before = folder / "start.json"

    def begin(state: TrainState) -> TrainState:
        weights = task.beginning(start, run.module, run.variables, cells.measured, seed)
        state = finetuning.begin_with(weights, run.source, say=lambda _: None)(state) if weights else state
        validate = loop.validator(objective, prepared["validation"], sharding.make_mesh())
        output.write_file(before, validate(state))
        return state

    steps = epochs * every
    loop.fit(
        objective, loader, prepared["constants"], metadata, folder, optimizer=optimizer, steps=steps, seed=seed,
        log_every=every, eval_every=every, checkpoint_every=steps, keep=1, tensorboard=False,
        validation=prepared["validation"], initial=begin,
    )  # fmt: skip
    rows = [{"start": start, "seed": seed, "epoch": 0, **output.read(before)}]
    lines = sealed.read_lines(folder / "metrics.jsonl")
    for problem in lines.problems:
        output.warn(f"{folder}: {problem}")
    for _, line in lines.rows:
        values = {name.removeprefix("val/"): value for name, value in line.items() if name.startswith("val/")}
        if values:
            rows.append({"start": start, "seed": seed, "epoch": line["step"] // every, **values})
    return rows


def metrics(found: Mapping[str, Any]) -> list[str]:
    """Return the metrics that are shown: both kinds of explained variance, or what the model has, and the loss."""
    variances = [name for name in NAMES if name in found["rows"][0]]
    rest = [name for name in ("mse", "accuracy") if name in found["rows"][0]]
    return variances or rest or ["loss"]


def _line(row: Mapping[str, Any]) -> str:
    shown = [name for name in (*NAMES, "loss") if row.get(name) is not None]
    return f"epoch {row['epoch']}, " + ", ".join(f"{name} {row[name]:.3f}" for name in shown)


def table(found: Mapping[str, Any]) -> str:
    """Return the scores as Markdown: before training, after one epoch, after half of them and all; the floors below."""
    frame, last = pd.DataFrame(found["rows"]), {found["epochs"], *found["lengths"].values()}
    epochs = sorted({0, 1, found["epochs"] // 2, *last})
    head, lines = ["start", "metric", *(f"epoch {epoch}" for epoch in epochs)], []
    head += ["epochs to the gene's table"] if found["floors"] else []
    for metric in metrics(found):
        for start in found["lengths"]:
            of_start = frame[frame.start == start]
            values = [output.spread(of_start[of_start.epoch == epoch][metric].tolist()) for epoch in epochs]
            lines.append([task.STARTS[start], NAMES.get(metric, metric), *values, *_needed(found, start, metric)])
        for floor in _tables(found, metric):
            score = output.spread([row[metric] for row in found["floors"] if row["floor"] == floor])
            lines.append([floor, NAMES.get(metric, metric), *[score] * len(epochs), ""])
    text = output.markdown(head, lines)
    text += f"\n\n{found['input']}: {found['cells']['train']:,} cells to train, {found['cells']['validation']:,} to "
    text += f"validate, {found['genes']:,} genes, {found['epoch_steps']} steps an epoch; mean ± half the range over "
    text += f"{found['seeds']} seeds (of split, order, masks and random weights)."
    if found["trained_on"]:
        text += f"\nCaution: by its name {found['input']} is a study that the model was trained on."
    return text


def _tables(found: Mapping[str, Any], metric: str) -> list[str]:
    """Return the tables that a metric stands beside, the simplest first."""
    return list(dict.fromkeys(row["floor"] for row in found["floors"] if metric in row))


def reached(found: Mapping[str, Any], start: str, metric: str = "explained_variance") -> list[int | None]:
    """Return the first epoch at which each run of a start is at least level with the gene's mean, None where never."""
    epochs: list[int | None] = []
    for floor in (row for row in found["floors"] if row["floor"] == _tables(found, metric)[0]):
        runs = [row for row in found["rows"] if row["start"] == start and row["seed"] == floor["seed"]]
        level = sorted(row["epoch"] for row in runs if row[metric] >= floor[metric])
        epochs.append(level[0] if level else None)
    return epochs


def _needed(found: Mapping[str, Any], start: str, metric: str) -> list[str]:
    """Return the cell of the table that says `reached`, nothing where there are no floors."""
    if not found["floors"] or metric not in NAMES:
        return [""] * bool(found["floors"])
    last = found["lengths"][start]
    return [", ".join(f"> {last}" if epoch is None else str(epoch) for epoch in reached(found, start, metric))]


def picture(found: Mapping[str, Any]) -> bytes:
    """Draw every metric by epoch, a thin line for each seed and a thick one for the mean, floors dashed, as PNG."""
    frame, shown = pd.DataFrame(found["rows"]), metrics(found)
    figure = Figure(figsize=(1 + 3.4 * len(shown), 3.3 + 0.2 * len(found["lengths"])), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for start, colour, mark in zip(found["lengths"], figures.COLOURS, "os^D", strict=False):
            curves = frame[frame.start == start].pivot(index="epoch", columns="seed", values=metric)
            axes.plot(curves.index, curves, color=colour, lw=0.7, alpha=0.45)
            name = task.STARTS[start]
            axes.plot(curves.index, curves.mean(axis=1), color=colour, lw=2.2, marker=mark, ms=4, label=name)
        for floor, dash in zip(_tables(found, metric), ("--", ":", "-."), strict=False):
            level = np.mean([row[metric] for row in found["floors"] if row["floor"] == floor])
            axes.axhline(level, color=figures.COLOURS[6], ls=dash, lw=1.4, label=floor)
        axes.set_xlabel("epoch on the new study")
        axes.set_title(NAMES.get(metric, metric), fontsize=10, loc="left")
        axes.grid(color=figures.FAINT, lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    return figures.encoded(figure, "png")


def comma_separated(found: Mapping[str, Any]) -> str:
    """Return every validation as CSV."""
    return pd.DataFrame(found["rows"]).to_csv(index=False)
