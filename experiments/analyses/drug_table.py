"""The table and the picture of `experiments.drug_response`: means over seeds with intervals, a panel for each split."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.analyses.drug_response import TABLE
from experiments.pages import figures, output, score_table
from scfm_jax.tasks.drugs import scores
from scfm_jax.tasks.perturbation.scores import bootstrap

TITLES = {
    "pairs": "pairs out: drug and line are known from others",
    "drugs": "drugs out",
    "lines": "lines out",
    "both": "drug and line out",
    "tissues": "tissues out",
}
SHOWN = ("within_drug", "pearson", "over_additive")


def write(out: pathlib.Path, rows: Sequence[Mapping[str, Any]], notes: Mapping[str, str], about: str) -> str:
    """Write table.md, table.csv (a line for each seed), table.json and table.png to OUT; return the table."""
    summary = summarised(rows)
    content = table(summary, rows, notes, about)
    return score_table.write(out, rows, summary, notes, about, content, picture(summary))


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, tuple[float, float, float]]]]:
    """Return {split: {method: {score: (mean, low, high) over seeds}}}."""
    frame = pd.DataFrame(rows)
    return {
        split: {
            method: {name: bootstrap(group[name]) for name in scores.RESPONSE}
            for method, group in of.groupby("method", sort=False)
        }
        for split, of in frame.groupby("split", sort=False)
    }


def table(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], notes: Mapping[str, str], about: str) -> str:
    """Return the scores as Markdown, a table for each split, and in words where a table of means is not beaten."""
    parts = [about]
    for split, of in summary.items():
        each = [row for row in rows if row["split"] == split and row["method"] == TABLE]
        tested = ", ".join(f"{row['rows']:,}" for row in each)
        parts.append(f"## {TITLES[split]}\n\n{len(each)} seeds, a fold each, of {tested} measurements")
        lines = [
            [method, *(score_table.interval(values[name]) for name in scores.RESPONSE)] for method, values in of.items()
        ]
        parts.append(output.markdown(["", *scores.RESPONSE.values()], lines))
        parts.append(verdict(of))
    parts += score_table.listed(notes)
    parts.append(
        "Means over seeds with 95 % of a bootstrap over them. Within drug: the correlation over lines of each drug, "
        "averaged; a drug's mean has 0. R² over additive: of what the table of drug and line means leaves. Permuted "
        "lines: each line has the vector of another one, so a difference to it is what is known of lines."
    )
    return "\n\n".join(parts)


def verdict(of: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """Say which networks are better within drugs than the table of means, and whether any is."""
    level = of[TABLE]["within_drug"][0]
    networks = [method for method in of if method not in ("drug mean", TABLE, "drug and tissue means")]
    better = [m for m in networks if of[m]["within_drug"][0] > (level if np.isfinite(level) else 0)]
    if not better:
        return f"No method is better within drugs than the {TABLE} ({level:.2f})."
    return f"Better within drugs than the {TABLE} ({level:.2f}): {', '.join(better)}."


def picture(summary: Mapping[str, Any]) -> bytes:
    """Draw each method's scores with their intervals, a row of panels for each split, as PNG."""
    return score_table.panels(summary, {name: scores.RESPONSE[name] for name in SHOWN}, _drawn, TITLES)


def _drawn(axes: Axes, score: str, place: int, method: str, values: Mapping[str, Sequence[float]]) -> None:
    least = -1.1 if score == "over_additive" else -np.inf
    mean, low, high = np.maximum(values[score], least)
    colour = figures.INK if method == TABLE else score_table.GREY if "," in method else figures.COLOURS[0]
    axes.plot([low, high], [place, place], color=colour, lw=1.4)
    axes.plot(mean, place, "o", color=colour, ms=5)
