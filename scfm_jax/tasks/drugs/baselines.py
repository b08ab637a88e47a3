"""Predictions of drug tables that no network has to beat by being there alone: means, neighbours, ridge.

A table's rows are codes: `drug` and `line` of each row [n], 0 and up, and what was measured, y. Each function learns
from training rows and says what the others are. Means of a drug or a line that was not trained on are the mean of all.
"""

import numpy as np
from scipy import sparse
from scipy.sparse import linalg

PENALTY = 1.0
ROUNDS = 20
BLOCK = 8192
"""Rows that are double at a time."""


def group_mean(group: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the mean of each asked row's group (its drug, line, tissue, dose or plate). y [n] or [n, G] -> [a, ...]"""
    size = int(max(np.max(group, initial=-1), np.max(asked, initial=-1))) + 1
    indicator = _one_hot(group, size)
    number = np.asarray(indicator.sum(0)).ravel()
    means = (indicator.T @ y) / np.maximum(number, 1).reshape(-1, *[1] * (y.ndim - 1))
    means[number == 0] = y.mean(0)
    return means[asked]


def additive(
    drug: np.ndarray,
    line: np.ndarray,
    y: np.ndarray,
    asked_drug: np.ndarray,
    asked_line: np.ndarray,
    rounds: int = ROUNDS,
) -> np.ndarray:
    """Return the mean of all plus an effect of the drug and one of the line: the table to beat. [a]

    Effects are means of what the other one leaves, in turn, which makes them those of least squares, as not every line
    was treated with every drug; one that was not trained on is 0.
    """
    mean, of_line = y.mean(), np.zeros(len(y))
    for _ in range(rounds):
        of_drug = _effects(drug, y - mean - of_line)
        of_line_effects = _effects(line, y - mean - of_drug[drug])
        of_line = of_line_effects[line]
    places = ((of_drug, asked_drug), (of_line_effects, asked_line))
    return mean + sum(np.where(at < len(e), e[np.minimum(at, len(e) - 1)], 0) for e, at in places)


def _effects(group: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the mean of each group, 0 for one without rows. [max(group) + 1]"""
    return np.bincount(group, left) / np.maximum(np.bincount(group), 1)


def nearest_line(
    drug: np.ndarray,
    line: np.ndarray,
    y: np.ndarray,
    asked_drug: np.ndarray,
    asked_line: np.ndarray,
    lines: np.ndarray,
) -> np.ndarray:
    """Return the response to the drug of the most similar other line that was treated with it; else the drug's mean.

    Args:
      lines: expression of each line, compared by correlation. [L, K]
    """
    centred = np.asarray(lines, np.float64) - lines.mean(1, keepdims=True)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    similarity = centred @ centred.T
    np.fill_diagonal(similarity, -np.inf)
    n_drugs = int(max(drug.max(), asked_drug.max())) + 1
    table = np.full((n_drugs, len(lines)), np.nan)
    total, number = np.zeros_like(table), np.zeros_like(table)
    np.add.at(total, (drug, line), y)
    np.add.at(number, (drug, line), 1)
    table[number > 0] = total[number > 0] / number[number > 0]
    out = group_mean(drug, y, asked_drug)
    for one in np.unique(asked_drug):
        rows, treated = np.flatnonzero(asked_drug == one), np.flatnonzero(np.isfinite(table[one]))
        if not len(treated):
            continue
        near = similarity[np.ix_(asked_line[rows], treated)]
        best = near.argmax(1)
        has = np.isfinite(near[np.arange(len(rows)), best])
        out[rows[has]] = table[one, treated[best[has]]]
    return out


def nearest_compounds(
    fingerprints: np.ndarray, y: np.ndarray, drug: np.ndarray, asked_drug: np.ndarray, number: int = 5
) -> np.ndarray:
    """Return the mean of the most similar compounds' rows, each weighed by its Tanimoto similarity. y [n, ...]

    Args:
      fingerprints: of each compound, 0 or 1. [M, F]
      drug, asked_drug: the compound of each row. [n], [a]
    """
    f = np.asarray(fingerprints, np.float64)
    trained = np.unique(drug)
    shared = f @ f[trained].T
    union = f.sum(1)[:, None] + f.sum(1)[trained] - shared
    similarity = shared / np.maximum(union, 1)
    means = group_mean(drug, y, trained).reshape(len(trained), -1)
    compounds, row = np.unique(asked_drug, return_inverse=True)
    out = []
    for compound in compounds:
        near = np.argsort(-similarity[compound], kind="stable")[:number]
        weight = similarity[compound, near]
        out.append(weight @ means[near] / weight.sum() if weight.sum() > 0 else y.mean(0).ravel())
    return np.stack(out)[row].reshape(len(asked_drug), *y.shape[1:])


def ridge(
    x: np.ndarray | sparse.spmatrix, y: np.ndarray, asked: np.ndarray | sparse.spmatrix, penalty: float
) -> np.ndarray:
    """Return ridge regression with a free constant. [n, K], y [n] or [n, G], [a, K] -> [a] or [a, G]

    Sparse features are solved for by conjugate gradients.
    """
    mean, centre = y.mean(0), np.asarray(x.mean(0, dtype=np.float64)).ravel()
    if sparse.issparse(x):
        columns = y.reshape(len(y), -1) - mean

        def normal(w: np.ndarray) -> np.ndarray:
            product = x @ w - centre @ w
            return x.T @ product - centre * product.sum() + penalty * w

        operator = linalg.LinearOperator((x.shape[1],) * 2, matvec=normal, dtype=np.float64)
        right = x.T @ columns - np.outer(centre, columns.sum(0))
        weights = np.stack([linalg.cg(operator, column, rtol=1e-6, maxiter=500)[0] for column in right.T], 1)
        return (asked @ weights - centre @ weights + mean).reshape(-1, *y.shape[1:])
    square, right = penalty * np.eye(x.shape[1]), 0.0
    for rows in np.array_split(np.arange(len(x)), -(-len(x) // BLOCK)):
        part = x[rows].astype(np.float64) - centre
        square, right = square + part.T @ part, right + part.T @ (y[rows] - mean)
    return (asked - centre) @ np.linalg.solve(square, right) + mean


def components(x: np.ndarray, number: int) -> np.ndarray:
    """Return scores on principal components, scaled so that rows have length 1 on average. [n, K] -> [n, k]"""
    x = np.asarray(x, np.float64) - x.mean(0)
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    scores = (left * values)[:, : min(number, len(values))]
    return scores / max(float(np.sqrt(np.square(scores).sum(1).mean())), 1e-12)


def crossed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return both, and every product of one of `a` and one of `b`. [n, A], [n, B] -> [n, A + B + A B]"""
    return np.concatenate([a, b, (a[:, :, None] * b[:, None]).reshape(len(a), -1)], 1)


def ridge_on_fingerprints(
    drug: np.ndarray,
    line: np.ndarray,
    y: np.ndarray,
    asked_drug: np.ndarray,
    asked_line: np.ndarray,
    fingerprints: np.ndarray,
    lines: np.ndarray,
    sizes: tuple[int, int] = (32, 16),
    penalty: float = PENALTY,
) -> np.ndarray:
    """Return ridge regression on components of fingerprints, of expression, and of their products. [a]

    Args:
      fingerprints, lines: of every drug and line. [M, F], [L, K]
      sizes: number of components of each.
    """
    a, b = (components(x, size).astype(np.float32) for x, size in zip((fingerprints, lines), sizes, strict=True))
    return ridge(crossed(a[drug], b[line]), y, crossed(a[asked_drug], b[asked_line]), penalty)


def one_hot_features(
    first: np.ndarray, second: np.ndarray, line: np.ndarray, pairs: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Return which two drugs a row has, in whatever order, which line, and which pair where those are named. [n, K]"""
    drugs = int(max(first.max(), second.max())) + 1
    parts = [_one_hot(first, drugs) + _one_hot(second, drugs), _one_hot(line, int(line.max()) + 1)]
    parts += [] if pairs is None else [_one_hot(pairs, int(pairs.max()) + 1)]
    return sparse.hstack(parts).tocsr()


def fingerprint_features(
    first: np.ndarray, second: np.ndarray, line: np.ndarray, fingerprints: np.ndarray, lines: np.ndarray | None = None
) -> np.ndarray:
    """Return sums and products of the drugs' fingerprints, and the line: which it is, or its `lines` [L, K]. [n, K]"""
    a, b = fingerprints[first], fingerprints[second]
    of_line = np.eye(int(line.max()) + 1)[line] if lines is None else lines[line]
    return np.concatenate([a + b, a * b, of_line], 1)


def _one_hot(codes: np.ndarray, size: int) -> sparse.csr_matrix:
    n = len(codes)
    return sparse.csr_matrix((np.ones(n), (np.arange(n), codes)), (n, size))
