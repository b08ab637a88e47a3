"""Pre-train sCT (InstaDeep, 2024/25) on a store of single-cell studies, then on spatial ones.

  python -m experiments.train --config=configs/pretrain_sct.py:small --workdir=runs/sct --config.data.store=STORE \
      --config.data.genes=GENES --config.data.min_mapped=0.01
  python -m experiments.train --config=configs/pretrain_sct.py:small_spatial --workdir=runs/sct_spatial \
      --config.data.store=SPATIAL_STORE --config.data.genes=GENES --config.data.min_mapped=0.01 \
      --config.init_from=runs/sct --config.model.sigma_min=100 --config.model.sigma_max=1000
  python -m experiments.impute --workdir=runs/sct --input=pbmc3k.h5ad --task=gene --rates=0.15,0.8 --min_mapped=0.01

The paper zeroes, per study, genes with fewer counts than 0.003 times the cells: `experiments.ingest
--min_gene_fraction=0.003`. A run remembers it, and zeroes rare genes of every file that it reads likewise (but where a
suite has it impute: there all methods see the same counts). The sigmas are in units of the coordinates (her2st: pixels,
about 220 to a spot).

Variants: `tiny` (a smoke test, a minute or two at 1,000 genes); `small` (2 CPU cores; 352,327 parameters at 2,048
genes: narrower than the model's own `small`, bags of 10 as in the paper's ablation, a learning rate fifty times the
paper's for a two-thousandth of its steps); `paper` and `published` (50 cells x 19,965 genes, 79 M parameters; they
differ in pooling and positions; the rate rises from 5e-5 to 1e-4); `spatial` and `small_spatial` (the second stage:
bags are a spot and its nearest 49 or 9; what the first stage has is kept, the encoding of places is new; cells with
positions are then embedded and annotated in tiles of neighbours).

How a cell is read (`model.cells`, `model.cell_layer`; of a run, too: `run.model = run.model.clone(cells="positions")`):
every stage begins with a norm over the genes, so their mean keeps little of what tells cells apart. 5-NN accuracy of
300 cells by seed 0 of `compare_budget`'s network with bags of 10, pos=rope and mlp_init=he_uniform, random and after
4,000 cells at 3e-3 (400 steps, validation loss 0.806), on two of the studies that it learnt from: types of
pbmc_10x_3chem (T cells as one; most common 0.44; 50 components of the bins 0.97), lines of lung_celllines_mixology
(0.23; 0.95):
                      random     trained
  mean, last (paper)  0.34 0.23  0.41 0.30   less the bag's mean: 0.31 0.25, 0.47 0.31
  mean, input         0.45 0.29  0.64 0.35
  positions, last     0.65 0.34  0.81 0.71   less the bag's mean: 0.59 0.31, 0.76 0.64; whitened: 0.68 0.30, 0.82 0.71
  positions, input    0.85 0.63  0.88 0.82
Of the neighbours by the mean, 0.61 are of the same bag at random weights and 0.06 after training (chance: 0.03).
Positions, last, of random weights with other options: pos=none 0.70 0.39, mlp_init=truncated 0.69 0.43, both 0.79 0.47,
norm=channel 0.71 0.40 (their mean 0.47 0.32), norm=none 0.40 0.29, pooling=max 0.58 0.28, bags of 50 0.70 0.35 and of
one 0.52 0.27 (the mean in bags of one: 0.37 0.24). So `tiny` and `small` have cells=positions, pos=none and
mlp_init=truncated: 4,032 numbers a cell at 2,000 genes, 64 for each position (ten times that at 20,000 genes;
`--config.model.cells=mean` has 64 in all). The `input` is better still, but nothing that the transformer or its
low-rank factors learn reaches it. Not tried in training: these options, other rates, masks and several bags an update.
Looked at once, pbmc3k, a study it never saw (nine types; most common 0.27; components 0.80), random and trained: mean,
last 0.17 0.19, positions, last 0.40 0.40, positions, input 0.53 0.44. Training adds nothing there in any readout.

What was run: `small`, then with pos=rope, mlp_init=he_uniform and cells=mean, on five studies (6,459 cells to train on:
PBMC of 3 chemistries, 16 lanes of PBMC, lung cancer lines, two breast tumours; 717 held out), with the 2,048 genes of
the sCT list that most of their cells express, among those that all five measured, in the list's order: 266 cpu seconds,
which took 12.5 minutes on 2 cores shared with a dozen other programs; stopped twice and resumed; validation loss 0.605.
Expect on pbmc3k, a study it never saw, the Matthews correlation of the bins of expressed genes, 200 cells, mean and
half the 95 % interval of 5 evaluation seeds of one training seed:
  hidden  sct             gene mean       most common bin  5 neighbours    diffusion       random twin
  15 %    0.529 +- 0.009  0.220 +- 0.007  0.183 +- 0.007   0.229 +- 0.008  0.247 +- 0.009  -0.022 +- 0.024
  80 %    0.269 +- 0.008  0.202 +- 0.005  0.161 +- 0.005   0.179 +- 0.005  0.204 +- 0.007  -0.008 +- 0.013
These baselines may say zero, which is never right of an expressed gene. Floors, tables that never say zero and know
nothing of the cell (`experiments.floors`): gene mean 0.608 +- 0.011 and 0.564 +- 0.007, most common bin 0.569 +- 0.005
and 0.535 +- 0.006, learnt from the training studies alone 0.485 +- 0.007 and 0.484 +- 0.007. So sCT is below a constant
per gene: this score shows no knowledge of the cell. By the error of counts and over all genes, zeros among them, the
gene mean is better, too.
`small_spatial`, 100 steps (`--config.train.steps=100 --config.train.eval_every=0`, 52 cpu seconds) from that run, on
the 18 her2st sections of patients A to F (`--config.data.filter="patient not in ('G', 'H')"`). Expect on section H1, of
a patient it never saw, 100 spots, the same score:
  hidden  second stage    first stage alone  second from scratch  gene mean       diffusion
  15 %    0.307 +- 0.033  0.175 +- 0.022     0.006 +- 0.014       0.058 +- 0.029  0.058 +- 0.026
  80 %    0.210 +- 0.015  0.164 +- 0.010     0.005 +- 0.003       0.064 +- 0.018  0.067 +- 0.018
  floors: the gene mean that never says zero, 0.348 +- 0.048 and 0.321 +- 0.031
The second stage improves on the first and stays below the floor; 100 steps from random weights teach nothing yet.
`paper`, `published` and `spatial` are not yet run (the paper: 42 M cells, one A100, 5 days).
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
    config.train.monitor = "-residual" if variant in ("tiny", "small", "small_spatial") else "loss"
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
