"""Denoising after the run and its twin were tuned on other flips of the same cells; flipped entries alone are scored.

The protocol of Table 1 of CellPLM's paper (Wen et al., ICLR 2024), its three rows of a model: as it is (zero-shot),
tuned, and from scratch, which is the random twin tuned alike. See `suite.flips` for what is learnt and what stops it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.suite import counts, flips, spoiled
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax.tasks.imputation import denoising

METRICS = {name: about | {"text": f"{about['text']}, flipped entries"} for name, about in spoiled.METRICS.items()}
NEEDS = frozenset({"expression"})


def score(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    *,
    cells: int,
    columns: SharedGenes,
    rate: float,
    tuning: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the flipped entries: of the run before and after tuning, of its twin after it.

    Args:
      rate: share of each cell's expressed genes that are flipped.
      tuning: options of `suite.flips.fine_tune`.
    """
    table = counts.draw(study, columns, seed, cells)
    flipped, where = denoising.flip(table.counts, rate, np.random.default_rng(seed))
    ask = functools.partial(spoiled.answers, entrant, study, table, flipped, seed)
    answered = list(ask(learn=functools.partial(flips.fine_tune, **tuning)))
    if entrant is not None:
        before = ((prediction, values) for prediction, values in ask() if prediction.kind == "model")
        answered += [(dataclasses.replace(p, method=f"{p.method}, zero-shot"), values) for p, values in before]
    yield from spoiled.rows("", answered, table.counts, flipped, where)
