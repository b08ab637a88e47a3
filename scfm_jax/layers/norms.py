"""Normalisations over the channels of one cell or over a batch, and PReLU: float32 inside, whatever the dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.types import Array


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last axis, then scale and bias; `groups` > 1 makes it a GroupNorm."""

    groups: int = 1
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D]
        width = x.shape[-1]
        y = x.astype(jnp.float32)
        y = y if self.groups == 1 else y.reshape(*x.shape[:-1], self.groups, width // self.groups)
        y = y - y.mean(-1, keepdims=True)
        y = (y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """Unit root mean square over the last axis, then scale."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D]
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
        return (y * self.param("scale", nn.initializers.ones, (x.shape[-1],))).astype(x.dtype)


class BatchNorm(nn.Module):
    """Zero mean and unit variance of each channel over all rows of a batch, then scale and bias, as PyTorch's.

    In training by the batch itself; otherwise by running averages (collection "batch_stats"), of which that of the
    variance is of the unbiased one, n / (n - 1) as large.

    Attributes:
      momentum: share of a batch in the running averages.
      affine: whether there is a scale and a bias.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool = False, weight: Array | None = None) -> Array:  # [..., D], weight [...]
        """Normalise `x`; `weight` is how often each row counts, 0 for padding, once where it is left out."""
        width, y = x.shape[-1], x.astype(jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width)
        running_variance = self.variable("batch_stats", "variance", jnp.ones, width)
        mean, variance = running_mean.value, running_variance.value
        if train:
            rows = y.reshape(-1, width)
            n = len(rows) if weight is None else weight.sum()
            average = lambda x: x.mean(0) if weight is None else weight.reshape(-1) @ x / n  # noqa: E731
            mean = average(rows)
            variance = average(jnp.square(rows - mean))
            if not self.is_initializing():
                unbiased = variance * n / jnp.maximum(n - 1, 1)
                for running, value in ((running_mean, mean), (running_variance, unbiased)):
                    running.value += self.momentum * (jax.lax.stop_gradient(value) - running.value)
        scale = jax.lax.rsqrt(variance + self.eps)
        if not self.affine:
            return ((y - mean) * scale).astype(x.dtype)
        scale = self.param("scale", nn.initializers.ones, (width,)) * scale
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return ((y - mean) * scale + bias).astype(x.dtype)


class PReLU(nn.Module):
    """`x` where positive, else `slope * x` with one learned slope."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        slope = self.param("slope", nn.initializers.constant(0.25), (1,)).astype(x.dtype)
        return jnp.where(x >= 0, x, slope * x)


def norm(kind: str, name: str | None = None) -> nn.Module:
    """Return the normalisation `kind`: groupnorm (four groups), layernorm or rmsnorm; ValueError for another."""
    if kind == "groupnorm":
        return LayerNorm(groups=4, name=name)
    if kind == "layernorm":
        return LayerNorm(name=name)
    if kind == "rmsnorm":
        return RMSNorm(name=name)
    raise ValueError(f"norm {kind!r}: there are groupnorm, layernorm and rmsnorm")
