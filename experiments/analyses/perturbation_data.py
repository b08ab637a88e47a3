"""The screen that `experiments.predict_perturbation` predicts: which cells, conditions and splits its flags ask for."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.batches import obs as columns
from data_pipeline.files import h5ad, perturbations, whole
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from experiments.pages import output
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.perturbation import screen, splits


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


@dataclasses.dataclass
class Data:
    """The screen of a plan, and what its genes are called.

    Attributes:
      names, second: of the measured genes, then of the targets that were not measured. [G + M]
      controls: rows of the file that are control cells. few: cells of the conditions that are left out.
    """

    screen: screen.Screen
    names: list[str]
    second: list[str]
    controls: np.ndarray
    few: dict[str, int]

    def at(self, targets: Sequence[str]) -> dict[str, int]:
        """Return the place of each target in `names`."""
        beyond = {name: i for i, name in enumerate(self.names[len(self.screen.genes) :], len(self.screen.genes))}
        return {name: place if (place := self.screen.place[name]) >= 0 else beyond[name] for name in targets}


def read(plan: Plan, say: Callable[[str], None] = print) -> Data:
    """Read the cells of a plan; ValueError or OSError in one line where they are not what they should be."""
    table = vocab.read_table(plan.gene_table) if plan.gene_table else None
    with h5ad.read_counts(plan.input, **h5ad.place(plan.reading), check=not plan.logged) as counts:
        where = pathlib.Path(str(counts.path)).name
        conditions = perturbations.read(counts.obs, plan.column, plan.control, plan.separator, where)
        names, second = vocab.file_names(counts)
        genes = vocab.union([(names, second)], table)
        table = vocab.learn([(names, second)], table)
        mapping = vocab.onto(counts, genes, table=table)
        matrix = sparse.csr_matrix(counts.take(np.arange(counts.n_cells)))
        if plan.logged:
            perturbations.check_logged(matrix, where)
        matrix, obs = mapping.apply(matrix), counts.obs
    kept = _kept(plan, obs, matrix, where)
    of_cell = np.where(kept, conditions.names, None)
    groups = _column(obs, plan.groups, "groups", where) if plan.groups else None
    if not plan.logged:
        total = np.asarray(matrix.sum(1)).ravel()
        depth = plan.depth or float(np.median(total[kept & (total > 0)]))
        matrix = log_normalised(matrix, target_sum=depth)
        say(f"log1p of counts per {depth:g}")
    targets = conditions.all_targets()
    place = dict(
        zip(targets, vocab.map_genes(targets, genes, table=table, min_mapped=None).index.tolist(), strict=True)
    )
    options = {"control": perturbations.CONTROL, "groups": groups, "least": plan.least}
    made, few = screen.make(genes, matrix, of_cell, _asked(plan, conditions, where), place, **options)
    symbols = dict(zip(names, second, strict=True)) | dict(zip(second, names, strict=True))
    left = sorted({gene for of in made.targets.values() for gene in of if place[gene] < 0})
    say(
        f"{where}: {len(made.rows)} conditions, {len(few)} of fewer than {plan.least} cells left out; {len(genes):,} "
        f"genes; targets that were not measured: {', '.join(left) or 'none'}"
    )
    others = [symbols.get(name) or "" for name in genes] + [""] * len(left)
    return Data(made, [*genes, *left], others, np.flatnonzero(of_cell == perturbations.CONTROL), few)


def _column(obs: Any, name: str, flag: str, where: str) -> np.ndarray:
    if name not in obs:
        listed = ", ".join(map(str, obs.columns)) or "none"
        raise ValueError(f"{where}: {flag}={name}: no such obs column; there are {listed}")
    return text(obs[name])


def _kept(plan: Plan, obs: Any, matrix: sparse.csr_matrix, where: str) -> np.ndarray:
    """Return which cells the plan's filter keeps. bool [n]"""
    if not plan.filter:
        return np.ones(matrix.shape[0], bool)
    wanted = columns.Filter(plan.filter)
    for name in sorted(wanted.columns - {"n_genes"}):
        _column(obs, name, "filter", where)
    return wanted(types.SimpleNamespace(obs=obs, name=where, indptr=matrix.indptr))


def _asked(plan: Plan, conditions: perturbations.Conditions, where: str) -> dict[str, tuple[str, ...]]:
    """Return the conditions that the plan wants: those of the named targets alone, or all."""
    if unknown := [name for name in plan.targets if name not in conditions.all_targets()]:
        some = ", ".join(conditions.all_targets()[:8])
        raise ValueError(f"{where}: targets={unknown[0]}: no cell has this perturbation; there are {some}")
    wanted = set(plan.targets)
    return {name: of for name, of in conditions.targets.items() if not wanted or wanted >= set(of)}


def prepare(plan: Plan, out: pathlib.Path) -> None:
    """Write the plan to OUT; ValueError where OUT holds the table of another one, or its input is another file now."""
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    files = {name: described[name] for name in ("input", "go", "context", "vectors_file") if described[name]}
    described["checksums"] = {
        name: whole.checksum(pathlib.Path(path)) if pathlib.Path(path).is_file() else "" for name, path in files.items()
    }
    file = out / "plan.json"
    if file.exists():
        old = output.read(file)
        if differ := [name for name in described if old.get(name) != described[name]]:
            raise ValueError(f"--output={out}: holds a table with another {', '.join(differ)}; choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    output.write_file(file, described)


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
