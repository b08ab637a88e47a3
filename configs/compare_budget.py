"""Five small models under one budget: the same studies, the same genes, the same 16,000 cells seen, on 2 CPU cores.

  python -m experiments.gene_list --store=STORE --number=2000 --by=variability --min_share=0.005 \
      --keep=PANEL --gene_table=TABLE --output=genes.txt
  python -m experiments.ingest --vocab=genes.txt --store=FEW --input=... --group_by=batch --gene_table=TABLE \
      --min_mapped=0.01
  python -m experiments.train --config=configs/compare_budget.py:scemb --workdir=runs/scemb --config.data.store=FEW
  python -m experiments.go_graph --genes=genes.txt --output=go.npz --gene_table=TABLE --table=TERMS --min_mapped=0.05
  python -m experiments.train --config=configs/compare_budget.py:sclong --workdir=runs/sclong --config.data.store=FEW \
      --config.data.graph=go.npz

The variant is the model (`tiny`: two steps of CellPLM, a smoke test). Bags and batches are each model's own (a bag of
64 cells of a sample for CellPLM, of 10 for sCT, single cells for the others), steps follow from the budget, and the
schedule is that of the model's `small` config.
Exceiver learns at 1e-3 and its head starts positive (`positive_head`), chosen by these numbers of seed 0 on validation
cells: explained variance at each quarter; deviation of the final embedding over the PBMCs among them, relative to its
size; their types among 5 neighbours (most common type: 0.52):
  1e-2                  0.00 0.50 0.63 0.71   4e-8   0.47   (all cells have one embedding: 0.71 is the genes' means)
  3e-3                  0.00 0.00 0.12 0.19                 (head all but dead; at 1e-3 0.00 to the end)
  3e-3, positive head   0.77 0.85 0.81 0.80   0.03   0.54
  1e-3, positive head   0.40 0.75 0.84 0.87   0.05   0.63
So look at both: explained variance alone does not tell whether cells are told apart. Exceiver's numbers here are of
values before the norm, without a bias for each gene, with an L2 term on the table (--config.model.gene_bias=False
--config.model.value_scale=before_norm --config.optim.no_decay="()"); the entry as it is now is not yet run here.
On 6,000 cells of six of them and 1,500 genes, seed 0, it has 0.71 0.72 0.72 0.74 (without the bias 0.01 after 2,000),
and types among 5 neighbours below its twin's: pbmc_pisces_1000 0.52 (twin 0.59), lung cell lines 0.40 (twin 0.70).
scLong learns at 3e-3: at 1e-2 it ended at a validation loss of 1.12, above 1.05, what the mean of each gene plus the
mean residual of the cell's visible genes has (the gene's mean alone: 1.65); at 3e-3 it is below 0.96 from the first
quarter on. And its cells are embedded as `cells` "outsiders" has it, one number for each position: the mean over the
genes, most of which are zeros, is the cell's depth. Numbers of seed 0 on validation cells: share of the first principal
component; balanced accuracy of a logistic regression (64 components of equal deviation, 3 folds) on four types of 283
PBMCs and on five cell lines (141 cells); accuracy on PBMCs of one chemistry of one trained on the two others (most
common type: 0.53):
  1e-2, mean                0.94   0.60   0.47   0.77
  3e-3, mean                0.95   0.60   0.65   0.76
  3e-3, outsiders           0.19   0.83   0.97   0.96
  random weights, mean      0.95   0.57   0.47   0.70   (another seed: 0.67, 0.54, 0.84)
  random weights, outsiders 0.01   0.25   0.17   0.53   (nothing but rounding: normed genes sum to 0 until they learn)

Run on 2 shared cores, on nine studies: pbmc_10x_3chem, pbmc_pisces_1000, pbmc_citeseq_5k10k_400,
lung_celllines_mixology, two breast tumours and her2st's three files (17,844 cells and spots). Expect:
  model     parameters  cpu s  cells/s  validation loss, at a quarter and at the end
  cellplm      975,539    139    2,819  1050    935
  exceiver     121,411    132      324  1.66    0.36   (explained variance 0.87)
  scemb        208,082    392       41  6.84    6.53
  sclong       209,685    552       29  0.95    0.83
  sct          351,893    942       22  0.855   0.785
That was sCT with pos=rope, mlp_init=he_uniform and cells=mean; configs/pretrain_sct.py says why it has others now.
Losses of different models cannot be compared. Floors, tables that know the gene and not the cell, on another random
tenth of the same cells (`experiments.floors --parts=pretraining`):
  exceiver  explained variance: gene's mean 0.735; with one slope of the cell's depth 0.896, which is above the model's
  scemb     gene 7.15, gene x study 6.93, and among genes not yet in the sentence 6.42: below the model's loss
  sct       one prior 1.125, gene 0.859, gene x study 0.727: below the model's loss
  sclong    gene 1.65, with the mean residual of the cell's visible genes 1.05, as above: the model is below both
Scores: docs/results.md.
"""

import importlib

from ml_collections import ConfigDict

from scfm_jax import models

CELLS = 32_000
UPDATE = 16
"""Cells of an update, of every model."""
BUCKETS = {"scemb": (512, 1024, 2048)}
"""Sizes that cells are padded to, where not all have one: each is a compilation, which is most of so short a run."""
NARROW = {"embed_dim": 64, "ffn_dim": 128, "num_layers": 2, "num_heads": 2}
SMALL = {
    "cellplm": {"bag": 16, "rate": 1e-3, "model": {"lamda": 10.0}},
    "exceiver": {"bag": 1, "rate": 1e-3, "model": {}},
    "scemb": {"bag": 1, "rate": 3e-3, "model": NARROW},
    "sclong": {"bag": 1, "rate": 3e-3, "model": {"graph": True, "top_seq_len": 300, "cells": "outsiders"}},
    "sct": {"bag": 4, "rate": 3e-3, "model": {"token_dim": 32}},
}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a model; every key can be set on the command line."""
    cells, variant = (128, "cellplm") if variant == "tiny" else (CELLS, variant)
    if variant not in models.names():
        raise ValueError(f"variant {variant!r}: there are tiny and the models, {', '.join(models.names())}")
    size = SMALL[variant]
    config = importlib.import_module(f"configs.pretrain_{variant}").get_config(
        "tiny" if variant == "sclong" else "small"
    )
    steps = cells // UPDATE
    config.model.update(size["model"])
    config.data.update({"bag": size["bag"], "batch": UPDATE // size["bag"], "buckets": BUCKETS.get(variant, (2048,))})
    config.optim.learning_rate = size["rate"]
    config.train.update({"steps": steps, "log_every": max(1, steps // 20), "eval_every": max(1, steps // 8)})
    config.train.checkpoint_every = config.train.eval_every
    config.train.monitor = "-residual"
    return config
