"""The bars of the ten strongest genes of `experiments.perturb`: cosines with treated cells, or those of a screen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.analyses import perturbation_screen
from experiments.pages import figures, names

TOP = 10
LEVEL = 0.05


def of_targets(result: Mapping[str, Any]) -> bytes:
    """Draw the cosines after and before the perturbation of the model's ten largest, as PNG (scEMB, Fig. 4)."""
    rows = sorted((row for row in result["rows"] if row["method"] == result["model"]), key=lambda row: -row["cosine"])
    labels, drawn = [], rows[:TOP]
    for row in drawn:
        labels.append(row["target"] if row["target"] == row["gene"] else f"{row['target']}: {row['gene']}")
    figure, axes = _bars([row["cosine"] for row in drawn], labels, [figures.COLOURS[0]] * len(drawn))
    for place, row in enumerate(drawn):
        low, high = np.quantile(row["null_cosines"], (0.025, 0.975))
        axes.plot(
            [low, high],
            [place, place],
            color=figures.INK,
            lw=1.2,
            label=None if place else "genes of like expression, 95 %",
        )
        axes.plot(row["before"], place, "|", color=figures.COLOURS[3], ms=14, mew=2, label=None if place else "before")
        text = f"  {row['cosine']:.4f}, before {row['before']:.4f}, percentile {row['percentile']:.0f}"
        axes.annotate(text, (max(row["cosine"], high, row["before"], 0), place), fontsize=8, va="center")
    axes.set_xlabel("cosine of the mean after with the mean of treated cells")
    return _finished(figure, axes, f"{result['model']}: {len(drawn)} of {len(rows)} targets, {result['how']}")


def of_screen(result: Mapping[str, Any]) -> bytes:
    """Draw the model's ten strongest genes of a screen, by cosine with the direction or by length, as PNG."""
    drawn = perturbation_screen.strongest(result, result["model"])[:TOP]
    directed = result["case"] is not None
    what = "cosine" if directed else "length"
    strong = [row["q"] < LEVEL if directed else row["percentile"] > 95 for row in drawn]
    colours = [figures.COLOURS[0] if yes else "#9aa4b2" for yes in strong]
    figure, axes = _bars([row[what] for row in drawn], [row["gene"] for row in drawn], colours)
    for place, row in enumerate(drawn):
        text = f"  q {row['q']:.3f}" if directed else f"  percentile {row['percentile']:.0f}"
        axes.annotate(text, (max(row[what], 0), place), fontsize=8, va="center")
    label = f"cosine with {result['control']} to {result['case']}" if directed else "length of the mean shift"
    axes.set_xlabel(label)
    return _finished(figure, axes, f"{result['model']}: {len(drawn)} strongest genes, {result['how']}")


def _bars(values: Sequence[float], labels: Sequence[str], colours: Sequence[str]):
    figure = Figure(figsize=(7.2, 1.2 + 0.32 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(values)), values, color=colours, height=0.62, alpha=0.55)
    axes.set_yticks(range(len(values)), [names.label(label, 24) for label in labels])
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.axvline(0, color=figures.INK, lw=0.6)
    return figure, axes


def _finished(figure: Figure, axes, title: str) -> bytes:
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
    axes.set_xlim(low, high + 0.45 * (high - low))  # room for what is written beside the bars
    axes.set_title(names.label(title, 80), fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figures.encoded(figure, "png")
