"""What a model is tuned on to denoise: expressed genes that were flipped to zero, told from all that is still visible.

The model is asked as it is when it is scored: `impute` of its file is given the spoiled counts, and its answer and the
truth are scaled to 10,000 a cell and log1p is taken of both. CellPLM's released head minimises the squared error of
masked entries and that of all entries on top (Wen et al., ICLR 2024); here the flipped ones alone are the default, as
they alone are scored. Differences from that head: the model's own decoder answers, so any model that imputes is tuned
alike, its latent's loss is not part of it, and nothing is dropped at random.

A batch has spoiled counts, and among its labels what else `objective` needs (see `LABELS`), arrays of bags and cells.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax.layers import sparse
from scfm_jax.tasks.expression import TARGET_SUM
from scfm_jax.tasks.imputation.bins import Ruler
from scfm_jax.training import step
from scfm_jax.types import Array, Batch

TOLD = ("tokens", "edges", "scale", "depth")
"""What the visible counts tell, as `impute` is asked (see `scfm_jax.models`)."""
LABELS = (*TOLD, "bin_values", "flipped", "truth")
"""What a batch has beside the model's labels: "flipped" are genes [B, C, Q], V in the padding, "truth" their counts."""


def told(ruler: Ruler, counts: np.ndarray, depth: np.ndarray) -> dict[str, np.ndarray]:
    """Return those of LABELS that visible counts [n, V] tell, by the ruler of the same cells. depth: [n]"""
    return {
        "tokens": ruler.bins(counts).astype(np.int32),
        "edges": ruler.edges.astype(np.float32),
        "scale": ruler.scale,
        "depth": depth.astype(np.float32),
        "bin_values": ruler.values.astype(np.float32),
    }


def objective(
    module: ModuleType,
    model: nn.Module,
    inputs: dict[str, Any],
    loss: dict[str, Any],
    *,
    log: bool = True,
    whole: bool = False,
) -> step.Objective:
    """Return the objective of batches in the model's own vocabulary.

    Args:
      inputs, loss: those sections of the run's config.
      log: whether bins are of logarithms, for models that answer with shares of bins.
      whole: add the squared error of all measured entries to that of the flipped ones and divide the sum by the number
        of measured entries, as CellPLM's released head does; otherwise it is the mean over the flipped ones.
    """
    inner = step.pretraining(module, model, inputs, loss)

    def answer(variables: Mapping[str, Any], batch: Batch, constants: Mapping[str, Array], extra: Mapping) -> Array:
        """Return log1p of 10,000 expected counts. [B, C, V]"""
        measured = constants["measured"][0]
        asked = {name: extra[name] for name in TOLD} | {"hidden": jnp.zeros(extra["tokens"].shape, bool)}
        expected = module.impute(model, variables, batch, constants, asked, inputs=inputs, loss=loss)
        if expected.ndim == 4:
            values = jnp.einsum("bcvk,bck->bcv", expected[..., 1:], extra["bin_values"])
            expected = jnp.expm1(values) if log else values
        expected = jnp.where(measured, jnp.maximum(expected, 0), 0)
        return jnp.log1p(expected * (TARGET_SUM / jnp.maximum(expected.sum(-1, keepdims=True), 1e-9)))

    def forward(params, buffers, batch, constants, rng, step, train):
        del rng, step, train
        batch, extra = apart(batch)
        said = answer({"params": params, **buffers}, batch, constants, extra)
        flipped, n_genes = extra["flipped"], said.shape[-1]
        factor = TARGET_SUM / jnp.maximum(
            batch.counts.sum(-1, keepdims=True) + extra["truth"].sum(-1, keepdims=True), 1
        )
        missed = (sparse.at(said, flipped) - jnp.log1p(extra["truth"] * factor)) ** 2  # both 0 in the padding
        total, weight = missed.sum(), (flipped < n_genes).sum()
        metrics = {"flipped": (total, weight)}
        if whole:
            slots = jnp.concatenate([batch.genes, flipped], -1)
            counts = sparse.scatter(slots, jnp.concatenate([batch.counts, extra["truth"]], -1), n_genes)
            each = batch.cell_mask[..., None] & constants["measured"][0]
            total += jnp.where(each, (said - jnp.log1p(counts * factor)) ** 2, 0).sum()
            weight = each.sum()
        cells = batch.cell_mask.sum().astype(jnp.float32)
        value = total / jnp.maximum(weight, 1)
        metrics |= {"loss": (total, weight), "tokens": (cells, jnp.ones(()))}
        return value, (metrics, buffers)

    return step.Objective(
        lambda rng, batch, constants: inner.init(rng, apart(batch)[0], constants),
        forward,
        flops=lambda batch, constants: inner.flops(apart(batch)[0], constants),
        project=inner.project,
    )


def apart(batch: Batch) -> tuple[Batch, dict[str, Array]]:
    """Return the batch that a model knows, and LABELS."""
    labels = {name: values for name, values in batch.labels.items() if name not in LABELS}
    return batch.replace(labels=labels), {name: batch.labels[name] for name in LABELS}
