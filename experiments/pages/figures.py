"""Pictures of a report, as bytes: training curves (SVG), cells in two dimensions and confusion matrices (PNG).

Colours are those of Okabe and Ito, told apart with any kind of colour vision, and darker ones of the same hues; beyond
eight categories the marker's shape changes too. Categories are named on the picture itself, the largest first. Every
name that comes from a file goes through `names.label`.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from experiments.pages import names

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#4D4D4D", "#B8A900")
DARK = ("#003A5C", "#7A5300", "#00503A", "#6E3000", "#7A3D61", "#1F6A94", "#000000", "#5E5600")
SHAPES = {"o": "●", "^": "▲", "s": "■", "D": "◆"}
MOST_CATEGORIES = len(COLOURS) * len(SHAPES)
PLACES = ((0, 0), (0, 1), (0, -1), (0, 2), (0, -2), (0.7, 1), (-0.7, 1), (0.7, -1), (-0.7, -1), (0, 3), (0, -3))
"""Where the name of a category may be, in sizes of its text from its middle, the best first."""
UNKNOWN = "#C8C8C8"
MAP = "cividis"
INK, FAINT = "#1b2430", "#dfe3e8"

matplotlib.rcParams.update(
    {
        "font.family": "sans-serif",
        "font.size": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "scfm_jax",
        "axes.edgecolor": "#9aa4b2",
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a legend: a mark, its colour, what it means, and how many cells that are."""

    mark: str
    colour: str
    name: str
    cells: int


def curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str = "", levels: Mapping[str, float] | None = None
) -> bytes:
    """Draw {name: (steps, values)} over the steps as SVG; a logarithmic axis if the values are positive and wide.

    `levels` are {name: value} of dashed lines across, grey, the darker the later.
    """
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for (name, (steps, values)), colour, dash in zip(series.items(), COLOURS, ("-", "--", ":", "-.") * 2, strict=False):
        few = len(steps) < 30
        axes.plot(steps, values, dash, color=colour, lw=1.8, label=names.label(name), marker="." if few else None)
    for i, (name, value) in enumerate((levels or {}).items()):
        shade = str(round(0.6 - 0.5 * i / max(len(levels) - 1, 1), 2))
        axes.axhline(value, color=shade, ls=(0, (5, 2 + i)), lw=1.1, label=names.label(name, 40), zorder=1)
    values = np.concatenate([v for _, v in series.values()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(color=FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) + len(levels or {}) > 1:
        axes.legend(frameon=False, fontsize=8 if levels else 9)
    return encoded(figure, "svg")


def cells(xy: np.ndarray, values: pd.Series, title: str) -> tuple[bytes, list[Entry]]:
    """Draw cells [n, 2] coloured by a column of obs as PNG, and return the legend (empty for numbers: a colour bar)."""
    figure = Figure(figsize=(7.2, 5), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(12_000 / len(xy), 2, 26))
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 12:
        present = values.notna().to_numpy()
        axes.scatter(*xy[~present].T, s=size, c=UNKNOWN, lw=0)
        drawn = axes.scatter(*xy[present].T, s=size, c=values[present], cmap=MAP, lw=0)
        figure.colorbar(drawn, ax=axes, shrink=0.7, label=names.label(title))
        legend = []
    else:
        legend = _categories(axes, xy, values, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("UMAP 1", loc="left", color="#5b6675")
    axes.set_ylabel("UMAP 2", loc="bottom", color="#5b6675")
    axes.spines[:].set_visible(False)
    return encoded(figure, "png"), legend


def beside(maps: Mapping[str, tuple[np.ndarray, str]], values: pd.Series) -> tuple[bytes, list[Entry]]:
    """Draw maps of the same cells side by side as PNG, coloured by one column, and return their common legend.

    Args:
      maps: {name of the embedding: (cells in two dimensions [n, 2], what is written below)}.
      values: of the column. [n]
    """
    figure = Figure(figsize=(4.2 * len(maps), 4.4), layout="constrained")
    legend: list[Entry] = []
    for axes, (name, (xy, words)) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        legend = _categories(axes, xy, values, float(np.clip(9_000 / len(xy), 2, 20)))
        axes.set_title(names.label(name), fontsize=12, weight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(names.label(words, 60), fontsize=10)
        axes.spines[:].set_color(FAINT)
    return encoded(figure, "png"), legend


def confusion(counts: np.ndarray, types: Sequence[str], said: str, title: str = "") -> bytes:
    """Draw a confusion matrix [T, T] (rows: the true type) as shares of its rows in per cent, PNG.

    Args:
      types: their names; one that no cell has is no row. [T]
      said: what the columns are. title: of the picture, if it has one.
    """
    present = np.flatnonzero(counts.sum(1))
    shares = counts[present] / counts[present].sum(1, keepdims=True)
    side = float(np.clip(1.7 + 0.32 * len(types), 4.2, 14))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=MAP, vmin=0, vmax=1)
    if len(types) <= 40:
        for i, j in zip(*np.nonzero(shares >= 0.005), strict=True):
            ink = "black" if shares[i, j] > 0.55 else "white"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    labels, size = [names.label(name, 24) for name in types], 8 if len(types) <= 40 else 6
    axes.set_xticks(range(len(types)), labels, rotation=90, fontsize=size)
    rows = [f"{labels[i]} ({counts[i].sum():,.0f})" for i in present]
    axes.set_yticks(range(len(present)), rows, fontsize=size)
    axes.set_xlabel(said)
    axes.set_ylabel("true type (cells)")
    axes.set_title(names.label(title, 60), fontsize=11)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return encoded(figure, "png")


def umap(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the UMAP of an embedding. [n, D] -> [n, 2]"""
    import umap as library  # imports numba and compiles

    neighbours = min(15, len(embedding) - 1)
    return library.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(embedding)


def _categories(axes, xy: np.ndarray, values: pd.Series, size: float) -> list[Entry]:
    """Draw every category in its colour and shape, the cells in random order, and write its name at its median."""
    text = values.astype(object).where(values.notna(), None)
    counts = text.value_counts()
    shown = list(counts.index[:MOST_CATEGORIES])  # largest first: the eight largest differ in colour
    looks = {}
    for i, name in enumerate(shown):
        cycle, colour = divmod(i, len(COLOURS))
        looks[name] = ((COLOURS, DARK)[cycle % 2][colour], list(SHAPES)[cycle])
    legend = [Entry(SHAPES[looks[n][1]], looks[n][0], str(n), int(counts[n])) for n in shown]
    rest = ~text.isin(shown).to_numpy()
    if rest.any():
        axes.scatter(*xy[rest].T, s=size, c=UNKNOWN, lw=0)
        name = "no value" if len(counts) <= MOST_CATEGORIES else f"no value or one of {len(counts) - len(shown)} more"
        legend.append(Entry("●", UNKNOWN, name, int(rest.sum())))
    order = np.random.default_rng(0).permutation(np.flatnonzero(~rest))
    for part in np.array_split(order, min(8, max(1, len(order)))):  # so that no category lies on top of all others
        for name in shown:
            rows = part[(text.iloc[part] == name).to_numpy()]
            axes.scatter(*xy[rows].T, s=size, c=looks[name][0], marker=looks[name][1], lw=0)
    _name(axes, xy, text, shown)
    return legend


def _name(axes, xy: np.ndarray, text: pd.Series, shown: Sequence) -> None:
    """Write compact categories at the cell nearest to their median, or beside it with a line, where there is room."""
    halo = [withStroke(linewidth=3, foreground="white", alpha=0.85)]
    spread = np.median(np.abs(xy - np.median(xy, axis=0)).sum(1))
    low, span = xy.min(0), np.maximum(np.ptp(xy, axis=0), 1e-9)
    width, height = axes.figure.get_size_inches() / (len(axes.figure.axes), 1)
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for name in shown:
        members = xy[(text == name).to_numpy()]
        far = np.abs(members - np.median(members, axis=0)).sum(1)
        if np.median(far) > spread / 2:
            continue
        words, middle = names.label(name, 22), members[far.argmin()]
        box = np.array([0.085 * len(words) / width, 0.2 / height])
        for step in PLACES:
            place = (middle - low) / span + np.array(step) * (box + 0.02)
            if all((np.abs(place - other) > (box + size) / 2).any() for other, size in taken):
                beside = {"arrowprops": {"arrowstyle": "-", "color": INK, "lw": 0.7}} if step != (0, 0) else {}
                style = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold", "path_effects": halo}
                axes.annotate(words, middle, place * span + low, annotation_clip=False, **style, **beside)
                taken.append((place, box))
                break


def encoded(figure: Figure, kind: str, **options: Any) -> bytes:
    """Return a picture as "svg" or "png", the same bytes every time; `options` of `Figure.savefig`."""
    file = io.BytesIO()
    metadata: dict[str, None] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(file, format=kind, dpi=150, metadata=metadata, **options)
    return file.getvalue()
