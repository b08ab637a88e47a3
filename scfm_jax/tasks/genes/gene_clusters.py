"""Clusters of gene vectors, and whether they mean something: protein interactions and gene sets within them.

Exceiver (Connell et al., LMRL 2022): the vectors of all genes, a nearest-neighbour graph, Leiden with scanpy's defaults
(15 neighbours, resolution 1), and of each cluster whether its proteins interact more than chance has it (39 of 59 did,
by STRING's own test) and which GO terms it is rich in. Here for any model that has a vector for each gene; the graph is
that of `embedding.leiden` (Jaccard weights), on unit vectors, so that neighbours are those of cosine.

Interactions (`interactions`): edges within a cluster against the same number with genes exchanged at random among those
of like number of interactions. Well-studied proteins have many, so a cluster of them earns nothing. Whoever gives the
expression of the genes has them exchanged among those that are alike in both: highly expressed genes share complexes
(ribosome, proteasome) and the eye of whoever studies them, and any model tells them from others.
Gene sets (`sets`): hypergeometric test of each cluster and set among the clustered genes, Benjamini and Hochberg's
false discovery rate over all of them; genes are taken for independent, as ever in such tests.
Arrays in, arrays out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from scipy import sparse, stats

from scfm_jax import models
from scfm_jax.tasks.cells.embedding import leiden

ALIKE = 50
"""Genes that count as alike in number of interactions."""


def kinds(run: Any) -> list[str]:
    """Return the kinds of gene vectors that a run has without any cell: "table", "graph"."""
    table = hasattr(run.module, "gene_vectors") and run.module.gene_vectors(run.variables, 1) is not None
    graph = hasattr(run.module, "graph_vectors") and run.model.graph
    return ["table"] * table + ["graph"] * graph


def vectors(
    model: str,
    variables: Mapping[str, Any],
    n_genes: int,
    kind: str = "table",
    network: nn.Module | None = None,
    constants: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Return the model's gene vectors, float32. [V, D]

    Args:
      kind: "table", or "graph": the output of its graph convolution, which needs the network and its constants.

    Raises:
      ValueError: the model has none of this kind.
    """
    module = models.get(model)
    if kind == "table":
        values = module.gene_vectors(variables, n_genes) if hasattr(module, "gene_vectors") else None
    else:
        values = module.graph_vectors(network, variables, constants) if hasattr(module, "graph_vectors") else None
    if values is None:
        what = "table of gene vectors" if kind == "table" else "graph convolution"
        raise ValueError(
            f"model {model} has no {what}; give an input, a file over whose cells its gene representations are averaged"
        )
    return np.asarray(values, np.float32)


def clusters(x: np.ndarray, *, neighbours: int = 15, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Return Leiden clusters of gene vectors by cosine, numbered from the largest. [K, D] -> [K]"""
    if len(x) <= neighbours or not np.isfinite(x).all():
        raise ValueError(f"{len(x)} gene vectors: more than {neighbours}, all of them finite, are needed")
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    labels = leiden(unit, resolution=resolution, seed=seed, k=neighbours)
    order = np.argsort(-np.bincount(labels), kind="stable")
    return np.argsort(order)[labels]


def alike(*values: np.ndarray, size: int = ALIKE) -> np.ndarray:
    """Return bins of about `size` genes that are alike in all of `values`, each cut where genes are equal in number.

    With two values the bins of the first are cut by the second. [K] each -> int [K]
    """
    n = len(values[0])
    bins = np.zeros(n, np.int64)
    parts = max(1, round((n / size) ** (1 / len(values))))
    for value in values:
        finer = np.zeros(n, np.int64)
        for b in np.unique(bins):
            inside = np.flatnonzero(bins == b)
            ranks = stats.rankdata(value[inside], "min") - 1
            finer[inside] = b * parts + np.floor(ranks * parts / len(inside)).astype(int)
        bins = np.unique(finer, return_inverse=True)[1]
    return bins


def interactions(
    cluster: np.ndarray, source: np.ndarray, target: np.ndarray, bins: np.ndarray, *, draws: int = 1000, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return the edges within each cluster beside those of `draws` exchanges of genes within `bins`.

    Args:
      cluster: of each gene, 0 ... K - 1. [n]
      source, target: ends of the edges, places of genes; direction and repetition do not count. [E]

    Returns:
      edges; expected, their mean under the null; low, high, its 95 %; p, one-sided, (1 + draws with as many) /
      (1 + draws); q, the false discovery rate over clusters of at least three genes (p and q are 1 for others); all
      [K]. total: edges within clusters, total_expected, total_p, scalars.
    """
    ends = np.unique(np.sort(np.stack([source, target]), axis=0), axis=1)
    source, target = ends[:, ends[0] != ends[1]]
    number = int(cluster.max()) + 1

    def within(labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels[source][labels[source] == labels[target]], minlength=number)

    observed = within(cluster)
    rng, order = np.random.default_rng(seed), np.argsort(bins, kind="stable")
    null = np.empty((draws, number), np.int64)
    for i in range(draws):
        drawn = np.empty_like(cluster)
        drawn[order] = cluster[np.lexsort((rng.random(len(bins)), bins))]  # within each bin in random order
        null[i] = within(drawn)
    p = (1 + (null >= observed).sum(0)) / (1 + draws)
    tested = np.bincount(cluster, minlength=number) >= 3
    q = np.ones(number)
    q[tested] = false_discovery(p[tested])
    low, high = np.quantile(null, (0.025, 0.975), axis=0)
    return {
        "edges": observed,
        "expected": null.mean(0),
        "low": low,
        "high": high,
        "p": np.where(tested, p, 1.0),
        "q": q,
        "total": observed.sum(),
        "total_expected": null.sum(1).mean(),
        "total_p": (1 + (null.sum(1) >= observed.sum()).sum()) / (1 + draws),
    }


def sets(cluster: np.ndarray, member: sparse.csr_matrix, *, least: int = 5, most: int = 500) -> dict[str, np.ndarray]:
    """Return every test of a cluster against a gene set that share a gene, the smallest p first.

    Args:
      cluster: of each gene. [n] member: which genes are in which set, bool. [S, n]
      least, most: of the clustered genes must be in a set for it to be tested.

    Returns:
      cluster, set, overlap, size (of the set), expected, p (hypergeometric, one-sided) and q, all [tests]. Pairs that
      share nothing count as tests of p = 1.
    """
    size = np.asarray(member.sum(1)).ravel()
    kept = np.flatnonzero((size >= least) & (size <= most))
    number, n = int(cluster.max()) + 1, len(cluster)
    of = sparse.csr_matrix((np.ones(n), (np.arange(n), cluster)), (n, number))
    overlap = sparse.coo_matrix(member[kept].astype(float) @ of)
    hits, which, where = overlap.data.astype(int), kept[overlap.row], overlap.col
    large = np.bincount(cluster, minlength=number)
    p = stats.hypergeom.sf(hits - 1, n, size[which], large[where])
    q = false_discovery(p, number * len(kept))
    order = np.argsort(p, kind="stable")
    table = {"cluster": where, "set": which, "overlap": hits, "size": size[which]}
    table |= {"expected": size[which] * large[where] / n, "p": p, "q": q}
    return {name: values[order] for name, values in table.items()}


def false_discovery(p: np.ndarray, tests: int | None = None) -> np.ndarray:
    """Return Benjamini and Hochberg's q for each p; `tests` counts also those of p = 1 that are left out. [n]"""
    p = np.asarray(p, float)
    order = np.argsort(p, kind="stable")
    raised = p[order] * (tests or len(p)) / np.arange(1, len(p) + 1)
    q = np.empty_like(p)
    q[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1)
    return q
