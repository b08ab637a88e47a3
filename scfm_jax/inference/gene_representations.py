"""A representation of each gene in each cell of a file: as a stream, averaged over groups of cells, or on disk.

    genes = scfm_jax.api.load(run).gene_representations(adata)
    means = genes.mean("cell_type")            # [groups, genes, D], summed on the device while batches stream
    for rows, values in genes: ...             # [cells, genes, D], a batch at a time
    genes.write("genes.zarr")                  # all of them, if asked: the size is checked against the disk first

All cells together are never in memory: scLong's 27,875 x 200 numbers a cell are 22 MB (its authors' `embed.py` writes
them all). Genes that the file did not measure are left out; those that the model was not given in a cell (scEMB reads
the 2,048 highest ranked) are NaN there and do not count in the mean. Which cells are in a batch is `Run`'s choice; for
a model whose cells attend to each other a batch is a bag as in training.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from scfm_jax.types import Array

Batches = Callable[[], Iterator[tuple[np.ndarray, Array]]]
SUM_BYTES = 4 << 30
"""Most memory that the sums of all groups may take on a device."""


@dataclasses.dataclass
class Means:
    """Mean gene representations of groups of cells.

    Attributes:
      values: float32. [S, K, D]
      groups: what the groups are called, sorted. [S]
      cells: how many cells each has. [S]
      seen: in how many of them the model was given the gene; where in none, the mean is NaN. [S, K]
      genes: names of the genes, as the model has them. [K]
    """

    values: np.ndarray
    groups: list[str]
    cells: np.ndarray
    seen: np.ndarray
    genes: list[str]

    def of(self, group: str) -> np.ndarray:
        """Return the representations of the genes in one group. [K, D]"""
        return self.values[self.groups.index(group)]


@dataclasses.dataclass
class GeneRepresentations:
    """The gene representations of the cells of a file; nothing is computed before it is asked for.

    Attributes:
      genes: names, as the model has them, of its genes that the file measured. [K]
      ids: their places in the model's vocabulary, ascending. [K]
      width: D.
      rows: the rows of the file that are represented, ascending. [n]
      obs: what the file knows of these cells. n rows
      batches: starts a stream of (file row of each cell, -1 in the padding [B, C], representations [B, C, K, D]).
      provenance: what is done, JSON-able.
    """

    genes: list[str]
    ids: np.ndarray
    width: int
    rows: np.ndarray
    obs: pd.DataFrame
    batches: Batches
    provenance: dict[str, Any]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (rows of the file [m], representations, float32 [m, K, D]), a batch at a time."""
        for index, values in self.batches():
            yield index[index >= 0], np.asarray(values)[index >= 0]

    def mean(self, by: str | Sequence[Any]) -> Means:
        """Return the means over groups of cells, for each gene over those in which the model was given it.

        Args:
          by: column of obs, or a label for every cell of `rows`; cells without one (None, NaN, "") do not count. [n]

        Raises:
          ValueError: no such column, a number of labels that is not that of cells, no labelled cell, too many groups,
            or a value that is not finite.
        """
        codes, groups = pd.factorize(self._labels(by), sort=True)
        values, seen = self.mean_of(codes[:, None] == np.arange(len(groups)))
        cells = np.bincount(codes[codes >= 0], minlength=len(groups))
        return Means(values, [str(group) for group in groups], cells, seen, self.genes)

    def mean_of(self, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (means [S, K, D], numbers of cells [S, K]) of groups that may share cells. member: bool [n, S]"""
        shape = (member.shape[1], len(self.genes))
        size = int(np.prod(shape)) * self.width * 4
        if not member.any() or size > SUM_BYTES:
            why = (
                f"would take {size / 1e9:.1f} GB, choose fewer"
                if member.any()
                else "no cell has a label, choose others"
            )
            raise ValueError(f"means over {shape[0]} groups: {why}")
        of_row = np.zeros((self.rows.max() + 2, shape[0]), np.float32)  # the last one is that of the padding
        of_row[self.rows] = member
        sums = jnp.zeros((*shape, self.width)), jnp.zeros(shape)
        for index, values in self.batches():
            sums = _add(sums, values, of_row[index])
        total, seen = np.asarray(sums[0]), np.asarray(sums[1])
        if not seen.any() or not np.isfinite(total).all():
            raise ValueError("gene representations are not finite: are the weights whole?")
        means = np.where(seen > 0, 1, np.nan)[..., None].astype(np.float32) * total / np.maximum(seen, 1)[..., None]
        return means, seen.astype(int)

    def write(self, path: str | os.PathLike, dtype: str = "float32") -> None:
        """Write all cells to a new zarr group: `values` [n, K, D], a chunk a cell, and `rows` [n].

        The names of the genes and where the numbers are from are attributes of the group.

        Raises:
          FileExistsError: there is something at `path`.
          OSError: the disk cannot hold it.
        """
        import zarr

        path = pathlib.Path(path)
        if path.exists():
            raise FileExistsError(f"{path}: exists already and is not overwritten; choose another name")
        shape = (len(self.rows), len(self.genes), self.width)
        size, free = int(np.prod(shape)) * np.dtype(dtype).itemsize, shutil.disk_usage(path.absolute().parent).free
        if size > free:
            raise OSError(f"{path}: {size / 1e9:.1f} GB of gene representations, {free / 1e9:.1f} GB free; use `mean`")
        place = np.full(self.rows.max() + 1, -1)
        place[self.rows] = np.arange(len(self.rows))
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
        try:
            group = zarr.create_group(partial / "all", attributes={"genes": self.genes, "provenance": self.provenance})
            group.create_array("rows", data=self.rows)
            array = group.create_array("values", shape=shape, chunks=(1, *shape[1:]), dtype=dtype)
            for rows, values in self:
                for row, value in zip(rows, values, strict=True):
                    array[place[row]] = value
            for entry in sorted((partial / "all").rglob("*"), reverse=True):  # files before the folders they are in
                _sync(entry)
            (partial / "all").rename(path)
            _sync(path.absolute().parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _labels(self, by: str | Sequence[Any]) -> np.ndarray:
        """Return the label of each cell, None where there is none. [n]"""
        if isinstance(by, str) and by not in self.obs:
            raise ValueError(f"{by}: no such obs column; there are {', '.join(map(str, self.obs.columns)) or 'none'}")
        labels = pd.Series(np.asarray(self.obs[by] if isinstance(by, str) else by, object))
        if len(labels) != len(self.rows):
            raise ValueError(f"{len(labels)} labels for {len(self.rows)} cells: one for each is needed")
        return labels.where(labels.notna() & (labels != ""), None).map(str, na_action="ignore").to_numpy()


def _sync(path: pathlib.Path) -> None:
    """Bring a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.partial(jax.jit, donate_argnames="sums")
def _add(sums: tuple[Array, Array], values: Array, member: Array) -> tuple[Array, Array]:
    """Add representations [B, C, K, D] to sums [S, K, D] and numbers [S, K] of groups; member, 0 or 1: [B, C, S]."""
    total, seen = sums
    here = ~jnp.isnan(values).all(-1) & (member > 0).any(-1, keepdims=True)
    values = jnp.where(here[..., None], values, 0)
    add = functools.partial(jnp.einsum, precision="highest")
    return total + add("bcs,bckd->skd", member, values), seen + add("bcs,bck->sk", member, here.astype(jnp.float32))
