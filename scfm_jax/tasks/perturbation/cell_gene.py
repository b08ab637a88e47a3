"""Predict a perturbation's effect from a cell's vector and the vector of the gene: scEMB's second step (Fig. 5).

[vector of a control cell; vector of the perturbed gene] -> linear, 512, ReLU -> linear -> change of log1p expression of
all measured genes (Hsieh et al., bioRxiv 2024). Loss: squared error of all genes plus that of the 20 of largest |t| in
the cells that are trained on, weighted alike. The effect of a perturbation is the mean over control cells.

Nobody knows which control cell a perturbed one once was. So each row is a control cell and a perturbation, and its
change is that of the means: squared error looks at the mean alone, and pairs drawn at random would only add noise. The
cell's vector can therefore tell groups (cell types) apart, and no more. A perturbation of two genes has the sum of
their vectors.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax.tasks import heads
from scfm_jax.tasks.genes.features import standardised
from scfm_jax.tasks.perturbation import scores
from scfm_jax.tasks.perturbation.baselines import condition_vectors
from scfm_jax.tasks.perturbation.screen import Screen
from scfm_jax.types import Array

TRAINING = heads.Training({"learning_rate": 1e-3}, epochs=60, patience=10, rows=256)
CELLS = 100
"""Control cells of a perturbation, at most."""
AT_ONCE = 20_000
"""Rows of a control cell and a gene that are predicted at a time."""


class CellGene(nn.Module):
    """The network. A batch: cell [B, Dc], gene [B, Dg] -> change of each measured gene [B, G]."""

    n_genes: int
    width: int = 512

    @nn.compact
    def __call__(self, batch: Mapping[str, Array], shared: Mapping[str, Any], train: bool = False) -> Array:
        x = jnp.concatenate([batch["cell"], batch["gene"]], -1)
        return nn.Dense(self.n_genes, name="change")(nn.relu(nn.Dense(self.width, name="hidden")(x)))


def loss(change: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
    """Return the squared error of all genes plus that of each row's `top` ones (bool [B, G])."""
    square = jnp.square(change - batch["change"])
    top = (square * batch["top"]).sum(-1) / jnp.maximum(batch["top"].sum(-1), 1)
    return square.mean() + top.mean()


class Problem(NamedTuple):
    """What a network learns from: a screen, vectors of its cells [n, Dc], of genes {name: [Dg]}, both standardised."""

    screen: Screen
    cells: np.ndarray
    vectors: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, screen: Screen, cells: np.ndarray, vectors: Mapping[str, np.ndarray]) -> "Problem":
        """Return the problem with cells brought to mean 0 and deviation 1 over the control cells."""
        control = np.unique(np.concatenate(list(screen.control.values())))
        of = np.isin(np.arange(len(cells)), control)
        return cls(screen, standardised(cells, of).astype(np.float32), vectors)

    def examples(self, names: Sequence[str], seed: int = 0) -> heads.Examples:
        """Return a row for each condition and each of at most CELLS of its control cells, drawn at random."""
        control = [self.control(name, seed) for name in names]
        of = np.repeat(np.arange(len(names)), [len(rows) for rows in control])
        rows = np.concatenate(control)
        genes = condition_vectors([self.screen.targets[name] for name in names], self.vectors).astype(np.float32)
        effects = self.screen.effects(names).astype(np.float32)
        top = np.zeros(effects.shape, bool)
        np.put_along_axis(top, scores.largest(self.screen.statistics(names), scores.TOP), True, 1)

        def take(some: np.ndarray) -> heads.Rows:
            which = of[some]
            return {"cell": self.cells[rows[some]], "gene": genes[which], "change": effects[which], "top": top[which]}

        return heads.Examples(len(rows), take)

    def control(self, name: str, seed: int = 0) -> np.ndarray:
        """Return at most CELLS of a condition's control cells."""
        return np.sort(np.random.default_rng(seed).permutation(self.screen.control[name])[:CELLS])


def fit(
    problem: Problem,
    train: Sequence[str],
    validation: Sequence[str],
    seed: int = 0,
    training: heads.Training = TRAINING,
    judge: Problem | None = None,
) -> heads.Fitted:
    """Return the network trained on conditions, as it was at its best on others (of `judge`, if it is another)."""
    head = heads.Head(CellGene(len(problem.screen.genes)), loss)
    valid = (judge or problem).examples(validation, seed) if len(validation) else None
    return heads.fit(head, problem.examples(train, seed), valid, {}, training, seed)


def predict(
    fitted: heads.Fitted, problem: Problem, genes: np.ndarray, names: Sequence[str], seed: int = 0
) -> np.ndarray:
    """Return the mean change of control cells under perturbations of some vectors. [K, Dg] -> [K, G]

    Args:
      names: the condition of each vector, whose control cells are taken. [K]
    """
    network, effects = CellGene(len(problem.screen.genes)), []
    genes = np.asarray(genes, np.float32)
    chunk = max(1, AT_ONCE // CELLS)
    for start in range(0, len(genes), chunk):
        here = range(start, min(start + chunk, len(genes)))
        control = [problem.control(names[i], seed) for i in here]
        of = np.repeat(np.arange(len(control)), [len(rows) for rows in control])
        rows = np.concatenate(control)
        examples = heads.Examples.of(cell=problem.cells[rows], gene=genes[start:][of])
        change = heads.predict(network, fitted.variables, examples, {}, rows=AT_ONCE)
        sums = np.zeros((len(control), change.shape[1]))
        np.add.at(sums, of, change)
        effects.append(sums / np.bincount(of)[:, None])
    return np.concatenate(effects)


def nearest(effects: np.ndarray, trained: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the effect of the training condition whose vector has the largest cosine. [T, G], [T, D], [A, D] -> [A, G]

    The first of those that are equally near.
    """
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (trained, asked)]
    return effects[np.argmax(unit[1] @ unit[0].T, axis=1)]
