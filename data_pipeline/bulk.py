"""Bulk expression of cell lines: TPM, log2, z-scores, and which of them may be read as cells.

    profiles = read("lines_tpm.tsv.gz")            # a row for each line, a column for each gene; or an .npz
    counts = pseudo_counts(profiles)               # what a model can read as cells; z-scores are refused
    vectors = weighted(profiles.values, gene_vectors)      # z-scores: sum over genes of z_g v_g / sqrt(G)

Values that are nowhere negative are TPM, or log2 of 1 + TPM where none is above LARGEST_LOG2; a table with negative
values has z-scores. Z-scores are no amounts: a model would read 0 for "not expressed" where it means "as always", and
-1, which is common among them, is what scLong masks by. They come in by `weighted`, which needs gene vectors alone.
"""

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

KINDS = ("tpm", "log2", "zscore")
LARGEST_LOG2 = 25.0
"""Above the largest log2 of TPM or of an intensity; larger values were never log-transformed."""
DEPTH = 10_000
"""Pseudo-counts of a profile."""


@dataclasses.dataclass(frozen=True)
class Profiles:
    """Expression of lines.

    Attributes:
      lines, genes: their names, each once. [L], [G]
      values: float32. [L, G]
      kind: of KINDS.
      where: the file, for errors.
    """

    lines: list[str]
    genes: list[str]
    values: np.ndarray
    kind: str
    where: str

    def take(self, lines: Sequence[str]) -> "Profiles":
        """Return the profiles of some lines, in their order; ValueError for one without expression."""
        place = {name: i for i, name in enumerate(self.lines)}
        if missing := [name for name in lines if name not in place]:
            raise ValueError(
                f"{self.where}: {len(missing)} lines have no expression, such as {missing[0]}; leave their rows out "
                "(skip_invalid), or give a file that has them"
            )
        return dataclasses.replace(self, lines=list(lines), values=self.values[[place[name] for name in lines]])


def read(path: str | os.PathLike, kind: str = "auto") -> Profiles:
    """Return the profiles of a table of text, whose first column names the lines, or of an .npz.

    An .npz holds one matrix and two arrays of names, of its rows and of its columns.

    Args:
      kind: of KINDS; "auto" looks at the values.

    Raises:
      ValueError, OSError: no such file, no table of numbers, a name that is there twice, values that are no `kind`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of expression")
    if kind not in ("auto", *KINDS):
        raise ValueError(f"kind={kind}: must be one of auto, {', '.join(KINDS)}")
    lines, genes, values = _npz(path) if path.suffix == ".npz" else _table(path)
    for what, names in (("line", lines), ("gene", genes)):
        unique, number = np.unique(np.asarray(names, str), return_counts=True)
        if (number > 1).any():
            raise ValueError(f"{path}: the {what} {unique[number > 1][0]} is there twice; keep one of each")
    if not np.isfinite(values).all():
        line, gene = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"{path}: {lines[line]} has no number for {genes[gene]}; leave the gene or the line out")
    looks = kind_of(values)
    if (kind, looks) in (("tpm", "zscore"), ("log2", "zscore"), ("log2", "tpm")):
        extreme = values.min() if looks == "zscore" else values.max()
        raise ValueError(f"{path}: has the value {extreme:g}, so it is no {kind}; say kind={looks}")
    return Profiles(lines, genes, values, looks if kind == "auto" else kind, str(path))


def kind_of(values: np.ndarray) -> str:
    """Return which of KINDS values are, by their range."""
    if values.min(initial=0) < 0:
        return "zscore"
    return "tpm" if values.max(initial=0) > LARGEST_LOG2 else "log2"


def pseudo_counts(profiles: Profiles, depth: int = DEPTH) -> np.ndarray:
    """Return whole numbers that a model reads as the counts of cells: each profile's share of `depth`. int32 [L, G]

    ValueError for z-scores.
    """
    if profiles.kind == "zscore":
        raise ValueError(
            f"{profiles.where}: z-scores are no expression that a model could read as cells; give TPM or log2 values, "
            "or let them weigh gene vectors (lines=weighted)"
        )
    values = profiles.values.astype(np.float64)
    amounts = np.exp2(values) - 1 if profiles.kind == "log2" else values
    total = amounts.sum(1, keepdims=True)
    if (total <= 0).any():
        raise ValueError(f"{profiles.where}: {profiles.lines[int(np.argmin(total))]} expresses nothing; leave it out")
    return np.rint(amounts / total * depth).astype(np.int32)


def zscores(profiles: Profiles) -> np.ndarray:
    """Return z-scores of each gene over the lines, of log2 of 1 + TPM; those of z-scores are themselves. [L, G]"""
    if profiles.kind == "zscore":
        return profiles.values
    values = np.log2(profiles.values + 1) if profiles.kind == "tpm" else profiles.values
    deviation = values.std(0)
    return ((values - values.mean(0)) / np.where(deviation > 0, deviation, np.inf)).astype(np.float32)


def weighted(z: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return v_line = sum over genes of z_g v_g / sqrt(G). [L, G], [G, D] -> [L, D]"""
    if z.shape[1] != len(vectors):
        raise ValueError(f"expression of {z.shape[1]} genes for {len(vectors)} gene vectors: one for each gene")
    return z @ vectors / np.sqrt(len(vectors))


def _table(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return (lines, genes, values) of a table of text."""
    separator = "," if ".csv" in path.name else "\t"
    try:
        frame = pd.read_csv(path, sep=separator, index_col=0)
        values = frame.to_numpy(np.float32)
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no table of lines and genes ({' '.join(str(error).split())[:120]})") from None
    if not values.size:
        raise ValueError(
            f"{path}: a table of {values.shape[0]} lines and {values.shape[1]} genes; is the separator a tab?"
        )
    return [str(name) for name in frame.index], [str(name) for name in frame.columns], values


def _npz(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Return (lines, genes, values) of a file of arrays."""
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = [content[name] for name in content.files]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no file of arrays ({error})") from None
    matrices = [x for x in arrays if x.ndim == 2 and x.dtype.kind in "fiu"]
    texts = [x.astype(str).tolist() for x in arrays if x.ndim == 1 and x.dtype.kind in "US"]
    if len(matrices) == 1:
        names = [next((text for text in texts if len(text) == size), None) for size in matrices[0].shape]
        if None not in names:
            return *names, matrices[0].astype(np.float32)
    raise ValueError(f"{path}: one matrix is needed, and the names of its rows (lines) and of its columns (genes)")
