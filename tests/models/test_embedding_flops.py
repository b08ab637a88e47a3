"""What annotation reports as its work is what its step does: never more than XLA counts, and not much less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scfm_jax import models
from scfm_jax.tasks.cells import cell_type
from scfm_jax.training import tuning
from scfm_jax.types import Batch

GENES = 320
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = {
    "cellplm": dict(enc_hid=128, latent_dim=64, dec_hid=128, enc_layers=2),
    "exceiver": dict(seq_dim=32, query_len=32, query_dim=32, ffn_dim=256),
    "scemb": dict(embed_dim=128, ffn_dim=256, num_layers=2),
    "sclong": dict(base_dim=64, large_dim=128, mini_key_size=64, large_key_size=64, dec_key_size=64),
    "sct": dict(num_downsamples=3, token_dim=64, embed_dim=128, ffn_dim=128, key_size=32),
}


def batch_of(cells: int, alone: bool, expressed: int = 128) -> Batch:
    """Return random counts of cells, each a bag of its own or all in one."""
    rng = np.random.default_rng(0)
    shape = (cells, 1) if alone else (1, cells)
    genes = np.argsort(rng.random((*shape, GENES)), -1)[..., :expressed]
    return Batch(
        genes=jnp.asarray(genes, jnp.int32),
        counts=jnp.asarray(rng.poisson(3.0, genes.shape) + 1.0, jnp.float32),
        cell_mask=jnp.ones(shape, bool),
        study=jnp.zeros(shape, jnp.int32),
        coords=jnp.full((*shape, 2), jnp.nan),
        labels={"cell_type": jnp.asarray(rng.integers(0, 4, shape), jnp.int32)},
    )


TRAINED = {"frozen": ("task",), "lora": ("task", "lora")}


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "frozen") for name in sorted(SIZES)]
    + [pytest.param(name, "full", marks=[pytest.mark.slow] * (name in ("sclong", "sct"))) for name in sorted(SIZES)]
    + [("scemb", "lora"), ("cellplm", "lora")],
)
def test_flops_of_annotation_are_those_of_its_step(name, method, monkeypatch):
    assert 0.4 < share(name, method, SIZES[name], monkeypatch) < 1.01


@pytest.mark.parametrize("method", ["frozen", "full"])
def test_no_gradient_of_the_counts_is_counted(method, monkeypatch):
    narrow = dict(enc_hid=64, latent_dim=8, dec_hid=8, enc_layers=1, enc_mod="mlp", latent_mod="ae")  # mostly counts
    assert 0.8 < share("cellplm", method, narrow, monkeypatch) < 1.01


def share(name, method, sizes, monkeypatch):
    """Return the share of the FLOPs that XLA counts of a training step that are reported of it."""
    # XLA counts the body of a loop once, so sCT's over the taps of a kernel is laid out
    monkeypatch.setattr(jax.lax, "map", lambda each, xs: jnp.stack([each(x) for x in xs]))
    module = models.get(name)
    options = models.options(name, "tiny")
    model = module.Model(**options["model"] | sizes | {"n_genes": GENES})
    inputs = options["inputs"] | module.TUNING["visible"]
    constants = {"slots": jnp.arange(GENES + 1), "measured": jnp.ones((1, GENES), bool)}
    constants |= {"mean": jnp.zeros(GENES), "scale": jnp.ones(GENES)}  # Exceiver's scaler
    batch = batch_of(4, alone=not getattr(module, "SAMPLE", False))
    objective = cell_type.objective(module, model, inputs, [2, 2, 2, 2])
    objective = tuning.objective(objective, tuning.options(module, method=method))
    variables = jax.eval_shape(lambda: objective.init(jax.random.key(0), batch, constants))
    params = variables["params"]
    trained = {part: params[part] for part in TRAINED.get(method, params)}
    buffers = {part: variables[part] for part in variables if part != "params"}

    def gradients(trained, params, buffers, batch):
        def loss(trained):
            return objective.loss({**params, **trained}, buffers, batch, constants, jax.random.key(0), 0, True)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    compiled = quick(gradients).lower(trained, params, buffers, batch).compile()
    reported = objective.step_flops(batch, constants)
    part = reported / compiled.cost_analysis()["flops"]
    print(f"{name} {method}: {reported:.3g} reported, {part:.2f} of what XLA counts")
    return part
