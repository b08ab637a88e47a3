"""Cell types from the embeddings of cells: a linear or MLP head, and as much of the model as `tune` has trained.

With head "transformer" (see `heads`) a block over the cell's genes makes what is called its embedding here.

  loss = mean cross-entropy of the cells whose label is known, of head((embedding - mean) map)

`mean` and `map` [D, K] are of the embeddings that the run begins with (`standardised`): their first K principal
components with deviations brought closer to each other, together of mean squared length 1. So one learning rate suits
the heads of all models, whose embeddings have from tens to thousands of numbers, most of them often the depth of a cell
over and over. How close was chosen by how well heads that learned on one of two studies of PBMCs name the cells of the
other: 0.93, 0.84 and 0.84 for CellPLM, scEMB and Exceiver, where numbers of equal deviation give 0.93, 0.77 and 0.77,
and components of equal deviation 0.85, 0.82 and 0.82. CellPLM's own recipe leaves both out.
With `mean` "running" the mean is that of each batch in training, and afterwards a moving average of those, a buffer
under "task": where the whole model is tuned, all embeddings can shift together, and the head does not see it.

In training the network is as in evaluation, so that what a run begins with is what the embeddings are worth as they
are: nothing is hidden, dropped or drawn, unless `noise` keeps the model's dropout and the draws of its latent, or
`hide` its masks, too. (Factors beside a few kernels cannot make a latent's variance small: a head learned on draws of
CellPLM's does not know their means.) A latent's own loss is left out, as CellPLM does.

Scores: macro-F1 and balanced accuracy over the types that the truth has, accuracy, AUROC (one type against the others,
mean over types), ECE (15 equal bins of the probability of the predicted type; Guo et al., ICML 2017).
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax import models
from scfm_jax.inference import infer
from scfm_jax.layers.head import Head
from scfm_jax.tasks.cells import heads
from scfm_jax.training.step import Objective, counting
from scfm_jax.training.tuning import TASK
from scfm_jax.types import Array, Batch, TrainState

METRICS = {
    "f1": "macro-F1",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "ece": "ECE (lower: better)",
}
FROZEN = (f"^{TASK}/(mean|map)$",)
"""Parameters that no optimiser changes."""
MOST_CELLS = 512
"""Cells that `standardised` looks at."""
COMPONENTS, EVENED = 64, 0.75
"""What the head sees, and the power of its deviation that each component is divided by: 0 PCA, 1 whitening."""
KEPT = 0.95
"""What is kept of the running mean at an update."""
MEANS = ("start", "running")
LEAST = 1e-3, 1e-2
"""Deviations count as at least this: of a number relative to all numbers' size, of a component to the first."""
BINS = 15


def objective(
    module: ModuleType,
    model: nn.Module,
    inputs: Mapping[str, Any],
    frequencies: Sequence[float],
    *,
    label: str = "cell_type",
    head: str = "embedding",
    layers: int = 1,
    width: int = 64,
    dropout: float = 0.0,
    balanced: bool = False,
    hide: bool = False,
    noise: bool = False,
    standardise: bool = True,
    mean: str = "start",
) -> Objective:
    """Return the objective of annotation.

    Args:
      inputs: keywords of the module's `prepare`.
      frequencies: how many training cells each type has. [classes]
      label: of Batch.labels.
      head: what it sees of a cell, "embedding" or, through a block over its genes, "transformer"; see `heads`.
      layers, width, dropout: of the head; one layer is a linear head, more have ReLUs between, dropout is before each.
      balanced: weigh cells by the inverse frequency of their type.
      noise: keep the model's dropout and draws in training. hide: and what it hides in pre-training.
      standardise: the head sees what `features` makes of an embedding.
      mean: which it subtracts, that of the embeddings that the run begins with ("start") or of those now ("running").
    """
    if mean not in MEANS:
        raise ValueError(f"task.mean={mean!r}: must be one of {', '.join(MEANS)}")
    running = standardise and mean == "running"
    counts = np.asarray(frequencies, np.float32)
    inverse = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / max((counts > 0).sum(), 1), 0)
    classify = Head(len(counts), width, layers, dropout)

    def embed(variables: Any, batch: Batch, constants: Any, rngs: Mapping[str, Array], step: Any, train: bool) -> tuple:
        prepared = module.prepare(batch, constants, rngs["prepare"], step=step, train=train, **inputs)
        mutable = ["buffers"] if train else []
        outputs, changed = model.apply(variables, prepared, train=train, rngs=rngs, mutable=mutable)
        labels = prepared.get("labels", batch.labels)[label]
        tokens = module.tokens(prepared).astype(jnp.float32)
        return (outputs, prepared), jnp.where(prepared["cell_mask"], labels, -1), tokens, changed

    def init(rng: Array, batch: Batch, constants: dict[str, Array]) -> Any:
        keys = jax.random.split(rng, 5)
        hidden = {name: models.defaults(module, "inputs")[name] for name in module.TUNING["visible"]}
        whole = {**inputs, **hidden}  # parameters of what only pre-training uses are there, too
        prepared = module.prepare(batch, constants, keys[0], step=0, train=True, **whole)
        rngs = dict(zip(("params", "dropout", "latent"), keys[1:4], strict=True))
        outputs, variables = model.init_with_output(rngs, prepared, train=True)
        block, cells = {}, outputs.cells
        if head != "embedding":
            prepared = module.prepare(batch, constants, keys[0], step=0, train=False, **inputs)
            outputs = model.apply(variables, prepared, rngs={"latent": keys[3]})
            block = heads.init(jax.random.fold_in(keys[4], 1), head, module, outputs, prepared)
            cells = heads.read(block, module, outputs, prepared)
        size = cells.shape[-1]
        fixed = {"mean": jnp.zeros(size), "map": jnp.eye(size, min(size, COMPONENTS))} if standardise else {}
        layers = classify.init(keys[4], features(fixed, cells.astype(jnp.float32)))["params"]
        buffers = {TASK: {"mean": fixed.pop("mean")}} if running else {}
        return {**variables, **buffers, "params": {**variables["params"], TASK: {**layers, **block, **fixed}}}

    def loss(params, buffers, batch, constants, rng, step, train):
        moving, keys = train and (noise or hide), jax.random.split(rng, 4)
        rngs = dict(zip(("prepare", "dropout", "latent"), keys[:3], strict=True))
        variables, model_params = ({name: x for name, x in tree.items() if name != TASK} for tree in (buffers, params))
        variables["params"] = model_params
        seen, target, tokens, changed = embed(variables, batch, constants, rngs, step, moving)
        drop = jax.random.fold_in(keys[3], 1) if train and dropout else None
        cells = heads.read(params[TASK], module, *seen, dropout, drop).astype(jnp.float32)
        task = {**params[TASK], **buffers.get(TASK, {})}
        if running and train:
            task["mean"] = (cells * batch.cell_mask[..., None]).sum((0, 1)) / jnp.maximum(batch.cell_mask.sum(), 1)
            moved = KEPT * buffers[TASK]["mean"] + (1 - KEPT) * jax.lax.stop_gradient(task["mean"])
            changed = {**changed, TASK: {"mean": moved}}
        x = features(task, cells)
        logits = classify.clone(train=train).apply({"params": _layers(params[TASK])}, x, rngs={"dropout": keys[3]})
        labelled, right = (target >= 0).astype(jnp.float32), jnp.maximum(target, 0)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), right[..., None], -1)[..., 0]
        hit, even = labelled * (logits.argmax(-1) == target), labelled * jnp.asarray(inverse, jnp.float32)[right]
        weight = even if balanced else labelled
        total, number = (weight * nll).sum(), weight.sum()
        metrics = {"loss": (total, number), "accuracy": (hit.sum(), labelled.sum())}
        metrics |= {"balanced_accuracy": ((even * hit).sum(), even.sum()), "tokens": (tokens, jnp.ones(()))}
        return total / jnp.maximum(number, 1e-9), (metrics, {**buffers, **changed})

    project = getattr(module, "project", None)
    return Objective(init, loss, project=project, **counting(module, model, inputs, embed=True))


OPTIONS = {p.name: p.default for p in inspect.signature(objective).parameters.values() if p.kind is p.KEYWORD_ONLY}


def standardised(
    module: ModuleType,
    model: nn.Module,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    state: TrainState,
    batches: Iterable[Mapping[str, Any]],
) -> TrainState:
    """Return the state of step 0 whose head sees what `features` makes of the embeddings of up to MOST_CELLS cells.

    Numbers are made of equal deviation; their first principal components keep their deviation to the power 1 - EVENED.
    Deviations below LEAST count as that, so what is all but constant is not blown up to rounding errors.

    Args:
      params: of the model alone. batches: of the training cells, in the store's vocabulary.
    """
    taken = list(_some(batches))
    n = sum(int(batch["cell_mask"].sum()) for batch in taken)
    variables = {"params": params, **state.buffers}
    reader = heads.reader(module, model, variables, state.params[TASK])
    x = infer.embed(module, *reader, state.constants, taken, n, inputs=inputs).astype(np.float64)
    mean, matrix = whitening(x, state.params[TASK]["map"].shape[1])
    whitened = {"mean": mean.astype(np.float32), "map": matrix.astype(np.float32)}

    def put(task: Mapping[str, Any]) -> dict[str, Any]:
        return {name: jax.device_put(whitened[name], x.sharding) if name in whitened else x for name, x in task.items()}

    buffers = {name: put(x) if name == TASK else x for name, x in state.buffers.items()}
    return state.replace(params={**state.params, TASK: put(state.params[TASK])}, buffers=buffers)


def whitening(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean [D], map [D, size]) of embeddings [n, D], see `standardised`; columns without a component are 0."""
    mean = x.mean(0)
    scale = np.maximum(x.std(0), LEAST[0] * np.sqrt((x**2).mean()) or 1)
    _, deviations, components = np.linalg.svd((x - mean) / scale / np.sqrt(len(x)), full_matrices=False)
    deviations = np.maximum(deviations, LEAST[1] * deviations[0] or 1)[:size]
    evened = deviations**EVENED
    length = np.sqrt(((deviations / evened) ** 2).sum())
    matrix = np.zeros((x.shape[1], size))
    matrix[:, : len(deviations)] = components[:size].T / scale[:, None] / evened / length
    return mean, matrix


def features(task: Mapping[str, Any], cells: Array) -> Array:
    """Return what the head sees of embeddings: (cells - mean) map, where the parameters under "task" have them."""
    if "map" not in task:
        return cells
    return jnp.matmul(cells - task["mean"], jnp.asarray(task["map"]), precision="highest")


def _layers(task: Mapping[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in task.items() if name not in ("mean", "map", heads.BLOCK)}


def _some(batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield batches up to MOST_CELLS cells, each cell with a row of its own."""
    n = 0
    for batch in batches:
        if n >= MOST_CELLS:
            return
        present = np.asarray(batch["cell_mask"])
        index = np.full(present.shape, -1, np.int64)
        index[present] = n + np.arange(present.sum())
        n += int(present.sum())
        yield {**batch, "index": index}


def probabilities(params: Mapping[str, Any], options: Mapping[str, Any], embedding: np.ndarray) -> np.ndarray:
    """Return the probability of each type for each cell, float64. [n, D] -> [n, classes]

    Args:
      params: those under "task". options: of `objective`.
    """
    layers = _layers(params)
    n_classes = np.shape(layers[f"linear_{options['layers'] - 1}"]["bias"])[0]
    head = Head(n_classes, options["width"], options["layers"], options["dropout"])
    x = features(params, jnp.asarray(embedding, jnp.float32))
    logits = np.asarray(head.apply({"params": layers}, x), np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


# --------------------------------------------------------------------------------------------------------------- scores


def score(truth: Sequence[str], shares: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Score predicted probabilities [n, classes] against true types [n]; return the METRICS, and "cells" and "types".

    Raises ValueError where lengths differ, or a true type is not among the classes.
    """
    from sklearn.metrics import f1_score, recall_score, roc_auc_score  # here: a training run needs none of it

    classes = list(classes)
    if shares.shape != (len(truth), len(classes)):
        raise ValueError(f"probabilities {shares.shape}: {len(truth)} cells and {len(classes)} types are needed")
    if unknown := sorted(set(truth) - set(classes)):
        raise ValueError(f"true types {', '.join(unknown)}: the head was trained on {', '.join(classes)} alone")
    y = np.array([classes.index(name) for name in truth])
    predicted, present = shares.argmax(1), np.unique(y)
    return {
        "f1": float(f1_score(y, predicted, labels=present, average="macro", zero_division=0)),
        "accuracy": float((y == predicted).mean()),
        "balanced_accuracy": float(recall_score(y, predicted, labels=present, average="macro", zero_division=0)),
        "auroc": float(np.mean([roc_auc_score(y == c, shares[:, c]) for c in present])) if len(present) > 1 else np.nan,
        "ece": calibration_error(y, shares),
        "cells": len(y),
        "types": len(present),
    }


def calibration_error(y: np.ndarray, shares: np.ndarray) -> float:
    """Return the expected calibration error: |accuracy - confidence| of equal bins of confidence, weighted by cells."""
    confidence, hit = shares.max(1), shares.argmax(1) == y
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = (np.bincount(place, values, BINS) for values in (hit.astype(float), confidence))
    return float(np.abs(np.subtract(*sums)).sum() / len(y))


def confusion(truth: Sequence[str], shares: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return how many cells of each type (row) are taken for each (column). [classes, classes]"""
    from sklearn.metrics import confusion_matrix

    named = [classes[i] for i in shares.argmax(1)]
    return confusion_matrix(list(truth), named, labels=list(classes))
