"""The training of a head: a small network on features in memory, kept as it was at its best on validation rows.

    head = heads.Head(gears.Gears(n_genes), gears.Loss())
    fitted = heads.fit(head, train, valid, shared, gears.TRAINING, seed=3)
    predicted = heads.predict(head.network, fitted.variables, test, shared)

All tasks that train a head share it. A network is a Flax module called as `network(batch, shared, train)`: `batch` are
the rows of a step by name, `shared` the arrays that all rows have in common (a graph, a table of genes). The test rows
are never seen here: what is kept is chosen by validation rows alone, and without those it is the last epoch.

A seed is an argument of the compiled programs and no part of them, so a table of seeds, splits and features of the same
shapes compiles once: heads, losses and trainings are values that compare equal where their fields do. Rows are drawn by
(seed, epoch), noise by (seed, update).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.core import FrozenDict

from scfm_jax.training import optim
from scfm_jax.types import Array

Rows = dict[str, np.ndarray]
DEFAULT = {"name": "adam", "schedule": "constant"}
"""Keys of an optimiser that a training does not name."""


@dataclasses.dataclass(frozen=True)
class Head:
    """What is trained; hashable, so functions among its fields belong to a module or to a frozen dataclass.

    Attributes:
      network: module, `network(batch, shared, train) -> outputs`; it may draw from `_streams` in training.
      loss: (outputs, batch, shared) -> scalar.
      tally, score: of validation rows, the lower the better: `tally(outputs, batch, shared)` returns sums over the rows
        of a batch, which are added up, and `score(sums, shared)` makes a number of them. None for the mean loss.
      project: parameters -> parameters after an update, for those that live on a bounded set.
    """

    network: nn.Module
    loss: Callable[[Any, Mapping[str, Array], Mapping[str, Any]], Array]
    tally: Callable[[Any, Mapping[str, Array], Mapping[str, Any]], Any] | None = None
    score: Callable[[Any, Mapping[str, Any]], float] | None = None
    project: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Training:
    """How a head is trained.

    Attributes:
      optimizers: keys of `config.optim` (see `training.optim`), by default Adam's, at a constant rate.
      turns: for alternating trainings, one set of such keys after the other: epoch e is trained with set
        `turns[e % len(turns)]` of `optimizers`, which is then a tuple of sets.
      epochs: at most. patience: stop after so many without a better validation score; None for never.
      rows: of a batch; an epoch's last batch is filled from its beginning.
      sums: batches whose gradients are added up for an update (an epoch's last update may have fewer).
      clip: largest entry of these sums, before weight decay and moments; None for none.
      decay: factor of the learning rate after every epoch.
    """

    optimizers: Any = ()
    turns: tuple[int, ...] = (0,)
    epochs: int = 20
    patience: int | None = None
    rows: int = 64
    sums: int = 1
    clip: float | None = None
    decay: float = 1.0

    def __post_init__(self) -> None:
        sets = (self.optimizers,) if isinstance(self.optimizers, Mapping) else self.optimizers
        object.__setattr__(self, "optimizers", tuple(FrozenDict({**DEFAULT, **keys}) for keys in sets or ({},)))
        for name in ("epochs", "rows", "sums"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: a training needs at least one")
        if any("ema" in keys for keys in self.optimizers):
            raise ValueError("ema: a head keeps the parameters of its best epoch, not an average; leave it out")

    def optimizer(self, turn: int, params: Any) -> optim.Optimizer:
        """Return the optimiser of a turn: gradients that were added up, clipped by value, then as `optim.build` has it.

        The rate of an epoch is not in it: `fit` multiplies by `decay ** epoch`.
        """
        built = optim.build(params, steps=1, **self.optimizers[turn])
        clip = [optax.clip(self.clip)] if self.clip else []
        return built._replace(transform=optax.chain(*clip, built.transform))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows to train on or to predict: their number, and a function from row numbers to arrays of these rows by name."""

    n: int
    take: Callable[[np.ndarray], Rows]

    @classmethod
    def of(cls, **arrays: np.ndarray) -> "Examples":
        """Return the rows of arrays, which may lie in a mapped file; ValueError where they are not equally many."""
        lengths = {name: len(values) for name, values in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"arrays of {lengths} rows: a head needs one row of each for every cell")
        return cls(min(lengths.values()), lambda rows: {name: values[rows] for name, values in arrays.items()})


class State(NamedTuple):
    """What changes in a training: parameters, other collections, moments of each turn, summed gradients, updates."""

    params: Any
    others: Any
    moments: tuple[Any, ...]
    sums: Any
    step: Array


class Fitted(NamedTuple):
    """A trained head: its variables, the epoch they are of, and (training loss, validation score) of every epoch."""

    variables: dict[str, Any]
    epoch: int
    history: np.ndarray


def fit(
    head: Head,
    train: Examples,
    valid: Examples | None,
    shared: Mapping[str, Any],
    training: Training,
    seed: int = 0,
    start: Mapping[str, Any] | None = None,
) -> Fitted:
    """Return the head trained on `train` as it was after the epoch that was best on `valid`, or the last without one.

    `start` are parameters that are not drawn, a part of the tree: those of a pretrained model in the head.
    ValueError where there is no row, or the loss is not finite.
    """
    if not train.n or (valid is not None and not valid.n):
        raise ValueError("no rows to train on, or none to validate by: the split is too small for this task")
    size = min(training.rows, train.n)
    rule = dataclasses.replace(training, epochs=1, rows=1, turns=(0,), patience=None, decay=1.0)  # what is compiled in
    state = _begin(head, rule, jnp.uint32(seed), train.take(np.arange(size)), shared)
    state = state._replace(params=_started(state.params, start or {}))
    best, chosen, history = None, -1, []
    for epoch in range(training.epochs):
        turn = training.turns[epoch % len(training.turns)]
        rate, losses = jnp.float32(training.decay**epoch), []
        for rows, last in _batches(train.n, size, training.sums, (seed, epoch)):
            batch = train.take(rows)
            state, loss = _batch(head, rule, turn, last, state, batch, shared, jnp.uint32(seed), rate)
            losses.append(loss)
        value = np.nan if valid is None else _validate(head, state, valid, shared, training.rows)
        history.append((float(np.mean(jax.device_get(losses))), value))
        if not np.isfinite(history[-1][0]):
            raise ValueError(f"the loss of epoch {epoch} is not finite: lower the learning rate, or check the features")
        if best is None or valid is None or value < history[chosen][1]:
            best, chosen = jax.device_get((state.params, state.others)), epoch
        if training.patience is not None and epoch - chosen >= training.patience:
            break
    return Fitted({"params": best[0], **best[1]}, chosen, np.array(history))


def predict(
    network: nn.Module, variables: Mapping[str, Any], examples: Examples, shared: Mapping[str, Any], rows: int = 64
) -> Any:
    """Return the outputs of the network for all rows, in evaluation. [n, ...]"""
    parts = [
        jax.device_get(_outputs(network, variables, examples.take(part), shared)) for part in _in_turn(examples.n, rows)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _streams(key: Array) -> dict[str, Array]:
    """Return the streams that a network may draw from: those of heads, and of a model among them."""
    return dict.fromkeys(("noise", "dropout", "latent"), key)


def _batches(n: int, size: int, sums: int, key: tuple[int, int]) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield (the rows of each batch of an epoch, whether an update follows it)."""
    number = -(-n // size)
    order = np.resize(np.random.default_rng(key).permutation(n), (number, size))
    for i, rows in enumerate(order):
        yield rows, (i + 1) % sums == 0 or i + 1 == number


def _in_turn(n: int, rows: int) -> list[np.ndarray]:
    """Return all rows in turn, so many at a time."""
    return [np.arange(start, min(start + rows, n)) for start in range(0, n, rows)]


def _started(params: Any, start: Any) -> Any:
    """Return the parameters with those of `start` in the place of the drawn ones; what the head has not is left out."""
    if not isinstance(params, Mapping):
        return jnp.array(start, params.dtype)  # a copy: the state is given away at every step
    return {name: _started(x, start[name]) if name in start else x for name, x in params.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(head: Head, training: Training, seed: Array, batch: Rows, shared: Mapping[str, Any]) -> State:
    """Return random parameters and moments of zero."""
    key = jax.random.key(seed)
    others = dict(head.network.init({"params": key, **_streams(key)}, batch, shared, train=True))
    others.pop("intermediates", None)
    params = others.pop("params")
    params = head.project(params) if head.project else params
    moments = [training.optimizer(i, params).transform.init(params) for i in range(len(training.optimizers))]
    sums = jax.tree.map(jnp.zeros_like, params) if training.sums > 1 else None
    return State(params, others, tuple(moments), sums, jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnames="state")
def _batch(
    head: Head,
    training: Training,
    turn: int,
    last: bool,
    state: State,
    batch: Rows,
    shared: Mapping[str, Any],
    seed: Array,
    rate: Array,
) -> tuple[State, Array]:
    """Return the state after a batch, updated where it is the `last` of a sum, and the loss."""
    optimizer = training.optimizer(turn, state.params)
    noise = jax.random.fold_in(jax.random.key(seed), state.step)

    def objective(params: Any) -> tuple[Array, Any]:
        variables = {"params": optim.stop_frozen(optimizer, params), **state.others}
        changing = list(state.others)
        outputs, others = head.network.apply(
            variables, batch, shared, train=True, mutable=changing, rngs=_streams(noise)
        )
        return head.loss(outputs, batch, shared), others

    (loss, others), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    grads = grads if state.sums is None else jax.tree.map(jnp.add, state.sums, grads)
    state = state._replace(others={**state.others, **others}, step=state.step + 1)
    if not last:
        return state._replace(sums=grads), loss
    slower = lambda schedule: lambda step: rate * schedule(step)  # noqa: E731
    at_rate = optimizer._replace(schedule=slower(optimizer.schedule), rates=jax.tree.map(slower, optimizer.rates))
    params, moments = optim.update(at_rate, grads, state.moments[turn], state.params, state.step - 1)
    params = optim.keep_frozen(optimizer, params, state.params)
    params = head.project(params) if head.project else params
    sums = None if state.sums is None else jax.tree.map(jnp.zeros_like, grads)
    moments = (*state.moments[:turn], moments, *state.moments[turn + 1 :])
    return state._replace(params=params, moments=moments, sums=sums), loss


@functools.partial(jax.jit, static_argnums=0)
def _outputs(network: nn.Module, variables: Mapping[str, Any], batch: Rows, shared: Mapping[str, Any]) -> Any:
    return network.apply(variables, batch, shared, train=False)


@functools.partial(jax.jit, static_argnums=0)
def _tally(head: Head, variables: Mapping[str, Any], batch: Rows, shared: Mapping[str, Any]) -> Any:
    outputs = head.network.apply(variables, batch, shared, train=False)
    if head.tally:
        return head.tally(outputs, batch, shared)
    n = len(jax.tree.leaves(batch)[0])
    return n * head.loss(outputs, batch, shared), n


def _validate(head: Head, state: State, valid: Examples, shared: Mapping[str, Any], rows: int) -> float:
    """Return the score of the validation rows."""
    variables = {"params": state.params, **state.others}
    parts = (_tally(head, variables, valid.take(part), shared) for part in _in_turn(valid.n, rows))
    sums = jax.device_get(functools.reduce(lambda *x: jax.tree.map(jnp.add, *x), parts))
    return float(head.score(sums, shared)) if head.score else float(sums[0] / sums[1])
