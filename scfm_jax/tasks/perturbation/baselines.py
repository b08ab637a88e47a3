"""Simple predictions of perturbation effects, which no network has to beat by being there alone.

Each takes effects of training conditions [T, G] and says the effects of others; effects are changes of mean
log-normalised expression against control. `bilinear_ridge` is the strongest of them and the cheapest test of gene
vectors (Ahlmann-Eltze, Huber and Anders, "Deep learning-based predictions of gene perturbation effects do not yet
outperform simple linear baselines", 2025).
"""

from collections.abc import Mapping, Sequence

import numpy as np

PENALTY = 0.1
COMPONENTS = 10


def no_change(effects: np.ndarray, number: int) -> np.ndarray:
    """Return that nothing changes. [number, G]"""
    return np.zeros((number, effects.shape[1]))


def training_mean(effects: np.ndarray, number: int) -> np.ndarray:
    """Return the mean effect of the training conditions, for every condition. [number, G]"""
    return np.tile(effects.mean(0), (number, 1))


def matching_mean(
    effects: np.ndarray, trained: Sequence[tuple[str, ...]], asked: Sequence[tuple[str, ...]]
) -> np.ndarray:
    """Return the mean effect of the training singles of a condition's targets; of all, where none trained. [A, G]"""
    singles = _singles(effects, trained)
    rows = [[singles[gene] for gene in targets if gene in singles] for targets in asked]
    return np.stack([np.mean(row, axis=0) if row else effects.mean(0) for row in rows])


def additive(effects: np.ndarray, trained: Sequence[tuple[str, ...]], asked: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Return the sum of the effects of a condition's targets, the mean for a target without a single. [A, G]"""
    singles, mean = _singles(effects, trained), effects.mean(0)
    return np.stack([np.sum([singles.get(gene, mean) for gene in targets], axis=0) for targets in asked])


def _singles(effects: np.ndarray, trained: Sequence[tuple[str, ...]]) -> dict[str, np.ndarray]:
    return {targets[0]: effect for targets, effect in zip(trained, effects, strict=True) if len(targets) == 1}


def bilinear_ridge(
    effects: np.ndarray, trained: np.ndarray, asked: np.ndarray, genes: np.ndarray, penalty: float = PENALTY
) -> np.ndarray:
    """Return effects by Y ~ G W P^T + b, both sides of W penalised alike. [A, G]

    W = (G^T G + penalty I)^-1 G^T (Y - b) P (P^T P + penalty I)^-1, b the mean of training effects.

    Args:
      effects: Y^T, of the training conditions. [T, G]
      trained, asked: P, the vectors of the conditions, sums of those of their targets. [T, K], [A, K]
      genes: G, the vectors of the measured genes. [G, D]
    """
    b = effects.mean(0)

    def squared(x: np.ndarray) -> np.ndarray:
        return x.T @ x + penalty * np.eye(x.shape[1])

    left = np.linalg.solve(squared(genes), genes.T @ (effects - b).T @ trained)
    weights = np.linalg.solve(squared(trained), left.T).T  # [D, K]
    return asked @ (genes @ weights).T + b


def condition_vectors(targets: Sequence[tuple[str, ...]], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the vectors of each condition's targets. [C, K]"""
    return np.stack([np.sum([vectors[gene] for gene in of], axis=0) for of in targets])


def scaled(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """Return gene vectors [G, D] centred and of length 1 on average over the rows `of`, so that one penalty fits all.

    All columns are divided by the same number: one by one, the directions in which genes hardly differ would be blown
    up to the size of the others, and a ridge penalty cannot choose among them.
    """
    values = np.asarray(values, np.float64)
    some = values if of is None else values[of]
    centred = values - some.mean(0)
    return centred / max(float(np.sqrt(((some - some.mean(0)) ** 2).sum(1).mean())), 1e-12)
