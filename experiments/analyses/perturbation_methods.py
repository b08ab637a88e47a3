"""Methods that predict the effects of a screen's conditions from those of others, and what they are scored by.

Each takes a screen, a split and a seed, and returns a `Prediction`: nothing changes, means and sums of what is trained
on, bilinear ridge on vectors of genes, and the ceiling, one half of the true cells by the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from scfm_jax.api.screens import Data
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.perturbation import baselines, scores, splits

CEILING = "half of the cells"
CELLS = 200
"""Cells of a condition, and of control, between which energy distances are taken."""

Prediction = Mapping[str, np.ndarray]
"""effects [A, G] of split.test; where a method has them, energy [A], truth [A, G] if not the screen's, and more."""


def simple(data: Data, which: str) -> Callable[[splits.Split, int], Prediction]:
    """Return the method that predicts the mean, or for doubles the mean ("matching") or sum ("additive") of singles."""

    def predict(split: splits.Split, _: int) -> Prediction:
        train = learnt(split)
        effects = data.screen.effects(train)
        if which == "mean":
            return {"effects": baselines.training_mean(effects, len(split.test))}
        trained, asked = ([data.screen.targets[name] for name in names] for names in (train, split.test))
        combine = baselines.matching_mean if which == "matching" else baselines.additive
        return {"effects": combine(effects, trained, asked)}

    return predict


def no_change(data: Data, split: splits.Split, _: int) -> Prediction:
    """Predict that perturbed cells are as control cells are."""
    s = data.screen
    pairs = [(s.dense(s.control[name], CELLS, 0), s.dense(s.rows[name], CELLS, 1)) for name in split.test]
    energy = np.array([scores.energy_distance(*pair) for pair in pairs])
    return {"effects": baselines.no_change(s.effects(learnt(split)[:1]), len(split.test)), "energy": energy}


def ridge_on_components(data: Data, split: splits.Split, _: int) -> Prediction:
    """Predict by ridge on the genes' loadings in the effects that are trained on, as the method's authors do."""
    at = data.at(sorted({gene for of in data.screen.targets.values() for gene in of}))
    index = np.append(np.arange(len(data.screen.genes)), np.full(len(data.names) - len(data.screen.genes), -1))
    options = {"width": baselines.COMPONENTS, "scaled": False}
    made = features.loadings(data.screen.effects(learnt(split)), index, data.names, **options)
    return ridge_on(data, split, baselines.scaled(made.values, made.found), at)


def ridge_on(data: Data, split: splits.Split, values: np.ndarray, at: Mapping[str, int]) -> Prediction:
    """Predict by ridge on vectors of the measured genes, then of the other targets. [G + M, D]"""
    train = learnt(split)
    of_gene = {gene: values[place] for gene, place in at.items()}
    trained, asked = (
        baselines.condition_vectors([data.screen.targets[name] for name in some], of_gene)
        for some in (train, split.test)
    )
    measured = values[: len(data.screen.genes)]
    return {"effects": baselines.bilinear_ridge(data.screen.effects(train), trained, asked, measured)}


def ceiling(data: Data, split: splits.Split, seed: int) -> Prediction:
    """Predict one half of a condition's cells by the other half."""
    s = data.screen
    effects, truth = s.half_effects(split.test, seed)
    halves = [[s.dense(rows, CELLS, seed) for rows in s.halves(name, seed)] for name in split.test]
    return {"effects": effects, "truth": truth, "energy": np.array([scores.energy_distance(*pair) for pair in halves])}


def scored(
    data: Data, method: str, seed: int, parts: Sequence[splits.Split], made: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """Return a row of scores for each tested condition of a seed."""
    names = [name for split in parts for name in split.test]
    strata = [split.strata[name] for split in parts for name in split.test]
    tested = [
        {key: values[: len(split.test)] for key, values in prediction.items() if key in ("effects", "truth", "energy")}
        for prediction, split in zip(made, parts, strict=True)
    ]
    effects = np.concatenate([prediction["effects"] for prediction in tested])
    truth = np.concatenate(
        [p["truth"] if "truth" in p else data.screen.effects(s.test) for p, s in zip(tested, parts, strict=True)]
    )
    reference = np.concatenate(
        [np.tile(data.screen.effects(learnt(split)).mean(0), (len(split.test), 1)) for split in parts]
    )
    t, places = data.screen.statistics(names), data.screen.places(names)
    table = scores.of_conditions(effects, truth, t, reference, places)
    if all("energy" in prediction for prediction in tested):
        table["energy"] = np.concatenate([prediction["energy"] for prediction in tested])
    return [
        {"method": method, "seed": seed, "condition": name, "stratum": strata[i], "cells": len(data.screen.rows[name])}
        | {score: float(values[i]) for score, values in table.items()}
        for i, name in enumerate(names)
    ]


def learnt(split: splits.Split) -> list[str]:
    """Return what a method without early stopping learns from: the training and the validation conditions."""
    return sorted({*split.train, *split.validation})
