"""Pre-train a model on a store, fine-tune a trained one, or go on with a run that was stopped.

  python -m experiments.train --config=configs/pretrain_cellplm.py:tiny --workdir=W --config.data.store=DIR
  python -m experiments.train --config=configs/finetune_cell_type.py:lora --workdir=W --config.data.store=DIR \
      --config.init_from=RUN

The same command resumes from the newest valid checkpoint of W. SIGTERM and SIGINT save and end with status 0.
"""

if __name__ == "__main__":  # before the imports that take long
    from scfm_jax.training import signals

    signals.exit_at_once()

import os
import pathlib
import shlex
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

import scfm_jax
from data_pipeline.batches.loader import Loader
from data_pipeline.batches.loader import Options as LoaderOptions
from experiments import cli
from experiments.training import data as training_data
from experiments.training import finetuning, key_notes, settings
from scfm_jax import api, models, sharding
from scfm_jax.saving import checkpoint
from scfm_jax.saving.lock import alone
from scfm_jax.saving.sealed import one_line
from scfm_jax.tasks import floors
from scfm_jax.training import loop, optim, pace, signals, step, tuning
from scfm_jax.types import TrainState

FLAGS = flags.FLAGS
LOST = (
    "another process of this run has ended or cannot be reached; see what it said, then start all of them again with "
    "the same command: they go on from the newest checkpoint"
)
"""What the processes that are left say where one is lost."""
OPTIONS = cli.options(
    "config",
    workdir="Folder of the run: checkpoints, logs, config.",
    print_config=(bool, False, "Print the config that would be trained, with a note for each key, and end."),
    distributed=(bool, None, "Be one of several processes; found out from the environment, if left out."),
)


def main(_) -> None:
    if FLAGS.config is not None and FLAGS.print_config:
        print(key_notes.text(FLAGS.config.to_dict(), FLAGS["config"].config_filename))
        return
    if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("--config and --workdir say what to train and where to (see --helpshort)")
    began = time.perf_counter()

    def work(lock: signals.StateLock) -> None:
        state = pretrain(FLAGS.config, FLAGS.workdir, lock, FLAGS.distributed)
        if jax.process_index() == 0:
            print(ending(FLAGS.workdir, int(state.step), time.perf_counter() - began), flush=True)

    supervise(work)


def supervise(work: Callable[[signals.StateLock], None]) -> None:
    """Run `work` as `signals.supervise` does; a disk that refuses and a lost process end this one at once, in one line.

    At once, since threads of Orbax that a full disk has stopped, and JAX's wait for its peers, would otherwise crash
    the interpreter at its end, a minute later.
    """
    try:
        signals.supervise(work)
    except (OSError, jax.errors.JaxRuntimeError) as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if os.environ.get("SCFM_TRACEBACK") or (lost and jax.process_count() == 1):
            raise
        cli.end(cli.fail(OSError(f"{LOST} ({one_line(error)})") if lost else error))


def ending(workdir: str, step: int, seconds: float) -> str:
    """Return what to tell of a finished run: how long it took, its best step, and the command that comes next."""
    text = f"trained to step {step:,} in {pace.words(seconds)}"
    try:
        if best := checkpoint.read_best(pathlib.Path(workdir) / "checkpoints"):
            text += f"; best at step {best[0]:,}: {best[1]['metric']} {best[1]['value']:.4g}"
    except ValueError as damage:
        text += f"; {damage}"
    place = shlex.quote(workdir)
    return f"{text}\nnext: python -m experiments.embed --workdir={place} --input=CELLS.h5ad --output=EMBEDDED.h5ad"


def pretrain(
    config: ConfigDict, workdir: str, lock: signals.StateLock | None = None, distributed: bool | None = None
) -> TrainState:
    """Train the model of `config` in `workdir` and return its last state; see `configs/` for what a config is."""
    sharding.join_processes(distributed)
    options = config.to_dict()
    base = None
    if options.get("tune"):
        source = training_data.given(options.get("init_from"), "init_from", "the run that fine-tuning begins with")
        base = api.load(source, scaler=options["tune"].get("scaler", "training"))
        options = finetuning.resolve(options, base)
    module = models.get(options["model_name"])
    check(options, module)
    data = training_data.read(options["data"], module, options["train"].get("seed", 0), base)
    loaders = data.loaders()
    if hasattr(module, "fit") and base is None:
        options["inputs"] = data.fit(module, options.get("inputs", {}))
    if base is not None:
        data.complete(module, options["inputs"])
    metadata = describe(options, module, data, loaders["train"])
    model = module.Model(**metadata["config"]["model"])
    settings.check_workdir(workdir)
    with alone(workdir, kept_after=signals.Stopped):
        folder = settings.prepare_workdir(workdir, metadata)
        optimizer = by_epoch(options.get("optim", {}), loaders["train"]) | {"layers": getattr(module, "TUNING", None)}
        if base is None:
            parts = options.get("inputs", {}), options.get("loss", {})
            tables = floors.of(options["model_name"], *parts) if options["train"].get("floors", True) else None
            objective = step.pretraining(module, model, *parts, observe=tables and tables.observe)
            initial = warm_start(options["init_from"], data.genes) if options.get("init_from") else None
        else:
            objective = finetuning.objective(module, model, options, data.store)
            every_cell = data.loaders(shared=False)["train"].epoch_batches
            initial = finetuning.beginning(module, model, options, base, every_cell)
            tables = None
            optimizer["frozen"] = finetuning.frozen(optimizer, options)
        state = loop.fit(
            objective,
            loaders["train"],
            data.constants,
            metadata,
            folder,
            optimizer=optimizer,
            **options["train"],
            validation=loaders.get("val"),
            tables=tables,
            initial=initial,
            lock=lock,
        )
        if base is not None:
            finetuning.write(folder / tuning.FILE, state, optimizer, base, options, metadata)
    return state


def describe(
    options: Mapping[str, Any], module: ModuleType, data: training_data.TrainingData, loader: Loader
) -> dict[str, Any]:
    """Return the metadata of a run: what its checkpoints say of themselves, sizes that the data decide filled in."""
    metadata = {
        "model": options["model_name"],
        "config": dict(options),
        "genes": data.genes,
        "second_names": data.second_names,
        "classes": loader.classes,
        "code_version": scfm_jax.__version__,
        "split": loader.split_report,
        "mapping": data.mapping,
        "store": data.store.manifest["crc32c"],
        "min_gene_fraction": data.min_gene_fraction(),
    }
    metadata["config"]["model"] = sized(module, options["model"], metadata)
    return metadata


def check(config: ConfigDict | Mapping[str, Any], module: ModuleType) -> None:
    """Raise ValueError for a key of `config` that nothing takes."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    accepted = {part: models.defaults(module, part) for part in ("model", "inputs", "loss")} | {
        "data": [
            *training_data.OPTIONS,
            *settings.keywords(LoaderOptions, without=("part", "keep", "same", "host", "n_hosts")),
        ],
        "optim": [*optim.KEYS, "schedule_unit"],
        "train": settings.keywords(loop.fit, without=("optimizer", "validation", "tables", "initial", "lock")),
    }
    accepted |= finetuning.accepted(config)
    settings.check(config, accepted)
    mesh = [*settings.parameters(sharding.make_mesh), "rules", "min_size"]
    settings.check_names("config.train.mesh", config["train"].get("mesh", {}), mesh)


def by_epoch(options: dict[str, Any], loader: Loader) -> dict[str, Any]:
    """Return the options of the optimiser: `schedule_unit` "epoch" becomes the number of updates of an epoch."""
    options = dict(options)
    unit = options.pop("schedule_unit", "update")
    if unit not in ("update", "epoch"):
        raise ValueError(f"optim.schedule_unit={unit!r}: must be update or epoch")
    return options | ({"schedule_every": loader.epoch_steps} if unit == "epoch" else {})


def sized(module: ModuleType, options: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's options with the sizes that the data decide, where they are left at 0."""
    names = {"genes": metadata["genes"], **metadata["classes"]}
    sizes = {field: len(names.get(name, ())) for field, name in module.SIZES.items()}
    return dict(options) | {field: size for field, size in sizes.items() if not options.get(field)}


def warm_start(source: str, genes: list[str]) -> Callable[[TrainState], TrainState]:
    """Return a function that puts the weights of another run into a state, see `finetuning.begin_with`.

    Raises ValueError where that run has other genes.
    """
    base = api.load(source)
    if base.genes != genes:
        raise ValueError(f"config.init_from={source}: it has another gene list; give data.genes the list that it has")
    return finetuning.begin_with(base.variables, base.source)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
