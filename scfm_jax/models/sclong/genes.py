"""What scLong knows of each gene by itself: vectors from a table and from the graph, and an output MLP of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from scfm_jax.layers import graph
from scfm_jax.types import Array


class GeneVectors(nn.Module):
    """What stands for each gene's identity: a table, a graph convolution of another table, or the sum of both."""

    positions: int
    width: int
    layers: int
    table: bool

    @nn.compact
    def __call__(self, vectors: Array | None, network: jraph.GraphsTuple | None) -> Array:  # [V, D] -> [N, D]
        def table(name: str) -> Array:
            return self.param(name, lambda key: start(key, vectors, (self.positions, self.width)))

        if not self.layers:
            return table("genes")
        if network is None:
            raise ValueError("model.graph=True needs a graph: give config.data.graph, or set model.graph=False")
        x = table("graph_genes")
        for i in range(self.layers):
            x = graph.GraphConvolution(self.width, name=f"graph_{i}")(jax.nn.relu(x) if i else x, network)
        self.sow("intermediates", "graph", x)
        if not self.table:
            return x
        genes = table("genes")
        self.sow("intermediates", "table", genes)
        return x + genes


class GeneHead(nn.Module):
    """An MLP with one hidden layer for each gene: its representation to its value, in float32."""

    positions: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:  # [M, N or R, D], [M, R] -> [M, N or R]
        bound = x.shape[-1] ** -0.5
        draw = lambda *shape: lambda key: jax.random.uniform(key, (self.positions, *shape), minval=-bound, maxval=bound)  # noqa: E731
        weights = [self.param("kernel", draw(x.shape[-1], self.hidden)), self.param("bias", draw(self.hidden))]
        weights += [self.param("out_kernel", draw(self.hidden)), self.param("out_bias", draw())]
        kernel, bias, out, last = weights if rows is None else (w[rows] for w in weights)
        product = "mnd,ndf->mnf" if rows is None else "mnd,mndf->mnf"
        hidden = jax.nn.relu(jnp.einsum(product, x, kernel) + bias)
        return (hidden * out).sum(-1) + last


def start(key: Array, vectors: Array | None, shape: tuple[int, int]) -> Array:
    """Return the first value of a gene table: the `vectors` [V, D] that a user gave,
    rows of zeros and, without any, all rows drawn at random; PAD zero. [N, D]"""
    drawn = 0.3 * jax.random.normal(key, shape)
    if vectors is None:
        return drawn
    if vectors.shape[1] != shape[1]:
        raise ValueError(f"gene vectors of width {vectors.shape[1]}: model.base_dim={shape[1]} must be the same")
    nonzero = (vectors != 0).any(1, keepdims=True)
    rows = jnp.where(nonzero, vectors, drawn[: len(vectors)])
    return jnp.pad(rows, ((0, shape[0] - len(vectors)), (0, 0)))
