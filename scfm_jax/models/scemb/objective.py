"""The objective of scEMB: the names of the hidden genes, and a gene that is masked in trained cells."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.models.scemb.inputs import perturb, prepare
from scfm_jax.models.scemb.network import Model
from scfm_jax.models.scemb.softmax import cross_entropy
from scfm_jax.types import Array, Batch, Outputs


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, chunk: int = 8192
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean cross-entropy of the hidden genes' names, metrics as (weighted sum, weight)).

    All tokens are candidates. The decoder works on at most `chunk` genes at a time (0: on all at once).
    """
    if outputs.logits is None:
        raise ValueError("inputs.mask_rate=0 leaves nothing to score")
    head = outputs.logits
    nll, hits = cross_entropy(
        head["features"], head["kernel"], head["bias"], inputs["targets"], inputs["weights"], chunk
    )
    number = inputs["weights"].sum()
    return nll / jnp.maximum(number, 1), {"loss": (nll, number), "accuracy": (hits, number)}


def gene_logits(head: dict[str, Array]) -> Array:
    """Return the scores of all tokens, in float32; those of genes begin at SPECIAL. [..., D] -> [..., V + SPECIAL]"""
    kernel = head["kernel"].astype(head["features"].dtype)
    return jnp.einsum("...d,vd->...v", head["features"], kernel, preferred_element_type=jnp.float32) + head["bias"]


def mask_gene(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    gene: Array,
    *,
    inputs: Mapping[str, Any],
) -> Array:
    """Return the embeddings of cells in which a gene's token is the mask's and keeps its position. [B, C, D]

    Arguments: the contract.
    """
    visible = prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask_rate": 0.0})
    return model.apply(variables, perturb(visible, gene[..., None], "mask"), train=False).cells
