"""What scLong knows of each gene by itself: vectors from a table and from the graph, and an output MLP of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from scfm_jax.layers import graph
from scfm_jax.layers.gene_start import start
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
            return self.param(name, lambda key: start(key, vectors, (self.positions, self.width), 0.3, "base_dim"))

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
    """An MLP with one hidden layer for each gene: its representation to its value, in float32.

    `bound`: the second layer starts within 1 / sqrt of its own inputs ("fan_in", as torch has it), or of those
    of the first ("width").
    """

    positions: int
    hidden: int
    bound: str = "width"

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:  # [M, N or R, D], [M, R] -> [M, N or R]
        width = x.shape[-1]

        def weight(name: str, inputs: int, *shape: int) -> Array:
            shape, bound = (self.positions, *shape), inputs**-0.5
            return self.param(name, lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound))

        second = self.hidden if self.bound == "fan_in" else width
        weights = [weight("kernel", width, width, self.hidden), weight("bias", width, self.hidden)]
        weights += [weight("out_kernel", second, self.hidden), weight("out_bias", second)]
        kernel, bias, out, last = weights if rows is None else (w[rows] for w in weights)
        product = "mnd,ndf->mnf" if rows is None else "mnd,mndf->mnf"
        hidden = jax.nn.relu(jnp.einsum(product, x, kernel) + bias)
        return (hidden * out).sum(-1) + last
