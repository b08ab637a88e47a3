"""Marker genes of a cell type from gene representations (scLong paper, Zheng68K), beside rankings without a model.

The paper: 50 cells of a type, the representation of each gene averaged over them, cosine similarities between genes,
the 50 genes of the highest summed similarity, a clustered heat map of those. That is `summed`. It says nothing of other
types, so two rankings of our own, from the same averages, ask what is particular to the type:
  shift      how far a gene's representation lies from its average over cells of the other types (Euclidean)
  contrast   its summed similarity, less that in the cells of the other types
Beside them: mean expression, and log fold change against the cells of the other types.

The paper names no candidates; genes that hardly any cell of the type expresses look alike to a model and would win by
number alone, so all rankings are of the genes that a share of the type's cells express (`candidates`). The released
code ranks by attention maps of the large encoder instead and adds the known markers to the map by hand: not done here.

Enrichment (`enrichment`): are the known markers of the type among the top genes more often than genes as highly
expressed? The null exchanges markers with candidates of the same bin of mean expression in the type (25 genes), so
being highly expressed earns nothing but for what little it differs within a bin; its distribution is computed exactly,
not drawn. Like all such tests it takes genes for independent, but markers of a type rise and fall together: in a group
of random cells that by chance has more of the type, they all come first, with a small p. So p says that the markers are
at the top for these cells, not how sure that is for others; random twin, baselines and seeds say more. Shuffling the
cells instead was tried and tells little: where ranks are all that counts, a slight excess of the type is as good as the
type itself. Arrays in, floats out.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse, stats
from scipy.cluster import hierarchy
from scipy.spatial import distance

TOP = 50
ALIKE = 25
"""Genes that count as equally highly expressed."""
RANKINGS = {
    "summed": "summed cosine similarity (the paper's)",
    "shift": "distance from the other cells",
    "contrast": "summed similarity less that in the other cells",
}
BASELINES = {"expression": "mean expression", "fold change": "log fold change against other cells"}


def similarity(values: np.ndarray) -> np.ndarray:
    """Return the cosine similarities of genes; those of a gene without length are 0. [K, D] -> [K, K]"""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1)
    return np.clip(unit @ unit.T, -1, 1)


def rankings(own: np.ndarray, rest: np.ndarray) -> dict[str, np.ndarray]:
    """Return the RANKINGS of the candidates of a type, higher is better. [K, D], [K, D] -> {name: [K]}

    Args:
      own, rest: mean representations of the candidates in the type and in the other cells; NaN where there is none,
        which counts as zero.
    """
    of_type, of_rest = np.nan_to_num(own), np.nan_to_num(rest)
    totals = _summed(of_type)
    return {
        "summed": totals,
        "shift": np.linalg.norm(of_type - of_rest, axis=1),
        "contrast": totals - _summed(of_rest),
    }


def _summed(values: np.ndarray) -> np.ndarray:
    """Return each gene's similarity to all others, summed, without the matrix of them. [K, D] -> [K]"""
    length = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1)
    return unit @ unit.sum(0) - (length[:, 0] > 0)


def remainder(own: np.ndarray, seen: np.ndarray, whole: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Return the mean over the cells that are not in a group, from that over the group and that over all cells.

    own [..., K, D] over seen [..., K] cells, whole [K, D] over `of` [K] cells -> [..., K, D], NaN where there is none.
    """
    left = (of - seen)[..., None]
    total = np.nan_to_num(whole) * of[:, None] - np.nan_to_num(own) * seen[..., None]
    return np.where(left > 0, total / np.maximum(left, 1), np.nan)


def mean(x: sparse.csr_matrix, member: np.ndarray) -> np.ndarray:
    """Return the mean over the cells of a group. [n, V], bool [n] -> [V]"""
    return np.asarray(member.astype(float) @ x).ravel() / max(member.sum(), 1)


def baselines(own: np.ndarray, rest: np.ndarray) -> dict[str, np.ndarray]:
    """Return the BASELINES from mean log-normalised counts of the type and of other cells. [K], [K] -> {name: [K]}"""
    return {"expression": own, "fold change": own - rest}


def candidates(share: np.ndarray, least: float, at_least: int = TOP) -> np.ndarray:
    """Return the genes that at least a share `least` of the type's cells express. [K] -> [M]

    Raises:
      ValueError: there are no more than `at_least` of them, so that a ranking would choose nothing.
    """
    chosen = np.flatnonzero(share >= least)
    if len(chosen) <= at_least:
        raise ValueError(
            f"{len(chosen)} genes are expressed in {least:.0%} of the cells of a type: too few to choose {at_least}; "
            "lower the share or the number"
        )
    return chosen


def top(score: np.ndarray, n: int = TOP) -> np.ndarray:
    """Return the places of the n highest scores, best first; of equal ones the first. [K] -> [n]"""
    return np.argsort(-score, kind="stable")[:n]


def levels(mean: np.ndarray, size: int = ALIKE) -> np.ndarray:
    """Return bins of about `size` genes of like expression each; equal means share a bin. [K] -> int [K]"""
    bins = max(1, len(mean) // size)
    return np.floor(bins * (stats.rankdata(mean, "min") - 1) / len(mean)).astype(int)


def enrichment(score: np.ndarray, markers: np.ndarray, level: np.ndarray, n: int = TOP) -> dict[str, float]:
    """Return how far the markers come first in a ranking, beyond what their expression explains.

    Args:
      score: of each candidate, higher is better. [K]
      markers: True for the known markers of the type. [K]
      level: the bin within which the null exchanges markers with other genes, see `levels`. [K]
      n: how many genes are chosen.

    Returns:
      hits: markers among the n best; expected: their mean under the null; p: the chance under the null of so many.
      matched_auroc: the chance that a marker ranks above another gene of its bin, over all such pairs; auroc_p: of so
      much or more under the same null, by the normal limit (a stratified Wilcoxon test). NaN with nothing to compare.
    """
    score, markers, level = np.asarray(score, float), np.asarray(markers, bool), np.asarray(level)
    if not score.shape == markers.shape == level.shape:
        raise ValueError(f"scores of {score.shape}, markers of {markers.shape}, bins of {level.shape}: must be alike")
    chosen = np.zeros(len(score), bool)
    chosen[top(score, n)] = True
    chance, expected = np.ones(1), 0.0
    for value in np.unique(level[markers]):
        inside = level == value
        size, marked, taken = int(inside.sum()), int(markers[inside].sum()), int(chosen[inside].sum())
        chance = np.convolve(chance, stats.hypergeom.pmf(np.arange(marked + 1), size, taken, marked))
        expected += taken * marked / size
    hits = int((chosen & markers).sum())
    above, pairs, variance = _wins(score, markers, level)
    beyond = (above - pairs / 2) / np.sqrt(variance) if variance else np.nan
    return {
        "hits": hits,
        "expected": float(expected),
        "p": float(min(chance[hits:].sum(), 1.0)),
        "matched_auroc": float(above / pairs) if pairs else float("nan"),
        "auroc_p": float(stats.norm.sf(beyond)),
    }


def _wins(score: np.ndarray, markers: np.ndarray, level: np.ndarray) -> tuple[float, float, float]:
    """Return how many pairs of a marker and another gene of its bin the marker wins, of how many, and the variance."""
    above = pairs = variance = 0.0
    for value in np.unique(level[markers]):
        inside = level == value
        size, marked = int(inside.sum()), int(markers[inside].sum())
        if marked < size:
            ranks = stats.rankdata(score[inside])
            above += ranks[markers[inside]].sum() - marked * (marked + 1) / 2
            pairs += marked * (size - marked)
            variance += marked * (size - marked) / size * ((ranks - ranks.mean()) ** 2).sum() / (size - 1)
    return above, pairs, variance


LINKAGES = ("similarity", "rows")


def order(similarities: np.ndarray, kind: str = "similarity") -> np.ndarray:
    """Return the average linkage by which a clustered heat map draws genes. [M, M]

    `kind`: genes are apart by one less their "similarity", or, as seaborn's clustermap has it and so the paper's
    figures, by the Euclidean distance of their "rows" of similarities.
    """
    if kind == "rows":
        return hierarchy.linkage(similarities, "average", "euclidean")
    apart = np.clip(1 - similarities, 0, None)
    apart = (apart + apart.T) / 2
    np.fill_diagonal(apart, 0)
    return hierarchy.linkage(distance.squareform(apart, checks=False), "average", optimal_ordering=True)


def draw(labels: Sequence[str | None], cells: int, rng: np.random.Generator, least: int = 5) -> np.ndarray:
    """Return rows, ascending, of at most `cells` random cells of every type that has at least `least`. [n] -> [m]"""
    labels = np.asarray(labels, object)
    rows = []
    for name in sorted({label for label in labels if label is not None}):
        members = np.flatnonzero(labels == name)
        if len(members) >= least:
            rows.append(rng.permutation(members)[: cells or None])
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, int)
