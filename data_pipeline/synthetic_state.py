"""A semi-synthetic state: real cells, dealt out to made-up donors, in half of whom a programme of genes is raised.

Where no cells of patients are at hand, the way from donors to genes can still be tried on cells that are real but for
the programme. Counts are thinned, each kept with probability fold / largest fold (Gerard, BMC Bioinformatics 2020), so
that cells stay real, at a smaller depth. Donors differ in every gene, as people do. Such a file says what it is in
obs["synthetic"], and every table made of it repeats it. It is no substitute for patients.
"""

from collections.abc import Collection

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

COLUMN = "synthetic"
"""Column of obs that says, in every cell, that the state is made."""


def spiked(
    cells: anndata.AnnData,
    genes: Collection[str],
    programme: str,
    *,
    donors: int = 10,
    fold: float = 2.0,
    between: float = 0.2,
    seed: int = 0,
) -> anndata.AnnData:
    """Return raw counts of cells dealt out to donors, half of them cases, whose `genes` are raised by `fold`.

    Args:
      cells: raw counts in X, names in var_names. programme: what is raised, in words.
      donors: an even number. between: deviation of a donor's genes from the mean, in natural logarithms.

    Raises:
      ValueError: an odd number of donors, fewer cells than donors, or none of the genes.
    """
    member = np.isin(cells.var_names, list(genes))
    if donors < 4 or donors % 2 or cells.n_obs < donors or not member.any():
        raise ValueError(
            f"donors={donors}, {cells.n_obs} cells, {int(member.sum())} genes of the programme among {cells.n_vars}: "
            "an even number of donors, four or more, a cell for each and a gene are needed"
        )
    rng = np.random.default_rng(seed)
    donor = rng.permutation(np.arange(cells.n_obs) % donors)
    folds = np.exp(between * rng.normal(size=(donors, cells.n_vars)).clip(-2, 2))
    folds[: donors // 2, member] *= fold
    kept = folds / (fold * np.exp(2 * between))
    counts = sparse.coo_matrix(cells.X)
    drawn = rng.binomial(counts.data.astype(np.int64), kept[donor[counts.row], counts.col])
    x = sparse.csr_matrix((drawn.astype(np.float32), (counts.row, counts.col)), counts.shape)
    x.eliminate_zeros()
    said = f"real cells, of which donors are made up and {int(member.sum())} genes ({programme}) raised {fold:g} times"
    made = {"condition": np.where(donor < donors // 2, "case", "control"), "donor": [f"donor {d}" for d in donor]}
    obs = cells.obs.drop(columns=[*made, COLUMN], errors="ignore").assign(**made, **{COLUMN: said})
    return anndata.AnnData(x, obs=pd.DataFrame(obs), var=cells.var.copy())
