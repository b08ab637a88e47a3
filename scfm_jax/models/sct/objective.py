"""The objective of sCT: the bins of masked genes; counts from trained networks, and a gene that is masked in them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.layers.parts import chunk_parts
from scfm_jax.models.sct import bins
from scfm_jax.models.sct.inputs import prepare
from scfm_jax.models.sct.network import Model
from scfm_jax.types import Array, Batch, Outputs


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, chunk: int = 32768
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean cross-entropy of the masked genes, metrics as (weighted sum, weight)).

    The head works on at most `chunk` tokens at a time (0: on all at once), and once more in the backward pass, so its
    hidden layer never exists whole.
    """
    features, head = outputs.logits["features"], outputs.logits["head"]
    padding = features.shape[2] - inputs["tokens"].shape[2]
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, padding)))
    truth = pad(inputs["tokens"])
    hidden = pad(inputs["mask"]) if "mask" in inputs else jnp.zeros(truth.shape, bool)
    parts = chunk_parts(truth.shape, chunk)

    def split(x: Array) -> Array:  # [B, C, L, ...] -> [parts, B, C, L / parts, ...]: cells stay on their devices
        return jnp.moveaxis(x.reshape(*x.shape[:2], parts, -1, *x.shape[3:]), 2, 0)

    def add(sums: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        features, truth, hidden = part
        scores = gene_logits(features, head)
        wanted = jax.nn.one_hot(truth, scores.shape[-1], dtype=bool)
        nll = jax.nn.logsumexp(scores, -1) - jnp.where(wanted, scores, 0).sum(-1)
        hits = scores.argmax(-1) == truth
        kinds = jnp.stack([hidden & (truth == 0), hidden & (truth > 0)]).astype(jnp.float32)
        return sums + jnp.einsum("kbcl,mbcl->mk", kinds, jnp.stack([nll, hits, jnp.ones_like(nll)])), None

    whole = (split(features), split(truth), split(hidden))
    sums, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), jnp.zeros((3, 2)), whole)
    (nll, hits, number), total = sums, sums.sum(1)
    metrics = {"loss": (total[0], total[2]), "zeros": (nll[0], number[0]), "expressed": (nll[1], number[1])}
    metrics["expressed_accuracy"] = (hits[1], number[1])
    return total[0] / jnp.maximum(total[2], 1), metrics


def gene_logits(features: Array, head: list[dict[str, Array]]) -> Array:
    """Return the scores of all tokens, bins first, in float32: gelu before every linear map. [..., D] -> [..., V]"""
    for layer in head:
        features = jax.nn.gelu(features) @ layer["kernel"].astype(features.dtype)
        features = features + layer["bias"].astype(features.dtype)
    return features.astype(jnp.float32)


def predict(outputs: Outputs, inputs: dict[str, Any]) -> Array:
    """Return expected counts: the bins' middles weighted by their probabilities, `prepare` turned back. [B, C, V]"""
    scores = gene_logits(outputs.logits["features"][:, :, : inputs["tokens"].shape[2]], outputs.logits["head"])
    shares = jax.nn.softmax(scores[..., : inputs["edges"].shape[-1]], -1)
    return bins.expected_counts(shares, inputs["edges"], inputs["scale"], inputs["log"])


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
    """Return the probabilities of the bins, the scores of mask and padding left out. [B, C, V, n_bins]

    The head goes through the genes of one cell at a time. Arguments: the contract.
    """
    del loss
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask": "none"})
    visible |= {name: asked[name] for name in ("tokens", "edges", "scale")} | {"mask": asked["hidden"]}
    logits = model.apply(variables, visible, train=False).logits
    features = logits["features"][:, :, : asked["hidden"].shape[2]]
    n_bins = asked["edges"].shape[-1]

    def shares(cell: Array) -> Array:
        return jax.nn.softmax(gene_logits(cell, logits["head"])[..., :n_bins], -1)

    flat = jax.lax.map(shares, features.reshape(-1, *features.shape[2:]))
    return flat.reshape(*features.shape[:3], n_bins)


def mask_gene(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    gene: Array,
    *,
    inputs: Mapping[str, Any],
) -> Array:
    """Return the embeddings of cells in which a gene's bin is the mask's. [B, C, D]. Arguments: the contract."""
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask": "none"})
    hit = jnp.arange(visible["tokens"].shape[-1]) == gene[..., None]
    tokens = jnp.where(hit, model.n_bins, visible["tokens"])
    return model.apply(variables, visible | {"tokens": tokens}, train=False).cells
