"""Cross-entropy over a large vocabulary whose logits never exist whole.

The logits are the product of features with a table of vectors, one a class. They are made a chunk at a time, and where
the gradient is wanted the forward pass computes it too, while they are at hand: three products as always, and nothing
of the size of the logits is kept for the backward pass.
"""

import functools

import jax
import jax.numpy as jnp

from scfm_jax.layers.parts import chunk_parts
from scfm_jax.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def cross_entropy(
    features: Array, table: Array, bias: Array, targets: Array, weights: Array, chunk: int
) -> tuple[Array, Array]:
    """Return the weighted sums of the negative log-likelihoods and of the hits (targets no other class outdoes).

    Args:
      features: [B, C, M, D]. table: [V, D], multiplied in the dtype of the features. bias: [V].
      targets: class of each row. [B, C, M]
      weights: of each row; the gradient does not flow into them. [B, C, M]
      chunk: rows of all cells together that are worked on at a time, 0 for all at once.
    """
    return _sums(features, table, bias, targets, weights, chunk, gradient=False)[0]


def _forward(features, table, bias, targets, weights, chunk):
    return _sums(features, table, bias, targets, weights, chunk, gradient=True)


def _backward(chunk, gradients, cotangents):
    features, table, bias = gradients
    scale = cotangents[0]
    return (scale * features).astype(features.dtype), scale * table, scale * bias, None, None


cross_entropy.defvjp(_forward, _backward)


def _sums(features, table, bias, targets, weights, chunk, gradient):
    """Return ((sum of losses, sum of hits), their gradients by features, table and bias, or None)."""
    n_parts = chunk_parts(targets.shape, chunk)

    def split(x: Array) -> Array:  # [B, C, M, ...] -> [parts, B, C, M / parts, ...]: cells stay on their devices
        return jnp.moveaxis(x.reshape(*x.shape[:2], n_parts, -1, *x.shape[3:]), 2, 0)

    part = functools.partial(_part, table.astype(features.dtype), bias, gradient)
    if n_parts == 1:
        (nll, hits, *by_table), by_features = part(features, targets, weights)
    else:
        zeros = (jnp.zeros(()), jnp.zeros(())) + ((jnp.zeros_like(table), jnp.zeros_like(bias)) if gradient else ())

        def add(sums, rows):
            more, by_features = part(*rows)
            return jax.tree.map(jnp.add, sums, more), by_features

        rows = (split(features), split(targets), split(weights))
        (nll, hits, *by_table), by_features = jax.lax.scan(add, zeros, rows)
        if gradient:
            by_features = jnp.moveaxis(by_features, 0, 2).reshape(features.shape)
    return (nll, hits), (by_features, *by_table) if gradient else None


def _part(table, bias, gradient, features, targets, weights):
    """Return ((loss, hits, gradients by table and bias), gradient by features) of some rows."""
    logits = jnp.einsum("bcmd,vd->bcmv", features, table, preferred_element_type=jnp.float32) + bias
    top = logits.max(-1)
    total = jnp.log(jnp.exp(logits - top[..., None]).sum(-1)) + top
    wanted = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    sums = (weights * (total - wanted)).sum(), (weights * (wanted >= top)).sum()
    if not gradient:
        return sums, None
    truth = jnp.arange(table.shape[0]) == targets[..., None]
    error = weights[..., None] * (jnp.exp(logits - total[..., None]) - truth)
    by_bias, error = error.sum((0, 1, 2)), error.astype(features.dtype)
    by_table = jnp.einsum("bcmv,bcmd->vd", error, features, preferred_element_type=jnp.float32)
    return (*sums, by_table, by_bias), jnp.einsum("bcmv,vd->bcmd", error, table)
