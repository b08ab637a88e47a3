"""A column of a table as text, with what is missing as missing: one rule for every column type and for pandas 2 and 3.

`astype(str)` will not do: pandas 2 turns a missing value into the text "nan" or "<NA>", pandas 3 leaves it missing.
"""

import numpy as np
import pandas as pd


def codes(values: pd.Series | pd.Categorical | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return (index of each cell's text, -1 where the value is missing or an empty text [n]; the text of each value).

    A column holds Python objects, categories, pandas' strings, nullable numbers or flags, or NumPy's; missing are None,
    NaN, NaT and pd.NA.
    """
    values = pd.Categorical(values)
    texts = [str(value) for value in values.categories]
    filled = np.array([bool(value) for value in texts] + [False])
    return np.where(filled[values.codes], values.codes, -1), texts


def text(values: pd.Series | pd.Categorical | np.ndarray) -> np.ndarray:
    """Return the values as text, None where one is missing or an empty text, object. [n]"""
    index, texts = codes(values)
    return np.array([*texts, None], object)[index]
