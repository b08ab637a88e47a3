"""What the spatial tasks of a suite share: genes held out of a spatial study, and single cells that have them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.suite import counts
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax import api
from scfm_jax.tasks.imputation import imputation, spatial_imputation

METRICS = {
    name: {"text": f"{counts.ERRORS[name]}, mean over genes", "higher": more}
    for name, more in spatial_imputation.SCORES.items()
}


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
    where = {"samples": table.samples, **table.where}
    problem = imputation.pose(table.counts, table.measured, hidden, table.bags, **where, reference=others)
    together = spatial_imputation.together if learn is None else None
    for prediction in counts.predictions(entrant, study, table, problem, seed, together=together, learn=learn):
        expected = np.zeros(table.counts.shape, np.float32)
        expected[problem.hidden] = prediction.counts(problem.entries[0])
        yield from prediction.rows("", spatial_imputation.score(expected, table.counts, genes))
