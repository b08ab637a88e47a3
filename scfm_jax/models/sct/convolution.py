"""Convolutions along the genes of a bag: channels last, cells end to end, normalised per cell over the genes.

A bag [B, C, L, D] is convolved as one sequence of C x L positions: each cell gets the ends of its neighbours, so
kernels reach over the border of two cells, and only the two ends of the bag are padded with zeros. What follows is then
a matter of each cell alone, so a few cells can be worked on at a time, or cells can live on several devices that
exchange nothing but those ends (of one bag each: with several, bags and cells share an axis that XLA gathers). A
transposed convolution of stride 2 computes even and odd outputs apart, each with the taps that meet a sample: no tap is
spent on the zeros between samples, and no gradient passes through a dilation, which costs XLA twenty times as much on a
CPU.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax import sharding
from scfm_jax.layers.parts import equal_parts
from scfm_jax.types import Array

NORMS = ("shared", "standard", "channel", "no_affine", "none")
POOLINGS = ("avg", "max")


def with_neighbours(x: Array, before: int, after: int) -> Array:
    """Put the end of the previous cell before each, the start of the next behind it, zeros at the ends of the bag.

    [B, C, L, D] -> [B, C, before + L + after, D]; ValueError where a kernel reaches further than a neighbour.
    """
    if max(before, after) > x.shape[2]:
        raise ValueError(
            f"cells of {x.shape[2]} positions: a kernel reaches {max(before, after)} positions into the next cell, so "
            f"there must be as many: take more genes or model.num_downsamples lower"
        )
    first = jnp.pad(x[:, :-1, x.shape[2] - before :], ((0, 0), (1, 0), (0, 0), (0, 0)))
    last = jnp.pad(x[:, 1:, :after], ((0, 0), (0, 1), (0, 0), (0, 0)))
    return jnp.concatenate([first, x, last], 2)


def reach(taps: int, stride: int = 1) -> tuple[int, int]:
    """Return the positions of the previous and of the next cell that an output depends on."""
    return (1, 1) if stride == 2 else ((taps - 1) // 2, taps // 2)


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Cross-correlate each cell, neighbours' ends included, with kernel [taps, D, F]. -> [B, C, L - taps + 1, F]

    The gradients are spelt as a convolution of the same form and as matrix products: those that JAX derives become
    plain loops inside a scan on a CPU, many times slower.
    """
    cells = x.reshape(-1, *x.shape[2:])
    y = jax.lax.conv_general_dilated(cells, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _convolve(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return convolve(x, kernel), (x, kernel)


def _convolve_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    (x, kernel), dy = saved, sharding.constrain(dy)
    taps, length = len(kernel), dy.shape[2]
    padded = jnp.pad(dy, ((0, 0), (0, 0), (taps - 1, taps - 1), (0, 0)))
    dx = convolve(padded, kernel[::-1].swapaxes(1, 2))

    def by_tap(tap: Array) -> Array:  # one after the other: each shifted copy is as large as x
        part = jax.lax.dynamic_slice_in_dim(x, tap, length, axis=2)
        return jnp.einsum("bcld,bclf->df", sharding.constrain(part), dy)

    return dx, jax.lax.map(by_tap, jnp.arange(taps))


convolve.defvjp(_convolve, _convolve_backward)


def upsample(x: Array, kernel: Array) -> Array:
    """Transposed convolution of stride 2 with five taps [5, D, F] (SAME: zeros between samples, pad 3 and 2).

    y[2m] = w1 x[m-1] + w3 x[m], y[2m+1] = w0 x[m-1] + w2 x[m] + w4 x[m+1], x with one position of each neighbour.
    [B, C, L + 2, D] -> [B, C, 2 L, F]
    """
    even, odd = convolve(x[:, :, :-1], kernel[1::2]), convolve(x, kernel[0::2])
    return jnp.stack([even, odd], axis=3).reshape(*even.shape[:2], -1, even.shape[3])


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
    channel: the usual layer norm, of each position over its channels, with a scale and an offset for each channel.
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
        if self.kind == "channel":
            y = y.swapaxes(2, 3)
        if self.kind == "no_affine":
            scale, offset = jnp.ones(y.shape[2]), jnp.zeros(y.shape[2])
        else:
            scale = self.param("scale", nn.initializers.ones, (y.shape[2],))
            offset = self.param("offset", nn.initializers.zeros, (y.shape[2],))
        y = normalize(y, scale, offset, self.eps)
        y = y.swapaxes(2, 3) if self.kind == "channel" else y
        return y.reshape(x.shape).astype(x.dtype)


class Convolution(nn.Module):
    """A convolution of stride 1 or, with `stride` 2, a transposed one that doubles the positions; with bias.

    Cells come `with_neighbours`, as many positions as `reach` says.
    """

    features: int
    taps: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, C, before + L + after, D] -> [B, C, L or 2 L, F]
        shape = (self.taps, x.shape[-1], self.features)
        kernel = self.param("kernel", lambda key: truncated(key, shape, self.taps * x.shape[-1])).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        x = x.astype(self.dtype)
        if self.taps == 1:
            return x @ kernel[0] + bias
        return (upsample(x, kernel) if self.stride == 2 else convolve(x, kernel)) + bias


class Stage(nn.Module):
    """gelu(convolution(norm(x))), then the same with one tap, added to itself; then perhaps pooling.

    More than `cell_chunk` cells (0: no limit) are worked on in parts after the first norm, once more in the backward
    pass, so that the widest maps never exist whole; each part takes cells from everywhere in the bag, so that one that
    is split over devices stays where it is. The norm "standard" needs all cells at once.
    """

    features: int
    stride: int = 1
    norm: str = "shared"
    dtype: str = "float32"
    pooling: str | None = None
    cell_chunk: int = 0

    @nn.compact
    def __call__(self, x: Array, real: Array) -> Array:  # [B, C, L, D], cells that are not padding [B, C]
        y = GeneNorm(self.norm, name="norm")(x) * real[..., None, None].astype(x.dtype)
        y = with_neighbours(y, *reach(5, self.stride))
        n_bags, n_cells = real.shape
        parts = equal_parts(n_cells, 0 if self.norm == "standard" else self.cell_chunk)
        if parts == 1:
            return self.each(y)
        some = jnp.moveaxis(y.reshape(n_bags, -1, parts, *y.shape[2:]), 2, 0)
        each = nn.remat(lambda stage, _, y: (None, stage.each(y)), prevent_cse=False)
        _, y = nn.scan(each, variable_broadcast="params", split_rngs={"params": False})(self, None, some)
        y = jnp.moveaxis(y, 0, 2)
        return y.reshape(n_bags, n_cells, *y.shape[3:])

    def each(self, y: Array) -> Array:
        """Return what becomes of cells with their neighbours' ends. [B, C, before + L + after, D]"""
        y = jax.nn.gelu(Convolution(self.features, 5, self.stride, self.dtype, name="conv")(y))
        z = GeneNorm(self.norm, name="residual_norm")(y)
        y = y + jax.nn.gelu(Convolution(self.features, 1, dtype=self.dtype, name="residual_conv")(z))
        return pool(y, self.pooling) if self.pooling else y
