"""Perturbation screens as heads read them: which cells are control, which were perturbed and how, log-normalised.

data = screens.read("screen.h5ad", column="perturbation", control=["non-targeting"])
data.screen.effects(["STAT1"])          # mean change of each measured gene
"""

import dataclasses
import os
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.batches import obs as columns
from data_pipeline.files import h5ad, perturbations
from data_pipeline.files.columns import text
from data_pipeline.genes import graph_file, vocab
from data_pipeline.synthetic_screen import LABEL
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.perturbation import screen


@dataclasses.dataclass
class Data:
    """A screen, and what its genes are called.

    Attributes:
      names, second: of the measured genes, then of the targets that were not measured. [G + M]
      controls: rows of the file that are control cells. few: cells of the conditions that are left out.
      depth: counts that a cell was scaled to, 0 where the values were logarithms already.
      synthetic: of a file that says that its effects are made, what it says; else "".
    """

    screen: screen.Screen
    names: list[str]
    second: list[str]
    controls: np.ndarray
    few: dict[str, int]
    depth: float = 0.0
    synthetic: str = ""

    def titled(self, title: str) -> str:
        """Return the title of a table of this screen, which says that the screen is synthetic if it is."""
        return f"# SYNTHETIC: {title}\n\nNo screen: {self.synthetic}." if self.synthetic else f"# {title}"

    def at(self, targets: Sequence[str]) -> dict[str, int]:
        """Return the place of each target in `names`."""
        beyond = {name: i for i, name in enumerate(self.names[len(self.screen.genes) :], len(self.screen.genes))}
        return {name: place if (place := self.screen.place[name]) >= 0 else beyond[name] for name in targets}


def read(
    source: Any,
    *,
    column: str = "auto",
    control: Sequence[str] = (),
    separator: str = "+",
    groups: str | None = None,
    filter: str | None = None,
    targets: Sequence[str] = (),
    least: int = screen.LEAST,
    depth: float = 0.0,
    logged: bool = False,
    gene_table: Sequence[str | os.PathLike] = (),
    say: Callable[[str], None] = print,
    **reading: Any,
) -> Data:
    """Return the screen in an AnnData or a file of raw counts.

    Args:
      column, control, separator: what was done to a cell, see `perturbations.read`.
      groups: obs column, such as cell types: each condition in each group is one of its own.
      filter: which cells count, such as "single_guide == 1".
      targets: only conditions of these; all, if left out. least: cells that a condition needs.
      depth: counts that a cell is scaled to before log1p; 0 for the median of the cells.
      logged: the values are log1p of scaled counts already.
      reading: where counts are, of `h5ad.read_counts`.

    Raises:
      ValueError, OSError: the file is not what it should be, in one line.
    """
    table = vocab.read_table(gene_table) if gene_table else None
    with h5ad.read_counts(source, **h5ad.place(reading), check=not logged) as counts:
        where = pathlib.Path(str(counts.path)).name
        conditions = perturbations.read(counts.obs, column, control, separator, where)
        names, second = vocab.file_names(counts)
        genes = vocab.union([(names, second)], table)
        table = vocab.learn([(names, second)], table)
        mapping = vocab.onto(counts, genes, table=table)
        matrix = sparse.csr_matrix(counts.take(np.arange(counts.n_cells)))
        if logged:
            perturbations.check_logged(matrix, where)
        matrix, obs = mapping.apply(matrix), counts.obs
    kept = _kept(filter, obs, matrix, where)
    of_cell = np.where(kept, conditions.names, None)
    of_group = _column(obs, groups, "groups", where) if groups else None
    if not logged:
        total = np.asarray(matrix.sum(1)).ravel()
        depth = depth or float(np.median(total[kept & (total > 0)]))
        matrix = log_normalised(matrix, target_sum=depth)
        say(f"log1p of counts per {depth:g}")
    listed = conditions.all_targets()
    place = dict(zip(listed, vocab.map_genes(listed, genes, table=table, min_mapped=None).index.tolist(), strict=True))
    options = {"control": perturbations.CONTROL, "groups": of_group, "least": least}
    made, few = screen.make(genes, matrix, of_cell, _asked(targets, conditions, where), place, **options)
    symbols = dict(zip(names, second, strict=True)) | dict(zip(second, names, strict=True))
    left = sorted({gene for of in made.targets.values() for gene in of if place[gene] < 0})
    say(
        f"{where}: {len(made.rows)} conditions, {len(few)} of fewer than {least} cells left out; {len(genes):,} "
        f"genes; targets that were not measured: {', '.join(left) or 'none'}"
    )
    others = [symbols.get(name) or "" for name in genes] + [""] * len(left)
    said = next((str(value) for value in obs.get(LABEL, ())), "")
    rows = np.flatnonzero(of_cell == perturbations.CONTROL)
    return Data(made, [*genes, *left], others, rows, few, 0.0 if logged else depth, said)


Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


def graph_edges(data: Data, path: str | os.PathLike, gene_table: Sequence[str | os.PathLike] = ()) -> Edges:
    """Return (source, target, weight) of a graph file among the genes of a screen; ValueError where it has none."""
    graph, table = graph_file.read(path), vocab.read_table(gene_table) if gene_table else None
    index = vocab.map_genes(data.names, graph.genes, ensembl=data.second, table=table, min_mapped=None).index
    place = np.full(len(graph.genes), -1)
    place[index[index >= 0]] = np.flatnonzero(index >= 0)
    kept = (place[graph.source] >= 0) & (place[graph.target] >= 0)
    return with_edges((place[graph.source[kept]], place[graph.target[kept]], graph.weight[kept]), path, data.names)


def with_edges(edges: Edges, path: str | os.PathLike, names: Sequence[str]) -> Edges:
    """Return the edges among some genes; ValueError where there are none."""
    if not len(edges[0]):
        raise ValueError(
            f"{path}: no edge between genes of the screen ({', '.join(names[:3])}, ...); check the species, or give a "
            "gene_table that knows both names"
        )
    return edges


def _column(obs: Any, name: str, flag: str, where: str) -> np.ndarray:
    if name not in obs:
        listed = ", ".join(map(str, obs.columns)) or "none"
        raise ValueError(f"{where}: {flag}={name}: no such obs column; there are {listed}")
    return text(obs[name])


def _kept(filter: str | None, obs: Any, matrix: sparse.csr_matrix, where: str) -> np.ndarray:
    """Return which cells a filter keeps. bool [n]"""
    if not filter:
        return np.ones(matrix.shape[0], bool)
    wanted = columns.Filter(filter)
    for name in sorted(wanted.columns - {"n_genes"}):
        _column(obs, name, "filter", where)
    return wanted(types.SimpleNamespace(obs=obs, name=where, indptr=matrix.indptr))


def _asked(names: Sequence[str], conditions: perturbations.Conditions, where: str) -> dict[str, tuple[str, ...]]:
    """Return the conditions that are wanted: those of the named targets alone, or all."""
    if unknown := [name for name in names if name not in conditions.all_targets()]:
        some = ", ".join(conditions.all_targets()[:8])
        raise ValueError(f"{where}: targets={unknown[0]}: no cell has this perturbation; there are {some}")
    wanted = set(names)
    return {name: of for name, of in conditions.targets.items() if not wanted or wanted >= set(of)}
