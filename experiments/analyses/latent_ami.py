"""The AMI of a model's clusters with every column of a file's metadata, beside PCA and random twins: table, picture."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_pipeline.files import h5ad
from experiments.pages import figures, names, output
from scfm_jax.api import Run
from scfm_jax.tasks.cells import embedding, latent_ami
from scfm_jax.training import pace

MOST_CELLS = 20_000
"""Cells that are clustered; of larger files a random sample."""


def evaluate(
    run: Run,
    source: Any,
    *,
    columns: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return a row for each column, embedding and seed; a seed is that of k-means, of PCA and of a twin's weights.

    Args:
      columns: of obs; all that have few labels, if left out (see `latent_ami.columns`).
      options: of `Run.embed`.

    Raises:
      ValueError, OSError: no such column, or nothing to embed, in one line.
    """
    with h5ad.read_counts(source, **h5ad.place(options)) as counts:
        n, path = counts.n_cells, pathlib.Path(str(counts.path))
        cells = np.arange(n)
        if n > MOST_CELLS:
            cells = np.sort(np.random.default_rng(0).choice(n, MOST_CELLS, replace=False))
        labels = latent_ami.columns(counts.obs.iloc[cells], tuple(columns))
        matrix = counts.take(cells)
    embedded = run.embed(source, say=say, **options)[cells]
    rows = []
    for seed in pace.counted(seeds, "scored seed", say):
        twin = run.twin(seed).embed(source, say=lambda _: None, **options)[cells]
        spaces = {run.name: embedded, "PCA-50": embedding.pca(matrix, seed=seed), "random twin": twin}
        rows += latent_ami.table(spaces, labels, seed)
    return {
        "input": path.name,
        "model": run.name,
        "weights": run.source,
        "trained_on": path.stem in run.classes.get("study", ()),
        "cells": len(cells),
        "of": n,
        "rows": rows,
    }


def table(found: dict[str, Any]) -> str:
    """Return the scores as Markdown, a line for each column of the metadata."""
    names = list(dict.fromkeys(row["embedding"] for row in found["rows"]))
    lines = []
    for column in dict.fromkeys(row["column"] for row in found["rows"]):
        of_column = [row for row in found["rows"] if row["column"] == column]
        values = [output.spread([r["ami"] for r in of_column if r["embedding"] == name]) for name in names]
        lines.append([column, str(of_column[0]["labels"]), str(of_column[0]["cells"]), *values])
    seeds = len({row["seed"] for row in found["rows"]})
    text = output.markdown([found["input"], "labels", "cells", *names], lines)
    text += "\n\nAdjusted mutual information of k-means clusters, k the number of labels, with each column; mean ± "
    text += f"half the range over {seeds} seeds. High is wanted of biology, low of technique and donor."
    if found["trained_on"]:
        text += f"\nCaution: by its name {found['input']} is a study that the model was trained on."
    return text


def picture(found: dict[str, Any]) -> bytes:
    """Draw a group of bars for each column of the metadata, a bar for each embedding, as PNG."""
    rows = found["rows"]
    spaces, columns = ([*dict.fromkeys(row[key] for row in rows)] for key in ("embedding", "column"))
    figure = Figure(figsize=(6.4, 1.2 + 0.32 * len(columns) * len(spaces) ** 0.7), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(spaces)
    for i, name in enumerate(spaces):
        for place, column in enumerate(columns):
            values = [r["ami"] for r in rows if r["embedding"] == name and r["column"] == column]
            at = place + (i - (len(spaces) - 1) / 2) * height
            label = names.label(name) if place == 0 else None
            axes.barh(at, np.mean(values), height * 0.9, color=figures.COLOURS[i], label=label)
            axes.plot(values, [at] * len(values), "|", color=figures.INK, ms=6)
    axes.set_yticks(range(len(columns)), [names.label(column) for column in columns])
    axes.invert_yaxis()
    axes.set_xlabel("AMI of k-means clusters with the column (ticks: seeds)")
    axes.axvline(0, color=figures.INK, lw=0.8)
    axes.grid(axis="x", color=figures.FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(spaces), frameon=False, fontsize=9)
    return figures.encoded(figure, "png")
