"""Lists of genes: one for a model whose own list was not published, and short ones for small models.

`coding_and_lncrna`: protein-coding genes, filled up with the best known lncRNAs.

scLong reads 27,874 genes, the union of four lists of which none was published with it. This rule gives a list of that
size and kind from a table of genes, a row for each, with `ensembl_id`, `biotype` and 0/1 columns `in_<model>` that tell
which published vocabularies have the gene:

  1. every gene of biotype protein_coding;
  2. lncRNAs, those that more of the published vocabularies have first, and among equals those of the smaller Ensembl id
     (the longer annotated), up to the number asked for;
  3. the list in the order of the Ensembl ids.
"""

import csv
import os
from pathlib import Path

import numpy as np

from data_pipeline.genes.gene_table import read_lines, strip_version

SCLONG_GENES = 27_874


def coding_and_lncrna(path: str | os.PathLike, n_genes: int = SCLONG_GENES) -> list[str]:
    """Return `n_genes` Ensembl ids by the rule above.

    ValueError where a column is missing, or the table has more protein-coding or fewer genes of both types.
    """
    rows = list(csv.DictReader(read_lines(Path(path)), delimiter="\t"))
    missing = {"ensembl_id", "biotype"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"{path}: no column {', '.join(sorted(missing))}: a gene table has ensembl_id and biotype")
    lists = [column for column in rows[0] if column.startswith("in_")]
    n_lists = {strip_version(row["ensembl_id"]): sum(row[name] == "1" for name in lists) for row in rows}
    types = {strip_version(row["ensembl_id"]): row["biotype"] for row in rows}
    coding = [id for id, biotype in types.items() if biotype == "protein_coding"]
    noncoding = sorted((id for id, biotype in types.items() if biotype == "lncRNA"), key=lambda id: (-n_lists[id], id))
    if not len(coding) <= n_genes <= len(coding) + len(noncoding):
        raise ValueError(
            f"{path}: {len(coding):,} protein-coding genes and {len(noncoding):,} lncRNAs make no list of {n_genes:,}"
        )
    return sorted(coding + noncoding[: n_genes - len(coding)])


def spread(share: np.ndarray, number: int, min_share: float) -> np.ndarray:
    """Return `number` genes at equal distances in the ranking by `share` [G], in ascending order.

    ValueError where fewer genes are expressed in at least `min_share` of the cells.
    """
    ranked = _ranked(share, share >= min_share, number, min_share)
    return np.sort(ranked[np.linspace(0, len(ranked) - 1, number).round().astype(int)])


def most_variable(scores: np.ndarray, share: np.ndarray, number: int, min_share: float, keep: np.ndarray) -> np.ndarray:
    """Return the genes `keep` and those of the highest scores [G], `number` in all, in ascending order.

    ValueError where fewer genes are expressed in at least `min_share` of the cells, or `keep` has more.
    """
    if len(keep) > number:
        raise ValueError(f"--number={number}: --keep names {len(keep)} genes of the store; ask for as many at least")
    ranked = _ranked(
        scores, (share >= min_share) & ~np.isin(np.arange(len(share)), keep), number - len(keep), min_share
    )
    return np.sort(np.concatenate([keep, ranked[: number - len(keep)]]))


def _ranked(scores: np.ndarray, allowed: np.ndarray, number: int, min_share: float) -> np.ndarray:
    ranked = np.argsort(-scores, kind="stable")
    ranked = ranked[allowed[ranked]]
    if len(ranked) < number:
        raise ValueError(
            f"--number={number}: {len(ranked)} genes were measured in every study and are expressed in at least "
            f"{min_share:g} of the cells; ask for fewer, or lower --min_share"
        )
    return ranked
