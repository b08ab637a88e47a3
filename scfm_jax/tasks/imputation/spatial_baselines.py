"""Genes that a slide lacks, without a trained model: from single cells of the same tissue and all cells of the slide.

  constant   a number for each gene, the same in all cells of the slide
  mapped     after Tangram (Biancalani et al., Nature Methods 2021)
  aligned    after SpaGE (Abdelaal et al., Nucleic Acids Research 2020)

Both methods learn from the genes that the slide and the reference share, of all cells of the slide, whichever are
scored. Ours differ from the packages: at most GENES shared genes are taken, the most variable of the reference; depth
is that of the shared genes, so that a cell of the slide that is a copy of a reference cell is given that cell's counts;
the density term of Tangram, which weighs where on the slide cells are, is left out, and its mapping begins even.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from scfm_jax.tasks.expression import log_normalised

GENES = 1000
STEPS, RATE = 300, 0.1
"""Updates of a mapping by Adam, and their rate."""
COMPONENTS, SIMILAR, NEIGHBOURS = 50, 0.3, 50
"""Of the alignment: principal components, least cosine of principal vectors, neighbours."""


@dataclasses.dataclass(frozen=True)
class Slide:
    """A slide and single cells of the same tissue, with the genes that only these have.

    Attributes:
      shared: counts of all cells of the slide, of the genes that both have; the first n cells are asked for. [m, S]
      reference: counts of the single cells, of the same genes. [r, S]
      lacking: their counts of the genes that the slide lacks. [r, H]
      n: how many cells are asked for.
    """

    shared: np.ndarray
    reference: np.ndarray
    lacking: np.ndarray
    n: int

    @functools.cached_property
    def depth(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts of the shared genes in each cell of the slide and of the reference, at least 1. [m], [r]"""
        return tuple(np.maximum(x.sum(1, dtype=np.float64), 1) for x in (self.shared, self.reference))

    @functools.cached_property
    def chosen(self) -> np.ndarray:
        """The most variable of the shared genes, at most GENES that both express. [S']"""
        both = (self.shared > 0).any(0) & (self.reference > 0).any(0)
        spread = np.where(both, log_normalised(self.reference, self.depth[1]).var(0), -1)
        return np.sort(np.argsort(-spread, kind="stable")[: min(GENES, max(int(both.sum()), 1))])


def constant(slide: Slide) -> np.ndarray:
    """Predict the same count of a gene in every cell: its mean in reference cells of the slide's depth. [n, H]

    The mean is of log1p, as scores are.
    """
    depth, other = slide.depth
    logs = np.log1p(slide.lacking * (depth.mean() / other)[:, None])
    return np.broadcast_to(np.expm1(logs.mean(0)), (slide.n, slide.lacking.shape[1]))


def mapped(slide: Slide, steps: int = STEPS) -> np.ndarray:
    """Predict the mean of the reference cells that are mapped to a cell of the slide, at its depth. [n, H]

    Each reference cell i has a softmax M_ij over the cells j of the slide. With the reference's share of counts X and
    the slide's counts G, M maximises the mean cosine of the genes' columns of M'X and G, and that of the cells' rows.
    """
    depth, other = slide.depth
    cells = (slide.reference / other[:, None])[:, slide.chosen]
    weights = np.asarray(_mapping(jnp.float32(cells), jnp.float32(slide.shared[:, slide.chosen]), steps), np.float64)
    weights = weights[:, : slide.n]
    rates = weights.T @ slide.lacking / np.maximum(weights.T @ other, 1e-30)[:, None]
    return rates * depth[: slide.n, None]


@functools.partial(jax.jit, static_argnames="steps")
def _mapping(cells: Array, spots: Array, steps: int) -> Array:
    """Return M of `mapped` of cells [r, S] and spots [m, S] after so many updates. [r, m]"""
    adam = optax.adam(RATE)

    def loss(logits: Array) -> Array:
        said = jax.nn.softmax(logits, 1).T @ cells
        return -_cosines(said, spots, 0).mean() - _cosines(said, spots, 1).mean()

    def update(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], None]:
        logits, state = carry
        changes, state = adam.update(jax.grad(loss)(logits), state)
        return (optax.apply_updates(logits, changes), state), None

    start = jnp.zeros((len(cells), len(spots)))
    (logits, _), _ = jax.lax.scan(update, (start, adam.init(start)), None, steps)
    return jax.nn.softmax(logits, 1)


def _cosines(a: Array, b: Array, axis: int) -> Array:
    """Return the cosines of columns (axis 0) or rows (axis 1), 0 of those that are nothing."""
    squares = (a**2).sum(axis) * (b**2).sum(axis)
    return (a * b).sum(axis) * jnp.where(squares > 0, jax.lax.rsqrt(jnp.maximum(squares, 1e-30)), 0)


def aligned(slide: Slide, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """Predict the weighted mean of the nearest reference cells along common directions, at the cell's depth. [n, H]

    Log-normalised counts are z-scored in each data set. P_r and P_s [k, S] are its first principal components; the
    singular value decomposition P_r P_s' = U C V' gives the reference's principal vectors U'P_r, of which those with a
    cosine C above SIMILAR are kept. Of the nearest reference cells by cosine distance d along them those with d < 1
    count, each by (1 - d / sum d) / (N - 1), and log1p of their counts is averaged.
    """
    depth, other = slide.depth
    both = (slide.reference, other), (slide.shared, depth)
    cells, spots = (_standardised(log_normalised(x[:, slide.chosen], total)) for x, total in both)
    k = max(min(COMPONENTS, len(slide.chosen), len(cells) - 1, len(spots) - 1), 1)
    ours, theirs = _components(cells, k), _components(spots, k)
    u, cosines, _ = np.linalg.svd(ours @ theirs.T)
    vectors = (u.T @ ours)[cosines > SIMILAR] if (cosines > SIMILAR).any() else (u.T @ ours)[:1]
    near, weights = _weighted(cells @ vectors.T, spots[: slide.n] @ vectors.T, neighbours)
    predicted = np.empty((slide.n, slide.lacking.shape[1]))
    for spot in range(slide.n):
        factor = depth[spot] / other[near[spot]]
        predicted[spot] = np.expm1(weights[spot] @ np.log1p(slide.lacking[near[spot]] * factor[:, None]))
    return predicted


def _standardised(values: np.ndarray) -> np.ndarray:
    """Return the values of each gene with mean 0 and spread 1, 0 where it is constant. [cells, S]"""
    spread = values.std(0)
    return np.where(spread > 1e-9, (values - values.mean(0)) / np.maximum(spread, 1e-9), 0)


def _components(values: np.ndarray, k: int) -> np.ndarray:
    """Return the first k principal components of centred values, rows of length 1. [k, S]"""
    return np.linalg.eigh(values.T @ values)[1][:, ::-1][:, :k].T


def _weighted(cells: np.ndarray, spots: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest cells of each spot and their weights, which add up to 1. [n, N], [n, N]

    Where no cell is on a spot's side (d < 1) all N count; where one is alone, or all are at distance 0, they are even.
    """
    lengths = np.linalg.norm(spots, axis=1)[:, None] * np.linalg.norm(cells, axis=1)
    apart = 1 - spots @ cells.T / np.maximum(lengths, 1e-12)
    near = np.argsort(apart, 1, kind="stable")[:, :number]
    apart = np.maximum(np.take_along_axis(apart, near, 1), 0)
    beside = apart < 1
    beside |= ~beside.any(1, keepdims=True)
    total = np.where(beside, apart, 0).sum(1, keepdims=True)
    weights = np.where(beside, 1 - apart / np.where(total > 0, total, 1), 0)
    even = beside & ((total <= 0) | (beside.sum(1, keepdims=True) == 1))
    weights = np.where(even.any(1, keepdims=True), even, weights)
    return near, weights / weights.sum(1, keepdims=True)
