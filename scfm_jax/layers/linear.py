"""Linear maps with PyTorch's initial distribution, and a spectrally normalised one."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers.product import product
from scfm_jax.types import Array

fan_in_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))


def bias_uniform(fan_in: int) -> Callable:
    """Return PyTorch's initialiser of a linear bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Dense(nn.Module):
    """`x @ kernel + bias`: parameters in float32, the product in `dtype`."""

    features: int
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., F]
        kernel = self.param("kernel", fan_in_uniform, (x.shape[-1], self.features))
        y = product(x.astype(self.dtype), kernel.astype(self.dtype))
        if self.use_bias:
            y = y + self.param("bias", bias_uniform(x.shape[-1]), (self.features,)).astype(self.dtype)
        return y


class SpectralDense(nn.Module):
    """A linear map whose kernel is divided by its largest singular value and scaled by a learned `gain`.

    One power iteration per call, in evaluation too; `u` (and, in training, the singular value) is written back where
    the collection "buffers" is mutable.
    """

    features: int
    train: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., F]
        kernel = self.param("kernel", fan_in_uniform, (x.shape[-1], self.features))
        gain = self.param("gain", nn.initializers.ones, (1,))
        bias = self.param("bias", bias_uniform(x.shape[-1]), (self.features,))
        u = self.variable("buffers", "u", lambda: _unit(jax.random.normal(self.make_rng("params"), (x.shape[-1],))))
        norm = self.variable("buffers", "norm", lambda: jnp.ones(()))
        fixed = jax.lax.stop_gradient(kernel)
        left = _unit(u.value @ fixed)
        right = _unit(fixed @ left)
        sigma = right @ kernel @ left
        if self.is_mutable_collection("buffers") and not self.is_initializing():
            u.value = right
            norm.value = sigma if self.train else norm.value
        return x.astype(self.dtype) @ (gain / sigma * kernel).astype(self.dtype) + bias.astype(self.dtype)


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)
