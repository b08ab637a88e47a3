"""Spatial imputation after the run and its twin have learned from what is visible, as CellPLM's paper has it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.suite import held_out
from experiments.suite import tuning as suite_tuning
from experiments.suite.entrants import Entrant, SharedGenes, Study

METRICS = {name: about | {"text": f"{about['text']} (after fine-tuning)"} for name, about in held_out.METRICS.items()}
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
    tuning: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the held-out genes after fine-tuning.

    Args:
      tuning: options of `suite.tuning.fine_tune`.
    """
    others = {"reference": reference, "reference_cells": reference_cells}
    learn = functools.partial(suite_tuning.fine_tune, **tuning)
    yield from held_out.score(entrant, study, columns, seed, cells=cells, **others, learn=learn)
