"""The measurements that `experiments.drug_response` predicts: responses, molecules, expression of the lines."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from data_pipeline import bulk, molecules
from experiments.analyses import resumed
from scfm_jax.tasks.drugs import splits
from scfm_jax.tasks.drugs.molecules import Library

COMPOUND = "pubchem_cid"
"""Column of the responses that tells one compound under two ids, taken where there is such a column."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is predicted from what; the flags of `experiments.drug_response` say what each is."""

    responses: str
    drugs: str
    expression: str
    drug: str = "drug"
    smiles: str = "smiles"
    line: str = "depMapID"
    value: str = "ln_ic50"
    compound: str = "auto"
    tissues: str | None = None
    tissue: str = "tissue"
    lines: str = "weighted"
    context: str | None = None
    gene_table: tuple[str, ...] = ()
    salts: str = "whole"
    skip_invalid: bool = False
    folds: int = splits.FOLDS
    most: int = 0
    epochs: int = 100
    preset: str = "linear"


@dataclasses.dataclass
class Data:
    """The measurements of a plan; codes count from 0.

    Attributes:
      drug, compound, line: of each measurement; one compound may be several drugs. [n]
      y: what was measured. [n]
      tissue: of each measurement's line, None where nobody says. [n]
      profiles: expression of the lines in the order of their codes. [L, G]
      z: z-scores of it. [L, G]
      library: the drugs' molecules in the order of their codes. bits: Morgan fingerprints. [M, F]
    """

    drug: np.ndarray
    compound: np.ndarray
    line: np.ndarray
    y: np.ndarray
    tissue: np.ndarray | None
    profiles: bulk.Profiles
    z: np.ndarray
    library: Library
    bits: np.ndarray

    @property
    def pair(self) -> np.ndarray:
        """Return which compound was given to which line: replicates have one number. [n]"""
        return splits.pair(self.compound, self.line, ordered=True)


def read(plan: Plan, out: pathlib.Path, say: Callable[[str], None] = print) -> Data:
    """Read the tables of a plan; ValueError or OSError in one line where they are not what they should be."""
    compound = () if plan.compound == "auto" else (plan.compound,)
    responses = table(plan.responses, (plan.drug, plan.line, plan.value, *compound))
    drugs = table(plan.drugs, (plan.drug, plan.smiles)).astype({plan.drug: str}).drop_duplicates(plan.drug)
    profiles = bulk.read(plan.expression)
    options = {"names": drugs[plan.drug], "salts": plan.salts, "skip_invalid": plan.skip_invalid, "say": say}
    read_of = molecules.read(drugs[plan.smiles], cache=out / "features", where=plan.drugs, **options)
    responses = _usable(plan, responses, read_of.names, profiles, say)
    names, lines = sorted(set(responses[plan.drug])), sorted(set(responses[plan.line]))
    if min(len(names), len(lines)) < plan.folds:
        raise ValueError(
            f"{plan.responses}: {len(names)} drugs and {len(lines)} lines can be used: {plan.folds} folds need as many"
        )
    profiles = profiles.take(lines)
    place = {name: i for i, name in enumerate(read_of.names)}
    made = molecules.taken(read_of, [place[name] for name in names])
    codes = {
        name: pd.Categorical(responses[name], order).codes.astype(int)
        for name, order in ((plan.drug, names), (plan.line, lines))
    }
    data = Data(
        *(codes[plan.drug], _compounds(plan, responses, drugs), codes[plan.line]),
        *(responses[plan.value].to_numpy(np.float64), _tissues(plan, responses), profiles),
        *(bulk.zscores(profiles), Library.of(made, molecules.atom_features(made, "deepcdr"))),
        molecules.fingerprints(made),
    )
    twice = len(data.y) - len(np.unique(data.pair))
    say(
        f"{pathlib.Path(plan.responses).name}: {len(data.y):,} measurements of {len(names)} drugs "
        f"({len(np.unique(data.compound))} compounds) in {len(lines)} lines, {twice:,} of them of a pair that is there "
        f"already; {len(profiles.genes):,} genes ({profiles.kind})"
    )
    return data


def table(path: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return a table of text, tabs or commas between; ValueError where it lacks one of the columns."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such table")
    try:
        frame = pd.read_csv(path, sep="," if ".csv" in pathlib.Path(path).name else "\t")
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"{path}: no table ({' '.join(str(error).split())[:120]})") from None
    if missing := [name for name in columns if name not in frame]:
        listed = ", ".join(map(str, frame.columns)) or "none"
        raise ValueError(f"{path}: no column {missing[0]!r}; say which one it is; there are {listed}")
    return frame


def _usable(
    plan: Plan, responses: pd.DataFrame, drugs: Sequence[str], profiles: bulk.Profiles, say: Callable[[str], None]
) -> pd.DataFrame:
    """Return the rows that have a molecule, expression and a number; ValueError for others, or they are left out."""
    value = pd.to_numeric(responses[plan.value], errors="coerce")
    known_lines, known_drugs = set(profiles.lines), set(drugs)
    checks = (
        ("drug", responses[plan.drug].astype(str).isin(known_drugs), plan.drug, f"has no molecule in {plan.drugs}"),
        (
            "line",
            responses[plan.line].astype(str).isin(known_lines),
            plan.line,
            f"has no expression in {plan.expression}",
        ),
        ("value", np.isfinite(value), plan.value, "is no number"),
    )
    usable = np.ones(len(responses), bool)
    for what, good, column, reason in checks:
        bad = np.flatnonzero(~np.asarray(good))
        if not len(bad):
            continue
        first = f"row {bad[0] + 2}: the {what} {responses[column].iloc[bad[0]]} {reason}"
        if not plan.skip_invalid:
            raise ValueError(f"{plan.responses}: {first}; add it, or skip_invalid to leave out {len(bad):,} such rows")
        say(f"{plan.responses}: {len(bad):,} rows left out: {first}")
        usable &= np.asarray(good)
    kept = responses[usable].assign(**{plan.value: value[usable]})
    return kept.astype({plan.drug: str, plan.line: str})


def _compounds(plan: Plan, responses: pd.DataFrame, drugs: pd.DataFrame) -> np.ndarray:
    """Return the code of each row's compound: what a column says, or else whose SMILES are the same. [n]"""
    column = COMPOUND if plan.compound == "auto" else plan.compound
    smiles = dict(zip(drugs[plan.drug], drugs[plan.smiles], strict=True))
    return pd.factorize(responses[column] if column in responses else responses[plan.drug].map(smiles))[0]


def _tissues(plan: Plan, responses: pd.DataFrame) -> np.ndarray | None:
    """Return the code of each row's tissue, one of its own for a line of which nothing is said."""
    if plan.tissues is None:
        return None
    of_line = table(plan.tissues, (plan.line, plan.tissue)).drop_duplicates(plan.line).set_index(plan.line)[plan.tissue]
    tissue = responses[plan.line].map(of_line)
    return pd.factorize(tissue.fillna(responses[plan.line]))[0]


def rounds(plan: Plan, data: Data, split: str) -> list[splits.Split]:
    """Return the folds of a kind of split; ValueError where its keys are not there."""
    options = {"folds": plan.folds, "of": split}
    if split == "both":
        return splits.both_out(data.compound, data.line, **options)
    if split == "tissues" and data.tissue is None:
        raise ValueError("split tissues: give a table that has each line's tissue (tissues=FILE)")
    keys = {"pairs": data.pair, "drugs": data.compound, "lines": data.line, "tissues": data.tissue}
    return splits.groups_out(keys[split], **options)


def prepare(plan: Plan, out: pathlib.Path) -> None:
    """Write a plan to OUT, see `resumed.prepare`."""
    resumed.prepare(plan, out, ("responses", "drugs", "expression", "tissues", "context"))
