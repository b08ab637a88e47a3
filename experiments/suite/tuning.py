"""Fine-tuning inside a suite: a run goes on learning from the visible counts of the cells that it is then asked about.

CellPLM's setting for genes that a spatial study did not measure (Wen et al., ICLR 2024): the study without its held-out
genes and single cells that have them are trained on together, each in bags of its own cells; then the study alone is
asked. Every run learns what it was pre-trained on, or what the suite says for its model, in the loop that trains all.

Differences from CellPLM's own fine-tuning: the number of updates is fixed, where the original keeps the epoch of the
least validation loss; one schedule for all models, where the original lowers its rate on a plateau; what is learned
from is the cells that are scored and the reference cells that baselines see, where the original takes whole studies.
"""

import contextlib
import dataclasses
import io
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from configs import finetune_pretraining
from experiments.training import finetuning
from scfm_jax import api
from scfm_jax.inference import bags
from scfm_jax.saving import checkpoint
from scfm_jax.tasks.cells.transfer import Steps
from scfm_jax.tasks.imputation.imputation import Problem
from scfm_jax.training import loop, step

BATCH = 8
"""Bags of a batch of published models, which bring no data options."""


class Bags:
    """A `train.Loader` of the cells of a problem: a batch is of one tissue sample, or of the cells beside them.

    Args:
      problem: in the model's own genes. bag, batch: cells of a bag, bags of a batch. labels: names that the model
        expects, all unknown here. seed: of the cells of each step.

    Attributes:
      measured: what each part measured. [parts, V]
    """

    def __init__(self, problem: Problem, *, bag: int, batch: int, labels: list[str], seed: int):
        n, self._shape, self._labels, self._seed = len(problem.hidden), (batch, bag), labels, seed
        others = [np.arange(n, len(problem.counts))] if len(problem.counts) > n else []
        self._parts = [np.flatnonzero(problem.samples == code) for code in np.unique(problem.samples)] + others
        self._counts = sp.csr_matrix(problem.counts)
        self._width = bags.size_up(int(np.diff(self._counts.indptr).max()), 256)
        self._coords = np.full((2, len(problem.counts), 2), np.nan, np.float32)
        self._fields = problem.field_coords is not None
        for place, coords in zip(self._coords, (problem.coords, problem.field_coords), strict=True):
            if coords is not None:
                place[:n] = coords
        self.measured = np.stack([problem.known[rows].any(0) for rows in self._parts])

    def batch(self, step: int) -> dict[str, Any]:
        """Return the batch of a step: random cells of a part, which comes as often as it has cells."""
        rows, part = self._draw(step)
        return self._pack(rows, part, self._counts[rows])

    def iter(self, start_state: Mapping[str, int] | None = None) -> Steps:
        """Return the endless batches from a position on."""
        return Steps(self, start_state["step"] if start_state else 0)

    def epoch_batches(self) -> Iterator[dict[str, Any]]:
        """Yield all cells once, the last batch of each part padded."""
        for rows, part in self._passes():
            yield self._pack(rows, part, self._counts[rows])

    def _draw(self, step: int) -> tuple[np.ndarray, int]:
        """Return the rows of a step, and which part they are of."""
        rng = np.random.default_rng([self._seed, step])
        sizes = np.array([len(rows) for rows in self._parts])
        part = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        return rng.permutation(self._parts[part])[: np.prod(self._shape)], part

    def _passes(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the rows of each batch of a pass over all cells, and which part they are of."""
        size = int(np.prod(self._shape))
        for part, rows in enumerate(self._parts):
            for start in range(0, len(rows), size):
                yield rows[start : start + size], part

    def _pack(self, rows: np.ndarray, part: int, counts: sp.csr_matrix) -> dict[str, Any]:
        """Return the fields of a batch of counts of rows; all have the same shape, so that there is one compilation."""
        index = np.full(self._shape, -1, np.int64)
        index.flat[: len(rows)] = rows
        coords, in_field = self._coords[:, rows]
        fields = in_field if self._fields else None
        packed = bags.pack(counts, index, coords, self._labels, field_coords=fields)
        wide = [(0, 0), (0, 0), (0, self._width - packed["genes"].shape[-1])]
        packed["genes"] = np.pad(packed["genes"], wide, constant_values=self._counts.shape[1])
        packed["counts"] = np.pad(packed["counts"], wide)
        return packed | {"study": np.full(index.shape, part, np.int32)}


def fine_tune(
    run: api.Run,
    problem: Problem,
    seed: int,
    *,
    steps: int,
    learning_rate: float,
    changes: Mapping[str, Mapping[str, Any]],
) -> api.Run:
    """Return the run after so many updates of all its weights on what is visible of all cells of the problem.

    Args:
      problem: in the run's own genes.
      seed: of the cells of each step and of all that training draws.
      learning_rate: the peak, after a warm-up of a twentieth of the steps.
      changes: {model: {"inputs": ..., "loss": ...}}, options that a model has otherwise than in pre-training.

    Raises:
      ValueError: the loss does not stay finite.
    """
    config = {"inputs": {}, "loss": {}, **run.meta["config"]}
    changed = changes.get(run.name, {})
    inputs, loss = ({**config[part], **changed.get(part, {})} for part in ("inputs", "loss"))
    inputs |= {"covariates": False} if "covariates" in inputs else {}  # batches and studies are others
    loader = Bags(problem, seed=seed, **sizes(run))
    objective = step.pretraining(run.module, run.model, inputs, loss)
    config = {**config, "inputs": inputs, "loss": loss}
    return trained(run, objective, loader, config, seed, steps=steps, optimizer=optimizer(learning_rate))


def optimizer(learning_rate: float) -> dict[str, Any]:
    """Return keys of `config.optim` for all weights, with that peak."""
    return finetune_pretraining.get_config("full").optim.to_dict() | {"learning_rate": learning_rate}


def sizes(run: api.Run) -> dict[str, Any]:
    """Return the bag, batch and labels of `Bags` that a run was trained with."""
    data = run.meta["config"].get("data", {})
    return {"bag": run.rules.bag, "batch": data.get("batch") or BATCH, "labels": list(data.get("labels", ()))}


def trained(
    run: api.Run,
    objective: step.Objective,
    loader: Bags,
    config: Mapping[str, Any],
    seed: int,
    *,
    steps: int,
    optimizer: Mapping[str, Any],
    how: str = "fine-tuned",
    **validation: Any,
) -> api.Run:
    """Return the run with the weights that were best by its validations, or else after the last step.

    Args:
      steps, seed: as of `fine_tune`. optimizer: keys of `config.optim`.
      how: it was trained, for the run's source.
      validation: `validation`, `eval_every` and `patience` of `loop.fit`.

    Raises:
      ValueError: the loss does not stay finite.
    """
    constants = run.complete_constants(loader.epoch_batches(), loader.measured, say=lambda _: None)
    scratch = tempfile.TemporaryDirectory(prefix="suite_tuning", ignore_cleanup_errors=True)  # of a save cut short
    with scratch as folder, contextlib.redirect_stdout(io.StringIO()):
        loop.fit(
            objective,
            loader,
            constants,
            {"model": run.name, "config": config},
            folder,
            optimizer=optimizer,
            steps=steps,
            seed=seed,
            log_every=0,
            keep=1,
            tensorboard=False,
            initial=finetuning.begin_with(run.variables, run.source),
            **validation,
        )
        saved = pathlib.Path(folder, "checkpoints")
        best = checkpoint.read_best(saved)
        kept = checkpoint.restore(saved, step=best and best[0], only=("params", "buffers"))
    variables = {"params": kept.state["params"], **kept.state.get("buffers", {})}
    return dataclasses.replace(run, variables=variables, source=f"{run.source}, {how} for {kept.step} updates")
