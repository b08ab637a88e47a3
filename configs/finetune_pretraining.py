"""Go on with what a model was pre-trained on, on other studies: all of it, low-rank factors or prefixes.

  python -m experiments.train --config=configs/finetune_pretraining.py:lora --workdir=W --config.data.store=STORE \
      --config.init_from=RUN

The model, its genes, its inputs and its loss are those of RUN; batches and studies are unknown to it. Variants: `full`,
`lora`, `prefix`, `tiny` (a smoke test of LoRA).

Expect, of the CellPLM of `compare_budget` on Kang's PBMCs (2,000 cells, a tenth to validate; --config.train.steps=400
--config.train.eval_every=100 --config.data.min_mapped=0.05, 20 to 30 cpu s): validation loss 604, 600, 598, 598 with
`lora`, which changes queries and values alone, and 457, 419, 411, 410 with `full`, whose decoder learns the study.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import finetuning

RATES = {"full": 1e-4, "lora": 1e-3, "prefix": 3e-3}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in (*RATES, "tiny"):
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(RATES)}, tiny")
    method = "lora" if variant == "tiny" else variant
    config = finetuning(method, steps=20 if variant == "tiny" else 1000, every=10 if variant == "tiny" else 200)
    config.optim = {
        "name": "adamw",
        "learning_rate": RATES[method],
        "schedule": "warmup_cosine",
        "warmup": 0.05,
        "weight_decay": 1e-4,
        "no_decay": ("bias$", "norm"),
        "frozen": (),
        "frozen_layers": 0,
        "clip_norm": 1.0,
        "ema": placeholder(float),
    }
    return config
