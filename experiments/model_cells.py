"""The cells of a file as a model sees them: counts in the model's own genes, and what is known of each cell."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline import h5ad, vocab
from scfm_jax.api import Run
from scfm_jax.tasks.embedding import encode


@dataclasses.dataclass
class ModelCells:
    """Cells of a file, all in memory.

    Attributes:
      name: of the file. counts: raw counts in the model's vocabulary. [n, V]
      obs: what the file knows of each cell. n rows
      measured: the genes that the file measured, bool. [V]
      symbols: what each gene is called, as the file has it where it is there, else as the model has it. [V]
      trained_on: by its name the file is a study that the model was trained on.
    """

    name: str
    counts: sparse.csr_matrix
    obs: pd.DataFrame
    measured: np.ndarray
    symbols: list[str]
    trained_on: bool

    def constants(self, run: Run) -> dict[str, Any]:
        """Return the model's constants for batches of these counts."""
        slots = np.arange(len(self.measured) + 1, dtype=np.int32)
        return {**run.constants, "slots": slots, "measured": self.measured[None]}

    def column(self, name: str, flag: str) -> np.ndarray:
        """Return an obs column as text, "" where there is no value; ValueError names the flag and the columns. [n]"""
        if name not in self.obs:
            there = ", ".join(map(str, self.obs.columns)) or "none"
            raise ValueError(f"--{flag}={name}: no such obs column; there are {there}")
        values = self.obs[name].astype(object)
        return np.where(encode(values) >= 0, values.map(str), "")


def read(
    run: Run,
    source: Any,
    *,
    layer: str | None = None,
    raw: bool | None = None,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.5,
    say: Callable[[str], None] = print,
) -> ModelCells:
    """Read a file onto the genes of a model and report how they met; errors are those of `Run.embed`."""
    table = vocab.read_table(gene_table) if gene_table else None
    with h5ad.read_counts(source, layer=layer, raw=raw) as counts:
        second = vocab.second_names(counts.var)
        found = vocab.map_genes(counts.genes, run.genes, ensembl=second, table=table, min_mapped=min_mapped)
        say(str(found.report))
        matrix = found.apply(counts.take(np.arange(counts.n_cells)))
        symbols = list(run.genes)
        for place, name, other in zip(found.index, counts.genes, second or counts.genes, strict=True):
            if place >= 0 and vocab.is_id(symbols[place]):
                symbols[place] = next((str(n) for n in (name, other) if n and not vocab.is_id(str(n))), symbols[place])
        path = pathlib.Path(str(counts.path))
        measured = np.isin(np.arange(len(run.genes)), found.index)
        trained = path.stem in run.classes.get("study", ())
        return ModelCells(path.name, matrix, counts.obs, measured, symbols, trained)
