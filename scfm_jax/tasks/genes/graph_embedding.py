"""Gene vectors of a gene graph, by graph attention that learns to predict its edges: scEMB's first step (Fig. 5).

Three layers of graph attention (Hsieh et al., bioRxiv 2024): two of 4 heads of 16 side by side, each followed by ELU,
the last of 1 head of 64. The vectors are trained so that the dot product of two genes says whether an edge joins them:
binary cross entropy, one pair without an edge for every edge. The paper names no node features: here each gene starts
from a learnt vector, or from one that is given, such as a model's. Directions and weights of edges do not count.

Edges are cut in three: those that messages pass along and that are trained on, those that choose the epoch, those that
are scored (`cut`). Degrees alone tell edges from random pairs, so scores are also taken against pairs of like degree.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from scfm_jax.layers import graph as layer
from scfm_jax.tasks import heads
from scfm_jax.types import Array

TRAINING = heads.Training({"learning_rate": 0.01}, epochs=100, patience=10, rows=1 << 16)
HELD_OUT, VALIDATION = 0.1, 0.05
"""Shares of the edges that are scored, and that choose the epoch."""
DRAWN = 8
"""Pairs without an edge that are drawn for each edge; of these a training step takes one at random."""


class GraphGenes(nn.Module):
    """The network. A batch: pair [B, 2], other [B, K, 2]; shared: graph, and features [N, F] if `n_genes` is None.

    Attributes:
      n_genes: N, the genes that start from a learnt vector of width `features`.
      layers, heads, width: graph attention; the last layer is one head of `features`.
    """

    n_genes: int | None
    features: int = 64
    layers: int = 3
    heads: int = 4
    width: int = 16

    def setup(self) -> None:
        """Make the layers."""
        if self.n_genes is not None:
            self.table = self.param("table", nn.initializers.normal(1.0), (self.n_genes, self.features))
        self.attention = [layer.GraphAttention(self.width, self.heads) for _ in range(self.layers - 1)]
        self.last = layer.GraphAttention(self.features)

    def vectors(self, shared: Mapping[str, Any]) -> Array:
        """Return the vector of every gene. [N, D]"""
        x = shared["features"] if self.n_genes is None else self.table
        for attend in self.attention:
            x = nn.elu(attend(x, shared["graph"]))
        return self.last(x, shared["graph"])

    def __call__(self, batch: Mapping[str, Array], shared: Mapping[str, Any], train: bool = False) -> Array:
        """Return the dot products of each pair and of a pair without an edge. [B, 2]"""
        z = self.vectors(shared)
        other = batch["other"][:, 0]
        if train:
            drawn = jax.random.randint(self.make_rng("noise"), (len(other),), 0, batch["other"].shape[1])
            other = batch["other"][jnp.arange(len(other)), drawn]
        return jnp.stack([(z[pair[:, 0]] * z[pair[:, 1]]).sum(-1) for pair in (batch["pair"], other)], -1)


def loss(logits: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
    """Return the binary cross entropy of edges (first column) and of pairs without one (second)."""
    return (nn.softplus(-logits[:, 0]) + nn.softplus(logits[:, 1])).mean() / 2


class Cut(NamedTuple):
    """Pairs of genes, first before second: edges to learn from, to choose the epoch by, to score. [E, 2] each"""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def all(self) -> np.ndarray:
        """Every edge. [E, 2]"""
        return np.concatenate(self)


def cut(source: np.ndarray, target: np.ndarray, seed: int = 0) -> Cut:
    """Return the edges of a graph cut in three at random; ValueError where there are fewer than 20.

    [E], [E]; direction and repetition do not count, nor edges of a gene to itself.
    """
    ends = np.stack([np.minimum(source, target), np.maximum(source, target)], 1)
    pairs = np.unique(ends[ends[:, 0] != ends[:, 1]], axis=0)
    if len(pairs) < 20:
        raise ValueError(f"{len(pairs)} edges between two genes: too few to learn from and hold some out")
    pairs = pairs[np.random.default_rng(seed).permutation(len(pairs))]
    scored, chosen = (max(1, round(share * len(pairs))) for share in (HELD_OUT, VALIDATION))
    return Cut(pairs[scored + chosen :], pairs[scored : scored + chosen], pairs[:scored])


def strangers(pairs: np.ndarray, n_genes: int, number: int, seed: int, like: np.ndarray | None = None) -> np.ndarray:
    """Return random pairs of genes with an edge that no edge joins. [number, 2]

    Args:
      pairs: all edges. [E, 2]
      like: edges whose ends are joined anew at random, so that genes come as often as in them; any gene, if left out.
    """
    rng, nodes = np.random.default_rng(seed), np.unique(pairs)
    edges = np.sort(pairs[:, 0].astype(np.int64) * n_genes + pairs[:, 1])
    drawn: list[np.ndarray] = []
    for _ in range(100):
        missing = number - sum(map(len, drawn))
        if missing <= 0:
            return np.concatenate(drawn)[:number]
        pool = nodes if like is None else like.ravel()
        ends = np.sort(rng.choice(pool, (2 * missing, 2)), axis=1)
        key = ends[:, 0].astype(np.int64) * n_genes + ends[:, 1]
        place = np.minimum(np.searchsorted(edges, key), len(edges) - 1)
        drawn.append(ends[(edges[place] != key) & (ends[:, 0] != ends[:, 1])])
    raise ValueError("hardly a pair of genes is without an edge: such a graph has nothing to learn; use a larger cut")


def message_graph(pairs: np.ndarray, n_genes: int) -> jraph.GraphsTuple:
    """Return the graph of edges in both directions and of each gene to itself. [E, 2]"""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    return layer.build(both[:, 0], both[:, 1], n_nodes=n_genes, normalise=False, self_loops=True)


def fit(
    edges: Cut,
    n_genes: int,
    features: np.ndarray | None = None,
    *,
    seed: int = 0,
    training: heads.Training = TRAINING,
) -> tuple[GraphGenes, heads.Fitted]:
    """Return the network and its weights after the epoch that was best on the validation edges.

    Args:
      features: of each gene, standardised; learnt ones, if left out. [N, F]
    """
    network, shared = GraphGenes(n_genes if features is None else None), _shared(edges.train, n_genes, features)
    train, validation = (_examples(part, edges.all, n_genes, seed + i) for i, part in enumerate(edges[:2]))
    return network, heads.fit(heads.Head(network, loss), train, validation, shared, training, seed)


def _shared(pairs: np.ndarray, n_genes: int, features: np.ndarray | None) -> dict[str, Any]:
    shared: dict[str, Any] = {"graph": message_graph(pairs, n_genes)}
    return shared if features is None else shared | {"features": np.asarray(features, np.float32)}


def _examples(part: np.ndarray, every: np.ndarray, n_genes: int, seed: int) -> heads.Examples:
    other = strangers(every, n_genes, DRAWN * len(part), seed).reshape(len(part), DRAWN, 2)
    return heads.Examples.of(pair=part.astype(np.int32), other=other.astype(np.int32))


def vectors(
    network: GraphGenes,
    variables: Mapping[str, Any],
    pairs: np.ndarray,
    n_genes: int,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """Return the vectors of all genes, messages along `pairs` [E, 2]. [N, D]"""
    apply = jax.jit(lambda variables, shared: network.apply(variables, shared, method="vectors"))
    return np.asarray(apply(variables, _shared(pairs, n_genes, features)))


def untrained(edges: Cut, n_genes: int, features: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Return the vectors of a network of random weights, messages along the training edges. [N, D]"""
    network = GraphGenes(n_genes if features is None else None)
    shared = _shared(edges.train, n_genes, features)
    variables = network.init(jax.random.key(seed), shared, method="vectors")
    return vectors(network, variables, edges.train, n_genes, features)


def products(z: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the dot product of each pair. [N, D], [E, 2] -> [E]"""
    return (z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1)


def neighbours(edges: Cut, n_genes: int) -> dict[str, Any]:
    """Return {baseline: pairs [E, 2] -> their scores [E]} that look at the training edges alone."""
    a, b = edges.train.T
    matrix = sparse.coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), (n_genes, n_genes)).tocsr()
    degree = np.asarray(matrix.sum(1)).ravel()
    return {
        "common neighbours": lambda pairs: np.asarray(matrix[pairs[:, 0]].multiply(matrix[pairs[:, 1]]).sum(1)).ravel(),
        "product of degrees": lambda pairs: degree[pairs[:, 0]] * degree[pairs[:, 1]],
    }


def score(edge: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return auroc and ap (average precision) of scores of edges [E] against those of pairs without one [M]."""
    truth, values = np.repeat([1, 0], [len(edge), len(other)]), np.concatenate([edge, other])
    return {"auroc": float(roc_auc_score(truth, values)), "ap": float(average_precision_score(truth, values))}
