"""How well a class token classifies cells: the accuracy of Exceiver's auxiliary label (Connell et al., LMRL 2022).

The paper trains the token to tell 24 tissues and reports an accuracy of 0.61 on validation cells of the studies that it
trained on. Here for any model whose outputs have logits["classes"], on cells of any file. Cells whose label the model
does not know cannot be right; they are counted apart and left out of the scores.

In training and validation some genes are always hidden, and a small model that has never seen a whole cell may say
something else of it: one gave blood 0.67 of its probability for PBMCs with hidden genes, 0.02 for whole ones.
"""

import functools
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from sklearn.metrics import f1_score, recall_score

from scfm_jax.inference import infer
from scfm_jax.types import Array, Batch


def predict(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    constants: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    n: int,
    *,
    inputs: Mapping[str, Any] | None = None,
    hide: bool = True,
    seed: int = 0,
) -> np.ndarray:
    """Return the probabilities of the classes for n cells, float32. [n, classes]

    Other arguments are as for `infer.embed`. ValueError where the model has no class token.

    Args:
      hide: genes are hidden as in training; `seed` decides which. Otherwise nothing is.
    """
    if not getattr(model, "n_classes", 0):
        raise ValueError("the model has no class token: train one with labels, such as config.data.labels=tissue")
    forward = jax.jit(functools.partial(_classes, module, model, dict(inputs or {}), hide))
    result, seen = None, np.zeros(n, bool)
    for i, batch in enumerate(batches):
        arrays = Batch(**{field: batch[field] for field in infer.FIELDS})
        probabilities = np.asarray(forward(variables, constants, arrays, jax.random.fold_in(jax.random.key(seed), i)))
        here = batch["index"] >= 0
        rows = batch["index"][here]
        result = np.zeros((n, probabilities.shape[-1]), np.float32) if result is None else result
        result[rows], seen[rows] = probabilities[here], True
    if result is None or not seen.all():
        raise ValueError(f"{int((~seen).sum())} of {n} cells are in no batch, so nothing is said of them")
    return result


def score(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return how the most probable classes meet the truth, class indices, -1 where there is none. [n, C], [n]

    Returns:
      cells that count; accuracy; balanced_accuracy (mean recall of the classes there are); macro_f1; nll, the mean
      negative log probability of the truth; majority, the accuracy of always saying the most common class.
    """
    labelled = truth >= 0
    if not labelled.any():
        raise ValueError("no cell has a label that the class token knows")
    true, said = truth[labelled], probabilities[labelled].argmax(1)
    present = np.unique(true)
    return {
        "cells": len(true),
        "accuracy": float((said == true).mean()),
        "balanced_accuracy": float(recall_score(true, said, labels=present, average="macro", zero_division=0)),
        "macro_f1": float(f1_score(true, said, labels=present, average="macro", zero_division=0)),
        "nll": float(-np.log(np.maximum(probabilities[labelled, true], 1e-12)).mean()),
        "majority": float(np.bincount(true).max() / len(true)),
    }


def _classes(
    module: ModuleType,
    model: nn.Module,
    inputs: Mapping[str, Any],
    hide: bool,
    variables: Mapping[str, Any],
    constants: Mapping[str, Array],
    batch: Batch,
    key: Array,
) -> Array:
    """Return the probabilities of the classes of a batch. [B, C, classes]"""
    prepared = module.prepare(batch, constants, key, step=0, train=False, **inputs)
    if not hide:
        prepared = prepared | {"hidden": jnp.zeros_like(prepared["hidden"])}
    return jax.nn.softmax(model.apply(variables, prepared, train=False).logits["classes"])
