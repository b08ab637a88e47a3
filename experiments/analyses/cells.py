"""The cells of a file as a model sees them: counts in the model's own genes, and what is known of each cell."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files import h5ad, panels
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from data_pipeline.store import spatial
from scfm_jax.api import Run
from scfm_jax.inference import bags
from scfm_jax.tasks.cells.embedding import encode


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

    def batches(self, run: Run) -> Iterator[dict[str, Any]]:
        """Yield batches of all cells, in their order, for a model of single cells, or one bag of all for others."""
        labels = run.meta["config"].get("data", {}).get("labels", ())
        for index in run.rules.batches([np.arange(self.counts.shape[0])]):
            yield bags.pack(self.counts[index[index >= 0]], index, labels=list(labels))

    def constants(self, run: Run, say: Callable[[str], None] = print) -> dict[str, Any]:
        """Return the model's constants for batches of these counts, see `bags.complete_constants`."""
        return run.complete_constants(self.batches(run), self.measured[None], say)

    def column(self, name: str, flag: str) -> np.ndarray:
        """Return an obs column as text, "" where there is no value; ValueError names the flag and the columns. [n]"""
        if name not in self.obs:
            columns = ", ".join(map(str, self.obs.columns)) or "none"
            raise ValueError(f"--{flag}={name}: no such obs column; there are {columns}")
        values = text(self.obs[name])
        return np.where(encode(values) >= 0, values, "")


def read(
    run: Run,
    source: Any,
    *,
    layer: str | None = None,
    raw: bool | None = None,
    round: bool | None = None,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.5,
    say: Callable[[str], None] = print,
) -> ModelCells:
    """Read a file onto the genes of a model and report how they met; errors are those of `Run.embed`."""
    with h5ad.read_counts(source, layer=layer, raw=raw, round=round) as counts:
        mapping = run.map_genes(counts, run.gene_table(gene_table), min_mapped)
        say(str(mapping.report))
        matrix = mapping.apply(counts.take(np.arange(counts.n_cells)))
        symbols = list(run.genes)
        for place, *names in zip(mapping.index, *vocab.file_names(counts), strict=True):
            if place >= 0 and vocab.is_id(symbols[place]):
                names.append(run.second_names[place])
                symbols[place] = next((name for name in names if name and not vocab.is_id(name)), symbols[place])
        path = pathlib.Path(str(counts.path))
        measured = np.isin(np.arange(len(run.genes)), mapping.index)
        trained = path.stem in run.classes.get("study", ())
        return ModelCells(path.name, matrix, counts.obs, measured, symbols, trained)


class Cells:
    """A file in the model's vocabulary, cut into bags of cells that are seen together.

    Args:
      gene_fraction: rare genes are zeroed by it, see `Run.gene_fraction`.

    Attributes:
      measured: genes of the model that the file has. [V]
      panel, panels: row of each cell in the genes that its batch measured. [n], [P, V]
      samples: code of the tissue sample of each cell. [n]
      coords: positions, or None. [n, 2]
    """

    def __init__(
        self,
        counts: h5ad.Counts,
        genes: Sequence[str],
        table: vocab.GeneTable | None,
        min_mapped: float,
        gene_fraction: float | None = None,
    ):
        mapping = vocab.onto(counts, genes, table=table, min_mapped=min_mapped)
        mapping = mapping.without_rare(counts, gene_fraction) if gene_fraction else mapping
        self.counts, self.mapping, self.n = counts, mapping, counts.n_cells
        self.panel, self.panels = panels.onto(counts, mapping.index, len(genes))
        self.measured = self.panels[0]
        self.samples = np.zeros(self.n, int)
        self.coords = np.asarray(counts.obsm["spatial"])[:, :2] if "spatial" in counts.obsm else None

    def separate(self, sample_key: str | None) -> str:
        """Tell the samples apart by an obs column (see `bags.samples`) and return in words how."""
        parts, how = bags.samples(self.counts.obs, sample_key, self.n, 0)
        for code, rows in enumerate(parts):
            self.samples[rows] = code
        return how

    @property
    def field_coords(self) -> np.ndarray | None:
        """Positions scaled to [0, 1] over each sample, or None. [n, 2]"""
        return None if self.coords is None else spatial.in_fields(self.coords, self.samples)

    def draw(self, size: int, most: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return bags of at most `size` cells of one sample, at random: of `most` cells together, or one bag.

        Cells of a bag are neighbours in space where there are positions, else random.
        """
        return draw(self.samples, self.coords, size, most, rng)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return dense counts of cells. [n, V]"""
        return sparse.csr_matrix(self.mapping.apply(self.counts.take(rows))).toarray().astype(np.float32)


def draw(
    samples: np.ndarray, coords: np.ndarray | None, size: int, most: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return bags as `Cells.draw` does, of cells with a code of their sample [n] and positions [n, 2], if any."""
    bags = []
    for code in np.unique(samples):
        rows = rng.permutation(np.flatnonzero(samples == code))
        if coords is None or np.isnan(coords[rows]).any():
            bags += np.array_split(rows, -(-len(rows) // size))
        else:
            bags += halves(rows, coords, size)
    bags = [bags[i] for i in rng.permutation(len(bags))]
    fits = int(np.searchsorted(np.cumsum([len(bag) for bag in bags]), most, side="right"))
    return bags[: max(fits, 1)]


def halves(rows: np.ndarray, coords: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut cells across the longer side of their field until no part has more than `size`."""
    if len(rows) <= size:
        return [rows]
    field = coords[rows]
    rows = rows[np.argsort(field[:, np.ptp(field, 0).argmax()], kind="stable")]
    middle = size * (-(-len(rows) // size) // 2)
    return halves(rows[:middle], coords, size) + halves(rows[middle:], coords, size)
