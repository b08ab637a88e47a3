"""Which columns of a file are genes of one genome: other measurements beside them are left out, two genomes refused.

10x Genomics calls what a column measures its feature type: "Gene Expression", "Antibody Capture", "Peaks", ... Others
write "GEX", "ADT", "ATAC", and CELLxGENE "gene" or "spike-in". An antibody often has the name of its gene, and a gene
of two genomes is two genes, so neither is ever added to the other.
"""

import re
from collections import Counter

import numpy as np
import pandas as pd

from data_pipeline.files.columns import text

COLUMNS = ("feature_types", "feature_type", "feature_biotype", "feature_modality", "modality")
"""Columns of the genes' table that may say what is measured; letter case does not matter."""
GENES = {"gene expression", "gex", "rna", "mrna", "gene", "genes", "expression", "transcriptome"}
OTHERS = {
    *("antibody capture", "antibody", "antibodies", "adt", "ab", "protein", "proteins", "prot", "surface protein"),
    *("cite", "hto", "hashtag", "hashing", "multiplexing capture", "cell multiplexing", "antigen capture", "cmo"),
    *("peak", "peaks", "atac", "chromatin accessibility", "motif", "motifs", "gene activity"),
    *("crispr guide capture", "crispr", "guide", "guides", "grna", "sgrna", "custom", "custom feature"),
    *("spike in", "spikein", "ercc", "vdj", "vdj t", "vdj b", "tcr", "bcr"),
}
_ASSEMBLIES = "GRC[a-z]|hg|mm|rn|dm|danRer|galGal|sacCer|susScr|T2T|mRatBN|BDGP|Sscrofa|Mmul"
_PREFIX = re.compile(rf"((?:{_ASSEMBLIES})_?\d[A-Za-z0-9.-]*)_+(?=[^_])")
_IDS = ("gene_ids", "gene_id", "gene_symbols", "gene_symbol", "gene_names", "gene_name", "feature_id", "feature_name")
_NO_GENOME = {"", "nan", "none", "unknown", "na"}


def is_kind(name: str) -> bool:
    """Return whether `name` is that of a feature type."""
    return _kind(name) in GENES | OTHERS


def is_gene_expression(name: str) -> bool:
    """Return whether `name` is one of those of gene expression."""
    return _kind(name) in GENES


def select(var: pd.DataFrame, path: str) -> tuple[np.ndarray | None, pd.DataFrame, list[str]]:
    """Return which columns are gene expression of one genome, their table, and what is to be said of the others.

    The first is None where all are. A prefix that all names have, such as GRCh38_, is taken off.

    Raises:
      ValueError: there is no gene expression, or that of several genomes.
    """
    others = _others(var)
    keep = np.array([kind is None for kind in others])
    kinds = Counter(kind for kind in others if kind is not None)
    if len(var) and not keep.any():
        raise ValueError(
            f"{path}: no Gene Expression features; it has {', '.join(kinds)}: give a file with counts of genes"
        )
    notes = [f"{number:,} {kind} left out: only gene expression is read" for kind, number in kinds.items()]
    var = var if keep.all() else var.iloc[np.flatnonzero(keep)]
    var, prefix = _one_genome(var, path)
    notes += [f"names of genes begin with {prefix!r}: read without it"] if prefix else []
    return None if keep.all() else np.flatnonzero(keep), var, notes


def _kind(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


def _others(var: pd.DataFrame) -> np.ndarray:
    """Return the feature type of what is not gene expression, None for genes. [n] object"""
    others = np.full(len(var), None, object)
    columns = {str(column).lower(): column for column in var.columns}
    for column in (columns[name] for name in COLUMNS if name in columns):
        names = text(var[column])
        kinds = {name: _kind(name) for name in set(names) - {None}}
        if GENES & set(kinds.values()):
            wrong = {name for name, kind in kinds.items() if kind not in GENES}
        else:  # a column of biotypes ("protein_coding", ...) says nothing of other measurements
            wrong = {name for name, kind in kinds.items() if kind in OTHERS}
        if wrong:
            others = np.array([name if name in wrong else other for name, other in zip(names, others, strict=True)])
    return others


def _one_genome(var: pd.DataFrame, path: str) -> tuple[pd.DataFrame, str]:
    """Return the table without the genome's name before each gene's, and that prefix; ValueError for two genomes."""
    column = next((column for column in var.columns if str(column).lower() == "genome"), None)
    genomes = [] if column is None else sorted({name for name in text(var[column]) if not _nothing(name)})
    if len(genomes) > 1:
        one = f"adata[:, adata.var[{column!r}] == {genomes[0]!r}]"
        raise ValueError(f"{path}: counts of several genomes ({', '.join(genomes)}): give a file of one, as of {one}")
    names = [str(name) for name in var.index]
    places = [_prefix(name, genomes) for name in names]
    prefixes = Counter(place for place in places if place)
    if len(prefixes) > 1 and prefixes.total() > len(names) / 2:
        several = ", ".join(prefix.rstrip("_") for prefix in sorted(prefixes))
        one = f"adata[:, adata.var_names.str.startswith({min(prefixes)!r})]"
        raise ValueError(f"{path}: counts of several genomes ({several}): give a file of one, as of {one}")
    if len(prefixes) != 1 or prefixes.total() < len(names):
        return var, ""
    prefix, var = next(iter(prefixes)), var.copy()
    var.index = pd.Index([name.removeprefix(prefix) for name in names], name=var.index.name)
    for column in (column for column in var.columns if str(column).lower() in _IDS):
        values = text(var[column])
        var[column] = [name and re.sub(f"^{re.escape(prefix.rstrip('_'))}_+", "", name) for name in values]
    return var, prefix


def _nothing(name: str | None) -> bool:
    return name is None or name.strip().lower() in _NO_GENOME


def _prefix(name: str, genomes: list[str]) -> str | None:
    """Return the genome's name with the underscores behind it that `name` begins with, None for none."""
    for genome in genomes:
        if match := re.match(f"{re.escape(genome)}_+", name):
            return match[0]
    match = _PREFIX.match(name)
    return match[0] if match else None
