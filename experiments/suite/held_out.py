"""What the spatial tasks of a suite share: genes held out of a spatial study, and single cells that have them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax import api
from scfm_jax.tasks.imputation import bins, imputation, spatial_baselines, spatial_imputation

METRICS = {
    name: {"text": f"{counts.ERRORS[name]}, mean over genes", "higher": more}
    for name, more in spatial_imputation.SCORES.items()
} | {"mcc_within_gene": {"text": imputation.METRICS["mcc_within_gene"], "higher": True}}
MOST = 50_000
"""Cells of a slide that baselines of slides see; of a larger one those that are scored and random others."""


def score(
    entrant: Entrant | None,
    study: Study,
    columns: SharedGenes,
    seed: int,
    *,
    cells: int,
    reference: Sequence[Study],
    reference_cells: int,
    learn: Callable[[api.Run, imputation.Problem, int], api.Run] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of held-out genes of a seed, with the cells of the reference studies at hand.

    Args:
      columns: genes of the study's file. [K]
      learn: fine-tunes the run and its twin on all visible counts first. Without it they are asked as they are, and
        models whose cells attend to each other are given the reference cells together with the study's.
    """
    table = counts.draw(study, columns, seed, cells)
    held = spatial_imputation.hold_out(table.counts, seed)
    others = counts.reference_counts(study, columns, reference, reference_cells, seed)
    genes = np.flatnonzero(held & others[1])
    hidden = np.broadcast_to(np.isin(np.arange(len(columns)), genes), table.counts.shape)
    problem = imputation.pose(table.counts, table.measured, hidden, table.bags, **table.where, reference=others)
    options = {"together": spatial_imputation.together if learn is None else None, "learn": learn}
    ruler, true_ruler = imputation.fit_ruler(problem, table.counts), bins.fit(table.counts, table.counts.sum(1))
    predictions = counts.predictions(entrant, study, table, problem, seed, ruler, **options)
    baselines = _of_slide(study, table, problem, genes, seed) if entrant is None else ()
    parts = {"": np.ones(len(columns), bool)}
    for prediction in itertools.chain(predictions, baselines):
        expected = np.zeros(table.counts.shape, np.float32)
        expected[problem.hidden] = prediction.counts(problem.entries[0])
        scores = spatial_imputation.score(expected, table.counts, genes)
        values = prediction.by(ruler, problem.entries[0])
        binned = imputation.score(values, problem, table.counts, ruler, true_ruler, parts)[""]
        yield from prediction.rows("", scores | {"mcc_within_gene": binned["mcc_within_gene"]})


def _of_slide(
    study: Study, table: counts.Table, problem: imputation.Problem, genes: np.ndarray, seed: int
) -> Iterator[counts.Prediction]:
    """Yield what baselines say that see all cells of the slide, but never the held-out `genes` [H] of any."""
    n = len(table.rows)
    both = problem.known[:n].all(0) & problem.known[n:].all(0)
    others = np.setdiff1d(np.random.default_rng(seed).permutation(study.n), table.rows, assume_unique=True)
    cells = np.concatenate([table.rows, others[: max(MOST - n, 0)]])
    shared = table.columns.of(study.counts.take(cells))[:, np.flatnonzero(both)].toarray()
    reference = problem.counts[n:]
    slide = spatial_baselines.Slide(shared.astype(np.float32), reference[:, both], reference[:, genes], n)
    rows, columns = problem.entries
    for name, predict in (
        ("gene constant", spatial_baselines.constant),
        ("mapping of cells, as Tangram", spatial_baselines.mapped),
        ("aligned neighbours, as SpaGE", spatial_baselines.aligned),
    ):
        values = np.asarray(predict(slide), np.float32)[rows, np.searchsorted(genes, columns)]
        yield counts.Prediction(name, "baseline", values)
