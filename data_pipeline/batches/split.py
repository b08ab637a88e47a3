"""Which cells train, validate and test: three disjoint parts that cover a store, and the record of how they were cut.

A split is {"by": "study" | "cell" | an obs column, "val": ..., "test": ..., "seed": 0}. For "cell" val and test are
fractions; else names, or a fraction of the values (at least one, drawn by the seed). Cells are permuted in their group
at ingest, so a contiguous range of each group is a random sample of it: that is what "cell" takes. Cells whose value is
unknown count as one value per study, "study/?".
"""

from collections.abc import Mapping, Sequence

import numpy as np

from data_pipeline.batches import obs

PARTS = ("train", "val", "test")
KEYS = ("by", "val", "test", "seed")


def assign(store, split: Mapping | None) -> tuple[list[np.ndarray], list[list[str]] | None]:
    """Return (the part of each cell: an index into PARTS, one uint8 array per study; the values of each part or None).

    Without a split every cell trains. Raises ValueError for an unknown key, column or name and for a bad fraction.
    """
    studies = obs.studies(store)
    if not split:
        return [np.zeros(s.n_cells, np.uint8) for s in studies], None
    by, held_out, seed = _checked(split)
    if by == "cell":
        return [_by_cell(s, held_out, seed) for s in studies], None
    obs.require(store, [by], "split")
    values = [_values(s, by) for s in studies]
    names = sorted({text[c] for codes, text in values for c in np.unique(codes)})
    part_of = _part_of(names, held_out, seed, by)
    parts = [np.array([part_of.get(v, 0) for v in text], np.uint8)[codes] for codes, text in values]
    return parts, [[v for v in names if part_of[v] == p] for p in range(3)]


def select(store, split: Mapping | None, filter: str | None) -> tuple[list[list[np.ndarray]], dict]:
    """Return (for each part, which cells of each study are in it and pass the filter, bool; the report of the split).

    The report is JSON-able: how the parts were cut, the cells of each study in each part, the values of the column.
    Raises ValueError where the filter keeps no cell.
    """
    parts, values = assign(store, split)
    keep = None
    if filter:
        keep = obs.Filter(filter)
        obs.require(store, sorted(keep.columns), f"filter {filter!r}")
    masks: list[list[np.ndarray]] = [[], [], []]
    for study, part in zip(obs.studies(store), parts, strict=True):
        kept = keep(study) if keep else np.ones(study.n_cells, bool)
        for p in range(3):
            masks[p].append((part == p) & kept)
    report = {"split": _plain(split) if split else None, "filter": filter, "parts": {}}
    for p, name in enumerate(PARTS):
        cells = {study: int(mask.sum()) for study, mask in zip(store.studies, masks[p], strict=True) if mask.any()}
        report["parts"][name] = {"cells": sum(cells.values()), "studies": cells}
        if values is not None:
            report["parts"][name]["values"] = values[p]
    if filter and not any(part["cells"] for part in report["parts"].values()):
        raise ValueError(
            f"filter {filter!r} keeps none of the {sum(len(p) for p in parts)} cells; loosen it or check its values"
        )
    return masks, report


def _plain(split: Mapping) -> dict:
    """Return the split as JSON keeps it."""
    return {k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else v for k, v in dict(split).items()}


def _checked(split: Mapping) -> tuple[str, dict[int, float | list[str]], int]:
    """Return (by, {part index: fraction or names}, seed) of a well-formed split."""
    if unknown := set(split) - set(KEYS):
        raise ValueError(f"split: unknown key {sorted(unknown)[0]!r}; the keys are {', '.join(KEYS)}")
    if "by" not in split:
        raise ValueError("split: 'by' is missing; give study, cell or an obs column such as donor")
    held_out = {}
    for p in (1, 2):
        want = split.get(PARTS[p]) or 0.0
        if isinstance(want, str):
            want = [want]
        if isinstance(want, Sequence):
            if split["by"] == "cell":
                raise ValueError(f"split: {PARTS[p]}={want!r}; by cell it is a fraction between 0 and 1")
            want = [str(v) for v in want]
        elif not isinstance(want, float | int) or not 0 <= want < 1:
            raise ValueError(f"split: {PARTS[p]}={want!r} is not a fraction between 0 and 1")
        held_out[p] = want
    if sum(f for f in held_out.values() if isinstance(f, float | int)) >= 1:
        raise ValueError(f"split: val={split['val']!r} and test={split['test']!r} leave nothing to train on")
    return split["by"], held_out, int(split.get("seed", 0))


def _by_cell(study, held_out: dict[int, float], seed: int) -> np.ndarray:
    """Return the part of each cell: three contiguous ranges of every group, rounded without bias. [n]"""
    sizes = np.diff(study.group_starts)
    luck = np.random.default_rng((seed, study.index)).random(len(sizes))
    borders = [(sizes * (1 - sum(held_out[p] for p in range(q, 3))) + luck).astype(int) for q in (1, 2)]
    place = np.arange(study.n_cells) - np.repeat(study.group_starts[:-1], sizes)
    return sum((place >= np.repeat(np.minimum(b, sizes), sizes)).astype(np.uint8) for b in borders)


def _values(study, name: str) -> tuple[np.ndarray, list[str]]:
    """Return (index of each cell's value [n], the values), unknown being a value of its own."""
    codes, text = obs.coded(study, name)
    return codes, [*(obs.scoped(study, name, v) for v in text), f"{study.name}/?"]


def _part_of(names: list[str], held_out: dict[int, float | list[str]], seed: int, by: str) -> dict[str, int]:
    """Return the part of each value; a plain name stands for every scoped value "study/name"."""
    part_of = dict.fromkeys(names, 0)
    for p, want in held_out.items():
        if not isinstance(want, list):
            continue
        for value in want:
            hits = [n for n in names if value in (n, n.split("/", 1)[-1] if by in obs.SCOPED else n)]
            if not hits:
                some = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise ValueError(
                    f"split: {PARTS[p]} names the {by} {value!r}, which is not in the store; there are {some}"
                )
            for n in hits:
                if part_of[n] not in (0, p):
                    raise ValueError(f"split: the {by} {n!r} is both in val and in test; name it once")
                part_of[n] = p
    free = list(np.random.default_rng(seed).permutation([n for n in names if part_of[n] == 0]))
    for p, want in held_out.items():
        if not isinstance(want, list) and want:
            for _ in range(min(max(1, round(want * len(names))), len(free))):
                part_of[free.pop()] = p
    return part_of
