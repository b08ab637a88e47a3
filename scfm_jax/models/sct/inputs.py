"""The inputs of sCT: raw counts to bins of expression, and the genes that are hidden and scored."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.layers import bags, sparse
from scfm_jax.models.sct import bins
from scfm_jax.types import Array, Batch

MASKS = ("stratified", "uniform", "cells", "genes", "none")


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    n_bins: int = 5,
    target_sum: float = 1e4,
    log: bool = True,
    edges: str = "float64",
    mask: str = "stratified",
    zero_rate: float = 0.01,
    nonzero_rate: float = 0.15,
    mask_cells: int = 1,
    mask_genes: Sequence[int] = (),
    score_unmeasured: bool = False,
    coords: str = "relative",
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into bins of expression, and choose the genes to hide and to score.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract); no two store genes share a slot below V.
      target_sum: counts of a cell, over the model's genes, are scaled to this sum; 0 leaves them.
      log: bin log1p of that.
      edges: precision of the bins' edges, see `bins.bin_edges`.
      mask: stratified (zeros with `zero_rate`, others with `nonzero_rate`), uniform (all with `nonzero_rate`), cells
        (`mask_cells` whole cells of a bag), genes (the slots `mask_genes`, in every cell), none.
      score_unmeasured: mask and score also genes that a study of the bag did not measure.
      coords: "relative" to the smallest of the bag, or "raw".
      draws: a recorded "mask" [B, C, V] instead of `rng`.

    Returns a dict: tokens [B, C, V], bin of each gene, 0 for no expression; mask bool [B, C, V] of those to hide,
    absent with mask "none"; edges [B, C, n_bins], scale and log [B, C], which turn bins back into counts; cell_mask,
    coords.
    """
    measured = constants["measured"]
    slots = constants["slots"][batch.genes]  # [B, C, P]
    counts = jnp.where(slots < measured.shape[1], batch.counts, 0).astype(jnp.float32)
    values, scale = bins.normalized(counts, target_sum, log)
    borders = bins.bin_edges(values, n_bins, edges)
    tokens = sparse.scatter(slots, bins.binned(values, borders), measured.shape[1])
    inputs = {"tokens": tokens, "edges": borders, "scale": scale, "log": jnp.full(scale.shape, log)}
    inputs["cell_mask"] = batch.cell_mask
    inputs["coords"] = _relative(batch.coords, batch.cell_mask) if coords == "relative" else batch.coords
    if mask == "none":
        return inputs
    hidden = (draws or {}).get("mask")
    if hidden is None:
        rates = (nonzero_rate if mask == "uniform" else zero_rate, nonzero_rate)
        hidden = draw_mask(rng, mask, tokens, batch.cell_mask, rates, mask_cells, mask_genes)
    scored = batch.cell_mask[..., None]
    if not score_unmeasured:
        scored = scored & bags.measured_genes(measured, batch)[:, None]
    return inputs | {"mask": hidden & scored}


def draw_mask(
    rng: Array,
    kind: str,
    tokens: Array,
    cell_mask: Array,
    rates: tuple[float, float],
    n_cells: int,
    genes: Sequence[int],
) -> Array:
    """Draw which genes are hidden, bool [B, C, V]; `rates` are those of zeros and of others."""
    if kind in ("stratified", "uniform"):
        return jax.random.bernoulli(rng, jnp.where(tokens > 0, rates[1], rates[0]))
    if kind == "cells":
        order = jnp.argsort(jax.random.uniform(rng, cell_mask.shape) + ~cell_mask, axis=1)
        return jnp.broadcast_to((jnp.argsort(order, axis=1) < n_cells)[..., None], tokens.shape)
    if kind == "genes":
        chosen = jnp.zeros(tokens.shape[-1], bool).at[jnp.asarray(genes, jnp.int32)].set(True)
        return jnp.broadcast_to(chosen, tokens.shape)
    raise ValueError(f"mask {kind!r}: there are {', '.join(MASKS)}")


def _relative(coords: Array, mask: Array) -> Array:
    """Move each bag's coordinates so that the smallest are 0; NaN stays NaN. [B, C, 2]"""
    return coords - jnp.min(jnp.where(mask[..., None] & ~jnp.isnan(coords), coords, jnp.inf), 1, keepdims=True)


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of gene positions of real cells."""
    return (inputs["cell_mask"].sum() * inputs["tokens"].shape[2]).astype(jnp.int32)
