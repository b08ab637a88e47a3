"""The step and the loop: an update is what the formula says, bad ones are skipped, cut batches add up."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import pretrain_sct
from scfm_jax.saving import checkpoint
from scfm_jax.training import divergence, optim, step
from scfm_jax.types import Batch
from tests.harness import tiny


def batch(number: int = 0) -> Batch:
    """Return the tiny loader's batch of a step."""
    arrays = tiny.Loader().batch(number)
    return Batch(**{field: arrays[field] for field in Batch.__dataclass_fields__})


def begin(objective: step.Objective, **options):
    """Return (optimizer, state of step 0)."""
    build = functools.partial(optim.build, steps=10, **{"schedule": "constant", "learning_rate": 0.1} | options)
    state = jax.jit(functools.partial(step.init_state, objective, build, 0))(batch(), tiny.CONSTANTS)
    return build(state.params), state


def advance(objective, optimizer, state, batch, microbatches: int = 1):
    """Return (next state, metrics)."""
    return jax.jit(functools.partial(step.train_step, objective, optimizer, microbatches))(state, batch)


def same(a, b) -> bool:
    """Return whether two trees are equal bit by bit."""
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


@pytest.fixture(scope="module")
def plain() -> step.Objective:
    """The tiny objective without anything random."""
    return tiny.objective(dropout=0.0, mask_rate=0.0)


def test_sgd_step_is_the_parameters_minus_rate_times_gradient(plain):
    optimizer, state = begin(plain, name="sgd", momentum=0.0)

    def loss(params):
        return plain.loss(params, state.buffers, batch(), state.constants, jax.random.key(0), 0, True)[0]

    value, grads = jax.value_and_grad(loss)(state.params)
    new, metrics = advance(plain, optimizer, state, batch())
    for p, g, q in zip(*map(jax.tree.leaves, (state.params, grads, new.params)), strict=True):
        np.testing.assert_allclose(q, p - 0.1 * g, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"][0], optax.tree.norm(grads), rtol=1e-6)
    assert metrics["cells"][0] == batch().cell_mask.sum() and new.step == 1
    mean = new.buffers["buffers"]["mean"]
    assert mean.any() and not state.buffers["buffers"]["mean"].any()  # a forward pass updates the buffers


def test_steps_draw_anew_and_repeat_exactly():
    objective = tiny.objective(dropout=0.3)
    optimizer, state = begin(objective)
    first, again = (advance(objective, optimizer, state, batch()) for _ in range(2))
    later = advance(objective, optimizer, state.replace(step=state.step + 1), batch())
    assert same(first, again)
    assert first[1]["loss"][0] != later[1]["loss"][0]


def test_accumulated_microbatches_equal_the_whole_batch(plain):
    optimizer, state = begin(plain, name="sgd")
    whole, all_at_once = advance(plain, optimizer, state, batch())
    for n in (2, 4):
        parts, added = advance(plain, optimizer, state, batch(), n)
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name in ("loss", "mse", "grad_norm"):
            np.testing.assert_allclose(added[name], all_at_once[name], rtol=1e-5, err_msg=name)
        assert added["cells"][0] == all_at_once["cells"][0]


def test_microbatches_must_divide_the_batch(plain):
    optimizer, state = begin(plain)
    with pytest.raises(ValueError, match="microbatches=3: must divide the 8 bags"):
        advance(plain, optimizer, state, batch(), 3)


def test_a_step_that_is_not_finite_changes_nothing_but_the_step_number(plain):
    optimizer, state = begin(plain, ema=0.9)
    state, _ = advance(plain, optimizer, state, batch())
    bad = batch().replace(counts=np.full_like(batch().counts, np.nan))
    new, metrics = advance(plain, optimizer, state, bad)
    assert metrics["skipped"][0] == 1 and new.step == state.step + 1
    assert same(new.replace(step=0), state.replace(step=0))
    assert metrics["loss"] == (0, 0)  # weighs nothing in the log
    assert advance(plain, optimizer, new, batch())[1]["skipped"][0] == 0


def test_frozen_parameters_stay_and_have_no_moments(plain):
    optimizer, state = begin(plain, frozen=("encoder/",), weight_decay=0.1)
    new, _ = advance(plain, optimizer, state, batch())
    assert same(new.params["encoder"], state.params["encoder"])
    assert not same(new.params["decoder"], state.params["decoder"])
    n = sum(leaf.size for leaf in jax.tree.leaves(state.params["decoder"]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * n + 1  # two moments and a count
    with pytest.raises(ValueError, match="'encodr' matches no parameter"):
        begin(plain, frozen=("encodr",))


def test_weight_decay_spares_what_the_mask_names():
    params = {"dense": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    zeros = jax.tree.map(jnp.zeros_like, params)
    for name, frozen in (("adamw", ()), ("adamw", ("scale",)), ("adafactor", ())):
        optimizer = optim.build(
            params, steps=1, name=name, schedule="constant", learning_rate=0.5, weight_decay=0.2,
            no_decay=("bias$", "norm/"), frozen=frozen,
        )  # fmt: skip
        new, _ = optim.update(optimizer, zeros, optimizer.transform.init(params), params, jnp.zeros(()))
        np.testing.assert_allclose(new["dense"]["kernel"], 0.9)
        assert same((new["dense"]["bias"], new["norm"]), (params["dense"]["bias"], params["norm"]))


@pytest.mark.parametrize("name", optim.NAMES)
def test_every_optimizer_descends(name):
    params = {"x": jnp.full((4, 4), 3.0)}
    rate = {"sgd": 0.01}.get(name, 0.1)
    optimizer = optim.build(params, steps=60, name=name, learning_rate=rate, schedule="constant", clip_norm=10.0)
    state = optimizer.transform.init(params)
    for i in range(60):
        grads = jax.tree.map(lambda x: 2 * x, params)
        params, state = optim.update(optimizer, grads, state, params, jnp.asarray(i))
    assert abs(params["x"]).max() < 1.0


def test_schedules_have_the_rates_they_promise():
    def rates(steps, **options):
        schedule = optim.build({}, steps=100, learning_rate=2.0, **options).schedule
        return [float(schedule(s)) for s in steps]

    assert rates([0, 99], schedule="constant") == [2.0, 2.0]
    np.testing.assert_allclose(rates([0, 5, 10, 90], schedule="warmup", warmup=10), [0, 1, 2, 2], atol=1e-6)
    cosine = rates([0, 10, 55, 100], schedule="warmup_cosine", warmup=0.1, final_rate=0.1)
    np.testing.assert_allclose(cosine, [0, 2, 1.1, 0.2], atol=1e-6)
    np.testing.assert_allclose(rates([0, 50, 100]), [2, 1, 0], atol=1e-6)
    late = rates([0, 49, 50, 100], schedule="warmup_cosine", delay=0.5, warmup=0)
    np.testing.assert_allclose(late, [0, 0, 2, 0], atol=1e-6)
    for schedule in ("warmup", "warmup_cosine"):
        half = rates([0, 5, 10], schedule=schedule, warmup=10, warmup_from=0.5)
        np.testing.assert_allclose(half, [1, 1.5, 2], atol=1e-6)
    for wrong in ({"warmup_from": 5e-5 / 1e-5}, {"schedule": "cosine"}, {"name": "adamv"}, {"warmup": 100}):
        with pytest.raises(ValueError, match="must be"):
            rates([0], **wrong)


@pytest.mark.parametrize("variant", ["paper", "published", "spatial"])
def test_sct_warms_up_as_its_paper_does(variant):
    config = pretrain_sct.get_config(variant)
    schedule = optim.build({}, steps=config.train.steps, **config.optim.to_dict()).schedule
    np.testing.assert_allclose([float(schedule(s)) for s in (0, 5000, 10_000)], [5e-5, 7.5e-5, 1e-4], rtol=1e-4)
    assert schedule(config.train.steps) < 1e-9


def test_average_follows_the_parameters_and_is_what_is_validated(plain):
    optimizer, state = begin(plain, ema=0.75)
    new, _ = advance(plain, optimizer, state, batch())
    for a, p, q in zip(*map(jax.tree.leaves, (new.ema, state.params, new.params)), strict=True):
        np.testing.assert_allclose(a, 0.75 * p + 0.25 * q, rtol=1e-5, atol=1e-6)
    evaluate = jax.jit(functools.partial(step.eval_step, plain))
    moved = new.replace(params=jax.tree.map(lambda p: p + 1, new.params))
    assert same(evaluate(new, batch(), 0), evaluate(moved, batch(), 0))


def test_validation_draws_the_same_every_time():
    objective = tiny.objective(dropout=0.3)
    _, state = begin(objective)
    evaluate = jax.jit(functools.partial(step.eval_step, objective))
    later = state.replace(step=state.step + 50)
    assert same(evaluate(state, batch(), 1), evaluate(later, batch(), 1))
    assert evaluate(state, batch(), 1)["loss"][0] != evaluate(state, batch(), 2)["loss"][0]


def lines(workdir) -> list[dict]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_windows_validates_and_keeps_last_and_best(tmp_path):
    options = {"steps": 14, "log_every": 7, "eval_every": 7, "checkpoint_every": 6, "keep": 1}
    optimizer = {"learning_rate": 0.03, "schedule": "constant"}
    state = tiny.fit(tmp_path, optimizer=optimizer, **options)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [7, 7, 14, 14]
    assert found[3]["val/loss"] < found[1]["val/loss"] and found[2]["loss"] < found[0]["loss"]
    assert found[0]["skipped"] == 0 and found[0]["cells"] > 20
    timing = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert all(line["cells/s"] > 0 and line["mfu"] > 0 and 0 <= line["data_wait"] <= 1 for line in timing)
    assert checkpoint.steps(tmp_path / "checkpoints") == [14] and int(state.step) == 14
    best, record = checkpoint.read_best(tmp_path / "checkpoints")
    assert best == 14 and record["metric"] == "val/loss" and record["value"] == found[3]["val/loss"]


def test_a_run_stops_early_and_knows_it_when_called_again(tmp_path):
    worse = {"learning_rate": 3.0, "schedule": "constant", "name": "sgd"}
    options = {"steps": 50, "log_every": 0, "eval_every": 1, "patience": 2, "optimizer": worse, "max_skipped": 99}
    state = tiny.fit(tmp_path, **options)
    stopped = int(state.step)
    values = [line["val/loss"] for line in lines(tmp_path)]
    best = int(np.nanargmin([np.inf if v is None else v for v in values])) + 1
    assert stopped == best + 2 < 50
    assert checkpoint.steps(tmp_path / "checkpoints")[0] == best == checkpoint.read_best(tmp_path / "checkpoints")[0]
    assert int(tiny.fit(tmp_path, **options).step) == stopped and len(lines(tmp_path)) == len(values)


def test_a_run_survives_bad_batches_and_gives_up_after_many(tmp_path):
    assert int(tiny.fit(tmp_path / "a", steps=4, bad=[1, 2], max_skipped=3, log_every=4).step) == 4
    line = lines(tmp_path / "a")[0]
    assert line["skipped"] == 0.5 and np.isfinite(line["loss"])
    with pytest.raises(ValueError, match=r"step 7: .* 3 times in a row") as error:
        tiny.fit(tmp_path / "b", steps=20, bad=range(4, 20), max_skipped=3, checkpoint_every=2)
    assert "\n" not in str(error.value) and "intact" not in str(error.value)
    assert "step 4 are of ordinary size" in str(error.value) and "--config.train.rewind=4" in str(error.value)
    assert checkpoint.latest_valid(tmp_path / "b/checkpoints") == 6


def test_a_run_that_diverged_says_which_step_is_good_and_goes_on_from_there(tmp_path, capsys):
    options = {"log_every": 1, "checkpoint_every": 2, "keep": 9, "eval_every": 0}
    tiny.fit(tmp_path, steps=4, **options)
    folder = tmp_path / "checkpoints"
    restored = checkpoint.restore(folder)
    grown = jax.tree.map(lambda x: x * np.float32(1e20) if x.dtype == np.float32 else x, restored.state["params"])
    progress = restored.meta["progress"] | {"norm": divergence.norm(grown)}
    assert progress["norm"] > 1e19 and 0 < progress["first_norm"] < 100
    checkpoint.save(folder, 6, restored.state, restored.meta | {"step": 6, "progress": progress}, keep=9)
    said = divergence.way_out(folder)
    assert "the weights of step 4 are of ordinary size" in said and "step 6: " in said
    assert "--config.train.rewind=4 --config.optim.learning_rate=" in said
    checkpoint.save(tmp_path / "bad", 6, restored.state, restored.meta | {"progress": progress})
    assert "no checkpoint is from before the weights grew" in divergence.way_out(tmp_path / "bad")
    assert "there is no checkpoint" in divergence.way_out(tmp_path / "none")
    tiny.fit(tmp_path, steps=8, rewind=4, optimizer={"learning_rate": 1e-4}, **options)
    assert checkpoint.steps(folder) == [2, 4, 6, 8] and "going on from step 4" in capsys.readouterr().err
    assert checkpoint.read_meta(folder, 6)["progress"]["norm"] < 100
    assert [line["step"] for line in lines(tmp_path)] == [*range(1, 9)]


def test_a_run_goes_back_once_for_each_step_and_optimiser():
    def meta(rewind, rate):
        return {"config": {"train": {"rewind": rewind}, "optim": {"learning_rate": rate, "betas": (0.9, 0.99)}}}

    assert not divergence.rewinds(0, meta(0, 1e-3), meta(0, 1e-4))
    assert divergence.rewinds(4, meta(0, 1e-3), meta(4, 1e-4)), "asked for the first time"
    assert not divergence.rewinds(4, meta(4, 1e-4), meta(4, 1e-4)), "the same command resumes"
    assert divergence.rewinds(4, meta(4, 1e-4), meta(4, 1e-5)), "with a still lower rate"


@pytest.mark.parametrize("tensorboard", [True, False])
def test_a_workdir_removed_during_the_run_ends_it(tensorboard, tmp_path):
    workdir, calls = tmp_path / "w", []

    def remove(batch, constants):
        calls.append(1)
        if len(calls) == 2:  # the second shape of batch is compiled
            shutil.rmtree(workdir)
        return flops(batch, constants)

    task, flops = tiny.objective(), tiny.objective().flops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "objective", lambda dropout: task._replace(flops=remove))
        with pytest.raises(OSError, match=r"step 6 is not saved: .*metrics.jsonl was removed"):
            tiny.fit(workdir, steps=6, log_every=1, tensorboard=tensorboard)
    assert not (workdir / "checkpoints").exists()


def test_the_flat_keys_of_the_optimiser_are_the_fields_of_its_sections():
    schedule, rule, layers = optim.sections({"warmup": 3, "clip_norm": 1.0, "frozen": ("x",)})
    assert (schedule.warmup, rule.clip_norm, layers.frozen) == (3, 1.0, ("x",))
    assert len(optim.KEYS) == len(set(optim.KEYS)) == 25 and {"learning_rate", "name", "groups"} <= set(optim.KEYS)
    with pytest.raises(ValueError, match="optim: no such key learning_rat; there are learning_rate, schedule"):
        optim.build({}, steps=1, learning_rat=1e-3)
