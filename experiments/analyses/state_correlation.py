"""Compare a state (case against control cells of one file) with the perturbations of a screen (another file).

OUT/plan.json              which files, cells and nulls: another plan needs another folder
OUT/names.json             what each run is called here
OUT/embeddings/<run>_<file>.npz   cells as a run embeds them
OUT/spaces/<space>.json    scores of every gene in expression, in a run's embeddings, of predicted genes: what is there
                           and whole is not made again
OUT/predictor/             where gene vectors are given: how well the predictor does on genes that it has not seen

What is computed is in `scfm_jax.tasks.perturbation.states` and `cell_gene`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyses import annotation, cell_and_gene, perturbation_table, predicted_perturbation, resumed
from experiments.analyses.state_data import Question, StatePlan
from experiments.pages import output
from scfm_jax import api
from scfm_jax.api import vector_file
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.perturbation import states
from scfm_jax.training import pace

SHUFFLES = 5
"""Predictors with shuffled gene vectors, whose predictions are the null of predicted genes."""
SHOWN = 300
"""Cells of a violin, at most."""


def fill(
    question: Question, out: pathlib.Path, runs: Sequence[str], say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Return {space: its part}: expression, every run and its twin, predicted genes; what OUT has is not made again."""
    for folder in ("spaces", "embeddings"):
        (out / folder).mkdir(exist_ok=True)
    spaces: list[tuple[str, Callable[[], dict[str, Any]]]] = [("expression", lambda: _in_expression(question))]
    entrants = [(annotation.name_of(out, source), api.load(source)) for source in runs]
    for name, run in entrants:
        spaces.append((name, lambda run=run, name=name: _in_embedding(question, out, run, name)))
        spaces.append(
            (f"{name}, random twin", lambda run=run, name=name: _in_embedding(question, out, run, name, True))
        )
    if question.plan.vectors_file:
        spaces.append(("expression, predicted", lambda: _predicted(question, out, entrants, say)))
    parts = {}
    for name, make in pace.counted(spaces, "compared space", say):
        file = out / f"spaces/{resumed.slug(name)}.json"
        parts[name] = output.finished(file)
        if parts[name] is None:
            output.write_file(file, make())
            parts[name] = output.read(file)
    return parts


def _in_expression(question: Question) -> dict[str, Any]:
    """Return the part of expression in the genes that both files measured."""
    screened = question.data.screen.expression[:, question.genes[0]]
    state = question.state.screen.expression[:, question.genes[1]]
    return _compared(question, state[question.rows], screened, question.places(_genes(question)))


def _genes(question: Question) -> list[str]:
    """Return the gene of each condition of the screen, in the order of the conditions."""
    screen = question.data.screen
    return [screen.targets[name][0] for name in screen.conditions]


def _in_embedding(question: Question, out: pathlib.Path, run: api.Run, name: str, twin: bool = False) -> dict[str, Any]:
    """Return the part of a run's embeddings, or its twin's, in which a gene's own expression cannot be left out."""
    plan = question.plan
    (state, of_state), (screened, of_screen) = (
        _embedded(plan, out, run, name, path, plan.seed if twin else None) for path in (plan.state, plan.input)
    )
    studies = run.classes.get("study", ()) if not twin else ()
    seen = [file.name for file in map(pathlib.Path, (plan.state, plan.input)) if file.stem in studies]
    part = _compared(question, state[question.rows], screened, np.full(len(question.data.screen.rows), -1))
    return part | {"trained_on": seen, "reads": f"{of_state}, {of_screen}"}


def _embedded(
    plan: StatePlan, out: pathlib.Path, run: api.Run, name: str, path: str, twin: int | None = None
) -> tuple[np.ndarray, str]:
    """Return the embeddings of a file's cells by a run, or by its twin of a seed, from disk where they are. [n, D]

    And how many of the file's genes the run knows, in words.
    """
    label = name if twin is None else f"{name}, random twin {twin}"

    def make() -> dict[str, Any]:
        if plan.logged:
            raise ValueError("logged=True: runs embed raw counts: leave runs out, or give files of counts")
        encoder = run if twin is None else run.twin(twin)
        cells = encoder.embed(path, gene_table=plan.gene_table, say=lambda _: None, **plan.reading)
        index = encoder.mapping.index
        reads = f"{int((index >= 0).sum()):,} of {len(index):,} genes of {pathlib.Path(path).name}"
        return {"cells": cells, "reads": reads}

    file = out / f"embeddings/{resumed.slug(f'{label} {path}')}.npz"
    kept = resumed.arrays(file, make, lambda kept: kept["cells"].ndim == 2 and not kept["reads"].ndim)
    return kept["cells"], str(kept["reads"])


def _compared(question: Question, state: Any, screened: Any, places: np.ndarray) -> dict[str, Any]:
    """Return the scores of every screened gene in a space, and single cells' cosines of the strongest.

    Args:
      state: cells of the state, in the order of the design. [n, D]  screened: all cells of the screen's file. [m, D]
      places: column of each condition's own gene, -1 for none. [C]
    """
    plan, screen, design = question.plan, question.data.screen, question.design
    shift, labels = _shifts(question, state)
    strata = np.zeros(screened.shape[0], int) if question.strata is None else question.strata.astype(str)
    control = screen.control[screen.conditions[0]]
    chance = states.halves(len(control), plan.permutations, plan.seed, strata[control]) @ screened[control]
    designs = {}
    for name in screen.conditions:
        rows = np.append(screen.rows[name], control)
        designs[name] = rows, states.design(np.isin(rows, screen.rows[name]), None, strata[rows])[0]
    shifts = np.stack([np.asarray(made.weights() @ screened[rows]).ravel() for rows, made in designs.values()])
    table = states.correlate(shift, labels, shifts, chance, places)
    table["halves"] = np.array(
        [states.agreement(made, screened[rows], seed=plan.seed) for rows, made in designs.values()]
    )
    rows = [
        {"gene": gene, "cells": len(screen.rows[name]), **{key: float(value[i]) for key, value in table.items()}}
        for i, (name, gene) in enumerate(zip(screen.conditions, _genes(question), strict=True))
    ]
    return {
        "rows": rows,
        "halves": states.agreement(design, state, seed=plan.seed),
        "width": int(state.shape[1]),
        "violins": _violins(question, shift, screened, table["cosine"], places, strata),
    }


def _shifts(question: Question, state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return d_state, and the same with labels exchanged, of the state's cells [n, D]. [D], [P, D]"""
    design, plan = question.design, question.plan
    drawn = np.stack([design.weights(case) for case in design.permutations(plan.permutations, plan.seed)])
    return np.asarray(design.weights() @ state).ravel(), drawn @ state


def _violins(question: Question, shift, screened, cosine, places, strata) -> dict[str, list[float]]:
    """Return the cosine with the state of each single cell, less the control mean, of the genes of largest |cosine|.

    "" are control cells.
    """
    screen, rng = question.data.screen, np.random.default_rng(question.plan.seed)
    control = screen.control[screen.conditions[0]]
    mean = {s: np.asarray(screened[control[strata[control] == s]].mean(0)).ravel() for s in np.unique(strata[control])}
    top = np.argsort(-np.abs(cosine), kind="stable")[: states.TOP]
    groups = {_genes(question)[i]: (screen.rows[screen.conditions[i]], places[i]) for i in top} | {"": (control, -1)}
    violins = {}
    for gene, (rows, place) in groups.items():
        some = [row for row in np.sort(rng.permutation(rows)[:SHOWN]) if strata[row] in mean]
        x = screened[some]
        x = (x.toarray() if hasattr(x, "toarray") else x) - np.stack([mean[strata[row]] for row in some])
        violins[gene] = states.cosines(x, shift, place).tolist()
    return violins


def _predicted(
    question: Question,
    out: pathlib.Path,
    entrants: Sequence[tuple[str, api.Run]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the part of genes that were not screened, after the predictor was judged on genes left out."""
    plan, data = question.plan, question.data
    measured, meta = vector_file.read(plan.vectors_file, data.names, data.second, plan.gene_table)
    everything, _ = vector_file.read(plan.vectors_file)
    cells: dict[str, cell_and_gene.Cells] = {}
    for name, run in entrants:
        cells[name] = lambda _, run=run, name=name: _embedded(plan, out, run, name, plan.input)[0]
        cells[f"{name}, random twin"] = lambda seed, run=run, name=name: _embedded(
            plan, out, run, name, plan.input, seed
        )[0]
    if not entrants:
        x, control = data.screen.expression, data.screen.control[data.screen.conditions[0]]
        made = x @ features.components(x[control], seed=plan.seed, width=50, scaled=False)
        cells["PCA-50"] = lambda _: made
    judge(question, out, measured, cells, say)
    names = list(plan.predict or everything.names)
    asked, _ = vector_file.read(plan.vectors_file, names, None, plan.gene_table)
    at = data.at(cell_and_gene.targets_of(data))
    screened = set(at) | {data.second[i] for i in at.values()}
    kept = [i for i, name in enumerate(names) if asked.found[i] and name not in screened]
    if not kept:
        raise ValueError(f"vectors_file={plan.vectors_file}: has none of the genes to predict ({', '.join(names[:3])})")
    names = [names[i] for i in kept]
    vectors_of = next(iter(cells.values()))(0)
    effects, chance = cell_and_gene.predicted(
        data, names, asked.values[kept], measured, vectors_of, SHUFFLES, plan.seed
    )
    shift, labels = _shifts(question, question.state.screen.expression[:, question.genes[1]][question.rows])
    columns = question.genes[0]
    where = {data.screen.genes[column]: i for i, column in enumerate(columns)}
    where |= {data.second[column]: i for i, column in enumerate(columns)}
    places = np.array([where.get(name, -1) for name in names])
    table = states.correlate(shift, labels, effects[:, columns], chance[:, columns], places)
    rows = [
        {"gene": gene, "cells": 0, **{key: float(value[i]) for key, value in table.items()}}
        for i, gene in enumerate(names)
    ]
    return {"rows": rows, "width": len(columns), "vectors": everything.source, "kind": everything.kind, "meta": meta}


def judge(
    question: Question,
    out: pathlib.Path,
    measured: features.GeneVectors,
    cells: Mapping[str, cell_and_gene.Cells],
    say: Callable[[str], None],
) -> None:
    """Write OUT/predictor: the predictor on perturbed genes left out (folds) and on cells left out, and baselines."""
    plan, data, folder = dataclasses.replace(question.plan, split="folds"), question.data, out / "predictor"
    (folder / "cells_out").mkdir(parents=True, exist_ok=True)
    listed = predicted_perturbation.methods(plan, data, folder, [], ["auto"])
    listed[-1:-1] = cell_and_gene.methods(data, measured, cells)
    rows = predicted_perturbation.fill(plan, data, folder, listed, plan.seeds, say)
    about = f"# Effects predicted from a cell's and a gene's vector: genes left out ({plan.folds} folds)"
    perturbation_table.write(folder, rows, {method.name: method.note for method in listed}, about)
    rows = cell_and_gene.cells_out(data, measured, cells, plan.seeds)
    about = "# Effects predicted from a cell's and a gene's vector: cells left out"
    perturbation_table.write(folder / "cells_out", rows, {}, about)
