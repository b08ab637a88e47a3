"""Negative binomial likelihood of sparse counts under a dense head.

The negative log-likelihood of a zero count needs no log-gamma: nb(0) = theta log(1 + mu / theta). So the dense
part over all genes is one logarithm, and all else is computed at the expressed genes, gathered from the dense means.
Counts have mean `mu` and inverse dispersion `theta`; `mu` is rescaled per cell to the observed total, as CellPLM does.
"""

import jax.numpy as jnp
from jax.scipy.special import gammaln

from scfm_jax.types import Array

EPS = 1e-10
MEAN_RANGE = (1e-5, 1e6)
THETA_RANGE = (1e-4, 1e4)


def nb_nll(counts: Array, mu: Array, theta: Array) -> Array:
    """Return the negative log-likelihood of every count, dense and plain. Any broadcastable shapes."""
    t = gammaln(theta + EPS) + gammaln(counts + 1) - gammaln(counts + theta + EPS)
    log_ratio = jnp.log(theta + EPS) - jnp.log(mu + EPS)
    return t + (theta + counts) * jnp.log(1 + mu / (theta + EPS)) + counts * log_ratio


def at(dense: Array, slots: Array, fill: float = 0.0) -> Array:
    """Return `dense` [..., V] at the gene slots [..., P]; `fill` where the slot is not a gene (V: padding)."""
    shape = (*slots.shape[:-1], dense.shape[-1])
    inside = slots < dense.shape[-1]
    found = jnp.take_along_axis(jnp.broadcast_to(dense, shape), jnp.where(inside, slots, 0), -1)
    return jnp.where(inside, found, fill)


def scaled_nb_nll(mean: Array, theta: Array, slots: Array, counts: Array, scored: Array) -> Array:
    """Return each cell's summed negative log-likelihood over its scored genes, means rescaled to the observed total.

    Args:
      mean: unscaled means. [..., V]
      theta: inverse dispersion of each gene. [V]
      slots: genes of the non-zero counts, V in the padding; no gene twice. [..., P]
      counts: those counts, 0 in the padding. [..., P]
      scored: which genes count; broadcast against `mean`. [..., V]
    """
    counts = counts * at(scored, slots, False)
    total = jnp.where(scored, mean, 0).sum(-1, keepdims=True)
    factor = counts.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)
    zeros = jnp.where(scored, theta * jnp.log(1 + mean * factor / (theta + EPS)), 0).sum(-1)
    return zeros + expressed_nll(at(mean, slots) * factor, at(theta, slots, 1.0), counts).sum(-1)


def expressed_nll(mu: Array, theta: Array, counts: Array) -> Array:
    """Return what an expressed gene adds to the negative log-likelihood of a zero there; 0 where counts are 0."""
    t = gammaln(theta + EPS) + gammaln(counts + 1) - gammaln(counts + theta + EPS)
    return t + counts * (jnp.log(1 + mu / (theta + EPS)) + jnp.log(theta + EPS) - jnp.log(mu + EPS))


def nb_parameters(logits: Array, log_theta: Array) -> tuple[Array, Array]:
    """Return (mean, inverse dispersion) of the head's outputs, both clipped after the exponential."""
    return jnp.clip(jnp.exp(logits), *MEAN_RANGE), jnp.clip(jnp.exp(log_theta), *THETA_RANGE)


def dense(slots: Array, values: Array, size: int) -> Array:
    """Return the values at their slots and zeros elsewhere; slots beyond `size` are dropped. [..., P] -> [..., size]"""
    flat_slots, flat_values = slots.reshape(-1, slots.shape[-1]), values.reshape(-1, slots.shape[-1])
    rows = jnp.arange(flat_slots.shape[0])[:, None]
    out = jnp.zeros((flat_slots.shape[0], size), values.dtype).at[rows, flat_slots].add(flat_values, mode="drop")
    return out.reshape(*slots.shape[:-1], size)
