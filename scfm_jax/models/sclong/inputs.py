"""The inputs of scLong: raw counts to values of all genes, the genes to score and those that are hidden."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.layers import graph, sparse
from scfm_jax.types import Array, Batch

MASK = -10.0  # the value that stands for a hidden gene
TRANSFORMS = ("normalised", "literal_paper", "none")


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    transform: str = "normalised",
    target_sum: float = 1e4,
    max10: bool = True,
    mask_rate: float = 0.15,
    replace_rate: float = 0.9,
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into values, choose the genes to score and hide most of them.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract; no two store genes share a slot below V); a
        gene graph (`layers.graph.constants`) and "gene_vectors" [V, D], rows of zeros where unknown, may be among them.
      transform: normalised (counts per `target_sum` over the model's genes, then log1p), literal_paper
        (log(1 + count / `target_sum`)), none (values are used as they are).
      max10: then scale each cell so that its largest value is 10, or cut at 10 where it is larger.
      mask_rate: share of a cell's expressed genes that are scored, rounded up; exactly so many. 0 scores none.
      replace_rate: probability that a scored gene is hidden from the network.
      draws: recorded uniform draws "select" and "replace" [B, C, P] instead of `rng`.

    Returns a dict: values [B, C, V]; with mask_rate, masked [B, C, V] (-10 where hidden), rows [B, C, R] (slots of the
    scored genes), targets and weights [B, C, R]; scale and factor [B, C], which turn values back; cell_mask; graph and
    gene_vectors where the constants have them.
    """
    del step, train
    n_genes = constants["measured"].shape[1]
    slots = jnp.where(batch.cell_mask[..., None], constants["slots"][batch.genes], n_genes)  # [B, C, P]
    counts = jnp.where(slots < n_genes, batch.counts, 0).astype(jnp.float32)
    values, scale = _transformed(counts, transform, target_sum)
    most, factor = values.max(-1, initial=0), jnp.ones(counts.shape[:2])
    if max10:
        factor = jnp.where(most > 10, 1, 10 / jnp.where(most > 0, most, 10))
        values = jnp.minimum(values * factor[..., None], 10)
    dense = sparse.scatter(slots, values, n_genes)
    inputs = {"values": dense, "scale": scale, "factor": factor, "cell_mask": batch.cell_mask}
    if mask_rate:
        inputs |= _choose(rng, draws or {}, slots, values, dense, mask_rate, replace_rate)
    if "graph_weight" in constants:
        inputs["graph"] = graph.from_constants(constants)
    if "gene_vectors" in constants:
        inputs["gene_vectors"] = constants["gene_vectors"]
    return inputs


def _transformed(counts: Array, kind: str, target: float) -> tuple[Array, Array]:
    """Return (values [B, C, P], what counts were multiplied by before the logarithm [B, C])."""
    if kind not in TRANSFORMS:
        raise ValueError(f"transform {kind!r}: there are {', '.join(TRANSFORMS)}")
    if kind == "none":
        return counts, jnp.ones(counts.shape[:2])
    scale = jnp.full(counts.shape[:2], 1 / target)
    if kind == "normalised":
        total = counts.sum(-1)
        scale = target / jnp.where(total > 0, total, target)
    return jnp.log1p(counts * scale[..., None]), scale


def _choose(
    rng: Array, draws: dict[str, Array], slots: Array, values: Array, dense: Array, rate: float, replace_rate: float
) -> dict[str, Array]:
    """Return what is scored and what is hidden: the ceil(rate n) largest of uniform draws over n expressed genes."""
    keys = dict(zip(("select", "replace"), jax.random.split(rng), strict=True))
    draws = {name: draws[name] if name in draws else jax.random.uniform(keys[name], slots.shape) for name in keys}
    expressed = values != 0
    room = min(slots.shape[-1], math.floor(rate * slots.shape[-1]) + 1)
    number = jnp.ceil(expressed.sum(-1, dtype=jnp.float32) * jnp.float32(rate))
    chosen = jax.lax.top_k(jnp.where(expressed, draws["select"], -1), room)[1]  # [B, C, R]
    scored = jnp.arange(room) < number[..., None]
    at = [jnp.take_along_axis(x, chosen, -1) for x in (slots, values, draws["replace"])]
    rows = jnp.where(scored, at[0], dense.shape[-1])
    hidden = jnp.where(scored & (at[2] < replace_rate), rows, dense.shape[-1])
    flat = dense.reshape(-1, dense.shape[-1])
    masked = flat.at[jnp.arange(len(flat))[:, None], hidden.reshape(len(flat), -1)].set(MASK, mode="drop")
    targets = {"targets": jnp.where(scored, at[1], 0), "weights": scored.astype(jnp.float32)}
    return {"masked": masked.reshape(dense.shape), "rows": jnp.where(scored, rows, 0), **targets}


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of gene positions of real cells."""
    return (inputs["cell_mask"].sum() * inputs["values"].shape[2]).astype(jnp.int32)


def to_counts(values: Array, inputs: dict[str, Any], transform: str = "normalised") -> Array:
    """Return values as `prepare` makes them turned back into counts; what was cut at 10 stays cut. [B, C, V]"""
    values = jnp.maximum(values, 0) / inputs["factor"][..., None]
    return values if transform == "none" else jnp.expm1(values) / inputs["scale"][..., None]
