"""The zero-shot suite: nothing is trained; every run is asked the same of the same cells, beside baselines, controls.

  python -m experiments.evaluate --suite=zero_shot --runs=runs/cellplm,runs/sct,... --data=pbmc3k.h5ad,... \
      --reference=single_cells.h5ad --output=DIR

Imputation is that of sCT's paper (fewer rates), denoising and spatial imputation that of CellPLM's, cell types,
clusters and integration as scIB and CellPLM score them, metadata as Exceiver does. What to expect of controls is the
same everywhere: positive above, negative below everything else. Expected numbers of runs are in the README's table.
"""

from ml_collections import ConfigDict

VARIANTS = ("", "tiny")


def get_config(variant: str = "") -> ConfigDict:
    """Return the tasks of the suite with their options, the cells of a seed, and the number of seeds."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: there are {', '.join(map(repr, VARIANTS))} (tiny is for tests)")
    tiny = variant == "tiny"
    config = ConfigDict({"cells": 60 if tiny else 300, "seeds": 2 if tiny else 5})
    config.tasks = {
        "gene_imputation": {"rates": (0.4,) if tiny else (0.15, 0.8)},
        "cell_imputation": {"rates": (10,)},
        "fixed_gene_imputation": {"reference_cells": 40 if tiny else 300},
        "denoising": {"keep": 0.5, "rate": 0.1},
        "spatial_imputation": {"reference_cells": 40 if tiny else 300},
        "cell_typing": {},
        "annotation": {},
        "clustering": {},
        "integration": {},
        "metadata": {},
    }
    return config
