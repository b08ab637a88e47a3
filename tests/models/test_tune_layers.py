"""What tuning rests on: layers by number, prefixes in every attention, groups of parameters, plateaus, options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse as sp

from scfm_jax import models
from scfm_jax.inference import bags, infer
from scfm_jax.layers import attention
from scfm_jax.saving.leaves import flatten, nest
from scfm_jax.training import freezing, optim, tuning

# ------------------------------------------------------------------------------------------------- layers by number


def shapes(name: str, **fields):
    """Return the shapes of the parameters of a tiny model."""
    module, options = models.get(name), models.options(name, "tiny")
    model = module.Model(**{**options["model"], "n_genes": 24, **fields})
    constants = bags.own_vocabulary(np.ones((1, 24), bool))
    inputs = options["inputs"]
    return jax.eval_shape(functools.partial(infer.initial, module, model, constants, 0, (), 8, **inputs))["params"]


LAYERS = {
    ("cellplm", False): (1, ["genes", "embed_linear/", "encoder/layer_0/"], ["encoder/layer_1/", "pre_latent_norm/"]),
    ("exceiver", None): (1, ["genes", "encoder/", "latents", "process/layers/"], ["decoder/", "gene_head/"]),
    ("scemb", False): (1, ["word", "norm_embed/", "block_0/"], ["block_1/", "transform/", "decoder_bias"]),
    ("sct", False): (2, ["tokens", "stem/", "down_0/", "down_1/"], ["down_2/", "block_0/", "up_0/"]),
    ("sclong", False): (2, ["identity/", "large/layer_0/", "large/layer_1/"], ["decoder/", "to_base/", "head_/"]),
    ("sclong", True): (2, ["identity/", "large/layers/"], ["decoder/", "to_base/"]),
}


@pytest.mark.parametrize(("name", "scan"), LAYERS)
def test_layers_are_counted_in_the_order_of_the_forward_pass(name, scan):
    n, frozen, free = LAYERS[name, scan]
    params = shapes(name, **({} if scan is None else {"scan": scan}))
    hits = flatten(freezing.first_layers(params, n, models.get(name).TUNING))
    for leaf, hit in hits.items():
        if leaf.startswith(tuple(frozen)):
            assert np.all(hit), leaf
        if leaf.startswith(tuple(free)):
            assert not np.any(hit), leaf
    for start in (*frozen, *free):
        assert any(leaf.startswith(start) for leaf in hits), start
    assert not any(np.any(hit) for hit in flatten(freezing.first_layers(params, 0, models.get(name).TUNING)).values())
    with pytest.raises(ValueError, match="from 0 to"):
        freezing.first_layers(params, 99, models.get(name).TUNING)


@pytest.mark.parametrize("name", ["cellplm", "scemb", "sclong"])
def test_a_stack_and_its_layers_are_frozen_alike(name):
    tuning_of = models.get(name).TUNING
    apart, stacked = (flatten(freezing.first_layers(shapes(name, scan=scan), 1, tuning_of)) for scan in (False, True))
    stacks = [leaf for leaf in stacked if leaf not in apart]
    assert stacks
    for leaf in stacks:
        for i, hit in enumerate(np.ravel(stacked[leaf])):
            one = leaf.replace("layers/", f"layer_{i}/").replace("blocks/", f"block_{i}/")
            assert bool(hit) == bool(apart[one]), (leaf, i)


# --------------------------------------------------------------------------------------------------------- prefixes


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_prefixes_are_parameters_of_every_layer_and_are_attended_to(name):
    module, options = models.get(name), models.options(name, "tiny")
    model = module.Model(**{**options["model"], "n_genes": 24, "prefix": 3})
    constants = bags.own_vocabulary(np.ones((1, 24), bool))
    inputs = {**options["inputs"], **module.TUNING["visible"]}
    variables = infer.initial(module, model, constants, 0, (), 8, **inputs)
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(0.6, (8, 24)).astype(np.float32))
    constants = bags.complete_constants(module, constants, [bags.pack(counts, np.arange(8)[None])], inputs)

    def embedded(add: float) -> np.ndarray:
        leaves = {n: x + add * ("prefix_value" in n) for n, x in flatten(variables["params"]).items()}
        changed = {**variables, "params": nest(leaves)}
        return infer.embed(module, model, changed, constants, [bags.pack(counts, np.arange(8)[None])], 8, inputs=inputs)

    assert any("prefix_key" in leaf for leaf in flatten(variables["params"]))
    assert np.abs(embedded(1.0) - embedded(0.0)).max(1).min() > 1e-4, "a cell does not see the prefixes"


@pytest.mark.parametrize("kind", ["flow", "favor", "softmax"])
def test_keys_that_are_not_there_change_nothing(kind):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, 5, 2, 8)) for key in keys[:3])
    more = jax.random.normal(keys[3], (2, 3, 2, 8))
    mask = jnp.asarray([[True] * 5, [True] * 3 + [False] * 2])
    wide = jnp.pad(mask, ((0, 0), (3, 0)))

    def gather(k, v, there):
        if kind == "flow":
            return attention.flow_attention(q, k, v, there, mask)
        if kind == "favor":
            return attention.favor_attention(q, k, v, there, attention.draw_projection(keys[0], 16, 8))
        weights, v = attention.softmax_attention(q, k, v, there)
        return jnp.einsum("bhqs,bshk->bqhk", weights, v)

    before, after = gather(k, v, mask), gather(jnp.concatenate([more, k], 1), jnp.concatenate([more, v], 1), wide)
    np.testing.assert_allclose(np.where(mask[..., None, None], before - after, 0), 0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------ optimisers


def test_groups_have_their_own_rate_and_decay():
    params = {"embed": jnp.ones(2), "head": jnp.ones(2)}
    groups = ({"match": ("^embed$",), "rate": 0.1, "schedule": "constant", "weight_decay": 0.5},)
    options = {"learning_rate": 1.0, "schedule": "warmup", "warmup": 10, "weight_decay": 0.0, "groups": groups}
    optimizer = optim.build(params, steps=100, **options)
    zeros = jax.tree.map(jnp.zeros_like, params)
    new, _ = optim.update(optimizer, zeros, optimizer.transform.init(params), params, jnp.zeros((), int))
    np.testing.assert_allclose(new["embed"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert np.array_equal(new["head"], params["head"])
    with pytest.raises(ValueError, match="no such key rates"):
        optim.build(params, steps=1, groups=({"match": ("embed",), "rates": 1},))


def test_a_plateau_shrinks_the_rates_as_torch_does():
    params, grads = {"x": jnp.zeros(1)}, {"x": jnp.ones(1)}
    options = {"name": "sgd", "momentum": 0.0, "learning_rate": 1.0, "schedule": "constant"}
    optimizer = optim.build(params, steps=9, plateau_patience=3, plateau_factor=0.5, **options)
    state, moved = optimizer.transform.init(params), []
    losses = [2.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9]
    for i, loss in enumerate(losses):
        new, state = optim.update(optimizer, grads, state, params, jnp.asarray(i), loss)
        moved.append(-float(new["x"][0]))
    assert moved == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]  # patience 2 of torch: the third bad one in a row


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "adapters"}, "must be one of full, lora, prefix, frozen"),
        ({"method": "prefix", "length": 0}, "at least 1"),
        ({"method": "lora", "vectors": "x.npy"}, "need tune.method=prefix"),
        ({"method": "prefix", "vectors": "x.npy"}, "no such file"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words):
    with pytest.raises((ValueError, OSError), match=words):
        tuning.options(models.get("scemb"), **options)
