"""The objective of Exceiver: hidden genes and the cell's label; counts from trained networks, and a gene masked."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.models.exceiver.inputs import SHIFT, prepare, scaler_of
from scfm_jax.models.exceiver.network import Model
from scfm_jax.types import Array, Batch, Outputs


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, class_weight: float = 1.0, slotwise: bool = False
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean squared error of the hidden genes plus cross-entropy of the label, metrics as (sum, weight)).

    "explained_variance" is 1 - var(error) / var(truth) over all hidden genes of a batch, batches pooled by their
    variance; `slotwise` adds "slot_variance", as the original logs it, of each batch.
    """
    truth, weights = inputs["truth"], inputs["weights"]
    error = outputs.logits["genes"] - truth
    number = weights.sum()
    squares = (weights * error**2).sum()
    mse = squares / jnp.maximum(number, 1)
    total, unexplained = (_scatter(x, weights) for x in (truth, error))
    metrics = {"loss": (squares, number), "mse": (squares, number)}
    metrics["explained_variance"] = (total - unexplained, total)
    if slotwise:
        flat = [x.reshape(-1, x.shape[-1]) for x in (outputs.logits["genes"], truth, weights)]
        metrics["slot_variance"] = (slot_variance(*flat), jnp.ones(()))
    if "classes" not in outputs.logits:
        return mse, metrics
    label, logits = inputs["label"], outputs.logits["classes"].astype(jnp.float32)
    labelled = ((label >= 0) & inputs["cell_mask"]).astype(jnp.float32)
    right = jnp.maximum(label, 0)[..., None]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), right, -1)[..., 0]
    nll, hits = (labelled * nll).sum(), (labelled * (logits.argmax(-1) == label)).sum()
    metrics |= {"cross_entropy": (nll, labelled.sum()), "accuracy": (hits, labelled.sum())}
    return mse + class_weight * nll / jnp.maximum(labelled.sum(), 1), metrics


def slot_variance(predicted: Array, truth: Array, weights: Array | None = None) -> Array:
    """Return the explained variance of each column over the rows, then the mean over columns. [N, M] -> scalar

    As torchmetrics has it: 1 where nothing is unexplained, 0 where truth does not vary and something is.
    """
    weights = jnp.ones(truth.shape) if weights is None else weights
    total, unexplained = (_scatter(x, weights, 0) for x in (truth, truth - predicted))
    share = jnp.where(total > 0, 1 - unexplained / jnp.where(total > 0, total, 1), 0.0)
    each = jnp.where(unexplained > 0, share, 1.0)
    used = weights.any(0)
    return jnp.where(used, each, 0).sum() / jnp.maximum(used.sum(), 1)


def _scatter(x: Array, weights: Array, axis: int | None = None) -> Array:
    """Return the weighted sum of squared distances from the mean."""
    mean = (weights * x).sum(axis, keepdims=True) / jnp.maximum(weights.sum(axis, keepdims=True), 1)
    return (weights * (x - mean) ** 2).sum(axis)


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
    """Return the z-scores read out for every gene, turned back into counts. [B, C, V]

    The latents read what is visible; hidden genes are left out, as training leaves out genes without counts, and not
    shown as masks: which of them are expressed is not known. The visible counts are normalised by their own sum, and
    the prediction is undone by it; where nothing is visible, it is scaled to the estimated total. The model was trained
    on masked genes that are expressed, so it does not predict zeros. Arguments: the contract.
    """
    del loss
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)
    shape, n_genes = batch.cell_mask.shape, constants["measured"].shape[1]
    every = jnp.broadcast_to(jnp.arange(n_genes), (*shape, n_genes))
    visible |= {"hidden": jnp.zeros_like(visible["hidden"]), "targets": every}
    values = model.apply(variables, visible, train=False).logits["genes"]
    kind = inputs.get("scaler", "train")
    mean, scale = scaler_of(constants, "val_" if kind == "per_split" else "", kind)
    relative = jnp.maximum(jnp.expm1((values - SHIFT) * scale + mean), 0)
    total = batch.counts.sum(-1)
    whole = jnp.maximum(jnp.where(constants["measured"][0], relative, 0).sum(-1), 1e-9)
    factor = jnp.where(total > 0, total / inputs.get("target_sum", 1e4), asked["depth"] / whole)
    return relative * factor[..., None]


def mask_gene(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    gene: Array,
    *,
    inputs: Mapping[str, Any],
) -> Array:
    """Return the embeddings of cells in which a gene's vector and value are those of the mask token. [B, C, D]

    Arguments: the contract.
    """
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)
    latents = model.apply(variables, visible, visible["genes"] == gene[..., None], False, method="encode")
    return latents.reshape(*gene.shape, -1)
