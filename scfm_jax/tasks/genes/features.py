"""Gene vectors: what a method says of each gene without a cell, as any head of the gene tasks may ask for it.

A method is a trained run, its twin of random weights, or a control that has learnt nothing: random vectors, components
of which genes share GO terms, principal components of the expression at hand, one number for each gene. Genes that a
method does not know get the mean of those that it does and are flagged. A head sees `standardised` values, so that no
method is favoured by its scale. Arrays in, arrays out; whose genes are whose is settled by whoever gives the index.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from scfm_jax.inference.gene_representations import projection

WIDTH = 200
"""Numbers that the controls have for each gene, where nobody says."""


@dataclasses.dataclass(frozen=True)
class GeneVectors:
    """A vector for each of some genes.

    Attributes:
      names: of the genes, as they were asked for. [G]
      values: float32, finite; the mean of the others where a gene is not known. [G, D]
      found: whether the method knows the gene. bool [G]
      kind: such as "table", "graph", "context", "random". source: whose they are, in words.
      report: how names met names, "" where nothing had to meet.
    """

    names: list[str]
    values: np.ndarray
    found: np.ndarray
    kind: str
    source: str
    report: str = ""

    def standardised(self) -> np.ndarray:
        """Return `standardised` values. [G, D]"""
        return standardised(self.values, self.found)

    def projected(self, width: int, seed: int = 0) -> "GeneVectors":
        """Return the vectors in a fixed random projection to `width` numbers, see `projection`."""
        values = (self.values @ projection(self.values.shape[1], width, seed)).astype(np.float32)
        return dataclasses.replace(self, values=values, kind=f"{self.kind}, {width} random directions")


def taken(
    values: np.ndarray, index: np.ndarray, names: Sequence[str], kind: str, source: str, report: str = ""
) -> GeneVectors:
    """Return the vectors of genes by their rows in a method's own, the mean of the known ones for the others.

    Args:
      values: of the method's genes, NaN for one that it was never given. [V, D]
      index: row of each gene that is asked for, -1 where the method has none. [G]

    Raises:
      ValueError: the method knows none of the genes, or a vector is not finite.
    """
    values, index = np.asarray(values, np.float32), np.asarray(index)
    rows = np.where((index >= 0)[:, None], values[index], np.nan)
    known_rows = ~np.isnan(rows).all(1)
    if not known_rows.any():
        asked = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{source} ({kind}): knows none of the {len(names)} genes ({asked}); check the species, give a gene_table "
            "that knows both names, or, where they are means over cells, a file that measures the genes"
        )
    if not np.isfinite(rows[known_rows]).all():
        raise ValueError(f"{source} ({kind}): gene vectors that are not finite: are the weights whole?")
    rows[~known_rows] = rows[known_rows].mean(0)
    return GeneVectors(list(names), rows, known_rows, kind, source, report)


def standardised(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """Return values of mean 0 and deviation 1 in each column, by the rows `of` (bool [G]); a constant column is 0."""
    values = np.asarray(values, np.float64)
    some = values if of is None else values[of]
    deviation = some.std(0)
    scale = np.where(deviation > 1e-6 * np.maximum(np.abs(some).max(0), 1e-30), deviation, np.inf)
    return (values - some.mean(0)) / scale


def random(names: Sequence[str], seed: int = 0, width: int = WIDTH) -> GeneVectors:
    """Return normal random vectors, the same for a name that stands there twice."""
    unique, of = np.unique(np.asarray(names, str), return_inverse=True)
    drawn = np.random.default_rng(seed).standard_normal((len(unique), width))
    return taken(drawn, of, names, "random", f"normal draws of seed {seed}")


def one_hot(names: Sequence[str]) -> GeneVectors:
    """Return a vector for each gene that says which it is and nothing more. [G, G]"""
    unique, of = np.unique(np.asarray(names, str), return_inverse=True)
    return taken(np.eye(len(unique)), of, names, "one-hot", "which gene it is")


def term_components(
    terms: sparse.spmatrix, index: np.ndarray, names: Sequence[str], *, seed: int = 0, width: int = WIDTH
) -> GeneVectors:
    """Return components of which genes share terms (GO-SVD).

    Terms are weighed by log(genes / genes with the term), rows brought to length 1, and of their singular value
    decomposition the `width` largest components taken, left vectors times singular values.

    Args:
      terms: which gene of a list has which term, bool, of all genes that are annotated. [K, T]
      index: row of each gene that is asked for, -1 where the list has none. [G]
    """
    terms = sparse.csr_matrix(terms, dtype=np.float64)
    annotated = terms.getnnz(1) > 0
    share = terms.getnnz(0) / max(annotated.sum(), 1)
    weighed = terms @ sparse.diags(-np.log(np.maximum(share, 1e-12)))
    length = np.sqrt(np.asarray(weighed.multiply(weighed).sum(1)).ravel())
    weighed = sparse.diags(1 / np.maximum(length, 1e-12)) @ weighed
    left, values, _ = randomized_svd(weighed, min(width, *(n - 1 for n in terms.shape)), random_state=seed)
    vectors = np.where(annotated[:, None], left * values, np.nan)
    return taken(vectors, index, names, "GO-SVD", "components of shared GO terms")


def loadings(x: np.ndarray | sparse.spmatrix, index: np.ndarray, names: Sequence[str], **options: int) -> GeneVectors:
    """Return the genes' loadings on the principal components of expression, each times its singular value.

    Args:
      x: log-normalised expression of the cells (or condition means) that may be learnt from. [n, V]
      index: column of each gene that is asked for, -1 where it was not measured. [G]
      options: of `components`.
    """
    return taken(components(x, **options), index, names, "PCA loadings", "principal components of the expression")


def components(
    x: np.ndarray | sparse.spmatrix, *, seed: int = 0, width: int = WIDTH, scaled: bool = True
) -> np.ndarray:
    """Return each gene's loadings on principal components of expression, times singular values. [n, V] -> [V, D]

    Args:
      scaled: genes are brought to deviation 1 first; else only centred.
    """
    x = np.array(x.toarray() if sparse.issparse(x) else x, np.float32)
    x -= x.mean(0)
    if scaled:
        x /= np.maximum(x.std(0), 1e-6)
    _, values, right = randomized_svd(x, min(width, *(n - 1 for n in x.shape)), random_state=seed)
    return (right * values[:, None]).T
