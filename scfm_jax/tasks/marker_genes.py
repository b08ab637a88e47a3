"""Marker genes of a cell type from gene representations (scLong paper, Zheng68K), beside rankings without a model.

The paper: 50 cells of a type, the representation of each gene averaged over them, cosine similarities between genes,
the 50 genes of the highest summed similarity, a clustered heat map of those. That is `summed`. It says nothing of other
types, so two rankings of our own, from the same averages, ask what is particular to the type:
  shift      how far a gene's representation lies from its average over the other types (Euclidean)
  contrast   its summed similarity, less that in the other types on average
Beside them: mean expression, and log fold change against the other types.

The paper names no candidates; genes that hardly any cell of the type expresses look alike to a model and would win by
number alone, so all rankings are of the genes that a share of the type's cells express (`candidates`). The released
code ranks by attention maps of the large encoder instead and adds the known markers to the map by hand: not done here.

Enrichment (`enrichment`): are the known markers of the type among the top genes more often than genes as highly
expressed? The null exchanges markers with other candidates of the same bin of mean expression in the type (25 genes),
so being highly expressed earns nothing but for what little it differs within a bin; its distribution is computed
exactly, not by drawing. Arrays in, floats out.
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
    "shift": "distance from the other types",
    "contrast": "summed similarity less that in the other types",
}
BASELINES = {"expression": "mean expression", "fold change": "log fold change against the other types"}


def similarity(values: np.ndarray) -> np.ndarray:
    """Return the cosine similarities of genes; those of a gene without length are 0. [K, D] -> [K, K]"""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1)
    return np.clip(unit @ unit.T, -1, 1)


def rankings(values: np.ndarray, which: int) -> dict[str, np.ndarray]:
    """Return the RANKINGS of the candidates of type `which`, higher is better. [S, K, D] -> {name: [K]}

    Args:
      values: mean representations of the candidates in each type, two types or more; NaN where a type has none, which
        counts as zero in a similarity and does not count in an average.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} type: what is particular to a type takes another to compare it with")
    others = np.arange(len(values)) != which
    seen = ~np.isnan(values).any(2)
    values = np.where(seen[..., None], values, 0)
    totals = np.stack([_summed(of_type) for of_type in values])
    elsewhere = values[others].sum(0) / np.maximum(seen[others].sum(0), 1)[:, None]
    return {
        "summed": totals[which],
        "shift": np.linalg.norm(values[which] - elsewhere, axis=1),
        "contrast": totals[which] - totals[others].mean(0),
    }


def _summed(values: np.ndarray) -> np.ndarray:
    """Return each gene's similarity to all others, summed, without the matrix of them. [K, D] -> [K]"""
    length = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    unit = values / np.where(length > 0, length, 1)
    return unit @ unit.sum(0) - (length[:, 0] > 0)


def expression(counts: sparse.csr_matrix, codes: np.ndarray, n_types: int, target_sum: float = 1e4) -> np.ndarray:
    """Return the mean of log1p of counts per `target_sum`, by type. counts [n, V], codes [n] (-1: none) -> [S, V]"""
    total = np.maximum(np.asarray(counts.sum(1)).ravel(), 1)
    normal = sparse.csr_matrix(sparse.diags(target_sum / total) @ counts).log1p()
    return _means(normal, codes, n_types)


def expressed(counts: sparse.csr_matrix, codes: np.ndarray, n_types: int) -> np.ndarray:
    """Return the share of each type's cells that have any count of a gene. [n, V] -> [S, V]"""
    return _means(sparse.csr_matrix(counts > 0).astype(float), codes, n_types)


def _means(x: sparse.csr_matrix, codes: np.ndarray, n_types: int) -> np.ndarray:
    """Return the means of the rows of each type. [n, V] -> [S, V]"""
    cells = np.maximum(np.bincount(codes[codes >= 0], minlength=n_types), 1)
    member = sparse.csr_matrix(np.arange(n_types)[:, None] == codes[None])
    return np.asarray((member.astype(float) @ x).todense()) / cells[:, None]


def baselines(mean: np.ndarray, which: int) -> dict[str, np.ndarray]:
    """Return the BASELINES of the candidates of type `which`, from `expression`. [S, K] -> {name: [K]}"""
    others = np.arange(len(mean)) != which
    return {"expression": mean[which], "fold change": mean[which] - mean[others].mean(0)}


def candidates(share: np.ndarray, least: float, at_least: int = TOP) -> np.ndarray:
    """Return the genes that at least a share `least` of the type's cells express. [K] -> [M]

    Raises:
      ValueError: there are no more than `at_least` of them, so that a ranking would choose nothing.
    """
    found = np.flatnonzero(share >= least)
    if len(found) <= at_least:
        raise ValueError(
            f"{len(found)} genes are expressed in {least:.0%} of the cells of a type: too few to choose {at_least}; "
            "lower the share or the number"
        )
    return found


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
    above, pairs, variance = 0.0, 0.0, 0.0
    for value in np.unique(level[markers]):
        inside = level == value
        size, known, taken = int(inside.sum()), int(markers[inside].sum()), int(chosen[inside].sum())
        chance = np.convolve(chance, stats.hypergeom.pmf(np.arange(known + 1), size, taken, known))
        expected += taken * known / size
        other = size - known
        if other:
            ranks = stats.rankdata(score[inside])
            above += ranks[markers[inside]].sum() - known * (known + 1) / 2
            pairs += known * other
            variance += known * other / size * ((ranks - ranks.mean()) ** 2).sum() / (size - 1)
    hits = int((chosen & markers).sum())
    beyond = (above - pairs / 2) / np.sqrt(variance) if variance else np.nan
    return {
        "hits": hits,
        "expected": float(expected),
        "p": float(min(chance[hits:].sum(), 1.0)),
        "matched_auroc": float(above / pairs) if pairs else float("nan"),
        "auroc_p": float(stats.norm.sf(beyond)),
    }


def order(similarities: np.ndarray) -> np.ndarray:
    """Return the linkage by which a clustered heat map draws genes: average, of one less the similarity. [M, M]"""
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
