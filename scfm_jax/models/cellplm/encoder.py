"""A stack of pre-norm blocks in which the elements of a set attend to each other by one of five kinds of attention.

Kinds and what the released CellPLM gives them: flowformer (LayerNorm, its own 1 % dropout), performer (RMSNorm, head
size always 64, fixed random features in the collection "constants"), transformer (RMSNorm, spectrally normalised MLP,
power-iteration vectors in "buffers"), cosformer (LayerNorm), mlp (residual PReLU layers, no attention), none.
"""

import warnings
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from scfm_jax.layers import attention, norms, prefix
from scfm_jax.layers.linear import Dense, SpectralDense
from scfm_jax.layers.product import gelu
from scfm_jax.layers.remat import REMAT
from scfm_jax.types import Array

KINDS = ("flowformer", "performer", "transformer", "cosformer", "mlp", "none")
PREFIXED = ("flowformer", "performer", "transformer")
FAVOR_SIZE, FAVOR_FEATURES = 64, 266  # 266 = int(64 ln 64)


class Attention(nn.Module):
    """Multi-head self-attention over the elements of each set: projections, one kind of attention, output."""

    kind: str
    heads: int
    dropout: float = 0.0
    train: bool = False
    dtype: str = "float32"
    prefix: int = 0

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:  # [B, C, D], [B, C]
        width = x.shape[-1]
        favor = self.kind == "performer"
        size = FAVOR_SIZE if favor else width // self.heads

        def heads(name: str) -> Array:  # [B, C, H, K]
            y = Dense(size * self.heads, use_bias=not favor, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:-1], self.heads, size)

        keys = prefix.before(self, heads("key"), heads("value"), mask, self.prefix)
        y = self.attend(heads("query"), *keys, mask)
        y = Dense(width, dtype=self.dtype, name="out")(y.reshape(*x.shape[:-1], -1).astype(self.dtype))
        rate = {"flowformer": 0.01 if self.dropout else 0.0, "performer": self.dropout}.get(self.kind, 0.0)
        return nn.Dropout(rate, deterministic=not self.train)(y)

    def attend(self, q: Array, k: Array, v: Array, mask: Array, asking: Array) -> Array:
        """Return what each element [B, C, H, K] gathers; `mask` [B, S + C] is of keys, `asking` [B, C] of queries."""
        if self.kind == "flowformer":
            return attention.flow_attention(q, k, v, mask, asking)
        if self.kind == "cosformer":
            return attention.cosine_attention(q, k, v, mask)
        if self.kind == "performer":
            shape = (FAVOR_FEATURES, FAVOR_SIZE)

            def draw() -> Array:
                return attention.draw_projection(self.make_rng("params"), *shape)

            return attention.favor_attention(q, k, v, mask, self.variable("constants", "projection", draw).value)
        weights, v = attention.softmax_attention(q, k, v, mask)
        weights = nn.Dropout(self.dropout, deterministic=not self.train)(weights)
        return jnp.einsum("bhqs,bshk->bqhk", weights, v, preferred_element_type=jnp.float32)


class Block(nn.Module):
    """`x + Attention(norm(x))`, then `x + MLP(norm(x))` with one hidden layer of twice the width."""

    kind: str
    heads: int
    dropout: float = 0.0
    norm: str = "groupnorm"
    train: bool = False
    dtype: str = "float32"
    prefix: int = 0

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, None]:  # [B, C, D], [B, C]
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        width = x.shape[-1]
        if self.kind == "mlp":
            y = norms.PReLU(name="prelu")(Dense(width, dtype=self.dtype, name="mlp")(x))
            y = norms.norm(self.norm, name="norm")(drop(y))
            self.sow("intermediates", "branch", y)
            x = x + y
        else:
            options = (self.kind, self.heads, self.dropout, self.train, self.dtype, self.prefix)
            y = Attention(*options, name="attention")(self.block_norm("norm1")(x), mask)
            self.sow("intermediates", "attended", y)
            x = x + (y if self.kind == "performer" else drop(y))
            y = gelu(self.linear(2 * width, "mlp_in")(self.block_norm("norm2")(x)))
            x = x + drop(self.linear(width, "mlp_out")(drop(y)))
        self.sow("intermediates", "output", x)
        return x, None

    def block_norm(self, name: str) -> nn.Module:
        """Return the normalisation that this kind of block uses."""
        eps = {"performer": 1e-6, "transformer": 1e-5}.get(self.kind)
        return norms.LayerNorm(name=name) if eps is None else norms.RMSNorm(eps, name=name)

    def linear(self, features: int, name: str) -> Callable[[Array], Array]:
        """Return a linear map, spectrally normalised in the vanilla transformer."""
        if self.kind == "transformer":
            return SpectralDense(features, self.train, self.dtype, name=name)
        return Dense(features, dtype=self.dtype, name=name)


class Encoder(nn.Module):
    """`layers` blocks; `scan` compiles one block for all (parameters stacked), `remat` recomputes them backwards.

    `remat`: False, True or "full" (keep only the blocks' inputs), or "dots" (keep matrix products too).
    """

    kind: str
    layers: int
    heads: int
    dropout: float = 0.0
    norm: str = "groupnorm"
    train: bool = False
    dtype: str = "float32"
    remat: bool | str = False
    scan: bool = False
    prefix: int = 0

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:  # [B, C, D], [B, C]
        if self.kind not in KINDS:
            raise ValueError(f"enc_mod {self.kind!r}: there are {', '.join(KINDS)}")
        if self.prefix and self.kind not in PREFIXED:
            raise ValueError(
                f"prefix={self.prefix}, enc_mod {self.kind!r}: those with prefixes are {', '.join(PREFIXED)}"
            )
        if self.kind == "cosformer":
            warnings.warn("cosformer depends on the order of cells and divides by sums that may vanish", stacklevel=2)
        if self.kind == "none":
            return x
        mask = mask | ~mask.any(1, keepdims=True)  # a bag of padding alone stays finite
        block = Block
        if self.remat:
            policy = "full" if self.remat is True else self.remat
            if policy not in REMAT:
                raise ValueError(f"remat {self.remat!r}: there are False, True, {', '.join(map(repr, REMAT))}")
            block = nn.remat(Block, policy=REMAT[policy], prevent_cse=not self.scan)
        options = (self.kind, self.heads, self.dropout, self.norm, self.train, self.dtype, self.prefix)
        if self.scan:
            block = nn.scan(
                block,
                variable_axes={"params": 0, "constants": 0, "buffers": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.layers,
            )
            return block(*options, name="layers")(x, mask)[0]
        for i in range(self.layers):
            x, _ = block(*options, name=f"layer_{i}")(x, mask)
        return x
