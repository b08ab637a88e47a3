"""The table and the pictures of `experiments.interactions`."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.cluster import hierarchy

from data_pipeline.genes.vocab import is_id
from experiments.analyses.interactions import Predictions, Row
from experiments.analyses.perturbation_data import Data, Plan
from experiments.analyses.perturbation_methods import CEILING
from experiments.pages import figures, names, output
from scfm_jax.tasks.perturbation import interaction

COLUMNS = {
    "pearson": "Pearson of magnitude",
    "spearman": "Spearman",
    "synergy_overlap": "synergy: of the largest",
    "synergy_ap": "AP",
    "suppression_overlap": "suppression: of the smallest",
    "suppression_ap": "AP",
    "residual_ap": "AP of residuals",
    "doubles": "doubles",
    "left_out": "left out",
}
DIGITS = {"synergy_overlap": 1, "suppression_overlap": 1, "residual_ap": 4, "doubles": 0, "left_out": 0}
MOST_DRAWN = 4000
"""Points of the scatter of errors."""


def write(
    out: pathlib.Path,
    plan: Plan,
    data: Data,
    predictions: Sequence[Predictions],
    rows: Sequence[Row],
    drawn: str | None = None,
) -> str:
    """Write interactions.md, .csv, .json, .png and error_map.png to OUT; return the table.

    Args:
      drawn: method whose errors are drawn; the one of the best mean Pearson correlation, if left out.

    Raises:
      ValueError: no such method.
    """
    methods = list(dict.fromkeys(of.method for of in predictions))
    if drawn is not None and drawn not in methods:
        raise ValueError(f"map={drawn}: no such method; there are {', '.join(methods)}")
    drawn = drawn or _best(rows, [name for name in methods if name != CEILING])
    title = f"Interactions in {pathlib.Path(plan.input).name}, {plan.split.replace('_', ' ')}"
    about = data.titled(title)
    label = about.splitlines()[0].strip("# ")
    content = table(rows, about)
    of = next(of for of in predictions if of.method == drawn)
    each = [
        {"preset": row.preset, "method": row.method, "seed": row.seed, "double": name, "measured": m, "predicted": p}
        for row in rows
        for name, m, p in zip(row.doubles, row.measured, row.predicted, strict=True)
    ]
    scores = [{"preset": r.preset, "method": r.method, "seed": r.seed, **r.score} for r in rows]
    files = {
        "interactions.csv": pd.DataFrame(each).to_csv(index=False),
        "interactions.json": {"about": about, "scores": scores},
        "interactions.png": scatter(rows, label),
        "error_map.png": errors(data, of, label),
        "interactions.md": content + "\n",
    }
    for name, written in files.items():
        output.write_file(out / name, written)
    return content


def _best(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Return the method of the best mean correlation, the first where none has one."""
    of = {name: [row.score.get("pearson", np.nan) for row in rows if row.method == name] for name in methods}
    mean = {name: np.mean([v for v in values if np.isfinite(v)] or [-2.0]) for name, values in of.items()}
    return max(mean, key=lambda name: mean[name])


def table(rows: Sequence[Row], about: str) -> str:
    """Return the scores as Markdown, a table for each preset: means over seeds ± half of their range."""
    parts = [about]
    for preset in dict.fromkeys(row.preset for row in rows):
        of = [row for row in rows if row.preset == preset]
        how = interaction.PRESETS[preset]
        parts.append(
            f"## {preset}: {how['singles']} singles, {how['genes']} genes, {how['method'].replace('_', ' ')}, "
            f"{'with' if how['intercept'] else 'no'} intercept"
        )
        lines = [[method, *_cells([r.score for r in of if r.method == method])] for method in _methods(of)]
        parts.append(output.markdown(["", *COLUMNS.values()], lines))
    parts.append(
        "Magnitude: sqrt(alpha² + beta²) of the fit of a double's effect by those of its singles; sqrt 2 where they "
        f"add up. Largest, smallest: how many of the {interaction.ENDS} at either end of the measured ones are among "
        "the predicted ones. Residuals: what a double does beyond the sum of its singles, gene by gene; those beyond "
        "an empirical null are to be found. In parentheses what chance has. Left out: doubles whose singles do not "
        "tell alpha and beta. A dash: all predictions are equal, or none is told. The last rows know the measured "
        "singles, held-out ones too. "
        f'"{CEILING}": one half of the true cells predicts the other.'
    )
    return "\n\n".join(parts)


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows))


def _cells(scores: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the cells of a method, what chance has in parentheses; ends that are all doubles say nothing."""
    cells = []
    for name in COLUMNS:
        value = output.spread([score.get(name) for score in scores], DIGITS.get(name, 2))
        ends = [score.get("overlap_expected", np.nan) for score in scores]
        chance = {
            "overlap": f"{np.mean(ends):.1f}",
            "ap": f"{np.mean(ends) / interaction.ENDS:.2f}",
            "residual": f"{np.mean([score.get('residual_ap_expected', np.nan) for score in scores]):.4f}",
        }
        kind = "residual" if name == "residual_ap" else name.rpartition("_")[2]
        trivial = kind in ("overlap", "ap") and min(score["doubles"] for score in scores) <= interaction.ENDS
        cells.append("–" if trivial else f"{value} ({chance[kind]})" if kind in chance and value != "–" else value)
    return cells


def scatter(rows: Sequence[Row], title: str) -> bytes:
    """Draw predicted against measured magnitudes, a panel for each method by the first preset and seed, as PNG."""
    first = [row for row in rows if row.preset == rows[0].preset and row.seed == rows[0].seed]
    first = [row for row in first if np.isfinite(row.predicted).any()]  # no change tells no magnitude
    across = min(4, len(first))
    down = -(-len(first) // across)
    figure = Figure(figsize=(0.6 + 2.7 * across, 0.9 + 2.8 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    shown = np.concatenate([row.measured for row in first])
    shown = shown[np.isfinite(shown)]
    low, high = 0.0, 1.15 * float(np.quantile(shown, 0.98)) if len(shown) else 2.0
    for axes, row in zip(panels, first, strict=False):
        axes.plot([low, high], [low, high], color=figures.FAINT, lw=1.2, zorder=0)
        axes.axvline(2**0.5, color=figures.FAINT, lw=0.8, ls=":", zorder=0)
        axes.axhline(2**0.5, color=figures.FAINT, lw=0.8, ls=":", zorder=0)
        axes.plot(np.clip(row.measured, low, high), np.clip(row.predicted, low, high), "o", ms=3.5, alpha=0.7,
                  color=figures.INK if row.method == CEILING else figures.COLOURS[0], mew=0)  # fmt: skip
        value = row.score.get("pearson", np.nan)
        axes.set_title(textwrap.fill(names.label(row.method, 66), 34), fontsize=9)
        axes.text(0.04, 0.93, f"r {value:.2f}" if np.isfinite(value) else "r –", transform=axes.transAxes, fontsize=9)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(first) :]:
        axes.set_visible(False)
    figure.supxlabel("measured magnitude (dotted: additive; beyond the frame: on it)", fontsize=9)
    figure.supylabel("predicted magnitude", fontsize=9)
    figure.suptitle(f"{names.label(title, 90)}, preset {rows[0].preset}", fontsize=11)
    return figures.encoded(figure, "png")


def errors(data: Data, of: Predictions, title: str) -> bytes:
    """Draw where a method errs: conditions and genes of the largest error, clustered, beside error against change."""
    conditions = [name for _, part, _, _ in of.parts for name in part]
    said, true = (np.concatenate([part[i] for part in of.parts]) for i in (2, 3))
    error, rows, columns = interaction.error_map(said, true)
    order = [_clustered(x) for x in (error, error.T)]
    error = error[np.ix_(*order)]
    height = 1.8 + 0.155 * len(rows)
    figure = Figure(figsize=(15, height), layout="constrained")
    axes, beside = figure.subplots(1, 2, width_ratios=(4, 1.2))
    image = axes.imshow(error, cmap="cividis", aspect="auto", vmin=0, vmax=float(np.quantile(error, 0.99)) or 1.0)
    called = {
        name: other if is_id(name) and other else name for name, other in zip(data.names, data.second, strict=True)
    }
    shown = ["+".join(called.get(gene, gene) for gene in conditions[rows[i]].split("+")) for i in order[0]]
    axes.set_yticks(range(len(rows)), [names.label(name, 24) for name in shown], fontsize=7)
    genes = [names.label(called[data.names[columns[i]]], 14) for i in order[1]]
    axes.set_xticks(range(len(columns)), genes, rotation=90, fontsize=6)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.6, label="|mean predicted - mean true|")
    some = np.random.default_rng(0).permutation(true.size)[:MOST_DRAWN]
    change, off = np.abs(true).ravel()[some], np.abs(said - true).ravel()[some]
    most = float(max(change.max(), off.max(), 1e-9))
    beside.plot([0, most], [0, most], color=figures.FAINT, lw=1.2)
    beside.plot(change, off, "o", ms=2, alpha=0.4, color=figures.COLOURS[0], mew=0)
    beside.set_xlabel("|true change|")
    beside.set_ylabel("|error| (on the line: as if nothing changed)")
    beside.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{names.label(title, 90)}: errors of {names.label(of.method, 50)}, seed {of.seed}", fontsize=11)
    return figures.encoded(figure, "png")


def _clustered(x: np.ndarray) -> np.ndarray:
    """Return the order in which like rows are neighbours. [n, m] -> [n]"""
    return hierarchy.leaves_list(hierarchy.linkage(x, "average")) if len(x) > 2 else np.arange(len(x))
