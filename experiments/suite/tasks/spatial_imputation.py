"""Spatial imputation: genes held out of a spatial study, as CellPLM's paper has it, zero-shot."""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.suite import held_out
from experiments.suite.entrants import Entrant, SharedGenes, Study

METRICS = held_out.METRICS
NEEDS = frozenset({"expression", "positions", "reference"})


def score(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    *,
    cells: int,
    columns: SharedGenes,
    reference: Sequence[Study],
    reference_cells: int,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the held-out genes; models whose cells attend to each other see the reference cells, too."""
    others = {"reference": reference, "reference_cells": reference_cells}
    yield from held_out.score(entrant, study, columns, seed, cells=cells, **others)
