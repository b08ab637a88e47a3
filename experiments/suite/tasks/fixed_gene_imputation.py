"""Fixed gene imputation, as sCT's paper asks for it: the same genes are hidden in every cell, by their sparsity."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.suite import masks
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import fixed_gene_imputation

METRICS = masks.METRICS
NEEDS = frozenset({"expression"})


def score(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    *,
    cells: int,
    columns: SharedGenes,
    reference: Sequence[Study] = (),
    reference_cells: int = 300,
    ruler: Sequence[str] = ("visible",),
) -> Iterator[dict[str, Any]]:
    """Yield the scores of each part of the genes, a case each.

    Args:
      reference: studies of which baselines see `reference_cells` cells whole; without any they know no hidden gene.
      ruler: "visible", "cell" or both, cases apart.
    """
    others = {"reference": reference, "reference_cells": reference_cells, "ruler": ruler}
    yield from masks.score(fixed_gene_imputation, entrant, study, columns, seed, cells=cells, **others)
