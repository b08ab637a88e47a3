"""Mean and deviation of each gene, and how many genes a cell expresses, in one pass over cells and in float64."""

from collections.abc import Mapping

import numpy as np


class Statistics:
    """Sums over cells, gene by gene, and how many cells express how many genes.

    Args:
      slots: the model slot of each store id [G + 1], V for none.
      measured: genes that each study, or batch of one, measured, bool [panels, V].
      target_sum: counts of a cell are scaled to this sum before log1p.
    """

    def __init__(self, slots: np.ndarray, measured: np.ndarray, target_sum: float):
        self._slots, self._measured, self._target = slots, measured, target_sum
        n_studies, n_genes = measured.shape
        self._sums, self._squares = np.zeros(n_genes + 1), np.zeros(n_genes + 1)
        self._cells, self._numbers = np.zeros(n_studies, int), np.zeros(n_genes + 1, int)
        self._expressed = np.zeros(n_genes + 1, int)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Fold a batch in."""
        real, width = np.asarray(batch["cell_mask"]), len(self._sums)
        counts = np.asarray(batch["counts"])[real].astype(np.float64)
        slots = np.where(counts > 0, self._slots[np.asarray(batch["genes"])[real]], width - 1)
        counts[slots == width - 1] = 0
        logs = np.log1p(counts * (self._target / np.maximum(counts.sum(1, keepdims=True), 1e-9)))
        self._sums += np.bincount(slots.ravel(), logs.ravel(), width)
        self._squares += np.bincount(slots.ravel(), (logs**2).ravel(), width)
        self._expressed += np.bincount(slots.ravel(), minlength=width)
        panel = batch["study"] if batch.get("panel") is None else batch["panel"]
        self._cells += np.bincount(np.asarray(panel)[real], minlength=len(self._cells))
        self._numbers += np.bincount((slots < width - 1).sum(1), minlength=width)

    def scaler(self) -> dict[str, np.ndarray]:
        """Return "mean" and "scale" of each gene, float32. [V]"""
        n = np.maximum(self._cells @ self._measured, 1)
        mean = self._sums[:-1] / n
        variance = np.maximum(self._squares[:-1] / n - mean**2, 0)
        eps = np.finfo(np.float64).eps
        constant = variance <= n * eps * variance + (n * mean * eps) ** 2 + eps * mean**2
        return {"mean": mean.astype(np.float32), "scale": np.sqrt(np.where(constant, 1, variance)).astype(np.float32)}

    def expressed(self) -> np.ndarray:
        """Return the mean of each gene over the cells that express it, 0 where none does, float32. [V]"""
        return (self._sums / np.maximum(self._expressed, 1))[:-1].astype(np.float32)

    def median(self) -> float:
        """Return the median number of expressed genes of a cell."""
        order = np.cumsum(self._numbers)
        low, high = (np.searchsorted(order, order[-1] // 2 + i, "right") for i in (order[-1] % 2 - 1, 0))
        return (low + high) / 2
