"""The gene list of a model whose own was not published: protein-coding genes, filled up with the best known lncRNAs.

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

from data_pipeline.gene_table import read_lines, strip_version

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
    known = {strip_version(row["ensembl_id"]): sum(row[name] == "1" for name in lists) for row in rows}
    types = {strip_version(row["ensembl_id"]): row["biotype"] for row in rows}
    coding = [id for id, biotype in types.items() if biotype == "protein_coding"]
    noncoding = sorted((id for id, biotype in types.items() if biotype == "lncRNA"), key=lambda id: (-known[id], id))
    if not len(coding) <= n_genes <= len(coding) + len(noncoding):
        raise ValueError(
            f"{path}: {len(coding):,} protein-coding genes and {len(noncoding):,} lncRNAs make no list of {n_genes:,}"
        )
    return sorted(coding + noncoding[: n_genes - len(coding)])
