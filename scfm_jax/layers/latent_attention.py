"""Attention of a few queries to many keys, whose weights never exist whole, and whose keys cells may share.

The queries are taken a chunk at a time, each with all of its keys, so a softmax is exact and needs no rescaling. The
backward pass makes a chunk's weights again from the saved logarithm of their sum, its gradient closed by hand. Keys
that are the same in all cells, each cell seeing a part of them, are looked at once for all: `Background`.
`attend_in_order` is the plain attention to compare with.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scfm_jax.types import Array

CHUNKS = {"cpu": 2**20}  # stays in a processor's cache
WIDER = 4  # matrix products of heads wider than 1 want more rows
CHUNK = 2**26  # fills an accelerator


class Background(NamedTuple):
    """Keys and values that are the same in all cells, each cell seeing a part of them.

    Attributes:
      keys: [H, K, V]. values: [H, D, V].
      seen: 1.0 where the cell sees the key, else 0.0. [N, V]
      bias: added to all of these logits.
    """

    keys: Array
    values: Array
    seen: Array
    bias: float


def attend(
    queries: Array, keys: Array, values: Array, bias: Array, background: Background | None = None, chunk: int = 0
) -> Array:
    """Return softmax(queries keys + bias) values, 0 for a cell that sees no key. -> [N, H, Q, D] float32

    Args:
      queries: already scaled; leading axis 1 where all cells have the same. [N or 1, H, Q, K]
      keys: [N, H, K, P]. values: [N, H, D, P].
      bias: added to the logits, -inf hides a key; no gradient flows into it. [N, P]
      background: further keys.
      chunk: weights that exist at a time, of all cells together; 0 for what suits the backend.
    """
    shared = None if background is None else background[:3]
    lift = 0.0 if background is None else float(background.bias)
    n = parts(queries.shape[2], keys, chunk)
    heads = keys.shape[1]
    if n < heads or keys.shape[2] == 1:
        return _attend(queries, keys, values, bias, shared, lift, n)
    # fewer heads at a time, and more queries of each: matrix products want rows
    per_head = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], (queries, keys, values))
    if shared is not None:
        per_head = (*per_head, shared[0][:, None], shared[1][:, None])

    def head(_, x):
        own = (*x[3:], shared[2]) if shared is not None else None
        return None, _attend(*x[:3], bias, own, lift, -(-n // heads))

    return jnp.moveaxis(scan(head, None, per_head)[1][:, :, 0], 0, 1)


def parts(n_queries: int, keys: Array, chunk: int) -> int:
    """Return the number of chunks of queries that keep the weights within `chunk` (see `attend`)."""
    n_cells, heads, width, n_keys = keys.shape
    chunk = chunk or CHUNKS.get(jax.default_backend(), CHUNK) * (WIDER if width > 1 else 1)
    return min(n_queries, -(-n_cells * heads * n_queries * n_keys // chunk))


def attend_in_order(queries: Array, keys: Array, values: Array, bias: Array) -> Array:
    """Return what `attend` does, from weights that exist whole, values added key after key and rounded every time.

    So sums PyTorch's batched product on a CPU where heads have width 1, and over P keys it is off by about sqrt(P)
    roundings: `attend` is closer to the exact sum. Memory: N H Q P (D + 1) numbers. Arguments as there.
    """
    logits = logits_of(queries, keys) + bias[:, None, None]
    weights = jnp.exp(logits - jax.lax.stop_gradient(_peak(logits)))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    # products are made before the loop: inside, they would be fused with the addition and not rounded
    terms = jnp.einsum("nhqp,nhdp->pnhqd", weights, values.astype(jnp.float32))
    return jax.lax.scan(lambda total, term: (total + term, None), jnp.zeros(terms.shape[1:]), terms)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(queries, keys, values, bias, shared, lift, n):
    return _forward(queries, keys, values, bias, shared, lift, n)[0]


def _forward(queries, keys, values, bias, shared, lift, n):
    def part(_, q):
        logits = logits_of(q, keys) + bias[:, None, None]
        top = _peak(logits)
        sums, total = gather(jnp.exp(logits - top), values)
        if shared is not None:
            high, weights = _shared_weights(q, shared[0], lift)
            more = jnp.einsum("nv,hqdv->nhqd", shared[2], weights[:, :, None] * _with_ones(shared[1])[:, None])
            both = jnp.maximum(top, high)
            fade, rise = jnp.exp(top - both), jnp.exp(high - both)
            sums, total, top = sums * fade + more[..., :-1] * rise, total * fade + more[..., -1:] * rise, both
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
        return None, (sums / total, top + jnp.log(total))

    _, (out, log_sum) = scan(part, None, split(queries, n))
    out, log_sum = (join(x, queries.shape[2]) for x in (out, log_sum))
    return out, (queries, keys, values, bias, shared, out, log_sum)


def _backward(lift, n, saved, grad):
    queries, keys, values, bias, shared, out, log_sum = saved
    common = queries.shape[0] == 1 < keys.shape[0]
    level = (grad * out).sum(-1, keepdims=True)

    def part(sums, inputs):
        q, log_sum, grad, level = inputs
        weights = jnp.exp(logits_of(q, keys) + bias[:, None, None] - log_sum)
        pull = weights * (jnp.einsum("nhqd,nhdp->nhqp", grad, values) - level)
        q_all = jnp.broadcast_to(q, (keys.shape[0], *q.shape[1:]))
        d_keys, d_values = (
            jnp.einsum("nhkq,nhqp->nhkp", x.swapaxes(2, 3), y) for x, y in ((q_all, pull), (grad, weights))
        )
        d_q = jnp.einsum("nhqp,nhkp->nhqk", pull, keys)
        d_q = d_q.sum(0, keepdims=True) if common else d_q
        more = (d_keys, d_values)
        if shared is not None:
            d_shared, d_q0 = _shared_backward(q, shared, lift, log_sum, grad, level)
            more, d_q = (*more, *d_shared), d_q + d_q0
        return jax.tree.map(jnp.add, sums, more), d_q

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), (keys, values, *(shared[:2] if shared is not None else ())))
    sums, d_queries = scan(part, zeros, tuple(split(x, n) for x in (queries, log_sum, grad, level)))
    d_shared = (*sums[2:], jnp.zeros_like(shared[2])) if shared is not None else None
    found = (join(d_queries, queries.shape[2]), sums[0], sums[1], jnp.zeros_like(bias), d_shared)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), found, (queries, keys, values, bias, shared))


_attend.defvjp(_forward, _backward)


def _shared_backward(q, shared, lift, log_sum, grad, level):
    """Return (gradients of the shared keys and values, that of the queries, common to all cells)."""
    keys, values, seen = shared
    high, weights = _shared_weights(q, keys, lift)
    rate = jnp.exp(jnp.minimum(high - log_sum, 80.0))  # cells that do not see the peak may lie far below it
    by_cell = (rate * jnp.concatenate([grad, level], -1)).transpose(1, 3, 2, 0)
    by_gene = jnp.einsum("hdqn,nv->hdqv", by_cell, seen)
    d_values = by_halves(by_gene[:, :-1] * weights[:, None], 2)
    pull = weights * (by_halves(by_gene[:, :-1] * values[:, :, None], 1) - by_gene[:, -1])
    return (jnp.einsum("hqv,hqk->hkv", pull, q[0]), d_values), jnp.einsum("hqv,hkv->hqk", pull, keys)[None]


def by_halves(x: Array, axis: int) -> Array:
    """Return the sum over an axis, halves added to each other; XLA's own on a CPU takes thirty times longer here."""
    while x.shape[axis] > 1:
        half = x.shape[axis] // 2
        first, second, odd = jnp.split(x, (half, 2 * half), axis)
        x = jnp.concatenate([first + second, odd], axis) if odd.shape[axis] else first + second
    return x.squeeze(axis)


def _shared_weights(q, keys, lift):
    """Return (the largest logit of each query [H, Q, 1], exponentials below it [H, Q, V])."""
    logits = logits_of(q, keys[None])[0] + lift
    high = _peak(logits)
    return high, jnp.exp(logits - high)


def logits_of(q: Array, keys: Array) -> Array:
    """[N or 1, H, Q, K], [N, H, K, P] -> [N, H, Q, P]; heads of width 1 need no matrix product."""
    if q.shape[-1] == 1:
        return q.astype(jnp.float32) * keys
    q = jnp.broadcast_to(q, (keys.shape[0], *q.shape[1:]))  # one product of all cells would come out turned
    return jnp.einsum("nhqk,nhkp->nhqp", q, keys, preferred_element_type=jnp.float32)


def gather(weights: Array, values: Array) -> tuple[Array, Array]:
    """Return (sums of the values times the weights [N, H, Q, D], sums of the weights [N, H, Q, 1])."""
    if values.shape[2] > 1:
        found = jnp.einsum("nhqp,nhdp->nhqd", weights, values, preferred_element_type=jnp.float32)
        return found, weights.sum(-1, keepdims=True)
    both = jnp.einsum("nhqp,nhdp->nhqd", weights, _with_ones(values), preferred_element_type=jnp.float32)
    return both[..., :-1], both[..., -1:]


def _peak(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _with_ones(values: Array) -> Array:
    return jnp.concatenate([values, jnp.ones_like(values[..., :1, :])], -2)


def split(x: Array, n: int) -> Array:
    """Cut the queries into n equal chunks, the last padded. [N, H, Q, ...] -> [n, N, H, Q / n, ...]"""
    size = -(-x.shape[2] // n)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, n * size - x.shape[2]), (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], n, size, x.shape[3]), 2, 0)


def join(x: Array, n_queries: int) -> Array:
    """Undo `_split`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n_queries]


def scan(part, start, inputs):
    """Run `jax.lax.scan`, without a loop where there is one chunk."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(part, start, inputs)
    last, out = part(start, jax.tree.map(lambda x: x[0], inputs))
    return last, jax.tree.map(lambda x: x[None], out)
