"""Pre-train Exceiver (Connell, Khan, Keiser, LMRL 2022) on a store of single-cell studies.

  python -m experiments.train --config=configs/pretrain_exceiver.py:tiny --workdir=W --config.data.store=STORE

One pass over the training cells comes first: mean and deviation of every gene, and how many genes to hide. Variants:
`tiny` (a smoke test), `small` (2 CPU cores), `paper` (one layer, a class token that also the latents see), `published`
and `published_classifier` (as the released weights were trained: 8 layers without labels, 1 layer with 24 tissues).
Those with labels read obs["tissue"]; without that column they train without a class token. As in the released code,
Adam with an L2 term on all parameters, a rate that climbs to 3e-4 over 500 updates and stays there, no clipping. Adam
divides the L2 term by its own size, so it shrinks the vector of a gene that is hardly ever seen by the whole rate at
every update (at 1e-3 from 1 to 0.02 in 2,000): `tiny` and `small` leave it out of what is learnt gene by gene.

Expect: paper and published variants are not yet run (the released ones: Tabula Sapiens, 4 GPUs with 64 or 100 cells
each, best validation error 0.7189 after 661,550 steps and 0.8216 after 714,272; the paper: explained variance 0.73). An
explained variance says nothing of cells unless it is above that of the genes' means, and of these with the cell's
depth: `experiments.floors --parts=transfer,pretraining` prints both.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretraining
from scfm_jax import models

PAPER = {"batch": 256, "steps": 700_000, "every": 5000, "rate": 3e-4, "warmup": 500}
SIZES = {
    "tiny": {"batch": 32, "steps": 100, "every": 50, "rate": 3e-3, "warmup": 20},
    "small": {"batch": 64, "steps": 1000, "every": 200, "rate": 1e-3, "warmup": 100},
    "paper": PAPER,
    "published": PAPER,
    "published_classifier": PAPER | {"batch": 400},
}
BY_GENE = (r"^(genes|output/bias)$",)
LABELLED = ("paper", "published_classifier")


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    parts = models.options("exceiver", variant)
    parts["model"]["n_classes"] = 0  # those of the store
    config = pretraining("exceiver", parts, bag=1, batch=size["batch"], steps=size["steps"], every=size["every"])
    config.data.labels = ("tissue",) if variant in LABELLED else ()
    config.optim = {
        "name": "adam",
        "learning_rate": size["rate"],
        "schedule": "warmup",
        "warmup": size["warmup"] - 1,
        "warmup_from": 1 / size["warmup"],
        "weight_decay": 1e-5,
        "no_decay": BY_GENE if variant in ("tiny", "small") else (),
        "frozen": (),
        "clip_norm": placeholder(float),
        "ema": placeholder(float),
    }
    return config
