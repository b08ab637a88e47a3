"""Each cell's ruler of expression, on the host: counts to bins, as sCT's `prepare` makes them, and bins to counts.

Bin 0 is no expression; the others split the range of a cell's log-normalised positive values into equal parts. A ruler
is read off entries that may be seen: of the whole cell where the truth is binned, the visible ones for predictions.

The paper weights "medians" of bins by their probabilities and defines neither. Ours is the median of the cell's own
values in the bin, and the middle of the bin's borders where it has none; "middle" is that middle always. The median is
the default: most expressed genes of a shallow cell have one count, and the middle of their bin is nearly two.
"""

import dataclasses
import warnings

import numpy as np

BIN_VALUES = ("median", "middle")


@dataclasses.dataclass(frozen=True)
class Ruler:
    """How the counts of n cells become bins.

    Attributes:
      scale: factor from counts to normalised values. [n]
      edges: lower edges of the bins 1, 2, ... and the upper edge of the last. [n, n_bins]
      values: normalised value that stands for each of the bins 1, 2, ... [n, n_bins - 1]
      log: whether bins are of log1p of the normalised values.
    """

    scale: np.ndarray
    edges: np.ndarray
    values: np.ndarray
    log: bool = True

    @property
    def n_bins(self) -> int:
        """Number of bins, zero included."""
        return self.edges.shape[1]

    def bins(self, counts: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the bins, int8, of counts [n, V]; of counts [h] of the cells `rows` [h].

        What lies below a cell's least positive value is bin 0, as a mean below one count mostly means none.
        """
        scale, edges = _per_count(self.scale, rows), self.edges[:, :-1].T
        values = _values(counts, scale, self.log)
        numbers = np.zeros(values.shape, np.int8)
        for edge in edges:
            numbers += values >= _per_count(edge, rows)
        return np.where(counts > 0, numbers, np.int8(0))

    def counts(self, shares: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the counts [h] expected under shares of bins [h, n_bins] in the cells `rows` [h].

        The values of the bins are weighted by their shares, and the logarithm is inverted.
        """
        expected = sum(share * value[rows] for share, value in zip(shares[:, 1:].T, self.values.T, strict=True))
        return (np.expm1(expected) if self.log else expected) / self.scale[rows]


def fit(
    counts: np.ndarray,
    depth: np.ndarray,
    *,
    n_bins: int = 5,
    target_sum: float = 1e4,
    log: bool = True,
    bin_value: str = "median",
) -> Ruler:
    """Return the ruler of cells, from counts that may be seen, zero elsewhere; edges in float64, as sCT's notebook has.

    A cell without a visible count gets the mean edges of the others.

    Args:
      counts: [n, V]
      depth: total counts of each cell, known or estimated. [n]
      target_sum: that total is scaled to this; 0 leaves counts as they are.
      bin_value: what stands for a bin, "median" of the cell's values in it, or "middle" of its borders.

    Raises:
      ValueError: no cell has a visible count, or there is no such `bin_value`.
    """
    if bin_value not in BIN_VALUES:
        raise ValueError(f"bin_value {bin_value!r}: there are {', '.join(BIN_VALUES)}")
    scale = target_sum / np.maximum(depth.astype(np.float32), 1e-9) if target_sum else np.ones(len(depth))
    scale = scale.astype(np.float32)
    values = _values(counts, scale[:, None], log)
    some = (values > 0).any(1)
    if not some.any():
        raise ValueError("no cell has a visible count: there is nothing to impute from; hide less")
    low = np.min(values, 1, initial=np.inf, where=values > 0)[some].astype(np.float64)
    high = np.max(values, 1, initial=0)[some].astype(np.float64)
    inner = np.linspace(low, high, n_bins, axis=1)
    inner[:, -1] += 0.01
    lone = np.full_like(inner, np.inf)
    lone[:, 0], lone[:, 1] = low - np.float32(0.1), low + np.float32(0.1)
    edges = np.empty((len(counts), n_bins))
    edges[some] = np.where((low == high)[:, None], lone, inner)
    edges[~some] = inner.mean(0)
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    ruler = Ruler(scale, edges, np.where(np.isfinite(middles), middles, middles[:, :1]), log)
    return ruler if bin_value == "middle" else dataclasses.replace(ruler, values=_medians(ruler, values, counts))


def even(shares: np.ndarray, rate: float) -> np.ndarray:
    """Return the shares of bins under masks that hide all entries alike, by Bayes' rule. [h, n_bins]

    Args:
      shares: as learned where zeros are hidden `rate` times as often as others (sCT: 0.01 / 0.15), which makes no
        expression look that much rarer than it is.
    """
    weighted = shares * np.where(np.arange(shares.shape[1]) == 0, 1 / rate, 1).astype(shares.dtype)
    return weighted / weighted.sum(1, keepdims=True)


def _medians(ruler: Ruler, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the median of each cell's values [n, V] in each bin, what stands for it now where there are none."""
    binned = ruler.bins(counts)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        medians = [np.nanmedian(np.where(binned == b, values, np.nan), 1) for b in range(1, ruler.n_bins)]
    return np.where(np.isnan(medians), ruler.values.T, medians).T


def _values(counts: np.ndarray, scale: np.ndarray, log: bool) -> np.ndarray:
    values = counts.astype(np.float32) * scale
    return np.log1p(values) if log else values


def _per_count(per_cell: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return a number per cell as a column beside a matrix of all cells, or one for each of the rows."""
    return per_cell[:, None] if rows is None else per_cell[rows]
