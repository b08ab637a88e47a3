"""The table and the picture of `experiments.predict_perturbation`: means over conditions with bootstrap intervals."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from experiments.analyses.perturbation_methods import CEILING
from experiments.pages import figures, output, score_table
from scfm_jax.tasks.perturbation import scores

SHOWN = ("pearson", "centred", "discrimination", "mse_top")
"""Scores in the picture."""


def write(out: pathlib.Path, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, str], about: str) -> str:
    """Write table.md, table.csv (a line for each condition), table.json and table.png to OUT; return the table."""
    summary = summarised(rows)
    content = table(summary, notes, rows, about)
    drawn = picture(summary, about.splitlines()[0].strip("# "))
    return score_table.write(out, rows, summary, notes, about, content, drawn)


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, tuple[float, float, float]]]]:
    """Return {stratum: {method: {score: (mean, low, high)}}}: of each condition its mean over seeds first."""
    frame = pd.DataFrame(rows)
    measures = [name for name in scores.LABELS if name in frame]
    each = frame.groupby(["stratum", "method", "condition"], sort=False)[measures].mean().reset_index()
    summary: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    for stratum in sorted(each.stratum.unique()):
        summary[stratum] = {
            method: {name: scores.bootstrap(group[name]) for name in measures}
            for method, group in each[each.stratum == stratum].groupby("method", sort=False)
        }
    return summary


def table(summary: Mapping[str, Any], notes: Mapping[str, str], rows: Sequence[Mapping[str, Any]], about: str) -> str:
    """Return the scores as Markdown, a table for each stratum."""
    parts = [about]
    for stratum, of in summary.items():
        conditions = len({row["condition"] for row in rows if row["stratum"] == stratum})
        parts.append(f"## {stratum}: {conditions} conditions")
        measures = [name for name in scores.LABELS if any(name in values for values in of.values())]
        lines = [[method, *(_interval(values.get(name), name) for name in measures)] for method, values in of.items()]
        parts.append(output.markdown(["", *(scores.LABELS[name] for name in measures)], lines))
    parts += score_table.listed(notes)
    parts.append(
        "Means over conditions (of each the mean over seeds) with 95 % of a bootstrap over conditions. Change: mean "
        "log-normalised expression against control; top 20, DE: genes of largest |t| of the true cells, for scoring "
        "only. Beyond the mean change: against the mean of the training perturbations, of which it predicts 0, and no "
        "change its opposite. Discrimination: 0.5 for one prediction for all. "
        f'"{CEILING}": one half of the true cells predicts the other.'
    )
    return "\n\n".join(parts)


def _interval(value: Sequence[float] | None, score: str) -> str:
    return score_table.interval(value, 4 if score in ("mse_top", "energy", "rmse", "rmse_top") else 2)


def picture(summary: Mapping[str, Any], title: str = "") -> bytes:
    """Draw each method's scores with their intervals, a row of panels for each stratum, as PNG."""
    return score_table.panels(summary, {name: scores.LABELS[name] for name in SHOWN}, _drawn, title=title)


def _drawn(axes: Axes, score: str, place: int, method: str, values: Mapping[str, Sequence[float]]) -> None:
    mean, low, high = values[score]
    colour = figures.INK if method == CEILING else figures.COLOURS[0] if "ridge" in method else score_table.GREY
    axes.plot([low, high], [place, place], color=colour, lw=1.4)
    axes.plot(mean, place, "o", color=colour, ms=5)
