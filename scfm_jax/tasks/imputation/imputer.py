"""Predict the hidden entries of problems with a model, compiled once for any weights.

What a model must offer is `impute` of its file (see `scfm_jax.models`); a model without it does not predict expression.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
import scipy.sparse as sp
from flax import linen as nn

from scfm_jax.inference import bags, infer
from scfm_jax.tasks.imputation.bins import Ruler
from scfm_jax.tasks.imputation.imputation import Problem
from scfm_jax.training import pace
from scfm_jax.types import Batch


class Imputer:
    """A model that imputes, compiled once for any weights.

    Args:
      module, model: its file and the network. config: of the run, a plain dict. constants: that came with the weights;
        of what they lack, that of the visible counts of each problem is taken. say: is told so, once.

    Raises:
      ValueError: the model does not predict expression.
    """

    def __init__(
        self,
        module: ModuleType,
        model: nn.Module,
        config: Mapping[str, Any],
        constants: Mapping[str, Any],
        say: Callable[[str], None] = print,
    ):
        if not hasattr(module, "impute"):
            name = module.__name__.rpartition(".")[2]
            raise ValueError(f"model {name} does not predict expression (it has no `impute`): choose another model")
        inputs, loss = dict(config.get("inputs", {})), dict(config.get("loss", {}))
        self._module, self._constants, self._inputs, self._say = module, dict(constants), inputs, say
        self._tell = say
        self._rules = bags.rules(module, config)
        self._call = jax.jit(functools.partial(module.impute, model, inputs=inputs, loss=loss))
        self.binning = {key: inputs[key] for key in ("n_bins", "target_sum", "log") if key in inputs}
        """Options of `bins.fit` that the model was trained with."""
        rates = (inputs["zero_rate"], inputs["nonzero_rate"]) if inputs.get("mask") == "stratified" else (1, 1)
        self.zeros = rates[0] / rates[1] if min(rates) else 1.0
        """How many times as often as others zeros were hidden in training, which the shares of bins reflect."""

    def __call__(self, variables: Mapping[str, Any], problem: Problem, ruler: Ruler) -> np.ndarray:
        """Return the prediction of the hidden entries, float32. [h] or [h, n_bins]

        An entry that is asked for and known (see `Problem`) is not masked: the model sees it as it is.
        """
        constants = self._all_constants(problem)
        starts = np.concatenate([[0], np.cumsum(problem.hidden.sum(1))])
        tokens, result = ruler.bins(problem.counts), None
        for index in pace.counted(self._indices(problem), "imputed batch", self._tell):
            here, rows = index >= 0, index[index >= 0]
            asked = {
                "hidden": problem.measured & ~problem.known[rows],
                "tokens": tokens[rows].astype(np.int32),
                "edges": ruler.edges[rows].astype(np.float32),
                "scale": ruler.scale[rows],
                "depth": problem.depth[rows].astype(np.float32),
            }
            asked = {name: spread(values, here) for name, values in asked.items()}
            batch = self._batch(problem, index)
            predicted = np.asarray(self._call(variables, Batch(**batch), constants, asked), np.float32)[here]
            if result is None:
                result = np.zeros((starts[-1], *predicted.shape[2:]), np.float32)
            for row, values in zip(rows, predicted, strict=True):
                result[starts[row] : starts[row + 1]] = values[problem.hidden[row]]
        return result

    def _all_constants(self, problem: Problem) -> dict[str, Any]:
        """Return all constants, see `bags.complete_constants`."""
        batches, measured = (self._batch(problem, index) for index in self._indices(problem)), problem.measured[None]
        options = {"measured": measured, "say": self._say}
        constants = bags.complete_constants(self._module, self._constants, batches, self._inputs, **options)
        if bags.missing(self._module, self._constants):
            self._say = lambda _: None
        return constants

    def _batch(self, problem: Problem, index: np.ndarray) -> dict[str, Any]:
        """Return the fields of a batch of the rows `index`. [B, C]"""
        rows = index[index >= 0]
        where = {name: getattr(problem, name) for name in ("coords", "field_coords")}
        where = {name: values[rows] for name, values in where.items() if values is not None}
        packed = bags.pack(sp.csr_matrix(problem.counts[rows]), index, **where)
        return {field: packed[field] for field in infer.FIELDS}

    def _indices(self, problem: Problem) -> list[np.ndarray]:
        """Return the rows of each batch, -1 in the padding: a bag, a whole sample, or cells apart. [B, C]"""
        groups = bags.by_code(problem.samples) if self._rules.together is True else problem.bags
        return self._rules.batches(groups, min(self._rules.cells, max(map(len, groups))))


def spread(values: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Return values of cells at their places in a batch, zeros in the padding. [cells, ...] -> [B, C, ...]"""
    out = np.zeros((*here.shape, *values.shape[1:]), values.dtype)
    out[here] = values
    return out
