"""Gene graphs that are lists of edges already: protein interactions, STRING's files among them, and scLong's csv.

STRING's files: https://string-db.org/cgi/download (`protein.links` with `protein.info` or `protein.aliases`). Its
`combined_score` is a probability, in thousandths in these files (then it is divided by 1,000) and from 0 to 1 in what
its website exports.
"""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.genes.gene_table import is_id, read_lines
from data_pipeline.genes.go_graph import Edges, top_per_target
from data_pipeline.genes.vocab import GeneTable, Mapping, map_genes

_ENDS = (
    ("protein1", "protein2"),
    ("gene_a", "gene_b"),
    ("gene1", "gene2"),
    ("source", "target"),
    ("symbol_a", "symbol_b"),
    ("node1", "node2"),
)
_WEIGHTS = ("combined_score", "importance", "weight", "score", "jaccard")
_ENSEMBL = ("Ensembl_gene", "Ensembl")  # sources of STRING's aliases that are Ensembl gene ids


@dataclass
class EdgeList:
    """Edges between names.

    Attributes:
      source, target: names. [E]
      weight: float64. [E]
    """

    source: list[str]
    target: list[str]
    weight: np.ndarray


def read_edges(
    path: str | os.PathLike,
    column: str | None = None,
    ends: Sequence[tuple[str, str]] = _ENDS,
    signs: Sequence[str] = (),
) -> EdgeList:
    """Read a list of edges, gzipped or not, separated by tabs, commas or blanks, with a header.

    Args:
      column: name of the column of weights; combined_score, importance, weight or score are found, else weights are 1.
      ends: pairs of names that the columns of the two genes may have.
      signs: names that the column of weights may have where these may be negative, and have to be there.

    Raises:
      ValueError: columns are missing, or a weight is no number.
    """
    lines = [line for line in read_lines(Path(path)) if line.strip()]
    first = lines[0] if lines else ""
    separator = next((mark for mark in "\t, " if mark in first), "\t")
    rows = list(csv.reader(lines, delimiter=separator))
    header = [name.strip().lstrip("#").lower() for name in rows[0]] if rows else []
    pair = next((pair for pair in ends if set(pair) <= set(header)), None)
    if pair is None:
        needs = " or ".join(",".join(pair) for pair in ends[:4])
        raise ValueError(f"{path}: columns {', '.join(header[:6]) or 'none'}: the genes of an edge are {needs}")
    if column is not None and column.lower() not in header:
        raise ValueError(f"{path}: no column {column}: it has {', '.join(header[:16])}")
    name = column.lower() if column else next((name for name in signs or _WEIGHTS if name in header), None)
    if signs and name is None:
        raise ValueError(f"{path}: columns {', '.join(header[:6])}: the sign of an edge is {' or '.join(signs)}")
    short = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if short is not None:
        raise ValueError(f"{path}: row {short + 1} has {len(rows[short])} columns, the header {len(header)}")
    source, target = ([row[header.index(end)].strip() for row in rows[1:]] for end in pair)
    weight = np.ones(len(source))
    if name is not None:
        try:
            weight = np.array([float(row[header.index(name)]) for row in rows[1:]])
        except ValueError as error:
            raise ValueError(f"{path}: column {name}: {error}") from None
    if not (np.isfinite(weight) & (bool(signs) | (weight >= 0))).all():
        raise ValueError(f"{path}: column {name}: weights are finite{'' if signs else ' and not negative'}")
    thousandths = name == "combined_score" and weight.max(initial=0) > 1
    return EdgeList(source, target, weight / 1000 if thousandths else weight)


def read_directed(path: str | os.PathLike, column: str | None = None) -> EdgeList:
    """Read a graph as scLong keeps it: a csv with columns source, target, importance."""
    return read_edges(path, column, ends=(("source", "target"),))


def read_protein_names(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, str]]:
    """Return {protein: gene name} and {protein: Ensembl id} of STRING's protein.info or protein.aliases file."""
    rows = list(csv.reader(read_lines(Path(path)), delimiter="\t", quoting=csv.QUOTE_NONE))
    header = [name.strip().lstrip("#").lower() for name in rows[0]] if rows else []
    if header[:2] == ["string_protein_id", "preferred_name"]:
        return {row[0]: row[1] for row in rows[1:] if len(row) > 1}, {}
    if header[:3] == ["string_protein_id", "alias", "source"]:
        ids = {r[0]: r[1] for r in rows[1:] if len(r) > 2 and is_id(r[1]) and set(r[2].split()) & set(_ENSEMBL)}
        return dict(ids), ids
    raise ValueError(
        f"{path}: columns {', '.join(header[:6]) or 'none'}: STRING's protein.info has string_protein_id, "
        "preferred_name, its protein.aliases string_protein_id, alias, source"
    )


def on_genes(
    edges: EdgeList,
    genes: Sequence[str],
    table: GeneTable | None = None,
    proteins: tuple[dict[str, str], dict[str, str]] | None = None,
    min_mapped: float | None = 0.5,
) -> tuple[Edges, Mapping]:
    """Return the edges as positions in `genes`, and how names were found by `vocab.map_genes`.

    Args:
      genes: the gene list of the model. [G]
      proteins: what `read_protein_names` returns, where the ends of the edges are STRING's protein ids.

    Raises:
      ValueError: protein ids without their names, or too few genes are known.
    """
    names = list(dict.fromkeys(edges.source + edges.target))
    if not names:
        raise ValueError("the list has no edges")
    called, ids = proteins or ({}, {})
    if not called and sum(".ENSP" in name for name in names) > len(names) / 2:
        raise ValueError(f"{names[0]} and others are STRING's protein ids: give the protein.info file that names them")
    shown, second = [called.get(name, name) for name in names], [ids.get(name, "") for name in names]
    mapping = map_genes(shown, genes, ensembl=second, table=table, min_mapped=min_mapped)
    place = dict(zip(names, mapping.index.tolist(), strict=True))
    source, target = (np.array([place[name] for name in ends]) for ends in (edges.source, edges.target))
    kept = (source >= 0) & (target >= 0)
    return (source[kept], target[kept], edges.weight[kept]), mapping


def directed(edges: Edges, top: int | None) -> Edges:
    """Return each edge once, with its largest weight, and of each target the `top` heaviest, first ones where equal."""
    edges = _once(*edges)
    return edges if top is None else top_per_target(*edges, top)


def symmetric(edges: Edges, cut: float, top: int | None = None) -> Edges:
    """Return the edges of a weight of at least `cut` in both directions, once, without those of a gene to itself."""
    source, target, weight = edges
    kept = (source != target) & (weight >= cut)
    source, target, weight = source[kept], target[kept], weight[kept]
    both = np.append(source, target), np.append(target, source), np.append(weight, weight)
    order = np.lexsort((both[0], both[1]))
    return directed(tuple(values[order] for values in both), top)


def _once(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> Edges:
    """Keep of equal edges the heaviest, in the order in which edges first appear."""
    key = target.astype(np.int64) * (source.max(initial=0) + 1) + source
    _, first, group = np.unique(key, return_index=True, return_inverse=True)
    heaviest = np.zeros(len(first))
    np.maximum.at(heaviest, group, weight)
    order = np.argsort(first)
    return source[first][order], target[first][order], heaviest[order]
