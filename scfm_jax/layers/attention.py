"""Attention over a masked set as pure functions: softmax, Flowformer, Performer, Cosformer.

All take queries, keys and values [B, C, H, K] and a mask [B, C] (False: padding, which no real element feels), and
return [B, C, H, K] in float32. Flowformer (arXiv 2202.06258), Performer (2009.14794) and Cosformer (2202.08791) are
linear in C.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from scfm_jax.types import Array


def softmax_attention(q: Array, k: Array, v: Array, mask: Array) -> tuple[Array, Array]:
    """Return softmax attention's weights [B, H, C, C] and the values they weigh; the caller may drop weights out."""
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = jnp.where(mask[:, None, None, :], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1), v


def flow_attention(q: Array, k: Array, v: Array, mask: Array, eps: float = 1e-6) -> Array:
    """Flow attention: competition among sources by softmax, allocation among sinks by sigmoid, flows conserved.

    The released CellPLM divides by the incoming flow only, which is what is done here.
    """
    there = mask[:, :, None, None].astype(jnp.float32)  # [B, C, 1, 1]
    q = jax.nn.sigmoid(q.astype(jnp.float32)) * there
    k = jax.nn.sigmoid(k.astype(jnp.float32)) * there
    incoming = 1 / ((q + eps) * (k.sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    outgoing = 1 / ((k + eps) * (q.sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    sink = ((q + eps) * ((k * outgoing).sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    source = ((k + eps) * ((q * incoming).sum(1, keepdims=True) + eps)).sum(-1, keepdims=True)
    source = jnp.where(there > 0, jnp.clip(source, -1, 1), -jnp.inf)
    competition = jax.nn.softmax(source, axis=1, where=there > 0) * there.sum(1, keepdims=True)
    values = jnp.einsum("bchk,bchd->bhkd", k, v * competition)
    return jax.nn.sigmoid(sink) * jnp.einsum("bchk,bhkd->bchd", q * incoming, values)


def favor_attention(q: Array, k: Array, v: Array, mask: Array, projection: Array, eps: float = 1e-4) -> Array:
    """FAVOR+ softmax-kernel attention through the positive random features of `projection` [M, K]."""
    phi_q = _features(q, projection, lambda a: a.max(-1, keepdims=True), eps)
    real = mask[:, :, None, None]
    phi_k = _features(k, projection, lambda a: jnp.where(real, a, -jnp.inf).max((1, 2, 3), keepdims=True), eps)
    phi_k = jnp.where(real, phi_k, 0.0)
    context = jnp.einsum("bchm,bchd->bhmd", phi_k, v.astype(jnp.float32))
    weight = jnp.einsum("bchm,bhm->bch", phi_q, phi_k.sum(1))
    return jnp.einsum("bchm,bhmd->bchd", phi_q, context) / weight[..., None]


def _features(x: Array, projection: Array, peak: Callable, eps: float) -> Array:
    x = x.astype(jnp.float32) * x.shape[-1] ** -0.25
    raw = jnp.einsum("bchk,mk->bchm", x, projection)
    scale = projection.shape[0] ** -0.5
    return scale * (jnp.exp(raw - (x * x).sum(-1, keepdims=True) / 2 - peak(raw)) + eps)


def draw_projection(key: Array, features: int, size: int) -> Array:
    """Draw the random features of FAVOR+ [features, size]: orthogonal blocks, rows as long as normal vectors are."""
    block_key, norm_key = jax.random.split(key)
    blocks = jax.random.normal(block_key, (math.ceil(features / size), size, size))
    rows = jnp.linalg.qr(blocks)[0].swapaxes(-1, -2).reshape(-1, size)[:features]
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
