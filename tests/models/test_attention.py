"""Performer attention: the plain formula and its gradients, padding, maxima, what never exists whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scfm_jax.layers import attention
from scfm_jax.models.sclong import performer

T, H, K, M = 23, 2, 8, 16
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def heads(sets: int = 3, asking: int = T, seed: int = 0) -> tuple[jax.Array, ...]:
    """Return queries, keys, values, a mask of keys and random features."""
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(sets, n, H, K)), jnp.float32) for n in (asking, T, T))
    mask = jnp.asarray(rng.random((sets, T)) < 0.7)
    return q, k, v, mask, attention.draw_projection(jax.random.key(seed), M, K)


def plain(q, k, v, mask, projection, kernel="softmax", key_max="set", detach_max=False):
    """Return what `favor_attention` promises, written down as it stands in the papers."""
    scale, real = q.shape[-1] ** -0.25, mask[:, :, None, None]
    held = jax.lax.stop_gradient if detach_max else (lambda x: x)
    u_q, u_k = (jnp.einsum("bthk,mk->bthm", x * scale, projection) for x in (q, k))
    if kernel == "relu":
        phi_q, phi_k = jax.nn.relu(u_q) + 1e-3, jax.nn.relu(u_k) + 1e-3
    else:
        axes = {"global": (0, 1, 2, 3), "set": (1, 2, 3), "per_head": (1, 3)}[key_max]
        half_q, half_k = (((x * scale) ** 2).sum(-1, keepdims=True) / 2 for x in (q, k))
        phi_q = jnp.exp(u_q - half_q - held(u_q.max(-1, keepdims=True))) + 1e-4
        phi_k = jnp.exp(u_k - half_k - held(jnp.where(real, u_k, -jnp.inf).max(axes, keepdims=True))) + 1e-4
    phi_k = jnp.where(real, phi_k, 0)
    context = jnp.einsum("bthm,bthd->bhmd", phi_k, v)
    return jnp.einsum("bthm,bhmd->bthd", phi_q, context) / jnp.einsum("bthm,bhm->bth", phi_q, phi_k.sum(1))[..., None]


@pytest.mark.parametrize("chunk", [0, 5])
@pytest.mark.parametrize(
    ("kernel", "key_max", "detach_max"),
    [("softmax", "global", False), ("softmax", "set", False), ("softmax", "per_head", True), ("relu", "set", False)],
)
def test_values_and_gradients_are_those_of_the_formula(kernel, key_max, detach_max, chunk):
    q, k, v, mask, projection = heads(asking=13)
    pull = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    options = {"kernel": kernel, "key_max": key_max, "detach_max": detach_max}

    def of(attend, **more):
        return quick(
            jax.value_and_grad(lambda *x: (attend(*x, mask, projection, **options, **more) * pull).sum(), (0, 1, 2))
        )(q, k, v)

    ours, theirs = of(attention.favor_attention, chunk=chunk), of(plain)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.abs(b).max()))


def test_what_is_masked_does_not_matter_and_padding_alone_gives_zeros():
    q, k, v, mask, projection = heads()
    attend = quick(functools.partial(attention.favor_attention, chunk=7, key_max="global"))
    other = jnp.where(mask[..., None, None], k, 9 - k), jnp.where(mask[..., None, None], v, 1e3)
    np.testing.assert_array_equal(attend(q, k, v, mask, projection), attend(q, *other, mask, projection))
    nothing = attend(q, k, v, mask.at[1].set(False), projection)
    assert (nothing[1] == 0).all() and np.isfinite(nothing).all()


def test_only_the_global_maximum_lets_sets_feel_each_other():
    q, k, v, mask, projection = heads()
    louder = k.at[2].multiply(4.0)
    differences = {}
    for key_max in attention.PEAKS:
        attend = quick(functools.partial(attention.favor_attention, key_max=key_max))
        difference = attend(q, louder, v, mask, projection) - attend(q, k, v, mask, projection)
        differences[key_max] = float(jnp.abs(difference[:2]).max())
    assert differences["set"] == differences["per_head"] == 0 < 1e-5 < differences["global"]


def test_many_features_come_close_to_exact_attention():
    q, k, v, mask, _ = heads()
    q, k = q / 2, k / 2
    exact = attention.exact_attention(q, k, v, mask)
    weights, _ = attention.softmax_attention(q, k, v, mask)
    np.testing.assert_allclose(exact, jnp.einsum("bhqs,bshk->bqhk", weights, v), rtol=1e-4, atol=1e-5)
    errors = []
    for features in (16, 4096):
        projection = attention.draw_projection(jax.random.key(3), features, K)
        errors.append(float(jnp.abs(attention.favor_attention(q, k, v, mask, projection) - exact).mean()))
    assert errors[1] < errors[0] / 5


def test_features_never_exist_whole():
    q, k, v, mask, projection = heads()

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (variable.aval.size for variable in equation.outvars)
            for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
                inner = getattr(part, "jaxpr", part)
                yield from sizes(inner) if hasattr(inner, "eqns") else ()

    def largest(chunk):
        attend = functools.partial(attention.favor_attention, mask=mask, projection=projection, chunk=chunk)
        return max(sizes(jax.make_jaxpr(jax.grad(lambda *x: attend(*x).sum(), (0, 1, 2)))(q, k, v).jaxpr))

    assert largest(T) == 3 * T * H * M  # the map of all tokens
    assert largest(5) <= 3 * (T + 4) * H * K  # no more than what comes in, the last chunk filled up


def test_random_features_are_orthogonal_blocks_of_normal_lengths():
    projection = np.asarray(attention.draw_projection(jax.random.key(0), 266, 64))
    for start in range(0, 266, 64):
        gram = projection[start : start + 64] @ projection[start : start + 64].T
        np.testing.assert_allclose(gram - np.diag(np.diag(gram)), 0, atol=1e-3)
    assert abs((projection**2).sum(1).mean() - 64) < 3 and performer.n_features(64) == 266


def test_options_there_are_not():
    q, k, v, mask, projection = heads()
    for wrong in ({"kernel": "cosine"}, {"key_max": "cell"}):
        with pytest.raises(ValueError, match=next(iter(wrong.values()))):
            attention.favor_attention(q, k, v, mask, projection, **wrong)


def test_permuting_back_and_forth_has_the_gradient_of_a_permutation():
    x = jnp.arange(24.0).reshape(2, 4, 3)
    order = jnp.array([[2, 0, 3, 1], [1, 3, 0, 2]])
    inverse = jnp.argsort(order, axis=1)
    pull = jnp.arange(24.0).reshape(2, 4, 3) ** 2
    y, back = jax.vjp(lambda x: performer.permute(x, order, inverse), x)
    np.testing.assert_array_equal(performer.permute(y, inverse, order), x)
    np.testing.assert_array_equal(back(pull)[0], performer.take(pull, inverse))


@pytest.mark.slow
def test_a_layer_of_a_performer_may_take_its_tokens_some_at_a_time(monkeypatch):
    rng = np.random.default_rng(0)
    x, rows = jnp.asarray(rng.normal(0, 1, (2, 23, 12)), jnp.float32), jnp.asarray([[0, 22, 7], [3, 3, 9]])
    mask, projection = jnp.arange(23) < jnp.array([[23], [15]]), jnp.asarray(rng.normal(0, 1, (17, 4)), jnp.float32)
    layer = performer.Layer(heads=3, key_size=4)
    variables = layer.init(jax.random.key(0), x, projection, mask)

    def run(room, rows):
        monkeypatch.setitem(attention.CHUNK, "cpu", room)

        def value(variables, x):
            return (layer.apply(variables, x, projection, mask, rows)[0] ** 2).sum()

        return jax.value_and_grad(value, (0, 1))(variables, x)

    for asked in (None, rows):
        together, apart = run(2**20, asked), run(2 * 48 * 5, asked)  # 5 tokens at a time, the last part filled up
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), together, apart)
