"""The loop: one function trains every model and task, on every mesh, and can be stopped and resumed anywhere.

A run is a function of (config, seed): N steps equal k steps, a restart in a new process and N - k steps, bit by bit,
for the state and for metrics.jsonl. What makes it so is in `progress.py`; what a step computes is in `step.py`.

The devices are kept busy: step n is dispatched, then the metrics of n - 1 are read and the batch of n + 1 is fetched.
"""

import contextlib
import functools
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scfm_jax import sharding
from scfm_jax.saving import checkpoint
from scfm_jax.saving.lock import alone
from scfm_jax.training import divergence, hardware, optim, signals
from scfm_jax.training.loader import Loader, to_batch
from scfm_jax.training.log import Log
from scfm_jax.training.progress import Program, Progress, Trainer
from scfm_jax.training.step import Objective, init_state, jitted
from scfm_jax.training.validation import Tables, measured, validator
from scfm_jax.types import Batch, TrainState


def fit(
    objective: Objective,
    loader: Loader,
    constants: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    workdir: str | pathlib.Path,
    *,
    optimizer: Mapping[str, Any],
    steps: int,
    seed: int = 0,
    mesh: Mapping[str, Any] | None = None,
    microbatches: int = 1,
    log_every: int = 10,
    eval_every: int = 0,
    checkpoint_every: int = 0,
    keep: int = 2,
    monitor: str = "loss",
    patience: int = 0,
    max_skipped: int = 10,
    rewind: int = 0,
    floors: int = 10_000,
    tensorboard: bool = True,
    wandb: str | None = None,
    validation: Loader | None = None,
    tables: Tables | None = None,
    initial: Callable[[TrainState], TrainState] | None = None,
    lock: signals.StateLock | None = None,
) -> TrainState:
    """Train to step `steps` and return the last state; go on from the newest valid checkpoint of `workdir` if there is
    one.

    Args:
      constants: arrays that the model needs and that ride along in the state.
      metadata: JSON that describes the run; it is in every checkpoint.
      workdir: gets checkpoints/, metrics.jsonl, timing.jsonl and tensorboard/.
      optimizer: keys of `config.optim`, see `optim.build`.
      mesh: keywords of `sharding.make_mesh` (data, fsdp, seq) and of `sharding.state_shardings` (rules, min_size).
      microbatches: parts into which a batch is cut to save memory, see `step.train_step`.
      log_every, eval_every, checkpoint_every: in steps, 0 for never; the last step is always saved.
      keep: checkpoints to keep, beside the best one.
      monitor: the validation metric of which the smallest value is best; "-name" for the largest.
      patience: stop after this many validations without a new best, 0 for never.
      max_skipped: give up after this many updates in a row that were not finite.
      rewind: a saved step to go back to, once, where a run has diverged, 0 for none. What is after it is removed, and
        the optimiser's settings may differ from there on.
      floors: training cells that tables of genes are learnt from, before the first step, to stand beside the
        validation and to tell its "residual"; 0 for none.
      wandb: name of a Weights & Biases project.
      validation: the cells to validate on.
      tables: what makes these tables; None where a model or a task has none.
      initial: changes the first state of a new run (other weights to start from).
      lock: of the state, which is saved when a signal arrives, see `signals.supervise`.

    Raises:
      ValueError: sizes that do not fit the devices, a checkpoint of another model, a loss that stays not finite,
        another training in `workdir`.
      OSError: the disk refuses, or `workdir` was removed.
    """
    tables = tables if floors else None
    if monitor.removeprefix("-") == "residual" and validation and not tables:
        why = "train.floors=0 leaves it out" if not floors else "this model or task has no floors"
        raise ValueError(f"train.monitor={monitor}: {why}; monitor loss")
    lock = lock or signals.StateLock()
    lock.shared = jax.process_count() > 1
    mesh = dict(mesh or {})
    shard = {name: mesh.pop(name) for name in ("rules", "min_size") if name in mesh}
    devices, folder = sharding.make_mesh(**mesh), pathlib.Path(workdir) / "checkpoints"
    build = functools.partial(optim.build, steps=steps, **optimizer)
    hardware.peak_flops()  # measures a CPU, so not during a step
    with alone(workdir, kept_after=signals.Stopped), jax.set_mesh(devices):
        begin = functools.partial(init_state, objective, build, seed)
        layout = functools.partial(sharding.state_shardings, mesh=devices, **shard)
        back = rewind if _rewinds(folder, rewind, metadata) else None
        state, progress = _begin(begin, loader, constants, folder, layout, initial, back)
        log = None
        if jax.process_index() == 0:
            place = progress.step, progress.length, steps
            log = Log(workdir, *place, tensorboard, wandb, metadata, progress.digest)
            log.say(_opening(metadata, state, progress.step, steps, workdir))
        saving = {"folder": folder, "metadata": metadata, "keep": keep}
        trainer = Trainer(state, progress, log, log_every=log_every, max_skipped=max_skipped, **saving)
        stop_if_asked = _stop_vote(lock, devices)
        tell = log.say if log else lambda text: None
        validate = validator(objective, validation, devices, stop_if_asked, tell) if validation else None
        program = _compiler(objective, build(state.params), microbatches, devices, log.say if log else None)
        lock.save = trainer.save
        with lock.held(), contextlib.closing(loader.iter(progress.loader)) as batches:
            if tables and validate and eval_every and progress.floors is None:
                with lock.released(), trainer.clock.pause():
                    options = (loader, validation, devices, floors, stop_if_asked, tell)
                    values = measured(tables, trainer.state, constants, *options)
                trainer.held_against(values)
            if log and tables and progress.floors:
                log.floor = tables.against, progress.floors.get(tables.against)
            while True:
                best = None
                if validate and _due(progress.step, eval_every) and progress.evaluated < progress.step:
                    trainer.catch_up()
                    with lock.released(), trainer.clock.pause():
                        values = validate(trainer.state)
                    if tables:
                        values = tables.held(values, progress.floors)
                    best = trainer.validated(values, monitor)
                finished = progress.step >= steps or 0 < patience <= progress.stale
                if best or finished or _due(progress.step, checkpoint_every):
                    with trainer.clock.pause():
                        trainer.save(best)
                if finished:
                    break
                stop_if_asked()
                with lock.released():
                    with trainer.clock.data():
                        batch, position = sharding.put_batch(to_batch(next(batches)), devices), batches.get_state()
                    with trainer.clock.pause():
                        step = program(trainer.state, batch)
                trainer.advance(step, batch, position)
        if log:
            log.close()
    return trainer.state


def _opening(metadata: Mapping[str, Any], state: TrainState, step: int, steps: int, workdir: str | pathlib.Path) -> str:
    """Return the line that says what is about to be trained, on what and where to."""
    cells = metadata.get("split", {}).get("parts", {}).get("train", {}).get("cells")
    data = f" on {cells:,} cells x {len(metadata['genes']):,} genes" if cells and metadata.get("genes") else ""
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return (
        f"training {metadata.get('model', 'a model')}{data}: {size:,} parameters, {hardware.name()}, "
        f"steps {step:,} to {steps:,}, in {workdir}"
    )


def _begin(
    begin: Callable[[Batch, Any], TrainState],
    loader: Loader,
    constants: Mapping[str, np.ndarray],
    folder: pathlib.Path,
    layout: Callable[[TrainState], Any],
    initial: Callable[[TrainState], TrainState] | None,
    back: int | None,
) -> tuple[TrainState, Progress]:
    """Return state and progress of the newest valid checkpoint, or those of step 0 where there is none.

    `back` is a step to go back to instead; the checkpoints after it are removed.
    """
    example = jax.tree.map(np.zeros_like, to_batch(loader.batch(0)))
    shapes = jax.eval_shape(begin, example, constants)
    shardings = layout(shapes)
    restored = checkpoint.restore(folder, sharding.abstract(shapes, shardings), step=back)
    if back is not None:
        checkpoint.drop_after(folder, back)
    if restored is None:
        state = jax.jit(begin, out_shardings=shardings)(example, constants)
        return initial(state) if initial else state, Progress()
    if jax.process_index() == 0:
        for skipped in restored.skipped:
            print(f"warning: damaged checkpoint passed over: {skipped}", file=sys.stderr)
        print(f"going on from step {restored.step}", file=sys.stderr, flush=True)
    return restored.state, Progress(**restored.meta["progress"])


def _rewinds(folder: pathlib.Path, rewind: int, metadata: Mapping[str, Any]) -> bool:
    """Return whether the run goes back to a step rather than on from its newest checkpoint, see `divergence`."""
    saved = checkpoint.read_meta(folder) if rewind and checkpoint.steps(folder) else {}
    return divergence.rewinds(rewind, saved, metadata)


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0


def _compiler(
    objective: Objective,
    optimizer: optim.Optimizer,
    microbatches: int,
    devices: Mesh,
    say: Callable[[str], None] | None,
) -> Callable[[TrainState, Batch], Program]:
    """Return a function that compiles the training step, once for each shape of batch; it reads no array.

    `say` is told of each compilation.
    """
    programs: dict[tuple, Program] = {}

    def program(state: TrainState, batch: Batch) -> Program:
        shape = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch))
        if shape not in programs:
            if say:
                say(f"compiling the training step for batches of {' x '.join(map(str, batch.genes.shape))}")
            layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            step = jitted(objective, optimizer, microbatches, layout, NamedSharding(devices, PartitionSpec()))
            flops = objective.step_flops(batch, state.constants)
            programs[shape] = Program(step.lower(state, batch).compile(), flops)
            hardware.give_back()
        return programs[shape]

    return program


def _stop_vote(lock: signals.StateLock, devices: Mesh) -> Callable[[], None]:
    """Return a function to call between steps: it raises Stopped where a stop was asked for, in all processes at the
    same call.

    Each call starts an all-reduce of the stop flag and reads the previous result, so no process waits.
    """
    votes: list[jax.Array] = []

    def stop_if_asked() -> None:
        if not lock.shared:
            stop = lock.stopping
        else:
            stop = bool(votes) and int(votes.pop()) > 0
            votes.append(sharding.any_process(lock.stopping, devices))
        if stop:
            raise signals.Stopped

    return stop_if_asked
