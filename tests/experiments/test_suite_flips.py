"""Tuning to denoise: what is held back is never seen, and the objective is the score of what the model answers."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.suite import flips
from experiments.suite.counts import imputer
from scfm_jax import api
from scfm_jax.inference import infer
from scfm_jax.tasks.imputation import bins, denoising, denoising_objective, imputation
from scfm_jax.types import Batch
from tests.harness import suites


def problem(n: int = 48) -> imputation.Problem:
    """Return counts that are all known and all asked for."""
    everything = np.ones((n, suites.V), bool)
    return imputation.Problem(
        suites.counts(n, 0), everything, everything, everything[0], [np.arange(n)], np.zeros(n, int)
    )


def entries(batch: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts that a batch of all cells shows, and those that it asks for. [n, V], [n, V]"""
    here = batch["cell_mask"]
    rows, labels = batch["index"][here][:, None], batch["labels"]
    seen, asked = np.zeros((2, here.sum(), suites.V + 1), np.float32)
    seen[rows, batch["genes"][here]] = batch["counts"][here]
    asked[rows, labels["flipped"][here]] = labels["truth"][here]
    return seen[:, :-1], asked[:, :-1]


def flips_of(posed: imputation.Problem, **binning) -> flips.Flips:
    """Return the loader of a problem, all cells in one bag."""
    return flips.Flips(posed, rate=0.1, binning=binning, seed=0, bag=64, batch=1, labels=[])


def one_pass(run: api.Run, posed: imputation.Problem, **binning) -> tuple[Batch, dict, np.ndarray, np.ndarray]:
    """Return the one batch of a pass over all cells, constants, and what is seen and held back. [n, V], [n, V]"""
    loader = flips_of(posed, **binning)
    (whole,) = loader.epoch_batches()
    constants = run.complete_constants(loader.epoch_batches(), loader.measured, say=lambda _: None)
    constants = jax.tree.map(jnp.asarray, constants)
    return Batch(**{name: whole[name] for name in infer.FIELDS}), constants, *entries(whole)


def test_what_is_held_back_is_neither_seen_nor_learnt_from():
    posed, before = problem(), None
    loader = flips_of(posed)
    (whole,) = loader.epoch_batches()
    left, held = entries(whole)
    assert (held > 0).sum(1).tolist() == [int(k * 0.1) for k in (posed.counts > 0).sum(1)]
    assert (left + held == posed.counts).all() and not (left * held).any()
    for number in range(5):
        seen, asked = entries(loader.batch(number))
        assert (seen + asked == left).all() and not (seen * asked).any()
        assert (asked > 0).any(1).all() and (before is None or (asked != before).any()), "others in each step"
        before = asked
    assert (entries(flips_of(posed).batch(4))[1] == before).all()
    rows = whole["index"][whole["cell_mask"]]
    assert (whole["labels"]["tokens"][whole["cell_mask"]] == bins.fit(left, left.sum(1)).bins(left)[rows]).all()


MODELS = ["cellplm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sct", "exceiver", "sclong"))]


@pytest.mark.parametrize("model", MODELS)
def test_the_objective_is_the_score_of_what_the_model_answers(model):
    run = suites.entrant(model, "first", bag=64, batch=1)
    ask, posed, config = imputer(run), problem(), run.run.meta["config"]
    batch, constants, left, held = one_pass(run.run, posed, **ask.binning)
    seen = dataclasses.replace(posed, counts=left)
    ruler = bins.fit(left, seen.depth, **ask.binning)
    answer = ask(run.run.variables, seen, ruler)
    answer = ruler.counts(answer, posed.entries[0]) if answer.ndim == 2 else answer
    score = denoising.score(answer.reshape(held.shape), posed.counts, held > 0)
    made = denoising_objective.objective(run.run.module, run.run.model, config["inputs"], config["loss"])

    def loss(params):
        buffers = {name: x for name, x in run.run.variables.items() if name != "params"}
        return made.loss(params, buffers, batch, constants, None, 0, True)[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(run.run.variables["params"])
    assert float(value) == pytest.approx(score["rmse"] ** 2, rel=1e-3)
    sizes = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads)]
    assert np.isfinite(sizes).all() and max(sizes) > 0


def test_the_released_heads_error_is_that_of_all_entries_and_once_more_of_the_flipped():
    run = suites.entrant("cellplm", "first", bag=64, batch=1).run
    posed = problem()
    batch, constants, _, held = one_pass(run, posed)
    fake = types.SimpleNamespace(**vars(run.module))
    rates = np.random.default_rng(1).gamma(1, 1, suites.V).astype(np.float32)
    fake.impute = lambda model, variables, batch, *_, **__: jnp.broadcast_to(rates, (*batch.genes.shape[:2], suites.V))
    made = denoising_objective.objective(fake, run.model, {}, {}, whole=True)
    value, (metrics, _) = made.loss({}, {}, batch, constants, None, 0, True)
    said, true = np.log1p(1e4 * rates / rates.sum()), np.log1p(1e4 * posed.counts / posed.counts.sum(1, keepdims=True))
    errors = (said - true) ** 2
    assert float(value) == pytest.approx((errors.sum() + errors[held > 0].sum()) / errors.size, rel=1e-4)
    assert float(metrics["flipped"][0] / metrics["flipped"][1]) == pytest.approx(errors[held > 0].mean(), rel=1e-4)


@pytest.mark.slow
def test_tuning_tells_flipped_entries_better_stops_early_and_is_the_same_every_time():
    run = suites.entrant("cellplm", "first", bag=32, batch=2)
    truth = problem(90)
    spoiled, flipped = denoising.flip(truth.counts, 0.1, np.random.default_rng(0))
    posed = dataclasses.replace(truth, counts=spoiled)
    ask, ruler = imputer(run), bins.fit(spoiled, posed.depth)

    def error(variables) -> float:
        return denoising.score(ask(variables, posed, ruler).reshape(spoiled.shape), truth.counts, flipped)["rmse"]

    options = {"learning_rate": 2e-2, "rate": 0.1, "every": 10, "patience": 2}
    tuned = flips.fine_tune(run.run, posed, 0, steps=400, **options)
    updates = int(re.search(r"fine-tuned for (\d+) updates", tuned.source)[1])
    assert updates < 400 and updates % 10 == 0
    assert error(tuned.variables) < 0.8 * error(run.run.variables)
    again = flips.fine_tune(run.run, posed, 0, steps=400, **options)
    jax.tree.map(np.testing.assert_array_equal, tuned.variables, again.variables)
