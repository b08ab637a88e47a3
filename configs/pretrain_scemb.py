"""Pre-train scEMB (Hsieh et al., bioRxiv 2024) on a store of single-cell studies.

  python -m experiments.train --config=configs/pretrain_scemb.py:tiny --workdir=runs/scemb --config.data.store=STORE

Variants: `tiny` (a smoke test), `small` (2 CPU cores), `paper` (12 layers of 768, at most 2,048 genes, bins as
positions, batches of 64 cells) and `geneformer` (the layout of the first Geneformer: 6 layers of 256, ranks by count
over median, which --config.data.medians=FILE gives, a gene and its median a line; --config.inputs.medians=train takes
those of the training cells).
Cells come by length: sizes of P are an eighth of an octave apart, and batches hold cells of similar length.

On nine studies of 14,576 cells (1,050 genes a sentence) 4 % of the tokens are padding at 16 cells a batch, 6 % at 64.

Expect: paper and geneformer are not yet run (the paper: 30 M cells, 8 H100, about ten days).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretraining
from scfm_jax import models

PAPER = {"batch": 64, "steps": 500_000, "rate": 1e-4, "warmup": 10_000, "every": 5000}
SIZES = {
    "tiny": {"batch": 16, "steps": 200, "rate": 1e-3, "warmup": 0.05, "every": 50},
    "small": {"batch": 16, "steps": 1000, "rate": 5e-4, "warmup": 0.05, "every": 200},
    "paper": PAPER,
    "geneformer": PAPER | {"rate": 1e-3},
}
BUCKETS = tuple(octave * eighths // 8 for octave in (128, 256, 512, 1024) for eighths in range(8, 16))
BUCKETS = (*BUCKETS, 2048, 4096, 8192, 16384)  # what is longer than 2,048 is cut after ranking, on the device


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    parts = models.options("scemb", variant)
    config = pretraining("scemb", parts, bag=1, **{key: size[key] for key in ("batch", "steps", "every")})
    config.data.buckets = (512, 2048, 4096, 8192, 16384) if variant == "tiny" else BUCKETS
    config.data.by_length = True
    config.data.medians = placeholder(str)
    config.optim = {
        "name": "adamw",
        "learning_rate": size["rate"],
        "schedule": "warmup_linear",
        "warmup": size["warmup"],
        "weight_decay": 1e-3,
        "no_decay": ("bias$", "norm"),
        "frozen": (),
        "clip_norm": 1.0,
        "ema": placeholder(float),
    }
    if size["warmup"] >= 1:
        config.model.update({"remat": True, "scan": True})
    return config
