"""Batch integration: the scIB metrics of an embedding (Luecken et al., Nature Methods 2022), arrays in, floats out.

All lie between 0 and 1 and are best at 1. Biology: do cells of a type stay together; batch: do batches mix within it.

Conventions are those of the package scib-metrics 0.5 (the tests hold values that it gave), with these differences:
  kBET        neighbours in the embedding among the cells of the type; the package uses diffusion distances on a graph
  isolated F1 of the original scIB, which the package leaves out; over Leiden at the resolutions of `embedding`. It is
              reported and in no summary: those are over the package's ten metrics, as in scEMB's paper, whose five of
              biology are isolated labels (by silhouette), NMI, ARI, silhouette of types and cLISI
  NMI, ARI    of k-means with as many clusters as there are types, started ten times
  pcr         all components: the share of variance that lies between batches, for which no components are needed
  summaries   plain means of what is above, biology counts 0.6; scIB stretches each metric over the methods compared
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
import scipy.stats
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_samples
from sklearn.neighbors import NearestNeighbors

from scfm_jax.tasks.cells import embedding

BIOLOGY = ("isolated_asw", "nmi", "ari", "asw_label", "clisi")
BATCH = ("asw_batch", "ilisi", "kbet", "connectivity", "pcr")
METRICS = {
    "nmi": "NMI (k-means, as many clusters as types)",
    "ari": "ARI (k-means, as many clusters as types)",
    "asw_label": "silhouette of types",
    "isolated_f1": "F1 of isolated types (best cluster; in no mean)",
    "isolated_asw": "silhouette of isolated types",
    "clisi": "cLISI, types among neighbours",
    "asw_batch": "silhouette of batches within types, turned",
    "ilisi": "iLISI, batches among neighbours",
    "kbet": "kBET within types, acceptance",
    "connectivity": "connectivity of types in the neighbour graph",
    "pcr": "variance between batches taken away, of that in PCA-50",
    "biology": "mean of the five metrics of biology",
    "batch": "mean of the metrics of batches",
    "total": "0.6 biology + 0.4 batch",
}
NEIGHBOURS = {"lisi": 90, "connectivity": 15}


def score(
    x: np.ndarray, labels: Sequence, batches: Sequence, before: np.ndarray | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Return the METRICS of an embedding x [n, D]; cells without a label or batch do not count.

    Args:
      labels, batches: [n]. A type counts with five cells or more.
      before: what `pcr` compares with, components of the data before integration [n, D']; x itself, if left out.
      seed: of k-means and Leiden.

    Raises:
      ValueError: fewer than two types or batches, or an embedding that is not finite.
    """
    x, batch = np.asarray(x, np.float64), embedding.encode(batches)
    if x.ndim != 2 or len(x) != len(labels) or not np.isfinite(x).all():
        raise ValueError(f"embedding of shape {x.shape} for {len(labels)} labels: one finite row for each is needed")
    counted = embedding.countable(labels)[0] & (batch >= 0)
    codes, batch = _dense(embedding.encode(labels)[counted]), _dense(batch[counted])
    if codes.max(initial=0) < 1 or batch.max(initial=0) < 1:
        raise ValueError("integration needs two types and two batches, or more, among the cells that count")
    old, x = x[counted] if before is None else np.asarray(before, np.float64)[counted], x[counted]
    scores = cluster_scores(x, codes, seed)
    clusterings = [embedding.leiden(x, resolution=r, seed=seed) for r in embedding.RESOLUTIONS]
    scores |= {
        "asw_label": asw_label(x, codes),
        "isolated_f1": isolated_f1(clusterings, codes, batch),
        "isolated_asw": isolated_asw(x, codes, batch),
        "clisi": clisi(x, codes),
        "asw_batch": asw_batch(x, codes, batch),
        "ilisi": ilisi(x, batch),
        "kbet": kbet(x, codes, batch),
        "connectivity": connectivity(x, codes),
        "pcr": pcr_comparison(old, x, batch),
    }
    return {name: {**scores, **summary(scores)}[name] for name in METRICS}


def summary(scores: Mapping[str, float]) -> dict[str, float]:
    """Return "biology", "batch" and "total" of scores; a metric that is not defined is left out of its mean."""
    biology, batch = (float(np.nanmean([scores[name] for name in names])) for names in (BIOLOGY, BATCH))
    return {"biology": biology, "batch": batch, "total": 0.6 * biology + 0.4 * batch}


def cluster_scores(x: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return "nmi" and "ari" of k-means clusters, as many as there are labels."""
    clusters = KMeans(labels.max() + 1, n_init=10, random_state=seed).fit_predict(x)
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def asw_label(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of the labels, from [-1, 1] to [0, 1]."""
    return float((silhouette_samples(x, labels).mean() + 1) / 2)


def asw_batch(x: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> float:
    """Return 1 - |silhouette of the batches| within each label, the mean over cells, then labels; NaN if none has two.

    A label with one batch, or with a batch for each cell, does not count.
    """
    each = []
    for label in np.unique(labels):
        inside = labels == label
        if 1 < len(np.unique(batch[inside])) < inside.sum():
            each.append(1 - np.abs(silhouette_samples(x[inside], batch[inside])).mean())
    return float(np.mean(each)) if each else float("nan")


def isolated(labels: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Return the labels that are in the fewest batches."""
    pairs = np.unique(np.stack([labels, batch]), axis=1)
    names, number = np.unique(pairs[0], return_counts=True)
    return names[number == number.min()]


def isolated_asw(x: np.ndarray, labels: np.ndarray, batch: np.ndarray) -> float:
    """Return the silhouette, from [-1, 1] to [0, 1], of the cells of each isolated label, the mean over those."""
    width = (silhouette_samples(x, labels) + 1) / 2
    return float(np.mean([width[labels == label].mean() for label in isolated(labels, batch)]))


def isolated_f1(clusterings: Sequence[np.ndarray], labels: np.ndarray, batch: np.ndarray) -> float:
    """Return how well one cluster can be each isolated label: the best F1 over all clusters, the mean over labels."""
    best = []
    for label in isolated(labels, batch):
        inside, highest = labels == label, 0.0
        for clusters in clusterings:
            hits = np.bincount(clusters[inside], minlength=clusters.max() + 1)
            highest = max(highest, float((2 * hits / (np.bincount(clusters) + inside.sum())).max()))
        best.append(highest)
    return float(np.mean(best))


def clisi(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the median number of labels around a cell, 1 for one and 0 for all of them."""
    number = labels.max() + 1
    return float((number - np.median(lisi(x, labels))) / (number - 1))


def ilisi(x: np.ndarray, batch: np.ndarray) -> float:
    """Return the median number of batches around a cell, 0 for one and 1 for all of them."""
    return float((np.median(lisi(x, batch)) - 1) / batch.max())


def lisi(x: np.ndarray, codes: np.ndarray, neighbours: int = NEIGHBOURS["lisi"]) -> np.ndarray:
    """Return the local inverse Simpson index of each cell (Korsunsky et al., Nature Methods 2019). [n]

    The effective number of codes among its neighbours, weighted by exp(-b distance), b such that the weights have the
    perplexity of a third of the neighbours. The cell itself counts among the neighbours and has no weight.
    """
    apart, near = nearest(x, neighbours)
    perplexity = np.floor((apart.shape[1] + 1) / 3)
    weights = _perplex(apart - apart.min(1, keepdims=True), perplexity)
    shares = np.stack([(weights * (codes[near] == code)).sum(1) for code in np.unique(codes)], 1)
    return 1 / (shares**2).sum(1)


def _perplex(apart: np.ndarray, perplexity: float) -> np.ndarray:
    """Return weights exp(-b distance), which sum to 1, of the wanted perplexity, by bisection of log b. [n, k]"""
    low, high = np.full((len(apart), 1), -50.0), np.full((len(apart), 1), 50.0)
    for _ in range(60):
        middle = (low + high) / 2
        logits = -np.exp(middle) * apart
        weights = np.exp(logits)
        total = weights.sum(1, keepdims=True)
        entropy = np.log(total) - (weights * logits).sum(1, keepdims=True) / total
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return weights / total


def nearest(x: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows of the nearest cells, `neighbours` with the cell itself, which is left out. [n, k]"""
    fitted = NearestNeighbors(n_neighbors=min(neighbours, len(x)) - 1).fit(x)
    return fitted.kneighbors()


def kbet(x: np.ndarray, labels: np.ndarray, batch: np.ndarray, alpha: float = 0.05) -> float:
    """Return the share of cells whose neighbours have the batches of their type, the mean over types.

    Büttner et al., Nature Methods 2019. Neighbours are a quarter of the mean number of cells of a batch, 10 at least
    and 70 at most. A type of one batch or of fewer than ten cells does not count; NaN if none does.
    """
    each = []
    for label in np.unique(labels):
        inside = np.flatnonzero(labels == label)
        batches = _dense(batch[inside])
        if len(inside) >= 10 and batches.max() > 0:
            number = int(np.clip(len(inside) / (batches.max() + 1) // 4, 10, 70))
            near = nearest(x[inside], number)[1]
            near = np.concatenate([np.arange(len(inside))[:, None], near], 1)  # the cell is one of its neighbours
            each.append(acceptance(batches[near], batches, alpha))
    return float(np.mean(each)) if each else float("nan")


def acceptance(near: np.ndarray, batch: np.ndarray, alpha: float = 0.05) -> float:
    """Return the share of cells whose neighbours' batches [n, k] pass a chi-squared test against all batches [n]."""
    number = batch.max() + 1
    expected = np.bincount(batch, minlength=number) / len(batch) * near.shape[1]
    observed = np.stack([(near == code).sum(1) for code in range(number)], 1)
    statistic = ((observed - expected) ** 2 / expected).sum(1)
    return float((scipy.stats.chi2.sf(statistic, number - 1) >= alpha).mean())


def connectivity(x: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS["connectivity"]) -> float:
    """Return the share of a label's cells in its largest strongly connected part of the graph, the mean over labels."""
    near = nearest(x, neighbours)[1]
    n, k = near.shape
    graph = sp.csr_matrix((np.ones(n * k), near.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    each = []
    for label in np.unique(labels):
        inside = labels == label
        parts = connected_components(graph[inside][:, inside], connection="strong")[1]
        each.append(np.bincount(parts).max() / inside.sum())
    return float(np.mean(each))


def pcr(x: np.ndarray, batch: np.ndarray) -> float:
    """Return the share of the variance of x that lies between batches: that of its components, regressed on batch."""
    centred = x - x.mean(0)
    between = sum((batch == b).sum() * (centred[batch == b].mean(0) ** 2).sum() for b in np.unique(batch))
    return float(between / max((centred**2).sum(), 1e-300))


def pcr_comparison(before: np.ndarray, after: np.ndarray, batch: np.ndarray) -> float:
    """Return which share of the variance between batches is gone; 0 where there is more of it."""
    old = pcr(before, batch)
    return max(0.0, (old - pcr(after, batch)) / old) if old > 0 else 0.0


def _dense(codes: np.ndarray) -> np.ndarray:
    """Return codes 0, 1, ... without gaps."""
    return np.unique(codes, return_inverse=True)[1]
