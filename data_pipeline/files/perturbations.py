"""What was perturbed in each cell: GEARS' obs.condition ("STAT1+ctrl", "A+B", "ctrl"), or any other column of obs.

`read` gives every cell the name of its condition, in one spelling whatever the order of its targets; which genes the
targets are is for `data_pipeline.genes.vocab` to say. `check_logged` looks at expression that is not counts.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files.columns import text

CONTROL = "control"
"""The condition of control cells, whatever the file calls them."""
GEARS = {"column": "condition", "control": ("ctrl",), "separator": "+"}
CONTROLS = ("control", "ctrl", "non-targeting", "NT")
"""What control cells are called where nobody says."""
LARGEST_LOG = 25.0
"""Above the largest log1p of a count: larger values were never log-transformed."""


@dataclasses.dataclass
class Conditions:
    """The condition of each cell.

    Attributes:
      names: CONTROL, the targets sorted with "+" between, or None where nothing is known. object [n]
      targets: the targets of each condition but control, sorted.
    """

    names: np.ndarray
    targets: dict[str, tuple[str, ...]]

    def all_targets(self) -> list[str]:
        """Return every target, sorted."""
        return sorted({target for of in self.targets.values() for target in of})


def read(
    obs: pd.DataFrame,
    column: str = "auto",
    control: Sequence[str] = (),
    separator: str = "+",
    where: str = "the file",
) -> Conditions:
    """Return the conditions of the cells of a table.

    Args:
      column: of obs; "auto" takes GEARS' layout, obs.condition with "ctrl" in it.
      control: its values for control cells; they are no target beside others ("STAT1+ctrl" is a single). "ctrl" and
        GEARS' layout are known where this is left out.
      separator: between the targets of a cell with several.
      where: the file, for errors.

    Raises:
      ValueError: no such column, no control cells, or no others; in one line.
    """
    columns = ", ".join(map(str, obs.columns)) or "none"
    if column == "auto":
        values = text(obs[GEARS["column"]]) if GEARS["column"] in obs else []
        if not any(value and "ctrl" in value.split("+") for value in values):
            raise ValueError(
                f"{where}: no obs column 'condition' with 'ctrl' in it (GEARS' layout); say column=NAME and "
                f"control=VALUE; there are {columns}"
            )
        column, control, separator = GEARS["column"], control or GEARS["control"], GEARS["separator"]
    if column not in obs:
        raise ValueError(f"{where}: column={column}: no such obs column; there are {columns}")
    values, control = text(obs[column]), tuple(control) or GEARS["control"]
    spelled = {value: _targets(value, control, separator) for value in sorted({v for v in values if v is not None})}
    if not any(of == () for of in spelled.values()):
        raise ValueError(
            f"{where}: obs[{column!r}] has no control cells ({' or '.join(control)}), and changes are told against "
            f"them; say control=VALUE; there are {_some(values)}"
        )
    targets = {"+".join(of): of for of in spelled.values() if of}
    if not targets:
        raise ValueError(f"{where}: obs[{column!r}] has control cells only; choose another column; there are {columns}")
    names = {value: "+".join(of) or CONTROL for value, of in spelled.items()} | {None: None}
    return Conditions(np.array([names[value] for value in values], object), targets)


def told(obs: pd.DataFrame) -> dict[str, Any] | None:
    """Return the options of `read` for a table that says by itself what was perturbed; None for another.

    That is GEARS' layout, or a column "perturbation" with one of CONTROLS.
    """
    if GEARS["column"] in obs and any(v and "ctrl" in v.split("+") for v in text(obs[GEARS["column"]])):
        return {}
    if "perturbation" in obs and (control := [name for name in CONTROLS if name in set(text(obs["perturbation"]))]):
        return {"column": "perturbation", "control": control}
    return None


def _targets(value: str, control: Sequence[str], separator: str) -> tuple[str, ...]:
    """Return the targets in a value, none for control."""
    if value in control:
        return ()
    parts = {part.strip() for part in value.split(separator)} if separator else {value}
    return tuple(sorted(parts - set(control) - {""}))


def _some(values: np.ndarray) -> str:
    """Return the most frequent values of a column and how many cells have each."""
    names, number = np.unique([value for value in values if value is not None], return_counts=True)
    most = [f"{names[i]} ({number[i]})" for i in np.argsort(-number, kind="stable")[:8]]
    return ", ".join(most) or "no values"


def require(asked: Sequence[str], places: Mapping[str, int], measured: Mapping[str, int], where: str) -> None:
    """Raise ValueError for the first of some targets that is no gene of a vocabulary, or that was not measured.

    Args:
      places, measured: the gene of each target in the vocabulary, and among the file's, -1 for none.
    """
    for target in asked:
        if places.get(target, -1) < 0:
            raise ValueError(
                f"{where}: target {target} is no gene of the vocabulary; check its spelling, give a gene_table that "
                "knows its other names, or leave its cells out"
            )
        if measured.get(target, -1) < 0:
            raise ValueError(
                f"{where}: target {target} was not measured, so its own expression cannot be changed; choose another "
                "target, or a file that measures this one"
            )


def check_logged(values: sparse.csr_matrix, where: str) -> None:
    """Raise ValueError where expression is no log1p of scaled counts: negative (z-scored), or too large (counts)."""
    data = values.data
    if len(data) and (not np.isfinite(data).all() or data.min() < 0):
        kind = "negative values, as of z-scores" if np.isfinite(data).all() else "values that are not finite"
        raise ValueError(f"{where}: {kind}: changes are of log1p of counts; give raw counts, or log-normalised ones")
    if len(data) and data.max() > LARGEST_LOG:
        raise ValueError(
            f"{where}: a value of {data.max():g}: too large for a logarithm; if these are counts, leave logged out"
        )
