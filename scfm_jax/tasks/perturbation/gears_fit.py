"""GEARS' head fitted to the conditions of a screen, and what it says of others (see `gears` for the head itself).

    graph = gears.go_graph(source, target, weight, pairs.n_genes)
    fitted = gears_fit.fit(pairs, split.train, split.validation, graph, gears_fit.Settings(), seed=1)
    effect, cells = gears_fit.predict(fitted, pairs, "CBL+CNN1")

The epoch is the one of least `gears.mse_de` on validation conditions, the last where there are none. All fits of one
table have arrays of the same shapes, the graph of co-expression among them, so they are compiled once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jraph
import numpy as np
from scipy import sparse

from scfm_jax.tasks import heads
from scfm_jax.tasks.perturbation import gears
from scfm_jax.tasks.perturbation.pairs import Pairs

SIMILAR, LEAST = 20, 0.4
"""Genes that each is joined with by co-expression, and the least |Pearson| of those, as GEARS has them."""
TRAININGS = {"gears": dataclasses.replace(gears.TRAINING, rows=32, sums=1, epochs=20)}
"""GEARS' own training updates after each batch of 32; the other presets add up 8 of 64, which suits large screens."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the head is made and trained.

    Attributes:
      preset: of `gears.PRESETS`. width: h. epochs: at most. Those of the preset, where left out.
      decay: factor of the learning rate after every epoch; published 0.5, which ends the training of a screen of few
        cells before it has begun.
    """

    preset: str = "gears"
    width: int | None = None
    epochs: int | None = None
    decay: float = gears.TRAINING.decay

    def head(self, n_genes: int) -> heads.Head:
        """Return the head for G genes; its features go through a linear layer whatever their width."""
        changed = {"width": self.width} if self.width else {}
        return gears.head(self.preset, n_genes, linear=True, **changed)

    def training(self) -> heads.Training:
        """Return how it is trained."""
        training = TRAININGS.get(self.preset, gears.TRAINING)
        return dataclasses.replace(training, epochs=self.epochs or training.epochs, decay=self.decay)


@dataclasses.dataclass
class Fit:
    """A fitted head: the network, its variables, the graphs that it reads, and how the training went."""

    network: gears.Gears
    variables: dict[str, Any]
    graphs: dict[str, jraph.GraphsTuple]
    epoch: int
    history: np.ndarray


def fit(
    pairs: Pairs,
    train: Sequence[str],
    validation: Sequence[str],
    graph: jraph.GraphsTuple,
    settings: Settings,
    seed: int = 0,
) -> Fit:
    """Return the head fitted to the training conditions and to control cells.

    Args:
      graph: of the genes' GO terms, of `gears.go_graph`.
      seed: of parameters, the order of cells, and which control cell stands before which perturbed one.
    """
    head, training, screen = settings.head(pairs.n_genes), settings.training(), pairs.screen
    control = np.concatenate(list(pairs.controls.values()))
    graphs = {"graph": graph}
    if head.network.coexpression:
        rows = np.concatenate([control, *(screen.rows[name] for name in train)])
        graphs["coexpression"] = coexpression(screen.expression[np.unique(rows)], pairs.n_genes)
    kept = np.zeros((pairs.control + 1, pairs.n_genes), bool)
    for name in train:
        kept[screen.conditions.index(name), : len(screen.genes)] = screen.expression[screen.rows[name]].getnnz(0) > 0
    kept[pairs.control] = True
    shared: dict[str, Any] = {**graphs, "retained": kept, "de": pairs.changed(validation)}
    shared["control"] = pairs.dense(control).mean(0)
    learnt = pairs.examples(train, seed, control=True)
    held_out = pairs.examples(validation, seed, fill=training.rows) if validation else None
    fitted = heads.fit(head, learnt, held_out, shared, training, seed)
    return Fit(head.network, fitted.variables, graphs, fitted.epoch, fitted.history)


def predict(fitted: Fit, pairs: Pairs, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the effect of a condition [G], the mean of prediction - x over control cells, and predicted cells [n, G].

    Both are of the measured genes alone.
    """
    asked, measured = pairs.asked(name), len(pairs.screen.genes)
    cells = heads.predict(fitted.network, fitted.variables, asked, fitted.graphs, gears.TRAINING.rows)
    x = asked.take(np.arange(asked.n))["x"]
    return (cells - x).mean(0, dtype=np.float64)[:measured], cells[:, :measured]


def coexpression(x: sparse.csr_matrix, n_genes: int, top: int = SIMILAR, least: float = LEAST) -> jraph.GraphsTuple:
    """Return GEARS' graph of co-expression: into each gene edges from the `top` genes of largest |Pearson|, and itself.

    An edge below `least` has a weight of 0, so that the graph has as many edges whatever the cells are.

    Args:
      x: log-normalised expression of the cells that are learnt from, of the measured genes. [n, M]
      n_genes: G; genes beyond the measured ones are alone.
    """
    n, measured = x.shape
    mean = np.asarray(x.mean(0)).ravel()
    covariance = np.asarray((x.T @ x).todense(), np.float64) / n - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
    likeness = np.zeros((n_genes, n_genes))
    scale = np.outer(deviation, deviation)
    likeness[:measured, :measured] = np.divide(np.abs(covariance), scale, out=np.zeros_like(scale), where=scale > 1e-12)
    np.fill_diagonal(likeness, 0)
    near = np.argsort(-likeness, axis=1, kind="stable")[:, : min(top, n_genes - 1)]
    weight = np.take_along_axis(likeness, near, 1)
    weight = np.where(weight > least, weight, 0)
    target, every = np.repeat(np.arange(n_genes), near.shape[1]), np.arange(n_genes)
    ends = np.append(near.ravel(), every), np.append(target, every)
    return gears.go_graph(*ends, np.append(weight.ravel(), np.ones(n_genes)), n_genes)
