"""Counts to bins of equal width between a cell's least and greatest expression, and back, on the device.

Bin 0 is no expression. Edges are those that numpy computes, to the last bit, in float32 or float64; a compiler that
reorders or fuses the arithmetic would move values that lie on an edge to another bin.
"""

import jax
import jax.numpy as jnp

from scfm_jax.layers.platform import platform
from scfm_jax.types import Array


def normalized(counts: Array, target_sum: float, log: bool) -> tuple[Array, Array]:
    """Return (values, scale): counts times scale, so that a cell sums to `target_sum`; 0 leaves them; log1p of that.

    [B, C, P] -> [B, C, P], [B, C]
    """
    scale = jnp.ones(counts.shape[:-1])
    if target_sum:
        scale = target_sum / jnp.maximum(counts.sum(-1), 1e-9)
    values = counts * scale[..., None]
    return jnp.log1p(values) if log else values, scale


def binned(values: Array, edges: Array) -> Array:
    """Return the bin of each value, 0 where it is not positive, int32. [B, C, P], [B, C, n_bins] -> [B, C, P]"""
    place = sum((values >= edges[..., i, None]).astype(jnp.int32) for i in range(edges.shape[-1] - 1))
    return jnp.where(values > 0, place, 0)


def expected_counts(shares: Array, edges: Array, scale: Array, log: Array) -> Array:
    """Return the counts expected under shares of the bins: what `normalized` did is undone on the mean of the middles.

    A constant cell's only bin has the middle that its two finite edges have. [B, C, V, n_bins], [B, C, n_bins], [B, C],
    bool [B, C] -> [B, C, V]
    """
    middle = (edges[..., 1:] + edges[..., :-1]) / 2  # [B, C, n_bins - 1]
    middle = jnp.where(jnp.isfinite(middle), middle, middle[..., :1])
    values = jnp.einsum("bcvn,bcn->bcv", shares[..., 1:], middle)
    return jnp.where(log[..., None], jnp.expm1(values), values) / scale[..., None]


def bin_edges(values: Array, n_bins: int, precision: str = "float64") -> Array:
    """Return float32 edges of `n_bins - 1` equal bins between the least and the greatest of a cell's positive values.

    As numpy computes them: linspace(min, max, n_bins), the last one 0.01 higher; min -+ 0.1 and infinity where all
    values are equal. "float64" edges are rounded up to the next float32, so `value >= edge` is what it is in float64 (a
    TPU has 48 of its 53 bits: there an edge that lies so close to a float32 may be the next one).
    [B, C, P] -> [B, C, n_bins]
    """
    if precision not in ("float32", "float64"):
        raise ValueError(f"edges {precision!r}: there are float32, float64")
    low = jnp.min(values, -1, initial=jnp.inf, where=values > 0)[..., None]
    high = jnp.max(values, -1, initial=-jnp.inf, where=values > 0)[..., None]
    low, high = jnp.where(low <= high, low, 0), jnp.where(low <= high, high, 0)
    bits = (11, 52) if precision == "float64" else (8, 23)
    with jax.enable_x64(True):

        def rounded(x: Array) -> Array:
            pairs = precision == "float64" and platform() == "tpu"  # of float32, all that a TPU has
            return x if pairs else jax.lax.reduce_precision(x, *bits)

        least, most = low.astype(jnp.float64), high.astype(jnp.float64)
        parts = jax.lax.optimization_barrier(jnp.float64(n_bins - 1))  # a constant would be inverted
        steps = rounded(jnp.arange(n_bins, dtype=jnp.float64) * rounded(rounded(most - least) / parts))
        last = rounded(most + rounded(jnp.float64(0.01)))
        exact = jnp.where(jnp.arange(n_bins) < n_bins - 1, rounded(least + steps), last)
        edges = exact.astype(jnp.float32)
        edges = jnp.where(edges.astype(jnp.float64) < exact, jnp.nextafter(edges, jnp.float32(jnp.inf)), edges)
    lone = jnp.concatenate([low - 0.1, low + 0.1, jnp.full((*low.shape[:-1], n_bins), jnp.inf)], -1)[..., :n_bins]
    return jnp.where(low == high, lone, edges)
