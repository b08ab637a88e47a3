"""Networks without a foundation model: correlations, GENIE3, and starts of DeepSEM that were not trained.

All return strengths [n, n], rows targets and columns regulators, the larger the surer, with a diagonal of zero. The
cosine start untrained is `deepsem.row_normalised(deepsem.cosine(features))`, DeepSEM's own `deepsem.random_start`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats

from scfm_jax.tasks.networks.deepsem import row_normalised


def pearson(expression: np.ndarray) -> np.ndarray:
    """Return |Pearson's correlation| between genes, 0 for a constant one. [cells, n] -> [n, n]"""
    x = expression - expression.mean(0, dtype=np.float64)
    length = np.linalg.norm(x, axis=0)
    x = x / np.where(length > 1e-12, length, np.inf)
    strength = np.abs(x.T @ x)
    np.fill_diagonal(strength, 0)
    return strength


def spearman(expression: np.ndarray) -> np.ndarray:
    """Return |Spearman's correlation| between genes, ties by their mean rank. [cells, n] -> [n, n]"""
    return pearson(stats.rankdata(expression, axis=0))


def genie3(
    expression: np.ndarray, regulators: Sequence[int], *, trees: int = 1000, seed: int = 0, jobs: int = 1
) -> np.ndarray:
    """Return GENIE3's strengths: how much each regulator tells of a gene in a forest (Huynh-Thu et al., PLoS ONE 2010).

    For every gene in turn a random forest of the other regulators predicts its standardised expression, the square root
    of their number looked at in each split, grown to the end; a regulator's strength is the drop of variance at its
    splits, as a share of the whole (scikit-learn's importances sum to 1). Genes that do not vary have no regulators.

    Args:
      expression: log-normalised. [cells, n]
      regulators: columns that may be such. trees: of a forest. jobs: processes that grow its trees.
    """
    from sklearn.ensemble import RandomForestRegressor

    n = expression.shape[1]
    strength = np.zeros((n, n))
    deviation = expression.std(0)
    for target in np.flatnonzero(deviation > 0):
        columns = np.asarray([r for r in regulators if r != target])
        if not len(columns):
            continue
        forest = RandomForestRegressor(trees, max_features="sqrt", random_state=seed, n_jobs=jobs)
        forest.fit(expression[:, columns], expression[:, target] / deviation[target])
        strength[target, columns] = forest.feature_importances_
    return strength


def jaccard_start(terms: sparse.spmatrix) -> np.ndarray:
    """Return a start of DeepSEM from the share of Gene Ontology terms that two genes have in common. [n, T] -> [n, n]

    It knows what STRING and truths made of GO know, so that it says little where those are the truth.

    Args:
      terms: which gene has which term.
    """
    terms = sparse.csr_matrix(terms, dtype=np.float64)
    shared, number = (terms @ terms.T).toarray(), terms.getnnz(1).astype(np.float64)
    either = number[:, None] + number - shared
    return row_normalised(np.divide(shared, either, out=np.zeros_like(shared), where=either > 0))


def shuffled(start: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a start in which the genes have each other's names: all its structure at the wrong places. [n, n]"""
    order = np.random.default_rng(seed).permutation(len(start))
    return start[np.ix_(order, order)]
