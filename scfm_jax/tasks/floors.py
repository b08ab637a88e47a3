"""Floors of pre-training: what tables that know genes and studies, and not the cell, score as a model is scored.

The tables of a model are in `floors.py` of its folder, whose members the contract of `scfm_jax.models` tells. They are
learnt from training cells and scored on the validation batches with the draws of the validation loss, in the units of
the metrics beside which they stand (`training.validation.measured`).

The residual score of a model is what it has beyond its floor, 0 for the floor and 1 for the truth:

  residual = (floor - value) / (floor - least)

of the metric that `against` names: of squared errors (Exceiver, scLong: explained variance beyond gene mean and depth)
and cross-entropies (scEMB) `least` is 0, of a likelihood (CellPLM) what the truth scores. sCT has its own, the Matthews
correlation of bins within genes, see `models.sct.floors.residual`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax import models
from scfm_jax.training.validation import Tables
from scfm_jax.types import Array, Batch

TRUTH = "truth"
"""What stands in a floor's place where it is the least value and no floor."""


def of(name: str, inputs: Mapping[str, Any], loss: Mapping[str, Any]) -> Tables | None:
    """Return the tables of a model, to be learnt; None where its folder or its objective has none.

    Args:
      inputs, loss: those sections of a config.
    """
    file, module = models.floors(name), models.get(name)
    if file is None:
        return None
    inputs, loss = ({**models.defaults(module, part), **x} for part, x in (("inputs", inputs), ("loss", loss)))
    against = file.against(loss)
    if against is None:
        return None

    def learn(over: Callable[..., Any], constants: Mapping[str, np.ndarray]) -> Any:
        def see(*names: str, train: bool = True, add: Callable[..., Any] | None = None, **changed: Any) -> Iterator:
            def look(batch: Batch, constants: dict[str, Array], rng: Array) -> dict[str, Array]:
                made = module.prepare(batch, constants, rng, step=0, train=train, **{**inputs, **changed})
                made |= add(batch, made) if add else {}
                return {name: made[name] for name in names}

            return over(look)

        return file.learn(see, constants, inputs, loss)

    def score(tables, buffers, batch, constants, rng, step, train):
        keys = jax.random.split(rng, 3)  # as `step.pretraining` draws
        made = module.prepare(batch, constants, keys[0], step=step, train=train, **inputs)
        return jnp.zeros(()), (file.score(tables, batch, made, loss), buffers)

    def residual(values: Mapping[str, Any], measured: Mapping[str, float]) -> float:
        if hasattr(file, "residual"):
            return file.residual(values)
        metric = against.partition("/")[0]
        return share(values[metric], measured.get(against, math.nan), measured.get(f"{metric}/{TRUTH}", 0.0))

    return Tables(learn, score, getattr(file, "observe", None), residual, against)


def share(value: float, floor: float, least: float = 0.0) -> float:
    """Return the part of the way from the floor to the least value that a value has gone; NaN where there is none."""
    return (floor - value) / (floor - least) if floor > least else math.nan
