"""What the denoising tasks of a suite share: spoiled counts, what methods make of them, and the scores."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, Study
from scfm_jax import api
from scfm_jax.tasks.imputation import baselines, denoising
from scfm_jax.tasks.imputation.imputation import Problem

METRICS = {name: {"text": counts.ERRORS[name], "higher": more} for name, more in denoising.SCORES.items()}


def answers(
    entrant: Entrant | None,
    study: Study,
    table: counts.Table,
    spoiled: np.ndarray,
    seed: int,
    learn: Callable[[api.Run, Problem, int], api.Run] | None = None,
) -> Iterator[tuple[counts.Prediction, np.ndarray]]:
    """Yield what methods say of spoiled counts, and the same as counts, all of which they see. [n, K]

    Args:
      learn: tunes the run and its twin first.
    """
    everything = np.ones(spoiled.shape, bool)
    problem = Problem(spoiled, everything, everything, everything[0], table.bags, **table.where)
    predictions = counts.predictions(entrant, study, table, problem, seed, learn=learn)
    if entrant is None:
        table_of_genes = baselines.mean_where_expressed(problem)
        simple = (("as it is", spoiled.ravel()), ("gene mean where expressed", table_of_genes))
        simple = (counts.Prediction(name, "baseline", values) for name, values in simple)
        predictions = itertools.chain(predictions, counts.fitted(problem, seed), simple)
    for prediction in predictions:
        yield prediction, prediction.counts(problem.entries[0]).reshape(spoiled.shape)


def rows(
    case: str,
    answered: Iterable[tuple[counts.Prediction, np.ndarray]],
    truth: np.ndarray,
    spoiled: np.ndarray,
    entries: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of answers over `entries`, or over all, of the cells that have counts. [n, K]"""
    alive = (spoiled.sum(1) > 0) & (truth.sum(1) > 0)
    entries = None if entries is None else entries[alive]
    for prediction, values in answered:
        yield from prediction.rows(case, denoising.score(values[alive], truth[alive], entries))
