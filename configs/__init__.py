"""One file, one runnable claim: `--config=configs/pretrain_cellplm.py:tiny`.

get_config(variant) -> ConfigDict   of `experiments.train`. `sweep_<question>.py` has it too, the base of its sweep, and
get_sweep(variant) -> dict          of `experiments.sweep`, with exactly these keys:
  question   the title of the table.
  config     "file.py:variant", what the points change. seeds: training seeds of every point.
  points     the base first: {"axis", "label", "set": {config key: value}}, and where wanted "evaluate": {flag: value}
             for its evaluation and "paper": {metric: the paper's number}.
  evaluate   {"command": a module of `experiments` that takes --workdir, "flags": {flag: value}, "result": the JSON file
             it writes there, whose "rows" have metrics and a "method" or "embedding", "method": which is the model's}.
  metrics    {name in the rows: what it is}, the one that the paper reports first.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def pretraining(
    model_name: str, parts: Mapping[str, Any], *, bag: int, batch: int, steps: int, every: int
) -> ConfigDict:
    """Return what all pre-training configs share; a config adds `optim` and changes what is its own.

    Args:
      parts: model, inputs and loss options, of `models.options`.
      bag, batch: cells of a bag, bags of a batch.
      steps, every: steps of the run, and between validations and checkpoints.
    """
    config = ConfigDict({"model_name": model_name, **parts})
    config.data = {
        "store": placeholder(str),
        "genes": "store",
        "gene_table": (),
        "min_mapped": 0.5,
        "bag": bag,
        "batch": batch,
        "kind": "run",
        "run": placeholder(int),
        "mix": placeholder(int),
        "labels": (),
        "filter": placeholder(str),
        "split": {"by": "cell", "val": 0.1, "test": 0.0, "seed": 0},
        "mixture": placeholder(dict),
        "buckets": (512, 1024, 2048, 4096, 8192, 16384),
        "cell_buckets": (),
        "threads": 2,
        "prefetch": 4,
        "workers": 0,
    }
    config.train = {
        "steps": steps,
        "seed": 0,
        "log_every": every // 5,
        "eval_every": every,
        "checkpoint_every": every,
        "keep": 2,
        "monitor": "loss",
        "patience": 0,
        "microbatches": 1,
        "max_skipped": 10,
        "floors": 10_000,
        "mesh": {"data": -1, "fsdp": 1, "seq": 1},
        "tensorboard": True,
        "wandb": placeholder(str),
    }
    config.init_from = placeholder(str)
    return config


def finetuning(method: str, *, steps: int, every: int) -> ConfigDict:
    """Return what all fine-tuning configs share: what is None or empty here is as in the run that it begins with.

    Args:
      method: of `scfm_jax.training.tuning`. steps, every: as for `pretraining`.
    """
    parts = {"model": {"cell_layer": placeholder(str)}, "inputs": {}, "loss": {}}
    config = pretraining(None, parts, bag=1, batch=1, steps=steps, every=every)
    config.model_name = placeholder(str)
    config.data.update({"bag": placeholder(int), "batch": placeholder(int), "kind": placeholder(str)})
    config.data.update({"buckets": placeholder(tuple), "cell_buckets": placeholder(tuple)})
    config.tune = {
        "method": method,
        "targets": (),
        "rank": 8,
        "alpha": 16.0,
        "length": 10,
        "vectors": placeholder(str),
        "start": "base",
        "scaler": "training",
        "batch_cells": 0,
    }
    config.task = {}
    return config
