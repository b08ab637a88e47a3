"""The picture of a network's strongest edges: regulators inside, their targets around them, true edges coloured."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from experiments.analyses.networks_data import Data
from experiments.pages import figures, names

EDGES, HUBS = 60, 12
"""Edges and regulators of a picture, at most."""
TRUE, FALSE, OPEN = figures.COLOURS[2], "#b4bcc6", figures.COLOURS[5]
HUB = figures.COLOURS[1]


def strongest(frame: pd.DataFrame, data: Data, title: str) -> bytes:
    """Draw the strongest edges of a frame of `networks_table.edges` as PNG.

    Regulators beyond the first HUBS are left out; of edges in both directions between two regulators one is drawn.
    """
    shown = _shown(frame)
    hubs = _ordered(shown)
    place = _places(shown, hubs)
    figure = Figure(figsize=(9, 8.6))
    axes = figure.add_axes((0, 0, 1, 0.95))
    colours = _colours(shown, [f"in {truth.name}" for truth in data.truths])
    weight = (shown.weight - shown.weight.min()) / max(np.ptp(shown.weight), 1e-12)
    for row, width, colour in zip(shown.itertuples(), weight, colours, strict=True):
        bend = 0.15 if row.target in hubs else 0.0
        style = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 12, "shrinkB": 12 if bend else 4}
        style |= {"connectionstyle": f"arc3,rad={bend}", "zorder": 2 if colour == TRUE else 1}
        axes.add_patch(FancyArrowPatch(place[row.TF], place[row.target], color=colour, lw=0.6 + 1.8 * width, **style))
    for name, (x, y) in place.items():
        hub = name in hubs
        axes.plot(x, y, "o", ms=25 if hub else 5, color=HUB if hub else figures.INK, zorder=3, mec="white")
        if hub:
            axes.text(x, y, names.label(name, 12), ha="center", va="center", fontsize=7.5, weight="bold", zorder=4)
        else:
            _outside(axes, x, y, names.label(name, 16))
    _legend(axes, colours)
    axes.set_title(f"{names.label(title, 60)}: {len(shown)} of the strongest edges", fontsize=12, loc="left")
    axes.set_aspect("equal")
    axes.set_xlim(-1.32, 1.32)
    axes.set_ylim(-1.4, 1.28)
    axes.axis("off")
    return figures.encoded(figure, "png")


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the edges that are drawn, the strongest first."""
    hubs: set[str] = set()
    pairs: set[frozenset[str]] = set()
    rows = []
    for i, (hub, target, weight) in enumerate(zip(frame.TF, frame.target, frame.weight, strict=True)):
        if len(rows) == EDGES or not weight > 0:
            break
        pair = frozenset((hub, target))
        if pair not in pairs and (hub in hubs or len(hubs) < HUBS):
            hubs.add(hub)
            pairs.add(pair)
            rows.append(i)
    return frame.iloc[rows]


def _ordered(shown: pd.DataFrame) -> list[str]:
    """Return the regulators, beside each other those that share most targets."""
    of = {hub: {hub, *group} for hub, group in shown.groupby("TF").target}
    left = sorted(of, key=lambda hub: (-len(of[hub]), hub))
    order = left[:1]
    while len(order) < len(left):
        order.append(max((hub for hub in left if hub not in order), key=lambda hub: len(of[hub] & of[order[-1]])))
    return order


def _places(shown: pd.DataFrame, hubs: list[str]) -> dict[str, tuple[float, float]]:
    """Return where each gene is: regulators on an inner circle, targets on an outer one, near to their regulators."""
    angle = {hub: 2 * np.pi * i / len(hubs) for i, hub in enumerate(hubs)}
    radius = 0.0 if len(hubs) == 1 else 0.5
    place = {hub: (radius * np.cos(a), radius * np.sin(a)) for hub, a in angle.items()}
    mean = {}
    for target, of in shown[~shown.target.isin(hubs)].groupby("target").TF:
        direction = sum(np.exp(1j * angle[hub]) for hub in of)
        mean[target] = np.angle(direction if abs(direction) > 1e-9 else np.exp(1j * angle[of.iloc[0]])) % (2 * np.pi)
    order = sorted(mean, key=lambda target: (mean[target], target))
    spaced = 2 * np.pi * np.arange(len(order)) / max(len(order), 1)
    turn = np.angle(sum(np.exp(1j * (mean[t] - s)) for t, s in zip(order, spaced, strict=True))) if order else 0
    return place | {t: (np.cos(s + turn), np.sin(s + turn)) for t, s in zip(order, spaced, strict=True)}


def _outside(axes, x: float, y: float, text: str) -> None:
    """Write the name of a target along its radius, so that names do not lie on each other."""
    angle = np.degrees(np.arctan2(y, x))
    left = abs(angle) > 90
    turn = angle + 180 if left else angle
    where = {"ha": "right" if left else "left", "va": "center", "rotation": turn, "rotation_mode": "anchor"}
    axes.text(1.035 * x, 1.035 * y, text, fontsize=8, **where)


def _colours(shown: pd.DataFrame, columns: list[str]) -> list[str]:
    """Return the colour of each edge: true in a truth, in none that judges it, or judged by none."""
    if not columns:
        return [OPEN] * len(shown)
    values = shown[columns].to_numpy(str)
    return [TRUE if "1" in row else FALSE if "0" in row else OPEN for row in values]


def _legend(axes, colours: list[str]) -> None:
    """Say what the colours that there are mean."""
    meaning = {TRUE: "in a truth", FALSE: "in none", OPEN: "judged by none"}
    if set(colours) == {OPEN}:
        meaning[OPEN] = "inferred edge"
    lines = [Line2D([], [], color=colour, lw=2, label=text) for colour, text in meaning.items() if colour in colours]
    lines.append(Line2D([], [], marker="o", color=HUB, lw=0, ms=10, label="TF"))
    axes.legend(handles=lines, loc="lower center", ncols=len(lines), frameon=False, fontsize=9)
