"""Which perturbations are learnt from and which are predicted: GEARS' simulation split, one target out, folds, groups.

A condition is a tuple of targets: one of a single, two of a double. Its stratum says how many of them the training
conditions perturb: "seen 0/1" and "seen 0/2" are the hard ones. No condition of a held-out target is ever trained on.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Conditions = Mapping[str, tuple[str, ...]]
"""{name of a condition: its targets}, control left out."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The conditions of one round.

    Attributes:
      name: such as "simulation, seed 1" or "STAT1 out".
      train, validation, test: names of conditions, sorted; validation chooses when a training stops, never test.
      strata: the stratum of each test condition.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    strata: dict[str, str]


def simulation(
    conditions: Conditions, seed: int = 1, *, genes: float = 0.75, doubles: float = 0.75, validation: float = 0.1
) -> Split:
    """Return GEARS' split of a seed (Roohani et al. 2023), which has four strata.

    `genes` of all targets, sorted, are drawn for training: their singles train, other singles are "seen 0/1". Doubles
    with one of them are "seen 1/2", with none "seen 0/2"; of those with both `doubles` train, the rest is "seen 2/2".
    Draws are numpy's legacy ones, as GEARS' are. `validation` of the training conditions are kept for validation.
    """
    _check(conditions, 2)
    targets = sorted({gene for of in conditions.values() for gene in of})
    names = sorted(conditions)
    drawn = np.random.RandomState(seed).choice(targets, int(genes * len(targets)), replace=False)
    seen = {name: sum(gene in set(drawn) for gene in conditions[name]) for name in names}
    singles = [name for name in names if len(conditions[name]) == 1]
    both = [name for name in names if len(conditions[name]) > 1 and seen[name] == len(conditions[name])]
    learnt = np.random.RandomState(seed).choice(both, int(doubles * len(both)), replace=False) if both else []
    train = {name for name in singles if seen[name]} | set(map(str, learnt))
    return _split(f"simulation, seed {seed}", conditions, train, set(map(str, drawn)), seed, validation)


def one_target_out(conditions: Conditions, validation: float = 0.1, seed: int = 0) -> list[Split]:
    """Return a split for each target: all conditions that perturb it are predicted, all others learnt from."""
    _check(conditions, 3)
    return [_without({gene}, f"{gene} out", conditions, seed, validation) for gene in _targets(conditions)]


def folds_of_targets(conditions: Conditions, k: int = 5, seed: int = 0, validation: float = 0.1) -> list[Split]:
    """Return `k` splits, each without the conditions of one part of the targets.

    A double whose targets are in two parts is predicted in both.
    """
    targets = _targets(conditions)
    if not 2 <= k <= len(targets):
        raise ValueError(f"folds={k}: between 2 and {len(targets)}, the number of targets")
    parts = np.array_split(np.random.default_rng(seed).permutation(targets), k)
    return [
        _without(set(map(str, part)), f"fold {i + 1} of {k}", conditions, seed, validation)
        for i, part in enumerate(parts)
    ]


def one_group_out(conditions: Conditions, groups: Mapping[str, str], validation: float = 0.1) -> list[Split]:
    """Return a split for each group, such as a cell type, whose conditions are predicted from those of all others.

    Args:
      groups: of each condition. Control cells of the group that is left out may be looked at.
    """
    names = sorted(set(groups.values()))
    if len(names) < 2:
        raise ValueError(f"{len(names)} groups with enough cells: two or more are needed to leave one out")
    splits = []
    for group in names:
        test = tuple(sorted(name for name in conditions if groups[name] == group))
        rest = sorted(set(conditions) - set(test))
        train, kept = _validated(rest, validation, 0)
        splits.append(Split(f"{group} out", train, kept, test, dict.fromkeys(test, "unseen group")))
    return splits


def none_out(conditions: Conditions, validation: float = 0.1, seed: int = 0) -> Split:
    """Return the split that learns from all conditions and predicts none, for a head to be used on other cells."""
    train, kept = _validated(sorted(conditions), validation, seed)
    return Split("none out", train, kept, (), {})


def _without(out: set[str], name: str, conditions: Conditions, seed: int, validation: float) -> Split:
    """Return the split that trains on what perturbs none of the targets `out`."""
    train = {condition for condition, of in conditions.items() if not out & set(of)}
    if not train:
        raise ValueError(f"{name}: every condition has a target that is held out; nothing is left to learn from")
    learnt = {gene for condition in train for gene in conditions[condition]}
    split = _split(name, conditions, train, learnt, seed, validation)
    test = tuple(condition for condition in split.test if out & set(conditions[condition]))
    return dataclasses.replace(split, test=test, strata={condition: split.strata[condition] for condition in test})


def _split(name: str, conditions: Conditions, train: set[str], learnt: set[str], seed: int, validation: float) -> Split:
    """Return the split of training conditions, the rest in strata by how many of their targets are `learnt`."""
    test = tuple(sorted(set(conditions) - train))
    strata = {c: f"seen {sum(gene in learnt for gene in conditions[c])}/{len(conditions[c])}" for c in test}
    kept_to_train, kept = _validated(sorted(train), validation, seed)
    return Split(name, kept_to_train, kept, test, strata)


def _validated(train: Sequence[str], share: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (training, validation) conditions; at least one for validation where three or more train."""
    number = min(max(round(share * len(train)), 1), len(train) - 2) if share and len(train) > 2 else 0
    drawn = set(np.random.default_rng(seed).permutation(np.asarray(train, object))[:number])
    return tuple(name for name in train if name not in drawn), tuple(sorted(drawn))


def _targets(conditions: Conditions) -> list[str]:
    """Return all targets, sorted."""
    return sorted({gene for of in conditions.values() for gene in of})


def _check(conditions: Conditions, least: int) -> None:
    """Raise ValueError where there are too few targets to hold any out."""
    if len(targets := _targets(conditions)) < least:
        raise ValueError(
            f"{len(targets)} perturbed targets with enough cells ({', '.join(targets) or 'none'}): {least} or more are "
            "needed; ask for fewer cells a condition, or give a file with more perturbations"
        )
