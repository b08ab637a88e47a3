"""A perturbation screen as its tasks see it: log-normalised cells, what was perturbed in each, effects on means.

The effect of a condition is the mean of its cells minus that of control cells, those of the same group (a cell type)
where there are groups. All that a method may learn from is here; a split says which conditions it may look at.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from scipy import sparse

from scfm_jax.tasks.perturbation import scores

LEAST = 50
"""Cells that a condition needs, where nobody says."""


@dataclasses.dataclass
class Screen:
    """Cells of a screen.

    Attributes:
      genes: measured ones. [G]
      expression: log-normalised. [n, G]
      rows: the cells of each condition. control: the control cells that each is compared with.
      targets: of each condition, in words. place: the column of each target, -1 where it was not measured.
      group: of each condition, such as a cell type; "" without groups.
    """

    genes: list[str]
    expression: sparse.csr_matrix
    rows: dict[str, np.ndarray]
    control: dict[str, np.ndarray]
    targets: dict[str, tuple[str, ...]]
    place: dict[str, int]
    group: dict[str, str]

    @cached_property
    def conditions(self) -> list[str]:
        """All conditions but control, sorted."""
        return sorted(self.rows)

    @cached_property
    def _of_conditions(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Effect and t of each condition."""
        return {name: self._against(name, self.rows[name]) for name in self.conditions}

    def _against(self, name: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cells, control = self.expression[rows], self.expression[self.control[name]]
        effect = np.asarray(cells.mean(0)).ravel() - np.asarray(control.mean(0)).ravel()
        return effect, scores.t_statistics(cells, control)

    def effects(self, names: Sequence[str]) -> np.ndarray:
        """Return the effects of conditions. [C, G]"""
        return np.stack([self._of_conditions[name][0] for name in names])

    def statistics(self, names: Sequence[str]) -> np.ndarray:
        """Return Welch's t of conditions against control. [C, G]"""
        return np.stack([self._of_conditions[name][1] for name in names])

    def singles(self, name: str) -> tuple[str, ...]:
        """Return the conditions that perturb one target of a double each, in the same group; none unless all exist."""
        parts = [self._by_targets.get(((gene,), self.group[name])) for gene in self.targets[name]]
        return tuple(parts) if len(parts) > 1 and None not in parts else ()

    @cached_property
    def _by_targets(self) -> dict[tuple[tuple[str, ...], str], str]:
        return {(of, self.group[name]): name for name, of in self.targets.items()}

    def halves(self, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of a condition in two random halves."""
        rows = np.random.default_rng(seed).permutation(self.rows[name])
        return np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])

    def half_effects(self, names: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the effects that two halves of each condition's cells have, against all of its control. [C, G] each"""
        both = [[self._against(name, rows)[0] for rows in self.halves(name, seed)] for name in names]
        return tuple(np.stack(side) for side in zip(*both, strict=True))

    def places(self, names: Sequence[str]) -> list[list[int]]:
        """Return the columns of the measured targets of conditions."""
        return [[self.place[gene] for gene in self.targets[name] if self.place.get(gene, -1) >= 0] for name in names]

    def dense(self, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
        """Return the expression of at most `most` of some cells, drawn at random. [m, G]"""
        chosen = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
        return self.expression[chosen].toarray()


def make(
    genes: Sequence[str],
    expression: sparse.csr_matrix,
    names: np.ndarray,
    targets: Mapping[str, tuple[str, ...]],
    place: Mapping[str, int],
    *,
    control: str,
    groups: np.ndarray | None = None,
    least: int = LEAST,
) -> tuple[Screen, dict[str, int]]:
    """Return the screen of cells with a condition [n], and how many cells have those conditions that are left out.

    Args:
      names: the condition of each cell, None for none. control: that of control cells.
      groups: of each cell, such as its type; then each condition in each group is one of its own, "stim | B".
      least: cells that a condition, and the control it is compared with, must have.

    Raises:
      ValueError: no condition has enough cells, or no control has.
    """
    of_cell = np.full(len(names), "", object) if groups is None else groups
    rows, controls, of, group, few = {}, {}, {}, {}, {}
    for g in sorted({value for value in of_cell if value is not None}):
        here = of_cell == g
        base = np.flatnonzero(here & (names == control))
        for name in sorted(targets):
            cells = np.flatnonzero(here & (names == name))
            label = f"{name} | {g}" if g else name
            if min(len(cells), len(base)) < least:
                few |= {label: len(cells)} if len(cells) else {}
                continue
            rows[label], controls[label], of[label], group[label] = cells, base, targets[name], g
    if not rows:
        most = max(few.values(), default=0)
        raise ValueError(
            f"no condition has {least} cells with as many control cells beside them (the largest has {most}, control "
            f"{int((names == control).sum())} in all); ask for fewer cells a condition"
        )
    return Screen(list(genes), expression, rows, controls, of, dict(place), group), few
