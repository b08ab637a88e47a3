"""Pre-train scLong (Bai et al., bioRxiv 2024.11.09.622759) on a store of single-cell studies.

  python -m experiments.train --config=configs/pretrain_sclong.py:tiny --workdir=runs/sclong --config.data.store=STORE
  python -m experiments.train --config=configs/pretrain_sclong.py:small --workdir=runs/sclong_go \
      --config.data.store=STORE --config.model.graph=True --config.data.graph=GRAPH

GRAPH is a file of `experiments.go_graph`; gene2vec's text file or another matrix goes to config.data.gene_vectors (its
width is config.model.base_dim). Variants: `tiny` (a smoke test) and `small` (2 CPU cores), both without a graph, which
they take as above; `paper` and `published` (one billion parameters; they differ where paper and released code do, see
the model's file, and need a graph; both in bfloat16 with 5 % of the cells for validation; the paper's cells have at
least 300 genes: `experiments.ingest --min_genes=300`). Batches of 19,200 cells are 200 microbatches of 96; with
--config.optim.schedule_unit=epoch the learning rate moves once an epoch, as the released code has it: then 5 epochs
never leave the warm-up.

--config.model.cells=outsiders embeds a cell by a number for each position, as the released batch script means to; the
mean over positions, the default, was little but a cell's depth where it was looked at (`configs/compare_budget.py`).
What is trained is the same with both.

Expect: not yet run (the paper: 48 M cells, 5 epochs, 96 A100, 35 days).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretraining
from scfm_jax import models

PAPER = {"batch": 19_200, "steps": 11_875, "rate": 5e-5, "every": 500}
SIZES = {
    "tiny": {"batch": 8, "steps": 100, "rate": 2e-3, "every": 50},
    "small": {"batch": 8, "steps": 1000, "rate": 1e-3, "every": 200},
    "paper": PAPER,
    "published": PAPER,
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    parts = models.options("sclong", variant)
    config = pretraining("sclong", parts, bag=1, **{key: size[key] for key in ("batch", "steps", "every")})
    config.data.graph = placeholder(str)
    config.data.graph_weighted = variant != "paper"
    config.data.gene_vectors = placeholder(str)
    config.optim = {
        "name": "adam",
        "learning_rate": size["rate"],
        "schedule": "warmup_cosine",
        "warmup": 0.05,
        "final_rate": 0.02,
        "cycle": 15,
        "cycle_growth": 2.0,
        "cycle_peak": 0.9,
        "schedule_unit": "update",
        "weight_decay": 0.0,
        "no_decay": (),
        "frozen": (),
        "clip_norm": 100.0,
        "ema": placeholder(float),
    }
    if size is PAPER:
        config.optim.update({"schedule": "cosine_restarts", "warmup": 5})
        config.model.update({"remat": True, "scan": True, "dtype": "bfloat16"})
        config.data.split.val = 0.05
        config.train.microbatches = 200
    return config
