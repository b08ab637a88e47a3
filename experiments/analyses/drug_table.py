"""The table and the picture of `experiments.drug_response`: means over seeds with intervals, a panel for each split."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.analyses.drug_response import TABLE
from experiments.pages import figures, names, output
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
    files = {
        "table.csv": pd.DataFrame(rows).to_csv(index=False),
        "table.json": {"summary": summary, "notes": notes, "about": about},
        "table.png": picture(summary),
        "table.md": content + "\n",
    }
    for name, data in files.items():
        output.write_file(out / name, data)
    return content


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
        lines = [[method, *(_interval(values[name]) for name in scores.RESPONSE)] for method, values in of.items()]
        parts.append(output.markdown(["", *scores.RESPONSE.values()], lines))
        parts.append(verdict(of))
    if said := [f"- {method}: {note}" for method, note in notes.items() if note]:
        parts.append("\n".join(said))
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


def _interval(value: Sequence[float]) -> str:
    if not np.isfinite(value[0]):
        return "–"
    mean, low, high = (f"{number:.2f}" for number in value)
    return f"{mean} ({low} … {high})"


def picture(summary: Mapping[str, Any]) -> bytes:
    """Draw each method's scores with their intervals, a row of panels for each split, as PNG."""
    count = [len(of) for of in summary.values()]
    figure = Figure(figsize=(3.4 + 2.5 * len(SHOWN), sum(0.9 + 0.27 * n for n in count)), layout="constrained")
    panels = figure.subplots(len(summary), len(SHOWN), sharey="row", squeeze=False, height_ratios=count)
    for line, (split, of) in zip(panels, summary.items(), strict=True):
        for axes, name in zip(line, SHOWN, strict=True):
            for place, (method, values) in enumerate(of.items()):
                mean, low, high = values[name]
                colour = figures.INK if method == TABLE else "#6b7888" if "," in method else figures.COLOURS[0]
                axes.plot([low, high], [place, place], color=colour, lw=1.4)
                axes.plot(max(mean, -1) if name == "over_additive" else mean, place, "o", color=colour, ms=5)
            if name == "over_additive":
                axes.set_xlim(left=max(axes.get_xlim()[0], -1.1))
            axes.set_xlabel(scores.RESPONSE[name])
            axes.grid(axis="x", color=figures.FAINT, lw=0.8)
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
        line[0].set_yticks(range(len(of)), [names.label(method, 44) for method in of])
        line[0].set_ylim(len(of) - 0.5, -0.5)
        line[0].set_title(TITLES[split], fontsize=10, loc="left")
    return figures.encoded(figure, "png")
