"""Pre-train sCT (InstaDeep, 2024/25) on a store of single-cell studies, then on spatial ones.

  python -m experiments.train --config=configs/pretrain_sct.py:tiny --workdir=runs/sct --config.data.store=STORE
  python -m experiments.train --config=configs/pretrain_sct.py:spatial --workdir=runs/sct_spatial \
      --config.data.store=SPATIAL_STORE --config.data.genes=GENES --config.init_from=runs/sct

The paper zeroes, per study, genes with fewer counts than 0.003 times the cells: `experiments.ingest
--min_gene_fraction=0.003`. Variants: `tiny` (a smoke test, a minute or two at 1,000 genes), `small` (2 CPU cores),
`paper` and `published` (50 cells x 19,965 genes, 79 M parameters; they differ in pooling and positions), `spatial` and
`small_spatial` (the second stage: bags are a spot and its nearest 49 or 9; what the first stage has is kept, the
encoding of places is new).

Expect: paper and published are not yet run (the paper: 42 M cells, one A100, 5 days).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretraining
from scfm_jax import models

PAPER = {"bag": 50, "batch": 1, "steps": 1_000_000, "rate": 1e-4, "warmup": 10_000, "warmup_from": 0.5, "every": 5000}
SMALL = {"bag": 10, "batch": 1, "steps": 500, "rate": 5e-3, "warmup": 0.05, "every": 250}
NARROW = {"embed_dim": 64, "ffn_dim": 128, "key_size": 16}
ONE_BUCKET = (16384,)  # bags of few cells come in many sizes, each a compilation
SIZES = {
    "tiny": {"bag": 8, "batch": 2, "steps": 100, "rate": 2e-3, "warmup": 0.05, "every": 50},
    "small": SMALL,
    "paper": PAPER,
    "published": PAPER,
    "small_spatial": SMALL,
    "spatial": PAPER | {"steps": 150_000},
}
SPATIAL = {"small_spatial": "small", "spatial": "paper"}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    parts = models.options("sct", SPATIAL.get(variant, variant))
    config = pretraining("sct", parts, **{key: size[key] for key in ("bag", "batch", "steps", "every")})
    if variant in SPATIAL:
        config.model.spatial = "paper"
        config.data.kind = "neighbours"
    config.optim = {
        "name": "adam",
        "learning_rate": size["rate"],
        "schedule": "warmup_cosine",
        "warmup": size["warmup"],
        "warmup_from": size.get("warmup_from", 0.0),
        "weight_decay": 0.0,
        "no_decay": (),
        "frozen": (),
        "clip_norm": 1.0,
        "ema": placeholder(float),
    }
    if size is SMALL:
        config.model.update(NARROW)
        config.data.buckets = ONE_BUCKET
    if size is PAPER or variant == "spatial":
        config.model.update({"remat": True, "scan": True})
    return config
