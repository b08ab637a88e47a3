"""What `experiments.synthetic_screen` reads: cells of a file, signed edges between their most expressed genes."""

import pathlib
import types
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
from scipy import sparse

from data_pipeline import synthetic_screen
from data_pipeline.batches.obs import Filter
from data_pipeline.files import h5ad
from data_pipeline.genes import edge_lists, vocab

SIGNS = ("mor", "sign", "effect", "weight")
"""Columns that may hold the sign of an edge: of DoRothEA's tables, of others."""
ENDS = (("tf", "target"), ("source", "target"))
EXPRESSED = 0.1
"""Share of the cells in which a gene is expressed that may be a target, or is kept."""


def make(
    input: str,
    edges: str,
    *,
    sign: str | None,
    filter: str | None,
    singles: int,
    doubles: int,
    cells: int,
    genes: int,
    seed: int,
    reading: Mapping[str, Any],
) -> anndata.AnnData:
    """Return the screen; ValueError or OSError in one line where a file is not what it should be."""
    table = vocab.read_table(reading["gene_table"]) if reading["gene_table"] else None
    with h5ad.read_counts(input, **h5ad.place(reading)) as counts:
        names, second = vocab.file_names(counts)
        listed = vocab.union([(names, second)], table)
        table = vocab.learn([(names, second)], table)
        mapping = vocab.onto(counts, listed, table=table)
        matrix = sparse.csr_matrix(mapping.apply(sparse.csr_matrix(counts.take(np.arange(counts.n_cells)))))
        if filter:
            view = types.SimpleNamespace(obs=counts.obs, name=str(counts.path), indptr=matrix.indptr)
            matrix = matrix[np.flatnonzero(Filter(filter)(view))]
    if not matrix.shape[0]:
        raise ValueError(f"{input}: filter={filter}: no cell is like this")
    often = np.flatnonzero(matrix.getnnz(0) > EXPRESSED * matrix.shape[0])
    matrix, listed = matrix[:, often], [listed[i] for i in often]
    signed = edge_lists.read_edges(edges, sign, ENDS, signs=SIGNS)
    (source, target, weight), _ = edge_lists.on_genes(signed, listed, table, min_mapped=None)
    if not len(source):
        raise ValueError(f"{edges}: no edge between the {len(listed):,} expressed genes of {input}; check the species")
    of_genes = synthetic_screen.weights(source, target, weight, len(listed))
    asked = synthetic_screen.choose(of_genes, singles, doubles, seed)
    kept = _kept(matrix, of_genes, sorted({i for of in asked for i in of}), genes)
    place = {gene: i for i, gene in enumerate(kept)}
    asked = [tuple(place[i] for i in of) for of in asked]
    matrix, of_genes, listed = matrix[:, kept], of_genes[kept][:, kept], [listed[i] for i in kept]
    what = f"real cells of {pathlib.Path(input).name}, effects over the signed edges of {pathlib.Path(edges).name}"
    other = dict(zip(names, second, strict=True)) | dict(zip(second, names, strict=True))
    shown = [other.get(gene) or gene if vocab.is_id(gene) else gene for gene in listed]  # symbols can be read
    shown = shown if len(set(shown)) == len(shown) else listed
    made = synthetic_screen.make(matrix, shown, of_genes, asked, cells=cells, what=what, seed=seed)
    made.var["ensembl_id"] = [gene if vocab.is_id(gene) else "" for gene in listed]
    return made


def _kept(matrix: sparse.csr_matrix, of_genes: sparse.csr_matrix, targets: Sequence[int], number: int) -> list[int]:
    """Return the genes that are kept: targets, then half genes that something regulates, and the most expressed."""
    order = np.argsort(-np.asarray(matrix.mean(0)).ravel(), kind="stable")
    regulated = order[np.isin(order, np.flatnonzero(of_genes.getnnz(1)))][: max(number - len(targets), 0) // 2]
    return sorted(list(dict.fromkeys([*targets, *regulated.tolist(), *order.tolist()]))[:number])
