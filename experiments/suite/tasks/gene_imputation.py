"""Gene imputation, as sCT's paper asks for it: a random share of the genes of every cell is hidden."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.suite import masks
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import gene_imputation

METRICS = masks.METRICS
NEEDS = frozenset({"expression"})


def score(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    *,
    cells: int,
    columns: SharedGenes,
    rates: Sequence[float],
    ruler: Sequence[str] = ("visible",),
) -> Iterator[dict[str, Any]]:
    """Yield the scores of what is hidden at each of the `rates`, a case each, by each `ruler`, "visible" or "cell"."""
    options = {"cells": cells, "rates": rates, "ruler": ruler, "fitted": True}
    yield from masks.score(gene_imputation, entrant, study, columns, seed, **options)
