"""What the imputation tasks of a suite share, which differ in what they hide: the masks, scored bin by bin."""

import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import baselines, bins, imputation

METRICS = {name: {"text": text, "higher": name.startswith("mcc")} for name, text in imputation.METRICS.items()}


def score(
    task: ModuleType,
    entrant: Entrant | None,
    study: Study,
    columns: SharedGenes,
    seed: int,
    *,
    cells: int,
    rates: Sequence[float] = (),
    reference: Sequence[Study] = (),
    reference_cells: int = 300,
    fitted: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of a seed under each mask of `task`, a file of `scfm_jax.tasks.imputation` with `cases`.

    Args:
      columns: genes of the study's file. [K]
      reference: studies of which baselines see some cells whole, as models have seen others in training.
      fitted: show the baselines that are fitted to what is visible of each cell.
    """
    table, rng = counts.draw(study, columns, seed, cells), np.random.default_rng(seed)
    others = counts.reference_counts(study, columns, reference, reference_cells, seed) if reference else None
    measured = np.ones(len(columns), bool)
    true_ruler = bins.fit(table.counts, table.counts.sum(1))
    for hidden, parts in task.cases(table.counts, measured, table.bags, rates, rng):
        where = {"samples": table.samples, "coords": table.coords}
        problem = imputation.pose(table.counts, measured, hidden, table.bags, **where, reference=others)
        ruler = bins.fit(problem.counts, problem.depth)
        predictions = counts.predictions(entrant, study, table, problem, seed)
        if entrant is None:
            more = counts.fitted(problem, seed) if fitted else ()
            predictions = itertools.chain(predictions, more, _never_zero(problem, ruler))
        for prediction in predictions:
            values = prediction.values if _same(prediction.ruler, ruler) else prediction.counts(problem.entries[0])
            for case, scores in imputation.score(values, problem, table.counts, ruler, true_ruler, parts).items():
                yield from prediction.rows(case, scores)


def _never_zero(problem: imputation.Problem, ruler: bins.Ruler) -> Iterator[counts.Prediction]:
    """Yield what tables of genes say that never say zero: the floors of scores of expressed genes alone."""
    yield counts.Prediction("gene mean, never 0", "baseline", baselines.expressed_gene_mean(problem, ruler))
    common = baselines.most_common_bin(problem, ruler, least=1)
    yield counts.Prediction("common bin, never 0", "baseline", common, ruler)


def _same(one: bins.Ruler | None, other: bins.Ruler) -> bool:
    """Return whether shares of the bins of one ruler are shares of the other's."""
    return one is not None and one.edges.shape == other.edges.shape and np.allclose(one.edges, other.edges)
