"""Write one study: stream its counts, filter, permute the cells within their group, lay down an AnnData zarr group.

One pass over the source and one over a temporary copy, in memory that does not grow with the number of cells but for a
few numbers per cell: the permutation is drawn before any count is read, so a row knows its place when it comes by.
The permutation depends on (seed, study name, group sizes) alone, never on how many workers write the store.
"""

import dataclasses
import datetime
import importlib.metadata
import itertools
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from data_pipeline.files import panels
from data_pipeline.files.whole import checksums
from data_pipeline.progress import Progress, silent
from data_pipeline.store import arrays, filters, spatial
from data_pipeline.store.shuffle import Shuffle

NEIGHBOURS = 50
CELLS = 4096  # read at a time


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything besides the source and the vocabulary that decides what a study's folder holds.

    Attributes:
      group_by: obs column that names the tissue sample or field of view; None makes the study one group.
      seed: of the permutation of cells within their group.
      layer: layer of the source to read, None for X.
      raw: read the source's `raw`.
      round: take values to the nearest whole number.
      min_genes: least number of expressed genes of a cell.
      min_counts: least number of counts of a cell.
      max_mito: largest fraction of counts in mitochondrial genes.
      min_gene_fraction: genes with fewer counts than this times the study's cells are zeroed (0.003 is sCT's rule).
      min_mapped: least fraction of the source's genes, or of the vocabulary's, that must be found in the other.
    """

    group_by: str | None = None
    seed: int = 0
    layer: str | None = None
    raw: bool | None = None
    round: bool | None = None
    min_genes: int = 1
    min_counts: int = 1
    max_mito: float | None = None
    min_gene_fraction: float | None = None
    min_mapped: float | None = 0.5


def build(
    folder: pathlib.Path,
    name: str,
    counts,
    mapping,
    genes: list[str],
    settings: Settings,
    progress: Progress = silent,
) -> dict:
    """Write `counts` as an AnnData zarr group into the new `folder`, flush it to disk and return its manifest record.

    Args:
      folder: where to write; another name until `manifest.commit` moves it in place.
      name: of the study.
      counts: an open `h5ad.Counts`, or anything with its `n_cells`, `genes`, `var`, `obs`, `obsm`, `chunks`.
      mapping: from the source's genes to store ids, with `index`, `apply` and `report` of `vocab.map_genes`.
      genes: the store's vocabulary.
      settings: what to keep and how to order it.
      progress: of the blocks of rows that are read, and of those that are written.

    Raises ValueError where the group column is missing or no cell or no count is left.
    """
    group, groups = _groups(counts.obs, settings.group_by)
    place = _places(group, len(groups), settings.seed, name)
    folder.mkdir(parents=True)
    shuffle = Shuffle(folder.with_name(f"{folder.name}.rows"), len(genes))
    blocks = progress(counts.chunks(CELLS), f"{name}: read block", -(-counts.n_cells // CELLS))
    seen = _scan(counts, blocks, mapping, settings, place, shuffle, len(genes))
    order, zeroed = _kept(seen, place, settings.min_gene_fraction)
    nnz = int(seen.gene_cells[~zeroed].sum())
    starts = np.searchsorted(group[order], np.arange(len(groups) + 1))
    present = np.flatnonzero(np.diff(starts))
    starts = np.append(starts[present], len(order))
    root = zarr.open_group(folder, mode="w-", zarr_format=3)
    dtype = np.min_scalar_type(seen.largest)
    rows = progress(shuffle.sorted(), f"{name}: wrote block", shuffle.buckets)
    _write_counts(root, folder, rows, zeroed, len(order), nnz, dtype)
    obs, renamed = _plain(counts.obs.iloc[order])
    _write_tables(root, obs, _var(counts, mapping, genes, zeroed))
    layout = {
        "name": name,
        "shape": [len(order), len(genes)],
        "nnz": nnz,
        "dtype": dtype.name,
        "spatial": _write_spatial(root, folder, counts, order, starts),
        "groups": [groups[i] for i in present],
        "group_starts": starts.tolist(),
    }
    removed = {"cells": seen.removed(), "genes": int(zeroed.sum())}
    notes = {"notes": list(getattr(counts, "notes", ())), "renamed": renamed}
    provenance = _provenance(counts, mapping, settings) | {key: value for key, value in notes.items() if value}
    return layout | provenance | {"removed": removed, "files": checksums(folder)}


def _provenance(counts, mapping, settings: Settings) -> dict:
    """Return what the manifest says of where a study comes from and how it was made."""
    return {
        "source": {"file": pathlib.Path(counts.path).name, "matrix": counts.source},
        "settings": dataclasses.asdict(settings),
        "mapping": mapping.report.to_dict(),
        "measured": len(np.unique(mapping.index[mapping.index >= 0])),
        "code_version": importlib.metadata.version("scfm_jax"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _groups(obs: pd.DataFrame, column: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the group number of every cell and the sorted group names."""
    if column is None:
        return np.zeros(len(obs), np.int64), ["all"]
    if column not in obs:
        columns = ", ".join(map(str, obs.columns)) or "none"
        raise ValueError(f"no obs column {column!r} to group by; there are {columns}")
    missing = int(obs[column].isna().sum())
    if missing:
        raise ValueError(
            f"obs column {column!r} is empty in {missing} of {len(obs)} cells; fill it or choose another --group_by"
        )
    groups, group = np.unique(obs[column].astype(str).to_numpy(dtype=str), return_inverse=True)
    return group, groups.tolist()


def _places(group: np.ndarray, n_groups: int, seed: int, name: str) -> np.ndarray:
    """Return the place of every cell: groups one after the other, in a random order within each. [n]"""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    order = np.lexsort((rng.random(len(group)), group))
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group))
    return place


@dataclasses.dataclass
class _Seen:
    """What one pass over the source tells.

    Attributes:
      broken: the first filter rule that each cell breaks, -1 where none. [n]
      gene_counts, gene_cells: counts and cells of every gene, over the cells that are kept. [G]
      largest: the largest count.
    """

    broken: np.ndarray
    gene_counts: np.ndarray
    gene_cells: np.ndarray
    largest: int = 0

    def removed(self) -> dict[str, int]:
        """Return how many cells each filter rule removed."""
        numbers = {rule: int((self.broken == i).sum()) for i, rule in enumerate(filters.CELL_RULES)}
        return {rule: number for rule, number in numbers.items() if number}


def _scan(
    counts,
    blocks: Iterator[tuple[int, sp.csr_matrix]],
    mapping,
    settings: Settings,
    place: np.ndarray,
    shuffle: Shuffle,
    n_genes: int,
) -> _Seen:
    """Send every cell that is kept to its place and count what the filters and the layout need to know."""
    mito = None
    if settings.max_mito is not None:
        mito = filters.mitochondrial(counts.genes, counts.var)
        if not mito.any():
            raise ValueError("no mitochondrial gene (MT-…) to judge --max_mito by; leave it out")
    limits = {key: getattr(settings, key) for key in ("min_genes", "min_counts", "max_mito")}
    seen = _Seen(np.empty(counts.n_cells, np.int8), np.zeros(n_genes), np.zeros(n_genes, np.int64))
    for start, rows in blocks:
        mapped = mapping.apply(rows)
        broken = filters.broken_rule(rows, mapped, mito, **limits)
        seen.broken[start : start + rows.shape[0]] = broken
        kept = np.flatnonzero(broken < 0)
        if not len(kept):
            continue
        mapped = mapped[kept]
        shuffle.add(place[start + kept], mapped)
        seen.gene_counts += np.bincount(mapped.indices, mapped.data, n_genes)
        seen.gene_cells += np.bincount(mapped.indices, minlength=n_genes)
        seen.largest = max(seen.largest, int(mapped.data.max()))
    return seen


def _kept(seen: _Seen, place: np.ndarray, min_gene_fraction: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the source rows of the cells that stay, in their new order, and which genes are zeroed. [kept], [G]"""
    kept = np.flatnonzero(seen.broken < 0)
    if not len(kept):
        why = ", ".join(f"{number} by {rule}" for rule, number in seen.removed().items()) or "it is empty"
        raise ValueError(f"no cell is left of {len(place)} ({why}); loosen the filters or give a --vocab that fits")
    zeroed = (seen.gene_counts > 0) & (seen.gene_counts < (min_gene_fraction or 0) * len(kept))
    if not seen.gene_cells[~zeroed].any():
        raise ValueError(f"no count is left: no gene reaches --min_gene_fraction={min_gene_fraction}; lower it")
    return kept[np.argsort(place[kept])], zeroed


def _write_counts(
    root: zarr.Group,
    folder: pathlib.Path,
    blocks: Iterator[sp.csr_matrix],
    zeroed: np.ndarray,
    n_cells: int,
    nnz: int,
    dtype: np.dtype,
) -> None:
    """Write X as CSR, bucket after bucket."""
    group = root.create_group("X")
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, len(zeroed)]})
    indptr, done = np.zeros(n_cells + 1, np.int64), 0
    x, size = folder / "X", (nnz,)
    with arrays.Appender(x / "indices", size, np.int32) as indices, arrays.Appender(x / "data", size, dtype) as data:
        for rows in blocks:
            if zeroed.any():
                rows.data[zeroed[rows.indices]] = 0
                rows.eliminate_zeros()
            indices.append(rows.indices)
            data.append(rows.data)
            indptr[done + 1 : done + 1 + rows.shape[0]] = np.diff(rows.indptr)
            done += rows.shape[0]
    arrays.write_array(x / "indptr", np.cumsum(indptr))


def _var(counts, mapping, genes: list[str], zeroed: np.ndarray) -> pd.DataFrame:
    """Return the study's var: which genes it measured (per batch too, from `measured_<batch>`), which were zeroed."""
    sources = {"measured": np.ones(len(mapping.index), bool)}
    sources |= {c: counts.var[c].to_numpy(dtype=bool) for c in panels.flags(counts.var)}
    mapped = mapping.index >= 0
    columns = {}
    for name, measured in sources.items():
        columns[name] = np.zeros(len(genes), bool)
        columns[name][mapping.index[mapped & measured]] = True
    return pd.DataFrame(columns | {"zeroed": zeroed}, index=pd.Index(genes, dtype=object))


def _write_tables(root: zarr.Group, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """Write obs and var as AnnData does, with a crc32c behind zstd in every chunk."""
    import anndata  # here, for what it costs to import

    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    codecs = {"compressors": [ZstdCodec(level=3), Crc32cCodec()]}
    with anndata.settings.override(auto_shard_zarr_v3=False):
        for key, table in (("obs", obs), ("var", var)):
            anndata.io.write_elem(root, key, table, dataset_kwargs=codecs)
        for key in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            anndata.io.write_elem(root, key, {})


def _plain(obs: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return obs with columns that zarr can hold, and the new names of those that had to be renamed.

    What is neither number nor flag becomes a categorical of strings.
    """
    names = _column_names([str(name) for name in obs.columns])
    renamed = {str(old): new for old, new in zip(obs.columns, names, strict=True) if str(old) != new}
    columns = {}
    for place, name in enumerate(names):
        values = obs.iloc[:, place]
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.cat.remove_unused_categories()
            values = values.cat.rename_categories(values.cat.categories.astype(str).astype(object))
        elif not (pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)):
            values = values.astype(object).where(values.isna(), values.astype(str)).astype("category")
        columns[name] = values.array
    return pd.DataFrame(columns, index=obs.index.astype(str).rename(None)), renamed


def _column_names(names: list[str]) -> list[str]:
    """Return names without slashes, each once: those that are right already stay, the others get a number behind."""
    taken = {name for name in names if "/" not in name}
    plain: list[str] = []
    for name in names:
        new = name.replace("/", "_")
        if new in plain or (new != name and new in taken):
            tries = (f"{new}_{number}" for number in itertools.count(2))
            new = next(text for text in tries if text not in taken and text not in plain)
        plain.append(new)
    return plain


def _write_spatial(root: zarr.Group, folder: pathlib.Path, counts, order: np.ndarray, starts: np.ndarray) -> bool:
    """Write coordinates and neighbours of a study that has positions (the first two columns); return whether it has."""
    if "spatial" not in counts.obsm:
        return False
    coords = np.asarray(counts.obsm["spatial"], np.float32)
    if coords.ndim != 2 or coords.shape[1] < 2:
        raise ValueError(f"obsm['spatial'] is of shape {coords.shape}; two columns are needed, x and y")
    coords = coords[order, :2]
    for key, values in (("spatial", coords), ("neighbours", spatial.neighbours(coords, starts, NEIGHBOURS))):
        arrays.write_array(folder / "obsm" / key, values)
        root[f"obsm/{key}"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return True
