"""What `experiments.impute` scored, as pictures and tables: each metric of every method over what was hidden."""

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pages import document, figures, names
from scfm_jax.tasks.imputation import baselines, imputation

NEVER = ", never 0"
TABLES = {
    "gene mean": figures.COLOURS[1],
    "most common bin": figures.COLOURS[3],
    "common bin": figures.COLOURS[3],
    "gene x sample mean": figures.COLOURS[4],
    "gene x sample bin": figures.COLOURS[7],
}
"""Colours of tables, dashed, dash-dotted where they never say zero."""
OTHERS = {
    "random twin": (figures.COLOURS[6], ":"),
    f"{baselines.NEIGHBOURS} neighbours": (figures.COLOURS[2], "-"),
    "diffusion": (figures.DARK[2], "-"),
}
"""Colour and line of what else stands beside the model, which is blue."""
HIDDEN = {"gene": "share of genes hidden, %", "cell": "cells hidden, of 50", "fixed_gene": "genes hidden, by sparsity"}
RULERS = {"visible": "ruler of the visible entries", "cell": "ruler of the whole cell"}


def frame(scores: Mapping[str, Any]) -> pd.DataFrame:
    """Return the rows of `experiments.impute`, each with its ruler, which older files say once for all."""
    return pd.DataFrame([{"ruler": scores["ruler"], **row} for row in scores["rows"]])


def drawn(scores: Mapping[str, Any], ruler: str) -> bytes:
    """Draw every metric of every method over the cases, as SVG: MCC above, MAE below, the legend in the last place.

    Lines are means over seeds; bars are 95 % intervals, from three seeds on. A single case is drawn as points.
    """
    rows = frame(scores)
    rows = rows[rows["ruler"] == ruler]
    cases = list(dict.fromkeys(rows["case"]))
    numbers = [re.match(r"[\d.]+", case) for case in cases]
    ordered = scores["task"] != "fixed_gene" and all(numbers)
    places = [float(number[0]) for number in numbers] if ordered else list(range(len(cases)))
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    grid = figure.subplots(2, 3).ravel()
    metrics = [metric for metric in imputation.METRICS if metric in rows]
    for axes, metric in zip(grid, metrics, strict=False):
        for method, of_method in rows.groupby("method", sort=False):
            _line(axes, method, places, [of_method.loc[of_method["case"] == case, metric] for case in cases])
        axes.set_title(imputation.METRICS[metric], fontsize=10)
        axes.set_xlabel(HIDDEN[scores["task"]])
        axes.set_xticks(places, [case.split()[0].rstrip("%") for case in cases] if ordered else cases, fontsize=8.5)
        axes.grid(color=figures.FAINT, lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if metric.startswith("mae") and (rows[metric].dropna() > 0).all():
            axes.set_yscale("log")
    for axes in grid[len(metrics) :]:
        axes.set_axis_off()
    lines, labels = grid[0].get_legend_handles_labels()
    grid[-1].legend(lines, labels, loc="center", frameon=False, fontsize=10, handlelength=3.5)
    figure.suptitle(names.label(f"{scores['input']}: {RULERS[ruler]}", 100), fontsize=11)
    return figures.encoded(figure, "svg")


def _line(axes: Axes, method: str, places: list[float], values: list[pd.Series]) -> None:
    """Draw the means of a method and, of three seeds or more, their intervals."""
    mean, half = np.array([imputation.interval(of_case) for of_case in values]).T
    table = method.removesuffix(NEVER)
    colour, dash, width = figures.COLOURS[5 if method.endswith("even masks") else 0], "-", 2.6
    if method in OTHERS:
        (colour, dash), width = OTHERS[method], 1.5
    elif table in TABLES:
        colour, dash, width = TABLES[table], "--" if table == method else "-.", 1.5
    axes.plot(places, mean, dash, color=colour, lw=width, marker=".", label=names.label(method))
    if len(values[0]) > 2:
        axes.errorbar(places, mean, half, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, alpha=0.8)


def section(workdir: pathlib.Path, read: Callable[[pathlib.Path], dict[str, Any] | None]) -> str:
    """Return the pictures of a run's imputations and, folded, their tables, as HTML; "" where there are none.

    Args:
      read: returns what is in a JSON file, None where there is none.
    """
    parts = []
    for task in imputation.TASKS:
        if not (scores := read(workdir / f"imputation_{task}.json")):
            continue
        for ruler, rows in frame(scores).groupby("ruler", sort=False):
            caption = f"Imputation of {names.short(scores['input'])}, {HIDDEN[task].split(',')[0]}: {RULERS[ruler]}"
            head, lines = _table(rows)
            alt = f"{caption}. " + "; ".join(f"{case}, {method}: {mcc}" for case, method, mcc, *_ in lines)
            parts.append(document.figure(caption, drawn(scores, ruler), "svg+xml", alt))
            parts.append(document.folded("All numbers", document.table(caption, head, lines, css="numbers")))
    note = (
        "Mean and 95 % interval over seeds. Where expressed entries alone are scored, a table that never says zero "
        "(dash-dotted) is the floor. Within genes a constant bin of each gene has 0; a gene mean has more, by the "
        "cell's depth and ruler."
    )
    return document.note(note) + "".join(parts) if parts else ""


def _table(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines of the table of one ruler: case, method, each metric."""
    metrics = [metric for metric in imputation.METRICS if metric in rows]
    lines = []
    for (case, method), group in rows.groupby(["case", "method"], sort=False):
        spread = [imputation.interval(group[metric]) for metric in metrics]
        numbers = [f"{mean:.3f}" + ("" if np.isnan(half) else f" ± {half:.3f}") for mean, half in spread]
        lines.append([case, method, *numbers])
    return ["Hidden", "method", *(imputation.METRICS[metric] for metric in metrics)], lines
