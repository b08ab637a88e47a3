"""Tuning a run to denoise a study, inside a suite: on genes flipped to zero by the law that it is then scored by.

What the run may see are counts that were spoiled by a first set of flips, which are scored. Of these a second set is
held back: those entries stop the training, and are neither seen nor learnt from. Of what is left some are flipped anew
in each step, and are what is learnt. CellPLM's evaluation (Wen et al., ICLR 2024) has fixed sets of a tenth each.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.suite import tuning
from scfm_jax import api
from scfm_jax.inference.bags import size_up
from scfm_jax.tasks.imputation import bins, denoising, denoising_objective
from scfm_jax.tasks.imputation.imputation import Problem
from scfm_jax.tasks.imputation.imputer import spread


class Flips(tuning.Bags):
    """Bags of cells of which some expressed genes look like zeros, and which: new ones each step, or those held back.

    Args:
      problem: spoiled counts in the model's own genes, all of them known. rate: share of a cell's expressed genes that
        are held back, and of the others that are flipped in a step. binning: options of `bins.fit`. sizes: of
        `tuning.Bags`.
    """

    def __init__(self, problem: Problem, *, rate: float, binning: Mapping[str, Any], seed: int, **sizes: Any):
        left, held = denoising.flip(problem.counts, rate, np.random.default_rng([seed, 0]))
        super().__init__(dataclasses.replace(problem, counts=left), seed=seed, **sizes)
        self._held, self._rate, self._binning = sp.csr_matrix(problem.counts * held), rate, binning
        self._most = size_up(int(held.sum(1).max()), 8)

    def batch(self, step: int) -> dict[str, Any]:
        """Return the batch of a step: random cells, some of whose genes are flipped and asked for."""
        rows, part = self._draw(step)
        counts = self._counts[rows].toarray()
        spoiled, flipped = denoising.flip(counts, self._rate, np.random.default_rng([self._seed, 1, step]))
        return self._ask(rows, part, spoiled, sp.csr_matrix(counts * flipped))

    def epoch_batches(self) -> Iterator[dict[str, Any]]:
        """Yield all cells once, without the entries held back, which are asked for."""
        for rows, part in self._passes():
            yield self._ask(rows, part, self._counts[rows].toarray(), self._held[rows])

    def _ask(self, rows: np.ndarray, part: int, seen: np.ndarray, asked: sp.csr_matrix) -> dict[str, Any]:
        """Return the batch of rows as they are seen [n, V], and of the entries that are asked for."""
        packed, depth = self._pack(rows, part, sp.csr_matrix(seen)), seen.sum(1)
        flipped = np.full((len(rows), self._most), seen.shape[1], np.int32)
        truth = np.zeros(flipped.shape, np.float32)
        cells, genes = asked.nonzero()
        place = np.arange(len(cells)) - asked.indptr[cells]
        flipped[cells, place], truth[cells, place] = genes, asked.data
        ruler = bins.fit(seen, depth, **self._binning)
        labels = denoising_objective.told(ruler, seen, depth) | {"flipped": flipped, "truth": truth}
        here = packed["index"] >= 0
        packed["labels"] |= {name: spread(values, here) for name, values in labels.items()}
        packed["labels"]["flipped"][~here] = seen.shape[1]
        return packed


def fine_tune(
    run: api.Run,
    problem: Problem,
    seed: int,
    *,
    steps: int,
    learning_rate: float,
    rate: float,
    every: int,
    patience: int,
    whole: bool = False,
) -> api.Run:
    """Return the run with the weights that told best what was held back, of updates of all its weights.

    Args:
      problem: in the run's own genes.
      seed: of the flips, the cells of each step, and all that training draws.
      steps, learning_rate: as of `tuning.fine_tune`; fewer steps where they stop early.
      rate: share of a cell's expressed genes that are held back, and of the others that are flipped in a step.
      every, patience: steps from one validation to the next, and how many of these may be no better than before.
      whole: of `denoising_objective.objective`.

    Raises:
      ValueError: the loss does not stay finite.
    """
    config = {"inputs": {}, "loss": {}, **run.meta["config"]}
    inputs, loss = dict(config["inputs"]), dict(config["loss"])
    binning = {name: inputs[name] for name in ("n_bins", "target_sum", "log") if name in inputs}
    loader = Flips(problem, rate=rate, binning=binning, seed=seed, **tuning.sizes(run))
    objective = denoising_objective.objective(
        run.module, run.model, inputs, loss, log=binning.get("log", True), whole=whole
    )
    stop = {"validation": loader, "eval_every": every, "patience": patience}
    options = {"steps": steps, "optimizer": tuning.optimizer(learning_rate), **stop}
    return tuning.trained(run, objective, loader, config, seed, **options)
