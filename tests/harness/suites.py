"""Small studies, small models of random weights, and suites of them."""

import pathlib
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from experiments.suite import entrants
from scfm_jax import api, models

V = 64
GENES = [f"GENE{i}" for i in range(V)]
SMALL = {
    "cellplm": {"enc_hid": 16, "enc_layers": 1, "enc_head": 2, "latent_dim": 8, "num_clusters": 4, "dec_hid": 16},
    "scemb": {"embed_dim": 16, "ffn_dim": 16, "num_layers": 1, "num_heads": 2},
}
TASKS = {"gene_imputation": {"rates": (0.4,)}, "cell_typing": {}}


def counts(n: int, seed: int) -> np.ndarray:
    """Return counts of three types of cells of two batches."""
    rng = np.random.default_rng(seed)
    own = (np.arange(n)[:, None] % 3) == (np.arange(V) % 3)
    batch = 1 + 0.5 * ((np.arange(n)[:, None] % 2) & (np.arange(V) % 5 == 0))
    return rng.poisson(np.where(own, 5.0, 0.4) * batch * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def write(path: pathlib.Path, seed: int = 0, n: int = 90, spatial: bool = False, **obs) -> str:
    """Write a study and return its path."""
    table = {"cell_type": [f"type {i % 3}" for i in range(n)], "batch": [f"batch {i % 2}" for i in range(n)]} | obs
    obs, var = pd.DataFrame(table, [f"c{i}" for i in range(n)]), pd.DataFrame(index=GENES)
    obsm = {"spatial": np.random.default_rng(0).random((n, 2))} if spatial else {}
    anndata.AnnData(sp.csr_matrix(counts(n, seed)), obs=obs, var=var, obsm=obsm).write_h5ad(path)
    return str(path)


def entrant(
    model: str, name: str, seed: int = 0, genes: list[str] = GENES, classes: dict | None = None, **data
) -> entrants.Entrant:
    """Return a small model of random weights in a suite."""
    sections = models.options(model, "tiny")
    config = {**sections, "model": sections["model"] | SMALL.get(model, {}), "data": {"labels": [], **data}}
    meta = {"model": model, "config": config, "genes": genes, "classes": classes or {}, "step": 3}
    return entrants.Entrant(name, name, api.build(meta, {"params": {}}, {}, "a test").twin(100 + seed))


def make(folder: pathlib.Path, runs, paths, tasks=TASKS, **options) -> Any:
    """Return a suite on studies."""
    from experiments.suite import fill  # here, as a test counts what a task loads by itself

    options = {"cells": 60, "seeds": 2, "say": lambda _: None} | options
    return fill.Suite("test", tasks, runs, [entrants.Study(p) for p in paths], folder, **options)
