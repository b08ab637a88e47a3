"""The interactions of the doubles that a table of predicted perturbations has predicted, method by method and seed."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyses import perturbation_data
from experiments.analyses.perturbation_data import Data, Plan
from experiments.pages import output
from scfm_jax.saving import sealed
from scfm_jax.tasks.perturbation import interaction, scores, splits

EXPRESSED = 0.1
"""Share of control cells in which a gene is expressed whose residuals are looked at."""
LEAST = 3


@dataclasses.dataclass
class Predictions:
    """The predictions of one method with one seed, of all its splits: conditions, effects [C, G], true effects [C, G].

    A condition that two splits tested is there twice.
    """

    method: str
    seed: int
    parts: list[tuple[int, list[str], np.ndarray, np.ndarray]]


@dataclasses.dataclass
class Row:
    """What one method with one seed says of the doubles, by one preset.

    Attributes:
      doubles: names. measured, predicted: magnitudes of interactions, NaN where singles do not tell them. [K]
      score: of `interaction.magnitude_scores` and `interaction.residual_scores`, and "left_out".
    """

    preset: str
    method: str
    seed: int
    doubles: list[str]
    measured: np.ndarray
    predicted: np.ndarray
    score: dict[str, float]


def read(out: pathlib.Path, say: Callable[[str], None] = print) -> tuple[Plan, Data, list[Predictions]]:
    """Return what OUT was made with, its screen, and its predictions; ValueError or OSError where there are none."""
    file = out / "plan.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{out}: no table of predicted perturbations; make one first (experiments.predict_perturbation)"
        )
    fields = {field.name for field in dataclasses.fields(Plan)}
    described = {name: value for name, value in output.read(file).items() if name in fields}
    plan = Plan(**{name: tuple(value) if isinstance(value, list) else value for name, value in described.items()})
    data = perturbation_data.read(plan, say)
    perturbation_data.prepare(plan, out)
    together: dict[tuple[str, int], Predictions] = {}
    for path in sorted((out / "predictions").glob("*.npz")):
        try:
            kept = sealed.read_arrays(path)
        except sealed.Damaged as damage:
            output.warn(f"{damage}: passed over")
            continue
        if "method" in kept:
            method, seed = str(kept["method"]), int(kept["seed"])
            names = [str(name) for name in kept["conditions"]]
            truth = kept["truth"] if "truth" in kept else data.screen.effects(names)
            of = together.setdefault((method, seed), Predictions(method, seed, []))
            of.parts.append((int(kept["split"]), names, kept["effects"], truth))
    return plan, data, list(together.values())


def evaluate(plan: Plan, data: Data, predictions: Sequence[Predictions], presets: Sequence[str]) -> list[Row]:
    """Return a row for each preset, method and seed, baselines after the methods."""
    rows = []
    for preset in presets:
        rows += [_row(data, preset, of.method, of.seed, list(_fitted(data, preset, of))) for of in predictions]
        for seed in sorted({of.seed for of in predictions}):
            parts = perturbation_data.rounds(plan, data, seed)
            for name, baseline in BASELINES.items():
                said = [entry for split in parts for entry in baseline(data, preset, split)]
                rows += [_row(data, preset, name, seed, said)] if said else []
    if not rows:
        raise ValueError(
            f"{plan.input}: no prediction of doubles whose singles have enough cells; interactions need a screen with "
            "doubles, and a split that tests some"
        )
    return rows


Entry = tuple[str, float, float, np.ndarray | None, np.ndarray]
"""A double: its name, measured and predicted magnitude, predicted residual [g] (None without) and measured one [g]."""


def _fitted(data: Data, preset: str, of: Predictions) -> Iterator[Entry]:
    """Yield what a method says of each tested double."""
    for _, names, effects, truth in of.parts:
        doubles, pairs = _doubles(data, names)
        if doubles:
            yield from _compared(data, preset, names, doubles, pairs, effects, truth)


def _doubles(data: Data, names: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Return the places of doubles whose singles are among some conditions too, and those of their singles. [K, 2]"""
    place = {name: i for i, name in enumerate(names)}
    singles = [data.screen.singles(name) for name in names]
    kept = [i for i, of in enumerate(singles) if len(of) == 2 and set(of) <= set(place)]
    return kept, np.array([[place[single] for single in singles[i]] for i in kept], int).reshape(-1, 2)


def _compared(
    data: Data,
    preset: str,
    names: Sequence[str],
    doubles: Sequence[int],
    pairs: np.ndarray,
    effects: np.ndarray,
    truth: np.ndarray,
) -> Iterator[Entry]:
    """Yield the doubles among conditions by predicted and measured effects of all of them. [C, G] each"""
    chosen = [names[i] for i in doubles]
    genes = scores.largest(data.screen.statistics(chosen), max(p["genes"] for p in interaction.PRESETS.values()))
    own_singles = interaction.PRESETS[preset]["singles"] == "own"
    measured = interaction.fit_all(truth, truth[doubles], pairs, genes, preset)
    predicted = interaction.fit_all(effects if own_singles else truth, effects[doubles], pairs, genes, preset)
    seen = expressed(data)
    said, true = (interaction.residuals(x, x[doubles], pairs)[:, seen] for x in (effects, truth))
    for i, name in enumerate(chosen):
        yield name, measured[i].magnitude, predicted[i].magnitude, said[i], true[i]


def expressed(data: Data) -> np.ndarray:
    """Return which genes control cells express. bool [G]"""
    rows = np.unique(np.concatenate(list(data.screen.control.values())))
    return data.screen.expression[rows].getnnz(0) >= EXPRESSED * len(rows)


def _row(data: Data, preset: str, method: str, seed: int, entries: Sequence[Entry]) -> Row:
    """Return the row of some doubles; of one that several splits tested the means."""
    names = sorted({entry[0] for entry in entries})
    of = {name: [entry for entry in entries if entry[0] == name] for name in names}
    if len(names) < LEAST:
        raise ValueError(
            f"{method}, seed {seed}: {len(names)} doubles whose singles have enough cells are predicted; at least "
            f"{LEAST} are compared: give a screen with more doubles, or ask for fewer cells a condition"
        )
    measured, predicted = (np.array([_mean([e[i] for e in of[name]]) for name in names]) for i in (1, 2))
    both = np.isfinite(measured) & np.isfinite(predicted)
    score = interaction.magnitude_scores(predicted, measured) if both.sum() >= LEAST else {"doubles": int(both.sum())}
    score["left_out"] = len(names) - int(both.sum())
    if all(entry[3] is not None for entry in entries):
        said, true = (np.stack([np.mean([e[i] for e in of[name]], axis=0) for name in names]) for i in (3, 4))
        score |= {f"residual_{name}": value for name, value in interaction.residual_scores(said, true).items()}
    return Row(preset, method, seed, names, measured, predicted, score)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of those that are numbers, NaN without any."""
    values = [value for value in values if np.isfinite(value)]
    return float(np.mean(values)) if values else float("nan")


# ------------------------------------------------------------------------------------------------------------ baselines


def _additive(data: Data, preset: str, split: splits.Split) -> Iterator[Entry]:
    """Yield test doubles as the sums of their measured singles."""
    yield from _of_measured(data, preset, split, lambda truth, doubles, pairs: interaction.additive(truth, pairs))


def _mean_double(data: Data, preset: str, split: splits.Split) -> Iterator[Entry]:
    """Yield test doubles as the mean of the training doubles; their singles are the measured ones."""
    training = [name for name in (*split.train, *split.validation) if len(data.screen.targets[name]) > 1]
    if training:
        mean = data.screen.effects(training)
        yield from _of_measured(
            data, preset, split, lambda truth, doubles, pairs: interaction.mean_double(mean, len(doubles))
        )


def _of_measured(data: Data, preset: str, split: splits.Split, says: Callable[..., np.ndarray]) -> Iterator[Entry]:
    names = _with_singles(data, split.test)
    doubles, pairs = _doubles(data, names)
    if doubles:
        truth = data.screen.effects(names)
        effects = truth.copy()
        effects[doubles] = says(truth, doubles, pairs)
        yield from _compared(data, preset, names, doubles, pairs, effects, truth)


def _ridge(data: Data, preset: str, split: splits.Split) -> Iterator[Entry]:
    """Yield test doubles with magnitudes by ridge on the lengths of their measured singles."""
    tested, trained = (
        [name for name in part if len(data.screen.singles(name)) == 2]
        for part in (split.test, (*split.train, *split.validation))
    )
    if len(trained) < LEAST or not tested:
        return
    names = _with_singles(data, [*tested, *trained])
    place = {name: i for i, name in enumerate(names)}
    truth = data.screen.effects(names)

    def fits(chosen: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        at = np.array([[place[single] for single in data.screen.singles(name)] for name in chosen])
        genes = scores.largest(data.screen.statistics(chosen), scores.RECALLED)
        doubles = truth[[place[name] for name in chosen]]
        return at, np.array([fit.magnitude for fit in interaction.fit_all(truth, doubles, at, genes, preset)])

    (at, measured), (learnt_at, magnitudes) = fits(tested), fits(trained)
    said = interaction.ridge_magnitudes(truth, at, learnt_at, magnitudes)
    for name, true, predicted in zip(tested, measured, said, strict=True):
        yield name, true, float(predicted), None, np.zeros(0)


def _with_singles(data: Data, names: Sequence[str]) -> list[str]:
    """Return conditions and the singles of the doubles among them, each once."""
    return list(dict.fromkeys([*names, *(single for name in names for single in data.screen.singles(name))]))


BASELINES: Mapping[str, Any] = {
    "additive, of measured singles": _additive,
    "mean of training doubles": _mean_double,
    "ridge on lengths of singles": _ridge,
}
