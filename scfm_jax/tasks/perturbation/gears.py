"""Expression of cells after a genetic perturbation, by GEARS' head on a foundation model's gene representations.

GEARS (Roohani et al., Nat. Biotechnol. 2024) as scLong (bioRxiv 2024.11.09.622759, Fig. 2) puts it on its own
representations: what is known of each gene in a control cell, plus what a graph of Gene Ontology tells of the genes
that are perturbed, plus a mark on these genes themselves, goes gene by gene to a change of expression, corrected by
what all genes of the cell say together. x of an untreated cell is added: a change of zero is what an untrained head is
near to.

A batch: x [B, G] log-normalised expression of control cells, `flags` [B, G] (1 at the targets), `features` [B, G, D] of
the same cells, or none, y [B, G] of perturbed cells, `condition` [B], their perturbation. Rows of controls have no flag
and y = x. `shared`: "graph" of the genes' GO terms (`go_graph`), "coexpression" where the network reads it, "retained"
[P, G] (`retained`), "control" [G] the mean of control cells, and "de" [P, G], the genes that validation is scored on.

PRESETS: what scLong's released code does, what its paper says, GEARS itself without a foundation model. Trained as
released (`TRAINING`): Adam at 1e-3, halved every epoch, an L2 term of 5e-4, gradients of 8 batches of 64 added up, then
each entry clipped at 1 (`heads.Training`). Two vector tables are kept in the unit ball: `project`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn

from scfm_jax.layers import graph
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.norms import BatchNorm
from scfm_jax.tasks.heads import Head, Training
from scfm_jax.types import Array

REFERENCES = ("control", "own")
PRESETS = {
    "repo": {"network": {"width": 1024}, "loss": {}},
    "paper": {"network": {"width": 200, "cross_layers": 1}, "loss": {"direction": 1.0, "reference": "own"}},
    "gears": {"network": {"width": 64, "coexpression": True}, "loss": {}},
}
"""Keywords of `Gears` and of `Loss`. The paper has 200-400-200 and 5,045 -> 200 in one layer, no factor before the term
of signs, and compares with the input cell; the code has 1,024, a factor of 0.1 and the mean of controls."""

TRAINING = Training(
    optimizers={"name": "adam", "learning_rate": 1e-3, "weight_decay": 5e-4},
    epochs=16,
    rows=64,
    sums=8,
    clip=1.0,
    decay=0.5,
)


class Perceptron(nn.Module):
    """Linear layers, each followed by batch normalisation, with ReLU between them."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:  # [..., D] -> [..., widths[-1]]
        for i, width in enumerate(self.widths):
            x = BatchNorm(name=f"norm_{i}")(Dense(width, name=f"linear_{i}")(nn.relu(x) if i else x), train)
        return x


class Gears(nn.Module):
    """The head: expression of each gene after the perturbation. [B, G]

    Attributes:
      n_genes: G, the measured genes and the targets that were not measured.
      width: h. Features of another width go through a linear layer.
      graph_layers: convolutions over the GO graph, with ReLU between them.
      coexpression: add a fifth of a second table after a convolution over the graph of co-expression, then two layers.
      cross_layers: layers of what all genes of a cell say together.
      linear: features of width h go through a linear layer too (published: others alone).
    """

    n_genes: int
    width: int = 64
    graph_layers: int = 1
    coexpression: bool = False
    cross_layers: int = 2
    linear: bool = False

    @nn.compact
    def __call__(self, batch: Mapping[str, Array], shared: Mapping[str, Any], train: bool = False) -> Array:
        h, flags = self.width, batch["flags"].astype(jnp.float32)
        state = self.before(batch.get("features"), shared, train)
        effect = flags @ self.convolved("perturbed_table", shared["graph"], self.graph_layers)  # [B, h]
        effect = Perceptron((h, h), name="effect")(effect, train) * flags.any(1, keepdims=True)
        kernel, bias = (self.param(f"flag_{name}", _unit_uniform, (h,)) for name in ("kernel", "bias"))
        state = state + effect[:, None] + flags[..., None] * kernel + bias
        state = nn.relu(BatchNorm(name="marked_norm")(state, train))
        state = nn.relu(BatchNorm(name="joined_norm")(state, train))
        state = Perceptron((2 * h, h), name="recover")(state, train)
        return batch["x"] + self.decoded(state, train)

    def before(self, features: Array | None, shared: Mapping[str, Any], train: bool) -> Array:
        """Return what is known of each gene before the perturbation; [1, G, h] where it is the same in all cells."""
        if features is None:
            x = self.table("gene_table")[None]
        else:
            same = features.shape[-1] == self.width and not self.linear
            x = features if same else Dense(self.width, name="features")(features)
        x = nn.relu(BatchNorm(name="before_norm")(x, train))
        if self.coexpression:
            near = self.convolved("position_table", shared["coexpression"], 1)
            x = Perceptron((self.width, self.width), name="joined")(x + 0.2 * near, train)
        return x

    def decoded(self, state: Array, train: bool) -> Array:
        """Return the change of each gene: by itself, then with a summary of all genes of the cell. [B, G, h] -> [B, G]

        The four weights of the genes start from Xavier's normal distribution for their shapes in PyTorch: [G, h, 1],
        [G, 1], [1, G, h + 1] and [1, G].
        """
        n, h = self.n_genes, self.width
        alone = self.param("alone_kernel", _normal(h + n), (n, h)), self.param("alone_bias", _normal(1 + n), (n,))
        both = self.param("both_kernel", _normal((n + 1) * (h + 1)), (n, h + 1))
        both_bias = self.param("both_bias", _normal(n + 1), (n,))
        change = jnp.einsum("bgh,gh->bg", state, alone[0]) + alone[1]
        summary = Perceptron((h,) * self.cross_layers, name="cross")(change, train)
        return change * both[:, 0] + summary @ both[:, 1:].T + both_bias

    def convolved(self, name: str, edges: jraph.GraphsTuple, layers: int) -> Array:
        """Return a table of genes after convolutions over a graph. [G, h]"""
        x = self.table(name)
        for i in range(layers):
            x = graph.GraphConvolution(self.width, name=f"{name}_graph_{i}")(nn.relu(x) if i else x, edges)
        return x

    def table(self, name: str) -> Array:
        """Return a table of genes whose rows are no longer than 1; shortening them has no gradient. [G, h]"""
        rows = self.param(name, nn.initializers.normal(1.0), (self.n_genes, self.width))
        return rows + jax.lax.stop_gradient(in_unit_ball(rows) - rows)


def in_unit_ball(rows: Array) -> Array:
    """Return rows of a norm of at most 1, as torch's embeddings with `max_norm` are after a forward pass. [G, h]"""
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return jnp.where(norm > 1, rows / (norm + 1e-7), rows)


def project(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with the tables' rows in the unit ball."""
    return {name: in_unit_ball(x) if name.endswith("_table") else x for name, x in params.items()}


def go_graph(source: np.ndarray, target: np.ndarray, weight: np.ndarray, n_genes: int) -> jraph.GraphsTuple:
    """Return the graph that the convolutions read: every gene is among its own sources.

    As PyTorch Geometric does it, of several edges of a gene to itself the last counts, and a gene that has none gets
    one of weight 1; then all are normalised (`graph.build`).
    """
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    loops = np.flatnonzero(source == target)
    last = {int(source[i]): i for i in loops}
    kept = np.union1d(np.flatnonzero(source != target), np.fromiter(last.values(), np.int64, len(last)))
    return graph.build(source[kept], target[kept], np.asarray(weight)[kept], n_nodes=n_genes, self_loops=True)


@dataclasses.dataclass(frozen=True)
class Loss:
    """GEARS' loss: the mean over the perturbations of a batch of their cells' and genes' mean |prediction - y|^power.

    To it comes `direction` times the mean squared difference of the signs of y - c and prediction - c, which tells of
    wrong directions but has no gradient. Genes are those `retained` of the perturbation.

    Attributes:
      reference: c is the mean of controls ("control"), or the cell's x ("own").
    """

    direction: float = 0.1
    power: int = 4
    reference: str = "control"

    def __post_init__(self) -> None:
        if self.reference not in REFERENCES:
            raise ValueError(f"reference={self.reference!r}: there are {', '.join(REFERENCES)}")

    def __call__(self, prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
        y, condition = batch["y"], batch["condition"]
        control = shared["control"] if self.reference == "control" else batch["x"]
        genes = shared["retained"][condition].astype(jnp.float32)  # [B, G]
        wrong = jnp.square(jnp.sign(y - control) - jnp.sign(prediction - control))
        each = jnp.abs(prediction - y) ** self.power + self.direction * wrong
        cell = (each * genes).sum(1) / jnp.maximum(genes.sum(1), 1)
        share = 1 / (condition[:, None] == condition).sum(1)  # so that all perturbations count alike
        return (cell * share).sum() / share.sum()


def retained(y: np.ndarray, condition: np.ndarray, n_conditions: int, control: int | None) -> np.ndarray:
    """Return the genes that count in the loss: not zero in the mean of the perturbation, all for controls. [P, G]

    Args:
      y: training cells. [n, G]
      condition: of each, 0 to n_conditions - 1. control: which of them are the controls. [n]
    """
    kept = np.stack([(y[condition == i] != 0).any(0) for i in range(n_conditions)])
    if control is not None:
        kept[control] = True
    return kept


def with_targets(names: Sequence[str], targets: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the genes with those targets appended that were not measured, and which were. [G], bool [G]

    The appended ones have an expression of zero; scores are on the measured ones.
    """
    missing = list(dict.fromkeys(target for target in targets if target not in set(names)))
    return [*names, *missing], np.arange(len(names) + len(missing)) < len(names)


def tally(prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """Return the sums of predictions and truths of each condition, and their numbers. [P, G], [P, G], [P]"""
    add = functools.partial(jax.ops.segment_sum, segment_ids=batch["condition"], num_segments=len(shared["de"]))
    return add(prediction), add(batch["y"]), add(jnp.ones(len(prediction)))


def mse_de(sums: tuple[np.ndarray, np.ndarray, np.ndarray], shared: Mapping[str, Any]) -> float:
    """Return the mean over conditions of the squared error of their mean on the genes of "de"; the others are left out.

    A condition without such genes (the controls) is none of those.
    """
    predicted, true, number = sums
    genes = np.asarray(shared["de"], bool)
    kept = (number > 0) & genes.any(1)
    if not kept.any():
        raise ValueError("no validation row is of a perturbation that has genes in shared['de']")
    error = np.square(predicted - true)[kept] / number[kept, None] ** 2
    return float(((error * genes[kept]).sum(1) / genes[kept].sum(1)).mean())


def head(preset: str, n_genes: int, **changed: Any) -> Head:
    """Return the head of a preset, best by validation `mse_de`; `changed`: fields of `Gears` that are otherwise."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    network = Gears(n_genes, **{**PRESETS[preset]["network"], **changed})
    return Head(network, Loss(**PRESETS[preset]["loss"]), tally, mse_de, project)


def _unit_uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw as PyTorch starts a linear layer with one input."""
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _normal(fan: int) -> nn.initializers.Initializer:
    """Return Xavier's normal initialiser for a sum of inputs and outputs."""
    return nn.initializers.normal((2 / fan) ** 0.5)
