"""Normalisations over the channels of one cell, and PReLU: float32 inside, whatever the compute dtype."""

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
