"""Pictures that compare methods, as SVG: intervals over seeds, the scores of a run, and runs against the baseline."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from experiments.pages import figures, names

KINDS = {
    "model": ("o", figures.COLOURS[0], True),
    "twin": ("o", figures.COLOURS[5], False),
    "baseline": ("s", figures.COLOURS[3], True),
    "positive": ("D", figures.COLOURS[6], False),
    "negative": ("X", figures.COLOURS[6], True),
}
"""Mark, colour and whether it is filled, of each kind of method."""
SEEDS = 3
"""Fewer have no interval: that of two is twelve times as wide as they are apart."""
BOUNDS = {"mae": (0, np.inf), "rmse": (0, np.inf), "mcc": (-1, 1), "corr": (-1, 1), "cos": (-1, 1), "ari": (-1, 1)}
BOUNDS |= {"ami": (-1, 1)}
BOUNDS |= dict.fromkeys(("accuracy", "balanced", "f1", "auroc", "ece", "nmi", "asw", "isolated", "clisi"), (0, 1))
BOUNDS |= dict.fromkeys(("ilisi", "kbet", "connectivity", "pcr", "biology", "batch", "total"), (0, 1))
"""Least and largest value of a metric, by the first word of its name."""
MOST_TEXTS = 800
"""Places of a grid in which numbers are written; a larger one has colours alone."""
STATES = ("behind, beyond both intervals", "behind", "ahead", "ahead, beyond both intervals")
STATE_COLOURS = ("#E69F00", "#FBE6BF", "#CFE4F3", "#56A5D8")


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of a comparison: mean, half the 95 % interval and the values of each seed; `kind` is one of KINDS."""

    name: str
    kind: str
    mean: float
    half: float
    values: Sequence[float]

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Return the ends of the interval within the metric's range, None for fewer than SEEDS seeds."""
        if len(self.values) < SEEDS or not np.isfinite(self.half):
            return None
        low, high = bounds(metric)
        return max(self.mean - self.half, min(low, self.mean)), min(self.mean + self.half, max(high, self.mean))


def bounds(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have, infinite where that is not known."""
    return BOUNDS.get(metric.split("_")[0], (-np.inf, np.inf))


def intervals(rows: Sequence[Method], text: str, metric: str = "") -> bytes:
    """Draw each method as a mean with its 95 % interval and single seeds, as SVG; kinds differ in mark and colour."""
    figure = Figure(figsize=(4.3, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        mark, colour, face = KINDS[row.kind]
        if ends := row.interval(metric):
            axes.plot(ends, [place, place], "|-", color=colour, lw=1.5, ms=5)
        axes.plot(row.mean, place, mark, color=colour, mfc=colour if face else "white", ms=6)
        axes.plot(row.values, [place + 0.25] * len(row.values), "|", color=colour, ms=4, alpha=0.7)
    axes.set_yticks(range(len(rows)), [names.label(row.name, 32) for row in rows], fontsize=8.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(textwrap.fill(text, 56), fontsize=9)
    return _saved(figure, axes)


def scores(means: Mapping[str, Mapping[str, float]], spreads: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw the mean of each metric and half its range over seeds, a mark for each embedding, as SVG.

    Args:
      means, spreads: {metric in words: {embedding: number}}, the embeddings model, baseline and twin, in this order.
    """
    figure = Figure(figsize=(6.6, 1 + 0.42 * len(means)), layout="constrained")
    axes = figure.add_subplot()
    for place, (metric, of_metric) in enumerate(means.items()):
        for i, (name, mean) in enumerate(of_metric.items()):
            mark, colour, face = KINDS[("model", "baseline", "twin")[min(i, 2)]]
            at, half = place + 0.2 * (i - (len(of_metric) - 1) / 2), spreads[metric][name]
            axes.plot([mean - half, mean + half], [at, at], color=colour, lw=1.6)
            label = names.label(name) if place == 0 else None
            axes.plot(mean, at, mark, color=colour, mfc=colour if face else "white", ms=7, label=label, ls="none")
    axes.set_yticks(range(len(means)), [textwrap.fill(metric, 34) for metric in means], fontsize=9)
    axes.set_ylim(len(means) - 0.5, -0.5)
    axes.set_xlim(min(0, axes.get_xlim()[0]), 1)
    axes.set_xlabel("mean over seeds; line: their range")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9.5)
    return _saved(figure, axes)


def grid(rows: Sequence[str], columns: Sequence[str], states: np.ndarray, texts: Sequence[Sequence[str]]) -> bytes:
    """Draw how each run (column) stands against the best baseline in each comparison (row), as SVG.

    Args:
      states: index of STATES, NaN where there is no number [rows, columns]. texts: what is written in each place.
    """
    size = 5.2 + 0.85 * len(columns), 1.6 + 0.27 * len(rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#eceff2")
    colours = ListedColormap(STATE_COLOURS)
    axes.pcolormesh(np.ma.masked_invalid(states), cmap=colours, vmin=-0.5, vmax=3.5, edgecolors="white", lw=1)
    for i, line in enumerate(texts if states.size <= MOST_TEXTS else ()):
        for j, words in enumerate(line):
            axes.text(j + 0.5, i + 0.5, words, ha="center", va="center", fontsize=8)
    labels = [names.label(name, 20) for name in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, labels, rotation=35, ha="left", rotation_mode="anchor", fontsize=8.5)
    axes.xaxis.tick_top()
    axes.set_yticks(np.arange(len(rows)) + 0.5, [names.label(name, 90) for name in rows], fontsize=8.5)
    axes.set_ylim(len(rows), 0)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for name, colour in zip(STATES, STATE_COLOURS, strict=True):
        axes.plot([], [], "s", color=colour, ms=9, label=name)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, fontsize=8.5)
    return figures.encoded(figure, "svg")


def _saved(figure: Figure, axes) -> bytes:
    """Return a picture whose rows are methods or metrics."""
    axes.grid(axis="x", color=figures.FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", left=False)
    return figures.encoded(figure, "svg")
