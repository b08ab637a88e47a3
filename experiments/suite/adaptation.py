"""Adaptation inside a suite: a run goes on learning from a study what it was pre-trained on, by few parameters.

scEMB's setting for batch integration (Hsieh et al., bioRxiv 2024): low-rank factors or prefixes are trained on the
study, no label is read, and the cells are embedded. The paper says neither how long nor at which rate: here it is at
most `steps` updates, of which those are kept that validated best by the loss of pre-training on cells that nothing was
learned from. The scored cells are among those that a run sees, as they are for Harmony and for principal components.
"""

import dataclasses

import numpy as np

from configs import finetune_pretraining
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tuning import Bags, sizes, trained
from scfm_jax import api, models
from scfm_jax.tasks.imputation import imputation
from scfm_jax.training import step, tuning

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
    border = len(rows) - max(1, round(len(rows) * VALIDATION))

    def posed(part: slice) -> imputation.Problem:
        where = {name: values[rows[part]] for name, values in study.where.items()}
        return imputation.pose(counts[part], measured, np.zeros(counts[part].shape, bool), [], **where)

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
    inputs = dict(config["inputs"])
    if config.get("task"):  # its head has learned from cells of which nothing was hidden
        inputs |= {name: models.defaults(run.module, "inputs")[name] for name in run.module.TUNING["visible"]}
    inputs |= {"covariates": False} if "covariates" in inputs else {}  # batches and studies are others
    tune = tuning.options(run.module, method=method)
    model = run.model.clone(**tuning.model_options(tune))
    loader, validation = (Bags(part, **sizes(run), seed=seed) for part in cells)
    objective = tuning.objective(step.pretraining(run.module, model, inputs, dict(config["loss"])), tune)
    optimizer = finetune_pretraining.get_config(method).optim.to_dict() | {"frozen": tuning.frozen(tune)}
    stop = {"validation": validation, "eval_every": min(every, steps), "patience": patience}
    options = {"steps": steps, "optimizer": optimizer, "how": f"adapted by {method}", **stop}
    adapted = trained(run, objective, loader, {**config, "inputs": inputs}, seed, **options)
    params = tuning.merged(adapted.variables["params"], tune)
    return dataclasses.replace(adapted, model=model, variables={**adapted.variables, "params": params})
