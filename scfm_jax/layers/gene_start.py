"""The first value of a table of gene vectors: what a user gave of each gene (gene2vec), the others at random."""

import jax
import jax.numpy as jnp

from scfm_jax.types import Array


def start(key: Array, vectors: Array | None, shape: tuple[int, int], deviation: float, field: str) -> Array:
    """Return the first value of a gene table. [N, D]

    Args:
      vectors: of the first V genes, rows of zeros where none is known; None draws all rows. [V, D]
      shape: N and D; rows beyond V (a padding gene) are zero where vectors were given.
      deviation: of the normal draws.
      field: the model's field that is D, for the error.

    Raises:
      ValueError: the vectors have another width.
    """
    drawn = deviation * jax.random.normal(key, shape)
    if vectors is None:
        return drawn
    if vectors.shape[1] != shape[1]:
        raise ValueError(f"gene vectors of width {vectors.shape[1]}: model.{field}={shape[1]} must be the same")
    nonzero = (vectors != 0).any(1, keepdims=True)
    rows = jnp.where(nonzero, vectors, drawn[: len(vectors)])
    return jnp.pad(rows, ((0, shape[0] - len(vectors)), (0, 0)))
