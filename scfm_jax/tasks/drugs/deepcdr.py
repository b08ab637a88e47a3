"""Response of a cell line to a drug (ln IC50), by DeepCDR's network on a foundation model's vectors of the line.

DeepCDR (Liu et al., Bioinformatics 2020) as scLong (bioRxiv 2024.11.09.622759, Fig. 4b) uses it: a graph convolutional
network makes a vector of the drug, a tower one of the line, and convolutions along a joined vector the number.

A batch (`examples`): "molecules" and "drug" [B] (`tasks.drugs.molecules`, with 75 features of atoms), "line" [B], y
[B]. `shared`: "lines" [L, K], or [L, G, D] where each gene of a line has a vector; and other tables of lines that
towers read, such as "methylation" [L, K].

As published: Keras' batch normalisation (momentum .99, eps 1e-3), Glorot's initial matrices, Adam at 1e-3 in batches of
64. Switches:

  reduce   how a gene's D numbers become one: "linear" (a layer D -> 1) or "mean" (scLong's paper; of a layer-normalised
           output it is constant at initialisation, so a random twin says nothing)
  pool     "mean" over a drug's atoms, or "padded": over 100 rows, those beyond its atoms padding, as the code has it
  sigmoid  of the result, as DeepCDR's text has it: it cannot give ln IC50, which runs from -10 to 13
  dense, convolved    names of the other towers, such as ("methylation",) and ("mutation",)

Copies of a drug in a batch share their dropout, and count as often in the batch normalisation as there are rows.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn

from scfm_jax.layers.dropout import dropped
from scfm_jax.layers.norms import BatchNorm
from scfm_jax.tasks.drugs import molecules
from scfm_jax.tasks.heads import Examples, Head, Training
from scfm_jax.types import Array

REDUCES, POOLS = ("linear", "mean"), ("mean", "padded")
ROWS = 100
"""Of a drug in the released code."""
PRESETS = {
    "linear": {},
    "paper": {"reduce": "mean"},
    "repo": {"reduce": "mean", "pool": "padded"},
}
TRAINING = Training({"name": "adam", "learning_rate": 1e-3}, epochs=100, patience=10, rows=64)
"""The published figures; ten epochs without a better validation error end it."""
MUTATIONS = ((50, 700, 5, 5, nn.tanh), (30, 5, 2, 10, nn.relu))
JOINED = ((30, 150, 1, 2, nn.relu), (10, 5, 1, 3, nn.relu), (5, 5, 1, 3, nn.relu))
"""Of each convolution: filters, length, step, length of the pool after it, what is between."""


class DeepCDR(nn.Module):
    """The head: one number for each row. [B]

    Attributes: see the module; `graph_widths` are those of the convolutions over a drug's bonds.
    """

    graph_widths: tuple[int, ...] = (256, 256, 256, 100)
    reduce: str = "linear"
    pool: str = "mean"
    sigmoid: bool = False
    dense: tuple[str, ...] = ()
    convolved: tuple[str, ...] = ()
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], shared: Mapping[str, Any], train: bool = False) -> Array:
        if self.reduce not in REDUCES or self.pool not in POOLS:
            raise ValueError(f"reduce={self.reduce}, pool={self.pool}: of {', '.join(REDUCES)}, and {', '.join(POOLS)}")
        tables = {name: jnp.asarray(shared[name]) for name in ("lines", *self.dense, *self.convolved)}
        if tables["lines"].ndim == 3:
            tables["lines"] = molecules.of_rows(self.reduced, tables["lines"], batch["line"])
        else:
            tables["lines"] = tables["lines"][batch["line"]]
        parts = [self.drugs(batch["molecules"], len(batch["drug"]), train)[batch["drug"]]]
        for name, table in tables.items():
            rows = table if name == "lines" else table[batch["line"]]
            parts.append(self.tower(name, rows, train))
        x = nn.tanh(_dense(300, "joined")(jnp.concatenate(parts, -1)))
        x = convolutions(self.drop(x, train), JOINED, "joined")
        x = self.drop(self.drop(x, train), train, 0.2)
        x = _dense(1, "out")(x.reshape(len(x), -1))[:, 0]
        return nn.sigmoid(x) if self.sigmoid else x

    def reduced(self, lines: Array) -> Array:
        """Return a number for each gene. [L, G, D] -> [L, G]"""
        return lines.mean(-1) if self.reduce == "mean" else _dense(1, "reduce")(lines)[..., 0]

    def drugs(self, graphs: jraph.GraphsTuple, n_rows: int, train: bool) -> Array:
        """Return a vector of each drug. [M, F]"""
        x, weight = graphs.nodes["x"], jnp.asarray(graphs.nodes["weight"])
        if self.pool == "padded":  # the last node stands for all that is padding in the published arrays
            weight = weight.at[-1].set(jnp.maximum(ROWS * n_rows - weight.sum(), 0))
        for i, width in enumerate(self.graph_widths):
            x = nn.relu(molecules.Convolution(width, name=f"convolution_{i}")(x, graphs))
            x = self.drop(_norm(f"convolution_norm_{i}")(x, train, weight), train)
        return molecules.mean(x, graphs, ROWS if self.pool == "padded" else None)

    def tower(self, name: str, x: Array, train: bool) -> Array:
        """Return 100 numbers of what is known of each row's line. [B, K] -> [B, 100]"""
        if name in self.convolved:
            x = convolutions(x, MUTATIONS, name)
            return nn.relu(_dense(100, f"{name}_out")(x.reshape(len(x), -1)))
        x = nn.tanh(_dense(256, f"{name}_hidden")(x))
        x = self.drop(_norm(f"{name}_norm")(x, train), train)
        return nn.relu(_dense(100, f"{name}_out")(x))

    def drop(self, x: Array, train: bool, rate: float | None = None) -> Array:
        """Return x with dropout in training, `rate` in place of the network's where it has any."""
        rate = self.dropout and (self.dropout if rate is None else rate)
        return dropped(x, rate, self.make_rng("noise")) if train and rate else x


def convolutions(x: Array, layers: tuple[tuple[Any, ...], ...], name: str) -> Array:
    """Return convolutions along rows, each with a pool after it. [B, K] -> [B, T, filters]

    ValueError where the rows are too short for them.
    """
    x, width = x[..., None], x.shape[1]
    for i, (filters, length, step, pool, between) in enumerate(layers):
        if x.shape[1] < length + step * (pool - 1):
            raise ValueError(f"{name}: {width} columns are too few for convolutions; let a dense tower read them")
        kernel = nn.initializers.glorot_uniform()
        x = nn.Conv(filters, (length,), step, padding="VALID", kernel_init=kernel, name=f"{name}_convolution_{i}")(x)
        x = nn.max_pool(between(x), (pool,), (pool,))
    return x


def examples(library: molecules.Library, drug: np.ndarray, line: np.ndarray, y: np.ndarray) -> Examples:
    """Return rows to train on: numbers of the drug in the library and of the line among the lines, ln IC50. [n] each"""
    line, y = np.asarray(line, np.int32), np.asarray(y, np.float32)
    return Examples(len(y), lambda at: library.batch(drug=drug[at]) | {"line": line[at], "y": y[at]})


def loss(prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
    """Return the mean squared error."""
    return jnp.square(prediction - batch["y"]).mean()


def tally(prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return the sum of squared errors and their number."""
    return jnp.square(prediction - batch["y"]).sum(), jnp.float32(len(prediction))


def head(preset: str = "linear", **changed: Any) -> Head:
    """Return the head of a preset, best by squared error; `changed`: fields of `DeepCDR` that are otherwise."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    return Head(DeepCDR(**{**PRESETS[preset], **changed}), loss, tally)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.glorot_uniform(), name=name)


def _norm(name: str) -> BatchNorm:
    return BatchNorm(momentum=0.01, eps=1e-3, name=name)
