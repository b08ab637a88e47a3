"""Gene sets in GMT files (MSigDB, Reactome, Enrichr): a line for each set, its name, a description, its genes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from data_pipeline.genes.gene_table import read_lines
from data_pipeline.genes.vocab import GeneTable, Mapping, map_genes


def read_gmt(path: str | os.PathLike) -> dict[str, list[str]]:
    """Return {name of a set: its genes}, from a GMT file, gzipped or not; ValueError where a line is none of a GMT."""
    sets: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(Path(path)), 1):
        if not line.strip():
            continue
        name, *rest = (field.strip() for field in line.split("\t"))
        genes = [gene.split(",")[0] for gene in rest[1:] if gene]  # Enrichr writes a weight after a comma
        if not name or not genes:
            raise ValueError(f"{path}: line {number}: a GMT line is a name, a description, genes, tabs between them")
        if name in sets:
            raise ValueError(f"{path}: line {number}: a second set {name}; names are to differ")
        sets[name] = list(dict.fromkeys(genes))
    if not sets:
        raise ValueError(f"{path}: no gene sets in it")
    return sets


def on_genes(
    sets: dict[str, list[str]], genes: Sequence[str], table: GeneTable | None = None
) -> tuple[sparse.csr_matrix, Mapping]:
    """Return which genes are in which set, bool [sets, G], and how names were found by `vocab.map_genes`."""
    names = list(dict.fromkeys(gene for members in sets.values() for gene in members))
    mapping = map_genes(names, genes, table=table, min_mapped=None)
    place = dict(zip(names, mapping.index.tolist(), strict=True))
    pairs = [(i, place[g]) for i, members in enumerate(sets.values()) for g in members if place[g] >= 0]
    row, column = np.array(pairs, np.int64).reshape(-1, 2).T
    member = sparse.csr_matrix((np.ones(len(row), bool), (row, column)), (len(sets), len(genes)))
    member.sum_duplicates()
    return member, mapping
