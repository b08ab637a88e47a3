"""The pure half of training: what a run minimises, one update of its state, one batch of validation.

Everything random is drawn from `fold_in(rng, step)`, so a step is a function of state and batch.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from scfm_jax.training import optim
from scfm_jax.types import Array, Batch, Outputs, TrainState

Metrics = dict[str, tuple[Array, Array]]
"""{name: (weighted sum, weight)}: added over batches, divided once."""

_VALIDATION = 0xFFFFFFFF
"""What the base key is folded with for validation; no step has this number."""


class Objective(NamedTuple):
    """All that the loop knows about a model or a task.

    Attributes:
      init: (rng, batch, constants) -> Flax variables.
      loss: (params, buffers, batch, constants, rng, step, train) -> (scalar, (metrics, new buffers)). The weight of
        metrics["loss"], where it reports one, is the weight of the batch among others; by default its number of cells.
      flops: (batch, constants) -> forward FLOPs of the batch, from shapes alone.
      passes: a step takes so many times these: 3 where all is trained (forward, and the gradients of what passes
        through the layers and of their parameters), 2 or 1 where less is.
      input_flops: of these, of layers that see the data alone, whose inputs have no gradient.
      project: params -> params, done after every update; None for nothing.
    """

    init: Callable[..., Any]
    loss: Callable[..., tuple[Array, tuple[Metrics, Any]]]
    flops: Callable[..., float]
    project: Callable[[Any], Any] | None = None
    passes: float = 3
    input_flops: Callable[..., float] = lambda batch, constants: 0.0

    def step_flops(self, batch: Batch, constants: dict[str, Array]) -> float:
        """Return the FLOPs of a step, backward passes included."""
        unneeded = self.input_flops(batch, constants) if self.passes > 1 else 0.0
        return self.passes * self.flops(batch, constants) - unneeded


def counting(
    module: ModuleType, model: nn.Module, inputs: Mapping[str, Any], **how: bool
) -> dict[str, Callable[[Batch, dict[str, Array]], float]]:
    """Return an objective's `flops` and `input_flops` of a model file; `how`: keywords of the module's `flops`."""

    def prepared(batch: Batch, constants: dict[str, Array]) -> Any:
        def prepare(batch, constants):
            return module.prepare(batch, constants, jax.random.key(0), step=0, train=True, **inputs)

        return jax.eval_shape(prepare, batch, constants)

    def flops(batch: Batch, constants: dict[str, Array]) -> float:
        return module.flops(model, prepared(batch, constants), **how)

    def input_flops(batch: Batch, constants: dict[str, Array]) -> float:
        return module.input_flops(model, prepared(batch, constants)) if hasattr(module, "input_flops") else 0.0

    return {"flops": flops, "input_flops": input_flops}


def pretraining(
    module: ModuleType,
    model: nn.Module,
    inputs: dict[str, Any],
    loss: dict[str, Any],
    observe: Callable[[Outputs, Any], Metrics] | None = None,
) -> Objective:
    """Return the objective of a model file: `prepare` -> `Model` -> `loss` (see `scfm_jax.models`).

    Args:
      inputs: keywords of the module's `prepare`; `loss`: keywords of its `loss`.
      observe: (outputs, inputs) -> more metrics in validation, whose sums may be arrays.
    """

    def init(rng: Array, batch: Batch, constants: dict[str, Array]) -> Any:
        keys = jax.random.split(rng, 4)
        prepared = module.prepare(batch, constants, keys[0], step=0, train=True, **inputs)
        return model.init(dict(zip(("params", "dropout", "latent"), keys[1:], strict=True)), prepared, train=True)

    def forward(params, buffers, batch, constants, rng, step, train):
        keys = jax.random.split(rng, 3)
        prepared = module.prepare(batch, constants, keys[0], step=step, train=train, **inputs)
        outputs, changed = model.apply(
            {"params": params, **buffers},
            prepared,
            train=train,
            rngs={"dropout": keys[1], "latent": keys[2]},
            mutable=["buffers"] if train else [],
        )
        value, metrics = module.loss(outputs, prepared, **loss)
        tokens = module.tokens(prepared).astype(jnp.float32)
        metrics |= observe(outputs, prepared) if observe and not train else {}
        return value, ({**metrics, "tokens": (tokens, jnp.ones(()))}, {**buffers, **changed})

    project = getattr(module, "project", None)
    return Objective(init, forward, project=project, **counting(module, model, inputs))


def init_state(
    objective: Objective, optimizer: Callable[[Any], optim.Optimizer], seed: int, batch: Batch, constants: Any
) -> TrainState:
    """Return the state of step 0; traceable, so `optimizer(params)` is called with tracers."""
    base = jax.random.key(seed)
    variables = dict(objective.init(jax.random.fold_in(base, _VALIDATION - 1), batch, constants))
    params = variables.pop("params")
    built = optimizer(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(base),
        params=params,
        opt_state=built.transform.init(params),
        buffers=variables,
        constants=constants,
        ema=None if built.ema is None else jax.tree.map(jnp.copy, params),
    )


def train_step(
    objective: Objective, optimizer: optim.Optimizer, microbatches: int, state: TrainState, batch: Batch
) -> tuple[TrainState, Metrics]:
    """Return the state one update later, and the metrics of the batch.

    A loss or gradient that is not finite leaves all but `step` as it was, and counts in metrics["skipped"].
    """
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

    def gradients(buffers: Any, batch: Batch, rng: Array) -> tuple[Any, Metrics, Any]:
        def loss(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            params = optim.stop_frozen(optimizer, params)
            return objective.loss(params, buffers, batch, state.constants, rng, state.step, True)

        (value, (metrics, buffers)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        return grads, _counted(value, metrics, batch), buffers

    if microbatches == 1:
        grads, metrics, buffers = gradients(state.buffers, batch, rng)
    else:
        grads, metrics, buffers = _accumulate(gradients, microbatches, state.buffers, batch, rng)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm)
    loss = metrics["loss"][0] / jnp.maximum(metrics["loss"][1], jnp.finfo(jnp.float32).tiny)

    def updated(state: TrainState, grads: Any) -> TrainState:
        params, opt_state = optim.update(optimizer, grads, state.opt_state, state.params, state.step, loss, norm)
        params = objective.project(params) if objective.project else params
        params = optim.keep_frozen(optimizer, params, state.params)
        ema = optim.average(optimizer, state.ema, params)
        return state.replace(params=params, opt_state=opt_state, buffers=buffers, ema=ema)

    # a branch, not a choice for every number: moments are changed in place
    state = jax.lax.cond(finite, updated, lambda state, _: state, state, grads)
    one = jnp.ones(())
    metrics = {**metrics, "grad_norm": (norm, one), "learning_rate": (optimizer.schedule(state.step), one)}
    metrics = jax.tree.map(lambda x: jnp.where(finite, x, 0), metrics)
    return state.replace(step=state.step + 1), {**metrics, "skipped": (1.0 - finite, one)}


def jitted(
    objective: Objective, optimizer: optim.Optimizer, microbatches: int, layout: Any, place: jax.sharding.Sharding
) -> Any:
    """Return `train_step` jitted: the state is updated in place and lies as `layout` says, metrics lie in `place`."""
    return jax.jit(
        functools.partial(train_step, objective, optimizer, microbatches),
        donate_argnums=0,
        out_shardings=(layout, place),
    )


def eval_step(objective: Objective, state: TrainState, batch: Batch, index: Array) -> Metrics:
    """Return the metrics of validation batch number `index`; its random draws are the same at every validation."""
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), _VALIDATION)
    params = state.params if state.ema is None else state.ema
    value, (metrics, _) = objective.loss(
        params, state.buffers, batch, state.constants, jax.random.fold_in(rng, index), state.step, False
    )
    return _counted(value, metrics, batch)


def _counted(value: Array, metrics: Metrics, batch: Batch) -> Metrics:
    """Return the metrics with the loss as a weighted sum that adds up over batches, and the number of cells."""
    cells = batch.cell_mask.sum(dtype=jnp.float32)
    weight = metrics["loss"][1] if "loss" in metrics else cells
    metrics = {**metrics, "loss": (value * weight, weight), "cells": (cells, jnp.ones(()))}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), metrics)


def _accumulate(
    gradients: Callable[..., tuple[Any, Metrics, Any]], n: int, buffers: Any, batch: Batch, rng: Array
) -> tuple[Any, Metrics, Any]:
    """Return what `gradients` returns for `batch`, computed as `n` microbatches one after the other.

    Each microbatch's loss counts with its weight (see `Objective.loss`), so the result is that of the whole batch where
    the loss is a mean with that weight and nothing is drawn at random. Parts of a loss that have other weights (masked
    entries, a latent's KL) are averaged by this one, too, and every microbatch makes draws of its own.
    Microbatch i takes the bags i, i + n, i + 2n, ..., so that no bag leaves its device.
    """
    bags = batch.cell_mask.shape[0]
    if bags % n:
        raise ValueError(f"train.microbatches={n}: must divide the {bags} bags of a batch, data.batch")
    parts = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // n, n, *x.shape[1:]), 0, 1), batch)

    def body(carry: Any, part: tuple[Array, Batch]) -> tuple[Any, None]:
        total, sums, buffers = carry
        grads, metrics, buffers = gradients(buffers, part[1], jax.random.fold_in(rng, part[0]))
        total = jax.tree.map(lambda t, g: t + g * metrics["loss"][1], total, grads)
        return (total, jax.tree.map(jnp.add, sums, metrics), buffers), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(gradients, buffers, first, rng)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[:2])
    (total, sums, buffers), _ = jax.lax.scan(body, (*zeros, buffers), (jnp.arange(n), parts))
    weight = jnp.maximum(sums["loss"][1], jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda g: g / weight, total), sums, buffers
