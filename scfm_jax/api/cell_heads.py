"""What CellPLM's head reads of a run: control cells for CellPLM to embed, or vectors of cells and of targets.

read = cell_heads.tuned(run, data, rows, "screen.h5ad")       # the model is trained with the head: CellPLM alone
read = cell_heads.frozen(run, data, rows, "screen.h5ad", vectors)
fitted, shared = cell_head.fit(dataclasses.replace(pairs, features=read.vectors), read.network, train, ...)
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from scfm_jax.api import cells as file_cells
from scfm_jax.api.screens import Data
from scfm_jax.inference import bags
from scfm_jax.tasks.genes.features import GeneVectors, standardised
from scfm_jax.tasks.perturbation.cell_head import CellHead, Vectors
from scfm_jax.types import Batch

if TYPE_CHECKING:
    from scfm_jax.api.run import Run


@dataclasses.dataclass
class Read:
    """A head, what it reads of cells, and the arguments of `cell_head.fit` for the model in it."""

    network: CellHead
    vectors: Vectors
    options: dict[str, Any]


def tuned(
    run: "Run",
    data: Data,
    rows: np.ndarray,
    source: Any,
    *,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.01,
    **reading: Any,
) -> Read:
    """Return the head with its model, for a run of CellPLM; ValueError for others, whose cells have no such mark.

    Args:
      rows: control cells of the file `source`, ascending. reading: of `h5ad.read_counts`.
    """
    if run.name != "cellplm":
        raise ValueError(f"{run.name}: only CellPLM is trained with this head; others are read as they are (`frozen`)")
    table = run.gene_table(gene_table)
    with h5ad.read_counts(_some(source, rows, reading)) as counts:
        mapping = run.map_genes(counts, table, min_mapped)
        per_cell, measured = file_cells.of_file(counts, mapping, len(run.genes), run.rules, None)
        matrix = mapping.apply(counts.take(np.arange(counts.n_cells)))
    labels = list(run.meta["config"].get("data", {}).get("labels", ()))
    packed = bags.pack(matrix, np.arange(len(rows))[:, None], labels=labels, **per_cell)
    constants = run.complete_constants([packed], measured, say=lambda _: None)
    targets, places = _targets(data)
    index = vocab.map_genes(
        [data.names[i] for i in places],
        run.genes,
        ensembl=[data.second[i] for i in places],
        table=table,
        min_mapped=None,
    ).index
    of_target = dict(zip(targets, np.where(index < 0, len(run.genes), index).tolist(), strict=True))
    most = max(len(of) for of in data.screen.targets.values())
    slots = np.full((len(data.screen.conditions) + 2, most), len(run.genes), np.int32)
    for i, name in enumerate(data.screen.conditions):
        listed = [of_target[gene] for gene in data.screen.targets[name]]
        slots[i, : len(listed)] = listed
    vectors = Vectors(
        rows, {"cells": Batch(**{f.name: packed[f.name] for f in dataclasses.fields(Batch)})}, {"slots": slots}
    )
    options = {"constants": constants, "start": run.variables["params"]}
    inputs = sorted((run.meta["config"].get("inputs") or {}).items())
    inputs = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in inputs)
    network = CellHead(len(data.names), encoder=run.model.clone(head="embedder"), module=run.module, options=inputs)
    return Read(network, vectors, options)


def frozen(
    run: "Run",
    data: Data,
    rows: np.ndarray,
    source: Any,
    of_genes: GeneVectors,
    *,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.01,
    **reading: Any,
) -> Read:
    """Return the head on a run's embedding of each control cell and its vectors of genes, those of `data.names`."""
    options = {"gene_table": gene_table, "min_mapped": min_mapped, "say": lambda _: None}
    cells = run.embed(_some(source, rows, reading), **options)
    targets, places = _targets(data)
    values = standardised(of_genes.values, of_genes.found)
    of_target = {gene: values[place] for gene, place in zip(targets, places, strict=True)}
    of_condition = np.zeros((len(data.screen.conditions) + 2, values.shape[1]), np.float32)
    for i, name in enumerate(data.screen.conditions):
        of_condition[i] = np.sum([of_target[gene] for gene in data.screen.targets[name]], axis=0)
    vectors = Vectors(rows, {"z": standardised(cells).astype(np.float32)}, {"target": of_condition})
    return Read(CellHead(len(data.names)), vectors, {})


def _targets(data: Data) -> tuple[list[str], list[int]]:
    """Return all targets and their places in `data.names`."""
    targets = sorted({gene for of in data.screen.targets.values() for gene in of})
    at = data.at(targets)
    return targets, [at[gene] for gene in targets]


def _some(source: Any, rows: np.ndarray, reading: Any) -> anndata.AnnData:
    """Return some cells of a file, raw counts in X."""
    with h5ad.read_counts(source, **h5ad.place(reading)) as counts:
        var = counts.var.set_axis(counts.genes)
        return anndata.AnnData(counts.take(rows).astype(np.float32), obs=counts.obs.iloc[rows], var=var)
