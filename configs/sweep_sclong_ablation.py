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
counted: `msle` is nearest to what is trained; `mcc` is in five bins. The paper's ablations are of fine-tuned tasks, so
no number of its stands beside ours. Validation losses: `python -m experiments.report` of the runs.

Variants: `small` (the claim), `tiny` (a smoke test of the same points).
Expect: not yet run.
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
        },
        "points": [
            {"axis": "base", "label": "Gene Ontology graph, values of all genes", "set": {}},
            {"axis": "graph", "label": "no graph", "set": {"model.graph": False}},
            {"axis": "context", "label": "values of the top genes alone", "set": {"model.context": "top"}},
        ],
    }
