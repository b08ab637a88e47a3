"""What the imputation tasks of a suite share, which differ in what they hide: the masks, scored bin by bin."""

import itertools
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import bins, imputation

METRICS = {name: {"text": text, "higher": name.startswith("mcc")} for name, text in imputation.METRICS.items()}
WORDS = {"visible": "", "cell": ", ruler of the whole cell"}
"""What the name of a case says of its ruler."""


def score(
    task: ModuleType,
    entrant: Entrant | None,
    study: Study,
    columns: SharedGenes,
    seed: int,
    *,
    cells: int,
    ruler: Sequence[str],
    rates: Sequence[float] = (),
    reference: Sequence[Study] = (),
    reference_cells: int = 300,
    fitted: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of a seed under each mask of `task`, a file of `scfm_jax.tasks.imputation` with `cases`.

    Args:
      columns: genes of the study's file. [K]
      ruler: rulers of predictions, of `imputation.RULERS`, each with its own cases under the same masks.
      reference: studies of which baselines see some cells whole, as models have seen others in training.
      fitted: show the baselines that are fitted to what is visible of each cell.
    """
    imputation.check(task.__name__.rpartition(".")[2].removesuffix("_imputation"), rates, ruler, bool(reference))
    table, rng = counts.draw(study, columns, seed, cells), np.random.default_rng(seed)
    others = counts.reference_counts(study, columns, reference, reference_cells, seed) if reference else None
    measured = np.ones(len(columns), bool)
    true_ruler = bins.fit(table.counts, table.counts.sum(1))
    for hidden, parts in task.cases(table.counts, measured, table.bags, rates, rng):
        for name in ruler:
            seen = {**table.where, "reference": others, "ruler": name}
            problem = imputation.pose(table.counts, table.measured, hidden, table.bags, **seen)
            common = imputation.fit_ruler(problem, table.counts, name)
            more = counts.fitted(problem, seed) if fitted and entrant is None else ()
            for prediction in itertools.chain(counts.predictions(entrant, study, table, problem, seed, common), more):
                values = prediction.by(common, problem.entries[0])
                for case, scores in imputation.score(values, problem, table.counts, common, true_ruler, parts).items():
                    yield from prediction.rows(case + WORDS[name], scores)
