"""Score a model's embedding of a labelled file beside its baselines, and write down both.

Leaves in the workdir what `experiments.report` shows: embedding.h5ad, the file and its embedding, scores.json, and
beside.npz, the embeddings that were compared.
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files import h5ad, whole
from data_pipeline.files.columns import text
from experiments.pages import output
from scfm_jax.api import Run
from scfm_jax.tasks.cells import embedding as task
from scfm_jax.tasks.cells.labels import measured, unlabelled
from scfm_jax.training import pace

MOST_CELLS = 20_000
"""Cells that are scored; of larger files a random sample."""
BESIDE = "beside.npz"
"""File of the scored cells' embeddings by each method, of the first seed, and their labels."""
BATCH = "batch"
"""The column of batches that is used without being asked for."""
SHOWN = ("accuracy", "f1", "nmi", "ari", "nmi_best", "ari_best", "batch_accuracy")


def embed_file(run: Run, source: str | os.PathLike, workdir: pathlib.Path, **options: Any) -> np.ndarray:
    """Embed `source` (options of `Run.embed`), write it to workdir/embedding.h5ad and return it. [n, D]"""
    embedding = run.embed(source, **options)
    with whole.writing(workdir / "embedding.h5ad") as temporary:
        h5ad.write_embedding(source, temporary, f"X_{run.name}", embedding, run.provenance, replace=True)
    return embedding


def evaluate(
    run: Run,
    source: str | os.PathLike,
    workdir: pathlib.Path,
    *,
    label: str = "cell_type",
    batch: str = BATCH,
    seeds: Sequence[int] = (0, 1, 2),
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Embed `source`, score by its obs column `label` beside PCA and random twins; write and return the scores.

    Args:
      batch: obs column of batches, used if it names at least two that can be told apart; BATCH need not be there.
      seeds: each seeds the folds, Leiden, PCA and the weights of one twin.
      options: of `Run.embed`.

    Raises:
      ValueError: there is no such column, or it cannot be scored by.
    """
    with h5ad.read_counts(source, **h5ad.place(options)) as counts:
        obs, n = counts.obs, counts.n_cells
        if label not in obs:
            raise ValueError(
                f"label={label}: no such obs column; there are {', '.join(map(str, obs.columns)) or 'none'}"
            )
        if batch not in obs and batch != BATCH:
            raise ValueError(f"batch={batch}: no such obs column; there are {', '.join(map(str, obs.columns))}")
        cells = np.arange(n)
        if n > MOST_CELLS:
            cells = np.sort(np.random.default_rng(0).choice(n, MOST_CELLS, replace=False))
        matrix = counts.take(cells)
    labels = np.array([None if unlabelled(name) else name for name in text(obs[label])[cells]], object)
    counted, _ = task.countable(labels, name=f"label={label}")
    batches = _batches(obs[batch].iloc[cells], counted, batch, say) if batch in obs else None
    embedding = embed_file(run, source, workdir, say=say, **options)[cells]
    ways = {
        run.name: lambda seed: embedding,
        "PCA-50": lambda seed: task.pca(matrix, seed=seed),
        "random twin": lambda seed: run.twin(seed).embed(source, say=lambda _: None, **options)[cells],
    }
    rows = []
    first: dict[str, np.ndarray] = {}
    for seed, name in pace.counted([(seed, name) for seed in seeds for name in ways], "scored", say):
        x = ways[name](seed)
        rows.append({"embedding": name, "seed": seed, **task.score(x, labels, batches, seed=seed)})
        rows[-1] |= {"void": True} if task.void(x) else {}
        first.setdefault(name, x.astype(np.float32))
    scores = {
        "input": pathlib.Path(source).name,
        "weights": run.source,
        "label": label,
        "batch": batch if batches is not None else None,
        "of": n,
        "cells": rows[0]["cells"],
        "types": rows[0]["types"],
        "rows": rows,
    }
    with whole.writing(workdir / BESIDE) as partial, partial.open("wb") as file:
        np.savez_compressed(file, label=np.array([name or "" for name in labels]), **first)
    output.write_file(workdir / "scores.json", scores)
    return scores


def _batches(values: pd.Series, counted: np.ndarray, name: str, say: Callable[[str], None]) -> np.ndarray | None:
    """Return the batch of each cell; None, and say why, where the column cannot be scored by. [n]"""
    names = text(values)
    try:
        if measured(values):
            raise ValueError("it holds measurements, not names of batches")
        task.countable(names[counted], name="its values")
    except ValueError as error:
        if len({*names} - {None}) > 1:
            say(f"batch={name}: is not scored: {error}")
        return None
    return names


def summary(scores: dict[str, Any]) -> pd.DataFrame:
    """Return the mean of each metric over seeds, and as columns "<metric> ±" half its range; a row per embedding."""
    frame = pd.DataFrame(scores["rows"])
    grouped = frame.groupby("embedding", sort=False)[[m for m in SHOWN if m in frame]]
    spread = (grouped.max() - grouped.min()) / 2
    return grouped.mean().join(spread.add_suffix(" ±"))


def table(scores: dict[str, Any]) -> str:
    """Return the scores as a table of text."""
    means = summary(scores)
    metrics = [m for m in SHOWN if m in means]
    lines = [f"{'':14}" + "".join(f"{m:>18}" for m in metrics)]
    for name, row in means.iterrows():
        lines.append(
            f"{name:14}" + "".join(f"{f'{row[m]:.3f} ± {row[m + chr(32) + chr(177)]:.3f}':>18}" for m in metrics)
        )
    seeds = len({row["seed"] for row in scores["rows"]})
    lines += [task.VOID.format(name) for name in dict.fromkeys(r["embedding"] for r in scores["rows"] if r.get("void"))]
    lines.append(f"{scores['cells']} cells of {scores['types']} types; mean ± half the range over {seeds} seeds")
    return "\n".join(lines)
