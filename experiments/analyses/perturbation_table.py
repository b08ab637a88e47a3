"""The table and the picture of `experiments.predict_perturbation`: means over conditions with bootstrap intervals."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.analyses.perturbation_methods import CEILING
from experiments.pages import figures, names, output
from scfm_jax.tasks.perturbation import scores

SHOWN = ("pearson", "centred", "discrimination", "mse_top")
"""Scores in the picture."""


def write(out: pathlib.Path, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, str], about: str) -> str:
    """Write table.md, table.csv (a line for each condition), table.json and table.png to OUT; return the table."""
    summary = summarised(rows)
    content = table(summary, notes, rows, about)
    files = {
        "table.csv": pd.DataFrame(rows).to_csv(index=False),
        "table.json": {"summary": summary, "notes": notes, "about": about},
        "table.png": picture(summary, about.splitlines()[0].strip("# ")),
        "table.md": content + "\n",
    }
    for name, data in files.items():
        output.write_file(out / name, data)
    return content


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
    said = [f"- {method}: {note}" for method, note in notes.items() if note]
    if said:
        parts.append("\n".join(said))
    parts.append(
        "Means over conditions (of each the mean over seeds) with 95 % of a bootstrap over conditions. Change: mean "
        "log-normalised expression against control; top 20, DE: genes of largest |t| of the true cells, for scoring "
        "only. Beyond the mean change: against the mean of the training perturbations, of which it predicts 0, and no "
        "change its opposite. Discrimination: 0.5 for one prediction for all. "
        f'"{CEILING}": one half of the true cells predicts the other.'
    )
    return "\n\n".join(parts)


def _interval(value: Sequence[float] | None, score: str) -> str:
    if value is None or not np.isfinite(value[0]):
        return "–"
    digits = 4 if score in ("mse_top", "energy", "rmse", "rmse_top") else 2
    mean, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{mean} ({low} … {high})"


def picture(summary: Mapping[str, Any], title: str = "") -> bytes:
    """Draw each method's scores with their intervals, a row of panels for each stratum, as PNG."""
    count = [len(of) for of in summary.values()]
    figure = Figure(figsize=(3.2 + 2.3 * len(SHOWN), sum(0.8 + 0.27 * n for n in count)), layout="constrained")
    panels = figure.subplots(len(summary), len(SHOWN), sharey="row", squeeze=False, height_ratios=count)
    for line, (stratum, of) in zip(panels, summary.items(), strict=True):
        for axes, name in zip(line, SHOWN, strict=True):
            for place, (method, values) in enumerate(of.items()):
                mean, low, high = values[name]
                colour = figures.INK if method == CEILING else figures.COLOURS[0] if "ridge" in method else "#6b7888"
                axes.plot([low, high], [place, place], color=colour, lw=1.4)
                axes.plot(mean, place, "o", color=colour, ms=5)
            axes.set_xlabel(scores.LABELS[name])
            axes.grid(axis="x", color=figures.FAINT, lw=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        line[0].set_yticks(range(len(of)), [names.label(method, 44) for method in of])
        line[0].set_ylim(len(of) - 0.5, -0.5)
        line[0].set_title(stratum, fontsize=10, loc="left")
    figure.suptitle(names.label(title, 100), fontsize=11)
    return figures.encoded(figure, "png")
