"""How each model imputes: a function per model, which `Imputer` finds by the model's name.

    cellplm(module, model, variables, batch, constants, hidden, seen, inputs, loss) -> counts [B, C, V] or shares of
                                                                                      bins [B, C, V, n_bins]

Pure and jitted. `batch` has the visible counts only, in the model's own vocabulary; `hidden` [B, C, V] says which are
asked for. `seen` is what the task read off the visible entries: "tokens" [B, C, V] (their bins), "edges"
[B, C, n_bins] and "scale" [B, C] of the ruler, and "depth" [B, C], estimated totals. `inputs` and `loss` are those
sections of the config. A model without a function here does not predict expression.
"""

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import linen as nn

from scfm_jax import infer
from scfm_jax.tasks.bins import Ruler
from scfm_jax.tasks.imputation import Problem
from scfm_jax.types import Array, Batch


def cellplm(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    hidden: Array,
    seen: Mapping[str, Array],
    inputs: Mapping[str, Any],
    loss: Mapping[str, Any],
) -> Array:
    """Return the decoder's means, scaled so that they add up to the visible counts over the visible genes.

    With objective "mse" the decoder's values are log1p of counts already and are not scaled.
    """
    key = jax.random.key(0)
    given = module.prepare(batch, constants, key, step=0, train=False, **inputs)
    outputs = model.apply(variables, given, train=False, rngs={"latent": key})
    mean, _ = module.decode(outputs.logits)
    if loss.get("objective") == "mse":
        return jnp.expm1(mean)
    measured = given["measured"][:, None]
    visible = jnp.where(measured & ~hidden, mean, 0).sum(-1)
    whole = jnp.where(measured, mean, 0).sum(-1)
    blind = (measured <= hidden).all(-1)
    factor = jnp.where(blind, seen["depth"], batch.counts.sum(-1)) / jnp.maximum(jnp.where(blind, whole, visible), 1e-9)
    return mean * factor[..., None]


def sct(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    hidden: Array,
    seen: Mapping[str, Array],
    inputs: Mapping[str, Any],
    loss: Mapping[str, Any],
) -> Array:
    """Return the probabilities of the bins, the scores of mask and padding left out; a cell at a time in the head."""
    del loss
    given = module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask": "none"})
    given |= {"tokens": seen["tokens"], "edges": seen["edges"], "scale": seen["scale"], "mask": hidden}
    logits = model.apply(variables, given, train=False).logits
    features = logits["features"][:, :, : hidden.shape[2]]
    n_bins = seen["edges"].shape[-1]

    def shares(cell: Array) -> Array:
        return jax.nn.softmax(module.gene_logits(cell, logits["head"])[..., :n_bins], -1)

    flat = jax.lax.map(shares, features.reshape(-1, *features.shape[2:]))
    return flat.reshape(*features.shape[:3], n_bins)


def sclong(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    hidden: Array,
    seen: Mapping[str, Array],
    inputs: Mapping[str, Any],
    loss: Mapping[str, Any],
) -> Array:
    """Return the predicted values of genes whose input is [MASK], turned back into counts.

    The visible counts are normalised by their own sum and maximum, and the prediction is undone by the same two. Where
    nothing is visible there are none: the prediction is scaled to the estimated total. The model was trained on masked
    genes that are expressed, so it does not predict zeros.
    """
    del loss
    options = {**inputs, "mask_rate": 0.0}
    given = module.prepare(batch, constants, jax.random.key(0), step=0, train=False, **options)
    masked = jnp.where(hidden, module.MASK, given["values"])
    values = model.apply(variables, given | {"values": masked}, train=False).logits["genes"]
    counts = module.to_counts(values, given, options.get("transform", "normalised"))
    blind = batch.counts.sum(-1) <= 0
    whole = jnp.maximum(jnp.where(constants["measured"][0], counts, 0).sum(-1), 1e-9)
    return counts * jnp.where(blind, seen["depth"] / whole, 1)[..., None]


ADAPTERS = {"cellplm": cellplm, "sct": sct, "sclong": sclong}


class Imputer:
    """A model that imputes, compiled once for any weights.

    Args:
      name: of the model. module, model: its file and the network. config: of the run, a plain dict.
      constants: frozen arrays that came with the weights.

    Raises:
      ValueError: the model does not predict expression.
    """

    def __init__(
        self, name: str, module: ModuleType, model: nn.Module, config: Mapping[str, Any], constants: Mapping[str, Any]
    ):
        if name not in ADAPTERS:
            raise ValueError(f"model {name!r} does not predict expression; those that do are {', '.join(ADAPTERS)}")
        inputs, loss = dict(config.get("inputs", {})), dict(config.get("loss", {}))
        self._module, self._constants = module, constants
        self._least = config.get("data", {}).get("bag") or 1  # what parameters of a position in the bag are for
        self._call = jax.jit(functools.partial(ADAPTERS[name], module, model, inputs=inputs, loss=loss))
        self.binning = {key: inputs[key] for key in ("n_bins", "target_sum", "log") if key in inputs}
        """Options of `bins.fit` that the model was trained with."""
        rates = (inputs["zero_rate"], inputs["nonzero_rate"]) if inputs.get("mask") == "stratified" else (1, 1)
        self.zeros = rates[0] / rates[1] if min(rates) else 1.0
        """How many times as often as others zeros were hidden in training, which the shares of bins reflect."""

    def __call__(self, variables: Mapping[str, Any], problem: Problem, ruler: Ruler) -> np.ndarray:
        """Return the prediction of the hidden entries, float32. [h] or [h, n_bins]"""
        n_genes = problem.measured.size
        slots = np.arange(n_genes + 1, dtype=np.int32)
        constants = {**self._constants, "slots": slots, "measured": problem.measured[None]}
        starts = np.concatenate([[0], np.cumsum(problem.hidden.sum(1))])
        tokens, result = ruler.bins(problem.counts), None
        for index in self._indices(problem):
            here, rows = index >= 0, index[index >= 0]
            where = None if problem.coords is None else problem.coords[rows]
            packed = infer.pack(sp.csr_matrix(problem.counts[rows]), index, where)
            batch = Batch(**{field: packed[field] for field in infer.FIELDS})
            seen = {
                "tokens": tokens[rows].astype(np.int32),
                "edges": ruler.edges[rows].astype(np.float32),
                "scale": ruler.scale[rows],
                "depth": problem.depth[rows].astype(np.float32),
            }
            seen = {name: _spread(values, here) for name, values in seen.items()}
            found = self._call(variables, batch, constants, _spread(problem.hidden[rows], here), seen)
            found = np.asarray(found, np.float32)[here]
            if result is None:
                result = np.zeros((starts[-1], *found.shape[2:]), np.float32)
            for row, values in zip(rows, found, strict=True):
                result[starts[row] : starts[row + 1]] = values[problem.hidden[row]]
        return result

    def _indices(self, problem: Problem) -> list[np.ndarray]:
        """Return the rows of each batch, -1 in the padding: a bag, a whole sample, or cells apart. [B, C]"""
        together = getattr(self._module, "SAMPLE", False)
        bags = list(problem.bags)
        if together is True:
            bags = [np.flatnonzero(problem.samples == code) for code in np.unique(problem.samples)]
        most = max(map(len, bags)) if together != "bag" else max(self._least, *map(len, bags))
        sizes = [infer.size_up(len(bag), 64) if together is True else most for bag in bags]
        padded = [np.pad(bag, (0, size - len(bag)), constant_values=-1) for bag, size in zip(bags, sizes, strict=True)]
        return [bag[None] if together else bag[:, None] for bag in padded]


def _spread(values: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Return values of cells at their places in a batch, zeros in the padding. [cells, ...] -> [B, C, ...]"""
    out = np.zeros((*here.shape, *values.shape[1:]), values.dtype)
    out[here] = values
    return out
