"""What annotation by a model is to be compared with: the most common type, logistic regression, nearest neighbours.

Each takes counts of labelled and of new cells over the same genes, and returns the share of each type for each new
cell. Genes are the most variable of the labelled cells among those that the new ones measured too.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scfm_jax.tasks.cells.embedding import variable_genes
from scfm_jax.tasks.expression import log_normalised

GENES = 2000
NEIGHBOURS = 5
"""Cells that vote; so many labelled ones there must be."""


def majority(known: sp.csr_matrix, y: np.ndarray, new: sp.csr_matrix, n_classes: int, seed: int) -> np.ndarray:
    """Return how common each type is among the labelled cells, for every new cell. [m, classes]"""
    del known, seed
    return np.tile(np.bincount(y, minlength=n_classes) / len(y), (new.shape[0], 1))


def logistic_regression(
    known: sp.csr_matrix, y: np.ndarray, new: sp.csr_matrix, n_classes: int, seed: int
) -> np.ndarray:
    """Return the shares of a logistic regression of log1p counts per 10,000, with an L2 penalty of 1. [m, classes]"""
    x, z = variable(known, new)
    return _shares(LogisticRegression(max_iter=300, random_state=seed).fit(x, y), z, n_classes)


def neighbours(known: sp.csr_matrix, y: np.ndarray, new: sp.csr_matrix, n_classes: int, seed: int) -> np.ndarray:
    """Return the votes of the NEIGHBOURS nearest labelled cells in 50 principal components of these. [m, classes]"""
    x, z = variable(known, new)
    pca = PCA(min(50, *(n - 1 for n in x.shape)), random_state=seed, svd_solver="randomized").fit(x)
    return _shares(KNeighborsClassifier(NEIGHBOURS).fit(pca.transform(x), y), pca.transform(z), n_classes)


BASELINES: dict[str, Callable[..., np.ndarray]] = {
    "most common type": majority,
    "logistic regression": logistic_regression,
    "5-NN on PCA-50": neighbours,
}


def variable(known: sp.csr_matrix, new: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return log1p counts per 10,000 of the variable genes of labelled [n, g] and new cells [m, g]."""
    x, z = (log_normalised(counts, dtype=np.float32) for counts in (known, new))
    both = np.flatnonzero((np.asarray(x.sum(0)).ravel() > 0) & (np.asarray(z.sum(0)).ravel() > 0))
    if not len(both):
        raise ValueError("labelled and new cells have no expressed gene in common")
    chosen = both[variable_genes(x[:, both], min(GENES, len(both)))]
    return x[:, chosen].toarray(), z[:, chosen].toarray()


def _shares(fitted, x: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the fitted classifier's probabilities, 0 for types that it has not seen."""
    shares = np.zeros((len(x), n_classes))
    shares[:, fitted.classes_] = fitted.predict_proba(x)
    return shares
