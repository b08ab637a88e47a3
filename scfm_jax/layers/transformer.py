"""BERT's encoder block: attention and MLP, each added to its input and normalised after (post-norm), biases everywhere.

Attention is exact. On a CPU, and where its weights are dropped out, it is `softmax_attention`'s, in parts; else it goes
through `jax.nn.dot_product_attention`, on a GPU in 16 bits through cuDNN's fused kernel; its weights exist whole only
where maps are asked for among the intermediates. Prefixes are keys and values beside those of the tokens, never masked:
`prefix` of them are learned, and more are projected from `vectors`.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import softmax_attention
from scfm_jax.layers.dropout import dropped
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.platform import platform
from scfm_jax.layers.product import dot_general, gelu
from scfm_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}

normal = nn.initializers.normal(0.02)


class Block(nn.Module):
    """`x = norm(x + attention(x))`, then `x = norm(x + W2 activation(W1 x))`, dropout on both branches.

    Returns x and its mean over the real tokens. If `places` [N, M] is given, only those tokens are queries, and only
    they are returned [N, M, D]; the mean is then of no use. Intermediates: attention [N, H, T, S], prefixes first;
    output.
    """

    heads: int
    ffn_dim: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation: str = "gelu"
    eps: float = 1e-12
    prefix: int = 0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Array, real: Array, vectors: Array | None = None, train: bool = False, places: Array | None = None
    ) -> tuple[Array, Array]:  # [N, T, D], tokens that are not padding [N, T], vectors to make prefixes of [N, S, E]
        keys, seen = x, real | ~real.any(1, keepdims=True)
        if places is not None:
            x, real = jnp.take_along_axis(x, places[..., None], 1), jnp.take_along_axis(real, places, 1)
        y, shape = self.attend(x, keys, seen, vectors, self.attention_dropout if train else 0.0), x.shape
        # all tokens in a row, as matrix products take them: else XLA on a CPU makes x anew in every later block
        x, y = x.reshape(-1, shape[-1]), y.reshape(-1, shape[-1])
        x = LayerNorm(eps=self.eps, name="norm1")(x + self.drop(self.linear(shape[-1], "out")(y), shape, train))
        y = ACTIVATIONS[self.activation](self.linear(self.ffn_dim, "mlp_in")(x))
        x = LayerNorm(eps=self.eps, name="norm2")(x + self.drop(self.linear(shape[-1], "mlp_out")(y), shape, train))
        x = x.reshape(shape)
        self.sow("intermediates", "output", x)
        return x, mean(x, real)

    def attend(self, x: Array, keys: Array, real: Array, vectors: Array | None, rate: float) -> Array:
        """Return what each token of x gathers from all real keys and the prefixes, heads side by side. [N, T, D]"""
        size = x.shape[-1] // self.heads

        def split(y: Array) -> Array:  # [..., D] -> [..., H, K]
            return y.reshape(*y.shape[:-1], self.heads, size)

        asked = {"query": x, "key": keys, "value": keys}
        q, k, v = (split(self.linear(x.shape[-1], name)(y)) for name, y in asked.items())
        for more_k, more_v in self.prefixes(keys, vectors, split):
            k, v = (jnp.concatenate([more.astype(y.dtype), y], 1) for more, y in ((more_k, k), (more_v, v)))
        real = jnp.pad(real, ((0, 0), (k.shape[1] - keys.shape[1], 0)), constant_values=True)
        key = self.make_rng("dropout") if rate else None
        if self.is_mutable_collection("intermediates"):
            y = self.weigh(q, k, v, real, rate, key)
        elif rate or platform() == "cpu":
            y = softmax_attention.attend(q, k, v, real, rate, key)
        elif platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
            lengths = real.sum(1, dtype=jnp.int32)
            y = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")
        else:
            y = jax.nn.dot_product_attention(q, k, v, mask=real[:, None, None])
        return y.reshape(x.shape)

    def weigh(self, q: Array, k: Array, v: Array, real: Array, rate: float, key: Array | None) -> Array:
        """Return attention through its weights, which are sown and dropped out. [N, T, H, K]"""
        scores = jnp.einsum("nthk,nshk->nhts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(real[:, None, None], scores, -jnp.inf), axis=-1)
        self.sow("intermediates", "attention", weights)
        weights = dropped(weights, rate, key) if rate else weights
        return jnp.einsum("nhts,nshk->nthk", weights.astype(v.dtype), v)

    def prefixes(self, x: Array, vectors: Array | None, split: Callable[[Array], Array]) -> list[tuple[Array, Array]]:
        """Return pairs of keys and values to put before those of the tokens, each [N, S, H, K]."""
        pairs, width = [], x.shape[-1]
        if vectors is not None:
            pairs.append(tuple(split(self.linear(width, f"prefix_{name}_map")(vectors)) for name in ("key", "value")))
        if self.prefix:
            learned = (self.param(f"prefix_{name}", normal, (self.prefix, width)) for name in ("key", "value"))
            pairs.append(tuple(split(jnp.broadcast_to(y, (x.shape[0], *y.shape))) for y in learned))
        return pairs

    def drop(self, x: Array, shape: tuple[int, ...], train: bool) -> Array:
        """Drop out a branch [N T, D] in training, each element by its place in `shape`."""
        if not (train and self.dropout):
            return x
        return dropped(x.reshape(shape), self.dropout, self.make_rng("dropout")).reshape(x.shape)

    def linear(self, features: int, name: str) -> nn.Dense:
        """Return one of the block's linear maps."""
        return nn.Dense(features, dtype=self.dtype, kernel_init=normal, dot_general=dot_general, name=name)


def mean(x: Array, real: Array) -> Array:
    """Return the mean over the real tokens in float32, 0 where there are none. [N, T, D], [N, T] -> [N, D]"""
    share = real / jnp.maximum(real.sum(1, keepdims=True), 1)
    return jnp.einsum("ntd,nt->nd", x, share.astype(x.dtype), preferred_element_type=jnp.float32)
