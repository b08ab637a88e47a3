"""Read the tables of cells and genes of AnnData's layout, those without marks of their encoding too.

SeuratDisk writes `var` and `raw/var` as plain groups that say nothing but the name of their index; factors are codes
with their levels in `__categories`, or pairs of `levels` and `values` that count from one.
"""

from typing import Any

import h5py
import numpy as np
import pandas as pd

from data_pipeline.files import trust


def read(group: Any, name: str) -> pd.DataFrame:
    """Return the table in a group of HDF5 or zarr.

    Raises:
      ValueError: there is no index in it, or columns and index are not of one length; whatever anndata raises.
    """
    from anndata.io import read_elem  # here, for what it costs to import

    index = _index(group, name)
    columns = _columns(group, index)
    trust.check_table(group, index, columns, name)
    if group.attrs.get("encoding-type") == "dataframe":
        return read_elem(group)
    frame = {column: _column(group, column) for column in columns if column in group}
    return pd.DataFrame(frame, index=pd.Index(np.asarray(_column(group, index)).astype(str)))


def _index(group: Any, name: str) -> str:
    """Return the name of the column that holds the names of the rows."""
    marked = group.attrs.get("_index")
    marked = marked.decode() if isinstance(marked, bytes) else marked
    index = next((key for key in (marked, "_index", "index") if isinstance(key, str) and key in group), None)
    if index is None:
        raise ValueError(f"no column _index with the names of its rows; there are {', '.join(group) or 'none'}")
    return index


def _columns(group: Any, index: str) -> list[str]:
    """Return the names of the columns, in their order."""
    order = group.attrs.get("column-order")
    if order is None or not len(order):
        order = [] if group.attrs.get("encoding-type") == "dataframe" else sorted(group)
    names = [key.decode() if isinstance(key, bytes) else str(key) for key in order]
    return [key for key in names if key not in (index, "__categories")]


def _column(group: Any, name: str) -> Any:
    """Return a column, as an array or a categorical."""
    from anndata.io import read_elem

    element = group[name]
    if "encoding-type" in element.attrs:
        return read_elem(element)
    if "codes" in element and "categories" in element:
        return _factor(element["codes"][:], element["categories"])
    if hasattr(element, "keys"):
        if "levels" in element and "values" in element:
            return _factor(element["values"][:] - 1, element["levels"])
        raise ValueError(f"the column {name} is a group of {', '.join(element) or 'nothing'}")
    reference = element.attrs.get("categories")
    if isinstance(reference, h5py.Reference):
        return _factor(element[:], element.file[reference])
    if "__categories" in group and name in group["__categories"]:
        return _factor(element[:], group["__categories"][name])
    return _values(element)


def _factor(codes: np.ndarray, levels: Any) -> pd.Categorical:
    codes, levels = np.asarray(codes), pd.unique(pd.Series(_values(levels)))
    return pd.Categorical.from_codes(np.where((codes >= 0) & (codes < len(levels)), codes, -1), levels)


def _values(array: Any) -> np.ndarray:
    """Return a one-dimensional array, text as str."""
    if isinstance(array, h5py.Dataset) and array.dtype.kind in "OS":
        return array.asstr()[:]
    return np.asarray(array[:])
