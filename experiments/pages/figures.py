"""Pictures of a report, as bytes: curves and intervals (SVG), cells in two dimensions and confusion matrices (PNG).

Colours are those of Okabe and Ito, told apart with any kind of colour vision, and darker ones of the same hues; beyond
eight categories the marker's shape changes too. The largest categories are named on the picture itself.
"""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#4D4D4D", "#B8A900")
DARK = ("#003A5C", "#7A5300", "#00503A", "#6E3000", "#7A3D61", "#1F6A94", "#000000", "#5E5600")
SHAPES = {"o": "●", "^": "▲", "s": "■", "D": "◆"}
MOST_CATEGORIES = len(COLOURS) * len(SHAPES)
UNKNOWN = "#C8C8C8"
MAP = "cividis"
KINDS = {
    "model": ("o", COLOURS[0], True),
    "twin": ("o", COLOURS[5], False),
    "baseline": ("s", COLOURS[3], True),
    "positive": ("D", COLOURS[6], False),
    "negative": ("X", COLOURS[6], True),
}
"""Mark, colour and whether it is filled, of each kind of method."""
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


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of a comparison: mean, half the 95 % interval and the values of each seed; `kind` is one of KINDS."""

    name: str
    kind: str
    mean: float
    half: float
    values: Sequence[float]


def curves(series: Mapping[str, tuple[np.ndarray, np.ndarray]], unit: str = "") -> bytes:
    """Draw {name: (steps, values)} over the steps as SVG; a logarithmic axis if the values are positive and wide."""
    figure = Figure(figsize=(4.6, 2.7), layout="constrained")
    axes = figure.add_subplot()
    for (name, (steps, values)), colour, dash in zip(series.items(), COLOURS, ("-", "--", ":", "-.") * 2, strict=False):
        few = len(steps) < 30
        axes.plot(steps, values, dash, color=colour, lw=1.8, label=name, marker="." if few else None)
    values = np.concatenate([v for _, v in series.values()])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 50 * values.min():
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.grid(color=FAINT, lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _save(figure, "svg")


def cells(xy: np.ndarray, values: pd.Series, title: str) -> tuple[bytes, list[Entry]]:
    """Draw cells [n, 2] coloured by a column of obs as PNG, and return the legend (empty for numbers: a colour bar)."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(12_000 / len(xy), 2, 26))
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values) and values.nunique() > 12:
        present = values.notna().to_numpy()
        axes.scatter(*xy[~present].T, s=size, c=UNKNOWN, lw=0)
        drawn = axes.scatter(*xy[present].T, s=size, c=values[present], cmap=MAP, lw=0)
        figure.colorbar(drawn, ax=axes, shrink=0.7, label=title)
        legend = []
    else:
        legend = _categories(axes, xy, values, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("UMAP 1", loc="left", color="#5b6675")
    axes.set_ylabel("UMAP 2", loc="bottom", color="#5b6675")
    axes.spines[:].set_visible(False)
    return _save(figure, "png"), legend


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
        axes.set_title(name, fontsize=12, weight="bold")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(words, fontsize=10)
        axes.spines[:].set_color(FAINT)
    return _save(figure, "png"), legend


def intervals(rows: Sequence[Method], text: str) -> bytes:
    """Draw each method as a mean with its 95 % interval and single seeds, as SVG; kinds differ in mark and colour."""
    figure = Figure(figsize=(4.3, 0.9 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        mark, colour, face = KINDS[row.kind]
        half = row.half if np.isfinite(row.half) else None
        axes.errorbar(
            row.mean,
            place,
            xerr=half,
            fmt=mark,
            color=colour,
            mfc=colour if face else "white",
            ms=6,
            lw=1.5,
            capsize=2.5,
        )
        axes.plot(row.values, [place + 0.25] * len(row.values), "|", color=colour, ms=4, alpha=0.7)
    axes.set_yticks(range(len(rows)), [_short(row.name, 32) for row in rows], fontsize=8.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(textwrap.fill(text, 56), fontsize=9)
    axes.grid(axis="x", color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    return _save(figure, "svg")


def confusion(counts: np.ndarray, names: Sequence[str]) -> bytes:
    """Draw a confusion matrix [T, T] (rows: the true type) as shares of its rows, PNG; few are written out, too."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=MAP, vmin=0, vmax=1)
    if len(names) <= 12:
        for i, j in zip(*np.nonzero(shares >= 0.005), strict=True):
            ink = "black" if shares[i, j] > 0.55 else "white"
            axes.text(j, i, f"{100 * shares[i, j]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    labels = [_short(str(name), 18) for name in names]
    size = 8 if len(names) <= 15 else 6
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    axes.set_xlabel("5 nearest neighbours say")
    axes.set_ylabel("true type")
    axes.spines[:].set_visible(False)
    return _save(figure, "png")


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
    """Write compact categories at the cell nearest to their median, largest first, where there is room."""
    halo = [withStroke(linewidth=3, foreground="white", alpha=0.85)]
    spread = np.median(np.abs(xy - np.median(xy, axis=0)).sum(1))
    taken: list[np.ndarray] = []
    for name in shown:
        members = xy[(text == name).to_numpy()]
        far = np.abs(members - np.median(members, axis=0)).sum(1)
        if np.median(far) > spread / 2:
            continue
        middle = members[far.argmin()]
        place = (middle - xy.min(0)) / np.maximum(np.ptp(xy, axis=0), 1e-9)
        if all(abs(place - other)[0] > 0.3 or abs(place - other)[1] > 0.05 for other in taken):
            axes.text(
                *middle, _short(str(name)), ha="center", va="center", fontsize=9, weight="bold", path_effects=halo
            )
            taken.append(place)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _save(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    metadata: dict[str, None] | Sequence = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(file, format=kind, dpi=150, metadata=metadata)
    return file.getvalue()
