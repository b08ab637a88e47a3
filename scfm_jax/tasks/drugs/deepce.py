"""Change of expression after a compound, gene by gene, by DeepCE's network on a foundation model's gene vectors.

DeepCE (Pham et al., Nat. Mach. Intell. 2021) as scLong (bioRxiv 2024.11.09.622759, Fig. 3) uses it: the atoms of a
compound and the genes attend, each gene's state goes with the compound, the cell line and the dose to one number. Of a
foundation model it needs gene vectors alone.

A batch (`examples`): "molecules" and "drug" [B] (`tasks.drugs.molecules`, with 62 features of atoms and 6 of bonds),
"cell" and "dose" one-hot [B, K], y [B, G] the change of expression. `shared`: "genes" [G, D], standardised vectors.

PRESETS: what the released code does, and what scLong's paper says: three graph layers of 128 instead of two of 16, 512
wide (and what is between in proportion), genes that attend to atoms but not to each other, a mean over atoms.

What does not depend on the row is computed once for a batch: genes start alike in all rows, so the first layer's
attention among genes is one and not B, and so is its dropout. The network is otherwise the released one: in a layer one
layer normalisation does for both of its sums.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn

from scfm_jax.layers import graph, softmax_attention
from scfm_jax.layers.dropout import dropped
from scfm_jax.layers.linear import Dense, bias_uniform
from scfm_jax.layers.norms import BatchNorm, LayerNorm
from scfm_jax.tasks.drugs import molecules
from scfm_jax.tasks.heads import Examples, Head, Training
from scfm_jax.types import Array

DEGREES = 6
"""Atoms with 0 to 5 bonds have a matrix of their own; those with more share the last."""
PRESETS = {
    "repo": {},
    "paper": {
        "graph_widths": (128, 128, 128),
        "width": 512,
        "feedforward": 2048,
        "hidden": 512,
        "among_genes": False,
        "pool": "mean",
    },
}
POOLS = {"sum": molecules.total, "mean": molecules.mean}
TRAINING = Training({"name": "adam", "learning_rate": 2e-4}, epochs=100, rows=16)
"""The paper's; the released code has batches of 32."""


class DeepCE(nn.Module):
    """The head: the change of each gene. [B, G]

    Attributes:
      graph_widths: of the convolutions over a compound's bonds.
      width: of genes' and atoms' states. hidden: of the last layer but one.
      layers, heads, feedforward: of the attention.
      among_genes: whether genes attend to each other too.
      condition: numbers that the cell line and the dose become.
      pool: "sum" or "mean" over a compound's atoms.
    """

    graph_widths: tuple[int, ...] = (16, 16)
    width: int = 128
    layers: int = 2
    heads: int = 4
    feedforward: int = 512
    hidden: int = 128
    among_genes: bool = True
    condition: int = 4
    pool: str = "sum"
    dropout: float = 0.1

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], shared: Mapping[str, Any], train: bool = False) -> Array:
        graphs, drug = batch["molecules"], batch["drug"]
        atoms = Fingerprint(self.graph_widths, self.width, name="fingerprint")(graphs, train)  # [N, D]
        of_row = graphs.globals["atoms"][drug]  # [B, A]
        real = of_row < len(atoms) - 1
        genes = Dense(self.width, name="genes")(jnp.asarray(shared["genes"]))[None]  # [1, G, D]
        for i in range(self.layers):
            block = Block(self.heads, self.feedforward, self.among_genes, self.dropout, name=f"layer_{i}")
            genes = block(genes, atoms[of_row], real, train)
        genes = Dense(self.width, name="genes_out")(genes)
        rest = [POOLS[self.pool](atoms, graphs)[drug]]
        rest += [Dense(self.condition, name=name)(batch[name]) for name in ("cell", "dose") if name in batch]
        state = in_parts(self.hidden, "joined", self, nn.relu(genes), nn.relu(jnp.concatenate(rest, -1))[:, None])
        return Dense(1, name="out")(nn.relu(state))[..., 0]


class Fingerprint(nn.Module):
    """A neural fingerprint of each atom: at every level softmax of a linear layer of its state, added up. [N, D]

    From level to level: ReLU of the batch-normalised sum of a linear layer of the atom's state, another of the sum over
    its neighbours of their states and bonds, by the number of neighbours, and a bias (Duvenaud et al. 2015).
    """

    widths: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, graphs: jraph.GraphsTuple, train: bool) -> Array:
        x, weight = graphs.nodes["x"], graphs.nodes["weight"]
        bound = (graphs.senders != graphs.receivers).astype(jnp.float32)
        sums = lambda values: jax.ops.segment_sum(values, graphs.receivers, len(weight), indices_are_sorted=True)  # noqa: E731
        degree = jnp.minimum(sums(bound).astype(jnp.int32), DEGREES - 1)
        bonds = sums(graphs.edges["bond"])  # [N, S]
        out = nn.softmax(Dense(self.features, name="level_0")(x))
        for i, width in enumerate(self.widths):
            near = jnp.concatenate([graph.aggregate(x, bound, graphs), bonds], -1)
            kernel = self.param(f"near_{i}", _fan_in, (DEGREES, near.shape[-1], width))
            by_degree = jnp.einsum("nk,dkf->ndf", near, kernel)
            near = jnp.take_along_axis(by_degree, degree[:, None, None], 1)[:, 0] * (degree > 0)[:, None]
            x = Dense(width, use_bias=False, name=f"self_{i}")(x) + near
            x = x + self.param(f"bias_{i}", nn.initializers.zeros, (width,))
            x = nn.relu(BatchNorm(affine=False, name=f"norm_{i}")(x, train, weight))
            out = out + nn.softmax(Dense(self.features, name=f"level_{i + 1}")(x))
        self.sow("intermediates", "atoms", out)
        return out


class Block(nn.Module):
    """A layer: genes attend to atoms, and to genes; then two linear layers; both are added and normalised."""

    heads: int
    feedforward: int
    among_genes: bool
    dropout: float

    @nn.compact
    def __call__(self, genes: Array, atoms: Array, real: Array, train: bool) -> Array:
        """Return states of the genes. [1 or B, G, D], [B, A, D], bool [B, A] -> [B, G, D]"""
        width, norm = genes.shape[-1], LayerNorm(name="norm")
        rate = self.dropout if train else 0.0

        def drop(x: Array) -> Array:
            return dropped(x, rate, self.make_rng("noise")) if rate else x

        attention = Attention(self.heads, rate, name="to_atoms")(genes, atoms, real)
        parts = [attention]
        if self.among_genes:
            every = jnp.ones(genes.shape[:2], bool)
            parts.append(Attention(self.heads, rate, name="among_genes")(genes, genes, every))
        genes = norm(genes + drop(nn.relu(in_parts(width, "joined", self, *parts))))
        forward = Dense(width, name="forward_1")(drop(nn.relu(Dense(self.feedforward, name="forward_0")(genes))))
        return norm(genes + drop(forward))


class Attention(nn.Module):
    """Softmax attention of several heads with dropout of its weights. [1 or B, T, D], [B, S, D] -> [B, T, D]"""

    heads: int
    rate: float

    @nn.compact
    def __call__(self, queries: Array, keys: Array, real: Array) -> Array:
        width = queries.shape[-1]
        q, k, v = (Dense(width, name=name)(x) for name, x in (("query", queries), ("key", keys), ("value", keys)))
        q = jnp.broadcast_to(q, (len(k), *q.shape[1:]))
        q, k, v = (x.reshape(*x.shape[:2], self.heads, -1) for x in (q, k, v))
        key = self.make_rng("noise") if self.rate else None
        out = softmax_attention.attend(q, k, v, real, self.rate, key)
        return Dense(width, name="out")(out.reshape(*out.shape[:2], width))


def in_parts(features: int, name: str, module: nn.Module, *parts: Array) -> Array:
    """Return a linear layer of arrays side by side, each as large as it is: those that are broadcast are not repeated.

    Its kernel is that of a `Dense` on the arrays joined along their last axis.
    """
    width = sum(x.shape[-1] for x in parts)
    kernel = module.param(f"{name}_kernel", _fan_in, (width, features))
    bias = module.param(f"{name}_bias", bias_uniform(width), (features,))
    kernels = jnp.split(kernel, np.cumsum([x.shape[-1] for x in parts])[:-1])
    return sum(x @ part for x, part in zip(parts, kernels, strict=True)) + bias


def examples(library: molecules.Library, drug: np.ndarray, y: np.ndarray, **conditions: np.ndarray) -> Examples:
    """Return rows to train on: of each the compound's number in the library, its change, cell and dose one-hot.

    [n], [n, G], cell=[n, K], dose=[n, K]
    """
    rows = {"y": np.asarray(y, np.float32)} | {name: np.asarray(x, np.float32) for name, x in conditions.items()}
    return Examples(len(drug), lambda at: {**library.batch(drug=drug[at]), **{k: x[at] for k, x in rows.items()}})


def loss(prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
    """Return the mean squared error."""
    return jnp.square(prediction - batch["y"]).mean()


def tally(prediction: Array, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return the sum of the rows' correlations of predicted and true change, and their number."""
    a, b = (x - x.mean(1, keepdims=True) for x in (prediction, batch["y"]))
    r = (a * b).sum(1) / jnp.maximum(jnp.sqrt((a * a).sum(1) * (b * b).sum(1)), 1e-12)
    return r.sum(), jnp.float32(len(r))


def unexplained(sums: tuple[np.ndarray, np.ndarray], shared: Mapping[str, Any]) -> float:
    """Return 1 - the mean correlation, which is best where lowest."""
    return float(1 - sums[0] / sums[1])


def head(preset: str = "repo", **changed: Any) -> Head:
    """Return the head of a preset, best by the rows' mean correlation; `changed`: fields of `DeepCE` otherwise."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}: there are {', '.join(PRESETS)}")
    return Head(DeepCE(**{**PRESETS[preset], **changed}), loss, tally, unexplained)


def _fan_in(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw as PyTorch starts linear layers; the last axis but one is that of inputs."""
    return jax.random.uniform(key, shape, minval=-1, maxval=1) * shape[-2] ** -0.5
