"""Time one training step of a model and its parts, or its inference, beside what the original took.

A model brings `experiments/benches/<model>.py` with

  ROWS               {row: figures recorded of the original's step, by the keys of our rows}; the first is the default
  INFER              optional: the same of its inference
  case(row, small)   a `Case`: network, options, data and optimiser of that row; `small` shrinks everything, to test the
                     bench itself
  beside(row)        optional: (name, function) of a step of the same sizes by another library, None where it cannot
                     be run; infer_beside: the same of inference
  parts(...)         optional: (module, case, params, inputs, rngs) -> {part: (function, arguments)}, besides the parts
                     that all have: prepare, forward, backward, optimiser

A call that takes more than a minute is measured once, everything else again and again after one call that is not
counted; compiling is never counted.

Beside a torch on a busy machine compare cpu seconds only with OMP_WAIT_POLICY=PASSIVE: its threads otherwise wait by
spinning, which looks like work (BERT of 12 x 768 took 17.4 cpu s a step so, and 5.8 without).
"""

import functools
import importlib
import pathlib
import resource
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax import models
from scfm_jax.training import hardware, optim
from scfm_jax.training import step as steps
from scfm_jax.types import Batch

LONG = 60.0
"""Seconds of a call that is measured once."""


class Case(NamedTuple):
    """One row of a model's bench: `inputs` and `loss` are the keywords of the model's `prepare` and `loss`.

    `optimizer`: keywords of `optim.build`. `infer`: what of `inputs` is otherwise when cells are embedded.
    """

    network: nn.Module
    inputs: dict[str, Any]
    loss: dict[str, Any]
    batch: Batch
    constants: dict[str, Any]
    optimizer: dict[str, Any]
    infer: Mapping[str, Any] = MappingProxyType({})


class Step(NamedTuple):
    """The functions of a case, not yet compiled, and what they take."""

    init: Callable
    prepare: Callable
    objective: Callable
    update: Callable
    optimise: Callable
    rngs: dict[str, Any]


def names() -> list[str]:
    """Return the models that have a bench: those that have a file here."""
    folder = pathlib.Path(__file__).parent
    return [name for name in models.names() if (folder / f"{name}.py").exists()]


def find(model: str, row: str | None) -> tuple[ModuleType, str]:
    """Return the bench of a model and the row to measure, by default its first; ValueError names those there are."""
    if model not in names():
        raise ValueError(f"bench step: no bench of model {model!r}; there is {', '.join(names())}")
    bench = importlib.import_module(f"experiments.benches.{model}")
    row = row or next(iter(bench.ROWS))
    if row not in bench.ROWS:
        raise ValueError(f"bench step: no row {row!r} of {model}; there is {', '.join(bench.ROWS)}")
    return bench, row


def build(module: ModuleType, case: Case) -> Step:
    """Return the functions of a training step, the whole of it as a run does it, on one device."""
    key = jax.random.key(0)
    rngs = {"dropout": key, "latent": key}
    training = steps.pretraining(module, case.network, case.inputs, case.loss)
    optimizer = functools.partial(optim.build, steps=1, schedule="constant", **case.optimizer)

    def objective(params, inputs, others):
        outputs = case.network.apply({"params": params, **others}, inputs, train=True, rngs=rngs)
        return module.loss(outputs, inputs, **case.loss)[0]

    return Step(
        init=lambda batch: steps.init_state(training, optimizer, 0, batch, case.constants),
        prepare=lambda batch: module.prepare(batch, case.constants, key, step=0, train=True, **case.inputs),
        objective=objective,
        update=lambda state, batch: steps.train_step(training, optimizer(state.params), 1, state, batch),
        optimise=lambda grads, state: optim.update(optimizer(grads), grads, state, grads, jnp.zeros((), jnp.int32)),
        rngs=rngs,
    )


def step_rows(
    model: str,
    seconds: float = 5.0,
    small: bool = False,
    row: str | None = None,
    dtype: str | None = None,
    parts: bool = True,
) -> list[dict]:
    """Return a row for the training step of `model`, one for each of its parts and one for the original's.

    The whole step comes first, so that the peak memory is its own. Every row is measured for about `seconds`.

    Args:
      row: a key of the bench's ROWS. dtype: of the computation, instead of the network's own.
      parts: False leaves them out.
    """
    bench, row = find(model, row)
    module, case = models.get(model), _case(bench, row, small, dtype)
    step = build(module, case)
    whole, state = measure_carried(step.update, jax.jit(step.init)(case.batch), case.batch, seconds)
    params, others = state.params, state.buffers
    whole = {"part": f"whole step, {row}"} | whole
    inputs = jax.jit(step.prepare)(case.batch)
    rate = 3 * module.flops(case.network, inputs) / whole["s"]
    whole |= {"cells_per_s": int(case.batch.cell_mask.sum()) / whole["s"]}
    whole |= {"tokens_per_s": int(module.tokens(inputs)) / whole["s"], "gflop_per_s": rate / 1e9}
    whole |= {"mfu": rate / (hardware.peak_flops() or np.nan), "peak_gb": _peak_bytes() / 1e9}
    original = [] if small else _compared(bench, row, whole["s"], seconds)
    if not parts:
        return [whole, *original]
    calls = {"prepare": (step.prepare, (case.batch,)), "forward": (step.objective, (params, inputs, others))}
    model_parts = bench.parts(module, case, params, inputs, step.rngs) if hasattr(bench, "parts") else {}
    calls |= {"backward": (jax.grad(step.objective), (params, inputs, others))} | model_parts
    calls["optimiser"] = (step.optimise, (params, state.opt_state))
    timed = {name: measure(function, arguments, seconds / 2) for name, (function, arguments) in calls.items()}
    timed["backward"] = {key: value - timed["forward"][key] for key, value in timed["backward"].items()}
    return [whole, *({"part": name} | timing for name, timing in timed.items()), *original]


def _compared(bench: ModuleType, row: str, ours: float, seconds: float, infer: bool = False) -> list[dict]:
    """Return a row for what was recorded of the original's step or inference, and one for what can be run here."""
    recorded = getattr(bench, "INFER" if infer else "ROWS", {}).get(row)
    rows = [{"part": "the original, as recorded"} | recorded] if recorded else []
    restated = getattr(bench, "infer_beside" if infer else "beside", None)
    beside = restated(row) if restated else None
    if beside is not None:
        name, function = beside
        timing = _repeat(lambda _: function(), None, seconds)[0]
        rows.append({"part": name} | timing | {"times_ours": timing["s"] / ours})
    return rows


def infer_rows(
    model: str, seconds: float = 5.0, small: bool = False, row: str | None = None, dtype: str | None = None
) -> list[dict]:
    """Return a row for embedding a batch of cells with `model`, and one for the original's inference.

    Weights are drawn on the host, as if they had been read: nothing but inference is compiled, and `import_gb`, what
    the process held before, says how much of the peak is Python and its libraries. Arguments: see `step_rows`.
    """
    bench, row = find(model, row)
    before = _peak_bytes() / 1e9
    module, case = models.get(model), _case(bench, row, small, dtype)
    inputs = {**case.inputs, **case.infer}
    key, rng = jax.random.key(0), np.random.default_rng(0)

    def prepare(batch, constants):
        return module.prepare(batch, constants, key, step=0, train=False, **inputs)

    def embed(variables, batch, constants):
        return case.network.apply(variables, prepare(batch, constants), rngs={"latent": key}).cells

    def init():
        return case.network.init({"params": key, "latent": key}, prepare(case.batch, case.constants))

    def draw(leaf):
        if leaf.dtype != jnp.float32:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.05 * rng.standard_normal(leaf.shape, np.float32))

    variables = jax.tree.map(draw, jax.eval_shape(init))
    timing = measure(embed, (variables, case.batch, case.constants), seconds)
    ours = {"part": f"inference, {row}"} | timing | {"cells_per_s": int(case.batch.cell_mask.sum()) / timing["s"]}
    ours |= {"peak_gb": _peak_bytes() / 1e9, "import_gb": before}
    return [ours, *([] if small else _compared(bench, row, ours["s"], seconds, infer=True))]


def plan_rows(model: str, small: bool = False, row: str | None = None, dtype: str | None = None) -> list[dict]:
    """Return what the compiled training step would need, without running it or making its arrays.

    Memory is that of this machine's compiler: arguments (state and batch, updated in place) and temporaries, which
    another device's compiler lays out in its own way. TFLOP are those of the model, forward and twice that backwards;
    `run` adds the forward pass that recomputation repeats.
    """
    bench, row = find(model, row)
    module, case = models.get(model), _case(bench, row, small, dtype)
    step = build(module, case)
    state, inputs = jax.eval_shape(step.init, case.batch), jax.eval_shape(step.prepare, case.batch)
    used = jax.jit(step.update, donate_argnums=0).lower(state, case.batch).compile().memory_analysis()
    flops = 3 * module.flops(case.network, inputs)
    again = 4 / 3 if getattr(case.network, "remat", False) else 1
    return [
        {
            "part": f"whole step, {row}, planned",
            "arguments_gb": used.argument_size_in_bytes / 1e9,
            "temporaries_gb": used.temp_size_in_bytes / 1e9,
            "peak_gb": (used.argument_size_in_bytes + used.temp_size_in_bytes) / 1e9,
            "tflop": flops / 1e12,
            "run": again * flops / 1e12,
        }
    ]


def bag(n_cells: int, n_genes: int) -> Batch:
    """Return one bag of cells with Poisson counts under log-normal gene means: about 9 % of the genes are expressed."""
    rng = np.random.default_rng(0)
    means, depth = np.exp(rng.normal(-3.6, 1.9, n_genes)), np.exp(rng.normal(0, 0.4, n_cells))
    counts = np.minimum(rng.poisson(means * (depth * rng.gamma(2, 0.5, n_cells))[:, None]), 2000)
    order = np.argsort(counts == 0, axis=1, kind="stable")
    order = order[:, : -(-int((counts > 0).sum(1).max()) // 256) * 256]
    counts = np.take_along_axis(counts, order, 1)
    return whole_batch(np.where(counts > 0, order, n_genes)[None], counts[None])


def whole_batch(genes: np.ndarray, counts: np.ndarray) -> Batch:
    """Return a batch of cells that are all there, of one study, without labels and places. [B, C, P] each"""
    shape = genes.shape[:2]
    return Batch(
        genes=genes.astype(np.int32),
        counts=counts.astype(np.float32),
        cell_mask=np.ones(shape, bool),
        study=np.zeros(shape, np.int32),
        coords=np.full((*shape, 2), np.nan, np.float32),
        labels={},
    )


def measure(function: Callable, arguments: tuple, seconds: float) -> dict[str, float]:
    """Return the median seconds and cpu seconds of a call."""
    compiled = jax.jit(function).lower(*arguments).compile()
    hardware.give_back()
    return _repeat(lambda _: compiled(*arguments), None, seconds)[0]


def measure_carried(function: Callable, carry, argument, seconds: float) -> tuple[dict[str, float], Any]:
    """Return the same of `carry, _ = function(carry, argument)` again and again in place, and the last carry."""
    compiled = jax.jit(function, donate_argnums=0).lower(carry, argument).compile()
    hardware.give_back()
    return _repeat(lambda carry: compiled(carry, argument)[0], carry, seconds)


def _repeat(function: Callable, carry, seconds: float) -> tuple[dict[str, float], Any]:
    walls, cpus = [], []
    while sum(walls[1:]) < seconds or len(walls) < 4:
        wall, cpu = time.perf_counter(), _cpu()
        carry = jax.block_until_ready(function(carry))
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu() - cpu)
        if walls[0] > LONG:
            return {"s": walls[0], "cpu_s": cpus[0]}, carry
    return {"s": float(np.median(walls[1:])), "cpu_s": float(np.median(cpus[1:]))}, carry


def _case(bench: ModuleType, row: str, small: bool, dtype: str | None) -> Case:
    case = bench.case(row, small)
    case = case._replace(batch=jax.device_put(case.batch))
    return case if dtype is None else case._replace(network=case.network.clone(dtype=dtype))


def _peak_bytes() -> int:
    """Return the most memory used so far: of the device, or of this process where the device is the processor."""
    if jax.local_devices()[0].platform == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return hardware.memory_bytes()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
