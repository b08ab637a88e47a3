"""The two files of `experiments.correlate_states`: a state's case and control cells, a screen's perturbed ones."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data_pipeline.files import h5ad, whole
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from experiments.analyses import perturbation_data
from experiments.analyses.perturbation_data import Data, Plan
from scfm_jax.tasks.perturbation import states

LEAST_COMMON = 10
"""Genes that both files must have measured."""


@dataclasses.dataclass(frozen=True)
class StatePlan(Plan):
    """What is compared; fields are flags of `experiments.correlate_states`, those of `Plan` say what the screen is.

    Attributes:
      stamps: checksums of the files that are read.
    """

    state: str = ""
    state_column: str = ""
    case: str = ""
    state_control: str = ""
    donor: str | None = None
    types: str | None = None
    state_filter: str | None = None
    within: str | None = None
    predict: tuple[str, ...] = ()
    permutations: int = 1000
    seed: int = 0
    seeds: int = 3
    stamps: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Question:
    """Both files, read: the cells that are compared, and the genes that both have measured.

    Attributes:
      data, state: the screen and the state's file, log-normalised.
      rows: the state's cells, rows of its file; design: what is compared in them; how: in words.
      strata: of the screen's cells, or None. [n]
      genes: columns of the common genes in the screen and in the state's file. [G], [G]
      synthetic: which of the files say in obs["synthetic"] that they are made, and what they say.
    """

    plan: StatePlan
    data: Data
    state: Data
    rows: np.ndarray
    design: states.Design
    how: str
    strata: np.ndarray | None
    genes: tuple[np.ndarray, np.ndarray]
    synthetic: str = ""

    def places(self, names: Sequence[str]) -> np.ndarray:
        """Return the column of each gene of the screen's targets among the common genes, -1 for none. [K]"""
        of = {int(column): i for i, column in enumerate(self.genes[0])}
        return np.array([of.get(self.data.screen.place[name], -1) for name in names])


def read(plan: StatePlan, say: Callable[[str], None] = print) -> Question:
    """Read both files of a plan; ValueError or OSError in one line where they are not what they should be."""
    data = perturbation_data.read(plan, say)
    for name in [name for name, of in data.screen.targets.items() if len(of) > 1]:
        for of in (data.screen.rows, data.screen.control, data.screen.targets, data.screen.group):
            of.pop(name, None)
    if not data.screen.rows:
        raise ValueError(f"{plan.input}: perturbations of single genes are compared, and it has none")
    state, where = _state(plan), pathlib.Path(plan.state).name
    case, control = state.screen.rows[plan.case], state.screen.control[plan.case]
    columns = [_column(plan, plan.state, name, flag) for name, flag in ((plan.donor, "donor"), (plan.types, "types"))]
    rows = np.sort(np.append(case, control))
    for values in columns:
        rows = rows if values is None else rows[[value is not None for value in values[rows]]]
    of_rows = [None if values is None else values[rows].astype(str) for values in columns]
    try:
        design, how = states.design(np.isin(rows, case), *of_rows)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    genes = _common(plan, data, state)
    say(f"{where}: {len(rows):,} cells, {how}; {len(genes[0]):,} genes in common")
    made = [
        f"{pathlib.Path(path).name}: {text}" for path in (plan.state, plan.input) if (text := _synthetic(plan, path))
    ]
    strata = _column(plan, plan.input, plan.within, "within")
    return Question(plan, data, state, rows, design, how, strata, genes, "; ".join(made))


def _state(plan: StatePlan) -> Data:
    """Return the state's cells as a screen of one condition, the case."""
    values = _column(plan, plan.state, plan.state_column, "state_column")
    for flag in ("case", "state_control"):
        if (value := getattr(plan, flag)) not in values:
            some = ", ".join(sorted({other for other in values if other is not None})[:8]) or "no values"
            raise ValueError(f"{pathlib.Path(plan.state).name}: {flag}={value}: no cell has it; there are {some}")
    same = {name: getattr(plan, name) for name in ("depth", "logged", "gene_table", "reading")}
    asked = {"control": (plan.state_control,), "targets": (plan.case,), "filter": plan.state_filter}
    asked |= {"separator": "", "least": states.LEAST}
    return perturbation_data.read(Plan(plan.state, plan.state_column, **asked, **same), lambda _: None)


def _synthetic(plan: StatePlan, path: str) -> str:
    """Return what a file's obs["synthetic"] says of cells that are made, "" where it has no such column."""
    with h5ad.read_counts(path, **h5ad.place(plan.reading), check=False) as counts:
        return next((str(value) for value in counts.obs.get("synthetic", ())), "")


def _common(plan: StatePlan, data: Data, state: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the genes that both files measured, of the screen and of the state."""
    names = [(of.names[: len(of.screen.genes)], of.second[: len(of.screen.genes)]) for of in (data, state)]
    table = vocab.learn(names, vocab.read_table(plan.gene_table) if plan.gene_table else None)
    index = vocab.map_genes(names[1][0], names[0][0], ensembl=names[1][1], table=table, min_mapped=None).index
    here = np.flatnonzero(index >= 0)
    here = here[np.sort(np.unique(index[here], return_index=True)[1])]
    if len(here) < LEAST_COMMON:
        raise ValueError(
            f"{pathlib.Path(plan.state).name} and {pathlib.Path(plan.input).name} have {len(here)} genes in common, "
            f"{LEAST_COMMON} are needed; check the species, or give a gene_table that knows the names of both"
        )
    return index[here], here


def _column(plan: StatePlan, path: str, name: str | None, flag: str) -> np.ndarray | None:
    """Return an obs column of a file as text, None where none is asked for. [n]"""
    if not name:
        return None
    with h5ad.read_counts(path, **h5ad.place(plan.reading), check=False) as counts:
        if name not in counts.obs:
            listed = ", ".join(map(str, counts.obs.columns)) or "none"
            raise ValueError(f"{pathlib.Path(path).name}: {flag}={name}: no such obs column; there are {listed}")
        return text(counts.obs[name])


def stamps(*paths: str | None) -> dict[str, str]:
    """Return the checksum of each file, "" of a folder."""
    return {path: whole.checksum(pathlib.Path(path)) if pathlib.Path(path).is_file() else "" for path in paths if path}
