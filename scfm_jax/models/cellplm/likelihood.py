"""Negative binomial likelihood of sparse counts under a dense head, with its gradient computed by hand.

The negative log-likelihood of a zero count needs no log-gamma: nb(0) = theta log(1 + mu / theta). So the dense part
over all genes is one logarithm, and all else is computed at the expressed genes, gathered from the dense means. The
forward pass computes the gradient too, while the means are at hand: one [B, R, V] array is kept for the backward pass.

Counts have mean `mu` and inverse dispersion `theta`; `mu` is rescaled per cell to the observed total, as CellPLM does.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from scfm_jax.layers.sparse import at, scatter
from scfm_jax.types import Array

EPS = 1e-10
MEAN_RANGE = (1e-5, 1e6)
THETA_RANGE = (1e-4, 1e4)
CHUNK = 2**21  # logits looked at together: ten such arrays stay in a processor's cache


def nb_nll(counts: Array, mu: Array, theta: Array) -> Array:
    """Return the negative log-likelihood of every count: the plain formula, for any broadcastable shapes."""
    t = gammaln(theta + EPS) + gammaln(counts + 1) - gammaln(counts + theta + EPS)
    log_ratio = jnp.log(theta + EPS) - jnp.log(mu + EPS)
    return t + (theta + counts) * jnp.log(1 + mu / (theta + EPS)) + counts * log_ratio


def nb_parameters(logits: Array, log_theta: Array) -> tuple[Array, Array]:
    """Return (mean, inverse dispersion) of the head's outputs, both clipped after the exponential."""
    return jnp.clip(jnp.exp(logits), *MEAN_RANGE), jnp.clip(jnp.exp(log_theta), *THETA_RANGE)


def scaled_nb_nll(
    logits: Array, log_theta: Array, slots: Array, counts: Array, scored: tuple[Array, ...], weights: Array
) -> tuple[Array, tuple[Array, ...]]:
    """Return the weighted sum over cells of negative log-likelihoods, and its summands, one for each set of genes.

    For each set the means are rescaled so that their sum over the set is that of the counts, then summed over the set.

    Args:
      logits: log means before clipping and scaling. [B, R, V]
      log_theta: log inverse dispersion of each gene. [V]
      slots: genes of the non-zero counts, V in the padding; no gene twice. [B, R, P]
      counts: those counts, 0 in the padding. [B, R, P]
      scored: the sets of genes, each [B, 1, V] or [B, R, V].
      weights: of the cells. [B, R]
    """
    total, parts = _nll(logits, log_theta, slots, counts, scored, weights)
    return total, jax.lax.stop_gradient(parts)


@jax.custom_vjp
def _nll(logits, log_theta, slots, counts, scored, weights):
    return _value_and_grad(logits, log_theta, slots, counts, scored, weights)[0]


def _nll_forward(*arguments):
    return _value_and_grad(*arguments)


def _nll_backward(grads, cotangents):
    d_logits, d_log_theta = grads
    return cotangents[0] * d_logits, cotangents[0] * d_log_theta, None, None, None, None


_nll.defvjp(_nll_forward, _nll_backward)


def _value_and_grad(logits, log_theta, slots, counts, scored, weights):
    """Return ((total, parts), (d total / d logits, d total / d log_theta)), a chunk of cells at a time."""
    n_cells = logits.shape[1]
    n_chunks = next(n for n in range(1, n_cells + 1) if (n_cells % n == 0 and logits.size <= CHUNK * n) or n == n_cells)
    if n_chunks == 1:
        return _chunk(logits, log_theta, slots, counts, scored, weights)

    def split(x: Array) -> Array:  # [B, R, ...] -> [chunks, B, R / chunks, ...]
        return x.reshape(x.shape[0], n_chunks, -1, *x.shape[2:]).swapaxes(0, 1)

    fixed = [genes.shape[1] == 1 for genes in scored]
    moving = [split(genes) for genes, same in zip(scored, fixed, strict=True) if not same]

    def body(d_log_theta, x):
        logits, slots, counts, weights, *moving = x
        sets = tuple(genes if same else moving.pop(0) for genes, same in zip(scored, fixed, strict=True))
        (_, parts), (d_logits, d_theta) = _chunk(logits, log_theta, slots, counts, sets, weights)
        return d_log_theta + d_theta, (parts, d_logits)

    xs = (split(logits), split(slots), split(counts), split(weights), *moving)
    d_log_theta, (parts, d_logits) = jax.lax.scan(body, jnp.zeros_like(log_theta), xs)
    parts = tuple(part.sum() for part in parts)
    return (sum(parts), parts), (d_logits.swapaxes(0, 1).reshape(logits.shape), d_log_theta)


def _chunk(logits, log_theta, slots, counts, scored, weights):
    mean, theta = nb_parameters(logits, log_theta)
    w = weights[..., None]  # [B, R, 1]
    shift = theta + EPS
    mean_at, shift_at = at(mean, slots), at(shift, slots, 1.0)  # [B, R, P]
    log_gamma = at(gammaln(shift), slots) + gammaln(counts + 1) - gammaln(counts + shift_at)
    psi = jnp.where(counts > 0, at(digamma(shift), slots) - digamma(counts + shift_at), 0)
    parts, d_mean, d_theta, d_mean_at, d_theta_at = [], 0.0, 0.0, 0.0, 0.0
    for genes in scored:
        t = jnp.where(at(genes, slots, False), counts, 0)
        genes_mean = jnp.where(genes, mean, 0)
        total = genes_mean.sum(-1, keepdims=True)
        factor = t.sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)
        ratio = genes_mean * factor / shift
        log_ratio, share = jnp.log(1 + ratio), 1 / (1 + ratio)
        mu_at = mean_at * factor
        positive = t > 0
        nll_at = jnp.where(positive, log_gamma + t * (jnp.log(shift_at + mu_at) - jnp.log(mu_at + EPS)), 0)
        parts.append((weights * ((theta * log_ratio).sum(-1) + nll_at.sum(-1))).sum())
        slope = jnp.where(genes, factor * share, 0)  # of theta log(1 + ratio), by the unscaled mean
        slope_at = factor * t * (1 / (shift_at + mu_at) - 1 / (mu_at + EPS))
        inner = (slope * mean).sum(-1, keepdims=True) + (slope_at * mean_at).sum(-1, keepdims=True)
        d_mean += slope - jnp.where(genes, inner / jnp.where(total > 0, total, 1), 0)
        d_mean_at += slope_at
        d_theta += log_ratio - (1 - share)
        d_theta_at += jnp.where(positive, psi, 0) + t / (shift_at + mu_at)
    inside = (mean > MEAN_RANGE[0]) & (mean < MEAN_RANGE[1])
    d_logits = jnp.where(inside, w * mean * (d_mean + scatter(slots, d_mean_at, mean.shape[-1])), 0)
    d_theta = jnp.einsum("br,brv->v", weights, d_theta)
    d_theta += jnp.zeros_like(theta).at[slots.ravel()].add((w * d_theta_at).ravel(), mode="drop")
    inside = (theta > THETA_RANGE[0]) & (theta < THETA_RANGE[1])
    return (sum(parts), tuple(parts)), (d_logits, jnp.where(inside, theta * d_theta, 0))
