"""Time one training step of a published layout and its parts, beside what the machine could do.

CellPLM: the 20230926 checkpoint's layout, one bag of 1,000 cells x 19,374 genes with about 1,750 expressed genes a cell
(Poisson counts under log-normal gene means), AdamW. Two floors, of which the larger binds:
  flops   2 x 3 x (1,000 x 19,374 x 1,024 less the inputs' gradient, which nobody needs, + 1,000 x 33.6M of the encoder
          + 750 x (1.5M + 128 x 19,374) of decoder and head) = about 0.31 TFLOP: 3 s at the 100 GFLOP/s of two cores
  bytes   72M float32 parameters, gradient and two moments: seven passes, 2 GB, 0.2 s at 10 GB/s; the likelihood is
          about ten passes over 750 x 19,374 float32, 0.6 GB
"""

import functools
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scfm_jax import hardware, models
from scfm_jax.types import Batch

N_CELLS, N_GENES, N_BATCHES, N_STUDIES = 1000, 19374, 12596, 484


def step_rows(model: str, seconds: float = 5.0, small: bool = False) -> list[dict]:
    """Return one row for the training step of `model` and one for each of its parts; ValueError for another model.

    The whole step comes first, so that the peak memory is its own. Every row is measured for about `seconds`. `small`
    shrinks everything, to test the bench itself.
    """
    if model != "cellplm":
        raise ValueError(f"bench step: no bench of model {model!r}; there is cellplm")
    module = models.get(model)
    network, options, batch, constants = cellplm_case(module, small)
    prepare = functools.partial(module.prepare, constants=constants, train=True, **options)
    key = jax.random.key(0)
    inputs = jax.jit(lambda batch: prepare(batch, rng=key, step=0))(batch)
    rngs = {"dropout": key, "latent": key}
    params = jax.jit(lambda inputs: network.init({"params": key, **rngs}, inputs, train=True)["params"])(inputs)
    optimizer = optax.adamw(2e-4, weight_decay=1e-8)
    state = jax.jit(optimizer.init)(params)

    def forward(params, inputs):
        return network.apply({"params": params}, inputs, train=True, rngs=rngs)

    def objective(params, batch, step):
        inputs = prepare(batch, rng=jax.random.fold_in(key, step), step=step)
        return module.loss(forward(params, inputs), inputs)[0]

    def update(carry, batch):
        params, state, step = carry
        loss, grads = jax.value_and_grad(objective)(params, batch, step)
        changes, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, changes), state, step + 1), loss

    whole = jax.jit(update, donate_argnums=0)
    timing, (params, state, _) = measure_carried(whole, (params, state, jnp.zeros((), jnp.int32)), batch, seconds)
    row = {"part": "whole step"} | timing
    cells = int(module.tokens(inputs))
    rate = 3 * module.flops(network, inputs) / row["s"]
    row |= {"cells_per_s": cells / row["s"], "tokens_per_s": cells / row["s"], "gflop_per_s": rate / 1e9}
    row |= {"mfu": rate / (hardware.peak_flops() or np.nan), "peak_gb": _peak_bytes() / 1e9}
    head = jax.jit(forward)(params, inputs).logits
    embedder = network.clone(enc_mod="none", head="embedder")
    below = {name: value for name, value in params.items() if name not in ("encoder", "decoder")}
    parts = {  # forward and backward, each up to where its name says
        "prepare": (lambda batch: prepare(batch, rng=key, step=0), (batch,)),
        "embedding and latent": (
            jax.grad(lambda p, x: embedder.apply({"params": p}, x, train=True, rngs=rngs).cells.sum()),
            (below, inputs),
        ),
        "the same with encoder": (jax.grad(lambda p, x: forward(p, x).cells.sum()), (params, inputs)),
        "head and loss": (
            jax.grad(lambda h, x: module.negative_binomial(h, x, True)[0]),
            (head, inputs),
        ),
        "optimiser": (lambda p, s: optimizer.update(p, s, p), (params, state)),
    }
    rows = [{"part": name} | measure(jax.jit(f), arguments, seconds / 2) for name, (f, arguments) in parts.items()]
    return [row, *rows]


def cellplm_case(module, small: bool):
    """Return (network, prepare options, batch, constants) of the published layout."""
    n_cells, n_genes, n_batches, n_studies = (64, 200, 8, 4) if small else (N_CELLS, N_GENES, N_BATCHES, N_STUDIES)
    rng = np.random.default_rng(0)
    means, depth = np.exp(rng.normal(-3.6, 1.9, n_genes)), np.exp(rng.normal(0, 0.4, n_cells))
    counts = np.minimum(rng.poisson(means * (depth * rng.gamma(2, 0.5, n_cells))[:, None]), 2000)
    order = np.argsort(counts == 0, axis=1, kind="stable")
    order = order[:, : -(-int((counts > 0).sum(1).max()) // 256) * 256]
    counts = np.take_along_axis(counts, order, 1)
    batch = Batch(
        genes=np.where(counts > 0, order, n_genes).astype(np.int32)[None],
        counts=counts.astype(np.float32)[None],
        cell_mask=np.ones((1, n_cells), bool),
        study=np.zeros((1, n_cells), np.int32),
        coords=np.full((1, n_cells, 2), np.nan, np.float32),
        labels={"batch": rng.integers(0, n_batches, (1, n_cells)).astype(np.int32)},
    )
    constants = {"slots": jnp.arange(n_genes + 1), "measured": jnp.ones((n_studies, n_genes), bool)}
    variant = module.VARIANTS["tiny" if small else "published_20230926"]
    network = module.Model(n_genes=n_genes, n_batches=n_batches, n_studies=n_studies, **variant["model"])
    return network, {**variant.get("inputs", {}), "drop_node_rate": 0.0}, jax.device_put(batch), constants


def measure(function: Callable, arguments: tuple, seconds: float) -> dict[str, float]:
    """Return the median seconds and cpu seconds of a call, after one that is not counted."""
    return measure_carried(lambda carry, _: (carry, function(*arguments)), None, None, seconds)[0]


def measure_carried(function: Callable, carry, argument, seconds: float) -> tuple[dict[str, float], Any]:
    """Return the same of `carry, _ = function(carry, argument)` called again and again, and the last carry."""
    walls, cpus = [], []
    while sum(walls[1:]) < seconds or len(walls) < 4:
        wall, cpu = time.perf_counter(), _cpu()
        carry, _ = jax.block_until_ready(function(carry, argument))
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu() - cpu)
    return {"s": float(np.median(walls[1:])), "cpu_s": float(np.median(cpus[1:]))}, carry


def _peak_bytes() -> int:
    """Return the most memory used so far: of the device, or of this process where the device is the processor."""
    if jax.local_devices()[0].platform == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return hardware.memory_bytes()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
