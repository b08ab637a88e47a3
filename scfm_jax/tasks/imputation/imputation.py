"""What the imputation tasks share: a problem that no hidden value is part of, scores, intervals.

Three tasks of the sCT paper (InstaDeep, 2024/25) hide entries of a count matrix: `gene_imputation`,
`cell_imputation`, `fixed_gene_imputation`. Each file has

  RATES   what is hidden by default: one case of the paper each. check(rates) raises ValueError for others.
  cases(counts, measured, bags, rates, rng) -> iterator of (hidden [n, V], {name: genes bool [V]})
          masks, and the sets of genes that are scored apart under that mask.

A prediction is an array over the hidden entries in row-major order: expected counts [h], or shares of bins
[h, n_bins]. Either is turned into the other by the cell's ruler (`bins`), so all methods have all metrics. A method is
given a `Problem`, where hidden counts are zero; the truth is met in `score` alone.

Two RULERS. That of the "visible" entries knows nothing that is hidden; the truth is binned by the whole cell, so that
right counts can be in a wrong bin. That of the whole "cell", the paper's, tells every method the cell's total, its
least and its greatest value, at every rate. Where everything is hidden (rate 1) nothing is visible: reference cells
lend the mean of their rulers and of their totals, and without any the "visible" ruler is refused (`check`).
"""

import dataclasses
import functools
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import scipy.stats

from scfm_jax.tasks.imputation import bins, within_gene

TASKS = ("gene", "cell", "fixed_gene")
RULERS = ("visible", "cell")
METRICS = {
    "mcc_expressed": "Matthews correlation of bins, expressed genes",
    "mcc_within_gene": "the same within genes, 0 for a constant bin of each gene",
    "mcc_all": "Matthews correlation of bins, all genes",
    "mae_expressed": "mean absolute error of counts, expressed genes",
    "mae_all": "mean absolute error of counts, all genes",
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """Cells of which some entries are hidden. The first n of N cells are asked for, the others only help baselines.

    Attributes:
      counts: raw counts, zero wherever they are not known. [N, V]
      known: entries that may be seen: measured, and not hidden. [N, V]
      hidden: entries to predict; where they are `known` all the same (denoising), a model sees them too. [n, V]
      measured: genes that the file of the n cells measured. [V]
      bags: rows of cells that are seen together, a partition of the n cells.
      samples: code of the tissue sample of each of the n cells. [n]
      coords: their positions, or None; field_coords: scaled over their whole field of view. [n, 2]
      totals: total counts of the n cells where they are told, with the ruler of the whole cell; else None. [n]
    """

    counts: np.ndarray
    known: np.ndarray
    hidden: np.ndarray
    measured: np.ndarray
    bags: Sequence[np.ndarray]
    samples: np.ndarray
    coords: np.ndarray | None = None
    field_coords: np.ndarray | None = None
    totals: np.ndarray | None = None

    @functools.cached_property
    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of the hidden entries, row by row. [h], [h]"""
        return self.hidden.nonzero()

    @functools.cached_property
    def depth(self) -> np.ndarray:
        """Total counts of each cell, `totals` or estimated: visible counts over the share of visible genes. [N]

        A cell of which nothing is visible gets the mean of the others, of the reference cells if there are no others.
        """
        n_genes = self.known.sum(1)
        asked = (self.known[: len(self.hidden)] | self.hidden).sum(1)  # the genes that the cell's batch measured
        full = np.concatenate([asked, n_genes[len(self.hidden) :]])
        depth = self.counts.sum(1, dtype=np.float64) * full / np.maximum(n_genes, 1)
        seen = depth[: len(self.hidden)][n_genes[: len(self.hidden)] > 0]
        seen = seen if len(seen) else depth[len(self.hidden) :]
        depth = np.where(n_genes > 0, depth, seen.mean() if len(seen) else 0)
        if self.totals is not None:
            depth[: len(self.totals)] = self.totals
        return depth


def pose(
    counts: np.ndarray,
    measured: np.ndarray,
    hidden: np.ndarray,
    bags: Sequence[np.ndarray],
    *,
    samples: np.ndarray | None = None,
    coords: np.ndarray | None = None,
    field_coords: np.ndarray | None = None,
    reference: tuple[np.ndarray, np.ndarray] | None = None,
    ruler: str = "visible",
) -> Problem:
    """Return the problem of imputing `hidden` [n, V] of `counts` [n, V]; what is hidden is not in it.

    Args:
      measured: genes that the file measured [V], or each of the cells, where batches differ [n, V].
      reference: counts [m, V] of other cells, of which everything is visible, and the genes measured there [V].
      ruler: one of RULERS; "cell" tells the totals.
    """
    visible = measured & ~hidden
    seen = np.where(visible, counts, 0).astype(np.float32)
    if reference is not None:
        others, reference_genes = reference
        seen = np.concatenate([seen, np.where(reference_genes, others, 0).astype(np.float32)])
        visible = np.concatenate([visible, np.broadcast_to(reference_genes, others.shape)])
    samples = np.zeros(len(counts), int) if samples is None else samples
    totals = np.where(measured, counts, 0).sum(1, dtype=np.float64) if ruler == "cell" else None
    measured_once = measured.reshape(-1, measured.shape[-1]).any(0)
    return Problem(seen, visible, hidden & measured, measured_once, bags, samples, coords, field_coords, totals)


def fit_ruler(problem: Problem, truth: np.ndarray, ruler: str = "visible", **binning: Any) -> bins.Ruler:
    """Return the ruler of all N cells of a problem, of what is visible or of whole cells; reference cells are whole.

    Args:
      truth: counts of the n cells, read with the ruler "cell" alone. [n, V]
      binning: options of `bins.fit`.
    """
    seen = np.concatenate([truth, problem.counts[len(truth) :]]) if ruler == "cell" else problem.counts
    return bins.fit(seen, problem.depth, **binning)


def check(task: str, rates: Sequence[float], rulers: Sequence[str], reference: bool) -> None:
    """Raise ValueError where there is no such task, rate or ruler, or a ruler has nothing to be read off.

    Args:
      reference: whether there are reference cells.
    """
    get(task).check(rates)
    check_rulers(rulers)
    if task == "gene" and 1 in rates and "visible" in rulers and not reference:
        words = "rates: 1 hides everything, and the ruler of visible entries has nothing to be read off"
        raise ValueError(f"{words}; take ruler=cell alone, leave 1 out, or give reference cells")


def check_rulers(rulers: Sequence[str]) -> None:
    """Raise ValueError unless these are one or two different RULERS."""
    if unknown := [name for name in rulers if name not in RULERS]:
        raise ValueError(f"ruler={unknown[0]}: there are {', '.join(RULERS)}")
    if not rulers or len(set(rulers)) < len(rulers):
        raise ValueError(f"ruler={','.join(rulers)}: name one of {', '.join(RULERS)}, or each once")


def get(task: str) -> ModuleType:
    """Return the module of a task; ValueError names the tasks there are."""
    if task not in TASKS:
        raise ValueError(f"task {task!r}: no such task; there are {', '.join(TASKS)}")
    return importlib.import_module(f"scfm_jax.tasks.imputation.{task}_imputation")


def score(
    prediction: np.ndarray,
    problem: Problem,
    truth: np.ndarray,
    ruler: bins.Ruler,
    true_ruler: bins.Ruler,
    parts: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float]]:
    """Return the METRICS of a prediction for each set of genes.

    Args:
      prediction: expected counts [h] or shares of bins [h, n_bins] of the hidden entries.
      truth: raw counts. [n, V]
      ruler: of the predictions, of the n cells at least. true_ruler: of the truth.
      parts: {name: genes bool [V]}.

    Raises:
      ValueError: the prediction is not finite or not one of the hidden entries.
    """
    rows, columns = problem.entries
    if len(prediction) != len(rows) or not np.isfinite(prediction).all():
        raise ValueError(f"{len(prediction)} predictions of {len(rows)} hidden entries, some perhaps not finite")
    if prediction.ndim == 2:
        said, counts = prediction.argmax(1), ruler.counts(prediction, rows)
    else:
        said, counts = ruler.bins(prediction, rows), prediction
    true = truth[rows, columns]
    true_bins, error = true_ruler.bins(true, rows), np.abs(counts - true)
    scores = {}
    for name, genes in parts.items():
        scores[name] = {}
        for kind, counted in (("expressed", genes[columns] & (true > 0)), ("all", genes[columns])):
            scores[name][f"mcc_{kind}"] = matthews(true_bins[counted], said[counted])
            scores[name][f"mae_{kind}"] = float(error[counted].mean(dtype=np.float64)) if counted.any() else np.nan
            if kind == "expressed":
                within = within_gene.matthews(true_bins[counted], said[counted], columns[counted])
                scores[name]["mcc_within_gene"] = within
        scores[name] = {metric: scores[name][metric] for metric in METRICS}
    return scores


def matthews(true: np.ndarray, said: np.ndarray) -> float:
    """Return the multiclass Matthews correlation (Gorodkin, 2004) of classes 0, 1, ...; 0 where one is constant."""
    n_classes = max(int(true.max(initial=0)), int(said.max(initial=0))) + 1
    pairs = np.bincount(true.astype(np.int64) * n_classes + said, minlength=n_classes**2).astype(np.float64)
    table = pairs.reshape(n_classes, n_classes)
    total, hits, t, p = table.sum(), table.trace(), table.sum(1), table.sum(0)
    spread = np.sqrt((total**2 - t @ t) * (total**2 - p @ p))
    return float((hits * total - t @ p) / spread) if spread > 0 else 0.0


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t), NaN of a single value."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)
