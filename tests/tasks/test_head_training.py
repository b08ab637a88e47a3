"""A head is trained as its rules say: best validation epoch, sums, then clipping, halved rates, a program for seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from scfm_jax.layers.norms import BatchNorm
from scfm_jax.tasks import heads
from scfm_jax.training import optim


class Line(nn.Module):
    """One weight per input, with a batch normalisation that nothing reads."""

    @nn.compact
    def __call__(self, batch, shared, train=False):
        BatchNorm(name="norm")(batch["x"], train)
        return batch["x"] @ self.param("w", nn.initializers.normal(1.0), (batch["x"].shape[1],)) + shared["offset"]


def squares(outputs, batch, shared):
    return jnp.square(outputs - batch["y"]).mean()


HEAD, SHARED = heads.Head(Line(), squares), {"offset": np.float32(0.5)}


def line(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    return heads.Examples.of(x=x, y=(x @ [1.0, -2.0, 3.0] + 0.5).astype(np.float32))


def test_an_update_is_adam_on_sums_clipped_by_value_with_l2_and_a_rate_that_halves():
    training = heads.Training(
        {"learning_rate": 0.1, "weight_decay": 0.3}, epochs=2, rows=4, sums=3, clip=1.5, decay=0.5
    )
    examples = line(16)
    fitted = heads.fit(HEAD, examples, None, SHARED, training, seed=5)
    w = heads._begin(HEAD, training, 5, examples.take(np.arange(4)), SHARED).params["w"]
    adam = optax.chain(optax.clip(1.5), optax.add_decayed_weights(0.3), optax.scale_by_adam())
    state = adam.init(w)
    clipped = 0
    for epoch in range(2):
        batches = [examples.take(rows) for rows, _ in heads._batches(16, 4, 3, (5, epoch))]
        for group in (batches[:3], batches[3:]):
            grads = sum(jax.grad(lambda w, b=b: squares(b["x"] @ w + 0.5, b, {}))(w) for b in group)
            clipped += int((jnp.abs(grads) > 1.5).sum())
            direction, state = adam.update(grads, state, w)
            w = w - 0.1 * 0.5**epoch * direction
    assert clipped, "the case tells clipping a sum from none"
    np.testing.assert_allclose(fitted.variables["params"]["w"], w, rtol=1e-5)


def test_the_best_validation_epoch_is_kept_and_seeds_share_one_program():
    worse = heads.Examples(8, lambda rows: {"x": np.eye(8, 3, dtype=np.float32)[rows], "y": np.ones(8, "f4")[rows]})
    training = heads.Training({"learning_rate": 0.3}, epochs=12, rows=8)
    before = heads._batch._cache_size()
    for seed in (0, 1, 2):
        fitted = heads.fit(HEAD, line(), worse, SHARED, training, seed)
        assert fitted.epoch == fitted.history[:, 1].argmin() < 11, "what is learnt is wrong for these rows"
        again = heads.predict(HEAD.network, fitted.variables, worse, SHARED, rows=3)
        assert np.square(again - 1).mean() == pytest.approx(fitted.history[fitted.epoch, 1], rel=1e-5)
    assert heads._batch._cache_size() == before + 1
    short = heads.fit(
        HEAD, line(), worse, SHARED, heads.Training({"learning_rate": 0.3}, epochs=12, rows=8, patience=2)
    )
    assert len(short.history) == short.epoch + 3


def test_turns_train_their_own_parameters_and_no_rows_are_an_error():
    frozen = {"learning_rate": 0.1, "frozen": ("^w",)}
    training = heads.Training(({"learning_rate": 0.1}, frozen), turns=(1, 1), epochs=2, rows=8)
    start = heads._begin(HEAD, training, 0, line().take(np.arange(8)), SHARED).params["w"]
    np.testing.assert_array_equal(heads.fit(HEAD, line(), None, SHARED, training).variables["params"]["w"], start)
    with pytest.raises(ValueError, match="no rows to train on"):
        heads.fit(HEAD, line(), heads.Examples.of(x=np.zeros((0, 3))), SHARED, training)
    with pytest.raises(ValueError, match="one row of each"):
        heads.Examples.of(x=np.zeros(3), y=np.zeros(4))


def test_rmsprop_is_torchs():
    grads = np.random.default_rng(0).normal(size=(3, 4))
    rule = optim.build({"w": np.zeros(4)}, steps=3, name="rmsprop", b2=0.9, eps=0.1, schedule="constant")
    w, state, square, wanted = {"w": jnp.zeros(4)}, rule.transform.init({"w": jnp.zeros(4)}), 0, 0
    for i, g in enumerate(grads):
        w, state = optim.update(rule, {"w": jnp.asarray(g, jnp.float32)}, state, w, i)
        square = 0.9 * square + 0.1 * g**2
        wanted = wanted - 1e-3 * g / (np.sqrt(square) + 0.1)
    np.testing.assert_allclose(w["w"], wanted, rtol=1e-5)


def test_batch_normalisation_is_torchs_in_training_and_after():
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 2)).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x)
    y, changed = layer.apply(variables, x, True, mutable=["batch_stats"])
    rows = x.reshape(-1, 2)
    np.testing.assert_allclose(y, (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5), atol=1e-5)
    running = changed["batch_stats"]
    np.testing.assert_allclose(running["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(running["variance"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)
    after = layer.apply({**variables, **changed}, x)
    np.testing.assert_allclose(after, (x - running["mean"]) / np.sqrt(running["variance"] + 1e-5), atol=1e-5)
