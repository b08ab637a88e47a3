"""Which cells a model sees together, how they are packed into batches, and which constants a model must have.

The one place that reads what a model's folder says of it: SAMPLE (its cells attend to each other, in whole tissue
samples or in bags of as many as in training), BATCH (cells at a time of a model of single cells) and FITTED (constants
that come of a pass over cells, such as the mean of each gene). Shapes come in a few sizes (`size_up`), so that a file
of any length costs a few compilations; padding never reaches a result.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

CELLS = 256
"""Cells at a time of a model of single cells that does not say how many."""
BAG = 50
"""Cells of a bag of a published model, which brings no data options."""
SAMPLE_SIZE, GENES_SIZE = 64, 256
"""Least padded number of cells of a sample, and of expressed genes of a cell."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which cells a model sees together.

    Attributes:
      together: False where it looks at each cell by itself, True where at a whole tissue sample, "bag" where at as many
        cells as a bag had in training.
      cells: how many cells it is given at a time, if it looks at each by itself.
      bag: cells of a bag in training.
      near: whether bags in training were a cell and its nearest neighbours in space.
      by_length: whether batches in training were of cells with about as many genes, which attention squares.
    """

    together: bool | str = False
    cells: int = CELLS
    bag: int = 1
    near: bool = False
    by_length: bool = False

    @property
    def fixed_bag(self) -> int | None:
        """Cells of a bag, for a model that looks at as many as in training; None for others."""
        return self.bag if self.together == "bag" else None

    @property
    def imputed_bag(self) -> int:
        """Cells of a bag where counts are imputed: as in training, where that matters to the model, else BAG."""
        return self.fixed_bag or BAG

    def cut(self, groups: Iterable[np.ndarray]) -> list[np.ndarray]:
        """Return groups of rows, cut into parts of at most a bag where the model looks at so many cells."""
        if self.fixed_bag is None:
            return list(groups)
        return [part for rows in groups for part in np.split(rows, range(self.bag, len(rows), self.bag))]

    def index(self, rows: np.ndarray, cells: int | None = None) -> np.ndarray:
        """Return the rows of one batch, -1 in the padding: one bag [1, C], or `cells` cells apart [cells, 1]."""
        if self.together:
            size = size_up(len(rows), self.fixed_bag or SAMPLE_SIZE)
        else:
            size = cells or self.cells
        index = np.full(size, -1, np.int64)
        index[: len(rows)] = rows
        return index[None] if self.together else index[:, None]

    def batches(self, groups: Iterable[np.ndarray], cells: int | None = None) -> list[np.ndarray]:
        """Return the rows of every batch, see `index`: a group is a bag, unless the model looks at single cells."""
        if self.together:
            return [self.index(rows) for rows in groups]
        rows, most = np.concatenate(list(groups)), cells or self.cells
        return [self.index(part, most) for part in np.split(rows, range(most, len(rows), most))]


def rules(module: ModuleType, config: Mapping[str, Any]) -> Rules:
    """Return the rules of a model, with the bag of the run's config or, of published weights, BAG."""
    together = getattr(module, "SAMPLE", False)
    data = config.get("data") or {}
    bag = data.get("bag") or (BAG if together else 1)
    return Rules(
        together,
        getattr(module, "BATCH", CELLS),
        bag,
        near=data.get("kind") == "neighbours",
        by_length=bool(data.get("by_length")) and not together,
    )


def by_code(codes: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each code, ascending. [n]"""
    return [np.flatnonzero(codes == code) for code in np.unique(codes)]


def seen_together(
    rules: Rules,
    obs: pd.DataFrame,
    sample_key: str | None,
    max_cells: int,
    seed: int,
    cells: int | None = None,
    coords: np.ndarray | None = None,
) -> tuple[list[np.ndarray], str]:
    """Return the rows of each batch, see `Rules.index`, and in words what a cell is seen together with.

    Args:
      sample_key, max_cells, seed: of `samples`; models of single cells do not use them.
      cells: as of `Rules.index`.
      coords: positions of the cells, or None; only models that were trained on neighbours use them. [n, 2]

    Raises ValueError as `samples` does.
    """
    if rules.together:
        parts, how = samples(
            obs, sample_key, min(max_cells, rules.fixed_bag or max_cells), seed, coords if rules.near else None
        )
        lacking = rules.near and coords is None
        return parts, how + "; trained on neighbours, but the file has no positions" * lacking
    most = cells or rules.cells
    return np.split(np.arange(len(obs)), range(most, len(obs), most)), "every cell is embedded by itself"


def samples(
    obs: pd.DataFrame, sample_key: str | None, max_cells: int, seed: int, coords: np.ndarray | None = None
) -> tuple[list[np.ndarray], str]:
    """Return the rows of each tissue sample, large ones cut into parts, and in words what was done.

    Args:
      sample_key: column that names the sample of each cell; None: all cells are one sample; "auto": "batch" if there,
        unless it holds measurements.
      coords: positions [n, 2]: a sample whose cells all have one is cut into `tiles`, others into random parts.

    Raises ValueError for a column that is not there or holds measurements, or a max_cells below 1.
    """
    if max_cells < 1:
        raise ValueError(f"max_cells={max_cells}: a sample has at least one cell")
    passed_over = ""
    if sample_key == "auto":
        sample_key = "batch" if "batch" in obs else None
        if sample_key and _fractions(obs[sample_key]):
            sample_key, passed_over = None, '; obs["batch"] holds measurements and names none'
    if sample_key is None:
        groups, how = [np.arange(len(obs))], f"the whole file is one sample{passed_over}"
    elif sample_key not in obs:
        raise ValueError(f"sample_key={sample_key}: no such obs column; there are {', '.join(map(str, obs.columns))}")
    elif _fractions(obs[sample_key]):
        raise ValueError(f"sample_key={sample_key}: this obs column holds measurements, which name no samples")
    else:
        codes, names = pd.factorize(obs[sample_key], use_na_sentinel=False)
        groups = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        how = f'samples are obs["{sample_key}"]: {len(names)}'
    rng, parts, cut, tiled = np.random.default_rng(seed), [], 0, 0
    for rows in groups:
        number = -(-len(rows) // max_cells)
        if coords is not None and np.isfinite(coords[rows]).all():
            tiled += number > 1
            parts += tiles(rows, coords, number)
            continue
        cut += number > 1
        parts += [np.sort(part) for part in np.array_split(rng.permutation(rows), number)]
    if tiled:
        how += f"; {tiled} of more than {max_cells} cells cut into tiles of neighbours of equal size"
    if cut:
        how += f"; {cut} of more than {max_cells} cells cut into random parts of equal size (seed {seed})"
    return parts, how


def tiles(rows: np.ndarray, coords: np.ndarray, number: int) -> list[np.ndarray]:
    """Return rows cut into compact parts of equal size, each as training has its bags: a cell, then those next to it.

    The field is cut across its longer side again and again; the first cell of a part is the one nearest its middle.

    Args:
      coords: positions of all cells. [n, 2]
      number: of parts.
    """
    if number == 1:
        first = rows[np.linalg.norm(coords[rows] - coords[rows].mean(0), axis=1).argmin()]
        return [rows[np.linalg.norm(coords[rows] - coords[first], axis=1).argsort(kind="stable")]]
    rows = rows[coords[rows][:, np.ptp(coords[rows], 0).argmax()].argsort(kind="stable")]
    middle, before = len(rows) * (number // 2) // number, number // 2
    return tiles(rows[:middle], coords, before) + tiles(rows[middle:], coords, number - before)


def _fractions(values: pd.Series) -> bool:
    """Return whether a column holds numbers that are not whole."""
    return bool(pd.api.types.is_float_dtype(values) and (values.dropna() % 1 != 0).any())


def sample_codes(obs: pd.DataFrame, sample_key: str | None) -> np.ndarray:
    """Return the number of each cell's tissue sample; see `samples`. [n]"""
    codes = np.zeros(len(obs), int)
    for number, rows in enumerate(samples(obs, sample_key, max(len(obs), 1), 0)[0]):
        codes[rows] = number
    return codes


# -------------------------------------------------------------------------------------------------------------- batches


def pack(
    counts: sp.csr_matrix,
    index: np.ndarray,
    coords: np.ndarray | None = None,
    labels: Sequence[str] = (),
    panel: np.ndarray | None = None,
    field_coords: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return a batch, the fields of `types.Batch` and "index", from raw counts in the model's own vocabulary.

    It is of one study, and all labels are unknown.

    Args:
      counts: counts of the cells of `index` that are not padding, in its order. [cells, V]
      index: the cell's row in the result, -1 in the padding. [B, C]
      coords: their positions. [cells, 2]
      labels: names of the labels that the model expects.
      panel, field_coords: of `types.Batch`, where they are known. [cells], [cells, 2]

    Raises:
      ValueError: a count is negative.
    """
    if counts.nnz and counts.data.min() < 0:
        least = counts.data.min()
        raise ValueError(f"counts: {least:g}: counts, and values, are 0 or more; below that scLong reads its mask")
    lengths = np.diff(counts.indptr)
    width = size_up(int(lengths.max(initial=0)), GENES_SIZE)
    here = index >= 0
    row = np.repeat(np.flatnonzero(here), lengths)
    column = np.arange(counts.nnz) - np.repeat(counts.indptr[:-1], lengths)
    genes = np.full((index.size, width), counts.shape[1], np.int32)
    values = np.zeros((index.size, width), np.float32)
    genes[row, column], values[row, column] = counts.indices, counts.data
    where = np.full((2, *index.shape, 2), np.nan, np.float32)
    for place, positions in zip(where, (coords, field_coords), strict=True):
        if positions is not None:
            place[here] = positions
    rows = np.zeros(index.shape, np.int32)
    rows[here] = 0 if panel is None else panel
    return {
        "genes": genes.reshape(*index.shape, width),
        "counts": values.reshape(*index.shape, width),
        "cell_mask": here,
        "study": np.zeros(index.shape, np.int32),
        "panel": None if panel is None else rows,
        "coords": where[0],
        "field_coords": None if field_coords is None else where[1],
        "labels": {name: np.full(index.shape, -1, np.int32) for name in labels},
        "index": index,
    }


def size_up(n: int, least: int) -> int:
    """Return the smallest size of the series least, 1.5 least, 2 least, 3 least, 4 least, ... that holds n."""
    while least < n:
        if least * 3 // 2 >= n:
            return least * 3 // 2
        least *= 2
    return least


# ------------------------------------------------------------------------------------------------------------ constants


def own_vocabulary(measured: np.ndarray, columns: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return the constants of batches that are in the model's own vocabulary, or in some `columns` of it.

    measured: bool [S, V]; columns: genes of the vocabulary, V in the padding, see `vocab.Mapping.compact`. [M]
    """
    n_genes = measured.shape[1]
    columns = np.arange(n_genes) if columns is None else columns
    return {"slots": np.append(columns, n_genes).astype(np.int32), "measured": measured}


def fitted(module: ModuleType) -> tuple[str, ...]:
    """Return the names of the constants that the model takes from a pass over cells."""
    return tuple(getattr(module, "FITTED", ()))


def missing(module: ModuleType, constants: Mapping[str, Any]) -> list[str]:
    """Return the names of those that are not among the constants."""
    return [name for name in fitted(module) if name not in constants]


def unfitted(module: ModuleType, constants: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants without those that the model takes from a pass over cells."""
    return {name: value for name, value in constants.items() if name.removeprefix("val_") not in fitted(module)}


def complete_constants(
    module: ModuleType,
    constants: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    inputs: Mapping[str, Any] | None = None,
    *,
    measured: np.ndarray | None = None,
    columns: np.ndarray | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return all constants that the model needs; what did not come with its weights is fitted to the cells, and said.

    Args:
      constants: that came with the weights, with the "slots" and "measured" of the batches if `measured` is None.
      batches: the cells, numpy; nothing is read of them where nothing is missing.
      inputs: keywords of the module's `prepare`; they are left as they are.
      measured: genes that each study of batches in the model's own vocabulary measured, bool [S, V].
      columns: of the vocabulary, which the batches are in; of `own_vocabulary`.
      say: gets a line where something was fitted.
    """
    constants = {**constants, **({} if measured is None else own_vocabulary(measured, columns))}
    names = missing(module, constants)
    if names:
        say(f"{', '.join(names)} are taken of these cells, not of the training cells")
        constants, _ = module.fit({"train": batches}, constants, dict(inputs or {}))
    return constants


def refitted(
    module: ModuleType,
    constants: Mapping[str, Any],
    parts: Mapping[str, Iterable[Mapping[str, Any]]],
    inputs: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (constants, inputs) with what a pass over these cells tells, whatever came with the weights.

    Args:
      parts: batches of "train" and "val", see `scfm_jax.models`.
    """
    kept = unfitted(module, constants)
    return module.fit(parts, kept, dict(inputs)) if hasattr(module, "fit") else (kept, dict(inputs))
