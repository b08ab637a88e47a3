"""Denoising, as CellPLM's paper asks for it: counts that were thinned, and counts with flips to zero."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import denoising
from scfm_jax.tasks.imputation.imputation import Problem

METRICS = {name: {"text": counts.ERRORS[name], "higher": more} for name, more in denoising.SCORES.items()}
NEEDS = frozenset({"expression"})


def score(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    *,
    cells: int,
    columns: SharedGenes,
    keep: float,
    rate: float,
) -> Iterator[dict[str, Any]]:
    """Yield the scores after thinning and after flips to zero, of the flipped entries and of all.

    Args:
      keep: share of the molecules that are kept. rate: share of each cell's expressed genes that are flipped.
    """
    table, rng = counts.draw(study, columns, seed, cells), np.random.default_rng(seed)
    flipped, where = denoising.flip(table.counts, rate, rng)
    thinned = denoising.thin(table.counts, keep, rng)
    for spoiled, cases in (
        (thinned, {f"thinned to {keep:.0%}": None}),
        (flipped, {f"zero flips {rate:.0%}: flipped": where, f"zero flips {rate:.0%}: all": None}),
    ):
        alive = (spoiled.sum(1) > 0) & (table.counts.sum(1) > 0)
        answers = list(_answers(entrant, study, table, spoiled, seed))
        for case, entries in cases.items():
            entries = None if entries is None else entries[alive]
            for prediction, values in answers:
                yield from prediction.rows(case, denoising.score(values[alive], table.counts[alive], entries))


def _answers(
    entrant: Entrant | None, study: Study, table: counts.Table, spoiled: np.ndarray, seed: int
) -> Iterator[tuple[counts.Prediction, np.ndarray]]:
    """Yield the predictions of spoiled counts, and the same as counts. [n, K]"""
    everything = np.ones(spoiled.shape, bool)
    problem = Problem(spoiled, everything, everything, everything[0], table.bags, table.samples, **table.where)
    predictions = list(counts.predictions(entrant, study, table, problem, seed))
    if entrant is None:
        predictions.append(counts.Prediction("as it is", "baseline", spoiled.ravel()))
    for prediction in predictions:
        yield prediction, prediction.counts(problem.entries[0]).reshape(spoiled.shape)
