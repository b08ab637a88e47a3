"""Which rows of a drug table are learnt from and which are predicted: pairs, drugs, lines, both, tissues, controls.

A row is a measurement: of a drug in a line, of two drugs in a line, of a compound's well against its control. What is
held out is always a set of keys, such as drugs: a row that has one of them is tested on, and no row that has one of
them is trained on or validated by, so that repeated measurements never lie on both sides.

    pairs         groups_out(pair(drug, line))      a pair's replicates together; both are known from other pairs
    drugs out     groups_out(compound)              lines out: groups_out(line); tissues out: groups_out(tissue)
    both          both_out(compound, line)          neither the drug nor the line was seen
    L1000         groups_out(compound), or both_out(compound, control), as wells share their controls
    synergy       groups_out(pair(drug1, drug2)); groups_out(line); groups_out(stack of both drugs) [n, 2], where a row
                  is tested on that has a drug held out; groups_out(triple(...)) at random

Validation rows, which choose an epoch, are taken from the training rows by the same rule: where drugs are held out,
validation is on drugs that are not trained on either.
"""

import dataclasses

import numpy as np

FOLDS, VALIDATION = 5, 0.1


@dataclasses.dataclass(frozen=True)
class Split:
    """The rows of one round, by their numbers, sorted.

    Attributes:
      name: such as "fold 1 of 5".
      train, validation, test: no two share a key of what is held out; rows may be in none (`both_out`).
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def learnt(self) -> np.ndarray:
        """Return what a method without early stopping learns from: training and validation rows."""
        return np.union1d(self.train, self.validation)


def pair(*keys: np.ndarray, ordered: bool = False) -> np.ndarray:
    """Return one key for each combination of keys, such as of two drugs, in whatever order. int [n]

    Args:
      ordered: combinations in another order are others, as those of a drug and a line are.
    """
    if ordered:
        codes = np.stack([_codes(key) for key in keys], 1)
    else:
        codes = np.sort(_codes(np.stack([np.asarray(key) for key in keys], 1)), 1)
    places = np.ravel_multi_index(codes.T, codes.max(0) + 1)
    return np.unique(places, return_inverse=True)[1].ravel()


def groups_out(
    keys: np.ndarray, folds: int = FOLDS, seed: int = 0, validation: float = VALIDATION, of: str = "keys"
) -> list[Split]:
    """Return `folds` splits, each tested on the rows that have a key of one part of the keys.

    A row with two keys in two parts is tested on twice.

    Args:
      keys: of each row, one or several. [n] or [n, K]
      validation: share of the training keys whose rows are for validation.
      of: what the keys are called in errors.

    ValueError where there are too few keys.
    """
    keys = _columns(keys)
    parts = _parts(keys, folds, seed, of)
    splits = []
    for i, part in enumerate(parts):
        test = np.isin(keys, part).any(1)
        kept = _validation(keys, ~test, validation, (seed, i))
        splits.append(_split(f"fold {i + 1} of {folds}", ~test & ~kept, kept, test))
    return splits


def both_out(
    first: np.ndarray,
    second: np.ndarray,
    folds: int = FOLDS,
    seed: int = 0,
    validation: float = VALIDATION,
    of: str = "keys",
) -> list[Split]:
    """Return splits tested on rows of which neither key was seen; rows with one that was held out are left out.

    The i-th split holds out the i-th part of both. Every validation row has a key of each kind that is not trained on;
    arguments as for `groups_out`.
    """
    first, second = _columns(first), _columns(second)
    parts = zip(_parts(first, folds, seed, of), _parts(second, folds, seed + 1, of), strict=True)
    splits = []
    for i, (one, other) in enumerate(parts):
        out = np.stack([np.isin(first, one).any(1), np.isin(second, other).any(1)])
        test, rest = out.all(0), ~out.any(0)
        share = np.sqrt(validation)  # of each, so that about `validation` of the rows have both
        kept = np.stack([_validation(x, rest, share, (seed, i, j)) for j, x in enumerate((first, second))])
        splits.append(_split(f"fold {i + 1} of {folds}", rest & ~kept.any(0), kept.all(0), test))
    return splits


def independent(keys: np.ndarray, test: np.ndarray, seed: int = 0, validation: float = VALIDATION) -> Split:
    """Return the split that is tested on rows of another study, and learns from all others that have none of its keys.

    Args:
      keys: of each row, [n] or [n, K]. test: which rows are the other study's, bool [n].
    """
    keys = _columns(keys)
    rest = ~test & ~np.isin(keys, keys[test]).any(1)
    kept = _validation(keys, rest, validation, (seed,))
    return _split("independent", rest & ~kept, kept, np.asarray(test, bool))


def _columns(keys: np.ndarray) -> np.ndarray:
    """Return codes of the keys, alike in all columns. [n, K]"""
    return _codes(keys).reshape(len(keys), -1)


def _codes(keys: np.ndarray) -> np.ndarray:
    """Return a whole number for each key, in the shape of the keys."""
    keys = np.asarray(keys)
    keys = keys.astype(str) if keys.dtype == object else keys
    return np.unique(keys, return_inverse=True)[1].reshape(keys.shape)


def _parts(keys: np.ndarray, folds: int, seed: int, of: str) -> list[np.ndarray]:
    """Return the distinct keys in `folds` parts, drawn by the seed."""
    unique = np.unique(keys)
    if not 2 <= folds <= len(unique):
        raise ValueError(f"folds={folds}: between 2 and {len(unique)}, the number of {of}")
    return np.array_split(np.random.default_rng(seed).permutation(unique), folds)


def _validation(keys: np.ndarray, rest: np.ndarray, share: float, seed: tuple[int, ...]) -> np.ndarray:
    """Return which of the rows `rest` have one of a share of their keys. bool [n]"""
    unique = np.unique(keys[rest])
    number = min(max(round(share * len(unique)), 1), len(unique) - 1) if share else 0
    drawn = np.random.default_rng(seed).permutation(unique)[:number]
    return rest & np.isin(keys, drawn).any(1)


def _split(name: str, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Split:
    for what, rows in (("train on", train), ("test on", test)):
        if not rows.any():
            raise ValueError(f"{name}: no rows to {what}; hold less out, or ask for other folds")
    return Split(name, *(np.flatnonzero(rows) for rows in (train, validation, test)))
