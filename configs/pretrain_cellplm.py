"""Pre-train CellPLM (Wen et al., ICLR 2024) on a store of single-cell and spatial studies.

  python -m experiments.train --config=configs/pretrain_cellplm.py:tiny --workdir=runs/cellplm --config.data.store=STORE

Variants: `tiny` (a smoke test), `small` (minutes on 2 CPU cores, for about ten studies), `paper_5m`, `paper_10m`,
`paper_40m` (the paper's sizes: Performer, mixture latent, sinusoidal positions, masked squared error) and
`published_20230926`, `published_20231027` (the layout of the released weights: Flowformer, negative binomial).
The table of gene vectors may start from gene2vec's text file or another matrix, config.data.gene_vectors, of the width
config.model.enc_hid.

Expect, on 2 CPU cores: `tiny`, 600 steps on 700 PBMCs x 765 genes, validation loss 681 after a minute (the quickstart);
`small`, 400 steps on ten studies of 18,555 cells x 19,374 genes, 11 to 14 minutes beside other work, 5-NN accuracy 0.78
to 0.79 on the held-out pbmc3k (PCA-50 0.88, random twin 0.50). Paper and published variants are not yet run (the paper:
9M cells and 2M spots, 8 V100, under a day for 10M).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import pretraining
from scfm_jax import models

SMALL = {"enc_hid": 128, "enc_layers": 2, "enc_head": 4, "latent_dim": 64, "num_clusters": 16, "dec_hid": 128}
SIZES = {
    "tiny": {"bag": 64, "batch": 2, "steps": 200, "rate": 2e-3, "every": 50},
    "small": {"bag": 256, "batch": 2, "steps": 1000, "rate": 1e-3, "every": 200},
    "paper_5m": {"bag": 1000, "batch": 8, "steps": 100_000, "rate": 2e-4, "every": 2000},
    "paper_10m": {"bag": 1000, "batch": 8, "steps": 100_000, "rate": 2e-4, "every": 2000},
    "paper_40m": {"bag": 1000, "batch": 8, "steps": 100_000, "rate": 2e-4, "every": 2000},
    "published_20230926": {"bag": 4000, "batch": 8, "steps": 100_000, "rate": 2e-4, "every": 2000},
    "published_20231027": {"bag": 4000, "batch": 8, "steps": 100_000, "rate": 2e-4, "every": 2000},
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    parts = models.options("cellplm", "tiny" if variant == "small" else variant)
    config = pretraining("cellplm", parts, **{key: size[key] for key in ("bag", "batch", "steps", "every")})
    config.data.labels = ("batch",)
    config.data.gene_vectors = placeholder(str)
    if variant == "small":
        config.model.update(SMALL)
    if variant in ("tiny", "small"):
        config.data.buckets = (1024, 4096, 16384)
    config.optim = {
        "name": "adamw",
        "learning_rate": size["rate"],
        "schedule": "warmup_cosine",
        "warmup": 0.05,
        "weight_decay": 1e-8 if variant.startswith("published") else 1e-4,
        "no_decay": ("bias$", "norm"),
        "frozen": (),
        "clip_norm": 2.0,
        "ema": placeholder(float),
    }
    return config
