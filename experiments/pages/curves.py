"""The training curves of a run as HTML: the loss first, then what can be compared, the rest folded."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.pages import document, figures
from scfm_jax.saving import sealed
from scfm_jax.tasks.floors import TRUTH

PANELS = {
    "Loss": ("loss", "val/loss"),
    "Learning rate": ("learning_rate",),
    "Gradient norm": ("grad_norm",),
    "Cells per second": ("cells/s",),
    "Share of time waiting for data": ("data_wait",),
    "Memory, GB": ("memory_gb",),
}
"""Curves that have a place of their own; every other metric is drawn with its validation."""
UNITS = {
    "Loss": "loss",
    "Learning rate": "learning rate",
    "Gradient norm": "norm of the gradient",
    "Cells per second": "cells/s",
    "Share of time waiting for data": "share of the time",
    "Memory, GB": "GB",
}
"""What the heights of those curves are; those of other curves are the metric itself."""
LOSSES = (
    "Training: the mean over the steps since the point before, entries hidden anew in each. Validation: all cells of "
    "the validation part, the same entries hidden every time. They score different entries: judge each by its own "
    "course."
)
FLOORS = (
    "Dashed: floors, what tables score on the validation cells that know genes and perhaps studies, but nothing of the "
    "cell, learnt from training cells before the first step."
)
UNDRAWN = ("step", "time", "cells", "tokens", "skipped", "tokens/s", "mfu")


def drawn(workdir: pathlib.Path, titles: Sequence[str] = (), of: str = "") -> str:
    """Return the training curves of a run as HTML, "" where there are none.

    Args:
      titles: of the panels that are wanted; all, if left out. of: whose they are, for the captions.
    """
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in ("metrics.jsonl", "timing.jsonl"):
        frame = pd.DataFrame([row for _, row in sealed.read_lines(workdir / name).rows])
        for column in frame.columns.difference(["step"], sort=False):
            measured = frame[["step", column]].dropna().drop_duplicates("step", keep="last").sort_values("step")
            series[column] = measured["step"].to_numpy(), measured[column].to_numpy(float)
    series = {name: points for name, points in series.items() if len(points[0])}
    floors = {name.removeprefix("floor/"): y[-1] for name, (_, y) in series.items() if name.startswith("floor/")}
    series = {name: points for name, points in series.items() if not name.startswith("floor/")}
    leading, rest = _panels(series)
    cards = [[], []]
    for group, panels in zip(cards, (leading, rest), strict=True):
        for title, metrics in panels.items():
            lines = {n.replace("val/", "validation "): series[n] for n in metrics if n in series}
            if lines and (not titles or title in titles):
                levels = _levels(floors, series, metrics)
                note = document.note(_of_losses(series)) if len(lines) > 1 and title == "Loss" else ""
                note += document.note(FLOORS) if levels and title == "Loss" else ""
                caption = f"{of}: {title.lower()}" if of else title
                group.append(_curve(caption, lines, UNITS.get(title, title), note, levels))
    more = f"<div class='curves'>{''.join(cards[1])}</div>" if cards[1] else ""
    if more and not titles:
        more = document.folded(f"{len(cards[1])} more curves: speed, memory, gradients and single terms", more)
        return "".join(cards[0]) + more
    return "".join(cards[0] + cards[1])


def _panels(series: Mapping[str, Any]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return titles and metrics of the curves that matter, and those of the rest: {title: metrics}.

    The loss comes first, then what training and validation both have, which is what can be compared, and the residual
    score. A term that is the loss itself is not drawn again.
    """
    placed = {name for metrics in PANELS.values() for name in metrics} | set(UNDRAWN)
    terms = sorted({name.removeprefix("val/") for name in series} - placed)
    terms = [name for name in terms if not _is_loss(series, name)]
    both = [name for name in terms if name == "residual" or {name, f"val/{name}"} <= series.keys()]
    panels = {name.replace("_", " "): (name, f"val/{name}") for name in (*both, *(t for t in terms if t not in both))}
    leading = {title: panels[title] for title in list(panels)[: len(both)]}
    rest = {title: metrics for title, metrics in (PANELS | panels).items() if title not in ("Loss", *leading)}
    return {"Loss": PANELS["Loss"]} | leading, rest


def _levels(floors: Mapping[str, float], series: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    """Return the floors {table: value} of a panel, of {"metric/table": value}; the residual score's is 0."""
    if "val/residual" in metrics:
        return {"floor": 0.0}
    levels = {}
    for (metric, _, table), value in ((name.partition("/"), value) for name, value in floors.items()):
        if table != TRUTH and (metric in metrics or ("loss" in metrics and _is_loss(series, metric))):
            levels[table] = value
    return levels


def _is_loss(series: Mapping[str, Any], name: str) -> bool:
    """Return whether a term has the values of the loss, in training and in validation."""
    return _same(series, name, "loss") and _same(series, f"val/{name}", "val/loss")


def _same(series: Mapping[str, Any], name: str, other: str) -> bool:
    """Return whether two metrics have the same values at every step, or neither is there."""
    if name not in series or other not in series:
        return (name in series) == (other in series)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(series[name], series[other], strict=True))


def _of_losses(series: Mapping[str, Any]) -> str:
    """Return how far the losses of training and validation can be compared."""
    _, rest = _panels(series)
    alone = [name for name, _ in (m for m in rest.values() if len(m) == 2) if f"val/{name}" not in series]
    if not alone:
        return LOSSES
    return f"{LOSSES} Only training has {', '.join(alone)}: the two losses are not the same sum; compare their terms."


def _curve(
    caption: str,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    unit: str,
    below: str,
    levels: Mapping[str, float],
) -> str:
    """Return the curves of one panel, and its levels across, as HTML."""
    last = ", ".join(f"{name} {values[-1]:.4g} at step {steps[-1]}" for name, (steps, values) in lines.items())
    alt = f"{caption} over the steps; at the end: {last}"
    if levels:
        alt += "; dashed: " + ", ".join(f"{name} {value:.4g}" for name, value in levels.items())
    return document.figure(caption, figures.curves(lines, unit, levels), "svg+xml", alt, below)
