"""The inputs of Exceiver: raw counts to shifted z-scores, the genes that are hidden, and the scaler's one pass.

z-scores are clipped at 10 from above only, and targets are clipped with them. Cells with too few genes to hide are not
dropped but not scored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.models.exceiver.scaler import Statistics
from scfm_jax.types import Array, Batch

FITTED = ("mean", "scale")
CLIP, SHIFT = 10.0, 1.0


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    target_sum: float = 1e4,
    mask_rate: float = 0.15,
    n_mask: int = 0,
    scaler: str = "train",
    label: str = "tissue",
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into shifted z-scores, and choose the expressed genes to hide and to predict.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract), and what `fit` adds: "mean" and "scale" [V]
        of log1p of normalised counts ("val_mean", "val_scale"), and "expressed" [V], its mean over expressed entries.
      target_sum: counts of a cell, over the model's genes, are scaled to this sum.
      n_mask: genes hidden in every cell that expresses twice as many, other cells are not scored; `fit` sets it. 0 or
        below: `mask_rate` of each cell's expressed genes.
      scaler: "per_split" takes the validation cells' own statistics in evaluation.
      label: of Batch.labels, what the class token predicts.
      draws: recorded "mask_ids" [B, C, M] instead of `rng`.

    Returns a dict: genes int32 [B, C, P], slots of expressed genes, V for none; values [B, C, P]; hidden bool
    [B, C, P]; targets int32 [B, C, M], slots of the hidden genes, their truth and weights [B, C, M]; zeros [V], the
    value of a gene without counts, and expressed [V], that of one with its mean count; label [B, C], -1 where unknown;
    cell_mask [B, C].
    """
    del step
    n_genes = constants["measured"].shape[1]
    counts = batch.counts.astype(jnp.float32)
    slots = jnp.where(counts > 0, constants["slots"][batch.genes], n_genes)
    counts = jnp.where(slots < n_genes, counts, 0)
    mean, scale = scaler_of(constants, "val_" if scaler == "per_split" and not train else "", scaler)
    logs = jnp.log1p(counts * (target_sum / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)))
    at = jnp.minimum(slots, n_genes - 1)
    values = jnp.minimum((logs - mean[at]) / scale[at], CLIP) + SHIFT
    number = (slots < n_genes).sum(-1)  # expressed genes of each cell
    size = max(1, min(n_mask, slots.shape[2]) if n_mask > 0 else int(slots.shape[2] * mask_rate))
    if draws:
        places = (slots[..., None, :] == draws["mask_ids"][..., None]).argmax(-1)
        chosen = jnp.ones(places.shape, bool)
    else:
        # one draw for each gene of the model: neither padding nor the order in a file matters
        dice = jax.random.uniform(rng, (*slots.shape[:2], n_genes))
        dice = jnp.where(slots < n_genes, jnp.take_along_axis(dice, at, -1), -1.0)
        places = jax.lax.top_k(dice, size)[1]  # [B, C, M]
        wanted = jnp.where(number >= 2 * n_mask, n_mask, 0) if n_mask > 0 else (number * mask_rate).astype(jnp.int32)
        chosen = jnp.arange(size) < wanted[..., None]
    chosen = chosen & batch.cell_mask[..., None]
    hidden = _marked(places, chosen, slots.shape[2])
    return {
        "genes": slots,
        "values": values,
        "hidden": hidden,
        "targets": jnp.take_along_axis(at, places, -1),
        "truth": jnp.take_along_axis(values, places, -1),
        "weights": chosen.astype(jnp.float32),
        "zeros": jnp.minimum(-mean / scale, CLIP) + SHIFT,
        "expressed": jnp.minimum((constants.get("expressed", mean) - mean) / scale, CLIP) + SHIFT,
        "label": batch.labels.get(label, jnp.full_like(batch.study, -1)),
        "cell_mask": batch.cell_mask,
    }


def fit(
    cells: Mapping[str, Iterable[Mapping[str, np.ndarray]]], constants: dict[str, np.ndarray], inputs: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (constants, inputs) with what one pass over the cells tells: the scaler, and how many genes to hide.

    The scaler is the mean and the population deviation of log1p of normalised counts over all cells whose study
    measured the gene, zeros included; a gene that never varies has deviation 1. "expressed" is the mean without the
    zeros. In float64, in one pass.

    Args:
      cells: batches (dicts with the fields of `Batch`, numpy) of "train" and, where there are any, of "val".
      constants: "slots" [G + 1], "measured" [S, V].
      inputs: keywords of `prepare`; an `n_mask` of 0 becomes int(mask_rate x median expressed genes of a cell).
    """
    options = {"target_sum": 1e4, "mask_rate": 0.15, "n_mask": 0, "scaler": "train"} | inputs
    table = np.asarray(constants["measured"])
    fitted = dict(constants)
    for part, prefix in {"train": "", "val": "val_"}.items():
        if part not in cells or (part == "val" and options["scaler"] != "per_split"):
            continue
        statistics = Statistics(np.asarray(constants["slots"]), table, options["target_sum"])
        for batch in cells[part]:
            statistics.add(batch)
        fitted |= {f"{prefix}{name}": value for name, value in statistics.scaler().items()}
        if part == "train":
            fitted["expressed"] = statistics.expressed()
            options["n_mask"] = options["n_mask"] or max(1, int(statistics.median() * options["mask_rate"]))
    return fitted, inputs | {"n_mask": options["n_mask"]}


def scaler_of(constants: Mapping[str, Array], prefix: str, kind: str) -> tuple[Array, Array]:
    """Return the mean and scale of each gene [V], those under `prefix` where there are any.

    ValueError where `kind` is not a scaler, or the constants have none.
    """
    if kind not in ("train", "per_split"):
        raise ValueError(f"scaler {kind!r}: there are train, per_split")
    if missing := [name for name in FITTED if name not in constants]:
        raise ValueError(f"constants: no {', '.join(missing)} of the genes; `fit` takes them from the cells at hand")
    return tuple(constants.get(f"{prefix}{name}", constants[name]) for name in FITTED)


def _marked(places: Array, chosen: Array, width: int) -> Array:
    """Return True at the chosen places. [B, C, M] -> [B, C, width]"""
    flat, marks = places.reshape(-1, places.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    marked = jnp.zeros((flat.shape[0], width), bool).at[rows, flat].max(marks)
    return marked.reshape(*places.shape[:2], width)


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of expressed genes of real cells."""
    expressed = inputs["genes"] < inputs["zeros"].shape[0]
    return (expressed & inputs["cell_mask"][..., None]).sum().astype(jnp.int32)
