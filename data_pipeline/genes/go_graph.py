"""The GO gene graph: an edge between genes that share many Gene Ontology terms, weighted by their Jaccard index.

scLong (bioRxiv 2024.11.09.622759), and with other settings GEARS and scEMB. The Jaccard index of two genes is the
number of terms they share over the number of terms either has; only genes with a term have edges. Per target the
sources with the largest index are kept, the first in gene order where indices are equal; the target itself is one of
them. scLong's released code and its paper disagree (READINGS); the code compares sets of terms pair by pair, which is
hours at 20,000 genes, here the same numbers are products of sparse matrices and take seconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from data_pipeline.genes.annotations import Annotations
from data_pipeline.genes.vocab import GeneTable, Mapping, map_genes
from data_pipeline.progress import Progress, silent

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]  # source, target, weight

READINGS = {
    "code": {"cut": 0.1, "top": 21, "self_edge": True, "weighted": True},
    "paper": {"cut": 0.0, "top": 20, "self_edge": False, "weighted": False},
}
"""What scLong's released code does, and what its paper says (there the layer adds the edge of a gene to itself)."""

_ROWS = 512  # genes at a time: a block of [512, 20,000] doubles is 80 MB
_COMMON = 1 / 32  # a term of more genes than this share is cheaper in a dense product than in a sparse one


@dataclass
class Terms:
    """The terms of the genes of a list.

    Attributes:
      matrix: True where a gene has a term. [G, T]
      mapping: where the names of the annotations went. ids: of the terms. [T]
    """

    matrix: sparse.csr_matrix
    mapping: Mapping
    ids: list[str]


def names_of(annotations: Annotations) -> GeneTable:
    """Return what the annotations themselves tell of their genes' names."""
    table = GeneTable()
    for name, second, aliases in zip(annotations.names, annotations.second, annotations.aliases, strict=True):
        table.add(second, name, aliases=aliases)
    return table


def gene_terms(
    annotations: Annotations,
    genes: Sequence[str],
    table: GeneTable | None = None,
    *,
    aspects: str = "PFC",
    min_genes: int = 1,
    max_genes: int | None = None,
    min_mapped: float | None = 0.5,
) -> Terms:
    """Return the terms of `genes`, whose names are found by `vocab.map_genes`.

    Args:
      genes: the gene list of the model. [G]
      table: gene tables, or `names_of` the annotations.
      aspects: letters of the aspects to keep: P process, F function, C component.
      min_genes, max_genes: keep terms that so many genes of the list have.
      min_mapped: see `map_genes`.

    Raises:
      ValueError: too few genes are known, or no term is left.
    """
    if not aspects or set(aspects) - set("PFC"):
        raise ValueError(f"aspects={aspects!r}: letters of P (process), F (function), C (component)")
    kept = np.isin(annotations.aspect, list(aspects))
    if set(aspects) != set("PFC") and not annotations.aspect.astype(bool).any():
        raise ValueError(f"aspects={aspects!r}: the annotations do not say the aspect of a term; give an ontology")
    mapping = map_genes(annotations.names, genes, ensembl=annotations.second, table=table, min_mapped=min_mapped)
    place = np.flatnonzero(mapping.index >= 0)
    shape = (len(genes), len(annotations.names))
    move = sparse.csr_matrix((np.ones(len(place), np.int32), (mapping.index[place], place)), shape=shape)
    matrix = (move @ annotations.matrix.astype(np.int32)).astype(bool)
    number = matrix.getnnz(0)
    if set(aspects) != set("PFC"):
        number = np.where(kept, number, 0)
    kept = np.flatnonzero((number >= max(min_genes, 1)) & (number <= (max_genes or len(genes))))
    if not len(kept):
        raise ValueError(f"no term of aspects {aspects} has {min_genes} to {max_genes or 'any number of'} genes")
    return Terms(sparse.csr_matrix(matrix[:, kept]), mapping, [annotations.terms[i] for i in kept])


def jaccard_blocks(matrix: sparse.csr_matrix, rows: int = _ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (genes [R], their Jaccard index with every gene [R, M]) of the M genes of `matrix` [M, T], all of which
    have a term; the indices are the exact quotients, in float64."""
    matrix = sparse.csr_matrix(matrix, dtype=np.float32)  # numbers of shared terms are exact in it
    common = matrix.getnnz(0) > matrix.shape[0] * _COMMON
    dense, rare = matrix[:, common].toarray(), sparse.csr_matrix(matrix[:, ~common])
    columns = rare.T.tocsr()
    number = matrix.getnnz(1).astype(np.float64)
    for start in range(0, matrix.shape[0], rows):
        here = slice(start, min(start + rows, matrix.shape[0]))
        shared = dense[here] @ dense.T
        shared += (rare[here] @ columns).toarray()
        either = number[here, None] + number
        either -= shared
        yield np.arange(here.start, here.stop), np.divide(shared, either, out=either)


def all_pairs(matrix: sparse.csr_matrix, cut: float) -> Edges:
    """Return every ordered pair of genes with a Jaccard index above `cut`, itself included, by source, then target."""
    present = np.flatnonzero(matrix.getnnz(1))
    pairs = []
    for block, values in jaccard_blocks(matrix[present]):
        row, column = np.nonzero(values > cut)
        pairs.append((present[block[row]], present[column], values[row, column]))
    return _joined(pairs)


def neighbours(
    matrix: sparse.csr_matrix, *, cut: float, top: int | None, self_edge: bool, progress: Progress = silent
) -> Edges:
    """Return the edges of the GO graph of genes with terms `matrix` [G, T], by target, then source.

    Args:
      cut: keep edges of a Jaccard index above this.
      top: keep so many for each target, the first sources where indices are equal; None for all.
      self_edge: a gene is among its own sources (and counts for `top`).
      progress: of the blocks of genes.
    """
    present = np.flatnonzero(matrix.getnnz(1))
    blocks = []
    parts = progress(jaccard_blocks(matrix[present]), "compared block of genes", -(-len(present) // _ROWS))
    for block, values in parts:  # the index is symmetric: a row may be the target
        if not self_edge:
            values[np.arange(len(block)), block] = 0
        least = cut
        if top is not None and top < values.shape[1]:
            least = np.partition(values, -top, axis=1)[:, -top, None]
        row, column = np.nonzero((values > cut) & (values >= least))
        edges = present[column], present[block[row]], values[row, column]
        blocks.append(top_per_target(*edges, top) if top is not None else edges)
    source, target, weight = _joined(blocks)
    order = np.lexsort((source, target))
    return source[order], target[order], weight[order]


def top_per_target(source: np.ndarray, target: np.ndarray, weight: np.ndarray, top: int) -> Edges:
    """Return the `top` edges of the largest weight of each target, the first given where weights are equal."""
    order = np.lexsort((-weight, target))  # stable
    rank = in_rank(target[order])
    kept = order[rank < top]
    return source[kept], target[kept], weight[kept]


def in_rank(target: np.ndarray) -> np.ndarray:
    """Return the number of equal values before each one of sorted `target`. [E]"""
    first = np.flatnonzero(np.diff(target, prepend=target[0] - 1)) if len(target) else np.zeros(0, int)
    return np.arange(len(target)) - np.repeat(first, np.diff(np.append(first, len(target))))


def _joined(parts: list[Edges]) -> Edges:
    if not parts:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
