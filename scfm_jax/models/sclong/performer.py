"""A stack of pre-norm Performer blocks (arXiv 2009.14794) whose random features are drawn anew from time to time.

`x + Attention(norm(x))`, then `x + W2 gelu(W1 norm(x))` with a hidden layer of four times the width, and int(K ln K)
random features for heads of size K, as performer-pytorch has it. The stack keeps the features of all its layers and a
counter in the collection "buffers". Every training forward counts, microbatches included; the one that finds `redraw`
counted draws all layers' features and starts at zero again, so features live for `redraw` + 1 forwards. What is drawn
is a function of the run's key and step: no key is kept, and a resumed run draws the same.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax import sharding
from scfm_jax.layers import attention, prefix
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.platform import platform
from scfm_jax.layers.remat import REMAT
from scfm_jax.types import Array

KINDS = ("favor", "exact")


def n_features(size: int) -> int:
    """Return how many random features a head of `size` has."""
    return int(size * math.log(size))


class Layer(nn.Module):
    """One block. If `rows` is given, only those tokens are queries (all are keys), and only they are returned.

    For the backward pass it keeps its input, the heads, what they gather, and the hidden layer before its activation;
    norms and activations are computed again.

    Intermediates: attended (before the output projection), branch, mlp_branch.
    """

    heads: int
    key_size: int
    kind: str = "favor"
    kernel: str = "softmax"
    key_max: str = "set"
    detach_max: bool = False
    qkv_bias: bool = False
    dtype: str = "float32"
    prefix: int = 0

    @nn.compact
    def __call__(
        self, x: Array, projection: Array, mask: Array, rows: Array | None = None
    ) -> tuple[Array, None]:  # [B, T, D], [M, K], [B, T], [B, R] -> [B, T or R, D]
        width, inner = x.shape[-1], self.heads * self.key_size

        def dense(features: int, name: str, bias: bool = True) -> Callable[[Array], Array]:
            product = Dense(features, bias, self.dtype, name=name)
            return lambda y: sharding.constrain(product(y), merged=True)

        def ask(_: nn.Module, x: Array) -> tuple[Array, ...]:  # [B, T, H, K]
            y = LayerNorm(name="norm1")(x)
            asking = y if rows is None else take(y, rows)
            heads = (("query", asking), ("key", y), ("value", y))
            maps = (dense(inner, name, self.qkv_bias)(y) for name, y in heads)
            return tuple(y.reshape(*y.shape[:2], self.heads, -1) for y in maps)

        def gather(_: nn.Module, y: Array) -> Array:
            return dense(width, "out")(y.reshape(*y.shape[:2], inner).astype(self.dtype))

        def widen(_: nn.Module, x: Array) -> Array:
            return dense(4 * width, "mlp_in")(LayerNorm(name="norm2")(x))

        def narrow(_: nn.Module, y: Array) -> Array:
            return dense(width, "mlp_out")(jax.nn.gelu(y, approximate=False))

        x = sharding.constrain(x, merged=True)
        q, k, v = nn.remat(ask)(self, x)
        self.sow("intermediates", "heads", (q, k, v))
        k, v, mask = prefix.before(self, k, v, mask, self.prefix)
        if self.kind == "exact":
            y = attention.exact_attention(q, k, v, mask)
        else:
            how = {"kernel": self.kernel, "key_max": self.key_max, "detach_max": self.detach_max}
            y = attention.favor_attention(q, k, v, mask, projection, **how)
        self.sow("intermediates", "attended", y)
        y = nn.remat(gather)(self, y)
        self.sow("intermediates", "branch", y)
        x = y + (x if rows is None else take(x, rows))
        y = in_parts(lambda layer, x: nn.remat(narrow)(layer, nn.remat(widen)(layer, x)), self, x, 4 * width)
        self.sow("intermediates", "mlp_branch", y)
        return x + y, None


class Performer(nn.Module):
    """`depth` layers that add up in float32; `scan` compiles one for all (parameters stacked), `remat` recomputes them.

    `apart`: the last layer is no part of the scan, and where `rows` are asked for it computes those alone.
    `layer`: keywords of `Layer`. `redraw`: forwards that are counted before the features are drawn anew; 0 for never.
    """

    depth: int
    layer: dict
    redraw: int = 1000
    remat: bool | str = False
    scan: bool = False
    apart: bool = False

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, rows: Array | None = None, train: bool = False
    ) -> tuple[Array, Array | None]:  # [B, T, D], [B, T], [B, R] -> [B, T, D], [B, R, D]
        """Return (all tokens, those of `rows`); of the two XLA drops what is not used."""
        projections = self.features(train)
        x = x.astype(jnp.float32)  # in bfloat16 a sum of many layers would lose what the last ones add
        layer = Layer
        if self.remat:
            policy = REMAT["full" if self.remat is True else self.remat]
            layer = nn.remat(Layer, policy=policy, prevent_cse=not self.scan)
        before = self.depth - self.apart
        if self.scan and before:
            axes = {"variable_axes": {"params": 0, "intermediates": 0}, "in_axes": (0, nn.broadcast)}
            layers = nn.scan(layer, split_rngs={"params": True}, length=before, **axes)(**self.layer, name="layers")
            x, _ = layers(x, projections[:before], mask)
        else:
            for i in range(before):
                x, _ = layer(**self.layer, name=f"layer_{i}")(x, projections[i], mask)
        if not self.apart:
            return x, None
        last = layer(**self.layer, name=f"layer_{before}")
        some = None if rows is None else last(x, projections[-1], mask, rows)[0]
        return last(x, projections[-1], mask)[0], some

    def features(self, train: bool) -> Array:
        """Return the random features of all layers, in training counted and perhaps drawn anew. [depth, M, K]"""
        size = self.layer["key_size"]
        draw = functools.partial(attention.draw_projection, features=n_features(size), size=size)

        def draws(key: Array) -> Array:
            return jax.lax.map(draw, jax.random.split(key, self.depth))

        drawn = self.variable("buffers", "projection", lambda: draws(self.make_rng("params")))
        calls = self.variable("buffers", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and self.redraw and self.is_mutable_collection("buffers") and not self.is_initializing():
            due = calls.value >= self.redraw
            drawn.value = jax.lax.cond(due, draws, lambda _: drawn.value, self.make_rng("latent"))
            calls.value = jnp.where(due, 0, calls.value + 1)
        return jax.lax.stop_gradient(drawn.value)


def take(x: Array, rows: Array) -> Array:
    """Return the tokens `rows` of each set. [B, T, D], [B, R] -> [B, R, D]"""
    return jax.vmap(lambda x, rows: x.at[rows].get(mode="promise_in_bounds"))(x, rows)


def in_parts(part: Callable[[nn.Module, Array], Array], layer: nn.Module, x: Array, width: int) -> Array:
    """Return what `part` makes of tokens [B, T, D], on a processor of some at a time, which its cache can hold.

    Args:
      width: numbers that it makes of a token.
    """
    room = attention.CHUNK.get(platform())
    n_parts = -(-x.shape[0] * x.shape[1] * width // room) if room else 1
    if n_parts == 1:
        return part(layer, x)
    length = -(-x.shape[1] // n_parts)
    parts = jnp.pad(x, ((0, 0), (0, n_parts * length - x.shape[1]), (0, 0)))
    parts = parts.reshape(x.shape[0], n_parts, length, -1).swapaxes(0, 1)

    def one(layer: nn.Module, _: None, x: Array) -> tuple[None, Array]:
        return None, part(layer, x)

    each = nn.scan(one, variable_broadcast="params", split_rngs={"params": False})
    y = each(layer, None, parts)[1].swapaxes(0, 1)
    return y.reshape(x.shape[0], n_parts * length, -1)[:, : x.shape[1]]


@jax.custom_vjp
def permute(x: Array, order: Array, inverse: Array) -> Array:
    """Return the tokens of each set in another order; its gradient gathers, where that of `take` adds. [B, T, D]"""
    return take(x, order)


permute.defvjp(lambda x, order, inverse: (take(x, order), inverse), lambda inverse, dy: (take(dy, inverse), None, None))


def flops(tokens: int, width: int, heads: int, size: int, asking: int | None = None, kind: str = "favor") -> float:
    """Return the multiplications of one layer on one set; `asking` tokens of it ask."""
    asking, inner = tokens if asking is None else asking, heads * size
    mixed = 2 * n_features(size) * inner * (tokens + asking) if kind == "favor" else 2 * tokens * asking * inner
    return 2 * width * inner * (tokens + asking) + mixed + 8 * width**2 * asking
