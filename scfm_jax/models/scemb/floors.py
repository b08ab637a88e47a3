"""Floors of scEMB's loss: names of hidden genes by how many cells have each gene in their sentence, in all, in each
study, and there among the genes that are not yet in the sentence.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from scfm_jax.models.scemb.inputs import PAD, SPECIAL
from scfm_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class GeneTable:
    """In how many cells of each study each gene is in the sentence, and of how many cells; [S, V] and [S]."""

    counts: np.ndarray
    cells: np.ndarray

    def frequencies(self) -> dict[str, np.ndarray]:
        """Return the shares of genes among all tokens, "gene" [1, V] and "gene x study" [S, V]; no share is 0."""
        share = (self.counts.sum(0, keepdims=True) + 0.5) / (self.cells.sum() + 1)
        study = (self.counts + share) / (self.cells[:, None] + 1)
        return {name: x / x.sum(1, keepdims=True) for name, x in {"gene": share, "gene x study": study}.items()}


def against(loss: Mapping[str, Any]) -> str:
    """Return the floor that the residual score is against, "metric/table"."""
    del loss
    return "loss/gene x study, of genes not yet in the sentence"


def learn(
    see: Callable[..., Any], constants: Mapping[str, np.ndarray], inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the shares of genes in the sentences that `see` shows; see the contract of `scfm_jax.models`."""
    del inputs, loss
    n_studies, n_genes = constants["measured"].shape
    counts, cells = np.zeros((n_studies, n_genes)), np.zeros(n_studies)
    for batch, made in see("tokens", mask_rate=0.0):
        at = np.nonzero(made["tokens"] != PAD)
        np.add.at(counts, (batch.study[at[:2]], made["tokens"][at] - SPECIAL), 1)
        np.add.at(cells, batch.study[batch.cell_mask], 1)
    return {name: x.astype(np.float32) for name, x in GeneTable(counts, cells).frequencies().items()}


def score(
    tables: Mapping[str, Array], batch: Batch, made: Mapping[str, Array], loss: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Return minus log shares of the hidden genes, summed, and their number; see the contract.

    Among genes not yet in the sentence, shares are divided by what the visible genes leave.
    """
    del loss
    asked, scores = made["weights"], {}
    for name, table in tables.items():
        study = jnp.minimum(batch.study, table.shape[0] - 1)[..., None]
        whole = jnp.where(made["tokens"] != PAD, table[study, made["tokens"] - SPECIAL], 0).sum(-1, keepdims=True)
        share = table[study, jnp.maximum(made["targets"] - SPECIAL, 0)]  # [B, C, M]
        hidden = (asked * share).sum(-1, keepdims=True)
        left = jnp.maximum(1 - whole + hidden, hidden)  # rounding apart, the first is never less
        scores[f"loss/{name}"] = (-(asked * jnp.log(share)).sum(), asked.sum())
        last = (-(asked * jnp.log(share / jnp.maximum(left, 1e-30))).sum(), asked.sum())
    return scores | {against({}): last}
