"""Attention over a masked set as pure functions: softmax, Flowformer, Performer, Cosformer.

All take queries, keys and values [B, T, H, K] and a mask of keys [B, T] (False: padding, which no real element feels),
and return [B, T, H, K] in float32. Flowformer (arXiv 2202.06258), Performer (2009.14794) and Cosformer (2202.08791) are
linear in T.

The Performer's feature maps are four times as wide as what they are made of, so they never exist whole: a loop over
chunks of tokens makes, uses and forgets them, forwards with a running maximum of the keys, backwards once more.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scfm_jax.layers.platform import platform
from scfm_jax.types import Array

KERNELS = {"softmax": 1e-4, "relu": 1e-3}  # of the Performer, and what is added to their features
PEAKS = ("global", "set", "per_head")
CHUNK = {"cpu": 2**20}
"""Numbers of a feature map that exist at a time: what a processor's cache holds."""
DEVICE_CHUNK = 2**27
NEVER = -1e30  # a maximum of nothing


def softmax_attention(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    """Return softmax attention's weights [B, H, T, T] and the values they weigh; the caller may drop weights out."""
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1), v


def flow_attention(q: Array, k: Array, v: Array, mask: Array, asking: Array | None = None, eps: float = 1e-6) -> Array:
    """Flow attention: competition among sources by softmax, allocation among sinks by sigmoid, flows conserved.

    The released CellPLM divides by the incoming flow only, which is what is done here. `asking`: the real
    queries, where they differ from the real keys.

    Sums over cells and over K are products of matrices, heads first: sums that XLA fuses into what is made of them are
    worked out anew for every cell, so that time grew with the square of the cells.
    """
    real = mask[:, None].astype(jnp.float32)  # [B, 1, T]
    sinks = real if asking is None else asking[:, None].astype(jnp.float32)
    q, k, v = (x.astype(jnp.float32).swapaxes(1, 2) for x in (q, k, v))  # [B, H, T, K]
    q, k = jax.nn.sigmoid(q) * sinks[..., None], jax.nn.sigmoid(k) * real[..., None]

    def flow(x: Array, others: Array) -> Array:  # [B, H, T, K], [B, H, K] -> [B, H, T]
        return jnp.einsum("bhck,bhk->bhc", x + eps, others + eps)

    def total(x: Array, weight: Array) -> Array:  # [B, H, T, K], [B, H, T] -> [B, H, K]
        return jnp.einsum("bhck,bhc->bhk", x, weight)

    incoming, outgoing = 1 / flow(q, k.sum(2)), 1 / flow(k, q.sum(2))
    sink, source = flow(q, total(k, outgoing)), flow(k, total(q, incoming))
    source = jnp.where(real > 0, jnp.clip(source, -1, 1), -jnp.inf)
    competition = jax.nn.softmax(source, axis=2, where=real > 0) * real.sum(2, keepdims=True)
    values = jnp.einsum("bhck,bhcd->bhkd", k, v * competition[..., None])
    y = jnp.einsum("bhck,bhkd->bhcd", q * incoming[..., None], values)
    return (jax.nn.sigmoid(sink)[..., None] * y).swapaxes(1, 2)


def exact_attention(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Softmax attention without its weights: a fused kernel where the device has one for the inputs' precision.

    That kernel takes no masks but numbers of keys, so padding is behind the real ones, and what has none sees one.
    """
    if platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        lengths = jnp.maximum(mask.sum(1, dtype=jnp.int32), 1)
        y = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")
    else:
        y = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None], implementation="xla")
    return y.astype(jnp.float32)


class Favor(NamedTuple):
    """The options of `favor_attention`."""

    kernel: str
    peak: str
    detach: bool
    eps: float
    chunk: int


def favor_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array,
    projection: Array,
    *,
    kernel: str = "softmax",
    key_max: str = "set",
    detach_max: bool = False,
    chunk: int = 0,
) -> Array:
    """FAVOR+ attention through the positive random features of `projection` [M, K]; there may be fewer queries.

    softmax: exp(u - |z|^2 / 2 - max u) + 1e-4 with z = x K^(-1/4) and u = z projection^T. relu: max(u, 0) + 1e-3.

    Args:
      key_max: what the keys' maximum is taken over: "global", the real keys of the whole batch (as the first releases
        do, so results depend a little on what else is in it); "set", those of an element of the batch, which is the
        same at batch 1; "per_head", those of each head (newer releases).
      detach_max: let no gradient pass through the maxima of queries and keys (newer releases).
      chunk: tokens whose features exist at a time; 0 chooses by device.
    """
    if kernel not in KERNELS or key_max not in PEAKS:
        raise ValueError(f"kernel {kernel!r}, key_max {key_max!r}: there are {', '.join(KERNELS)}; {', '.join(PEAKS)}")
    width = q.shape[0] * q.shape[2] * projection.shape[0]
    chunk = chunk or max(8, CHUNK.get(platform(), DEVICE_CHUNK) // width)
    how = Favor(kernel, key_max, detach_max, KERNELS[kernel], chunk)
    # a remainder would be a program of its own, here and in the backward pass: the last chunk is filled up instead
    asked = _filled(how, q)
    y = _favor(how, asked, _filled(how, k), _filled(how, v), _filled(how, mask), projection)
    return y[:, : q.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _favor(how: Favor, q: Array, k: Array, v: Array, mask: Array, projection: Array) -> Array:
    return _favor_forward(how, q, k, v, mask, projection)[0]


def _favor_forward(how: Favor, q: Array, k: Array, v: Array, mask: Array, projection: Array) -> tuple[Array, tuple]:
    n_sets, _, n_heads, size = k.shape
    shape = (n_sets, n_heads, projection.shape[0])

    def add(start: Array, length: int, carry: tuple) -> tuple:
        context, total, plain, peak, rows = carry
        u, _, shift = _scores(how, _part(k, start, length), projection)
        real = _mask(mask, start, length)
        row = jnp.where(real, u.max(-1), NEVER)  # [B, H, c]
        old, peak = peak, jnp.maximum(peak, _peak(how, row))
        features = _kernel(how, u, jnp.where(real, shift, jnp.inf), peak[..., None])
        features = jnp.where(real[..., None], features, 0) if how.kernel == "relu" else features
        values = jnp.where(real[..., None], _part(v, start, length), 0)
        fade = jnp.exp(old - peak)[..., None] if how.kernel == "softmax" else 1.0
        context = context * jnp.expand_dims(fade, -1) + jnp.einsum("bhcm,bhcd->bhmd", features, values)
        rows = jax.lax.dynamic_update_slice_in_dim(rows, row, start, 2)
        return context, total * fade + features.sum(2), plain + values.sum(2), peak, rows

    zeros = jnp.zeros(shape), jnp.zeros((n_sets, n_heads, size))
    start = (jnp.zeros((*shape, size)), *zeros, jnp.full(shape[:2], NEVER), jnp.zeros((*shape[:2], k.shape[1])))
    context, total, plain, peak, rows = _each(how, k.shape[1], add, start)
    context = context + how.eps * plain[:, :, None]
    real = jnp.maximum(mask.sum(1, dtype=jnp.float32), 1)  # a set of padding alone gets zeros, not 0 / 0
    total = total + how.eps * real[:, None, None]

    def ask(start: Array, length: int, out: Array) -> Array:
        u, _, shift = _scores(how, _part(q, start, length), projection)
        features = _kernel(how, u, shift, u.max(-1)) + how.eps
        gathered = jnp.einsum("bhcm,bhmd->bhcd", features, context)
        return _write(out, gathered / jnp.einsum("bhcm,bhm->bhc", features, total)[..., None], start)

    out = _each(how, q.shape[1], ask, jnp.zeros(q.shape, jnp.float32))
    return out, (q, k, v, mask, projection, out, context, total, peak, rows)


def _favor_backward(how: Favor, saved: tuple, dout: Array) -> tuple:
    q, k, v, mask, projection, out, context, total, peak, rows = saved
    scale = q.shape[-1] ** -0.25
    smooth = how.kernel == "softmax"

    def pull(d_features: Array, features: Array, u: Array, z: Array, top: Array | None) -> tuple[Array, Array]:
        """Return (gradient of the vector behind the features, sum of what passes through their exponent)."""
        if not smooth:
            return scale * jnp.einsum("bhcm,mk->bhck", jnp.where(u > 0, d_features, 0), projection), 0.0
        du = d_features * features
        through = du.sum(-1)
        if top is not None:
            du = jnp.where(u == top[..., None], du - through[..., None], du)
        return scale * (jnp.einsum("bhcm,mk->bhck", du, projection) - z * through[..., None]), through

    def ask(start: Array, length: int, carry: tuple) -> tuple:
        dq, d_context, d_total = carry
        u, z, shift = _scores(how, _part(q, start, length), projection)
        top = u.max(-1)
        features = _kernel(how, u, shift, top)
        weight = jnp.einsum("bhcm,bhm->bhc", features + how.eps, total)[..., None]
        into = _part(dout, start, length)
        back = -(into * _part(out, start, length)).sum(-1, keepdims=True) / weight
        into = into / weight
        d_features = jnp.einsum("bhcd,bhmd->bhcm", into, context) + back * total[:, :, None]
        d_z, _ = pull(d_features, features, u, z, None if how.detach else top)
        d_context = d_context + jnp.einsum("bhcm,bhcd->bhmd", features + how.eps, into)
        d_total = d_total + ((features + how.eps) * back).sum(2)
        return _write(dq, d_z, start), d_context, d_total

    zeros = jnp.zeros(q.shape, q.dtype), jnp.zeros_like(context), jnp.zeros_like(total)
    dq, d_context, d_total = _each(how, q.shape[1], ask, zeros)
    d_plain = how.eps * d_context.sum(2)  # [B, H, K]

    def add(start: Array, length: int, carry: tuple) -> tuple:
        dk, dv, d_peak = carry
        u, z, shift = _scores(how, _part(k, start, length), projection)
        real = _mask(mask, start, length)
        features = _kernel(how, u, jnp.where(real, shift, jnp.inf), peak[..., None])
        features = jnp.where(real[..., None], features, 0) if not smooth else features
        values = _part(v, start, length)
        d_features = jnp.einsum("bhcd,bhmd->bhcm", values, d_context) + d_total[:, :, None]
        d_features = d_features if smooth else jnp.where(real[..., None], d_features, 0)
        d_z, through = pull(d_features, features, u, z, None)
        d_values = jnp.einsum("bhcm,bhmd->bhcd", features, d_context) + d_plain[:, :, None]
        d_values = jnp.where(real[..., None], d_values, 0)
        d_peak = d_peak - through.sum(2) if smooth else d_peak
        return _write(dk, d_z, start), _write(dv, d_values, start), d_peak

    zeros = jnp.zeros(k.shape, k.dtype), jnp.zeros(v.shape, v.dtype), jnp.zeros_like(peak)
    dk, dv, d_peak = _each(how, k.shape[1], add, zeros)
    if smooth and not how.detach:
        dk = _through_peak(how, dk, d_peak, k, rows, projection)
    return dq, dk, dv, None, None


_favor.defvjp(_favor_forward, _favor_backward)


def _through_peak(how: Favor, dk: Array, d_peak: Array, k: Array, rows: Array, projection: Array) -> Array:
    """Add to the keys' gradient what comes through their maximum, at the key that has it."""
    n_sets, n_tokens, n_heads, size = k.shape
    axes = {"global": (0, 1), "set": (1,), "per_head": ()}[how.peak]
    d_peak = d_peak.sum(axes, keepdims=True)  # one for each maximum: [1, 1], [B, 1] or [B, H]
    groups = rows.reshape(*d_peak.shape, -1)
    where = groups.argmax(-1)
    inside = {"global": (n_sets, n_heads, n_tokens), "set": (n_heads, n_tokens), "per_head": (n_tokens,)}[how.peak]
    index = jnp.unravel_index(where, inside)
    group = jnp.indices(d_peak.shape)
    place = (*group[: 3 - len(index)], *index)  # set, head, token
    place = (place[0], place[2], place[1])
    scale = size**-0.25
    top = (k[place].astype(jnp.float32) @ projection.T).argmax(-1)
    return dk.at[place].add((scale * d_peak[..., None] * projection[top]).astype(dk.dtype))


def _scores(how: Favor, x: Array, projection: Array) -> tuple[Array, Array, Array]:
    """Return (u [B, H, c, M], z [B, H, c, K], |z|^2 / 2 [B, H, c])."""
    z = x * x.shape[-1] ** -0.25
    return jnp.einsum("bhck,mk->bhcm", z, projection), z, (z * z).sum(-1) / 2


def _kernel(how: Favor, u: Array, shift: Array, peak: Array) -> Array:
    """Return the features before the constant is added. [B, H, c, M]"""
    return jnp.exp(u - (shift + peak)[..., None]) if how.kernel == "softmax" else jax.nn.relu(u)


def _peak(how: Favor, row: Array) -> Array:
    """Return the maximum of a chunk's keys over what `key_max` says. [B, H, c] -> [B, H]"""
    axes = {"global": (0, 1, 2), "set": (1, 2), "per_head": (2,)}[how.peak]
    return jnp.broadcast_to(row.max(axes, keepdims=True)[..., 0], row.shape[:2])


def _part(x: Array, start: Array, length: int) -> Array:
    """Return a chunk of tokens, heads first, in float32. [B, T, H, K] -> [B, H, c, K]"""
    return jax.lax.dynamic_slice_in_dim(x, start, length, 1).swapaxes(1, 2).astype(jnp.float32)


def _mask(mask: Array, start: Array, length: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(mask, start, length, 1)[:, None]


def _write(out: Array, x: Array, start: Array) -> Array:
    """Put a chunk [B, H, c, K] where it belongs in [B, T, H, K]."""
    return jax.lax.dynamic_update_slice_in_dim(out, x.swapaxes(1, 2).astype(out.dtype), start, 1)


def _each(how: Favor, n_tokens: int, body: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """Return the carry after `body(start, length, carry)` for chunk after chunk of the tokens, all equally long."""
    n_chunks = -(-n_tokens // how.chunk)
    if n_chunks == 1:
        return body(0, n_tokens, carry)
    length = n_tokens // n_chunks
    return jax.lax.fori_loop(0, n_chunks, lambda i, carry: body(i * length, length, carry), carry)


def _filled(how: Favor, x: Array) -> Array:
    """Return tokens [B, T, ...] and as many zeros as make all chunks equally long."""
    more = -x.shape[1] % max(1, -(-x.shape[1] // how.chunk))
    return jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2))) if more else x


def favor_features(x: Array, projection: Array, *, keys: bool, kernel: str = "softmax", key_max: str = "set") -> Array:
    """Return the whole feature map of `favor_attention`, for tests and figures. [B, T, H, K] -> [B, T, H, M]"""
    how = Favor(kernel, key_max, False, KERNELS[kernel], x.shape[1])
    u, _, shift = _scores(how, _part(x, 0, x.shape[1]), projection)
    peak = _peak(how, u.max(-1))[..., None] if keys else u.max(-1)
    norm = projection.shape[0] ** -0.5 if kernel == "softmax" else 1.0
    return (norm * (_kernel(how, u, shift, peak) + how.eps)).swapaxes(1, 2)


def draw_projection(key: Array, features: int, size: int) -> Array:
    """Draw the random features of FAVOR+ [features, size]: orthogonal blocks, rows as long as normal vectors are.

    Block by block, and not to be vmapped: two batched QR at once can wait for each other for ever (jax 0.10.2, CPU).
    """
    block_key, norm_key = jax.random.split(key)
    blocks = jax.random.normal(block_key, (math.ceil(features / size), size, size))
    rows = jax.lax.map(lambda block: jnp.linalg.qr(block)[0].T, blocks).reshape(-1, size)[:features]
    lengths = jnp.linalg.norm(jax.random.normal(norm_key, (features, size)), axis=-1)
    return rows * lengths[:, None]


def cosine_attention(q: Array, k: Array, v: Array, mask: Array, eps: float = 1e-6) -> Array:
    """Cosformer attention with GELU features. Order-dependent; features may be negative, so denominators may clamp."""
    q, k, v = (a.astype(jnp.float32) for a in (q, k, v))
    place = jnp.cumsum(mask, 1) / jnp.maximum(mask.sum(1, keepdims=True), 1) * (math.pi / 2)
    wave = jnp.stack([jnp.sin(place), jnp.cos(place)], -1)[:, :, None, :, None]  # [B, C, 1, 2, 1]
    q, k = ((jax.nn.gelu(a, approximate=False)[..., None, :] * wave).reshape(*a.shape[:-1], -1) for a in (q, k))
    k = k * mask[:, :, None, None]
    weight = jnp.einsum("bchk,bhk->bch", q, k.sum(1))
    return jnp.einsum("bchk,bhkd->bchd", q, jnp.einsum("bchk,bchd->bhkd", k, v)) / jnp.maximum(weight, eps)[..., None]
