"""What counts are divided by before genes are ranked: each gene's median among the cells that express it.

Geneformer (Theodoris et al., Nature 2023) divides counts per 10,000 by it, so that genes which are high in all cells do
not lead every sentence; scEMB's text ranks the values as they are. The medians belong to the weights: they are
constants of a run and never those of the cells at hand.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from scfm_jax.types import Array

MEDIANS = ("none", "file", "train")
FITTED: tuple[str, ...] = ()
"""No constant is taken from the cells at hand: the medians are those that the weights were trained with."""
LOWEST, STEPS = 1e-7, 1024
"""Least share of a cell's counts that is told from others, and intervals from there to 1, equal in logarithm."""


def divisors(constants: Mapping[str, Any], kind: str) -> Array | None:
    """Return what each gene's counts are divided by, 0 for a gene that is left out [V]; None for nothing.

    ValueError where `kind` is not one of MEDIANS, or the constants lack the medians.
    """
    if kind not in MEDIANS:
        raise ValueError(f"medians {kind!r}: there are {', '.join(MEDIANS)}")
    if kind == "none":
        return None
    if "medians" not in constants:
        raise ValueError(
            f"inputs.medians={kind!r} ranks genes by count over the gene's median, and there are no medians: give a "
            "file of genes and medians, config.data.medians=FILE of a training, medians=FILE of api.from_published"
        )
    return jnp.asarray(constants["medians"])


def fit(
    cells: Mapping[str, Iterable[Mapping[str, np.ndarray]]], constants: dict[str, np.ndarray], inputs: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (constants, inputs), with inputs.medians "train" the medians of the training cells among the constants.

    Of the counts of a gene above zero, scaled to the sum `target_sum`, to within 1 %; a gene that no cell expresses has
    none (0). Medians that are among the constants stay; ValueError where "file" has none.

    Args:
      cells: batches of "train". constants, inputs: see the contract.
    """
    options = {"medians": "none", "target_sum": 1e6} | inputs
    if options["medians"] != "train" or "medians" in constants:
        divisors(constants, options["medians"])
        return dict(constants), inputs
    n_genes = constants["measured"].shape[1]
    numbers = np.zeros((n_genes, STEPS), np.int32)
    for batch in cells["train"]:
        slots, counts = np.asarray(constants["slots"])[batch["genes"]], np.asarray(batch["counts"], np.float64)
        counts = np.where(slots < n_genes, counts, 0)
        expressed = (counts > 0) & np.asarray(batch["cell_mask"])[..., None]
        shares = (counts / np.maximum(counts.sum(-1, keepdims=True), 1e-9))[expressed]
        places = ((1 - np.log(np.maximum(shares, LOWEST)) / np.log(LOWEST)) * STEPS).astype(int)
        np.add.at(numbers, (slots[expressed], np.minimum(places, STEPS - 1)), 1)
    return {**constants, "medians": options["target_sum"] * _middles(numbers)}, inputs


def _middles(numbers: np.ndarray) -> np.ndarray:
    """Return the share in the middle of each gene's interval that holds its median, float32, 0 for no cell. [V]

    numbers: cells in each interval. [V, STEPS]
    """
    below, total = np.cumsum(numbers, 1), numbers.sum(1)
    places = [(below > ((total - even) // 2)[:, None]).argmax(1) for even in (0, 1)]  # of an even number, both
    middles = LOWEST ** (1 - (np.array(places) + 0.5) / STEPS)
    return np.where(total > 0, middles.mean(0), 0).astype(np.float32)
