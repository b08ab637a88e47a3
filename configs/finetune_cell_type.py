"""Fine-tune any trained model to name cell types: all of it, low-rank factors, prefixes, or a head alone.

  python -m experiments.train --config=configs/finetune_cell_type.py:lora --workdir=W --config.data.store=STORE \
      --config.init_from=RUN [--config.task.label=cell_type] [--config.data.split.by=donor --config.data.split.val=...]

The model, its genes and its bags are those of RUN. Variants: `full`, `lora` (rank 8 beside queries and values),
`prefix` (10 keys and values in every layer), `frozen` (a linear head on the embedding), `tiny` (a smoke test of LoRA).
The head learns at a rate of 0.1 in all of them, the model at its method's. The first N layers stay as they are with
--config.optim.frozen_layers=N, anything else by its name with --config.optim.frozen. `experiments.annotate` runs
methods, models and seeds beside baselines.

Expect: what `experiments.annotate` shows, of which README has a table; the least validation loss is marked as best.
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
        "layers": 1,
        "width": 64,
        "dropout": 0.0,
        "balanced": False,
        "hide": False,
        "noise": False,
        "standardise": True,
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": RATES[method],
        "schedule": "warmup_cosine",
        "warmup": 0.05,
        "weight_decay": 1e-3,
        "no_decay": ("bias$", "norm"),
        "groups": ({"match": ("^task/linear_",), "rate": HEAD / RATES[method]},),
        "frozen": (),
        "frozen_layers": 0,
        "clip_norm": 1.0,
        "ema": placeholder(float),
    }
    return config
