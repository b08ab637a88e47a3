"""Denoising: counts are spoiled, a method says what they were, scores are of log-normalised expression.

Two ways to spoil them, as CellPLM's evaluation has them (Wen et al., ICLR 2024; paper and code use them apart):

  thinning   each molecule is kept with a probability: a shallower sequencing of the same cell
  zero flips   a share of each cell's expressed genes becomes zero, low counts more often (exponential density of the
             count, scale 20), without replacement; cells with five expressed genes or fewer stay as they are

Scores are `metrics.denoising_scores`: both sides to 10,000 a cell and log1p; over all entries after thinning, over the
flipped ones and over all after flips. No method is told which entries were flipped. A model sees all spoiled counts in
one pass and none as masked, also a model that was trained on masked entries alone. Tuning on a second set of flips,
which CellPLM's evaluation has too, is `denoising_objective`.
"""

import numpy as np

from scfm_jax.tasks import metrics

SCALE = 20.0
LEAST = 5
SCORES = {"rmse": False, "mae": False, "corr": True, "cos": True}
"""What is scored, and whether more is better."""


def thin(counts: np.ndarray, keep: float, rng: np.random.Generator) -> np.ndarray:
    """Return counts of which each molecule was kept with probability `keep`. [n, V]

    Raises:
      ValueError: `keep` is not between 0 and 1.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep={keep}: the share of molecules that are kept lies between 0 and 1")
    return rng.binomial(counts.astype(np.int64), keep).astype(np.float32)


def flip(counts: np.ndarray, rate: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return counts of which a share `rate` of each cell's expressed genes is zero, and which, bool. [n, V], [n, V]

    Raises:
      ValueError: `rate` is not between 0 and 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate={rate}: the share of expressed genes that are hidden lies between 0 and 1")
    flipped = np.zeros(counts.shape, bool)
    for cell, row in enumerate(counts):
        genes = np.flatnonzero(row)
        if len(genes) > LEAST:
            weights = np.exp(-row[genes].astype(np.float64) / SCALE)
            weights = np.maximum(weights, 1e-12)  # as many as are asked for must have a chance
            number = int(len(genes) * rate)
            flipped[cell, rng.choice(genes, number, replace=False, p=weights / weights.sum())] = True
    return np.where(flipped, 0, counts).astype(np.float32), flipped


def score(predicted: np.ndarray, true: np.ndarray, entries: np.ndarray | None = None) -> dict[str, float]:
    """Return the SCORES of expected counts against the counts before, over `entries` or all of them. [n, V]

    A cell for which nothing is predicted has the same of all genes, and no correlation (NaN, over all entries).
    """
    scores = metrics.denoising_scores(np.maximum(predicted, 0) + 1e-12, true, entries)
    return {name: scores[name] for name in SCORES}
