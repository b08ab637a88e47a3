"""Fine-tune any trained model to name cell types: all of it, low-rank factors, prefixes, or a head alone.

  python -m experiments.train --config=configs/finetune_cell_type.py:lora --workdir=W --config.data.store=STORE \
      --config.init_from=RUN [--config.task.label=cell_type] [--config.data.split.by=donor --config.data.split.val=...]

The model, its genes and its bags are those of RUN. Variants: `full`, `lora` (rank 8 beside queries and values),
`prefix` (10 keys and values in every layer), `frozen` (a linear head on the embedding), `tiny` (a smoke test of LoRA).
The head learns at a rate of 0.1 in all of them, the model at its method's. The first N layers stay as they are with
--config.optim.frozen_layers=N, anything else by its name with --config.optim.frozen. `experiments.annotate` runs
methods, models and seeds beside baselines.

scEMB's paper takes the mean of all layers for a cell (--config.model.cell_layer=all_layers; sCT says mean), or a
transformer block of the task's own over the cell's genes (--config.task.head=transformer, at a rate of 5e-4), and BERT
is tuned with its dropout on (--config.task.noise=True).

Where embeddings differ little between cells beside their size (deviation over size 0.12: Exceiver), `full` shifts all
cells at once past the mean that the head subtracts, which stays that of step 0: gradients have a norm of 100, and types
of one of its pre-training studies after tuning on another (150 updates of 32 cells, seed 0) have a macro-F1 of 0.60,
0.64 at a rate of 2e-5 without clipping (and the head's at 0.1 still), frozen 0.67, and 0.76 where, in
a trial, the mean was that of each batch, which is --config.task.mean=running. The batch is that of RUN: with 8 cells an
update in place of 32 `frozen` has 0.63, `full` 0.52; --config.tune.batch_cells=32 gives all runs the same. scEMB,
CellPLM and scLong (embedded by position) gain, or lose nothing, by `full` as it is, and a bag of one tissue's cells
says little of the mean of all, so the mean of the beginning is the default.

Of Exceiver as `compare_budget` has it now, trained on 6,000 cells of six studies: types (B, monocytes, NK, T) of
pbmc_pisces_1000 after 120 updates of 32 cells of pbmc_10x_3chem, seed 0, macro-F1: frozen 0.31, `full` 0.45, with the
running mean 0.53; with the head alone for half of the updates (--config.optim.delay=0.5) and then the model at 5e-5
0.29, with both 0.31.

Expect: what `experiments.annotate` shows, of which docs/results.md has a table; the least validation loss is marked as
best.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import finetuning

RATES = {"full": 5e-4, "lora": 2e-3, "prefix": 5e-3, "frozen": 1e-1}
HEAD = 1e-1
STEPS = 300


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in (*RATES, "tiny"):
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(RATES)}, tiny")
    method = "lora" if variant == "tiny" else variant
    config = finetuning(method, steps=20 if variant == "tiny" else STEPS, every=10 if variant == "tiny" else 100)
    config.task = {
        "name": "cell_type",
        "label": "cell_type",
        "head": "embedding",
        "layers": 1,
        "width": 64,
        "dropout": 0.0,
        "balanced": False,
        "hide": False,
        "noise": False,
        "standardise": True,
        "mean": "start",
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": RATES[method],
        "schedule": "warmup_cosine",
        "warmup": 0.05,
        "delay": 0.0,
        "weight_decay": 1e-3,
        "no_decay": ("bias$", "norm"),
        "groups": ({"match": ("^task/linear_",), "rate": HEAD / RATES[method], "delay": 0.0},),
        "frozen": (),
        "frozen_layers": 0,
        "clip_norm": 1.0,
        "ema": placeholder(float),
    }
    return config
