"""Does a perturbation turn a state back? The cosine of two differences of means, and what chance makes of it.

scEMB (Hsieh et al., bioRxiv 2024, Fig. 5): d_state is the mean of case cells minus that of control cells, within donor
and type of cell; d_pert(g) the mean of cells with g perturbed minus that of unperturbed ones, in an embedding or in
expression. The cosine of both is large where g acts along the state, and negative where it turns the state back.
The paper gives it no null; here it has two, and must stand out of both:

  labels    case and control are exchanged at random: among the cells of a donor and type where donors have both, else
            among donors. What is left of the state is chance.
  halves    one random half of the screen's control cells is taken for perturbed: two groups of alike cells differ too,
            along the directions in which all cells vary most (depth, cycle).

p is two-sided, (1 + null cosines as far from 0) / (1 + all); a gene's is the larger of both, q is Benjamini and
Hochberg's over genes. In expression a gene's own is left out of both differences: that it falls by its knock-out is no
feat. Differences are weighted sums of cells, so all draws of a null are one product of matrices. Arrays in, arrays out.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import sparse, stats

from scfm_jax.tasks.genes.gene_clusters import false_discovery

Cells = np.ndarray | sparse.csr_matrix
LEAST = 10
"""Cells that either side of a state needs."""
TOP = 15
"""Genes of the violins, and of the overlap with a list."""


@dataclasses.dataclass(frozen=True)
class Design:
    """Which cells are compared with which.

    Attributes:
      case: whether a unit is a case. bool [U]
      unit: the unit of each cell, itself or its donor: what is exchanged at random. [n]
      block: of each unit, within which it is exchanged. [U]
      stratum: of each cell, within which case and control are compared. [n]
      kept: whether a cell counts. bool [n]
    """

    case: np.ndarray
    unit: np.ndarray
    block: np.ndarray
    stratum: np.ndarray
    kept: np.ndarray

    def weights(self, case: np.ndarray | None = None) -> np.ndarray:
        """Return w with which w @ cells is the mean over strata of (mean of case units - mean of control units). [n]

        A unit is the mean of its cells; a stratum counts as many times as it has case cells, one of one side not at
        all. `case`: another labelling of the units, such as one of `permutations`.
        """
        case = self.case if case is None else case
        n_units, n_strata = len(case), int(self.stratum.max(initial=0)) + 1
        place = np.where(self.kept, self.stratum * n_units + self.unit, n_strata * n_units)
        pairs, inverse, size = np.unique(place, return_inverse=True, return_counts=True)
        size[pairs == n_strata * n_units] = 0
        stratum, side = np.minimum(pairs // n_units, n_strata - 1), case[pairs % n_units].astype(int)
        units = np.bincount(2 * stratum + side, size > 0, 2 * n_strata).reshape(n_strata, 2)
        cells = np.bincount(stratum[side == 1], size[side == 1], n_strata) * (units > 0).all(1)
        share = cells / max(cells.sum(), 1)
        per_unit = np.where(side == 1, 1, -1) * share[stratum] / np.maximum(units[stratum, side], 1)
        return (per_unit / np.maximum(size, 1) * (size > 0))[inverse]

    def permutations(self, number: int, seed: int = 0) -> Iterator[np.ndarray]:
        """Yield labellings of the units, those of a block in random order. bool [U] each"""
        rng, order = np.random.default_rng(seed), np.argsort(self.block, kind="stable")
        for _ in range(number):
            drawn = np.empty_like(self.case)
            drawn[order] = self.case[np.lexsort((rng.random(len(self.block)), self.block))]
            yield drawn


def design(case: np.ndarray, donor: np.ndarray | None = None, kind: np.ndarray | None = None) -> tuple[Design, str]:
    """Return the design of cells and in words what it is; ValueError where nothing can be compared, or one donor only.

    Args:
      case: bool [n]. donor: whose each cell is, None for cells of one sample. kind: such as the cell type. [n]
    """
    case = np.asarray(case, bool)
    one = np.zeros(len(case), int)
    kinds = one if kind is None else np.unique(kind, return_inverse=True)[1]
    if not case.any() or case.all():
        raise ValueError(f"{int(case.sum())} case and {int((~case).sum())} control cells: a state is their difference")
    if donor is None:
        made = Design(case, np.arange(len(case)), kinds, kinds, one == 0)
        return _checked(made), "labels exchanged among the cells" + ("" if kind is None else " of a type")
    names, donors = np.unique(donor, return_inverse=True)
    sides = [np.bincount(donors[some], minlength=len(names)) > 0 for some in (case, ~case)]
    both = sides[0] & sides[1]
    if both.sum() == 1 or (not both.any() and min(sides[0].sum(), sides[1].sum()) < 2):
        raise ValueError(
            f"{int(both.sum())} donors with case and control cells, {int(sides[0].sum())} with case and "
            f"{int(sides[1].sum())} with control cells: two donors are needed, two on either side where none has both; "
            "leave the donor out to exchange cells as if they were of one sample"
        )
    if both.any():
        strata = donors * (kinds.max() + 1) + kinds
        made = Design(case, np.arange(len(case)), strata, strata, both[donors])
        return _checked(made), f"labels exchanged among the cells of each of {both.sum()} donors and type"
    made = Design(sides[0], donors, np.zeros(len(names), int), kinds, one == 0)
    return _checked(made), f"labels exchanged among {len(names)} donors, each a case or a control"


def _checked(made: Design) -> Design:
    """Return a design of which a stratum has both sides; ValueError for others."""
    if not made.weights().any():
        raise ValueError("no donor and type has case and control cells: compare over fewer strata")
    return made


def halves(n: int, number: int, seed: int = 0, stratum: np.ndarray | None = None) -> np.ndarray:
    """Return the weights of differences between two random halves of `n` cells, within strata. [number, n]"""
    stratum = np.zeros(n, int) if stratum is None else np.unique(stratum, return_inverse=True)[1]
    every = np.arange(n)
    half = np.empty(n, bool)  # every second of a stratum
    order = np.argsort(stratum, kind="stable")
    half[order] = every % 2 == 0
    made = Design(half, every, stratum, stratum, np.ones(n, bool))
    return np.stack([made.weights(case) for case in made.permutations(number, seed)])


def cosines(a: np.ndarray, b: np.ndarray, without: int = -1) -> np.ndarray:
    """Return the cosine of each row of `a` with `b`, column `without` left out of both; 0 where one has no length.

    [K, D] or sparse, [D] -> [K]
    """
    b = np.array(b, np.float64)
    square = a.multiply(a) if sparse.issparse(a) else np.square(a, dtype=np.float64)
    square = np.asarray(square.sum(1), np.float64).ravel()
    if without >= 0:
        b[without] = 0
        column = a[:, [without]].toarray() if sparse.issparse(a) else a[:, [without]]
        square = square - np.square(column, dtype=np.float64).ravel()
    length = np.sqrt(np.maximum(square, 0)) * np.linalg.norm(b)
    return np.divide(np.asarray(a @ b).ravel(), length, out=np.zeros(len(length)), where=length > 1e-20)


def correlate(
    state: np.ndarray, labels: np.ndarray, shifts: np.ndarray, chance: np.ndarray, places: np.ndarray
) -> dict[str, np.ndarray]:
    """Return cosine, p against either null, p and q of each gene. [K] each

    Args:
      state: d_state. [D]  labels: the same with labels exchanged. [P, D]
      shifts: d_pert of each gene. [K, D]  chance: differences that no gene has made, `halves` of control. [Q, D]
      places: the column of each gene's own expression, -1 for none. [K]
    """
    rows: dict[str, list[float]] = {name: [] for name in ("cosine", "p_labels", "p_chance")}
    null = {place: cosines(chance, state, place) for place in np.unique(places)}
    for shift, place in zip(shifts, places, strict=True):
        value = cosines(shift[None], state, place)[0]
        rows["cosine"].append(value)
        rows["p_labels"].append(p_value(value, cosines(labels, shift, place)))
        rows["p_chance"].append(p_value(value, null[place]))
    table = {name: np.array(values) for name, values in rows.items()}
    p = np.maximum(table["p_labels"], table["p_chance"])
    return table | {"p": p, "q": false_discovery(p)}


def p_value(observed: float, null: np.ndarray) -> float:
    """Return the share of null cosines as far from 0, the observed one among them."""
    return float((1 + (np.abs(null) >= abs(observed)).sum()) / (1 + len(null)))


def agreement(made: Design, cells: Cells, cuts: int = 20, seed: int = 0) -> float:
    """Return the cosine of the differences of two random halves of a design's cells, the mean over cuts: a ceiling."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(cuts):
        first = rng.random(len(made.unit)) < 0.5
        pair = [dataclasses.replace(made, kept=made.kept & side).weights() @ cells for side in (first, ~first)]
        values.append(cosines(pair[0][None], pair[1])[0])
    return float(np.mean(values))


def enrichment(strength: np.ndarray, listed: np.ndarray, top: int = TOP) -> dict[str, float]:
    """Return whether genes of a list (bool [K]) have a larger `strength` [K] than others.

    auroc: a listed gene's is larger than another's; p: Mann and Whitney's, one-sided. overlap: listed ones among the
    `top`, beside what is expected of so many drawn, and the hypergeometric p of as many.
    """
    k, n = int(listed.sum()), len(listed)
    if not 0 < k < n:
        return {"listed": k, "genes": n, "auroc": np.nan, "p": np.nan}
    u, p = stats.mannwhitneyu(strength[listed], strength[~listed], alternative="greater")
    top = min(top, n)
    overlap = int(listed[np.argsort(-strength, kind="stable")[:top]].sum())
    chance = float(stats.hypergeom.sf(overlap - 1, n, k, top))
    table = {"listed": k, "genes": n, "auroc": float(u / (k * (n - k))), "p": float(p)}
    return table | {"top": top, "overlap": overlap, "expected": top * k / n, "overlap_p": chance}
