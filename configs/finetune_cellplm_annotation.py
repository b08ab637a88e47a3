"""Annotate cells with CellPLM as its authors fine-tune it (Wen et al., ICLR 2024; the released pipeline).

  python -m experiments.train --config=configs/finetune_cellplm_annotation.py:paper --workdir=W \
      --config.data.store=STORE --config.init_from=RUN

A new linear bottleneck in place of the latent, then dropout 0.5 and a linear head; expression stays masked and cells
are dropped while training, as in pre-training. Two groups of parameters: the embedder at a tenth of the rate with
weight decay 1e-10, all others at 5e-3 with 1e-7 and a warm-up of 30 epochs; the norm before the latent is not trained
(nor, as nothing reads them, decoder and covariates). Gradients are clipped at 2. Both rates shrink by 5 % whenever 25
updates in a row bring no new least training loss. At most 2,000 epochs, stopped after 200 without a better validation.

Differences: the originals let the cells of the test set attend beside those of the training set, here they are not
there; the best epoch is that of balanced accuracy over validation cells, a sum that batches add up to, not of macro-F1;
the plateau also counts during the warm-up; highly variable genes are the user's to choose, before ingest.
Variants: `paper`; `tiny` (a smoke test).

An epoch of the originals is one update or few, whole samples at a time; with bags of few cells give the warm-up fewer.

Expect: not yet run on the paper's data; the forward pass, loss and gradients are those of a recorded case. The CellPLM
of `compare_budget` on two studies of PBMCs (5,508 cells, a tenth to validate; --config.data.bag=512
--config.train.steps=250 --config.train.eval_every=10 --config.optim.warmup=9 --config.optim.warmup_from=0.1, 61 cpu s):
balanced accuracy 0.93 to 0.97 of validation cells, macro-F1 0.953 of 400 sorted PBMCs of a third study.
"""

from ml_collections import ConfigDict

from configs import finetuning

EPOCHS = {"paper": 2000, "tiny": 10}
WARMUP = {"paper": 30, "tiny": 3}


def get_config(variant: str = "tiny") -> ConfigDict:
    """Return the config of a variant; every key can be set on the command line."""
    if variant not in EPOCHS:
        raise ValueError(f"variant {variant!r}: no such variant; there are {', '.join(EPOCHS)}")
    config = finetuning("full", steps=EPOCHS[variant], every=1)
    config.model_name = "cellplm"
    config.model = {"latent_mod": "ae", "head": "embedder", "dropout": 0.5}
    config.inputs = {
        "mask_node_rate": 0.75,
        "mask_feature_rate": 0.25,
        "drop_node_rate": 0.3,
    }
    config.task = {
        "name": "cell_type",
        "label": "cell_type",
        "layers": 1,
        "width": 0,
        "dropout": 0.5,
        "balanced": False,
        "hide": True,
        "noise": True,
        "standardise": False,
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": 5e-3,
        "schedule": "warmup",
        "warmup": WARMUP[variant] - 1,
        "warmup_from": 1 / WARMUP[variant],
        "schedule_unit": "epoch",
        "weight_decay": 1e-7,
        "no_decay": (),
        "groups": ({"match": ("^genes$", "^embed_"), "rate": 0.1, "schedule": "constant", "weight_decay": 1e-10},),
        "plateau_patience": 26,
        "plateau_factor": 0.95,
        "frozen": ("^pre_latent_norm/",),
        "clip_norm": 2.0,
    }
    config.train.update({"eval_every": 1, "checkpoint_every": 50, "log_every": 1})
    config.train.update({"monitor": "-balanced_accuracy", "patience": 200})
    return config
