"""Adaptation inside a suite: a run goes on learning from a study what it was pre-trained on, by few parameters.

scEMB's setting for batch integration (Hsieh et al., bioRxiv 2024): low-rank factors or prefixes are trained on the
study, no label is read, and the cells are embedded. The paper says neither how long nor at which rate: here it is at
most `steps` updates, of which those are kept that validated best by the loss of pre-training on cells that nothing was
learned from. The scored cells are among those that a run sees, as they are for Harmony and for principal components.
"""

import contextlib
import dataclasses
import io
import pathlib
import tempfile

import numpy as np

from configs import finetune_pretraining
from data_pipeline.store import spatial
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tuning import BATCH, Bags
from experiments.training import finetuning
from scfm_jax import api, models
from scfm_jax.saving import checkpoint
from scfm_jax.tasks.cells import embedding
from scfm_jax.tasks.imputation import imputation
from scfm_jax.training import loop, step, tuning

CELLS = 1000
"""Most cells of a study that are drawn to learn from and to validate on."""
VALIDATION = 0.1
"""Share of them that is validated on."""


def problems(
    entrant: Entrant, study: Study, seed: int, cells: int = CELLS
) -> tuple[imputation.Problem, imputation.Problem]:
    """Return the cells of a study to learn from and to validate on, in the run's own genes, nothing of them hidden.

    The cells of a seed are the first of those that it draws for any task; batches are taken for tissue samples.
    """
    mapping, rows = entrant.mapping(study), study.draw(seed, cells)
    counts = mapping.apply(study.counts.take(rows)).toarray().astype(np.float32)
    measured = np.isin(np.arange(counts.shape[1]), mapping.index)
    samples = np.zeros(len(rows), int) if study.batches is None else embedding.encode(study.batches[rows])
    where = {"samples": samples}
    if study.coords is not None:
        fields = np.zeros(study.n, int) if study.batches is None else embedding.encode(study.batches)
        where |= {"coords": study.coords[rows], "field_coords": spatial.in_fields(study.coords, fields)[rows]}
    border = len(rows) - max(1, round(len(rows) * VALIDATION))

    def posed(part: slice) -> imputation.Problem:
        at = {name: values[part] for name, values in where.items()}
        return imputation.pose(counts[part], measured, np.zeros(counts[part].shape, bool), [], **at)

    return posed(slice(border)), posed(slice(border, None))


def adapt(
    run: api.Run,
    cells: tuple[imputation.Problem, imputation.Problem],
    seed: int,
    *,
    method: str,
    steps: int,
    every: int,
    patience: int,
) -> api.Run:
    """Return the run after at most so many updates of what `method` adds to it: those that validated best.

    Args:
      cells: of `problems`.
      seed: of the cells of each step and of all that training draws.
      method: of `scfm_jax.training.tuning`; its rate is that of `finetune_pretraining`.
      every: updates between validations. patience: validations without a new best that end it.

    Raises:
      ValueError: the loss does not stay finite.
    """
    config = {"inputs": {}, "loss": {}, **run.meta["config"]}
    inputs, data = dict(config["inputs"]), config.get("data", {})
    if config.get("task"):  # its head has learned from cells of which nothing was hidden
        inputs |= {name: models.defaults(run.module, "inputs")[name] for name in run.module.TUNING["visible"]}
    inputs |= {"covariates": False} if "covariates" in inputs else {}  # batches and studies are others
    tune = tuning.options(run.module, method=method)
    model = run.model.clone(**tuning.model_options(tune))
    shape = {"bag": run.rules.bag, "batch": data.get("batch") or BATCH, "labels": list(data.get("labels", ()))}
    loader, validation = (Bags(part, **shape, seed=seed) for part in cells)
    constants = run.complete_constants(loader.epoch_batches(), loader.measured, say=lambda _: None)
    scratch = tempfile.TemporaryDirectory(prefix="suite_adaptation", ignore_cleanup_errors=True)  # of a save cut short
    with scratch as folder, contextlib.redirect_stdout(io.StringIO()):
        loop.fit(
            tuning.objective(step.pretraining(run.module, model, inputs, dict(config["loss"])), tune),
            loader,
            constants,
            {"model": run.name, "config": {**config, "inputs": inputs}},
            folder,
            optimizer=finetune_pretraining.get_config(method).optim.to_dict() | {"frozen": tuning.frozen(tune)},
            steps=steps,
            seed=seed,
            log_every=0,
            eval_every=min(every, steps),
            patience=patience,
            keep=1,
            tensorboard=False,
            validation=validation,
            initial=finetuning.begin_with(run.variables, run.source),
        )
        saved = pathlib.Path(folder) / "checkpoints"
        best, _ = checkpoint.read_best(saved)
        state = checkpoint.restore(saved, step=best, only=("params", "buffers")).state
    variables = {"params": tuning.merged(state["params"], tune), **state.get("buffers", {})}
    source = f"{run.source}, adapted by {method} for {best} updates"
    return dataclasses.replace(run, model=model, variables=variables, source=source)
