"""How good an embedding is: cell types among the nearest neighbours, and clusters against labels.

`score` is arrays in, floats out. Every score of a model belongs beside its two baselines: `pca`, fifty principal
components of the log-normalised highly variable genes, and the same scores of a randomly initialised twin of the model.

Leiden's resolution is a choice: `nmi` and `ari` are at resolution 1, chosen without labels; `nmi_best` and `ari_best`
take, each for itself, the best of 0.1, 0.2, ..., 1.4 *by the labels*, as papers of the field report it (CellPLM, ICLR
2024), and are therefore optimistic.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from scfm_jax.tasks.cells.labels import encode
from scfm_jax.tasks.expression import log_normalised

LEAST_SPREAD = 1e-4
"""Standard deviation over cells that some dimension of an embedding has, if it tells cells apart."""
VOID = "the embedding of {} is void: it is the same for all cells but for rounding errors, and its scores say nothing"
RESOLUTIONS = tuple(round(0.1 * i, 1) for i in range(1, 15))
METRICS = {
    "accuracy": "5-NN accuracy",
    "f1": "5-NN macro-F1",
    "nmi": "NMI (Leiden, resolution 1)",
    "ari": "ARI (Leiden, resolution 1)",
    "nmi_best": "NMI (best resolution by labels)",
    "ari_best": "ARI (best resolution by labels)",
    "batch_accuracy": "5-NN accuracy of the batch (lower: better mixed)",
}


def score(
    embedding: np.ndarray, labels: Sequence, batch: Sequence | None = None, *, seed: int = 0, folds: int = 5
) -> dict[str, float]:
    """Score an embedding [n, D] against labels [n]; cells without a label (see `encode`) do not count.

    Args:
      batch: if given, also `batch_accuracy`: how well the neighbours tell the batch. [n]
      seed: of the folds and of Leiden.
      folds: of the cross-validation; types with fewer cells than that do not count.

    Returns:
      The METRICS, and `cells` and `types`: how many counted.

    Raises:
      ValueError: the lengths differ, the embedding is not finite, or fewer than two types have enough cells.
    """
    embedding = np.asarray(embedding, np.float32)
    if embedding.ndim != 2 or len(embedding) != len(labels):
        raise ValueError(f"embedding of shape {embedding.shape} and {len(labels)} labels: one row per label is needed")
    if not np.isfinite(embedding).all():
        raise ValueError("the embedding has values that are not finite: it cannot be scored")
    counted, y = countable(labels, folds)
    x = embedding[counted]
    scores = {"cells": len(y), "types": len(np.unique(y)), **knn_scores(x, y, seed=seed, folds=folds)}
    clusterings = {r: leiden(x, resolution=r, seed=seed) for r in RESOLUTIONS}
    for name, metric in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):
        scores[name] = float(metric(y, clusterings[1.0]))
        scores[f"{name}_best"] = max(float(metric(y, clusters)) for clusters in clusterings.values())
    if batch is not None:
        frequent, b = countable(np.asarray(batch, object)[counted], folds, "batches")
        scores["batch_accuracy"] = knn_scores(x[frequent], b, seed=seed, folds=folds)["accuracy"]
    return scores


def void(embedding: np.ndarray) -> bool:
    """Return whether cells have the same embedding but for rounding errors, so that scores of it say nothing. [n, D]

    So has a random twin that sums over what a LayerNorm has centred (scLong's `cells="outsiders"`).
    """
    return bool(np.asarray(embedding, np.float64).std(0).max(initial=0) < LEAST_SPREAD)


def countable(labels: Sequence, folds: int = 5, name: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Return which cells count, bool [n], and their label codes; ValueError if fewer than two labels are left.

    A label counts with at least `folds` cells. `name`: of the labels, for the error.
    """
    codes = encode(labels)
    counted = np.isin(codes, np.flatnonzero(np.bincount(codes[codes >= 0], minlength=1) >= folds))
    if len(np.unique(codes[counted])) < 2:
        values, number = np.unique(
            [str(x) for x, code in zip(labels, codes, strict=True) if code >= 0], return_counts=True
        )
        largest = [f"{values[i]} ({number[i]})" for i in np.argsort(-number, kind="stable")[:3]]
        few = f"fewer than two of them have {folds} cells or more, so there is nothing to score by"
        raise ValueError(f"{name}: {few}; there are {', '.join(largest) or 'none'}{', ...' if len(values) > 3 else ''}")
    return counted, codes[counted]


def knn_scores(x: np.ndarray, y: np.ndarray, *, seed: int = 0, folds: int = 5, k: int = 5) -> dict[str, float]:
    """Return accuracy and macro-F1 of a k-nearest-neighbour vote, cross-validated in stratified, seeded folds."""
    predicted = np.empty_like(y)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        predicted[test] = KNeighborsClassifier(k).fit(x[train], y[train]).predict(x[test])
    return {"accuracy": float((predicted == y).mean()), "f1": float(f1_score(y, predicted, average="macro"))}


def leiden(x: np.ndarray, *, resolution: float = 1.0, seed: int = 0, k: int = 15) -> np.ndarray:
    """Return Leiden clusters (by modularity) of the k-nearest-neighbour graph of x [n, D], as int [n].

    Edges are weighted by the Jaccard index of the two cells' neighbourhoods (PhenoGraph; Levine et al., Cell 2015).
    """
    from graspologic_native import leiden_csr  # here: only clusters need it

    n = len(x)
    k = min(k, n - 1)
    near = sp.csr_matrix(NearestNeighbors(n_neighbors=k).fit(x).kneighbors_graph()) + sp.identity(n, format="csr")
    shared = sp.csr_matrix((near @ near.T).multiply((near + near.T) > 0))
    shared.setdiag(0)
    shared.eliminate_zeros()
    shared.sort_indices()
    weights = shared.data / (2 * (k + 1) - shared.data)
    graph = shared.indptr.astype(np.int64), shared.indices.astype(np.int32), weights.astype(np.float64), n
    _, clusters = leiden_csr(*graph, resolution=resolution, iterations=2, seed=seed)
    return np.array([clusters[cell] for cell in range(n)], np.int64)


def pca(counts: sp.csr_matrix, *, components: int = 50, genes: int = 2000, seed: int = 0) -> np.ndarray:
    """Return the first principal components [n, components] of the log-normalised variable genes of raw counts."""
    normal = log_normalised(counts, dtype=np.float32)
    x = normal[:, variable_genes(normal, genes)].toarray()
    components = min(components, *(n - 1 for n in x.shape))
    return PCA(components, random_state=seed, svd_solver="randomized").fit_transform(x).astype(np.float32)


def variable_genes(normal: sp.csr_matrix, n: int, bins: int = 20) -> np.ndarray:
    """Return the columns, ascending, of the n most variable genes of log1p-normalised values [cells, genes].

    Dispersion (variance over mean of the values before the logarithm) standardised among genes of like mean: the
    "seurat" flavour of scanpy and of Satija et al., Nature Biotechnology 2015.
    """
    raw = normal.expm1()
    mean = np.asarray(raw.mean(0)).ravel()
    variance = (np.asarray(raw.multiply(raw).mean(0)).ravel() - mean**2) * normal.shape[0] / max(normal.shape[0] - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = np.where((mean > 0) & (variance > 0), np.log(variance / mean), np.nan)
    level = np.log1p(mean)
    edges = np.linspace(level.min(), level.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, level, side="left") - 1, 0, bins - 1)
    standard = np.full(len(mean), -np.inf)
    for b in range(bins):
        inside = np.flatnonzero((place == b) & np.isfinite(dispersion))
        if len(inside) == 1:
            standard[inside] = 1.0
        elif len(inside):
            d = dispersion[inside]
            standard[inside] = (d - d.mean()) / (d.std(ddof=1) or 1.0)
    return np.sort(np.argsort(-standard, kind="stable")[:n])
