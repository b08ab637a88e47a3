"""Attention between a few latents and many genes (Perceiver IO, arXiv 2107.14795), whose weights never exist whole.

`attend` takes the queries a chunk at a time, each with all of its keys, so a softmax is exact and needs no rescaling.
The backward pass computes a chunk's weights again from the saved logarithm of their sum, and closes the gradient by
hand. Keys that all cells share can be given once: `Background`.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers.linear import bias_uniform, fan_in_uniform
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.types import Array

CHUNKS = {"cpu": 2**20}  # stays in a processor's cache
WIDER = 4  # matrix products of heads wider than 1 want more rows
CHUNK = 2**26  # fills an accelerator
KEPT = 32  # from this width on a product W1 x is kept for the backward pass

xavier_uniform = nn.initializers.xavier_uniform()


class Background(NamedTuple):
    """Keys and values that are the same in all cells, each cell seeing a part of them.

    Attributes:
      keys: [H, K, V]. values: [H, D, V].
      seen: 1.0 where the cell sees the key, else 0.0. [N, V]
      bias: added to all of these logits.
    """

    keys: Array
    values: Array
    seen: Array
    bias: float


# ---------------------------------------------------------------------------------------------------- pure functions


def attend(
    queries: Array, keys: Array, values: Array, bias: Array, background: Background | None = None, chunk: int = 0
) -> Array:
    """Return softmax(queries keys + bias) values, 0 for a cell that sees no key. -> [N, H, Q, D] float32

    Args:
      queries: already scaled; leading axis 1 where all cells have the same. [N or 1, H, Q, K]
      keys: [N, H, K, P]. values: [N, H, D, P].
      bias: added to the logits, -inf hides a key; no gradient flows into it. [N, P]
      background: further keys.
      chunk: weights that exist at a time, of all cells together; 0 for what suits the backend.
    """
    shared = None if background is None else background[:3]
    lift = 0.0 if background is None else float(background.bias)
    return _attend(queries, keys, values, bias, shared, lift, parts(queries.shape[2], keys, chunk))


def parts(n_queries: int, keys: Array, chunk: int) -> int:
    """Return the number of chunks of queries that keep the weights within `chunk` (see `attend`)."""
    n_cells, heads, width, n_keys = keys.shape
    chunk = chunk or CHUNKS.get(jax.default_backend(), CHUNK) * (WIDER if width > 1 else 1)
    return min(n_queries, -(-n_cells * heads * n_queries * n_keys // chunk))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(queries, keys, values, bias, shared, lift, n):
    return _forward(queries, keys, values, bias, shared, lift, n)[0]


def _forward(queries, keys, values, bias, shared, lift, n):
    summed = _with_ones(values)

    def part(_, q):
        logits = _logits(q, keys) + bias[:, None, None]
        top = _peak(logits)
        sums = jnp.einsum("nhqp,nhdp->nhqd", jnp.exp(logits - top), summed, preferred_element_type=jnp.float32)
        if shared is not None:
            high, weights = _shared_weights(q, shared[0], lift)
            more = jnp.einsum("nv,hqdv->nhqd", shared[2], weights[:, :, None] * _with_ones(shared[1])[:, None])
            both = jnp.maximum(top, high)
            sums, top = sums * jnp.exp(top - both) + more * jnp.exp(high - both), both
        total = jnp.maximum(sums[..., -1:], jnp.finfo(jnp.float32).tiny)
        return None, (sums[..., :-1] / total, top + jnp.log(total))

    _, (out, log_sum) = _scan(part, None, _split(queries, n))
    out, log_sum = (_join(x, queries.shape[2]) for x in (out, log_sum))
    return out, (queries, keys, values, bias, shared, out, log_sum)


def _backward(lift, n, saved, grad):
    queries, keys, values, bias, shared, out, log_sum = saved
    common = queries.shape[0] == 1 < keys.shape[0]
    level = (grad * out).sum(-1, keepdims=True)

    def part(sums, inputs):
        q, log_sum, grad, level = inputs
        weights = jnp.exp(_logits(q, keys) + bias[:, None, None] - log_sum)
        pull = weights * (jnp.einsum("nhqd,nhdp->nhqp", grad, values) - level)
        q_all = jnp.broadcast_to(q, (keys.shape[0], *q.shape[1:]))
        d_keys = jnp.einsum("nhqp,nhqk->nhkp", pull, q_all)
        d_values = jnp.einsum("nhqp,nhqd->nhdp", weights, grad)
        d_q = jnp.einsum("nhqp,nhkp->nhqk", pull, keys)
        d_q = d_q.sum(0, keepdims=True) if common else d_q
        more = (d_keys, d_values)
        if shared is not None:
            d_shared, d_q0 = _shared_backward(q, shared, lift, log_sum, grad, level)
            more, d_q = (*more, *d_shared), d_q + d_q0
        return jax.tree.map(jnp.add, sums, more), d_q

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), (keys, values, *(shared[:2] if shared is not None else ())))
    sums, d_queries = _scan(part, zeros, tuple(_split(x, n) for x in (queries, log_sum, grad, level)))
    d_shared = (*sums[2:], jnp.zeros_like(shared[2])) if shared is not None else None
    found = (_join(d_queries, queries.shape[2]), sums[0], sums[1], jnp.zeros_like(bias), d_shared)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), found, (queries, keys, values, bias, shared))


_attend.defvjp(_forward, _backward)


def _shared_backward(q, shared, lift, log_sum, grad, level):
    """Return (gradients of the shared keys and values, that of the queries, common to all cells)."""
    keys, values, seen = shared
    high, weights = _shared_weights(q, keys, lift)
    rate = jnp.exp(jnp.minimum(high - log_sum, 80.0))  # cells that do not see the peak may lie far below it
    by_gene = jnp.einsum("nv,nhqd->hqdv", seen, rate * jnp.concatenate([grad, level], -1))
    d_values = jnp.einsum("hqv,hqdv->hdv", weights, by_gene[:, :, :-1])
    pull = weights * ((by_gene[:, :, :-1] * values[:, None]).sum(2) - by_gene[:, :, -1])
    return (jnp.einsum("hqv,hqk->hkv", pull, q[0]), d_values), jnp.einsum("hqv,hkv->hqk", pull, keys)[None]


def _shared_weights(q, keys, lift):
    """Return (the largest logit of each query [H, Q, 1], exponentials below it [H, Q, V])."""
    logits = _logits(q, keys[None])[0] + lift
    high = _peak(logits)
    return high, jnp.exp(logits - high)


def _logits(q: Array, keys: Array) -> Array:
    """[N or 1, H, Q, K], [N, H, K, P] -> [N, H, Q, P]; heads of width 1 need no matrix product."""
    if q.shape[-1] == 1:
        return q.astype(jnp.float32) * keys
    equation = "hqk,nhkp->nhqp" if q.shape[0] == 1 else "nhqk,nhkp->nhqp"
    return jnp.einsum(equation, q[0] if q.shape[0] == 1 else q, keys, preferred_element_type=jnp.float32)


def _peak(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return jnp.where(jnp.isfinite(top), top, 0.0)


def _with_ones(values: Array) -> Array:
    return jnp.concatenate([values, jnp.ones_like(values[..., :1, :])], -2)


def _split(x: Array, n: int) -> Array:
    """Cut the queries into n equal chunks, the last padded. [N, H, Q, ...] -> [n, N, H, Q / n, ...]"""
    size = -(-x.shape[2] // n)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, n * size - x.shape[2]), (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], n, size, x.shape[3]), 2, 0)


def _join(x: Array, n_queries: int) -> Array:
    """Undo `_split`."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n_queries]


def _scan(part, start, inputs):
    """Run `jax.lax.scan`, without a loop where there is one chunk."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(part, start, inputs)
    last, out = part(start, jax.tree.map(lambda x: x[0], inputs))
    return last, jax.tree.map(lambda x: x[None], out)


def gelu(x: Array) -> Array:
    """The exact GELU, by the error function."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


def feed_forward(x: Array, weights: tuple[Array, ...], rate: float, key: Array | None, chunk: int) -> Array:
    """Return W2 dropout(gelu(W1 x)) of latents [N, Q, D]; the hidden layer exists a chunk at a time, forth and back.

    The backward pass makes it again where W1 x costs less than keeping it: for widths below `KEPT`.

    Args:
      weights: kernel, bias, kernel, bias.
      rate, key: of the dropout; no key, no dropout.
    """
    w1, b1, w2, b2 = (w.astype(x.dtype) for w in weights)
    n = parts(x.shape[1], jnp.broadcast_to(b1, (x.shape[0], 1, 1, b1.size)), chunk)

    def part(_, inputs):
        x, number = inputs
        hidden = gelu(x[:, 0] @ w1 + b1)
        if key is not None:
            keep = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, hidden.shape)
            hidden = jnp.where(keep, hidden / (1 - rate), 0)
        return None, (hidden @ w2 + b2)[:, None]

    policy = jax.checkpoint_policies.dots_saveable if x.shape[-1] >= KEPT else None
    part = part if n == 1 else jax.checkpoint(part, prevent_cse=False, policy=policy)
    _, out = _scan(part, None, (_split(x[:, None], n), jnp.arange(n)))
    return _join(out, x.shape[1])[:, 0]


# ------------------------------------------------------------------------------------------------------------ modules


class Linear(nn.Module):
    """`x @ kernel + bias` with the initialisers that are given, zeros for the bias if none."""

    fan_in: int
    features: int
    kernel_init: nn.initializers.Initializer = fan_in_uniform
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: str = "float32"

    def setup(self) -> None:
        self.kernel = self.param("kernel", self.kernel_init, (self.fan_in, self.features))
        self.bias = self.param("bias", self.bias_init, (self.features,))

    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., F]
        return x.astype(self.dtype) @ self.kernel.astype(self.dtype) + self.bias.astype(self.dtype)


def torch_linear(fan_in: int, features: int, dtype: str = "float32") -> Linear:
    """Return a linear map with PyTorch's initial distribution."""
    return Linear(fan_in, features, fan_in_uniform, bias_uniform(fan_in), dtype)


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
        kv = self.norm_kv(kv)
        keys, values = (columns(project(kv), self.heads) for project in (self.attention.key, self.attention.value))
        return self.finish(attend(self.queries(q), keys, values, jnp.zeros(kv.shape[:2]), None, self.chunk), q)

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

    @nn.compact
    def __call__(self, x: Array, _: None) -> tuple[Array, None]:  # [N, Q, D]
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"query_dim={width}: must be a multiple of num_heads={self.heads}")
        drop = nn.Dropout(self.dropout, deterministic=not self.train)
        maps = Projections(width, width, self.dtype, name="attention")
        q = columns(maps.query(x), self.heads, (width // self.heads) ** -0.5, False)
        k, v = (columns(project(x), self.heads) for project in (maps.key, maps.value))
        if self.dropout and self.train:
            weights = drop(jax.nn.softmax(_logits(q, k), -1))
            y = jnp.einsum("nhqp,nhdp->nhqd", weights, v)
        else:
            y = attend(q, k, v, jnp.zeros(x.shape[:2]), None, self.chunk)
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

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:  # [N, Q, D]
        stack = nn.scan(
            LatentLayer,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": not self.same_start, "dropout": True},
            length=self.layers,
        )
        options = (self.heads, self.ffn_dim, self.dropout, train, self.chunk, self.dtype)
        return stack(*options, name="layers")(x, None)[0]


class Kernel(nn.Module):
    """Kernel and bias of a linear map that something else applies."""

    fan_in: int
    features: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        kernel = self.param("kernel", fan_in_uniform, (self.fan_in, self.features))
        return kernel, self.param("bias", bias_uniform(self.fan_in), (self.features,))
