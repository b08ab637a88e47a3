"""Floors of Exceiver's loss: z-scores of expressed genes by the gene's mean, and with one slope of the cell's depth.

Depth is the logarithm of a cell's counts; where genes are hidden, of the counts that are not, for the share of the
expressed genes that they are. The slope is one of log-normalised counts: z-scores of a gene have it over its deviation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from scfm_jax.models.exceiver.inputs import CLIP, SHIFT
from scfm_jax.models.exceiver.objective import loss as objective
from scfm_jax.types import Array, Batch, Outputs

SCORED = ("mse", "explained_variance", "slot_variance")
MOST = CLIP + SHIFT
"""The largest value: a gene that few cells express is clipped there, and what a table says is, too."""


@dataclasses.dataclass(frozen=True)
class ValueTable:
    """Mean value of each gene over the entries where it is expressed, and how values change with depth.

    Attributes:
      mean: of the values; of a gene never expressed, that of all entries. [V]
      depth: mean depth of the cells that express the gene. [V]
      slope: change of a value for a unit of depth, one number for all genes, least squares within genes of the values
        that are not clipped.
    """

    mean: np.ndarray
    depth: np.ndarray
    slope: float

    @classmethod
    def fit(
        cls, genes: np.ndarray, values: np.ndarray, depths: np.ndarray, n_genes: int, most: float = np.inf
    ) -> "ValueTable":
        """Return the table of expressed entries: their genes, values, and the depth of their cells. [e] each

        `most` is the value at which larger ones are clipped.
        """
        number = np.bincount(genes, minlength=n_genes)
        mean, depth = (_means(genes, x, number) for x in (values, depths))
        apart = (depths - depth[genes]) * (values <= most)
        scatter = float(apart @ apart)
        return cls(mean, depth, float(apart @ (values - mean[genes])) / scatter if scatter > 0 else 0.0)


def against(loss: Mapping[str, Any]) -> str:
    """Return the floor that the residual score is against, "metric/table"."""
    del loss
    return "mse/gene mean + depth"


def learn(
    see: Callable[..., Any], constants: Mapping[str, np.ndarray], inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the tables of the cells that `see` shows; see the contract of `scfm_jax.models`."""
    del loss
    n_genes, entries = constants["measured"].shape[1], []
    mean, scale = (np.asarray(constants[name], np.float64) for name in ("mean", "scale"))
    for batch, made in see("genes"):
        at = np.nonzero((made["genes"] < n_genes) & batch.cell_mask[..., None])
        counts, genes = np.where(made["genes"] < n_genes, batch.counts, 0).astype(np.float64), made["genes"][at]
        total = np.maximum(counts.sum(-1), 1e-9)[at[:2]]
        values = (np.log1p(counts[at] * (inputs["target_sum"] / total)) - mean[genes]) / scale[genes] + SHIFT
        entries.append((genes, values, np.log(np.maximum(total, 1)) / scale[genes]))
    genes, values, depths = (np.concatenate(part) for part in zip(*entries, strict=True))
    table = ValueTable.fit(genes, values, depths, n_genes, MOST)
    clipped = _means(genes, np.minimum(values, MOST), np.bincount(genes, minlength=n_genes))
    return {name: np.float32(x) for name, x in {**vars(table), "clipped": clipped, "scale": scale}.items()}


def score(
    tables: Mapping[str, Array], batch: Batch, made: Mapping[str, Array], loss: Mapping[str, Any]
) -> dict[str, tuple[Array, Array]]:
    """Return explained variance and squared error of the hidden genes by each table; see the contract."""
    at, expressed = made["targets"], made["genes"] < made["zeros"].shape[0]
    shown = expressed & ~made["hidden"]
    share = shown.sum(-1) / jnp.maximum(expressed.sum(-1), 1)
    depth = jnp.log(jnp.maximum(jnp.where(shown, batch.counts, 0).sum(-1), 1) / jnp.maximum(share, 1e-9))
    deeper = depth[..., None] / tables["scale"][at] - tables["depth"][at]
    said = {"gene mean": tables["clipped"][at]}
    said["gene mean + depth"] = jnp.minimum(tables["mean"][at] + tables["slope"] * deeper, MOST)
    scores = {}
    for name, values in said.items():
        _, metrics = objective(Outputs(cells=None, logits={"genes": values}), made, **loss)
        scores |= {f"{metric}/{name}": metrics[metric] for metric in SCORED if metric in metrics}
    return scores


def _means(groups: np.ndarray, values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return the mean value of each group, of an empty one that of all. [e], [e], [V] -> [V]"""
    sums = np.bincount(groups, values, len(number))
    return np.where(number > 0, sums / np.maximum(number, 1), sums.sum() / max(number.sum(), 1))
