"""Layers on a fixed graph of genes: simple graph convolution, GCN, and graph attention, as sums over incoming edges.

A graph is a `jraph.GraphsTuple` whose `edges` are weights [E]; `build` sorts the edges by target and normalises once on
the host, so a step only gathers, multiplies and adds. With it, one layer is three of the literature:

  SGConv (Wu et al., arXiv 1902.07153; scLong's code)   build(weighted=True),  GraphConvolution(hops=K)
  GCN (Kipf and Welling, arXiv 1609.02907; scLong's paper)   build(weighted=False, self_loops=True),  GraphConvolution()
  GAT (Velickovic et al., arXiv 1710.10903; scEMB)   build(normalise=False, self_loops=True),  GraphAttention()

Rows of nodes are only ever gathered, scaled and added, so an array of nodes that is split over devices along its width
stays split. `aggregate` goes through the edges a block at a time: the [E, D] messages, 310 MB for scLong's graph, never
exist, and on a CPU the layer takes a third of the time of one segment sum.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from scfm_jax.layers.linear import Dense
from scfm_jax.types import Array

EDGES_AT_ONCE = 1 << 14
_NOWHERE = np.iinfo(np.int32).max  # the target of a padding edge: beyond every node, so nothing is added anywhere


def build(
    source: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    n_nodes: int,
    weighted: bool = True,
    self_loops: bool = False,
    normalise: bool = True,
    pad_to: int | None = None,
) -> jraph.GraphsTuple:
    """Return the graph of edges source -> target as numpy arrays, sorted by target.

    Args:
      source, target: nodes, 0 to n_nodes - 1. [E]
      weight: of each edge, not negative; 1 where left out. [E]
      weighted: False takes every weight for 1.
      self_loops: add an edge of weight 1 from every node that has none to itself.
      normalise: divide by sqrt(degree[source] * degree[target]), a degree being the sum of the weights that come in;
        an edge whose source has no incoming weight gets 0.
      pad_to: number of edges to fill up to with edges that lead nowhere.

    Raises:
      ValueError: a node or weight out of range, or more edges than `pad_to`.
    """
    source, target = (np.asarray(nodes, np.int64) for nodes in (source, target))
    weight = np.ones(len(source)) if weight is None or not weighted else np.asarray(weight, np.float64)
    _check(source, target, weight, n_nodes)
    if self_loops:
        alone = np.setdiff1d(np.arange(n_nodes), source[source == target])
        source, target = np.append(source, alone), np.append(target, alone)
        weight = np.append(weight, np.ones(len(alone)))
    if normalise:
        degree = np.bincount(target, weight, n_nodes)
        scale = np.where(degree > 0, degree, np.inf) ** -0.5
        weight = scale[source] * weight * scale[target]
    order = np.lexsort((source, target))
    padding = 0 if pad_to is None else pad_to - len(source)
    if padding < 0:
        raise ValueError(f"{len(source):,} edges do not fit pad_to={pad_to:,}: raise it")
    return _tuple(
        np.pad(weight[order], (0, padding)).astype(np.float32),
        np.pad(source[order], (0, padding)).astype(np.int32),
        np.pad(target[order], (0, padding), constant_values=_NOWHERE).astype(np.int32),
        n_nodes,
    )


def _check(source: np.ndarray, target: np.ndarray, weight: np.ndarray, n_nodes: int) -> None:
    if not source.shape == target.shape == weight.shape or source.ndim != 1:
        raise ValueError(
            f"edges of {source.shape} sources, {target.shape} targets, {weight.shape} weights: one of each"
        )
    ends = np.concatenate([source, target])
    if len(ends) and not (ends.min() >= 0 and ends.max() < n_nodes):
        raise ValueError(
            f"edges between nodes {ends.min()} to {ends.max()}: a graph of {n_nodes:,} has 0 to {n_nodes - 1}"
        )
    if not (weight >= 0).all() or not np.isfinite(weight).all():
        raise ValueError("edge weights are finite and not negative: their square roots are taken")


def constants(graph: jraph.GraphsTuple) -> dict[str, Array]:
    """Return the arrays of `graph` by name, as they are kept in the constants of a training state."""
    return {
        "graph_source": graph.senders,
        "graph_target": graph.receivers,
        "graph_weight": graph.edges,
        "graph_nodes": graph.n_node,
    }


def from_constants(constants: Mapping[str, Array]) -> jraph.GraphsTuple:
    """Return the graph whose arrays `constants` holds, other names among them or not."""
    weight, source, target, n_nodes = (constants[f"graph_{name}"] for name in ("weight", "source", "target", "nodes"))
    return _tuple(weight, source, target, n_nodes)


def _tuple(weight: Array, source: Array, target: Array, n_nodes: int | Array) -> jraph.GraphsTuple:
    return jraph.GraphsTuple(
        nodes=None,
        edges=weight,
        senders=source,
        receivers=target,
        globals=None,
        n_node=np.array([n_nodes], np.int32) if isinstance(n_nodes, int) else n_nodes,
        n_edge=np.array([len(weight)], np.int32),
    )


def aggregate(x: Array, weight: Array, graph: jraph.GraphsTuple, block: int = EDGES_AT_ONCE) -> Array:
    """Return the weighted sum of the sources of each node's incoming edges, in float32. [N, ...] -> [N, ...]

    Args:
      x: rows of nodes. [N, D], or [N, H, K] with a weight per head.
      weight: of the edges of `graph`, in its order. [E] or [E, H]
      block: edges at a time; memory grows with it.
    """
    x, n_edges = jnp.asarray(x), weight.shape[0]
    block = min(block, max(n_edges, 1))
    n_blocks = -(-n_edges // block)

    def blocks(edges: Array, fill: int = 0) -> Array:
        padding = [(0, n_blocks * block - n_edges)] + [(0, 0)] * (edges.ndim - 1)
        return jnp.pad(edges, padding, constant_values=fill).reshape(n_blocks, block, *edges.shape[1:])

    @jax.checkpoint  # the rows are gathered again for the gradient of the weights: keeping them is what fills memory
    def add(total: Array, edges: tuple[Array, Array, Array]) -> tuple[Array, None]:
        source, target, weight = edges
        weight = weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))
        return total.at[target].add(x[source] * weight, mode="drop", indices_are_sorted=True), None

    edges = blocks(graph.senders), blocks(graph.receivers, _NOWHERE), blocks(weight)
    return jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32), edges)[0]


class GraphConvolution(nn.Module):
    """`S^hops X W + b`, S being the normalised matrix of the graph: SGConv, and with one hop the layer of a GCN.

    The bias is added after the sum over neighbours, so a node without edges gets the bias alone.
    """

    features: int
    hops: int = 1
    use_bias: bool = True
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, graph: jraph.GraphsTuple) -> Array:  # [N, D] -> [N, F]
        for _ in range(self.hops):
            x = aggregate(x, graph.edges, graph)
        return Dense(self.features, self.use_bias, self.dtype, name="linear")(x)


class GraphAttention(nn.Module):
    """Attention of each node over its incoming edges: softmax of LeakyReLU(source score + target score), per head.

    Edge weights are not looked at. A node without edges gets the bias alone.

    Attributes:
      features: width of a head. concat: heads side by side [N, H * K], else their mean [N, K].
      dropout: share of attention weights that is dropped in training.
    """

    features: int
    heads: int = 1
    concat: bool = True
    slope: float = 0.2
    dropout: float = 0.0
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Array, graph: jraph.GraphsTuple, train: bool = False
    ) -> Array:  # [N, D] -> [N, H * K] or [N, K]
        n_nodes, shape = x.shape[0], (self.heads, self.features)
        glorot = nn.initializers.glorot_uniform()
        kernel = self.param("kernel", glorot, (x.shape[-1], self.heads * self.features))
        rows = (x.astype(self.dtype) @ kernel.astype(self.dtype)).astype(jnp.float32).reshape(n_nodes, *shape)
        score = {side: jnp.einsum("nhk,hk->nh", rows, self.param(side, glorot, shape)) for side in ("source", "target")}
        target = jnp.minimum(graph.receivers, n_nodes)  # padding edges share a segment of their own
        logits = score["source"][graph.senders] + score["target"][jnp.minimum(target, n_nodes - 1)]
        logits = nn.leaky_relu(logits, self.slope)  # [E, H]
        weight = jraph.segment_softmax(logits, target, n_nodes + 1, indices_are_sorted=True)
        weight = nn.Dropout(self.dropout, deterministic=not train)(weight)
        self.sow("intermediates", "attention", weight)
        y = aggregate(rows, weight, graph)
        y = y.reshape(n_nodes, -1) if self.concat else y.mean(1)
        return y + self.param("bias", nn.initializers.zeros, (y.shape[-1],))
