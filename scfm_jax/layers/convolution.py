"""Convolutions along the genes of a bag: channels last, cells end to end, normalised per cell over the genes.

A bag [B, C, L, D] is convolved as one sequence of C x L positions, so kernels reach over the border of two cells; only
its two ends are padded with zeros. A transposed convolution of stride 2 computes even and odd outputs apart, each with
the taps that meet a sample: no tap is spent on the zeros between samples, and no gradient passes through a dilation,
which costs XLA twenty times as much on a CPU.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.types import Array

NORMS = ("shared", "standard", "no_affine", "none")
POOLINGS = ("avg", "max")


def convolve(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    """Cross-correlate a bag with kernel [taps, D, F] along its positions, zeros beyond the ends. -> [B, C, L, F]"""
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    y = jax.lax.conv_general_dilated(flat, kernel, (1,), [padding], dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(*x.shape[:-1], -1)


def upsample(x: Array, kernel: Array) -> Array:
    """Transposed convolution of stride 2 with five taps [5, D, F] (SAME: zeros between samples, pad 3 and 2).

    y[2m] = w1 x[m-1] + w3 x[m], y[2m+1] = w0 x[m-1] + w2 x[m] + w4 x[m+1]. -> [B, C, 2 L, F]
    """
    even, odd = convolve(x, kernel[1::2], (1, 0)), convolve(x, kernel[0::2], (1, 1))
    return jnp.stack([even, odd], axis=3).reshape(*x.shape[:2], 2 * x.shape[2], -1)


def pool(x: Array, kind: str) -> Array:
    """Halve the positions of each cell by average or maximum. -> [B, C, L / 2, D]"""
    pairs = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3])
    if kind == "avg":
        return pairs.mean(3)
    if kind == "max":
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        return jnp.where(first >= second, first, second)  # the gradient of `max` divides by a number of ties
    raise ValueError(f"pooling {kind!r}: there are {', '.join(POOLINGS)}")


def truncated(key: Array, shape: Sequence[int], fan_in: int) -> Array:
    """Draw a normal variate cut at two standard deviations, which are 1 / sqrt(fan_in)."""
    return jax.random.truncated_normal(key, -2.0, 2.0, shape) * fan_in**-0.5


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(x: Array, scale: Array, offset: Array, eps: float) -> Array:
    """Return x [..., L, D] with zero mean and unit variance along L, times scale [L], plus offset [L].

    The gradient is the closed form, which passes over the array half as often as the derived one.
    """
    return _normalize(x, scale, offset, eps)[0]


def _normalize(x: Array, scale: Array, offset: Array, eps: float) -> tuple[Array, tuple[Array, ...]]:
    mean = x.mean(-2, keepdims=True)
    rate = jax.lax.rsqrt(((x - mean) ** 2).mean(-2, keepdims=True) + eps)
    return (x - mean) * rate * scale[:, None] + offset[:, None], (x, scale, mean, rate)


def _normalize_backward(eps: float, saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, rate = saved
    unit = (x - mean) * rate
    others, size = (*range(x.ndim - 2), x.ndim - 1), x.shape[-2]
    pull = jnp.einsum("...ld,l->...d", dy, scale / size)[..., None, :]  # a sum of products: ten times a product's sum
    twist = jnp.einsum("...ld,...ld->...d", dy, unit * (scale / size)[:, None])[..., None, :]
    dx = rate * (dy * scale[:, None] - pull - unit * twist)
    return dx, (dy * unit).sum(others), dy.sum(others)


normalize.defvjp(_normalize, _normalize_backward)


class GeneNorm(nn.Module):
    """Zero mean and unit variance of each cell and channel over the cell's positions, padding included; in float32.

    shared: then a scale and an offset for each position, the same for all cells and channels. standard: over the
    positions of the whole bag, with a scale and an offset for each of them. no_affine: neither. none: nothing at all.
    """

    kind: str = "shared"
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, C, L, D]
        if self.kind not in NORMS:
            raise ValueError(f"norm {self.kind!r}: there are {', '.join(NORMS)}")
        if self.kind == "none":
            return x
        y = x.astype(jnp.float32)
        if self.kind == "standard":
            y = y.reshape(x.shape[0], 1, -1, x.shape[3])
        if self.kind == "no_affine":
            scale, offset = jnp.ones(y.shape[2]), jnp.zeros(y.shape[2])
        else:
            scale = self.param("scale", nn.initializers.ones, (y.shape[2],))
            offset = self.param("offset", nn.initializers.zeros, (y.shape[2],))
        y = normalize(y, scale, offset, self.eps)
        return y.reshape(x.shape).astype(x.dtype)


class Convolution(nn.Module):
    """A convolution of stride 1 (SAME) or, with `stride` 2, a transposed one that doubles the positions; with bias."""

    features: int
    taps: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, C, L, D] -> [B, C, L or 2 L, F]
        shape = (self.taps, x.shape[-1], self.features)
        kernel = self.param("kernel", lambda key: truncated(key, shape, self.taps * x.shape[-1])).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x, before = x.astype(self.dtype), (self.taps - 1) // 2
        if self.taps == 1:
            return x @ kernel[0] + bias
        y = upsample(x, kernel) if self.stride == 2 else convolve(x, kernel, (before, self.taps - 1 - before))
        return y + bias


class Stage(nn.Module):
    """gelu(convolution(norm(x))), then the same with one tap, added to itself; `real` [B, C] silences padding cells."""

    features: int
    stride: int = 1
    norm: str = "shared"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, real: Array) -> Array:  # [B, C, L, D] -> [B, C, L or 2 L, F]
        y = GeneNorm(self.norm, name="norm")(x) * real[..., None, None].astype(x.dtype)
        y = jax.nn.gelu(Convolution(self.features, 5, self.stride, self.dtype, name="conv")(y))
        z = GeneNorm(self.norm, name="residual_norm")(y)
        return y + jax.nn.gelu(Convolution(self.features, 1, dtype=self.dtype, name="residual_conv")(z))
