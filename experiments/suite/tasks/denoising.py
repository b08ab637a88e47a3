"""Denoising, as CellPLM's paper asks for it: counts with flips to zero, and counts that were thinned.

The flipped entries alone are what that paper's table is of; over all entries leaving the counts as they are wins by the
many that were not touched.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.suite import counts, spoiled
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import denoising

METRICS = spoiled.METRICS
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
    """Yield the scores of the flipped entries, of all entries after flips, and of all after thinning.

    Args:
      keep: share of the molecules that are kept. rate: share of each cell's expressed genes that are flipped.
    """
    table, rng = counts.draw(study, columns, seed, cells), np.random.default_rng(seed)
    flipped, where = denoising.flip(table.counts, rate, rng)
    answered = list(spoiled.answers(entrant, study, table, flipped, seed))
    yield from spoiled.rows(f"zero flips {rate:.0%}: flipped", answered, table.counts, flipped, where)
    yield from spoiled.rows(f"zero flips {rate:.0%}: all", answered, table.counts, flipped)
    thinned = denoising.thin(table.counts, keep, rng)
    answered = spoiled.answers(entrant, study, table, thinned, seed)
    yield from spoiled.rows(f"thinned to {keep:.0%}", answered, table.counts, thinned)
