"""Molecules as jraph graphs of few shapes: the distinct ones of a batch, packed one after the other and padded.

    library = Library.of(molecules, features)      # arrays of data_pipeline.molecules
    batch = library.batch(drug=drugs[rows])        # {"molecules": GraphsTuple, "drug": [B]}

A batch has each molecule once, whatever the number of its rows, and rows say which of the graphs is theirs: 256 pairs
of 38 drugs are 38 graphs and not 512. A library with no more molecules than a batch may need goes in whole, so that
there is one shape; of a larger one, atoms are padded to quarters of powers of two.

Graphs (`jraph.GraphsTuple`): nodes {"x": [N, F], "weight": [N]}, edges {"weight": [E], "bond": [E, S]}, globals
{"atoms": [M, A], "n_atoms": [M]}. Weights of edges are those of a GCN, D^-1/2 (A + I) D^-1/2, with the loops that every
atom has; "bond" is zero on a loop. An atom weighs as many rows as its molecule has, padding nothing: what is averaged
over the atoms of a batch counts rows, not graphs. The last node is always padding, an atom of no features bound to
itself alone; "atoms" are each molecule's nodes, filled up with it.
"""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import jraph
import numpy as np
from flax import linen as nn

from scfm_jax.layers import graph
from scfm_jax.types import Array

EDGES = 7
"""Edges for every two atoms of a padded batch: more than drugs have, so that atoms alone make the shape."""


@dataclasses.dataclass(frozen=True)
class Library:
    """All molecules of a task, their atoms and edges one after the other.

    Attributes:
      x: features of each atom. [N, F]
      n_atoms: of each molecule, one or more. [M]
      edges: (source, target), numbered within the molecule; a bond is two edges. [E, 2]
      n_edges: of each molecule. [M]
      bond: features of the bond of each edge, none where they are left out. [E, S]
    """

    x: np.ndarray
    n_atoms: np.ndarray
    edges: np.ndarray
    n_edges: np.ndarray
    bond: np.ndarray | None = None

    def __post_init__(self) -> None:
        sizes = len(self.x), len(self.edges), len(self.n_atoms)
        if sizes != (np.sum(self.n_atoms), np.sum(self.n_edges), len(self.n_edges)) or np.min(self.n_atoms) < 1:
            raise ValueError(
                f"{sizes[0]} atoms, {sizes[1]} edges and {sizes[2]} molecules do not belong together: n_atoms and "
                "n_edges add up to them, and a molecule has an atom"
            )

    @classmethod
    def of(cls, molecules: Any, x: np.ndarray, bond: np.ndarray | None = None) -> "Library":
        """Return the library of molecules that have `n_atoms`, `bonds` [E, 2] and `n_bonds`, each bond once.

        Args:
          x, bond: features of atoms and bonds. [N, F], [E, S]
        """
        of_bond = np.repeat(np.arange(len(molecules.bonds)), 2)
        edges = np.stack([molecules.bonds, molecules.bonds[:, ::-1]], 1).reshape(-1, 2)
        bond = None if bond is None else bond[of_bond]
        return cls(x, molecules.n_atoms, edges, 2 * np.asarray(molecules.n_bonds), bond)

    def __len__(self) -> int:
        return len(self.n_atoms)

    @cached_property
    def packed(self) -> tuple[np.ndarray, ...]:
        """Return (edges with loops, weights, features of bonds, their number) sorted by molecule and target."""
        first = np.cumsum(self.n_atoms) - self.n_atoms
        source, target = np.asarray(self.edges, np.int64).T + np.repeat(first, self.n_edges)
        alone = np.setdiff1d(np.arange(len(self.x)), source[source == target])
        source, target = np.append(source, alone), np.append(target, alone)
        bond = np.zeros((len(source), 0 if self.bond is None else self.bond.shape[1]), np.float32)
        if self.bond is not None:
            bond[: len(self.edges)] = self.bond
        scale = np.bincount(target, minlength=len(self.x)) ** -0.5
        order = np.lexsort((source, target))
        source, target = source[order], target[order]
        molecule = np.repeat(np.arange(len(self)), self.n_atoms)[target]
        local = np.stack([source, target], 1) - first[molecule][:, None]
        weight = (scale[source] * scale[target]).astype(np.float32)
        return local, weight, bond[order], np.bincount(molecule, minlength=len(self))

    def pack(self, which: np.ndarray, rows: np.ndarray, slots: int) -> jraph.GraphsTuple:
        """Return some molecules as one padded graph of numpy arrays.

        Args:
          which: molecules, each once. rows: how many rows of the batch each has. [m]
          slots: graphs to pad to, more than m.
        """
        edges, weight, bond, n_edges = self.packed
        number, n_atoms = len(which), self.n_atoms[which]
        at, along = _ranges(self.n_atoms, which), _ranges(n_edges, which)
        whole = number == len(self)
        n_nodes = len(at) + 1 if whole else padded(len(at) + 1)
        n_along = len(along) + 1 if whole else max(padded(len(along) + 1), EDGES * n_nodes // 2)
        first = np.cumsum(n_atoms) - n_atoms
        moved = edges[along] + np.repeat(first, n_edges[which])[:, None]
        last = n_nodes - 1
        ends = np.full((n_along, 2), last)
        ends[: len(along)] = moved
        atoms = np.full((slots, int(self.n_atoms.max())), last)
        atoms[np.repeat(np.arange(number), n_atoms), np.arange(len(at)) - np.repeat(first, n_atoms)] = np.arange(
            len(at)
        )
        loop = np.zeros(n_along, np.float32)
        loop[-1] = 1  # of the last node, to itself; other padding edges weigh nothing

        def filled(values: np.ndarray, length: int) -> np.ndarray:
            return np.pad(values.astype(np.float32), [(0, length - len(values))] + [(0, 0)] * (values.ndim - 1))

        rest = [n_nodes - len(at), *[0] * (slots - number - 1)]
        return jraph.GraphsTuple(
            nodes={"x": filled(self.x[at], n_nodes), "weight": filled(np.repeat(rows, n_atoms), n_nodes)},
            edges={"weight": filled(weight[along], n_along) + loop, "bond": filled(bond[along], n_along)},
            senders=ends[:, 0].astype(np.int32),
            receivers=ends[:, 1].astype(np.int32),
            globals={"atoms": atoms.astype(np.int32), "n_atoms": filled(n_atoms, slots)},
            n_node=np.array([*n_atoms, *rest], np.int32),
            n_edge=np.array([*n_edges[which], n_along - len(along), *[0] * (slots - number - 1)], np.int32),
        )

    def batch(self, **drugs: np.ndarray) -> dict[str, Any]:
        """Return the graphs of a batch, and which of them each row has.

        Args:
          drugs: molecules of the rows by name, such as drug=..., or first=..., second=... of a pair. [B] each
        """
        asked = np.concatenate(list(drugs.values()))
        which, place, rows = np.unique(asked, return_inverse=True, return_counts=True)
        if len(self) <= len(asked):
            place, rows = asked, np.bincount(asked, minlength=len(self))
            which = np.arange(len(self))
        places = np.split(place.astype(np.int32), len(drugs))
        graphs = self.pack(which, rows, min(len(self), len(asked)) + 1)
        return {"molecules": graphs, **dict(zip(drugs, places, strict=True))}


def padded(number: int) -> int:
    """Return the least of 1, 1.25, 1.5, 1.75 times a power of two that is no less than `number`, from 16 on."""
    step = max((1 << (number - 1).bit_length()) // 8, 4)
    return -(-number // step) * step


def _ranges(sizes: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Return the places of the elements of some groups, which lie one after the other with these sizes."""
    some, first = sizes[which], np.cumsum(sizes) - sizes
    return np.arange(some.sum()) + np.repeat(first[which] - (np.cumsum(some) - some), some)


class Convolution(nn.Module):
    """A layer of a GCN: the weighted sum over an atom's neighbours and itself, a matrix, and then a bias.

    Glorot's uniform distribution for the matrix, as in PyTorch Geometric and in Keras.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array, graphs: jraph.GraphsTuple) -> Array:  # [N, D] -> [N, F]
        x = graph.aggregate(x, graphs.edges["weight"], graphs)
        return nn.Dense(self.features, kernel_init=nn.initializers.glorot_uniform(), name="linear")(x)


def graph_of_atom(graphs: jraph.GraphsTuple) -> Array:
    """Return which graph each node belongs to. [N]"""
    n_nodes = len(graphs.nodes["weight"])
    return jnp.repeat(jnp.arange(len(graphs.n_node)), graphs.n_node, total_repeat_length=n_nodes)


def total(x: Array, graphs: jraph.GraphsTuple) -> Array:
    """Return the sum over each molecule's atoms. [N, D] -> [M, D]"""
    return jax.ops.segment_sum(x, graph_of_atom(graphs), len(graphs.n_node), indices_are_sorted=True)


def mean(x: Array, graphs: jraph.GraphsTuple, rows: int | None = None) -> Array:
    """Return the mean over each molecule's atoms. [N, D] -> [M, D]

    Args:
      rows: the mean over so many rows, those beyond its atoms being padding atoms, as DeepCDR's code has it.
    """
    n_atoms = graphs.globals["n_atoms"][:, None]
    if rows is None:
        return total(x, graphs) / jnp.maximum(n_atoms, 1)
    return (total(x, graphs) + jnp.maximum(rows - n_atoms, 0) * x[-1]) / jnp.maximum(rows, n_atoms)


def largest(x: Array, graphs: jraph.GraphsTuple) -> Array:
    """Return the largest value of each molecule's atoms; 0 for a graph without any. [N, D] -> [M, D]"""
    return jraph.segment_max_or_constant(x, graph_of_atom(graphs), len(graphs.n_node), indices_are_sorted=True)


def of_rows(module: Callable[[Array], Array], table: Array, rows: Array) -> Array:
    """Return what a layer makes of the rows of a table, of each of which once if they are fewer. [L, ...], [B]

    The layer treats every row by itself and alike, so the order of the two does not matter.
    """
    return module(table)[rows] if len(table) <= len(rows) else module(table[rows])
