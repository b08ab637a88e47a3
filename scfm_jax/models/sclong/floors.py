"""Floors of scLong's loss: a gene's mean among the cells that express it, and with how far the cell's other genes are
from theirs, on average, which is the cell's depth as scLong sees it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from scfm_jax.models.sclong.inputs import MASK
from scfm_jax.models.sclong.objective import loss as objective
from scfm_jax.types import Array, Batch, Outputs


def against(loss: Mapping[str, Any]) -> str:
    """Return the floor that the residual score is against, "metric/table"."""
    del loss
    return "loss/gene mean + mean residual of visible genes"


def learn(
    see: Callable[..., Any], constants: Mapping[str, np.ndarray], inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the mean of each gene [V], of one never expressed that of all; see the contract of `scfm_jax.models`."""
    del inputs, loss
    sums, number = np.zeros((2, constants["measured"].shape[1]))
    for batch, made in see("values", mask_rate=0.0):
        values = made["values"][batch.cell_mask]  # [cells, V]
        sums += values.sum(0, dtype=np.float64)
        number += (values != 0).sum(0)
    every = sums.sum() / max(number.sum(), 1)
    return {"mean": np.float32(np.where(number > 0, sums / np.maximum(number, 1), every))}


def score(
    tables: Mapping[str, Array], batch: Batch, made: Mapping[str, Array], loss: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Return the squared error of the scored genes by each table; see the contract."""
    del batch
    mean = tables["mean"][made["rows"]]
    visible = (made["values"] != 0) & (made["masked"] != MASK)
    apart = jnp.where(visible, made["values"] - tables["mean"], 0).sum(-1) / jnp.maximum(visible.sum(-1), 1)
    said = {"gene mean": mean, "gene mean + mean residual of visible genes": mean + apart[..., None]}
    outputs = {name: Outputs(cells=None, logits={"scored": values}) for name, values in said.items()}
    return {f"loss/{name}": objective(output, made, **loss)[1]["loss"] for name, output in outputs.items()}
