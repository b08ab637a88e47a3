"""Pairs of a control and a perturbed cell of a screen, as the heads that predict single cells learn from them.

Each perturbed cell y has a control cell x of its group that was drawn for it; a control cell is its own y. Genes are
the measured ones, then the targets that were not measured, whose expression is zero. What a model says of genes is
looked up for x alone, so it is needed of control cells only (`CellFeatures`).

Whatever the split, arrays have the same shapes: conditions have the same numbers, rows are filled up to whole batches.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from scfm_jax.tasks import heads
from scfm_jax.tasks.perturbation import scores
from scfm_jax.tasks.perturbation.screen import Screen

PREDICTED = 256
"""Control cells that a condition is predicted on."""


@dataclasses.dataclass
class CellFeatures:
    """What a model says of each gene in each of some cells.

    Attributes:
      rows: of the screen, ascending. [n]
      values: of these cells and of the genes that the model knows, or what reads as such an array. [n, K, D]
      index: of each gene its place among the K, -1 where the model does not know it. [G]
      centre, scale: of each of the D, so that all have mean 0 and deviation 1. [D] each
    """

    rows: np.ndarray
    values: np.ndarray
    index: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return the standardised features of cells, the mean of the others for an unknown gene. [b, G, D]"""
        places = np.searchsorted(self.rows, rows)
        unique, back = np.unique(places, return_inverse=True)
        values = (np.asarray(self.values[unique])[back] - self.centre) / self.scale
        taken = values[:, np.maximum(self.index, 0)]
        taken[:, self.index < 0] = values[:, self.index[self.index >= 0]].mean(1, keepdims=True)
        return taken.astype(np.float32)

    def batch(self, rows: np.ndarray, _: np.ndarray) -> heads.Rows:
        """Return what a batch of cells has of them, whatever is done to the cells."""
        return {"features": self.of(rows)}


class OfCells(Protocol):
    """What a model says of control cells, for a head that reads it."""

    def batch(self, rows: np.ndarray, condition: np.ndarray) -> heads.Rows:
        """Return arrays by name of cells of the screen [b], which are to be in some conditions [b]."""


@dataclasses.dataclass
class Pairs:
    """The pairs of a screen.

    Attributes:
      screen: its cells. places: of each target among the genes. n_genes: G, targets that were not measured included.
      controls: control cells that stand for x, of each group. most: cells of a condition; None for all.
      features: what a model says of these control cells, if one is asked.
    """

    screen: Screen
    places: Mapping[str, int]
    n_genes: int
    controls: dict[str, np.ndarray]
    most: int | None = None
    features: OfCells | None = None

    @property
    def control(self) -> int:
        """The number of the condition of control cells; the others are numbered as `screen.conditions`."""
        return len(self.screen.conditions)

    def flags(self) -> np.ndarray:
        """Return the targets of each condition, control last. bool [P, G]"""
        flags = np.zeros((self.control + 1, self.n_genes), bool)
        for i, name in enumerate(self.screen.conditions):
            flags[i, [self.places[gene] for gene in self.screen.targets[name]]] = True
        return flags

    def examples(self, names: Sequence[str], seed: int, fill: int = 1, control: bool = False) -> heads.Examples:
        """Return pairs of conditions: x, y, flags [n, G], condition [n], and what `features` say.

        Args:
          names: of the conditions. control: and of controls.
          seed: of which cells, where there are more than `most`, and of the control cell of each.
          fill: rows are filled up to a multiple of this by rows of no condition.
        """
        number = {name: i for i, name in enumerate(self.screen.conditions)}
        parts = []
        for name in names:
            rng = np.random.default_rng((seed, number[name]))
            y = np.sort(rng.permutation(self.screen.rows[name])[: self.most])
            x = rng.choice(self.controls[self.screen.group[name]], len(y))
            parts.append((x, y, np.full(len(y), number[name])))
        if control:
            rows = np.concatenate(list(self.controls.values()))
            parts.append((rows, rows, np.full(len(rows), self.control)))
        return self._examples(*(np.concatenate(part) for part in zip(*parts, strict=True)), fill)

    def asked(self, name: str, seed: int = 0) -> heads.Examples:
        """Return `PREDICTED` control cells of a condition's group, with its flags."""
        pool = np.random.default_rng(seed).permutation(self.controls[self.screen.group[name]])
        rows = np.resize(pool, PREDICTED)
        return self._examples(rows, rows, np.full(PREDICTED, self.screen.conditions.index(name)))

    def _examples(self, x: np.ndarray, y: np.ndarray, condition: np.ndarray, fill: int = 1) -> heads.Examples:
        more = -len(x) % fill
        x, y = np.append(x, x[:1].repeat(more)), np.append(y, y[:1].repeat(more))
        condition = np.append(condition, np.full(more, self.control + 1))  # that of no row of a table
        flags = np.append(self.flags(), np.zeros((1, self.n_genes), bool), 0)

        def take(rows: np.ndarray) -> heads.Rows:
            batch = {"x": self.dense(x[rows]), "y": self.dense(y[rows]), "condition": condition[rows].astype(np.int32)}
            batch |= {"flags": flags[condition[rows]].astype(np.float32)}
            return batch | (self.features.batch(x[rows], condition[rows]) if self.features else {})

        return heads.Examples(len(x), take)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Return the expression of cells, zero for what was not measured. [b, G]"""
        x = np.zeros((len(rows), self.n_genes), np.float32)
        x[:, : len(self.screen.genes)] = self.screen.expression[rows].toarray()
        return x

    def changed(self, names: Sequence[str], number: int = scores.TOP) -> np.ndarray:
        """Return the `number` genes of largest |t| of some conditions, none of the others. bool [P, G]"""
        genes = np.zeros((self.control + 1, self.n_genes), bool)
        for name in names:
            top = scores.largest(self.screen.statistics([name])[0], number)
            genes[self.screen.conditions.index(name), top] = True
        return genes


def controls(screen: Screen, most: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return at most `most` control cells of each group, drawn at random, ascending."""
    rng = np.random.default_rng(seed)
    pools = {group: screen.control[name] for name, group in sorted(screen.group.items())}
    return {group: np.sort(rng.permutation(pool)[:most]) for group, pool in pools.items()}
