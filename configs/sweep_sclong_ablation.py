"""What scLong's Gene Ontology graph and its small Performer are worth, at a size for two CPU cores.

  python -m experiments.ingest --input=TRAIN1.h5ad,TRAIN2.h5ad --store=ALL --group_by=batch --gene_table=TABLE
  python -m experiments.gene_list --store=ALL --number=512 --output=genes.txt
  python -m experiments.ingest --input=TRAIN1.h5ad,TRAIN2.h5ad --store=STORE --group_by=batch --gene_table=TABLE \
      --vocab=genes.txt --min_mapped=0
  python -m experiments.go_graph --table=GENES_AND_TERMS --genes=genes.txt --gene_table=TABLE --output=graph.npz
  python -m experiments.sweep --sweep=configs/sweep_sclong_ablation.py --workdir=runs/sclong_ablation --parallel=2 \
      --config.data.store=STORE --config.data.graph=graph.npz \
      --evaluate.input=HELD_OUT.h5ad --evaluate.gene_table=TABLE

Three points, three seeds each: with the graph, without it, and with the values of the top genes alone (all genes keep
their vectors and are predicted, but whatever is not among the top has no value). The genes are 512, by the rule of
`experiments.gene_list`, and the top ones 77 of them: 15 %, as 4,096 of 27,874 are. Gene vectors start at random;
vectors that are made of the Gene Ontology would give the graph away. All points see the same cells in the same order.
Each is scored on the same cells and masks of a file that no point has seen, 15 % of all genes hidden, expressed ones
counted: `msle` is nearest to what is trained; `mcc` is in five bins. No number of the paper's stands beside ours: its
data and sizes are other ones. Losses and their curves: metrics.jsonl of the runs, `python -m experiments.report`.

Variants: `small` (the claim), `tiny` (a smoke test of the same points).
Expect (PBMC of pbmc_10x_3chem, pbmc_pisces_1000, pbmc_citeseq_5k10k_400, tested on pbmc3k; 45 CPU seconds a run and 25
more where a point is compiled first, 5 minutes in all on two shared cores; mean ± half the 95 % interval, 3 seeds):

                                     validation loss     msle
  Gene Ontology graph                0.69 ± 0.21         0.306 ± 0.047
  the same, its gene names shuffled  0.79 ± 0.30         0.355 ± 0.082     (another graph file, run apart)
  no graph                           1.13 ± 0.56         0.535 ± 0.292
  values of the top genes alone      1.18 ± 1.14         0.510 ± 0.425
  gene mean                                              0.363
  floor: gene mean, never zero                           0.128             (knows nothing of the cell)

300 steps are far from convergence: losses still fall, and what is measured is how fast points learn. Every seed learns
faster with the graph, but most of that is the graph's second table of vectors and its layer, for a graph of shuffled
names gives it, too; what the Gene Ontology itself adds (0.05 ± 0.08 of msle) is within the seeds' scatter. `mcc` of all
points is below that of the gene mean (0.05 against 0.16). That mean may say zero, which is never right of the expressed
entries that are scored; the same mean without zeros (`experiments.floors`) is far below every point's error.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import pretrain_sclong

TOP, RATE = 77, 1e-2
SIZES = {
    "tiny": {"batch": 4, "steps": 2, "every": 1},
    "small": {"batch": 8, "steps": 300, "every": 100},
}


def get_config(variant: str = "small") -> ConfigDict:
    """Return the base of the sweep, a config of experiments.train."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    size = SIZES[variant]
    config = pretrain_sclong.get_config("tiny")
    config.model.update({"top_seq_len": TOP, "graph": True})
    config.data.update({"batch": size["batch"], "min_mapped": 0.0, "buckets": (512,)})
    config.optim.learning_rate = RATE
    config.train.update(
        {
            "steps": size["steps"],
            "log_every": max(size["every"] // 10, 1),
            "eval_every": size["every"],
            "checkpoint_every": size["every"],
            "tensorboard": False,
        }
    )
    return config


def get_sweep(variant: str = "small") -> dict[str, Any]:
    """Return the points; see `configs` for what a sweep is."""
    if variant not in SIZES:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(SIZES)}")
    return {
        "question": "scLong's ablations: 15 % of the genes imputed, expressed ones scored",
        "config": f"configs/sweep_sclong_ablation.py:{variant}",
        "seeds": (0, 1, 2),
        "evaluate": {
            "command": "sweep_impute",
            "flags": {"rate": 0.15, "bins": 5, "seeds": 1, "cells": 500, "bag": 50},
            "result": "sweep_imputation.json",
            "method": "sclong",
        },
        "metrics": {
            "msle": "mean squared error, log1p counts",
            "mae": "mean absolute error, counts",
            "mcc": "Matthews correlation, 5 bins",
            "mcc_within_gene": "the same within genes, 0 for a bin per gene",
        },
        "points": [
            {"axis": "base", "label": "Gene Ontology graph, values of all genes", "set": {}},
            {"axis": "graph", "label": "no graph", "set": {"model.graph": False}},
            {"axis": "context", "label": "values of the top genes alone", "set": {"model.context": "top"}},
        ],
    }
