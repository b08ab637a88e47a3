"""Exact softmax attention in parts that stay in a processor's cache, with dropout on its weights.

Heads are taken a few at a time, and their queries in parts where that is not little enough. Weights never exist whole:
the backward pass makes a part's again from the saved logarithm of their sum, and its random bits from their places.
"""

import functools

import jax
import jax.numpy as jnp

from scfm_jax.layers.dropout import kept, words
from scfm_jax.layers.parts import equal_parts, join, scan, split
from scfm_jax.layers.platform import platform
from scfm_jax.types import Array

CHUNKS = {"cpu": 2**19}
CHUNK = 2**28  # fills an accelerator


def attend(
    q: Array, k: Array, v: Array, real: Array, rate: float = 0.0, key: Array | None = None, chunk: int = 0
) -> Array:
    """Return softmax(q k / sqrt(K)) v over the real keys. -> [N, T, H, K]

    Args:
      q: [N, T, H, K]. k, v: [N, S, H, K].
      real: True for keys that are not padding, at least one in each cell. [N, S]
      rate, key: of the dropout.
      chunk: weights that exist at a time, of all cells together; 0 for what suits the backend.
    """
    n_cells, n_queries, n_heads, size = q.shape
    chunk = chunk or CHUNKS.get(platform(), CHUNK)
    rows = n_cells * k.shape[1]
    groups = equal_parts(n_heads, max(1, chunk // (rows * n_queries)))
    parts = min(n_queries, -(-n_heads // groups * rows * n_queries // chunk))

    def heads_first(x: Array) -> Array:  # [N, T, H, K] -> [groups, H / groups, N, T, K]
        return x.transpose(2, 0, 1, 3).reshape(groups, -1, n_cells, x.shape[1], size)

    draws = words(key) if rate else jnp.zeros(2, jnp.uint32)
    y = _attend(heads_first(q * size**-0.5), heads_first(k), heads_first(v), real, draws, rate, parts)
    return y.reshape(n_heads, n_cells, n_queries, size).transpose(1, 2, 0, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, real, draws, rate, parts):
    return _forward(q, k, v, real, draws, rate, parts)[0]


def _forward(q, k, v, real, draws, rate, parts):
    def heads(_, inputs):
        number, q, k, v = inputs

        def part(_, inputs):
            logits = _logits(inputs[1], k, real)
            top = logits.max(-1, keepdims=True)
            weights = jnp.exp(logits - top)
            total = weights.sum(-1, keepdims=True)
            weights = weights * _scale(draws, weights.shape, rate, (number, inputs[0]))
            y = jnp.einsum("hnts,hnsk->hntk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return None, ((y / total).astype(v.dtype), top + jnp.log(total))

        out = scan(part, None, (_starts(q, parts), split(q, parts)))[1]
        return None, tuple(join(x, q.shape[2]) for x in out)

    out, log_sum = scan(heads, None, (_numbers(q), q, k, v))[1]
    return out, (q, k, v, real, draws, out, log_sum)


def _backward(rate, parts, saved, grad):
    q, k, v, real, draws, out, log_sum = saved

    def heads(_, inputs):
        number, q, k, v, out, log_sum, grad = inputs
        level = (grad.astype(jnp.float32) * out).sum(-1, keepdims=True)

        def part(sums, inputs):
            start, q, log_sum, grad, level = inputs
            weights = jnp.exp(_logits(q, k, real) - log_sum)
            scale = _scale(draws, weights.shape, rate, (number, start))
            pull = jnp.einsum("hntk,hnsk->hnts", grad, v, preferred_element_type=jnp.float32)
            pull = (weights * (pull * scale - level)).astype(q.dtype)
            weights = (weights * scale).astype(q.dtype)
            by_keys, by_values = (
                jnp.einsum("hnkt,hnts->hnks", x.swapaxes(2, 3), y, preferred_element_type=jnp.float32)
                for x, y in ((q, pull), (grad, weights))
            )
            return (sums[0] + by_keys, sums[1] + by_values), jnp.einsum("hnts,hnsk->hntk", pull, k)

        # [K, S] and not [S, K]: three times faster on a CPU, which then has no [T, S] to turn
        zeros = (jnp.zeros((*k.shape[:2], k.shape[3], k.shape[2])),) * 2
        parted = tuple(split(x, parts) for x in (q, log_sum, grad, level))
        sums, by_queries = scan(part, zeros, (_starts(q, parts), *parted))
        return None, (join(by_queries, q.shape[2]), *(x.swapaxes(2, 3).astype(k.dtype) for x in sums))

    by = scan(heads, None, (_numbers(q), q, k, v, out, log_sum, grad))[1]
    return (*by, None, None)


_attend.defvjp(_forward, _backward)


def _logits(q: Array, k: Array, real: Array) -> Array:
    logits = jnp.einsum("hntk,hnsk->hnts", q, k, preferred_element_type=jnp.float32)
    return jnp.where(real[:, None], logits, -jnp.inf)


def _scale(draws, shape, rate, first):
    return jnp.where(kept(draws, shape, rate, first), 1 / (1 - rate), 0) if rate else 1.0


def _numbers(q: Array) -> Array:
    """Return, for each group of heads, how many arrays [T, S] come before it."""
    return jnp.arange(q.shape[0]) * (q.shape[1] * q.shape[2])


def _starts(q: Array, parts: int) -> Array:
    """Return the first query of each part."""
    return jnp.arange(parts) * -(-q.shape[2] // parts)
