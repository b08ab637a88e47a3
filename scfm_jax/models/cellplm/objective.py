"""The objectives of CellPLM, counts from its decoder, and a gene that is masked in trained cells.

The printed loss of the paper scores |M (H - (1 - M) X)|^2, with M and 1 - M swapped; masked entries are what is scored.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.layers import sparse
from scfm_jax.models.cellplm import likelihood
from scfm_jax.models.cellplm.inputs import prepare
from scfm_jax.models.cellplm.network import Model
from scfm_jax.types import Array, Batch, Outputs

OBJECTIVES = ("nb", "mse", "recon", "imputation", "denoise", "annotation")


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, objective: str = "nb", dae: bool = True, label: str = "cell_type"
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (latent loss + mean objective of the scored cells, metrics as (weighted sum, weight)).

    `dae` adds the likelihood of the masked entries alone to that of all entries; `label` is what annotation predicts.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r}: there are {', '.join(OBJECTIVES)}")
    aux_loss, extra = outputs.aux_loss * jnp.ones(()), {}
    total = aux_loss
    if objective == "annotation":
        value, weight = cross_entropy(outputs.logits, inputs, label)
        total = 0.0  # a head trains without the latent's loss
    elif objective == "mse":
        mean = decode(outputs.logits)[0]
        value, weight, extra = masked_squared_error(mean, inputs)
        extra |= dead_genes(outputs.logits, mean, inputs)
    elif objective == "recon":
        mean = decode(outputs.logits)[0]
        value, weight = reconstruction(mean, inputs)
        extra = dead_genes(outputs.logits, mean, inputs)
    else:
        masked = dae and objective == "nb" and "mask" in inputs
        value, weight, extra = negative_binomial(outputs.logits, inputs, masked)
    metrics = {objective: (value, weight), "latent_loss": (aux_loss, jnp.ones(())), **extra, **outputs.metrics}
    return total + value / jnp.maximum(weight, 1), metrics


def gene_logits(head: dict[str, Array]) -> Array:
    """Return the decoder's linear output over all genes, in float32. [B, R, V]"""
    kernel = head["kernel"].astype(head["hidden"].dtype)
    product = jnp.einsum("brf,fv->brv", head["hidden"], kernel, preferred_element_type=jnp.float32)
    return product + head["bias"]


def decode(head: dict[str, Array]) -> tuple[Array, Array | None]:
    """Return the decoder's (mean, inverse dispersion of each gene or None). [B, R, V], [V]"""
    logits = gene_logits(head)
    if "log_theta" in head:
        return likelihood.nb_parameters(logits, head["log_theta"])
    return logits if "linear" in head else jax.nn.relu(logits), None


def predict(outputs: Outputs, inputs: dict[str, Any]) -> Array:
    """Return expected counts: the decoder's means scaled to the observed total over measured genes. [B, R, V]"""
    mean, _ = decode(outputs.logits)
    measured = inputs["measured"][:, None]
    observed = (inputs["counts"] * sparse.at(measured, inputs["slots"][:, : mean.shape[1]], False)).sum(-1)
    return mean * (observed / jnp.where(measured, mean, 0).sum(-1))[..., None]


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
    """Return the decoder's means, scaled so that they add up to the visible counts over the visible genes. [B, C, V]

    With objective "mse" the decoder's values are log1p of counts already and are not scaled. Arguments: the contract.
    """
    key, hidden = jax.random.key(0), asked["hidden"]
    seen = prepare(batch, constants, key, step=0, train=False, **{**inputs, "covariates": False})  # a study of its own
    mean, _ = decode(model.apply(variables, seen, train=False, rngs={"latent": key}).logits)
    if loss.get("objective") == "mse":
        return jnp.expm1(jnp.maximum(mean, 0))
    measured = seen["measured"][:, None]
    visible = jnp.where(measured & ~hidden, mean, 0).sum(-1)
    whole = jnp.where(measured, mean, 0).sum(-1)
    blind = (measured <= hidden).all(-1)
    total = jnp.where(blind, asked["depth"], batch.counts.sum(-1))
    return mean * (total / jnp.maximum(jnp.where(blind, whole, visible), 1e-9))[..., None]


def mask_gene(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    gene: Array,
    *,
    inputs: Mapping[str, Any],
) -> Array:
    """Return the embeddings of cells in which a gene's value is 0, as that of any hidden one. [B, C, D]

    The other values are not scaled. Arguments: the contract.
    """
    key = jax.random.key(0)
    visible = prepare(batch, constants, key, step=0, train=False, **inputs)
    values = jnp.where(visible["slots"] == gene[..., None], 0, visible["values"])
    return model.apply(variables, visible | {"values": values}, train=False, rngs={"latent": key}).cells


def negative_binomial(head: dict[str, Array], inputs: dict[str, Any], masked: bool) -> tuple[Array, Array, dict]:
    """Return (negative log-likelihood summed over scored cells, their number, the summands as metrics).

    All measured entries count and, if `masked`, the masked ones once more, with means scaled to their own total.
    """
    if "log_theta" not in head:
        raise ValueError("a negative binomial objective needs dec_mod 'nbmlp'")
    measured, weights = inputs["measured"][:, None], inputs["weights"]
    scored = {"nb_all": measured} | ({"nb_masked": measured & inputs["mask"]} if masked else {})
    slots, genes = inputs["slots"][:, : weights.shape[1]], tuple(scored.values())
    total, parts = likelihood.scaled_nb_nll(
        gene_logits(head), head["log_theta"], slots, inputs["counts"], genes, weights
    )
    weight = weights.sum()
    return total, weight, {name: (part, weight) for name, part in zip(scored, parts, strict=True)}


def masked_squared_error(mean: Array, inputs: dict[str, Any]) -> tuple[Array, Array, dict]:
    """Return (squared error of log1p counts over the masked measured entries, number of scored cells, metrics).

    The paper's Eq. 9 sums over a cell's entries, as the latent's divergence sums over its dimensions: the two weigh
    against each other as in a likelihood. "mse_entry" is the mean over entries.
    """
    truth = jnp.log1p(_dense_counts(inputs, mean.shape))
    scored = _scored(inputs)
    total = jnp.where(scored, (mean - truth) ** 2, 0).sum()
    return total, inputs["weights"].sum(), {"mse_entry": (total, scored.sum())}


def reconstruction(mean: Array, inputs: dict[str, Any]) -> tuple[Array, Array]:
    """Return the released code's squared error: prediction times the cell's total against counts, hidden entries kept,
    the others zero on both sides but counted in the mean over scored cells x measured genes."""
    truth = _dense_counts(inputs, mean.shape)
    error = mean * inputs["counts"].sum(-1, keepdims=True) - truth
    number = (inputs["weights"].sum(-1) * inputs["measured"].sum(-1)).sum()
    return jnp.where(_scored(inputs), error**2, 0).sum(), number


def dead_genes(head: dict[str, Array], mean: Array, inputs: dict[str, Any]) -> dict[str, tuple[Array, Array]]:
    """Return the metric "dead_genes", the share of measured genes that are predicted above 0 in no scored cell.

    A ReLU passes no gradient to those; other decoders have none, and no such metric.
    """
    if "linear" in head or "log_theta" in head:
        return {}
    measured = inputs["measured"].any(0)
    alive = ((mean > 0) & (inputs["weights"] > 0)[..., None]).any((0, 1))
    return {"dead_genes": ((measured & ~alive).sum() / jnp.maximum(measured.sum(), 1), jnp.ones(()))}


def cross_entropy(logits: Array, inputs: dict[str, Any], label: str) -> tuple[Array, Array]:
    """Return the summed cross-entropy of the cells whose label is known, and their number."""
    target = jnp.where(inputs["cell_mask"], inputs["labels"][label], -1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(target, 0)[..., None], -1)[..., 0]
    return jnp.where(target >= 0, nll, 0).sum(), (target >= 0).sum()


def _dense_counts(inputs: dict[str, Any], shape: tuple[int, ...]) -> Array:
    return sparse.scatter(inputs["slots"][:, : shape[1]], inputs["counts"], shape[-1])


def _scored(inputs: dict[str, Any]) -> Array:
    """Return the entries that a squared error scores: hidden (all, in evaluation), measured, of a scored cell."""
    scored = inputs["measured"][:, None] & (inputs["weights"] > 0)[..., None]
    return scored & inputs["mask"] if "mask" in inputs else scored
