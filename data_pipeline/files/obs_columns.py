"""Write a file again with more columns in its table of cells, as `h5ad.write_embedding` does with an embedding."""

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from data_pipeline.files import h5ad
from data_pipeline.files.sources import Source, open_source

if TYPE_CHECKING:  # it costs a second to import
    import anndata


def check_free(source: "str | os.PathLike | anndata.AnnData", names: Iterable[str], key: str) -> None:
    """Raise ValueError where the cells of `source` have a column of `names` already, or uns has `key`."""
    with closing(open_source(source)) as cells:
        _check_free(cells, names, _uns(source, cells), key)


def write_columns(
    source: "str | os.PathLike | anndata.AnnData",
    output: str | os.PathLike,
    columns: pd.DataFrame,
    key: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write `source` as the .h5ad file `output` with more columns of obs, and `provenance` as uns[key].

    All else is as `h5ad.write_embedding` has it: what is copied, that nothing is overwritten, and that whatever fails
    leaves nothing behind.

    Args:
      columns: a row for each cell, in the file's order; its index is not looked at.
    """
    from anndata.io import write_elem  # here, for what it costs to import

    output = Path(output)
    h5ad.check_output(output)
    with closing(open_source(source)) as cells:
        n_cells = len(cells.table("obs"))
        if len(columns) != n_cells:
            raise ValueError(f"{cells.path}: {len(columns)} rows of new columns do not fit its {n_cells} cells")
        _check_free(cells, columns, _uns(source, cells), key)
        with h5ad.copied(source, cells, output) as file:
            _add(file, columns)
            if "uns" not in file:
                write_elem(file, "uns", {})
            write_elem(file["uns"], key, h5ad.plain(provenance))


def _add(file: h5py.File, columns: pd.DataFrame) -> None:
    """Put columns into obs and leave all that it has as it is; write it anew where it does not list its columns."""
    from anndata.io import read_elem, write_elem

    if "column-order" not in file["obs"].attrs:
        table = read_elem(file["obs"])
        for name in columns:
            table[name] = columns[name].array
        del file["obs"]
        write_elem(file, "obs", table)
        return
    for name in columns:
        values = columns[name]
        write_elem(
            file["obs"], str(name), values.array if isinstance(values.dtype, pd.CategoricalDtype) else values.to_numpy()
        )
    order = [*(str(name) for name in file["obs"].attrs["column-order"]), *map(str, columns)]
    file["obs"].attrs["column-order"] = np.array(order, h5py.string_dtype())


def _uns(source: Any, cells: Source) -> Iterable[str]:
    """Return the names in uns."""
    if not isinstance(source, str | os.PathLike):
        return source.uns
    return cells.root["uns"] if cells.root is not None and "uns" in cells.root else ()


def _check_free(cells: Source, names: Iterable[str], uns: Iterable[str], key: str) -> None:
    obs = set(map(str, cells.table("obs").columns))
    for name in map(str, names):
        if name in obs:
            raise ValueError(f"{cells.path}: obs[{name!r}] is there already: choose another key")
    if key in uns:
        raise ValueError(f"{cells.path}: uns[{key!r}] is there already: choose another key")
