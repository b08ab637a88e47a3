"""Each gene's median among the cells that express it, as Geneformer ranks by them: a gene and its median a line.

Geneformer (Theodoris et al., Nature 2023) ranks the genes of a cell by counts per 10,000 over the gene's median of
these among the cells of its corpus that express it.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.genes import gene_vectors
from data_pipeline.genes.gene_table import read_lines
from data_pipeline.genes.vocab import GeneTable, Mapping


def read(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Return (names [K], medians, float64 [K]) of a text file, gzipped or not, with or without a line of headings.

    Raises:
      ValueError, OSError: no such file, a line that is not a gene and a number above zero, or no line.
    """
    names, medians = [], []
    for number, line in enumerate(read_lines(Path(path)), 1):
        if not line.strip():
            continue
        name, *values = re.split(r"[\t, ]+", line.strip())
        try:
            (median,) = map(float, values)
        except ValueError:
            if number == 1:
                continue  # headings
            median = np.nan
        if not 0 < median < np.inf:
            raise ValueError(f"{path}: line {number} is not a gene and its median, a number above zero")
        names.append(name)
        medians.append(median)
    if not names:
        raise ValueError(f"{path}: no line of a gene and its median")
    return names, np.array(medians)


def onto(
    names: Sequence[str], medians: np.ndarray, genes: Sequence[str], table: GeneTable | None = None
) -> tuple[np.ndarray, Mapping]:
    """Return the medians of `genes`, float32 [V], zero where there is none, and how the names met; see `gene_vectors`.

    ValueError where too few names meet.
    """
    aligned, mapping = gene_vectors.onto(names, np.asarray(medians, np.float32)[:, None], genes, table)
    return aligned[:, 0], mapping
