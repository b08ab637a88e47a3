"""Which cells a study keeps: those with enough genes and counts, and not too many of them mitochondrial."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

CELL_RULES = ("min_genes", "min_counts", "max_mito", "unmapped")

# The 13 protein-coding genes of the human mitochondrion, for files that name genes by Ensembl id alone.
_NUMBERS = (198888, 198763, 198804, 198712, 228253, 198899, 198938, 198840, 212907, 198886, 198786, 198695, 198727)
MITOCHONDRIAL = {f"ENSG00000{number}" for number in _NUMBERS}


def mitochondrial(names: np.ndarray, var: pd.DataFrame) -> np.ndarray:
    """Return which genes are mitochondrial, bool: `MT-` or a known Ensembl id in the name or the text of `var`. [G]"""
    text = [column for column in var if not pd.api.types.is_numeric_dtype(var[column])]
    mito = np.zeros(len(names), bool)
    for column in (pd.Series(names), *(var[column] for column in text)):
        name = column.astype(str).str.upper()
        mito |= (name.str.startswith("MT-") | name.str.split(".").str[0].isin(MITOCHONDRIAL)).to_numpy()
    return mito


def broken_rule(
    counts: sp.csr_matrix,
    mapped: sp.csr_matrix,
    mito: np.ndarray | None,
    *,
    min_genes: int,
    min_counts: int,
    max_mito: float | None,
) -> np.ndarray:
    """Return for each cell the number of the first of CELL_RULES that it breaks, -1 for a cell to keep. [n]

    Args:
      counts: raw counts over all genes of the file, which is what the rules are about.
      mapped: the same cells over the store's genes; a cell without any count there is "unmapped".
      mito: which genes of the file are mitochondrial, where `max_mito` (a fraction of the counts) is asked for. [G]
    """
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    breaks = np.zeros((len(CELL_RULES), counts.shape[0]), bool)
    breaks[0] = np.diff(counts.indptr) < min_genes
    breaks[1] = total < min_counts
    if max_mito is not None:
        breaks[2] = counts @ mito.astype(np.float64) > max_mito * total
    breaks[3] = np.diff(mapped.indptr) == 0
    return np.where(breaks.any(axis=0), breaks.argmax(axis=0), -1)
