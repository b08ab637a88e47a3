"""Labels of cells: which say that nobody knows, which are no labels but measurements, and their codes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

UNLABELLED = frozenset(
    ("", "nan", "na", "<na>", "n/a", "nat", "none", "null", "unknown", "unassigned", "unlabeled", "unlabelled")
)
"""Words, in lower case, that say of a cell that nobody knows its label. Every door asks this list (`unlabelled`)."""


def unlabelled(label: object) -> bool:
    """Return whether a label says that there is none: a missing value, or a word of UNLABELLED in any case."""
    return bool(pd.isna(label)) or str(label).strip().lower() in UNLABELLED


def measured(values: pd.Series) -> bool:
    """Return whether a column holds measurements, numbers with fractions, and so names no groups of cells."""
    if not pd.api.types.is_float_dtype(values):
        return False
    numbers = values.dropna().to_numpy(float)
    return bool((numbers != np.rint(numbers)).any())


def encode(labels: Sequence) -> np.ndarray:
    """Return labels as int codes in sorted order, -1 where there is none (see `unlabelled`). [n]"""
    text = ["" if unlabelled(x) else str(x) for x in labels]
    names = sorted({*text} - {""})
    code = {name: i for i, name in enumerate(names)}
    return np.array([code.get(x, -1) for x in text], np.int64)
