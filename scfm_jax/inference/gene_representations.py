"""A representation of each gene in each cell of a file: as a stream, averaged over groups of cells, or on disk.

    genes = scfm_jax.api.load(run).gene_representations(adata)
    means = genes.mean("cell_type")            # [groups, genes, D], summed on the device while batches stream
    for rows, values in genes: ...             # [cells, genes, D], a batch at a time
    genes.write("genes.zarr")                  # all of them, if asked: the size is checked against the disk first
    genes.projected(16).write("small.zarr")    # in 16 fixed random directions; `read` gives back what was written

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

from scfm_jax.saving.sealed import Damaged, one_line
from scfm_jax.types import Array

Batches = Callable[[], Iterator[tuple[np.ndarray, Array]]]
SUM_BYTES = 4 << 30
"""Most memory that the sums of all groups may take on a device."""
READ_BYTES = 128 << 20
"""Representations that are read from a file at a time."""


def projection(width: int, to: int, seed: int = 0) -> np.ndarray:
    """Return fixed random directions: normal, of variance 1 / `to`, so that lengths are kept on average. [width, to]"""
    return (np.random.default_rng(seed).standard_normal((width, to)) / to**0.5).astype(np.float32)


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
      taken: places among `rows` -> representations [m, K, D], of those that `read` has read.
    """

    genes: list[str]
    ids: np.ndarray
    width: int
    rows: np.ndarray
    obs: pd.DataFrame
    batches: Batches
    provenance: dict[str, Any]
    taken: Callable[[np.ndarray], np.ndarray] | None = None

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

    def projected(self, width: int, seed: int = 0) -> "GeneRepresentations":
        """Return the representations in a fixed random projection to `width` numbers, see `projection`."""
        directions = projection(self.width, width, seed)
        product = functools.partial(jnp.matmul, precision="highest")
        return self._changed(lambda values: product(values, directions), width, f"{width} random directions")

    def without_gaps(self, means: np.ndarray) -> "GeneRepresentations":
        """Return the representations with each gene's mean [K, D] where the model did not read the gene (NaN)."""
        return self._changed(lambda values: jnp.where(jnp.isnan(values), means, values), self.width, "gaps: means")

    def _changed(self, change: Callable[[Array], Array], width: int, note: str) -> "GeneRepresentations":
        def batches() -> Iterator[tuple[np.ndarray, Array]]:
            for index, values in self.batches():
                yield index, change(values)

        notes = "; ".join(filter(None, [self.provenance.get("notes"), note]))
        provenance = {**self.provenance, "notes": notes}
        return dataclasses.replace(self, width=width, batches=batches, provenance=provenance, taken=None)

    def write(self, path: str | os.PathLike, dtype: str = "float32") -> None:
        """Write all cells to a new zarr group: `values` [n, K, D], a chunk a cell, and `rows` [n]; `read` reads it.

        Every chunk has a checksum. The names of the genes, their places in the vocabulary and where the numbers are
        from are attributes of the group.

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
            attributes = {"genes": self.genes, "ids": self.ids.tolist(), "provenance": self.provenance}
            group = zarr.create_group(partial / "all", attributes=attributes)
            group.create_array("rows", data=self.rows)
            codecs = [zarr.codecs.Crc32cCodec()]  # no others: representations do not compress
            whole = {"write_empty_chunks": True}  # so that one that is lost is not taken for zeros
            layout = {"shape": shape, "chunks": (1, *shape[1:]), "dtype": dtype, "compressors": codecs, "config": whole}
            array = group.create_array("values", **layout)
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


def read(path: str | os.PathLike) -> GeneRepresentations:
    """Return the representations that `GeneRepresentations.write` wrote; cells are read when asked for, some at a time.

    Of obs only which cells they are is kept. Damaged, in one line, where the group is not whole; while cells are read,
    where one of them is not what was written.
    """
    import zarr

    path = pathlib.Path(path)
    try:
        group = zarr.open_group(path, mode="r")
        array, rows = group["values"], np.asarray(group["rows"])
        genes, ids, provenance = (group.attrs[name] for name in ("genes", "ids", "provenance"))
        lost = array.nchunks - array.nchunks_initialized
    except Exception as error:  # zarr raises many types for damaged files
        raise Damaged(f"{path} is no file of gene representations, or damaged: {one_line(error)}") from None
    if lost or array.shape[:2] != (len(rows), len(genes)):
        raise Damaged(f"{path} is not whole: {lost} of {array.nchunks} cells are lost; remove it to have it made again")
    most = max(1, READ_BYTES // max(array.nbytes // len(rows), 1))

    def taken(places: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(array.oindex[np.asarray(places)], np.float32)
        except Exception as error:
            where = f"cells {places[0]}..{places[-1] + 1}"
            raise Damaged(f"{path}, {where}: {one_line(error)}; remove it to have it made again") from None

    def batches() -> Iterator[tuple[np.ndarray, Array]]:
        for start in range(0, len(rows), most):
            here = np.arange(start, min(start + most, len(rows)))
            yield rows[None, here], taken(here)[None]

    obs = pd.DataFrame(index=pd.RangeIndex(len(rows)))
    where_from = dict(provenance)
    return GeneRepresentations(list(genes), np.asarray(ids), array.shape[2], rows, obs, batches, where_from, taken)


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
