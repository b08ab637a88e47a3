"""What a network is asked of: which genes it has, the list of its edges, and what a measured network says of them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm_jax.tasks.cells.embedding import variable_genes


def chosen(expression: sp.csr_matrix, regulators: np.ndarray, n_genes: int, least: float) -> np.ndarray:
    """Return the genes of a network, ascending: the regulators and the most variable ones (BEELINE's TFs + 500).

    Args:
      expression: log-normalised, of all genes. [cells, G]
      regulators: which genes may be such. bool [G]
      n_genes: number of the most variable ones.
      least: share of cells in which each gene is expressed, regulators too.
    """
    expressed = np.flatnonzero(expression.getnnz(0) > max(least * expression.shape[0] - 1e-9, 0))
    variable = expressed[variable_genes(expression[:, expressed], n_genes)] if len(expressed) else expressed
    return np.union1d(variable, expressed[regulators[expressed]])


def edges(strength: np.ndarray, names: Sequence[str], regulators: Sequence[int]) -> pd.DataFrame:
    """Return TF, target, weight and rank of every pair of a regulator and another gene, the strongest first.

    Pairs of equal weight have the same rank, the mean of their places.

    Args:
      strength: rows targets, columns regulators. [n, n]
    """
    columns = np.asarray(regulators)
    target, place = np.nonzero(np.arange(len(strength))[:, None] != columns)
    weight, of = np.abs(strength[target, columns[place]]), np.asarray(names, object)
    frame = pd.DataFrame({"TF": of[columns[place]], "target": of[target], "weight": weight})
    frame["rank"] = frame.weight.rank(ascending=False)
    return frame.sort_values("weight", ascending=False, kind="stable", ignore_index=True)
