"""What a run says of genes, for the heads of the gene tasks: a vector of each, or one of each in every cell.

    vectors = run.gene_vectors("table", names=["STAT1", "ENSG00000096968"])      # GeneVectors [2, D], by any name
    vectors = run.gene_vectors("context", source="cells.h5ad", keep="features")  # means over cells, computed once
    stream = gene_features.stream(run, "cells.h5ad", keep="features", width=16)  # of each cell, from disk

Kinds (KINDS): the model's own table; the output of its graph convolution; the sum of both, as the network takes it;
"context", its gene representations; and for a model that has none of its own, by definition and named so,
"table+cell+expression": the gene's row of the table, the cell's embedding, the gene's log-normalised expression in it.

What costs a forward pass is kept in a folder if asked, under a name made of weights, file, kind and options: what is
damaged or half-written is noticed and computed again.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.files import h5ad, whole
from data_pipeline.genes import vocab
from scfm_jax import __version__
from scfm_jax.inference import gene_representations, infer
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.saving import checksums, leaves, sealed
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes import features, gene_clusters
from scfm_jax.tasks.perturbation.pairs import CellFeatures
from scfm_jax.types import Array

if TYPE_CHECKING:
    from scfm_jax.api.run import Run

COMPOSED = "table+cell+expression"
KINDS = ("table", "graph", "table+graph", "context", COMPOSED)
OF_CELLS = ("context", COMPOSED)
BLOCK_BYTES = 128 << 20
"""Composed representations that are made at a time."""
MEMORY = 2 << 30
"""Features of cells that are held in memory; more are read from disk, cell by cell."""


def kinds(run: "Run") -> list[str]:
    """Return the kinds that a run has without any cell."""
    plain = gene_clusters.kinds(run)
    return [*plain, "table+graph"] if len(plain) == 2 else plain


def vectors(
    run: "Run",
    kind: str = "auto",
    *,
    names: Sequence[str] | None = None,
    second: Sequence[str] | None = None,
    source: Any = None,
    rows: Sequence[int] | None = None,
    gene_table: Sequence[str | os.PathLike] = (),
    width: int | None = None,
    keep: str | os.PathLike | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **reading: Any,
) -> features.GeneVectors:
    """Return a vector for each gene; the mean of the others, flagged in `found`, for one that the run does not know.

    Args:
      kind: of KINDS, or "auto": the first that the run has without cells, else "context".
      names: genes by any of their names, Ensembl ids or symbols; all of the model, if left out. [G]
      second: another name of each, "" for none. [G]
      source: AnnData or file whose cells "context" and "table+cell+expression" are means over; rows: some of them.
      gene_table: files that translate gene names (see `vocab.read_table`).
      width: numbers to project to, in fixed random directions; None keeps them all.
      keep: folder to keep in what cost a forward pass.
      reading: of `Run.gene_representations`.

    Raises:
      ValueError, OSError: no such kind, a run without it, none of the genes known, or as for `Run.embed`.
    """
    kind = _checked(run, kind, source)
    if kind in OF_CELLS:
        values = _means(run, kind, source, rows=rows, gene_table=gene_table, keep=keep, seed=seed, say=say, **reading)
    else:
        parts = (run.name, run.variables, len(run.genes))
        values = sum(gene_clusters.vectors(*parts, part, run.model, run.constants) for part in kind.split("+"))
    if names is None:
        index, names, report = np.arange(len(run.genes)), run.genes, ""
    else:
        table = run.gene_table(gene_table)
        mapping = vocab.map_genes(names, run.genes, ensembl=second, table=table, min_mapped=None)
        index, report = mapping.index, str(mapping.report)
        say(f"{kind} vectors of {run.name}: {report}")
    made = features.taken(values, index, names, kind, f"{run.name}, {run.source}", report)
    return made if width is None else made.projected(width, seed)


def stream(
    run: "Run",
    source: Any,
    kind: str = "context",
    *,
    keep: str | os.PathLike | None = None,
    width: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **reading: Any,
) -> GeneRepresentations:
    """Return a vector of each gene in each cell, as a stream; from disk, if `keep` names a folder, written at first.

    Where the model was not given a gene in a cell (NaN: scEMB's beyond the 2,048 highest ranked) stands the gene's mean
    over the cells in which it was, zeros where there is none.

    Args:
      kind: "context" or "table+cell+expression". width, seed, keep: as for `vectors`.
      reading: of `Run.gene_representations`.
    """
    if kind not in OF_CELLS:
        raise ValueError(f"kind={kind}: no vectors of genes in a cell; {' and '.join(OF_CELLS)} are")
    _checked(run, kind, source)
    path = keep and pathlib.Path(keep) / f"{key(run, source, kind, width=width, seed=seed, **reading)}.zarr"
    if path and path.exists():
        try:
            return gene_representations.read(path)
        except sealed.Damaged as damage:
            say(f"warning: {damage}: it is made again")
            shutil.rmtree(path)
    made = _cells(run, kind)(source, seed=seed, say=say, **reading)
    if hasattr(run.module, "gene_ids"):  # it reads some of the genes only
        means, _ = made.mean_of(np.ones((len(made.rows), 1), bool))
        made = made.without_gaps(np.nan_to_num(means[0]))
    made = made if width is None else made.projected(width, seed)
    if not path:
        return made
    path.parent.mkdir(parents=True, exist_ok=True)
    made.write(path)
    return gene_representations.read(path)


def own_stream(run: "Run", source: Any, **options: Any) -> GeneRepresentations:
    """Return the model's representations of genes in cells, or "table+cell+expression" where it has none.

    Args:
      options: of `stream`.
    """
    try:
        return stream(run, source, "context", **options)
    except infer.NoGenes:
        return stream(run, source, COMPOSED, **options)


def of_cells(
    run: "Run",
    source: Any,
    names: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    gene_table: Sequence[str | os.PathLike] = (),
    **options: Any,
) -> CellFeatures:
    """Return what a run says of genes in cells, for heads that look some cells up at a time.

    That is its gene representations, or "table+cell+expression" for a model that has none.

    Args:
      names, second: of the genes, as for `vectors`. [G]
      options: of `stream`; without `keep`, all is in memory.
    """
    made = own_stream(run, source, gene_table=gene_table, **options)
    table = run.gene_table(gene_table)
    places = vocab.map_genes(names, run.genes, ensembl=second, table=table, min_mapped=None).index
    of_id = np.full(len(run.genes) + 1, -1)
    of_id[made.ids] = np.arange(len(made.ids))
    index = of_id[places]
    if not (index >= 0).any():
        raise ValueError(f"{run.name} ({run.source}): knows none of the {len(names)} genes; give a gene_table")
    shape = (len(made.rows), len(made.ids), made.width)
    kept = None if made.taken and 4 * np.prod(shape) > MEMORY else np.empty(shape, np.float32)
    number, total, square = 0, np.zeros(made.width), np.zeros(made.width)
    for rows, values in made:
        if kept is not None:
            kept[np.searchsorted(made.rows, rows)] = values
        values = values[:, index[index >= 0]].astype(np.float64)
        number += values.shape[0] * values.shape[1]
        total, square = total + values.sum((0, 1)), square + (values * values).sum((0, 1))
    mean = total / number
    deviation = np.sqrt(np.maximum(square / number - mean**2, 0))
    scale = np.where(deviation > 1e-6 * np.maximum(np.abs(mean), 1e-30), deviation, np.inf)
    values = _FromDisk(made.taken) if kept is None else kept
    return CellFeatures(made.rows, values, index, mean.astype(np.float32), scale.astype(np.float32))


class _FromDisk:
    """An array of cells of which some are read at a time."""

    def __init__(self, taken: Callable[[np.ndarray], np.ndarray]):
        self._taken = taken

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self._taken(places)


def key(run: "Run", source: Any, kind: str, **options: Any) -> str:
    """Return 24 hexadecimal digits that stand for a run's weights, the content of a file, the kind and the options."""
    if not isinstance(source, str | os.PathLike):
        raise ValueError("keep: features are kept by their file, an AnnData in memory has none: write_h5ad it first")
    path = pathlib.Path(source)
    files = {name: whole.checksum(path / name) for name in whole.files(path)} if path.is_dir() else whole.checksum(path)
    weights = checksums.checksums(leaves.flatten({"variables": run.variables, "constants": run.constants}))
    rows = options.pop("rows", None)
    content = {"weights": weights, "config": run.meta["config"], "genes": run.genes, "input": files, "kind": kind}
    content |= {"rows": None if rows is None else np.asarray(rows).tolist(), "version": __version__, **options}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _checked(run: "Run", kind: str, source: Any) -> str:
    """Return the kind that is meant; ValueError where there is none such, the run has none, or cells are missing."""
    has = kinds(run)
    if kind == "auto":
        kind = has[0] if has else "context"
    ways = ", ".join([*has, *(f"{name} (with source, a file of cells)" for name in OF_CELLS)])
    if kind not in KINDS:
        raise ValueError(f"kind={kind}: no such gene vectors; there are {', '.join(KINDS)}, of {run.name} {ways}")
    if (kind not in OF_CELLS and kind not in has) or (kind == COMPOSED and "table" not in has):
        raise ValueError(f"kind={kind}: {run.name} ({run.source}) has none; it has {ways}")
    if kind in OF_CELLS and source is None:
        raise ValueError(f"kind={kind}: needs cells to average over: give source, a file of raw counts or an AnnData")
    return kind


def _means(run: "Run", kind: str, source: Any, *, keep: Any, say: Callable[[str], None], **reading: Any) -> np.ndarray:
    """Return the mean over cells of what a run makes of each of its genes, NaN for those it was not given. [V, D]"""
    path = keep and pathlib.Path(keep) / f"{key(run, source, kind, **reading)}.npz"
    if path and path.exists():
        try:
            return sealed.read_arrays(path)["values"]
        except (sealed.Damaged, KeyError) as damage:
            say(f"warning: {damage}: it is made again")
    made = _cells(run, kind)(source, say=say, **reading)
    values = np.full((len(run.genes), made.width), np.nan, np.float32)
    values[made.ids] = made.mean_of(np.ones((len(made.rows), 1), bool))[0][0]
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole.writing(path) as partial, open(partial, "wb") as file:
            np.savez(file, values=values)
    return values


def _cells(run: "Run", kind: str) -> Callable[..., GeneRepresentations]:
    """Return what makes the representations of a kind."""
    return functools.partial(_composed, run) if kind == COMPOSED else run.gene_representations


def _composed(
    run: "Run",
    source: Any,
    *,
    rows: Sequence[int] | None = None,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.5,
    say: Callable[[str], None] = print,
    **options: Any,
) -> GeneRepresentations:
    """Return [row of the table, embedding of the cell, log-normalised expression] of each gene in each cell.

    Embeddings are those of all cells of the file, of which `rows` are taken. Options are those of `Run.embed`.
    """
    cells = run.embed(source, gene_table=gene_table, min_mapped=min_mapped, say=say, **options)
    mapping, provenance = run.mapping, {**run.provenance, "made": COMPOSED}
    ids = np.unique(mapping.index[mapping.index >= 0])
    table = gene_clusters.vectors(run.name, run.variables, len(run.genes))[ids]
    with h5ad.read_counts(source, **h5ad.place(options)) as counts:
        rows = np.arange(counts.n_cells) if rows is None else np.unique(np.asarray(rows, np.int64))
        obs = counts.obs.iloc[rows]
    width = table.shape[1] + cells.shape[1] + 1
    most = max(1, BLOCK_BYTES // (4 * len(ids) * width))

    def batches() -> Iterator[tuple[np.ndarray, Array]]:
        with h5ad.read_counts(source, **h5ad.place(options)) as counts:
            for start in range(0, len(rows), most):
                here = rows[start : start + most]
                x = log_normalised(mapping.apply(counts.take(here)))[:, ids].toarray()
                values = np.empty((len(here), len(ids), width), np.float32)
                values[..., : table.shape[1]] = table
                values[..., table.shape[1] : -1] = cells[here, None]
                values[..., -1] = x
                yield here[None], values[None]

    return GeneRepresentations([run.genes[i] for i in ids], ids, width, rows, obs, batches, provenance)
