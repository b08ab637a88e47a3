"""Pre-train a model on a store, fine-tune a trained one, or go on with a run that was stopped.

  python -m experiments.train --config=configs/pretrain_cellplm.py:tiny --workdir=W --config.data.store=DIR
  python -m experiments.train --config=configs/finetune_cell_type.py:lora --workdir=W --config.data.store=DIR \
      --config.init_from=RUN

The same command resumes from the newest valid checkpoint of W. SIGTERM and SIGINT save and end with status 0.
"""

if __name__ == "__main__":  # before the imports that take long
    from scfm_jax import signals

    signals.exit_at_once()

import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

import scfm_jax
from data_pipeline.loader import Loader
from data_pipeline.store import Store, open_store
from data_pipeline.vocab import map_genes, read_genes, read_table
from experiments import cli, finetuning
from experiments import config as configs
from scfm_jax import api, checkpoint, models, optim, sharding, signals, step, train, tuning
from scfm_jax.types import TrainState

FLAGS = flags.FLAGS
GENE_OPTIONS = ("graph", "graph_weighted", "gene_vectors")
config_flags.DEFINE_config_file("config", None, "Config file, and its variant after a colon.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, config.")
flags.DEFINE_bool("distributed", None, "Be one of several processes; found out from the environment, if left out.")


def main(_) -> None:
    if FLAGS.config is None or not FLAGS.workdir:
        raise ValueError("--config and --workdir say what to train and where to (see --helpshort)")
    signals.supervise(lambda desk: pretrain(FLAGS.config, FLAGS.workdir, desk, FLAGS.distributed))


def pretrain(
    config: ConfigDict, workdir: str, desk: signals.Desk | None = None, distributed: bool | None = None
) -> TrainState:
    """Train the model of `config` in `workdir` and return its last state; see `configs/` for what a config is."""
    sharding.join_processes(distributed)
    options = config.to_dict()
    base = None
    if options.get("tune"):
        base = api.load(_given(options.get("init_from"), "init_from", "the run that fine-tuning begins with"))
        options = finetuning.resolve(options, base)
    module = models.get(options["model_name"])
    check(options, module)
    given, data = dict(options["data"]), options["data"]
    store = open_store(_given(data.pop("store"), "data.store", "a folder made by experiments.ingest"))
    tables = data.pop("gene_table", ())
    source = data.pop("genes")
    genes, slots, mapping = gene_slots(store, base.genes if base else source, tables, data.pop("min_mapped", 0.5))
    known = {name: data.pop(name) for name in GENE_OPTIONS if name in data}
    known = base.constants if base else api.gene_constants(known, genes, read_table(tables) if tables else None)
    share = {"host": jax.process_index(), "n_hosts": jax.process_count()}
    data = {"seed": options["train"].get("seed", 0), **data}
    data["labels"] = known_labels(store, data.get("labels", ()), module)
    data["keep"] = slots[:-1] < len(genes)
    loader = Loader(store, part="train", **data, **share)
    held_out = loader.split_report["parts"]["val"]["cells"]
    constants = {**known, "slots": slots, "measured": measured(store, slots, len(genes))}
    if hasattr(module, "fit") and base is None:  # every process reads all cells: they must come to the same numbers
        passes = {p: Loader(store, part=p, **data).epoch_batches() for p in ("train", *(["val"] if held_out else []))}
        constants, options["inputs"] = module.fit(passes, constants, options.get("inputs", {}))
    metadata = {
        "model": options["model_name"],
        "config": options | {"data": given},
        "genes": genes,
        "classes": loader.classes,
        "code_version": scfm_jax.__version__,
        "split": loader.split_report,
        "mapping": mapping,
        "store": store.manifest["crc32c"],
    }
    metadata["config"]["model"] = sized(module, options["model"], metadata)
    model = module.Model(**metadata["config"]["model"])
    folder = configs.prepare_workdir(workdir, metadata)
    optimizer = by_epoch(options.get("optim", {}), loader) | {"layers": getattr(module, "TUNING", None)}
    if base is None:
        objective = step.pretraining(module, model, options.get("inputs", {}), options.get("loss", {}))
        initial = warm_start(options["init_from"], genes) if options.get("init_from") else None
    else:
        objective = finetuning.objective(module, model, options, store)
        initial = finetuning.beginning(module, model, options, base, Loader(store, part="train", **data).epoch_batches)
        optimizer["frozen"] = finetuning.frozen(optimizer, options)
    state = train.fit(
        objective,
        loader,
        constants,
        metadata,
        folder,
        optimizer=optimizer,
        **options["train"],
        validation=Loader(store, part="val", **data, **share) if held_out else None,
        initial=initial,
        desk=desk,
    )
    if base is not None:
        finetuning.write(folder / tuning.FILE, state, optimizer, base, options, metadata)
    return state


def check(config: ConfigDict | Mapping[str, Any], module: ModuleType) -> None:
    """Raise ValueError for a key of `config` that nothing takes."""
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    ours = ("store", "genes", "gene_table", "min_mapped", *GENE_OPTIONS)
    accepted = {part: models.defaults(module, part) for part in ("model", "inputs", "loss")} | {
        "data": [*ours, *configs.keywords(Loader, without=("part", "keep", "host", "n_hosts"))],
        "optim": [*configs.keywords(optim.build, without=("steps", "layers")), "schedule_unit"],
        "train": configs.keywords(train.fit, without=("optimizer", "validation", "initial", "desk")),
    }
    accepted |= finetuning.accepted(config)
    configs.check(config, accepted)
    mesh = [*configs.parameters(sharding.make_mesh), "rules", "min_size"]
    configs.check_names("config.train.mesh", config["train"].get("mesh", {}), mesh)


def known_labels(store: Store, labels: Sequence[str], module: ModuleType) -> list[str]:
    """Return `labels` without the covariates of the model (its SIZES) that no study of the store has; say so."""
    columns = {column for name in store.studies for column in store.study(name).obs.columns}
    absent = [label for label in labels if label in module.SIZES.values() and label not in columns]
    for label in absent:
        print(f"no study has the obs column {label!r}: the model is trained without this covariate", flush=True)
    return [label for label in labels if label not in absent]


def gene_slots(
    store: Store, source: str | list[str], tables: tuple[str, ...] = (), min_mapped: float = 0.5
) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Return the model's genes, the model slot of each store id [G + 1] (V: none), and the mapping report.

    Args:
      source: "store" for the store's own vocabulary, or a gene list or its file; then the report is printed.
      tables: gene tables that know aliases and second names.
    """
    n = len(store.genes)
    if source == "store":
        return store.genes, np.arange(n + 1, dtype=np.int32), {"n": n, "mapped": n}
    genes = read_genes(source) if isinstance(source, str) else source
    table = read_table(tables) if tables else None
    found = map_genes(store.genes, genes, ensembl=store.second_names, table=table, min_mapped=min_mapped)
    print(found.report, flush=True)
    index = found.index.copy()
    first = np.unique(index, return_index=True)[1]
    again = np.setdiff1d(np.flatnonzero(index >= 0), first)  # a slot takes the counts of one store gene
    if len(again):
        print(f"  left out, since another store gene means the same: {', '.join(store.genes[i] for i in again[:5])}")
        index[again] = -1
    slots = np.append(np.where(index < 0, len(genes), index), len(genes))
    return genes, slots.astype(np.int32), found.report.to_dict()


def measured(store: Store, slots: np.ndarray, n_genes: int) -> np.ndarray:
    """Return which model genes each study measured, bool. [S, V]"""
    table = np.zeros((len(store.studies), n_genes + 1), bool)
    for study in map(store.study, store.studies):
        table[study.index, slots[:-1][study.measured]] = True
    return table[:, :n_genes]


def by_epoch(options: dict[str, Any], loader: Loader) -> dict[str, Any]:
    """Return the options of the optimiser: `schedule_unit` "epoch" becomes the number of updates of an epoch."""
    options = dict(options)
    unit = options.pop("schedule_unit", "update")
    if unit not in ("update", "epoch"):
        raise ValueError(f"optim.schedule_unit={unit!r}: must be update or epoch")
    return options | ({"schedule_every": loader.epoch_steps} if unit == "epoch" else {})


def sized(module: ModuleType, options: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's options with the sizes that the data decide, where they are left at 0."""
    known = {"genes": metadata["genes"], **metadata["classes"]}
    sizes = {field: len(known.get(name, ())) for field, name in module.SIZES.items()}
    return dict(options) | {field: size for field, size in sizes.items() if not options.get(field)}


def warm_start(source: str, genes: list[str]) -> Callable[[TrainState], TrainState]:
    """Return a function that puts the weights of another run into a state, see `finetuning.begin_with`.

    Raises ValueError where that run has other genes.
    """
    folder = pathlib.Path(source)
    folder = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    restored = checkpoint.restore(folder)
    if restored is None:
        raise FileNotFoundError(f"config.init_from={source}: no checkpoint there")
    if restored.meta["genes"] != genes:
        raise ValueError(f"config.init_from={source}: it has another gene list; give data.genes the list that it has")
    weights = restored.state.get("ema") or restored.state["params"]
    return finetuning.begin_with({"params": weights, **restored.state.get("buffers", {})}, source)


def _given(value: Any, key: str, what: str) -> Any:
    if not value:
        raise ValueError(f"--config.{key} is missing: give {what}")
    return value


if __name__ == "__main__":
    cli.run(main)
