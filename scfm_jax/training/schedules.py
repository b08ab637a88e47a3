"""The learning rate of every step: a function of the step alone, from keys of `config.optim`."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from scfm_jax.types import Array

SCHEDULES = ("constant", "warmup", "warmup_cosine", "warmup_linear", "cosine_restarts")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The learning rate by step.

    Attributes:
      schedule: constant, warmup (linear, then constant), warmup_cosine, warmup_linear, cosine_restarts (`restarts`).
      warmup: steps of the linear warm-up, or where it is below 1 the share of the schedule that they are.
      warmup_from: the learning rate of step 0 where there is a warm-up, in units of the peak.
      delay: steps at a rate of 0 before the schedule begins, or where it is below 1 their share of the run.
      decay_steps: length of the schedule, by default what is left of the run.
      final_rate: the last learning rate, in units of the peak; with restarts the least.
      cycle, cycle_growth, cycle_peak: of `restarts`.
      schedule_every: updates that the schedule counts as one step (`experiments.train` gives those of an epoch where
        `schedule_unit` is "epoch").
    """

    learning_rate: float = 1e-3
    schedule: str = "warmup_cosine"
    warmup: float = 0
    warmup_from: float = 0.0
    delay: float = 0
    decay_steps: int | None = None
    final_rate: float = 0.0
    cycle: int = 15
    cycle_growth: float = 2.0
    cycle_peak: float = 0.9
    schedule_every: int = 1

    def rate(self, kind: str, factor: float, steps: int, delay: float | None = None) -> optax.Schedule:
        """Return the learning rates of a run of `steps` updates, by the schedule `kind`, times a factor.

        `delay`: another than the schedule's own.
        """
        every = self.schedule_every
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"optim.schedule_every={every!r}: must be a positive number of updates")
        delay = self.delay if delay is None else delay
        if not 0 <= delay <= steps:
            raise ValueError(f"optim.delay={delay:g}: must be from 0 to {steps}, the updates of the run, or a share")
        wait = int(delay * steps // every) if delay < 1 else int(delay)
        decay_steps, peak = self.decay_steps or max(1, steps // every - wait), factor * self.learning_rate
        if kind == "cosine_restarts":
            cycles = int(self.warmup), self.cycle, self.cycle_growth, self.cycle_peak
            by = restarts(peak, self.final_rate, *cycles, decay_steps)
        else:
            by = _schedule(kind, peak, (self.warmup_from, self.warmup), decay_steps, self.final_rate)
        if not wait:
            return lambda step: by(step // every)
        return lambda step: jnp.where(step // every < wait, 0.0, by(jnp.maximum(step // every - wait, 0)))


def restarts(
    peak: float, least: float, warmup: int, cycle: int, growth: float, fade: float, steps: int
) -> optax.Schedule:
    """Return scLong's schedule: cycles of a linear warm-up and a cosine down, each longer and lower than the last.

    Args:
      least: where each cycle starts and ends, in units of the first `peak`.
      warmup: steps of each cycle's warm-up. cycle: steps of the first cycle, warm-up included.
      growth: of what is not warm-up, from cycle to cycle. fade: of the peak.
      steps: how far the schedule is wanted; it stays where it ends.
    """
    if not 0 <= warmup < cycle or growth < 1:
        raise ValueError(
            f"optim.warmup={warmup}, cycle={cycle}, cycle_growth={growth}: the first cycle is longer than its warm-up, "
            "and no cycle is shorter than the one before"
        )
    lengths = [cycle]
    while sum(lengths) <= steps:
        lengths.append(int((lengths[-1] - warmup) * growth) + warmup)
    starts = np.cumsum([0, *lengths[:-1]])
    low = least * peak

    def schedule(step: Array) -> Array:
        step = jnp.minimum(step, sum(lengths) - 1)
        number = jnp.searchsorted(starts, step, side="right") - 1
        place = (step - jnp.asarray(starts)[number]).astype(float)
        rise = peak * jnp.power(fade, number.astype(float)) - low
        fall = (place - warmup) / (jnp.asarray(lengths)[number] - warmup)
        return low + rise * jnp.where(place < warmup, place / max(warmup, 1), (1 + jnp.cos(jnp.pi * fall)) / 2)

    return schedule


def _schedule(name: str, peak: float, start: tuple[float, float], decay: int, final: float) -> optax.Schedule:
    first, warmup = start
    one_of(name, SCHEDULES, "optim.schedule")
    if not 0 <= first <= 1:
        raise ValueError(f"optim.warmup_from={first:g}: must be from 0 to 1, in units of the peak learning rate")
    warmup = int(warmup * decay) if warmup < 1 else int(warmup)
    if name == "constant":
        return lambda step: jnp.asarray(peak, jnp.float32)
    if name == "warmup":
        return optax.warmup_constant_schedule(first * peak, peak, max(warmup, 1))
    if name == "warmup_linear":
        parts = [(first * peak, peak, max(warmup, 1)), (peak, final * peak, max(decay - warmup, 1))]
        return optax.join_schedules([optax.linear_schedule(*part) for part in parts], [warmup])
    if not warmup:
        return optax.cosine_decay_schedule(peak, decay, final)
    if warmup >= decay:
        raise ValueError(f"optim.warmup={warmup} steps: must be fewer than the {decay} steps of the schedule")
    return optax.warmup_cosine_decay_schedule(first * peak, peak, warmup, decay, final * peak)


def one_of(name: str, names: Sequence[str], option: str) -> str:
    """Return `name`; ValueError where it is not one of the names that a config's option may have."""
    if name not in names:
        raise ValueError(f"{option}={name!r}: must be one of {', '.join(names)}")
    return name
