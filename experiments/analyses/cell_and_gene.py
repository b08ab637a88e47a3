"""Judge the predictor of effects from a cell's and a gene's vector: genes left out, cells left out; and use it.

`methods` are rows for the table of `analyses.predicted_perturbation`: the predictor with the vectors of cells and genes
that it is given, without gene vectors, with gene vectors shuffled among genes, and the effect of the nearest gene.
`cells_out` is the easier question: effects of the same perturbations in cells that were not looked at.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyses.perturbation_data import Data
from experiments.analyses.perturbation_methods import Prediction
from experiments.analyses.predicted_perturbation import Method
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.perturbation import baselines, cell_gene, scores, screen, splits

Cells = Callable[[int], np.ndarray]
"""Vectors of all cells of the screen's file, by a seed. [n, D]"""
SHARES = (0.6, 0.2, 0.2)
"""Of each condition's cells: to train on, to choose the epoch by, to score."""


def table_of(data: Data, vectors: features.GeneVectors, shuffled: int | None = None) -> dict[str, np.ndarray]:
    """Return {target: its standardised vector}, those of other genes of `data.names` where they are `shuffled` (seed).

    Only genes that the vectors know are exchanged.
    """
    values, at = vectors.standardised(), data.at(targets_of(data))
    if shuffled is not None:
        some = np.flatnonzero(vectors.found)
        values[some] = values[np.random.default_rng(shuffled).permutation(some)]
    return {gene: values[place] for gene, place in at.items()}


def targets_of(data: Data) -> list[str]:
    """Return all targets of a screen's conditions, sorted."""
    return sorted({gene for of in data.screen.targets.values() for gene in of})


def methods(data: Data, vectors: features.GeneVectors, cells: Mapping[str, Cells]) -> list[Method]:
    """Return the predictor's rows of the table.

    Args:
      vectors: of `data.names`. cells: {what the vectors of cells are: they}; the first is also run without gene vectors
        and with shuffled ones.
    """
    first = next(iter(cells))
    asked = [(name, "") for name in cells] + [(first, "no gene vectors"), (first, "shuffled gene vectors")]
    listed = [Method("nearest gene", functools.partial(_nearest, data, vectors))]
    for name, change in asked:
        label = f"cell and gene, {name}" + (f", {change}" if change else "")
        predict = functools.partial(_predict, data, vectors, functools.cache(cells[name]), change)
        listed.append(Method(label, predict, varies=True))
    return listed


def _tables(data: Data, vectors: features.GeneVectors, change: str, seed: int) -> dict[str, np.ndarray]:
    table = table_of(data, vectors, shuffled=seed if change.startswith("shuffled") else None)
    return {gene: 0 * value for gene, value in table.items()} if change.startswith("no ") else table


def _predict(
    data: Data, vectors: features.GeneVectors, cells: Cells, change: str, split: splits.Split, seed: int
) -> Prediction:
    """Train on the split's training conditions, choose the epoch on its validation ones, predict its test ones."""
    problem = cell_gene.Problem.of(data.screen, cells(seed), _tables(data, vectors, change, seed))
    fitted = cell_gene.fit(problem, split.train, split.validation, seed)
    asked = baselines.condition_vectors([data.screen.targets[name] for name in split.test], problem.vectors)
    return {"effects": cell_gene.predict(fitted, problem, asked, split.test, seed)}


def _nearest(data: Data, vectors: features.GeneVectors, split: splits.Split, _: int) -> Prediction:
    table, train = table_of(data, vectors), sorted({*split.train, *split.validation})
    trained, asked = (
        baselines.condition_vectors([data.screen.targets[name] for name in names], table)
        for names in (train, split.test)
    )
    return {"effects": cell_gene.nearest(data.screen.effects(train), trained, asked)}


def cells_out(
    data: Data, vectors: features.GeneVectors, cells: Mapping[str, Cells], seeds: int
) -> list[dict[str, Any]]:
    """Return scores of each condition in cells that were left out, by method and seed."""
    names, rows = data.screen.conditions, []
    of = functools.partial(baselines.condition_vectors, [data.screen.targets[name] for name in names])
    for seed in range(seeds):
        train, valid, test = parts(data.screen, seed)
        effects = train.effects(names)
        made = {"no change": 0 * effects, "training mean": baselines.training_mean(effects, len(names))}
        made["its other cells"] = effects
        for name, vectors_of in cells.items():
            table = table_of(data, vectors)
            problem, judge = (cell_gene.Problem.of(side, vectors_of(seed), table) for side in (train, valid))
            fitted = cell_gene.fit(problem, names, names, seed, judge=judge)
            scored = problem._replace(screen=test)
            made[f"cell and gene, {name}"] = cell_gene.predict(fitted, scored, of(table), names, seed)
        truth, t, places = test.effects(names), test.statistics(names), test.places(names)
        for method, predicted in made.items():
            table = scores.of_conditions(predicted, truth, t, effects.mean(0), places)
            rows += [
                {
                    "method": method,
                    "seed": seed,
                    "condition": name,
                    "stratum": "cells out",
                    "cells": len(test.rows[name]),
                }
                | {score: float(values[i]) for score, values in table.items()}
                for i, name in enumerate(names)
            ]
    return rows


def parts(whole: screen.Screen, seed: int) -> tuple[screen.Screen, ...]:
    """Return a screen's cells in three parts, each with cells of every condition and of control, by SHARES."""
    rng, ends = np.random.default_rng(seed), np.cumsum(SHARES)[:-1]
    sides = {id(rows): rows for of in (whole.rows, whole.control) for rows in of.values()}  # conditions share control
    cut = {key: np.split(rng.permutation(rows), (ends * len(rows)).astype(int)) for key, rows in sides.items()}

    def part(i: int) -> screen.Screen:
        rows, control = (
            {name: np.sort(cut[id(rows)][i]) for name, rows in of.items()} for of in (whole.rows, whole.control)
        )
        return dataclasses.replace(whole, rows=rows, control=control)

    return tuple(part(i) for i in range(len(SHARES)))


def predicted(
    data: Data,
    names: Sequence[str],
    values: np.ndarray,
    measured: features.GeneVectors,
    cells: np.ndarray,
    shuffles: int,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the effects that genes would have, learnt from the whole screen, and those that chance has.

    A tenth of the conditions chooses the epoch. The second are of predictors trained with gene vectors shuffled among
    the perturbed genes and the asked ones.

    Args:
      names, values: the genes that are asked for, their vectors. [K], [K, D]
      measured: vectors of `data.names`. cells: of the screen. [n, Dc]

    Returns:
      [K, G], [shuffles * K, G]
    """
    targets, at = targets_of(data), data.at(targets_of(data))
    some = [gene for gene in targets if measured.found[at[gene]]]
    conditions = [name for name in data.screen.conditions if set(data.screen.targets[name]) <= set(some)]
    if len(conditions) < 3:
        raise ValueError(f"vectors_file: knows the targets of {len(conditions)} conditions; three or more are needed")
    pool = features.standardised(np.concatenate([[measured.values[at[gene]] for gene in some], values]))
    kept = np.random.default_rng(seed).permutation(conditions)[: max(1, len(conditions) // 10)]
    train = [name for name in conditions if name not in set(kept)]

    def of(order: np.ndarray, number: int) -> np.ndarray:
        table = dict(zip(some, pool[order[: len(some)]], strict=True))
        problem = cell_gene.Problem.of(data.screen, cells, table)
        fitted = cell_gene.fit(problem, train, kept.tolist(), number)
        asked = [conditions[0]] * len(names)
        return cell_gene.predict(fitted, problem, pool[order[len(some) :]], asked, number)

    rng, every = np.random.default_rng(seed + 1), np.arange(len(pool))
    chance = [of(rng.permutation(every), seed + 1 + i) for i in range(shuffles)]
    return of(every, seed), np.concatenate(chance)
