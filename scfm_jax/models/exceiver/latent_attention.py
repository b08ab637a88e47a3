"""Attention of a few queries to many keys, whose weights never exist whole, and whose keys cells may share.

A few cells are taken at a time, and their queries in parts where that is not little enough; each query meets all of its
keys at once, so a softmax is exact and needs no rescaling. The backward pass makes the weights again from the saved
logarithm of their sum, its gradient closed by hand. Keys that are the same in all cells, each cell seeing a part of
them, are looked at once for all: `Background`. `attend_in_order` is the plain attention to compare with.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from scfm_jax.layers.parts import by_cells, join, scan, split
from scfm_jax.layers.platform import platform
from scfm_jax.types import Array

CHUNKS = {"cpu": 2**20}  # stays in a processor's cache
CHUNK = 2**26  # fills an accelerator
NEVER = -1e30  # the logarithm of a sum of nothing
SAVED = jax.checkpoint_policies.save_only_these_names("attended")
"""What the backward pass of a block of cells asks for."""


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


def attend(queries: Array, keys: Array, values: Array, bias: Array, chunk: int = 0) -> tuple[Array, Array]:
    """Return (softmax(queries keys + bias) values [N, H, Q, D], the logarithms of the sums [N, H, Q, 1]) in float32.

    A cell that sees no key gets 0 and `NEVER`.

    Args:
      queries: already scaled; leading axis 1 where all cells have the same. [N or 1, H, Q, K]
      keys: [N, H, K, P]. values: [N, H, D, P].
      bias: added to the logits, -inf hides a key; no gradient flows into it. [N, P]
      chunk: weights that exist at a time on a device; 0 for what suits the backend.
    """
    queries = jnp.broadcast_to(queries, (len(keys), *queries.shape[1:]))
    n_queries, size = queries.shape[2], queries.shape[1] * queries.shape[2] * keys.shape[3]
    part = functools.partial(_attend, n=_parts(n_queries, size, chunk))
    return by_cells(part, room(chunk) // size, SAVED, queries, keys, values, bias)


def look(queries: Array, background: Background, chunk: int = 0) -> tuple[Array, Array]:
    """Return what `attend` does, of keys that are the same in all cells and queries [H, Q, K] that all have."""
    keys, values, seen, lift = background
    n = _parts(queries.shape[1], queries.shape[1] * (values.size + keys.shape[0] * keys.shape[2]), chunk)
    return _look(queries, keys, values, seen, float(lift), n)


def merged(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """Combine two results of `attend` or `look` into that over the keys of both."""
    log_sum = jnp.logaddexp(first[1], second[1])
    return sum(out * jnp.exp(part - log_sum) for out, part in (first, second)), log_sum


def room(chunk: int) -> int:
    """Return how many numbers a device is to make at a time: `chunk`, or 0 for what suits the backend."""
    return chunk or CHUNKS.get(platform(), CHUNK)


def _parts(n_queries: int, size: int, chunk: int) -> int:
    """Return into how many parts queries are cut, for what is made of them, `size` numbers, to find room."""
    return min(n_queries, -(-size // room(chunk)))


def attend_in_order(queries: Array, keys: Array, values: Array, bias: Array) -> Array:
    """Return what `attend` does, from weights that exist whole, values added key after key and rounded every time.

    So sums PyTorch's batched product on a CPU where heads have width 1, and over P keys it is off by about sqrt(P)
    roundings: `attend` is closer to the exact sum. Memory: N H Q P (D + 1) numbers. Arguments: those of `attend`.
    """
    logits = logits_of(queries, keys) + bias[:, None, None]
    weights = jnp.exp(logits - jax.lax.stop_gradient(_peak(logits)))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total > 0, total, 1)
    # products are made before the loop: inside, they would be fused with the addition and not rounded
    terms = jnp.einsum("nhqp,nhdp->pnhqd", weights, values.astype(jnp.float32))
    return jax.lax.scan(lambda total, term: (total + term, None), jnp.zeros(terms.shape[1:]), terms)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(queries, keys, values, bias, n):
    return _forward(queries, keys, values, bias, n)[0]


def _forward(queries, keys, values, bias, n):
    def part(_, q):
        logits = logits_of(q, keys) + bias[:, None, None]
        top = _peak(logits)
        return None, _normalised(*gather(jnp.exp(logits - top), values), top)

    attended = tuple(join(x, queries.shape[2]) for x in scan(part, None, split(queries, n))[1])
    attended = checkpoint_name(attended, "attended")
    return attended, (queries, keys, values, bias, *attended)


def _backward(n, saved, grads):
    queries, keys, values, bias, out, log_sum = saved
    level = (grads[0] * out).sum(-1, keepdims=True) - grads[1]

    def part(sums, inputs):
        q, log_sum, grad, level = inputs
        weights = jnp.exp(logits_of(q, keys) + bias[:, None, None] - log_sum)
        pull = weights * (jnp.einsum("nhqd,nhdp->nhqp", grad, values) - level)
        more = (jnp.einsum("nhkq,nhqp->nhkp", x.swapaxes(2, 3), y) for x, y in ((q, pull), (grad, weights)))
        sums = tuple(x + y for x, y in zip(sums, more, strict=True))
        return sums, jnp.einsum("nhqp,nhkp->nhqk", pull, keys)

    zeros = tuple(jnp.zeros(x.shape) for x in (keys, values))
    sums, d_queries = scan(part, zeros, tuple(split(x, n) for x in (queries, log_sum, grads[0], level)))
    gradients = (join(d_queries, queries.shape[2]), *sums, jnp.zeros_like(bias))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, (queries, keys, values, bias))


_attend.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _look(queries, keys, values, seen, lift, n):
    """Return what queries [H, Q, K] gather from the background in each cell [N, H, Q, D], and the sums' logarithms."""
    return _look_forward(queries, keys, values, seen, lift, n)[0]


def _look_forward(queries, keys, values, seen, lift, n):
    def part(_, q):
        top, weights = _shared_weights(q, keys, lift)
        both = jnp.einsum("nv,hqdv->nhqd", seen, weights[:, :, None] * _with_ones(values)[:, None])
        return None, _normalised(both[..., :-1], both[..., -1:], top)

    attended = tuple(join(x, queries.shape[1]) for x in scan(part, None, split(queries[None], n))[1])
    return attended, (queries, keys, values, seen, *attended)


def _look_backward(lift, n, saved, grads):
    queries, keys, values, seen, out, log_sum = saved
    level = (grads[0] * out).sum(-1, keepdims=True) - grads[1]

    def part(sums, inputs):
        q, log_sum, grad, level = inputs
        top, weights = _shared_weights(q, keys, lift)
        rate = jnp.exp(jnp.minimum(top - log_sum, 80.0))  # cells that do not see the peak may lie far below it
        by_cell = (rate * jnp.concatenate([grad, level], -1)).transpose(1, 3, 2, 0)
        by_gene = jnp.einsum("hdqn,nv->hdqv", by_cell, seen)
        d_values = by_halves(by_gene[:, :-1] * weights[:, None], 2)
        pull = weights * (by_halves(by_gene[:, :-1] * values[:, :, None], 1) - by_gene[:, -1])
        d_q = jnp.einsum("hqv,hkv->hqk", pull, keys)[None]
        return (sums[0] + jnp.einsum("hqv,hqk->hkv", pull, q[0]), sums[1] + d_values), d_q

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), (keys, values))
    sums, d_q = scan(part, zeros, tuple(split(x, n) for x in (queries[None], log_sum, grads[0], level)))
    gradients = (join(d_q, queries.shape[1])[0], *sums, jnp.zeros_like(seen))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), gradients, (queries, keys, values, seen))


_look.defvjp(_look_forward, _look_backward)


def _normalised(sums: Array, total: Array, top: Array) -> tuple[Array, Array]:
    """Return (sums over their total, logarithm of the total), from what was taken relative to `top`."""
    log_sum = jnp.where(total > 0, top + jnp.log(jnp.maximum(total, jnp.finfo(jnp.float32).tiny)), NEVER)
    return sums / jnp.maximum(total, jnp.finfo(jnp.float32).tiny), log_sum


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
    return jnp.einsum("nhqk,nhkp->nhqp", q, keys, preferred_element_type=jnp.float32)


def gather(weights: Array, values: Array) -> tuple[Array, Array]:
    """Return (sums of the values times the weights [N, H, Q, D], sums of the weights [N, H, Q, 1])."""
    if values.shape[2] > 1:
        attended = jnp.einsum("nhqp,nhdp->nhqd", weights, values, preferred_element_type=jnp.float32)
        return attended, weights.sum(-1, keepdims=True)
    both = jnp.einsum("nhqp,nhdp->nhqd", weights, _with_ones(values), preferred_element_type=jnp.float32)
    return both[..., :-1], both[..., -1:]


def _peak(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _with_ones(values: Array) -> Array:
    return jnp.concatenate([values, jnp.ones_like(values[..., :1, :])], -2)
