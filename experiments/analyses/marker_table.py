"""Read known markers of cell types from published tables (CellMarker, ScType) or from any table of types and genes.

A table is text separated by tabs or commas, compressed or not. A line holds a type and one gene, or several genes
separated by commas. Columns are recognised by their names: the type (cell_name, cell_type, cellName), the gene
(gene_name, gene, symbol, geneSymbolmore1), and optionally its Ensembl id (gene_id, ensembl_id) and the tissue
(tissue_type, tissue, tissueType). Types are matched by name, ignoring case and a final "cell(s)"; nothing else is
guessed.
"""

import difflib
import os
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from data_pipeline.genes import vocab

COLUMNS = {
    "type": ("cell_name", "cell_type", "cellname", "celltype", "type"),
    "gene": ("gene_name", "gene", "symbol", "marker", "genesymbolmore1"),
    "id": ("gene_id", "ensembl_id", "ensembl"),
    "tissue": ("tissue_type", "tissue", "tissuetype"),
}


def read(path: str | os.PathLike, tissues: Sequence[str] = ()) -> pd.DataFrame:
    """Return the table with columns type, gene and id ("" for none), a row for each marker; of some tissues only.

    Raises:
      ValueError, OSError: no such file, no such columns, or no row of these tissues; in one line, with what there is.
    """
    try:
        mark = "\t" if pd.read_csv(path, sep="\t", nrows=0).shape[1] > 1 else ","
        table = pd.read_csv(path, sep=mark, dtype=str, keep_default_na=False)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError, EOFError) as error:
        raise ValueError(f"{path}: not a table of text with a line of column names: {error}") from error
    columns = {column: next((c for c in table if c.lower() in names), None) for column, names in COLUMNS.items()}
    missing = [f"{column} ({', '.join(COLUMNS[column][:3])})" for column in ("type", "gene") if not columns[column]]
    if missing:
        raise ValueError(f"{path}: no column for {' and '.join(missing)}; there are {', '.join(table)}")
    if tissues:
        table = _of_tissues(table, columns["tissue"], tissues, path)
    markers = pd.DataFrame({c: table[columns[c]].str.strip() if columns[c] else "" for c in ("type", "gene", "id")})
    markers = markers.assign(gene=markers["gene"].str.split(",")).explode("gene")
    markers["gene"] = markers["gene"].str.strip()
    markers = markers[(markers["gene"] + markers["id"] != "") & (markers["type"] != "")]
    if markers.empty:
        raise ValueError(f"{path}: no line names a type and a gene")
    return markers.drop_duplicates().reset_index(drop=True)


def _of_tissues(table: pd.DataFrame, column: str | None, tissues: Sequence[str], path: str | os.PathLike):
    if column is None:
        raise ValueError(f"--tissue={','.join(tissues)}: {path} has no column for the tissue; leave --tissue out")
    tissue_column = table[column].str.strip()
    folded = {name.lower(): name for name in tissue_column.unique()}
    for tissue in tissues:
        if tissue.lower() not in folded:
            raise ValueError(f"--tissue={tissue}: {path} has none of it; there are {_some(tissue_column, tissue)}")
    return table[tissue_column.str.lower().isin([tissue.lower() for tissue in tissues])]


def of_type(markers: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the markers of a type; ValueError names the types there are that are most like it."""
    names = markers["type"]
    for wanted, type_names in ((name, names), (_bare(name), names.map(_bare))):
        if (type_names == wanted).any():
            return markers[type_names == wanted]
    raise ValueError(f"no markers of {name!r} in the table; write --types=LABEL=NAME, there are {_some(names, name)}")


def match(markers: pd.DataFrame, genes: Sequence[str], table: vocab.GeneTable | None = None) -> np.ndarray:
    """Return which genes are markers, by symbol or id, or by what a gene table knows of them. bool [K]"""
    is_marker = np.zeros(len(genes), bool)
    if len(markers):
        index = vocab.map_genes(
            markers["gene"], genes, ensembl=markers["id"], table=table, min_mapped=None
        ).index  # fmt: skip
        is_marker[index[index >= 0]] = True
    return is_marker


def _bare(name: str) -> str:
    """Return a type's name in lower case without "cell(s)" or the s of a plural."""
    return re.sub(r"(?<=\w)s$", "", re.sub(r"\s*\bcells?$", "", name.strip().lower()))


def _some(names: pd.Series, wanted: str, most: int = 8) -> str:
    """Return some of the names, those most like the wanted one first, then the most frequent."""
    frequent = list(names.value_counts().index)
    words = [name for name in frequent if wanted.lower() in name.lower() or _bare(name) in _bare(wanted)]
    order = dict.fromkeys(difflib.get_close_matches(wanted, frequent, most, 0.5) + words[:most] + frequent)
    shown = list(order)[:most]
    return ", ".join(map(repr, shown)) + (f" and {len(order) - most} more" if len(order) > most else "")
