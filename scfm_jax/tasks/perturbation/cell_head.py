"""Expression after a perturbation from one vector of the cell: CellPLM's head (Wen et al., ICLR 2024, Task 3).

An MLP of the cell's embedding z says the log-normalised expression of all genes; what is scored are the measured ones;
the loss is the mean squared error, and the whole model is trained with the head. The release names the head only, the
steps around it are ours: the cell that is embedded is a control cell whose targets are marked, with their own
expression taken out and -1 in its place, on the scale of log1p counts (so a target that was not measured is marked
too). Cells are embedded one by one, so that no prediction depends on which others are made beside it.

For a model that has no such mark, or is not to be trained, z is the embedding of the control cell with the vector of
the targets beside it, both standardised, and the head alone is trained.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from scfm_jax.layers.linear import Dense
from scfm_jax.tasks import heads
from scfm_jax.tasks.perturbation import gears
from scfm_jax.tasks.perturbation.pairs import Pairs
from scfm_jax.types import Array

MARK = -1.0
"""Value of a target in the cell that is embedded; values of genes are log1p counts."""
TRAINING = heads.Training(
    optimizers={
        "name": "adamw",
        "learning_rate": 1e-3,
        "weight_decay": 1e-6,
        "groups": (FrozenDict({"match": ("^encoder/",), "rate": 0.1}),),
    },
    epochs=30,
    patience=5,
    rows=64,
)
"""Of a head with its model, which learns at a tenth of the rate; `FROZEN` that of a head alone."""
FROZEN = heads.Training(
    optimizers={"name": "adamw", "learning_rate": 1e-3, "weight_decay": 1e-6}, epochs=30, patience=5, rows=64
)


class CellHead(nn.Module):
    """Predicted expression. [B, G]

    Attributes:
      n_genes: G. hidden, layers, dropout: of the MLP; dropout comes before each of its layers.
      encoder: a model that embeds cells (CellPLM's `Model`), None for a vector that is there already, batch["z"].
      module: the model's file. options: keywords of its `prepare`, as pairs.
    """

    n_genes: int
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1
    encoder: nn.Module | None = None
    module: ModuleType | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], shared: Mapping[str, Any], train: bool = False) -> Array:
        x = batch["z"] if self.encoder is None else self.embedded(batch, shared, train)
        for i, width in enumerate((*[self.hidden] * (self.layers - 1), self.n_genes)):
            x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x) if i else x)
            x = Dense(width, name=f"linear_{i}")(x)
        return x * shared["scored"]

    def embedded(self, batch: Mapping[str, Any], shared: Mapping[str, Any], train: bool) -> Array:
        """Return the embeddings of cells with their targets marked. [B, Z]"""
        constants = shared["constants"]
        inputs = self.module.prepare(
            batch["cells"], constants, jax.random.key(0), step=0, train=False, **dict(self.options)
        )
        return self.encoder(marked(inputs, batch["slots"]), train).cells[:, 0].astype(jnp.float32)


def marked(inputs: Mapping[str, Any], targets: Array) -> dict[str, Any]:
    """Return the inputs of CellPLM with `MARK` for what a cell has of its targets.

    Args:
      inputs: "slots" and "values" of bags of one cell. [B, 1, P]
      targets: genes of the vocabulary, its size where there is none. [B, T]
    """
    slots, targets = inputs["slots"], targets[:, None]
    hit = (slots[..., None] == targets[..., None, :]).any(-1)
    marks = jnp.full(targets.shape, MARK, inputs["values"].dtype)
    return {
        **inputs,
        "slots": jnp.concatenate([slots, targets.astype(slots.dtype)], -1),
        "values": jnp.concatenate([jnp.where(hit, 0, inputs["values"]), marks], -1),
    }


@dataclasses.dataclass(frozen=True)
class Loss:
    """The mean squared error over the genes that are scored."""

    def __call__(self, prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
        wrong = jnp.square(prediction - batch["y"]) * shared["scored"]
        return wrong.sum() / (len(prediction) * shared["scored"].sum())


@dataclasses.dataclass
class Vectors:
    """What the head reads of control cells, the `features` of `Pairs`.

    Attributes:
      rows: of the screen, ascending. [n]
      arrays: of these cells, by name: "cells" (fields of `types.Batch`), or "z". [n, ...]
      of_condition: "slots" of targets, or their vector "target": of each condition, control, and none. [P + 1, ...]
    """

    rows: np.ndarray
    arrays: Mapping[str, Any]
    of_condition: Mapping[str, np.ndarray]

    def batch(self, rows: np.ndarray, condition: np.ndarray) -> dict[str, Any]:
        """Return the arrays of cells [b] and what says their conditions [b]."""
        places = np.searchsorted(self.rows, rows)
        batch = jax.tree.map(lambda x: x[places], dict(self.arrays))
        more = {name: x[condition] for name, x in self.of_condition.items()}
        if "target" in more:
            batch["z"] = np.concatenate([batch["z"], more.pop("target")], 1)
        return batch | more


def fit(
    pairs: Pairs,
    network: CellHead,
    train: Sequence[str],
    validation: Sequence[str],
    *,
    constants: Mapping[str, Any] | None = None,
    start: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    seed: int = 0,
) -> tuple[heads.Fitted, dict[str, Any]]:
    """Return the head fitted to conditions and control cells, and what `predict` needs beside it.

    Args:
      pairs: with `Vectors` for features.
      constants: of the encoder. start: its parameters. epochs: at most; those of the training, if left out.
    """
    scored = np.arange(pairs.n_genes) < len(pairs.screen.genes)
    shared = {"scored": scored.astype(np.float32), "de": pairs.changed(validation)}
    shared |= {"constants": dict(constants)} if constants is not None else {}
    training = TRAINING if network.encoder is not None else FROZEN
    training = dataclasses.replace(training, epochs=epochs or training.epochs)
    head = heads.Head(network, Loss(), gears.tally, gears.mse_de)
    learnt = pairs.examples(train, seed, control=True)
    held_out = pairs.examples(validation, seed, fill=training.rows) if validation else None
    begin = {"encoder": dict(start)} if start is not None else None
    return heads.fit(head, learnt, held_out, shared, training, seed, start=begin), shared


def predict(
    fitted: heads.Fitted, network: CellHead, shared: Mapping[str, Any], pairs: Pairs, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effect of a condition [G] and predicted cells [n, G], as `gears_fit.predict`."""
    asked, measured = pairs.asked(name), len(pairs.screen.genes)
    cells = heads.predict(network, fitted.variables, asked, shared, TRAINING.rows)
    x = asked.take(np.arange(asked.n))["x"]
    return (cells - x).mean(0, dtype=np.float64)[:measured], cells[:, :measured]
