"""Floors of sCT's loss: shares of bins under its mask, of all entries, of each gene, of each gene in each study; and
what of its bins no table of genes can tell, the Matthews correlation within genes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers.parts import chunk_parts
from scfm_jax.models.sct.objective import gene_logits
from scfm_jax.types import Array, Batch, Outputs

CHUNK = 32768
"""Tokens that the head reads at a time."""


@dataclasses.dataclass(frozen=True)
class BinTable:
    """How often each gene is in each bin in the cells of each study; `counts` [S, V, n_bins]."""

    counts: np.ndarray

    def priors(self, rates: np.ndarray) -> dict[str, np.ndarray]:
        """Return logs of the shares of bins among masked entries: "one prior" [1, 1, n_bins], "gene" [1, V, n_bins],
        "gene x study" [S, V, n_bins].

        A gene of which little is known is drawn to the shares of all genes by one pseudo-count, a gene of a study to
        those of the gene in all.

        Args:
          rates: how often an entry of each bin is masked. [n_bins]
        """
        total = self.counts.sum((0, 1), keepdims=True) + 1e-9
        one = total / total.sum()
        gene = self.counts.sum(0, keepdims=True) + one
        gene = gene / gene.sum(2, keepdims=True)
        tables = {"one prior": one * rates, "gene": gene * rates, "gene x study": (self.counts + gene) * rates}
        return {name: np.log(table / table.sum(2, keepdims=True)) for name, table in tables.items()}


def against(loss: Mapping[str, Any]) -> str:
    """Return the floor that stands beside the loss, "metric/table"."""
    del loss
    return "loss/gene x study"


def learn(
    see: Callable[..., Any], constants: Mapping[str, np.ndarray], inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the logs of `BinTable.priors` of the cells that `see` shows; see the contract of `scfm_jax.models`."""
    del loss
    n_bins, measured = inputs["n_bins"], np.asarray(constants["measured"])
    counts = np.zeros((*measured.shape, n_bins), np.float32)  # of an atlas, the largest array that there is
    cells = np.zeros(len(measured), np.float32)
    for batch, made in see("tokens", mask="none"):
        study, tokens = batch.study[batch.cell_mask], made["tokens"][batch.cell_mask]  # [cells], [cells, V]
        at = np.nonzero(tokens)
        np.add.at(counts, (study[at[0]], at[1], tokens[at]), 1)
        np.add.at(cells, study, 1)
    counts[..., 0] = cells[:, None] - counts.sum(2)
    if not inputs["score_unmeasured"]:
        counts *= measured[..., None]
    rates = {"stratified": (inputs["zero_rate"], inputs["nonzero_rate"])}.get(inputs["mask"], (1.0, 1.0))
    return BinTable(counts).priors(np.where(np.arange(n_bins) == 0, *rates).astype(np.float32))


def score(
    tables: Mapping[str, Array], batch: Batch, made: Mapping[str, Array], loss: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Return the cross-entropy of the masked genes by each table; see the contract."""
    del loss
    tokens, mask = made["tokens"], made["mask"]
    scores = {}
    for name, table in tables.items():
        study, gene = jnp.minimum(batch.study, table.shape[0] - 1), jnp.arange(tokens.shape[2]) % table.shape[1]
        log_share = table[study[..., None], gene, tokens]  # [B, C, V]
        scores[f"loss/{name}"] = (-jnp.where(mask, log_share, 0).sum(), mask.sum())
    return scores


def observe(outputs: Outputs, made: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """Return for each gene how often each bin is the truth and how often it is said, of expressed masked entries, and
    how often rightly: "bins_within_genes" [V, 2 n_bins + 1].
    """
    features, head = outputs.logits["features"], outputs.logits["head"]
    n_bins, (*shape, width) = made["edges"].shape[-1], features.shape
    parts = chunk_parts(tuple(shape), CHUNK)
    cut = jnp.moveaxis(features.reshape(*shape[:2], parts, -1, width), 2, 0)  # cells stay on their devices
    said = jax.lax.map(lambda part: gene_logits(part, head)[..., :n_bins].argmax(-1), cut)
    said = jnp.moveaxis(said, 0, 2).reshape(shape)[..., : made["tokens"].shape[2]]
    scored = made["mask"] & (made["tokens"] > 0)
    columns = [(scored & (x == k)).sum((0, 1)) for x in (made["tokens"], said) for k in range(n_bins)]
    columns.append((scored & (made["tokens"] == said)).sum((0, 1)))
    return {"bins_within_genes": (jnp.stack(columns, -1), jnp.ones(()))}


def residual(observed: Mapping[str, np.ndarray]) -> float:
    """Return the Matthews correlation of true and said bins within genes, of sums that `observe` tells.

    With t and s [n_bins] how often each bin is the truth and is said of a gene, n = sum(t), h how often rightly:
      C(t, s) = sum over genes of h - t.s / n, C(t, t) = sum of n - t.t / n, C(s, s) = sum of n - s.s / n,
      MCC = C(t, s) / sqrt(C(t, t) C(s, s)), 0 where one of them does not vary within any gene.
    As for several classes (Gorodkin 2004), but with covariances about the gene's own means: 0 for any table of genes
    and, on average, for bins shuffled among the entries of each gene; 1 for the truth.
    """
    sums = np.asarray(observed["bins_within_genes"], np.float64)
    true, said = np.split(sums[:, :-1], 2, axis=1)
    number = true.sum(1)
    total = np.maximum(number, np.finfo(float).tiny)
    both, of_true, of_said = (
        (hits - (a * b).sum(1) / total).sum()
        for hits, a, b in ((sums[:, -1], true, said), (number, true, true), (number, said, said))
    )
    spread = np.sqrt(max(of_true, 0) * max(of_said, 0))
    return float(both / spread) if spread > 1e-9 * max(number.sum(), 1e-300) else 0.0
