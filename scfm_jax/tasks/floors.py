"""Floors of pre-training losses: what tables that know the gene, and not the cell, would score; numpy in, floats out.

A table is learnt from training cells and scored on held-out ones, by the loss of the model that it stands beside:

  ValueTable   values of expressed genes (Exceiver): the gene's mean; and one slope of the cell's depth, for all genes
  BinTable     bins of expression (sCT): shares of bins under its mask, of all entries, each gene, each gene x study
  GeneTable    names of hidden genes (scEMB): how many cells have each gene in their sentence, in all or in each study

A model that does not beat its table has not been shown to know anything of the cell.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ValueTable:
    """Mean value of each gene over the entries where it is expressed, and how values change with depth.

    Attributes:
      mean: of the values; of a gene never expressed, that of all entries. [V]
      depth: mean depth of the cells that express the gene. [V]
      slope: change of a value for a unit of depth, one number for all genes, least squares within genes.
    """

    mean: np.ndarray
    depth: np.ndarray
    slope: float

    @classmethod
    def fit(cls, genes: np.ndarray, values: np.ndarray, depths: np.ndarray, n_genes: int) -> "ValueTable":
        """Return the table of expressed entries: their genes, values, and the depth of their cells. [e] each"""
        number = np.bincount(genes, minlength=n_genes)
        mean, depth = (_means(genes, x, number) for x in (values, depths))
        apart = depths - depth[genes]
        scatter = float(apart @ apart)
        return cls(mean, depth, float(apart @ (values - mean[genes])) / scatter if scatter > 0 else 0.0)

    def predict(self, genes: np.ndarray, depths: np.ndarray | None = None) -> np.ndarray:
        """Return the values of genes, all of the mean cell, or in cells of these depths (same shape)."""
        if depths is None:
            return self.mean[genes]
        return self.mean[genes] + self.slope * (depths - self.depth[genes])


@dataclasses.dataclass(frozen=True)
class BinTable:
    """How often each gene is in each bin in the cells of each study; `counts` [S, V, n_bins]."""

    counts: np.ndarray

    def priors(self, rates: np.ndarray) -> dict[str, np.ndarray]:
        """Return logs of the shares of bins among masked entries, three tables [S, V, n_bins].

        A gene of which little is known is drawn to the shares of all genes by one pseudo-count, a gene of a study to
        those of the gene in all.

        Args:
          rates: how often an entry of each bin is masked. [n_bins]
        """
        total = self.counts.sum((0, 1)) + 1e-9
        one = total / total.sum()
        gene = self.counts.sum(0) + one
        gene = gene / gene.sum(1, keepdims=True)
        study = self.counts + gene
        tables = {"one prior": one, "gene": gene, "gene x study": study}
        weighted = {name: np.broadcast_to(table * rates, self.counts.shape) for name, table in tables.items()}
        return {name: np.log(table / table.sum(2, keepdims=True)) for name, table in weighted.items()}


@dataclasses.dataclass(frozen=True)
class GeneTable:
    """In how many cells of each study each gene is in the sentence, and of how many cells; [S, V] and [S]."""

    counts: np.ndarray
    cells: np.ndarray

    def frequencies(self) -> dict[str, np.ndarray]:
        """Return the shares of genes among all tokens, "gene" and "gene x study"; no share is 0. [S, V] each"""
        share = (self.counts.sum(0) + 0.5) / (self.cells.sum() + 1)
        study = (self.counts + share) / (self.cells[:, None] + 1)
        tables = {"gene": np.broadcast_to(share, study.shape), "gene x study": study}
        return {name: table / table.sum(1, keepdims=True) for name, table in tables.items()}


def name_loss(frequencies: np.ndarray, visible: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Return minus log shares of a cell's hidden genes, summed: among all, and among those not yet in the sentence.

    Args:
      frequencies: of genes, in the cell's study. [V]
      visible, hidden: genes of the sentence that are shown and that are to be named. [v], [h]
    """
    loss = -np.log(frequencies[hidden]).sum()
    left = max(1 - frequencies[visible].sum(), frequencies[hidden].sum())  # rounding apart, the first is never less
    return float(loss), float(loss + len(hidden) * np.log(left))


def _means(groups: np.ndarray, values: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Return the mean value of each group, of an empty one that of all. [e], [e], [V] -> [V]"""
    sums = np.bincount(groups, values, len(number))
    return np.where(number > 0, sums / np.maximum(number, 1), sums.sum() / max(number.sum(), 1))
