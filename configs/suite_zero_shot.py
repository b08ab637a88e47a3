"""The zero-shot suite: every run is asked the same of the same cells as it is, beside baselines and controls.

  python -m experiments.evaluate --suite=zero_shot --runs=runs/cellplm,runs/sct,... --data=pbmc3k.h5ad,... \
      --reference=single_cells.h5ad --output=DIR

Imputation is that of sCT's paper (fewer rates), denoising and spatial imputation that of CellPLM's, cell types,
clusters and integration as scIB and CellPLM score them, metadata as Exceiver does. Three tasks train: annotation a
linear head; tuned_spatial_imputation and tuned_denoising the whole run and its twin, as CellPLM's paper does beside its
zero-shot numbers; tuned_integration low-rank factors or prefixes of both on the study, by what they were pre-trained
on, as scEMB's does. All models have the same number of updates at most and learning rate there. For held-out genes they
learn what they were pre-trained on, but CellPLM what it is fine-tuned on: 95 % of the cells masked, and the likelihood
of all that was measured in all of them; to denoise all of them learn flipped entries, until others that are held back
say stop.

Two ask what a run says of genes: perturbation, of screens (obs.perturbation, or GEARS' obs.condition), and networks,
where --truth names tables of measured edges.

What to expect of controls is the same everywhere: positive above, negative below everything else. Two scores say
nothing without a floor beside them (`experiments.floors`): bins of expressed genes alone, where baselines that may say
zero lose by it (tables that never do are beside, and the score within genes), and denoising over all entries, where
leaving the counts wins because few were spoiled: see the case "flipped". Expected numbers of runs and floors are in
docs/results.md.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny")
RULERS = ("visible", "cell")
"""Bins are read off what is visible, and off the whole cell as sCT's paper does; the cases stand apart."""
FINE_TUNED = {"cellplm": {"inputs": {"mask_node_rate": 0.95, "score": "all"}, "loss": {"dae": False}}}
"""What is other than in pre-training when a model is fine-tuned to impute."""


def get_config(variant: str = "") -> ConfigDict:
    """Return the tasks of the suite with their options, their order, the cells of a seed, and the number of seeds.

    A task is a file of `experiments.suite.tasks`.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: there are {', '.join(map(repr, VARIANTS))} (tiny is for tests)")
    tiny = variant == "tiny"
    config = ConfigDict({"cells": 60 if tiny else 300, "seeds": 2 if tiny else 5})
    tasks = {
        "gene_imputation": {"rates": (0.4,) if tiny else (0.15, 0.8), "ruler": RULERS},
        "cell_imputation": {"rates": (10,), "ruler": RULERS},
        "fixed_gene_imputation": {"reference_cells": 40 if tiny else 300, "ruler": RULERS},
        "denoising": {"keep": 0.5, "rate": 0.1},
        "tuned_denoising": {
            "rate": 0.1,
            "tuning": {
                "steps": 2 if tiny else 200,
                "learning_rate": 5e-4,
                "rate": 0.1,
                "every": 1 if tiny else 20,
                "patience": 3,
            },
        },
        "spatial_imputation": {"reference_cells": 40 if tiny else 300},
        "tuned_spatial_imputation": {
            "reference_cells": 40 if tiny else 300,
            "tuning": {"steps": 2 if tiny else 100, "learning_rate": 5e-4, "changes": FINE_TUNED},
        },
        "cell_typing": {},
        "annotation": {},
        "clustering": {},
        "integration": {},
        "tuned_integration": {
            "methods": ("lora",) if tiny else ("lora", "prefix"),
            "tuning": {"steps": 2 if tiny else 100, "every": 2 if tiny else 20, "patience": 2},
        },
        "metadata": {},
        "perturbation": {"least": 5 if tiny else 50, "folds": 3 if tiny else 5},
        "networks": {"n_genes": 40 if tiny else 500},
    }
    config.tasks, config.order = tasks, tuple(tasks)
    return config
