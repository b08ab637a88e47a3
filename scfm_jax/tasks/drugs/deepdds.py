"""Synergy of two drugs in a cell line, by DeepDDS' network on a foundation model's representations of the line.

DeepDDS (Wang et al., Brief. Bioinform. 2022) as scLong (bioRxiv 2024.11.09.622759, Fig. 4c) uses it: a graph
convolutional network makes a vector of each drug, linear layers one of the line, others two logits of the three.

A batch (`examples`): "molecules", "first" and "second" [B] (`tasks.drugs.molecules`, with 78 features of atoms),
"line" [B], y 0 or 1 [B]. `shared`: "lines" [L, G, D], gene representations of each line, or [L, G], its expression.

PRESETS: what the released code does (one network for both drugs; gene representations to four numbers a gene), what
scLong's paper says (a network for each, wider), and DeepDDS itself on expression. The published logits depend on which
drug comes first; here they are the mean over both orders (`symmetric`).

Lines are made once for a batch that has more rows than there are lines.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from flax import linen as nn

from scfm_jax.layers.dropout import dropped
from scfm_jax.layers.linear import Dense
from scfm_jax.tasks.drugs import molecules
from scfm_jax.tasks.heads import Examples, Head, Training
from scfm_jax.types import Array

PRESETS = {
    "repo": {},
    "paper": {
        "convolutions": (1024, 512, 156),
        "drug": (),
        "tied": False,
        "line": (512, 256, 128),
        "joined": (1024, 512, 128),
    },
    "deepdds": {"line": (512, 256, 128)},
}
TRAINING = Training({"name": "adam", "learning_rate": 1e-4}, epochs=100, rows=256)


class DeepDDS(nn.Module):
    """The head: logits of no synergy and of synergy. [B, 2]

    Attributes:
      convolutions: widths over a drug's bonds. drug: of the linear layers after its largest values.
      line, joined: widths of linear layers of the line and of all three together.
      channels: numbers that each gene's representation becomes.
      tied: one network for both drugs. symmetric: the mean of the logits of both orders.
    """

    convolutions: tuple[int, ...] = (78, 156, 312)
    drug: tuple[int, ...] = (156, 128)
    line: tuple[int, ...] = (256, 128, 128)
    joined: tuple[int, ...] = (256, 128)
    channels: int = 4
    tied: bool = True
    symmetric: bool = True
    dropout: float = 0.2

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], shared: Mapping[str, Any], train: bool = False) -> Array:
        rate = self.dropout if train else 0.0

        def drop(x: Array) -> Array:
            return dropped(x, rate, self.make_rng("noise")) if rate else x

        def drugs(name: str, which: Array) -> Array:
            """Return the vectors of the rows' drugs; dropout is each row's. [B, F]"""
            x = self.convolved(batch["molecules"], name)[which]
            for i, layer in enumerate(self.stack(name, self.drug)):
                x = layer(x)
                x = drop(nn.relu(x) if i + 1 < len(self.drug) else x)
            return x

        both = jnp.concatenate([batch["first"], batch["second"]])
        names = ("drug", "drug") if self.tied else ("first", "second")
        made = {name: jnp.split(drugs(name, both), 2) for name in dict.fromkeys(names)}
        line = molecules.of_rows(self.lines, jnp.asarray(shared["lines"]), batch["line"])
        orders = ((0, 1), (1, 0)) if self.symmetric else ((0, 1),)
        rows = [[*(made[name][side] for name, side in zip(names, order, strict=True)), line] for order in orders]
        x = jnp.stack([jnp.concatenate(row, -1) for row in rows])
        for layer in self.stack("joined", self.joined):
            x = drop(nn.relu(layer(x)))
        logits = Dense(2, name="out")(x)
        return logits.mean(0)

    def stack(self, name: str, widths: Sequence[int]) -> list[nn.Module]:
        """Return linear layers."""
        return [Dense(width, name=f"{name}_{i}") for i, width in enumerate(widths)]

    def convolved(self, graphs: jraph.GraphsTuple, name: str) -> Array:
        """Return the largest values over each drug's atoms. [M, F]"""
        x = graphs.nodes["x"]
        for i, width in enumerate(self.convolutions):
            x = nn.relu(molecules.Convolution(width, name=f"{name}_convolution_{i}")(x, graphs))
        return molecules.largest(x, graphs)

    def lines(self, lines: Array) -> Array:
        """Return a vector of each line, from its genes' representations or its expression. [L, G, D] -> [L, F]"""
        if lines.ndim == 3:
            x = nn.relu(Dense(self.channels, name="channels")(lines))
            x = x.reshape(len(lines), -1)
        else:
            x = lines / jnp.maximum(jnp.linalg.norm(lines, axis=-1, keepdims=True), 1e-12)
        for i, layer in enumerate(self.stack("line", self.line)):
            x = layer(nn.relu(x) if i else x)
        return x


def loss(logits: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
    """Return the mean cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"].astype(jnp.int32)).mean()


def tally(logits: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return the sum of cross entropies and their number."""
    return loss(logits, batch, shared) * len(logits), jnp.float32(len(logits))


def examples(
    library: molecules.Library, first: np.ndarray, second: np.ndarray, line: np.ndarray, y: np.ndarray
) -> Examples:
    """Return rows to train on: two numbers of drugs in the library, the line's among the lines, 0 or 1. [n] each"""
    line, y = np.asarray(line, np.int32), np.asarray(y, np.int32)

    def take(at: np.ndarray) -> dict[str, Any]:
        return library.batch(first=first[at], second=second[at]) | {"line": line[at], "y": y[at]}

    return Examples(len(y), take)


def head(preset: str = "repo", **changed: Any) -> Head:
    """Return the head of a preset, best by cross entropy; `changed`: fields of `DeepDDS` that are otherwise."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    return Head(DeepDDS(**{**PRESETS[preset], **changed}), loss, tally)


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the probability of synergy. [n, 2] -> [n]"""
    return np.asarray(jax.nn.softmax(logits)[:, 1])
