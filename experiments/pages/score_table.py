"""A table of scores with intervals by group and method: its four files, its cells, its panels."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.pages import figures, names, output

GREY = "#6b7888"


def write(
    out: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    notes: Mapping[str, str],
    about: str,
    content: str,
    picture: bytes,
) -> str:
    """Write table.csv (of `rows`), table.json, table.png and table.md to OUT; return `content`, the last."""
    files = {
        "table.csv": pd.DataFrame(rows).to_csv(index=False),
        "table.json": {"summary": summary, "notes": notes, "about": about},
        "table.png": picture,
        "table.md": content + "\n",
    }
    for name, data in files.items():
        output.write_file(out / name, data)
    return content


def listed(notes: Mapping[str, str]) -> list[str]:
    """Return a part of Markdown that lists the notes of methods, none where no method has one."""
    said = [f"- {method}: {note}" for method, note in notes.items() if note]
    return ["\n".join(said)] if said else []


def interval(value: Sequence[float] | None, digits: int = 2) -> str:
    """Return (mean, low, high) as a cell of a table, a dash where there is no number."""
    if value is None or not np.isfinite(value[0]):
        return "–"
    mean, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{mean} ({low} … {high})"


def panels(
    summary: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    draw: Callable[[Axes, str, int, str, Any], None],
    titles: Mapping[str, str] | None = None,
    title: str = "",
) -> bytes:
    """Draw a row of panels for each group and a panel for each score, a line for each method, as PNG.

    Args:
      summary: {group: {method: values}}. labels: of the scores. titles: of the groups, if not their names.
      draw: draws a method: (axes, score, place on the vertical axis, method, values).
    """
    count = [len(of) for of in summary.values()]
    figure = Figure(figsize=(3.4 + 2.4 * len(labels), sum(0.9 + 0.27 * n for n in count)), layout="constrained")
    grid = figure.subplots(len(summary), len(labels), sharey="row", squeeze=False, height_ratios=count)
    for line, (group, of) in zip(grid, summary.items(), strict=True):
        for axes, (score, label) in zip(line, labels.items(), strict=True):
            for place, (method, values) in enumerate(of.items()):
                draw(axes, score, place, method, values)
            axes.set_xlabel(label)
            axes.grid(axis="x", color=figures.FAINT, lw=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        line[0].set_yticks(range(len(of)), [names.label(method, 46) for method in of])
        line[0].set_ylim(len(of) - 0.5, -0.5)
        line[0].set_title(titles[group] if titles else names.label(group), fontsize=10, loc="left")
    if title:
        figure.suptitle(names.label(title, 100), fontsize=11)
    return figures.encoded(figure, "png")
