"""The inputs of scEMB: raw counts to sentences of genes with a bin or a rank each, and the genes that are hidden."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.models.scemb.medians import divisors
from scfm_jax.types import Array, Batch

PAD, MASK, SPECIAL = 0, 1, 2  # token ids; gene 0 is token 2
POSITIONS = ("bin", "rank")


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    max_len: int = 2048,
    target_sum: float = 1e6,
    position: str = "bin",
    n_bins: int = 100,
    ties: str = "one",
    medians: str = "none",
    mask_rate: float = 0.15,
    mask_replace: Sequence[float] = (0.8, 0.1, 0.1),
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into sentences of genes, and hide some of them.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract); no two store genes share a slot below V. With
        medians "medians" [V], too, 0 for a gene without one, which is left out.
      max_len: genes of a sentence; lower-ranked ones are left out (bins are those of all).
      target_sum: counts of a cell, over the model's genes, are scaled to this sum before log1p.
      position: what the second vector of a gene stands for, "bin" or "rank".
      ties: bin of equal values: "one", the highest of them, or "both", in training drawn from all of them.
      medians: what scaled counts are divided by before they are ranked: "none", nothing; the gene's median among the
        cells that express it, of a "file" (data.medians) or of the cells to "train" on.
      mask_rate: share of genes to name; 0 hides none, and then nothing can be scored.
      mask_replace: shares of these that become the mask, become another gene, stay.
      draws: recorded "mask" bool and "tokens" [B, C, T] instead of `rng`.

    Returns a dict: tokens [B, C, T], PAD in the padding; positions [B, C, T]; values [B, C, T], log1p of the scaled
    counts; edges [B, C, n_bins] with position "bin"; cell_mask, labels; and of the genes to name: masked [B, C, T],
    the tokens that the network sees instead; places, targets, weights [B, C, M], their places in the sentence, what
    they are, and 1, or 0 where there are fewer.
    """
    if position not in POSITIONS or ties not in ("one", "both"):
        raise ValueError(f"position {position!r}, ties {ties!r}: there are {', '.join(POSITIONS)}, and one, both")
    n_genes = constants["measured"].shape[1]
    slots = constants["slots"][batch.genes]  # [B, C, P]
    counts = jnp.where(slots < n_genes, batch.counts, 0).astype(jnp.float32)
    scaled, by = counts * (target_sum / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)), divisors(constants, medians)
    if by is not None:
        median = by[jnp.minimum(slots, n_genes - 1)]
        scaled = jnp.where(median > 0, scaled / median, 0)
    values = jnp.log1p(scaled)
    descending, slots = jax.lax.sort((jnp.where(scaled > 0, -values, jnp.inf), slots), num_keys=2)
    values = jnp.where(jnp.isfinite(descending), -descending, 0)
    short, tie_key, mask_key = values[..., :max_len], *jax.random.split(rng)
    real = (short > 0) & batch.cell_mask[..., None]
    tokens = jnp.where(real, slots[..., :max_len] + SPECIAL, PAD)
    inputs = {"tokens": tokens, "values": jnp.where(real, short, 0)}
    inputs |= {"cell_mask": batch.cell_mask, "labels": batch.labels}
    if position == "bin":
        below, above = bin_edges(values, n_bins)
        noise = jax.random.uniform(tie_key, short.shape) if ties == "both" and train else None
        inputs |= {"positions": jnp.where(real, bins(short, below, above, noise), 0), "edges": above}
    else:
        inputs["positions"] = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    if not mask_rate:
        return inputs
    return inputs | hide(mask_key, tokens, n_genes, mask_rate, mask_replace, draws)


def bin_edges(values: Array, n_bins: int) -> tuple[Array, Array]:
    """Return `n_bins` quantiles of each cell's positive values, from least to greatest, rounded down and up to float32.

    As numpy's quantile (linear) computes them in float64: a value lies at or above an edge exactly where it does so
    in numpy.
    [..., P] in descending order -> two of [..., n_bins]
    """
    n = (values > 0).sum(-1, keepdims=True)
    with jax.enable_x64(True):
        at = np.linspace(0, 1, n_bins) * (n - 1).astype(jnp.float64)
        before = jnp.floor(at)
        part, before = at - before, before.astype(jnp.int32)
    low, high = (jnp.take_along_axis(values, jnp.maximum(n - 1 - before - after, 0), -1) for after in (0, 1))
    with jax.enable_x64(True):
        step = (high - low).astype(jnp.float64)
        edge = jnp.where(part < 0.5, low + step * part, high - step * (1 - part))
        near = edge.astype(jnp.float32)
        wide = near.astype(jnp.float64)
        below = jnp.where(wide > edge, jnp.nextafter(near, jnp.float32(-jnp.inf)), near)
        above = jnp.where(wide < edge, jnp.nextafter(near, jnp.float32(jnp.inf)), near)
    return below, above


def bins(values: Array, below: Array, above: Array, noise: Array | None = None) -> Array:
    """Return the number of edges at or below each value, 1 ... n_bins; with noise in [0, 1) one of all its bins."""
    most = (values[..., None] >= above[..., None, :]).sum(-1, dtype=jnp.int32)
    if noise is None:
        return most
    least = (values[..., None] > below[..., None, :]).sum(-1, dtype=jnp.int32)
    return jnp.ceil(noise * (least - most) + most).astype(jnp.int32)


def hide(
    key: Array,
    tokens: Array,
    n_genes: int,
    rate: float,
    replace: Sequence[float],
    draws: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Choose the genes to name and what the network sees in their place; see `prepare`."""
    if len(replace) != 3 or min(replace) < 0 or not math.isclose(sum(replace), 1, abs_tol=1e-6):
        raise ValueError(f"mask_replace={tuple(replace)}: must be three shares that add up to 1")
    length = tokens.shape[-1]
    keys, room = jax.random.split(key, 3), length
    if draws:
        hidden, masked = draws["mask"], draws["tokens"]
    else:
        room = min(length, 8 * math.ceil((length * rate + 4 * math.sqrt(length * rate * (1 - rate))) / 8))
        hidden = jax.random.bernoulli(keys[0], rate, tokens.shape) & (tokens != PAD)
        hidden = hidden & (jnp.cumsum(hidden, -1) <= room)
        dice = jax.random.uniform(keys[1], tokens.shape)
        other = jax.random.randint(keys[2], tokens.shape, SPECIAL, n_genes + SPECIAL)
        new = jnp.where(dice < replace[0], MASK, jnp.where(dice < replace[0] + replace[1], other, tokens))
        masked = jnp.where(hidden, new, tokens)
    places = jnp.sort(jnp.where(hidden, jnp.arange(length), length), -1)[..., :room]
    exists, places = places < length, jnp.minimum(places, length - 1)
    targets = jnp.where(exists, jnp.take_along_axis(tokens, places, -1), PAD)
    return {"masked": masked, "places": places, "targets": targets, "weights": exists.astype(jnp.float32)}


def perturb(inputs: dict[str, Array], gene: Array | int, how: str = "mask") -> dict[str, Array]:
    """Return the inputs of cells in which `gene` (slot of the model) is masked or deleted, where the cell has it."""
    hit = inputs["tokens"] == gene + SPECIAL
    if how == "mask":
        return inputs | {"tokens": jnp.where(hit, MASK, inputs["tokens"])}
    if how != "delete":
        raise ValueError(f"how {how!r}: there are mask, delete")
    order = jnp.argsort(hit, axis=-1, stable=True)  # what is deleted goes behind the padding
    tokens = jnp.take_along_axis(jnp.where(hit, PAD, inputs["tokens"]), order, -1)
    if "edges" not in inputs:
        return inputs | {"tokens": tokens}
    positions = jnp.where(tokens == PAD, 0, jnp.take_along_axis(inputs["positions"], order, -1))
    return inputs | {"tokens": tokens, "positions": positions}


def gene_ids(inputs: dict[str, Any]) -> Array:
    """Return the vocabulary id of each token, below 0 for what is no gene. [B, C, T]"""
    return inputs["tokens"] - SPECIAL


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of genes in the sentences, padding left out."""
    return (inputs["tokens"] != PAD).sum(dtype=jnp.int32)
