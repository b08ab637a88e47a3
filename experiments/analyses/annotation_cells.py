"""The cells of a table of annotation: which of the files' cells are labelled, which are annotated, under which names.

What a flag names and no file has is refused before anything is trained: a label, a type, a value to hold out.
"""

import dataclasses
import difflib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from experiments import cli
from experiments.pages import output
from scfm_jax.tasks.cells.annotation_baselines import NEIGHBOURS
from scfm_jax.tasks.cells.labels import unlabelled

LABEL = "cell_type"
LEFT_OUT = "-"
SPLIT = "split"
UNSAID = {"reading": {}, "test_layer": None, "test_raw": None}
UNSAID |= {"cell_layer": None, "batch_cells": 0, "scaler": "training"}
"""What a plan.json means where it has no such entry."""
PREDICT = "cells without labels are named by experiments.predict, or by Run.annotate in Python"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all cells of a table share.

    Attributes:
      train: files of labelled cells. test: the file to annotate, or None where `split` says which of those are.
      split: obs column and the values of the cells to annotate: (study, donor or batch; names).
      label, test_label: obs columns of the types. names: what types are called here, LEFT_OUT for none.
      test_cells: so many of the cells to annotate, of each type alike; 0 for all. steps: updates of a training.
      min_mapped: least share of genes that the models must know.
      reading: options of `h5ad.read_counts` that say where in all files the counts are, and "gene_table".
      test_layer, test_raw: where they are in the test file, if elsewhere.
      cell_layer: of which layers a cell's embedding is, see `Run.with_cell_layer`; as in training, if left out.
      batch_cells, scaler: see `config.tune` of fine-tuning.
    """

    train: tuple[str, ...]
    test: str | None
    split: tuple[str, tuple[str, ...]] | None
    label: str
    test_label: str
    names: dict[str, str]
    test_cells: int
    steps: int
    min_mapped: float
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    test_layer: str | None = None
    test_raw: bool | None = None
    cell_layer: str | None = None
    batch_cells: int = 0
    scaler: str = "training"


def prepare(plan: Plan, out: pathlib.Path, say: Callable[[str], None] = print) -> list[str]:
    """Write the cells of the plan and their store, unless they are there, and return the types. OUT/plan.json is last.

    Raises ValueError where OUT holds another plan, or labels do not fit.
    """
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    plan_file = out / "plan.json"
    if plan_file.exists():
        if (old := UNSAID | output.read(plan_file)) != described:
            differ = ", ".join(key for key in described if old.get(key) != described[key])
            raise ValueError(f"--output={out}: holds a table with another {differ}; choose another folder")
        return open_classes(out)
    places = _places(plan)
    _check_names(plan.names, places)
    data = out / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    labelled, tests = [], []
    for number, (path, label, where) in enumerate(places[: len(plan.train)]):
        cells = read(path, label, plan.names, plan.split and plan.split[0], place=where, say=say)
        if plan.split:
            values = text(cells.obs.pop(SPLIT))
            labelled += [*zip(cells.obs[LABEL], values, strict=True)]
            chosen = np.isin(values, list(plan.split[1]))
            tests.append(cells[chosen].copy())
            cells = cells[~chosen].copy()
        else:
            labelled += [(name, None) for name in cells.obs[LABEL]]
        if cells.n_obs:
            cells.write_h5ad(data / f"train_{number}.h5ad")
    if plan.split:
        _check_held_out(*plan.split, labelled)
    else:
        tests.append(read(*places[-1][:2], plan.names, place=places[-1][2], say=say, empty=PREDICT))
    types = [name for name, value in labelled if not plan.split or value not in plan.split[1]]
    _check_types(plan, types, [name for cells in tests for name in cells.obs[LABEL]])
    tests = [cells for cells in some(tests, plan.test_cells) if cells.n_obs]
    for number, cells in enumerate(tests):
        cells.write_h5ad(data / ("test.h5ad" if len(tests) == 1 else f"test_{number}.h5ad"))
    files = sorted(str(path) for path in data.glob("train_*.h5ad"))
    tables = tables_of(plan)
    failed = ingest(file_sources(files, []), data / "store", workers=0, say=say, settings=Settings(), tables=tables)
    if failed:
        raise ValueError("; ".join(failed.values()))
    output.write_file(plan_file, described)
    return open_classes(out)


def open_classes(out: pathlib.Path) -> list[str]:
    """Return the types of the labelled cells, sorted."""
    store = open_store(out / "data/store")
    return sorted({str(value) for name in store.studies for value in store.study(name).obs[LABEL].unique()})


def tables_of(plan: Plan) -> tuple[str, ...]:
    """Return the gene tables of a plan."""
    return tuple(str(path) for path in plan.reading.get("gene_table", ()))


def read(
    path: str,
    label: str,
    names: Mapping[str, str],
    split: str | None = None,
    *,
    place: Mapping[str, Any] = MappingProxyType({}),
    say: Callable[[str], None] = lambda _: None,
    empty: str = "",
) -> anndata.AnnData:
    """Return the cells of a file that have a type, with raw counts and the type as obs["cell_type"].

    The genes are as in the file, repeated names too, with the other names beside them that it has.

    Args:
      split: an obs column that becomes obs["split"]. place: where the counts are, as options of `h5ad.read_counts`.
      empty: what to say where no cell has a type.
    """
    with h5ad.read_counts(path, **place) as counts:
        for note in counts.notes:
            say(f"{counts.path}: {note}")
        for flag, name in (("label", label), ("split", split)):
            if name is not None and name not in counts.obs:
                columns = ", ".join(map(str, counts.obs.columns)) or "none"
                hint = f"; {empty}" if empty else ""
                raise ValueError(f"{counts.path}: --{flag}={name}: no such obs column; there are {columns}{hint}")
        types = np.array([names.get(name, name) for name in text(counts.obs[label])], object)
        kept = np.flatnonzero([name != LEFT_OUT and not unlabelled(name) for name in types])
        if not len(kept) and empty:
            raise ValueError(f"{counts.path}: --label={label}: no cell has a type there; {empty}")
        if len(kept) < len(types):
            say(f"{counts.path}: {len(types) - len(kept):,} of {len(types):,} cells have no type and are left out")
        obs = counts.obs.iloc[kept]
        keep = {name: pd.Categorical(text(obs[name])) for name in ("batch", "donor", "study") if name in obs}
        keep |= {SPLIT: text(obs[split])} if split else {}
        obs = pd.DataFrame({**keep, LABEL: types[kept]}, index=obs.index)
        genes, second = vocab.file_names(counts)
        var = pd.DataFrame({name: second for name in ("ensembl_id", "symbol")}, pd.Index(genes, dtype=str))
        return anndata.AnnData(sparse.csr_matrix(counts.take(kept), dtype=np.float32), obs, var)


def some(parts: Sequence[anndata.AnnData], n: int) -> list[anndata.AnnData]:
    """Return about n cells of the parts, of each type as many or all there are, always the same ones; 0 for all."""
    types = np.concatenate([cells.obs[LABEL].to_numpy() for cells in parts])
    if not n or n >= len(types):
        return list(parts)
    rng, share = np.random.default_rng(0), -(-n // len(np.unique(types)))
    rows = [rng.permutation(np.flatnonzero(types == name))[:share] for name in np.unique(types)]
    chosen = np.isin(np.arange(len(types)), np.concatenate(rows))
    masks = np.split(chosen, np.cumsum([cells.n_obs for cells in parts])[:-1])
    return [cells[mask].copy() for cells, mask in zip(parts, masks, strict=True)]


def _places(plan: Plan) -> list[tuple[str, str, dict[str, Any]]]:
    """Return (file, obs column of the types, where the counts are) of the files to learn from, and of the test file."""
    where = h5ad.place(plan.reading)
    places = [(path, plan.label, where) for path in plan.train]
    if plan.test:
        elsewhere = {"layer": plan.test_layer or None, "raw": plan.test_raw}
        same = plan.test_layer is None and plan.test_raw is None
        places.append((plan.test, plan.test_label, where if same else where | elsewhere))
    return places


def _check_names(names: Mapping[str, str], places: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Raise ValueError for a type to rename that no file has."""
    labels: dict[str, None] = {}
    for path, label, where in places if names else ():
        with h5ad.read_counts(path, **where) as counts:
            if label in counts.obs:
                labels |= dict.fromkeys(name for name in text(counts.obs[label]) if name is not None)
    for name in names:
        if name not in labels:
            raise ValueError(f"--names={name}=...: no file has this type; {_choices('names', [name], labels)}")


def _check_held_out(column: str, values: Sequence[str], labelled: Iterable[tuple[str, str | None]]) -> None:
    """Raise ValueError for a value to hold out that no labelled cell has, or where no cell is left to learn from."""
    choices = dict.fromkeys(value for _, value in labelled if value is not None)
    for value in values:
        if value not in choices:
            hint = _choices("held_out", values, choices)
            raise ValueError(f"--held_out={value}: no labelled cell has it as obs[{column!r}]; {hint}")
    if all(value in values for _, value in labelled):
        raise ValueError(f"--held_out={','.join(values)}: these are all labelled cells, and none is left to learn from")


def _check_types(plan: Plan, known_types: Sequence[str], asked: Sequence[str]) -> None:
    """Raise ValueError where there is too little to learn, or a type is asked for that no labelled cell has."""
    number = pd.Series(known_types, dtype=object).value_counts()
    counts = ", ".join(f"{name} ({n})" for name, n in number.head(8).items()) or "none"
    if len(number) < 2:
        raise ValueError(
            f"--label={plan.label}: the cells to learn from must be of two types or more; there are {counts}"
        )
    if number.sum() < NEIGHBOURS:
        few = f"{number.sum()} cells to learn from, and at least {NEIGHBOURS} are needed"
        raise ValueError(f"--label={plan.label}: {few}; there are {counts}")
    if unknown := sorted(set(asked) - set(number.index)):
        renamed = f"--names='{unknown[0]}=...' calls it as they do, --names='{unknown[0]}=-' leaves it out"
        raise ValueError(f"types to annotate that no labelled cell has: {', '.join(unknown)}; {renamed}")


def _choices(flag: str, values: Sequence[str], choices: Iterable[str]) -> str:
    """Return which values there are, or the one that is near, or how to write one that has a comma."""
    choices = list(choices)
    if hint := cli.quoting(flag, values, choices):
        return hint
    near = difflib.get_close_matches(values[0], choices, 3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(choices[:20]) or 'none'}{', ...' if len(choices) > 20 else ''}"
