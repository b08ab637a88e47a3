"""Parts of Perceiver IO (arXiv 2107.14795): latents read inputs, work among themselves, and are read by queries.

Blocks are laid out, and drawn at first, as the released Exceiver's, which are PyTorch's. Inputs that are a vector times
a number need no projection of their own: see `CrossBlock.tables`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import prefix
from scfm_jax.layers.linear import bias_uniform, fan_in_uniform
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.parts import by_cells
from scfm_jax.layers.product import gelu, product
from scfm_jax.models.exceiver.latent_attention import attend, attend_in_order, logits_of, room
from scfm_jax.types import Array

KEPT = 256  # from this width on a product W1 x is kept for the backward pass


def feed_forward(x: Array, weights: tuple[Array, ...], rate: float, key: Array | None, chunk: int) -> Array:
    """Return W2 dropout(gelu(W1 x)) of latents [N, Q, D]; the hidden layer exists a chunk at a time, forth and back.

    The backward pass makes it again where W1 x costs less than keeping it: for widths below `KEPT`.

    Args:
      weights: kernel, bias, kernel, bias.
      rate, key: of the dropout; no key, no dropout.
    """
    w1, b1, w2, b2 = (w.astype(x.dtype) for w in weights)

    def part(x, number):
        hidden = gelu(product(x, w1) + b1)
        if key is not None:
            keep = jax.random.bernoulli(jax.random.fold_in(key, number[0]), 1 - rate, hidden.shape)
            hidden = jnp.where(keep, hidden / (1 - rate), 0)
        return product(hidden, w2) + b2

    policy = jax.checkpoint_policies.dots_saveable if x.shape[-1] >= KEPT else None
    return by_cells(part, room(chunk) // (x.shape[1] * b1.size), policy, x, jnp.arange(len(x)))


# ------------------------------------------------------------------------------------------------------------ modules


class Linear(nn.Module):
    """`x @ kernel + bias` with initialisers of one's choice; the bias starts at zero by default."""

    fan_in: int
    features: int
    kernel_init: nn.initializers.Initializer = fan_in_uniform
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str = "float32"

    def setup(self) -> None:
        self.kernel = self.param("kernel", self.kernel_init, (self.fan_in, self.features))
        self.bias = self.param("bias", self.bias_init, (self.features,))

    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., F]
        return product(x.astype(self.dtype), self.kernel.astype(self.dtype)) + self.bias.astype(self.dtype)


def torch_linear(
    fan_in: int,
    features: int,
    dtype: str = "float32",
    kernel_init: nn.initializers.Initializer = fan_in_uniform,
) -> Linear:
    """Return a linear map with PyTorch's initial distribution, or another of the kernel."""
    return Linear(fan_in, features, kernel_init, bias_uniform(fan_in), dtype)


def packed_uniform(fan_in: int, features: int, packed: bool) -> nn.initializers.Initializer:
    """Return PyTorch's initialiser of an attention's projection: Xavier, over all three where they are one matrix."""
    bound = (6 / (fan_in + (3 if packed else 1) * features)) ** 0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Projections(nn.Module):
    """The four linear maps of an attention from `kv_width` into `width`."""

    width: int
    kv_width: int
    dtype: str = "float32"

    def setup(self) -> None:
        packed = self.width == self.kv_width
        for name, fan_in in {"query": self.width, "key": self.kv_width, "value": self.kv_width}.items():
            init = packed_uniform(fan_in, self.width, packed)
            setattr(self, name, Linear(fan_in, self.width, init, dtype=self.dtype))
        self.out = Linear(self.width, self.width, dtype=self.dtype)


class CrossBlock(nn.Module):
    """`h = q + out(attention(norm(q), norm(kv)))`, then `h + MLP(h)`; the MLP is norm, linear, gelu, norm, linear.

    `__call__` is the plain one; `tables` and `finish` are for a caller that makes keys and values itself.
    """

    width: int
    kv_width: int
    heads: int = 4
    chunk: int = 0
    dtype: str = "float32"

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: must be a multiple of the {self.heads} heads of a cross-attention")
        self.norm_q, self.norm_kv = LayerNorm(), KeyNorm(self.kv_width)
        self.attention = Projections(self.width, self.kv_width, self.dtype)
        self.mlp_norm1, self.mlp_norm2 = LayerNorm(), LayerNorm()
        self.mlp_in = torch_linear(self.width, self.width, self.dtype)
        self.mlp_out = torch_linear(self.width, self.width, self.dtype)

    def __call__(self, q: Array, kv: Array) -> Array:  # [N, Q, D], [N, P, D'] -> [N, Q, D]
        keys, values = self.keys(kv)
        return self.finish(attend(self.queries(q), keys, values, jnp.zeros(kv.shape[:2]), self.chunk)[0], q)

    def in_order(self, q: Array, kv: Array, bias: Array) -> Array:
        """Return the block's output by `attend_in_order`. [N or 1, Q, D], [N, P, D'], [N, P] -> [N, Q, D]"""
        return self.finish(attend_in_order(self.queries(q), *self.keys(kv), bias), q)

    def keys(self, kv: Array) -> tuple[Array, Array]:
        """Return keys and values of inputs. [N, P, D'] -> [N, H, K, P], [N, H, K, P]"""
        kv = self.norm_kv(kv)
        return tuple(columns(project(kv), self.heads) for project in (self.attention.key, self.attention.value))

    def queries(self, q: Array) -> Array:
        """Return the scaled queries. [N, Q, D] -> [N, H, Q, K]"""
        return columns(self.attention.query(self.norm_q(q)), self.heads, (self.width // self.heads) ** -0.5, False)

    def finish(self, attended: Array, q: Array) -> Array:
        """Return the block's output from what the attention gathered. [N, H, Q, K], [N or 1, Q, D] -> [N, Q, D]"""
        y = jnp.moveaxis(attended, 1, 2)
        h = self.attention.out(y.reshape(*y.shape[:2], -1)) + q
        return h + self.mlp_out(self.mlp_norm2(gelu(self.mlp_in(self.mlp_norm1(h)))))

    def tables(self, vectors: Array) -> tuple[Array, Array, Array, Array]:
        """Return what makes keys and values of `x * vector` for any scalar x; what is constant over keys is left out.

        LayerNorm(x e) = s (e - mean e) gamma + beta with s = x / sqrt(x^2 var e + eps), so a key is s A and a value
        s U + u, and only s depends on the cell.

        Returns (A [R, D], U [R, D], variances [R], u [D]) of vectors [R, D'].
        """
        centred = vectors - vectors.mean(-1, keepdims=True)
        scaled = centred * self.norm_kv.scale
        key, value = self.attention.key, self.attention.value
        constant = self.norm_kv.bias @ value.kernel + value.bias
        return scaled @ key.kernel, scaled @ value.kernel, (centred**2).mean(-1), constant


class KeyNorm(nn.Module):
    """A LayerNorm whose parameters can be read."""

    width: int
    eps: float = 1e-5

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.width,))

    def __call__(self, x: Array) -> Array:
        y = x - x.mean(-1, keepdims=True)
        return y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps) * self.scale + self.bias


def columns(x: Array, heads: int, scale: float = 1.0, keys: bool = True) -> Array:
    """Split the last axis into heads. [N, Q, D] -> [N, H, K, Q], or [N, H, Q, K] for queries."""
    x = (x * scale).reshape(*x.shape[:2], heads, -1)
    return jnp.moveaxis(x, 1, 3) if keys else jnp.moveaxis(x, 1, 2)


class LatentLayer(nn.Module):
    """PyTorch's post-norm encoder layer over the latents of a cell: attention, then MLP, normalised after each."""

    heads: int
    ffn_dim: int
    dropout: float = 0.0
    train: bool = False
    chunk: int = 0
    dtype: str = "float32"
    prefix: int = 0

    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:  # [N, Q, D]
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"query_dim={width}: must be a multiple of num_heads={self.heads}")
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        maps = Projections(width, width, self.dtype, name="attention")
        q = columns(maps.query(x), self.heads, (width // self.heads) ** -0.5, False)
        k, v = (columns(project(x), self.heads) for project in (maps.key, maps.value))
        if self.prefix:
            more = (columns(y[None], self.heads) for y in prefix.learned(self, self.prefix, width))
            k, v = (
                jnp.concatenate([jnp.broadcast_to(y, (*x.shape[:1], *y.shape[1:])).astype(z.dtype), z], -1)
                for y, z in zip(more, (k, v), strict=True)
            )
        if self.dropout and self.train:
            weights = drop(jax.nn.softmax(logits_of(q, k), -1))
            y = jnp.einsum("nhqp,nhdp->nhqd", weights, v)
        else:
            y, _ = attend(q, k, v, jnp.zeros((x.shape[0], k.shape[-1])), self.chunk)
        y = maps.out(jnp.moveaxis(y, 1, 2).reshape(x.shape))
        x = LayerNorm(name="norm1")(x + drop(y))
        shapes = {"mlp_in": (width, self.ffn_dim), "mlp_out": (self.ffn_dim, width)}
        weights = [leaf for name, shape in shapes.items() for leaf in Kernel(*shape, name=name)()]
        key = self.make_rng("dropout") if self.dropout and self.train else None
        y = feed_forward(x.astype(self.dtype), tuple(weights), self.dropout, key, self.chunk)
        x = LayerNorm(name="norm2")(x + drop(y))
        self.sow("intermediates", "output", x)
        return x, None


class LatentStack(nn.Module):
    """`layers` encoder layers, compiled once; with `same_start` all begin with the same weights, as copies of one."""

    layers: int
    same_start: bool
    heads: int
    ffn_dim: int
    dropout: float = 0.0
    chunk: int = 0
    dtype: str = "float32"
    prefix: int = 0

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:  # [N, Q, D]
        stack = nn.scan(
            LatentLayer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": not self.same_start, "dropout": True},
            length=self.layers,
        )
        options = (self.heads, self.ffn_dim, self.dropout, train, self.chunk, self.dtype, self.prefix)
        return stack(*options, name="layers")(x, None)[0]


class Kernel(nn.Module):
    """Kernel and bias of a linear map that something else applies."""

    fan_in: int
    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", fan_in_uniform, (self.fan_in, self.features))
        return kernel, self.param("bias", bias_uniform(self.fan_in), (self.features,))
