"""Validation: metrics of a model over the held-out cells, and of tables that know nothing of the cell (floors)."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scfm_jax import sharding
from scfm_jax.training import pace
from scfm_jax.training.loader import Loader, to_batch
from scfm_jax.training.progress import add, means
from scfm_jax.training.step import Objective, eval_step
from scfm_jax.types import Array, Batch, TrainState


class Tables(NamedTuple):
    """What a model is held against, tables of genes; see `tasks.floors`, which makes them.

    Attributes:
      learn: (over, constants) -> arrays, from training cells: `over(look)` yields (batch, look(batch, constants, rng)),
        numpy, for one batch after the other, as often as it is called.
      score: as `Objective.loss`, with what `learn` returned for the parameters; metrics "metric/table".
      observe: (outputs, inputs) -> more metrics of the model in validation, whose sums may be arrays, or None.
      residual: (metrics of a validation, those of the tables) -> the model's score beyond the tables.
      against: the "metric/table" that is shown beside the model's.
    """

    learn: Callable[..., Any]
    score: Callable[..., Any]
    observe: Callable[..., Any] | None
    residual: Callable[[Mapping[str, Any], Mapping[str, float]], float]
    against: str

    def held(self, values: Mapping[str, Any], measured: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a validation that are numbers, and "residual"."""
        numbers = {name: value for name, value in values.items() if np.ndim(value) == 0}
        return {**numbers, "residual": self.residual(values, measured)}


def validator(
    objective: Objective,
    loader: Loader,
    devices: Mesh,
    before_batch: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> Callable[[TrainState], dict[str, float]]:
    """Return a function from a state to its validation metrics, means over all cells of `loader`.

    Args:
      before_batch: is called before each batch, and may raise `signals.Stopped`. say: is told how far it is.
    """
    everywhere = NamedSharding(devices, PartitionSpec())
    evaluate = jax.jit(functools.partial(eval_step, objective), out_shardings=everywhere)

    def validate(state: TrainState) -> dict[str, float]:
        sums, before = {}, {}
        batches = pace.counted(loader.epoch_batches(), "validated batch", say, total=getattr(loader, "epoch_steps", 0))
        for index, arrays in enumerate(batches):
            before_batch()
            metrics = evaluate(state, sharding.put_batch(to_batch(arrays), devices), np.uint32(index))
            add(sums, before)
            before = metrics
        add(sums, before)
        return means(sums)

    return validate


def measured(
    tables: Tables,
    state: TrainState,
    constants: Mapping[str, np.ndarray],
    loader: Loader,
    validation: Loader,
    devices: Mesh,
    cells: int,
    before_batch: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Return the floors {"metric/table": value}, means over all cells of `validation`, those that are finite.

    The batches and the random draws are those of `validator`. All processes come to the same numbers.

    Args:
      state: whose constants and key are used. constants: the same in host memory. loader: of the training cells.
      cells: to learn from, the first so many of a pass, and a batch. before_batch, say: as of `validator`.
    """
    everywhere, learnt_from = NamedSharding(devices, PartitionSpec()), 0

    def over(look: Callable[..., Any]) -> Iterator[tuple[Batch, Any]]:
        nonlocal learnt_from

        def looked(batch: Batch, constants: dict[str, Array], rng: Array, index: Array) -> tuple[Batch, Any]:
            return batch, look(batch, constants, jax.random.fold_in(jax.random.wrap_key_data(rng), index))

        looked, seen = jax.jit(looked, out_shardings=everywhere), 0
        with contextlib.closing(iter(loader.epoch_batches())) as batches:
            for index, arrays in enumerate(batches):
                before_batch()
                batch = sharding.put_batch(to_batch(arrays), devices)
                batch, made = jax.device_get(looked(batch, state.constants, state.rng, np.uint32(index)))
                seen += int(batch.cell_mask.sum())
                learnt_from = max(learnt_from, seen)
                yield batch, made
                if seen >= cells:
                    break

    arrays = jax.device_put(tables.learn(over, constants), everywhere)
    say(f"floors: tables learnt from {learnt_from:,} training cells, now scored on the validation cells")
    scored = Objective(init=None, loss=tables.score, flops=None)
    validate = validator(scored, validation, devices, before_batch, say)
    values = validate(state.replace(params=arrays, ema=None, buffers={}))
    return {name: value for name, value in values.items() if "/" in name and math.isfinite(value)}
