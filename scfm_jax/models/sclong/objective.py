"""The objective of scLong: the values of the scored genes; counts of trained networks, and a gene masked in them."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.models.sclong.inputs import MASK, prepare, to_counts
from scfm_jax.models.sclong.network import Model
from scfm_jax.types import Array, Batch, Outputs

AVERAGES = ("genes", "cells")


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, average: str = "genes"
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean squared error, metrics as (weighted sum, weight)).

    `average`: over the scored "genes" of the whole batch, as released, so that a cell weighs as much as it expresses;
    or within each cell and then over the "cells" (the paper's Eq. 2).
    """
    if average not in AVERAGES:
        raise ValueError(f"average {average!r}: there are {', '.join(AVERAGES)}")
    weights = inputs["weights"]
    if average == "cells":
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1)
    total, number = (weights * (outputs.logits["scored"] - inputs["targets"]) ** 2).sum(), weights.sum()
    return total / jnp.maximum(number, 1), {"loss": (total, number)}


def impute(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    asked: Mapping[str, Array],
    *,
    inputs: Mapping[str, Any],
    loss: Mapping[str, Any],
) -> Array:
    """Return the predicted values of genes whose input is [MASK], turned back into counts. [B, C, V]

    The visible counts are normalised by their own sum and maximum, and the prediction is undone by the same two. Where
    nothing is visible there are none: the prediction is scaled to the estimated total. The model was trained on masked
    genes that are expressed, so it does not predict zeros. Arguments: the contract.
    """
    del loss
    options = {**inputs, "mask_rate": 0.0}
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **options)
    masked = jnp.where(asked["hidden"], MASK, visible["values"])
    values = model.apply(variables, visible | {"values": masked}, train=False).logits["genes"]
    counts = to_counts(values, visible, options.get("transform", "normalised"))
    blind = batch.counts.sum(-1) <= 0
    whole = jnp.maximum(jnp.where(constants["measured"][0], counts, 0).sum(-1), 1e-9)
    return counts * jnp.where(blind, asked["depth"] / whole, 1)[..., None]


def mask_gene(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    gene: Array,
    *,
    inputs: Mapping[str, Any],
) -> Array:
    """Return the embeddings of cells in which the value of an expressed gene is the mask's. [B, C, D]

    Arguments: the contract.
    """
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask_rate": 0.0})
    hit = (jnp.arange(visible["values"].shape[-1]) == gene[..., None]) & (visible["values"] != 0)
    values = jnp.where(hit, MASK, visible["values"])
    return model.apply(variables, visible | {"values": values}, train=False).cells
