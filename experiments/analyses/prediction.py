"""Name the cell types of a file without labels: by the head of a fine-tuned run, or by neighbours in a reference."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files import h5ad
from data_pipeline.files.columns import text
from experiments.pages import output
from scfm_jax.api import Run
from scfm_jax.tasks.cells import label_transfer
from scfm_jax.tasks.cells.labels import unlabelled


def by_head(run: Run, source: Any, **options: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the probability of each type for each cell [n, types], and what was done.

    `options` are those of `Run.embed`. ValueError where the run has no head for cell types.
    """
    if run.task_name != "cell_type":
        raise ValueError(
            f"{run.source}: this run was not fine-tuned to name cell types; give --reference, a file of labelled cells "
            "whose neighbours name them, or a run of --config=finetune_cell_type"
        )
    shares = run.annotate(source, **options)
    return shares, {**run.provenance, "by": "the run's head for cell types"}


def by_neighbours(
    run: Run,
    source: Any,
    reference: Sequence[str],
    label: str,
    *,
    neighbours: int = 15,
    where: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the share of each type among a cell's nearest labelled cells in the run's embedding, and what was done.

    Args:
      reference: files of labelled cells. label: their obs column of types; cells without one do not vote.
      where: layer and raw of the reference. options: of `Run.embed`, layer and raw of `source` among them.

    Raises:
      ValueError, OSError: no such column, too few labelled cells, or as for `Run.embed`.
    """
    where = dict(where or {})
    kept = [_labelled(path, label, where) for path in reference]
    types = np.concatenate([names[rows] for names, rows in kept])
    if len(types) < neighbours:
        raise ValueError(f"--neighbours={neighbours}: the reference has {len(types)} labelled cells; ask for fewer")
    classes, y = np.unique(types.astype(str), return_inverse=True)
    near = [run.embed(path, **{**options, **where})[rows] for path, (_, rows) in zip(reference, kept, strict=True)]
    shares = label_transfer.vote(np.concatenate(near), y, run.embed(source, **options), len(classes), neighbours)
    files = ", ".join(pathlib.Path(path).name for path in reference)
    how = f"{neighbours} nearest of {len(types):,} cells of {files}, by obs[{label!r}]"
    with h5ad.read_counts(source, **h5ad.place(options)) as counts:
        table = pd.DataFrame(shares, counts.obs.index, list(classes))
    return table, {**run.provenance, "by": how}


def columns(shares: pd.DataFrame, key: str, threshold: float) -> pd.DataFrame:
    """Return what is written into obs: "<key>_type", categories, and "<key>_probability" of the most probable type."""
    names, probability = label_transfer.named(shares.to_numpy(), list(shares.columns), threshold)
    return pd.DataFrame(
        {f"{key}_type": pd.Categorical(names), f"{key}_probability": probability.astype(np.float32)}, shares.index
    )


def table(predicted: pd.DataFrame) -> str:
    """Return how many cells are of each type, the most common first, and their mean probability, as Markdown."""
    types, probability = (predicted.iloc[:, i].to_numpy() for i in (0, 1))
    number = pd.Series(types).value_counts()
    rows = [
        [str(name), f"{n:,}", f"{n / len(types):.1%}", f"{probability[types == name].mean():.2f}"]
        for name, n in number.items()
    ]
    return output.markdown(["type", "cells", "share", "mean probability"], rows)


def _labelled(path: str, label: str, where: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the types of all cells of a file [n], and the rows of those that have one."""
    with h5ad.read_counts(path, **where) as counts:
        if label not in counts.obs:
            there_are = ", ".join(map(str, counts.obs.columns)) or "none"
            raise ValueError(f"--label_key={label}: {path} has no such obs column; there are {there_are}")
        names = text(counts.obs[label])
    rows = np.flatnonzero([not unlabelled(name) for name in names])
    if not len(rows):
        raise ValueError(f"--label_key={label}: no cell of {path} has a type there")
    return names, rows
