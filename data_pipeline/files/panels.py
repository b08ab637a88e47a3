"""Which genes each batch of a study measured: var columns `measured_<batch>`, named after the values of obs "batch".

Where a study was put together of files that had lost different genes, the zeros of a gene in a batch that had lost it
are no counts. A panel is a set of measured genes; a cell's batch says which is its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files.columns import codes

PREFIX, BATCH = "measured_", "batch"


def flags(var: pd.DataFrame) -> list[str]:
    """Return the columns of var that say what a batch measured."""
    return [c for c in var if str(c).startswith(PREFIX) and pd.api.types.is_numeric_dtype(var[c])]


def of_cells(var: pd.DataFrame, obs: pd.DataFrame, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (row of each cell in the table [n]; the table: genes that each panel measured, bool [panels, genes]).

    Row 0 is `measured`, the genes of the whole study, for cells whose batch has no column; others are part of it.
    """
    row, table = np.zeros(len(obs), np.int32), [measured]
    if BATCH in obs and (columns := flags(var)):
        code, names = codes(obs[BATCH])
        for column in (c for c in columns if c.removeprefix(PREFIX) in names):
            row[code == names.index(column.removeprefix(PREFIX))] = len(table)
            table.append(measured & var[column].to_numpy(bool))
    return row, np.stack(table)


def onto(counts: Any, index: np.ndarray, n_genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `of_cells` does of an open file, for the genes of a model. [n], [panels, V]

    Args:
      counts: an open `h5ad.Counts`. index: the model's place of each gene of the file, -1 for none.
    """
    row, table = of_cells(counts.var, counts.obs, np.ones(len(index), bool))
    return row, np.stack([np.isin(np.arange(n_genes), index[panel]) for panel in table])


def table(studies: Sequence[Any]) -> np.ndarray:
    """Return the genes of each study of a store, then of each batch that has its own, bool. [S + batches, G]"""
    each = [study.panels[1] for study in studies]
    return np.concatenate([*(panels[:1] for panels in each), *(panels[1:] for panels in each)])


def rows(studies: Sequence[Any]) -> np.ndarray | None:
    """Return the row of each cell in `table`, int32 [cells]; None where it is everywhere that of the cell's study."""
    beyond = np.cumsum([len(studies), *(len(study.panels[1]) - 1 for study in studies)])
    if beyond[-1] == len(studies):
        return None
    parts = [np.where(s.panels[0] > 0, s.panels[0] - 1 + beyond[i], i) for i, s in enumerate(studies)]
    return np.concatenate(parts).astype(np.int32)
