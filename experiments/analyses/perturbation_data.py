"""The screen that `experiments.predict_perturbation` predicts: which cells, conditions and splits its flags ask for."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.analyses import resumed
from scfm_jax.api import screens
from scfm_jax.api.screens import Data
from scfm_jax.tasks.perturbation import screen, splits

__all__ = ["Data", "Plan", "prepare", "read", "rounds"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is predicted from what; the flags of `experiments.predict_perturbation` say what each is."""

    input: str
    column: str = "auto"
    control: tuple[str, ...] = ()
    separator: str = "+"
    groups: str | None = None
    filter: str | None = None
    split: str = "one_target_out"
    folds: int = 5
    least: int = screen.LEAST
    depth: float = 0.0
    logged: bool = False
    targets: tuple[str, ...] = ()
    go: str | None = None
    context: str | None = None
    vectors_file: str | None = None
    gene_table: tuple[str, ...] = ()
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(plan: Plan, say: Callable[[str], None] = print) -> Data:
    """Read the cells of a plan, see `screens.read`."""
    names = ("column", "control", "separator", "groups", "filter", "least", "depth", "logged", "targets", "gene_table")
    return screens.read(plan.input, **{name: getattr(plan, name) for name in names}, **plan.reading, say=say)


def prepare(plan: Any, out: pathlib.Path) -> None:
    """Write a plan to OUT, see `resumed.prepare`."""
    resumed.prepare(plan, out, ("input", "go", "context", "vectors_file"))


def rounds(plan: Plan, data: Data, seed: int) -> list[splits.Split]:
    """Return the splits of a seed, all with the same test conditions where one target or group is out at a time."""
    of = data.screen.targets
    if plan.split == "simulation":
        return [splits.simulation(of, seed + 1)]
    if plan.split == "folds":
        return splits.folds_of_targets(of, plan.folds, seed)
    if plan.split == "one_group_out":
        return splits.one_group_out(of, data.screen.group)
    return splits.one_target_out(of, seed=seed)
