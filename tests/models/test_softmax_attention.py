"""Attention in parts, its dropout's random bits, and products with gradients of their own, against the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from scfm_jax.layers import dropout, product, softmax_attention

rng = np.random.default_rng(0)
CHUNKS = (0, 10, 200, 2 * 2 * 13 * 15)  # all at once; a query; parts of the queries of a head; heads in two groups


def normal(*shape):
    return jnp.asarray(rng.normal(0, 1, shape), jnp.float32)


def close(ours, theirs, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol), ours, theirs)


def plain(q, k, v, real, scale=1.0):
    """Return attention whose weights exist, multiplied with `scale` [N, H, T, S]."""
    logits = jnp.einsum("nthk,nshk->nhts", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(real[:, None, None], logits, -jnp.inf), -1) * scale
    return jnp.einsum("nhts,nshk->nthk", weights, v)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_in_parts_is_attention_with_the_same_dropout_however_it_is_cut(rate):
    q, k, v, pull = normal(2, 13, 4, 8), normal(2, 15, 4, 8), normal(2, 15, 4, 8), normal(2, 13, 4, 8)
    real, key = jnp.asarray(rng.random((2, 15)) < 0.7).at[:, 0].set(True), jax.random.key(1)
    scale = 1.0
    if rate:
        kept = dropout.kept(dropout.words(key), (4, 2, 13, 15), rate)
        scale = jnp.where(kept.swapaxes(0, 1), 1 / (1 - rate), 0)

    def run(function, *arguments):
        value = lambda q, k, v: (function(q, k, v, real, *arguments) * pull).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))(q, k, v)

    theirs = run(plain, scale)
    for chunk in CHUNKS:
        close(run(softmax_attention.attend, rate, key, chunk), theirs)


def test_half_precision_stays_half():
    q, k, v = (normal(1, 6, 2, 4).astype(jnp.bfloat16) for _ in range(3))
    real = jnp.ones((1, 6), bool)
    assert softmax_attention.attend(q, k, v, real).dtype == jnp.bfloat16
    grads = jax.grad(lambda q, k, v: softmax_attention.attend(q, k, v, real).astype(jnp.float32).sum(), (0, 1, 2))
    assert all(x.dtype == jnp.bfloat16 for x in grads(q, k, v))
    close(*(f(q, k, v, real).astype(jnp.float32) for f in (softmax_attention.attend, plain)), 0.03)


def test_with_all_its_rounds_the_generator_is_that_of_jax():
    words, count = jnp.array([3, 2**31 + 9], jnp.uint32), jnp.arange(16, dtype=jnp.uint32)
    theirs = threefry_2x32(words, count)
    np.testing.assert_array_equal(jnp.concatenate(dropout.threefry(words, count[:8], count[8:], 20)), theirs)
    assert (jnp.concatenate(dropout.threefry(words, count[:8], count[8:])) != theirs).all()


def test_what_is_kept_has_its_rate_in_every_direction_and_depends_on_place_and_key_alone():
    words = dropout.words(jax.random.key(0))
    kept = np.asarray(dropout.kept(words, (8, 64, 256), 0.25))
    for axes in ((0, 1), (0, 2), (1, 2)):
        other = np.delete(np.arange(3), axes)[0]
        error = (0.25 * 0.75 * kept.shape[other] / kept.size) ** 0.5
        assert abs(kept.mean(axes) - 0.75).max() < 4.5 * error
    shifted = [
        (kept[1:] == kept[:-1]).mean(),
        (kept[:, 1:] == kept[:, :-1]).mean(),
        (kept[..., 1:] == kept[..., :-1]).mean(),
    ]
    np.testing.assert_allclose(shifted, 0.75**2 + 0.25**2, atol=6e-3)
    np.testing.assert_array_equal(dropout.kept(words, (2, 16, 256), 0.25, (3, 5)), kept[3:5, 5:21])
    other = np.asarray(dropout.kept(dropout.words(jax.random.key(1)), kept.shape, 0.25))
    assert abs((kept == other).mean() - 0.625) < 6e-3
    assert not dropout.kept(words, (4, 4), 1.0).any() and dropout.kept(words, (4, 4), 0.0).all()


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 2, 3, 5)])
def test_gradients_of_a_product_and_of_the_gelu_are_those_that_jax_derives(shape):
    x, kernel, pull = normal(*shape), normal(5, 4), normal(*shape[:-1], 4)

    def run(multiply, activate):
        value = lambda x, kernel: (activate(multiply(x, kernel)) * pull).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(x, kernel)

    close(run(product.product, product.gelu), run(jnp.matmul, functools.partial(jax.nn.gelu, approximate=False)))
    with pytest.raises(ValueError, match="dimensions"):
        product.dot_general(x, kernel, (((0,), (0,)), ((), ())))
