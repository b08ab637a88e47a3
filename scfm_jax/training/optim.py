"""The optimiser of a run: an optax chain, a schedule, and what is frozen, from the keys of `config.optim`."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scfm_jax.saving.leaves import path_name
from scfm_jax.training import freezing
from scfm_jax.training.schedules import Schedule, one_of
from scfm_jax.types import Array

NAMES = ("adamw", "adam", "rmsprop", "sgd", "adafactor")


class Optimizer(NamedTuple):
    """How gradients change parameters: `params -= schedule(step) * direction`.

    The learning rate is applied outside the optax chain, so that the rate of a step is a function of the step alone and
    the one that is logged is the one that was used.

    Attributes:
      transform: gradients -> direction (clipping, moments, weight decay, a plateau's factor).
      schedule: step -> learning rate.
      trained: a bool per parameter, False where it is frozen, or one per layer where a stack is so in part; None where
        nothing is.
      ema: decay of the moving average of the parameters, None for no average.
      rates: a schedule per parameter, where groups have their own; None where all have `schedule`.
    """

    transform: optax.GradientTransformation
    schedule: optax.Schedule
    trained: Any = None
    ema: float | None = None
    rates: Any = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a gradient becomes the direction of an update.

    Attributes:
      name: adamw, adam, rmsprop, sgd or adafactor. Weight decay is decoupled (added to the direction, hence scaled by
        the learning rate) in adamw and adafactor, and an L2 term of the gradient in the others, as in torch.
      plateau_patience: updates without a new least training loss (by 1 part in 10,000) after which all rates are
        multiplied by `plateau_factor`; 0 for never. As torch's ReduceLROnPlateau, which waits for one more.
      clip_norm: largest global gradient norm.
      momentum: of sgd; `b1`, `b2`, `eps` are Adam's, `b2` and `eps` of rmsprop too (0.99 and 1e-8 in torch).
      ema: decay of a moving average of the parameters, which is then what is validated and embedded with.
    """

    name: str = "adamw"
    weight_decay: float = 0.0
    plateau_patience: int = 0
    plateau_factor: float = 0.95
    clip_norm: float | None = None
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9
    ema: float | None = None

    def transform(self, decay: Sequence[optax.GradientTransformation]) -> optax.GradientTransformation:
        """Return the chain from gradients to directions, with the weight decay `decay` in its place."""
        clip = [clipped(self.clip_norm)] if self.clip_norm else []
        adam = optax.scale_by_adam(self.b1, self.b2, self.eps)
        rules = {
            "adamw": [adam, *decay],
            "adam": [*decay, adam],
            "rmsprop": [*decay, optax.scale_by_rms(self.b2, self.eps, eps_in_sqrt=False)],
            "sgd": [*decay, optax.trace(self.momentum)],
            "adafactor": [optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), *decay],
        }
        patience = self.plateau_patience
        plateau = [optax.contrib.reduce_on_plateau(self.plateau_factor, patience)] if patience else []
        return optax.chain(*clip, *rules[one_of(self.name, NAMES, "optim.name")], *plateau)


@dataclasses.dataclass(frozen=True)
class Layers:
    """What holds of some parameters and not of others.

    Attributes:
      no_decay: regular expressions of parameter paths that are not decayed.
      frozen: regular expressions of parameter paths that are not trained; they cost neither backward pass nor moments.
      frozen_layers: so many of the first layers are not trained, nor what comes before them; see `freezing`.
      groups: {"match": regular expressions of parameter paths, "rate": factor of the learning rate, "schedule",
        "delay", "weight_decay"} of parameters that have their own; what is left out is as for all, and the first match
        counts.
    """

    no_decay: Sequence[str] = ()
    frozen: Sequence[str] = ()
    frozen_layers: int = 0
    groups: Sequence[Mapping[str, Any]] = ()


SECTIONS = (Schedule, Rule, Layers)
KEYS = tuple(field.name for section in SECTIONS for field in dataclasses.fields(section))
"""The keys of `config.optim`, which are flat."""


def build(params: Any, *, steps: int, layers: Mapping[str, Any] | None = None, **options: Any) -> Optimizer:
    """Return the optimiser that `config.optim` describes.

    Args:
      params: the parameters, or their shapes; only paths are looked at.
      steps: length of the run, the default of `decay_steps`.
      layers: the TUNING of the model, which says what its layers are.
      options: KEYS, the fields of `Schedule`, `Rule` and `Layers`.

    Raises ValueError for a key or a value that there is not.
    """
    schedule, rule, some = sections(options)
    trained = _trained(params, some.frozen, some.frozen_layers, layers)
    default = {"rate": 1.0, "weight_decay": rule.weight_decay, "schedule": schedule.schedule, "delay": schedule.delay}
    number, groups = _grouped(params, some.groups, default)
    undecayed = matches(params, some.no_decay, "optim.no_decay")
    decay = []
    for i, group in enumerate(groups):
        mask = jax.tree.map(lambda n, un, i=i: n == i and not un, number, undecayed)
        decay += [optax.add_decayed_weights(group["weight_decay"], mask=_like(mask))] if group["weight_decay"] else []
    transform = rule.transform(decay)
    if trained is not None:
        transform = optax.masked(transform, jax.tree.map(lambda t: bool(np.any(t)), trained))
    rates = [schedule.rate(group["schedule"], group["rate"], steps, group["delay"]) for group in groups]
    by_group = jax.tree.map(lambda n: rates[n], number) if len(groups) > 1 else None
    return Optimizer(transform, schedule.rate(schedule.schedule, 1.0, steps), trained, rule.ema, by_group)


def sections(options: Mapping[str, Any]) -> tuple[Schedule, Rule, Layers]:
    """Return the flat keys of `config.optim` sorted into their sections; ValueError names a key that none has."""
    if wrong := sorted(set(options) - set(KEYS)):
        raise ValueError(f"optim: no such key {', '.join(wrong)}; there are {', '.join(KEYS)}")
    named = [{field.name for field in dataclasses.fields(section)} for section in SECTIONS]
    parts = [{key: value for key, value in options.items() if key in names} for names in named]
    return Schedule(**parts[0]), Rule(**parts[1]), Layers(**parts[2])


def clipped(most: float) -> optax.GradientTransformationExtraArgs:
    """Return the clipping of the global norm to `most`, by one factor that the next loop over the gradients can take.

    optax's own chooses and divides element by element, which a CPU does in a pass of its own. `norm`: of the gradients,
    where it is known.
    """

    def update(
        grads: Any, state: optax.EmptyState, params: Any = None, *, norm: Array | None = None, **_: Any
    ) -> tuple[Any, optax.EmptyState]:
        del params
        norm = optax.tree.norm(grads) if norm is None else norm
        factor = jnp.minimum(1, most / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        return jax.tree.map(lambda x: (factor * x).astype(x.dtype), grads), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def matches(params: Any, patterns: Sequence[str], option: str) -> Any:
    """Return a tree of bools: is any of `patterns` found in the leaf's path ("encoder/block_0/query/kernel")?

    Raises:
      ValueError: a pattern that is found nowhere, or is not a regular expression.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        try:
            hit = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(f"{option}: {pattern!r} is not a regular expression ({error})") from None
        if not hit:
            raise ValueError(f"{option}: {pattern!r} matches no parameter; there are {', '.join(names[:4])}, ...")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.search(pattern, path_name(path)) for pattern in patterns), params
    )


def stop_frozen(optimizer: Optimizer, params: Any) -> Any:
    """Return `params` with no gradient flowing into the frozen ones."""
    if optimizer.trained is None:
        return params
    return jax.tree.map(lambda p, t: _where(t, p, jax.lax.stop_gradient(p)), params, optimizer.trained)


def update(
    optimizer: Optimizer,
    grads: Any,
    opt_state: Any,
    params: Any,
    step: Array,
    loss: Array | float = 0.0,
    norm: Array | None = None,
) -> tuple[Any, Any]:
    """Return (new parameters, new optimiser state) after the update of `step`.

    Args:
      loss: of this step, which a plateau is found by. norm: of the gradients, where it is known.
    """
    transform = optax.with_extra_args_support(optimizer.transform)
    direction, opt_state = transform.update(grads, opt_state, params, value=loss, norm=norm)
    rate = optimizer.schedule(step)
    rates = (
        jax.tree.map(lambda rate: rate(step), optimizer.rates)
        if optimizer.rates
        else jax.tree.map(lambda _: rate, params)
    )
    return jax.tree.map(lambda p, d, rate: (p - rate * d).astype(p.dtype), params, direction, rates), opt_state


def keep_frozen(optimizer: Optimizer, new: Any, params: Any) -> Any:
    """Return the `new` parameters, those that are not trained as they were, bit by bit."""
    return new if optimizer.trained is None else jax.tree.map(_where, optimizer.trained, new, params)


def average(optimizer: Optimizer, ema: Any, params: Any) -> Any:
    """Return the moving average one update later; None where there is none."""
    if optimizer.ema is None:
        return None
    return jax.tree.map(lambda a, p: optimizer.ema * a + (1 - optimizer.ema) * p, ema, params)


def _trained(params: Any, frozen: Sequence[str], n_layers: int, layers: Mapping[str, Any] | None) -> Any:
    """Return `Optimizer.trained`."""
    if not frozen and not n_layers:
        return None
    if n_layers and layers is None:
        raise ValueError(
            f"optim.frozen_layers={n_layers}: this model does not say what its layers are; use optim.frozen"
        )
    early = freezing.first_layers(params, n_layers, layers) if n_layers else jax.tree.map(lambda _: False, params)
    hits = matches(params, frozen, "optim.frozen")
    return jax.tree.map(
        lambda hit, first: not hit and ~np.asarray(first) if np.ndim(first) else not (hit or first), hits, early
    )


def _grouped(
    params: Any, groups: Sequence[Mapping[str, Any]], default: Mapping[str, Any]
) -> tuple[Any, list[dict[str, Any]]]:
    """Return (the number of each parameter's group, the options of the groups, those of all others last)."""
    number = jax.tree.map(lambda _: len(groups), params)
    for i in reversed(range(len(groups))):
        if wrong := set(groups[i]) - {"match", *default}:
            raise ValueError(
                f"optim.groups: no such key {', '.join(sorted(wrong))}; there are match, {', '.join(default)}"
            )
        hits = matches(params, groups[i]["match"], "optim.groups")
        number = jax.tree.map(lambda hit, n, i=i: i if hit else n, hits, number)
    return number, [*({**default, **group} for group in groups), dict(default)]


def _where(chosen: bool | np.ndarray, x: Array, other: Array) -> Array:
    if isinstance(chosen, bool):
        return x if chosen else other
    return jnp.where(chosen, x, other)


def _like(mask: Any) -> Callable[[Any], Any]:
    """Return `mask` as a function: inside `optax.masked` the tree is larger where parameters are left out."""

    def fit(tree: Any) -> Any:
        masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
        return jax.tree.map(lambda leaf, hit: leaf if masked(leaf) else hit, tree, mask, is_leaf=masked)

    return fit
