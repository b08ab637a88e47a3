"""Vectors of genes that a model starts from: gene2vec's text file, or a matrix with the names of its rows.

Gene2vec (Du et al., BMC Genomics 2019) is distributed as text, a gene and its numbers a line, with or without
word2vec's first line (rows, columns). A matrix is an .npz with an array of names and one of two dimensions, or an .npy
beside a list of genes of the same name (`vectors.npy`, `vectors.txt`).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.genes.gene_table import read_lines
from data_pipeline.genes.vocab import GeneTable, Mapping, map_genes, read_genes


def read(path: str | os.PathLike) -> tuple[list[str], np.ndarray]:
    """Return (names [K], vectors, float32 [K, D]); ValueError or OSError says what is wrong with a file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of gene vectors")
    if path.suffix in (".npz", ".npy"):
        names, vectors = _matrix(path)
    else:
        names, vectors = _text(path)
    if vectors.ndim != 2 or len(names) != len(vectors) or not len(names):
        raise ValueError(f"{path}: {len(names)} names for vectors of shape {vectors.shape}: one row for each is needed")
    vectors = np.asarray(vectors, np.float32)
    if not np.isfinite(vectors).all():
        raise ValueError(f"{path}: vectors that are not finite")
    return names, vectors


def onto(
    names: Sequence[str], vectors: np.ndarray, genes: Sequence[str], table: GeneTable | None = None
) -> tuple[np.ndarray, Mapping]:
    """Return the vectors of `genes`, zeros where there is none, and how names were found; the first of two wins.

    ValueError where too few names are known.
    """
    mapping = map_genes(names, genes, table=table)
    index = mapping.index
    aligned = np.zeros((len(genes), vectors.shape[1]), np.float32)
    rows = np.flatnonzero(index >= 0)[::-1]
    aligned[index[rows]] = vectors[rows]
    return aligned, mapping


def _text(path: Path) -> tuple[list[str], np.ndarray]:
    names, rows = [], []
    for number, line in enumerate(read_lines(path)):
        name, *values = line.split()
        if number == 0 and len(values) == 1:
            continue  # word2vec: rows and columns
        try:
            rows.append(np.array(values, np.float32))
        except ValueError:
            raise ValueError(f"{path}: line {number + 1} is not a gene and its numbers") from None
        names.append(name)
        if len(rows[-1]) != len(rows[0]) or not len(rows[-1]):
            raise ValueError(f"{path}: line {number + 1} has {len(rows[-1])} numbers, the first one {len(rows[0])}")
    return names, np.array(rows)


def _matrix(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            names = path.with_suffix(".txt")
            if not names.is_file():
                raise FileNotFoundError(f"{path}: no names in it; give the list of its genes beside it, {names.name}")
            return list(read_genes(names)), content
        arrays = {name: content[name] for name in content.files}
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a file of arrays ({error})") from None
    texts = [x for x in arrays.values() if x.dtype.kind in "US" and x.ndim == 1]
    numbers = [x for x in arrays.values() if x.dtype.kind == "f" and x.ndim == 2]
    if len(texts) != 1 or len(numbers) != 1:
        raise ValueError(f"{path}: holds {', '.join(arrays)}: one array of names and one matrix of vectors are needed")
    return texts[0].astype(str).tolist(), numbers[0]
