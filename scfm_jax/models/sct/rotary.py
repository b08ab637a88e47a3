"""A pre-norm transformer block with rotary positions and a gated MLP, as in the Nucleotide Transformer family."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import prefix
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.parts import equal_parts
from scfm_jax.models.sct.convolution import truncated
from scfm_jax.types import Array

INITIALISERS = {
    "he_uniform": nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),
    "truncated": lambda key, shape: truncated(key, shape, shape[0]),
}
"""How a kernel is drawn: uniformly within sqrt(6 / fan_in), or normal, see `truncated`."""


def rotate(x: Array, base: float = 10_000.0) -> Array:
    """Turn the halves of each head against each other by angles that grow with the position (RoFormer). [B, T, H, K]"""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * base ** (-jnp.arange(half) / half)  # [T, K / 2]
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


class Linear(nn.Module):
    """`x @ kernel + bias`: parameters in float32, the product in `dtype`.

    The kernel is drawn by `init`, one of INITIALISERS, the bias uniformly within sqrt(6 / fan_in).
    """

    features: int
    use_bias: bool = True
    dtype: str = "float32"
    init: str = "he_uniform"

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., F]
        kernel = self.param("kernel", INITIALISERS[self.init], (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.use_bias:
            bound = (6 / x.shape[-1]) ** 0.5
            bias = self.param(
                "bias", lambda key: jax.random.uniform(key, (self.features,), minval=-bound, maxval=bound)
            )
            y = y + bias.astype(self.dtype)
        return y


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + W2 (silu(a) * b)` with (a, b) = W1 norm(x); softmax in float32.

    More than `query_chunk` queries (0: no limit) are worked on in parts, once more in the backward pass, so that scores
    never exist for all of them; each part takes queries from everywhere, so that a split sequence stays where it is.
    `prefix` learned keys and values stand beside those of the positions, at none themselves.
    Intermediates: attention [B, H, T, T] where there is one part, output.
    """

    heads: int
    key_size: int
    ffn_dim: int
    rope: bool = True
    dtype: str = "float32"
    query_chunk: int = 0
    prefix: int = 0
    mlp_init: str = "he_uniform"

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, Array]:  # [B, T, D], keys to attend to [B, T]
        x = x + self.attend(LayerNorm(name="norm1")(x), mask)
        widen = self.linear(2 * self.ffn_dim, "mlp_in", False, self.mlp_init)
        a, b = jnp.split(widen(LayerNorm(name="norm2")(x)), 2, axis=-1)
        x = x + self.linear(x.shape[-1], "mlp_out", False, self.mlp_init)(jax.nn.silu(a) * b)
        self.sow("intermediates", "output", x)
        return x, x

    def attend(self, x: Array, mask: Array) -> Array:
        """Return what each position gathers from all, in this order of heads. [B, T, D]"""
        (n_bags, length), width = x.shape[:2], self.heads * self.key_size
        q, k, v = (
            self.linear(width, name)(x).reshape(n_bags, length, self.heads, -1) for name in ("query", "key", "value")
        )
        if self.rope:
            q, k = rotate(q), rotate(k)
        k, v, mask = prefix.before(self, k, v, mask, self.prefix)

        def gather(q: Array) -> tuple[Array, Array]:
            scores = jnp.einsum("bqhk,bshk->bhqs", q * self.key_size**-0.5, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1)
            return jnp.einsum("bhqs,bshk->bqhk", weights.astype(self.dtype), v), weights

        parts = equal_parts(length, self.query_chunk)
        if parts == 1:
            y, weights = gather(q)
            self.sow("intermediates", "attention", weights)
        else:
            some = jnp.moveaxis(q.reshape(n_bags, -1, parts, *q.shape[2:]), 2, 0)
            y = jax.lax.map(jax.checkpoint(lambda q: gather(q)[0], prevent_cse=False), some)
            y = jnp.moveaxis(y, 0, 2)
        return self.linear(x.shape[-1], "out")(y.reshape(n_bags, length, width))

    def linear(self, features: int, name: str, use_bias: bool = True, init: str = "he_uniform") -> Linear:
        """Return one of the block's linear maps."""
        return Linear(features, use_bias, self.dtype, init, name=name)
