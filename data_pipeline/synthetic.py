"""Seeded counts whose structure is known, for tests of properties. Not a substitute for real data anywhere else.

Every gene has a base rate. Each part of the structure multiplies the rates of its own genes, so that each can be tested
apart: cell types raise their markers, modules of genes rise and fall together from cell to cell, spatial genes follow a
smooth field over the slide; batches shift every gene a little. Counts are Poisson draws at the cell's depth.
"""

import anndata
import numpy as np
import pandas as pd
from scipy import sparse


def make(
    n_cells: int = 1000,
    n_genes: int = 400,
    *,
    n_types: int = 4,
    n_batches: int = 2,
    n_modules: int = 3,
    depth: float = 1000.0,
    batch_effect: float = 0.3,
    study: str = "synthetic",
    seed: int = 0,
) -> anndata.AnnData:
    """Return cells of `n_types` types in `n_batches` batches with raw counts in X (CSR, float32).

    Of the genes a quarter are markers (`var.marker_of`: their type), a quarter in modules (`var.module`: their number),
    an eighth follow the spatial field (`var.spatial`); -1 or False elsewhere. obs has cell_type, batch, donor (two per
    batch) and study; obsm["spatial"] the place of each cell on the unit square, cell types mixed over it.

    Args:
      depth: counts of a cell on average. batch_effect: standard deviation of the log rate of a gene between batches.
      seed: the same seed gives the same data; genes mean the same under every seed.
    """
    if n_cells < 1 or n_types < 1 or n_batches < 1 or n_modules < 1 or n_genes < 8 * max(n_types, n_modules):
        raise ValueError(
            f"{n_cells} cells, {n_genes} genes: need a cell, a type, a batch, a module and 8 genes for each"
        )
    var = _genes(n_genes, n_types, n_modules)
    rng = np.random.default_rng(seed)
    types, batches = rng.integers(n_types, size=n_cells), rng.integers(n_batches, size=n_cells)
    place = rng.random((n_cells, 2))
    log_rate = np.tile(rng.normal(0.0, 1.0, n_genes), (n_cells, 1))
    log_rate += rng.normal(0.0, batch_effect, (n_batches, n_genes))[batches]
    log_rate += 2.0 * (var["marker_of"].to_numpy() == types[:, None])
    activity = rng.normal(0.0, 1.0, (n_cells, n_modules))
    module = var["module"].to_numpy()
    log_rate[:, module >= 0] += activity[:, module[module >= 0]]
    log_rate[:, var["spatial"]] += field(place)[:, None]
    rate = np.exp(log_rate)
    size = depth * rng.lognormal(-0.045, 0.3, n_cells)  # of mean `depth`
    counts = rng.poisson(rate / rate.sum(axis=1, keepdims=True) * size[:, None])
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical([f"type{i}" for i in types]),
            "batch": pd.Categorical([f"batch{i}" for i in batches]),
            "donor": pd.Categorical(
                [f"donor{2 * i + j}" for i, j in zip(batches, rng.integers(2, size=n_cells), strict=True)]
            ),
            "study": pd.Categorical([study] * n_cells),
        },
        index=[f"{study}-{i}" for i in range(n_cells)],
    )
    x = sparse.csr_matrix(counts.astype(np.float32))
    return anndata.AnnData(x, obs=obs, var=var, obsm={"spatial": place}, uns={"synthetic_seed": seed})


def field(place: np.ndarray) -> np.ndarray:
    """Return the smooth field that spatial genes follow, log rate, at places on the unit square. [n, 2] -> [n]"""
    return np.sin(2 * np.pi * place[:, 0]) + np.cos(2 * np.pi * place[:, 1])


def _genes(n: int, n_types: int, n_modules: int) -> pd.DataFrame:
    number = np.arange(n)
    quarter = n // 4
    marker_of = np.where(number < quarter, number % n_types, -1)
    module = np.where((number >= quarter) & (number < 2 * quarter), number % n_modules, -1)
    spatial = (number >= 2 * quarter) & (number < 2 * quarter + n // 8)
    ids = [f"ENSG9{i:010d}" for i in number]
    table = {"ensembl_id": ids, "marker_of": marker_of, "module": module, "spatial": spatial}
    return pd.DataFrame(table, index=[f"SYN{i}" for i in number])
