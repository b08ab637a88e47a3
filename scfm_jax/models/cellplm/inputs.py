"""The inputs of CellPLM: the cells of a bag in random order, what is hidden of them, and what is scored."""

from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.layers import bags, sparse
from scfm_jax.types import Array, Batch

COORDS = ("field", "scaled", "shuffled", "raw")


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    mask_node_rate: float = 0.75,
    mask_feature_rate: float = 0.25,
    mask_beta: bool = True,
    drop_node_rate: float = 0.0,
    drop_labels: float = 0.0,
    max_cells: int = 0,
    keep_counts: float = 1.0,
    score: str = "masked",
    coords: str = "scaled",
    covariates: bool = True,
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into what the network sees and what the loss scores.

    In training the cells of a bag are put in random order, some are dropped, and entries of the first
    `mask_node_rate` of them are hidden; every per-cell array of the result, labels included, is in that order.

    Args:
      constants: "slots" [G + 1] and "measured" [panels, V] (see the contract); no two store genes share a slot below V;
        "gene_vectors" [V, D], rows of zeros where unknown, may be there: what the table of genes starts from.
      mask_node_rate: share of cells with hidden entries; mask_feature_rate: share of entries hidden in them.
      mask_beta: draw each cell's share from Beta(5, 4 / rate - 3), at most 0.9, whose mode is the rate.
      drop_node_rate: training keeps int(n * (1 - rate)) of n cells; max_cells: and at most so many (0: no limit).
      drop_labels: share of cells whose batch and study the decoder is not told in training, so that it learns to
        decode cells of studies that it has never seen.
      keep_counts: probability with which the network sees each molecule (binomial thinning); targets keep all.
      score: "masked" scores the masked cells (all, in evaluation), "all" scores every cell.
      coords: "field" maps coordinates to [0, 1] over the whole field of view, so that a cell lies at the same place in
        every bag (over the bag, where the batch does not know its fields); "scaled" over the bag; "shuffled" gives
        each cell the place of another of its bag, a control; "raw" leaves them.
      covariates: give the decoder batch and study; False leaves them unknown, as imported weights need.
      draws: recorded randomness instead of `rng`: "mask" bool [B, R, V] (cells keep their order), "noise".

    Returns a dict: slots, values [B, C, P] (log1p of what is not hidden); counts [B, R, P], targets of the first R
    cells; weights [B, R] of their losses; mask bool [B, R, V] of hidden entries, in training with score "masked" only;
    measured [B, V]; where the store has fewer genes than the model, columns [G], its genes among
    the model's, and places [B, C, P] of the values in them; cell_mask, batch, study, labels, coords, step, noise.
    """
    draws = draws or {}
    order_key, mask_key, thin_key = jax.random.split(rng, 3)
    mask_on = train and mask_node_rate > 0 and mask_feature_rate > 0
    if train and not draws:
        batch = bags.shuffle(batch, order_key, 1 - drop_node_rate, max_cells)
    slots = constants["slots"][batch.genes]  # [B, C, P]
    n_genes = constants["measured"].shape[1]
    measured = bags.measured_genes(constants["measured"], batch)
    seen = jax.random.binomial(thin_key, batch.counts, keep_counts) if keep_counts < 1 else batch.counts
    values = jnp.log1p(seen)
    weights, hidden = batch.cell_mask, None
    if mask_on:
        hidden = draws.get("mask")
        if hidden is None:
            rows = int(mask_node_rate * slots.shape[1])
            number = jnp.floor(mask_node_rate * batch.cell_mask.sum(1, keepdims=True) + 1e-6)
            hidden = bags.draw_mask(mask_key, (slots.shape[0], rows, n_genes), mask_feature_rate, mask_beta)
            hidden = hidden & (jnp.arange(rows) < number)[..., None]
        rows = hidden.shape[1]
        values = values.at[:, :rows].multiply(~sparse.at(hidden, slots[:, :rows], False))
        if score == "masked":
            weights = hidden.any(-1) & batch.cell_mask[:, :rows]
    rows = weights.shape[1]
    batches = batch.labels.get("batch", jnp.full_like(batch.study, -1))
    told = jnp.full(batches.shape, covariates)
    if train and drop_labels:
        told &= ~jax.random.bernoulli(jax.random.fold_in(rng, 3), drop_labels, batches.shape)
    inputs = {
        "slots": slots,
        "values": values,
        "counts": batch.counts[:, :rows].astype(jnp.float32),
        "weights": weights.astype(jnp.float32),
        "measured": measured,
        "cell_mask": batch.cell_mask,
        "coords": _coordinates(batch, coords, jax.random.fold_in(rng, 4)),
        "batch": jnp.where(told, batches, -1),
        "study": jnp.where(told, batch.study, -1),
        "labels": batch.labels,
        "step": jnp.asarray(step),
    }
    if mask_on and score == "masked":
        inputs["mask"] = hidden
    if len(constants["slots"]) <= n_genes:  # cells have some of the genes only
        inputs |= {"places": batch.genes, "columns": constants["slots"][:-1]}
    if "gene_vectors" in constants:
        inputs["gene_vectors"] = constants["gene_vectors"]
    return inputs | ({"noise": draws["noise"]} if "noise" in draws else {})


def _coordinates(batch: Batch, kind: str, key: Array) -> Array:
    """Return the positions of the cells as `coords` of `prepare` has them. [B, C, 2]"""
    if kind not in COORDS:
        raise ValueError(f"coords {kind!r}: there are {', '.join(COORDS)}")
    if kind == "raw":
        return batch.coords
    if kind == "scaled" or batch.field_coords is None:
        places = bags.unit_coordinates(batch.coords, batch.cell_mask)
    else:
        places = batch.field_coords
    if kind != "shuffled":
        return places
    drawn = jnp.argsort(jax.random.uniform(key, batch.cell_mask.shape) + 2 * ~batch.cell_mask, axis=1)
    rank = jnp.maximum(jnp.cumsum(batch.cell_mask, 1) - 1, 0)  # of each cell among the real ones
    return jnp.take_along_axis(places, jnp.take_along_axis(drawn, rank, 1)[..., None], 1)


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of real cells: CellPLM's tokens."""
    return inputs["cell_mask"].sum().astype(jnp.int32)
