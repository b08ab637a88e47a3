"""What a suite compares and on what: runs and studies, and the genes that all runs know in a study."""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from data_pipeline.files import h5ad, perturbations
from data_pipeline.genes import vocab
from data_pipeline.store import spatial
from experiments.suite import keys
from scfm_jax import api, models
from scfm_jax.saving.published.files import UNKNOWN
from scfm_jax.tasks.cells import embedding, labels

BASELINE = "PCA-50"
"""The name that the pictures of the baseline have; no run is called so."""


class Inapplicable(ValueError):
    """A task that asks for what a study or a run does not have."""


class Study:
    """A file of raw counts that runs are compared on.

    Attributes:
      name, path, sha256: of the file. n: its cells. tables, tables_sha256: files that translate gene names.
      place: where in the file its counts are, if not in X, as options of `h5ad.read_counts`.
      labels, batches: values of the obs columns, None where there are none or fewer than two, or measurements. [n]
      coords: positions, or None. [n, 2]
    """

    def __init__(
        self, path: str, *, label: str = "cell_type", batch: str = "batch", tables: Sequence[str] = (), **place: Any
    ):
        self.path = pathlib.Path(path)
        self.name, self.tables = self.path.name.split(".")[0], tuple(tables)
        self.place = {name: value for name, value in place.items() if value}
        self.counts = h5ad.read_counts(self.path, **self.place)
        self.sha256, self.n = keys.file(self.path), self.counts.n_cells
        self.tables_sha256 = [keys.file(pathlib.Path(table)) for table in self.tables]
        self.label, self.batch = label, batch
        self.labels, self.batches = self._column(label), self._column(batch)
        self.coords = None
        if "spatial" in self.counts.obsm:
            self.coords = np.asarray(self.counts.obsm["spatial"])[:, :2].astype(np.float32)

    def _column(self, name: str) -> np.ndarray | None:
        if name not in self.counts.obs:
            return None
        column = self.counts.obs[name]
        values, codes = column.to_numpy(), embedding.encode(column)
        return values if len(np.unique(codes[codes >= 0])) > 1 and not labels.measured(column) else None

    @functools.cached_property
    def screened(self) -> dict[str, Any] | None:
        """How `screens.read` reads what was done to each cell; None where the file names no 3 perturbed genes."""
        options = perturbations.told(self.counts.obs)
        if options is None or len(perturbations.read(self.counts.obs, **options).all_targets()) < 3:
            return None
        return options

    @functools.cached_property
    def table(self) -> vocab.GeneTable | None:
        """The tables that translate gene names."""
        return vocab.read_table(self.tables) if self.tables else None

    @functools.cached_property
    def where(self) -> dict[str, np.ndarray]:
        """What a `Problem` says of each cell: samples, of which the batches are taken, and coords and field_coords."""
        samples = np.zeros(self.n, int) if self.batches is None else embedding.encode(self.batches)
        if self.coords is None:
            return {"samples": samples}
        return {"samples": samples, "coords": self.coords, "field_coords": spatial.in_fields(self.coords, samples)}

    def onto(self, genes: Sequence[str], second_names: Sequence[str] = ()) -> vocab.Mapping:
        """Return how the names of the file meet a list of genes, with other names of these. See `vocab.onto`."""
        table = vocab.learn([(genes, second_names)], self.table)
        return vocab.onto(self.counts, genes, table=table, min_mapped=None)

    def draw(self, seed: int, most: int) -> np.ndarray:
        """Return the rows of `most` random cells, or of all, in random order."""
        return np.random.default_rng(seed).permutation(self.n)[:most]

    def take(self, rows: np.ndarray, mapping: vocab.Mapping, genes: Sequence[str]) -> anndata.AnnData:
        """Return counts of cells, of those of the genes mapped to that the file has, as an AnnData."""
        obsm = {} if self.coords is None else {"spatial": self.coords[rows]}
        obs = self.counts.obs.iloc[rows].copy()
        obs.index = pd.Index([f"cell{i}" for i in range(len(rows))])
        used = np.unique(mapping.index[mapping.index >= 0])
        counts = mapping.apply(self.counts.take(rows))[:, used].astype(np.float32)
        return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[genes[i] for i in used]), obsm=obsm)

    def describe(self) -> dict[str, Any]:
        """Return its line in suite.json."""
        return {
            "name": self.name,
            "path": str(self.path),
            "sha256": self.sha256,
            "cells": self.n,
            "genes": self.counts.n_genes,
            "label": self.label if self.labels is not None else None,
            "batch": self.batch if self.batches is not None else None,
            "spatial": self.coords is not None,
            "counts": self.counts.source,
            "notes": self.counts.notes,
        }


@dataclasses.dataclass(eq=False)
class Entrant:
    """A run in a suite, and what it has cost so far; `cell_layer`: of which layers it embeds, where that was asked."""

    name: str
    workdir: str
    run: api.Run
    cells_per_second: float | None = None
    cell_layer: str | None = None

    @functools.cached_property
    def weights(self) -> str:
        """What stands for its weights."""
        return keys.weights(self.run)

    def check(self) -> None:
        """Raise Inapplicable where the weights came without the names of their genes: no study can be given to it."""
        if all(name.startswith(f"{UNKNOWN}:") for name in self.run.genes):
            raise Inapplicable(
                "the weights came without the names of their genes, whose order was never published, so which count "
                "goes where is unknown; whoever has the names gives them with the run, model:weights:genes.txt"
            )

    @functools.cache  # noqa: B019  entrants live as long as the process
    def mapping(self, study: Study) -> vocab.Mapping:
        """Return how the names of the study's file meet the genes of the run."""
        return study.onto(self.run.genes, self.run.second_names)

    def slots(self, study: Study) -> np.ndarray:
        """Return the run's place of each name of the study's file, -1 where it knows none. [names]"""
        return self.mapping(study).index

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def embed(self, study: Study, seed: int, cells: int, twin: bool) -> np.ndarray:
        """Return the embedding of the cells that `study` draws, by the run or its random twin of that seed. [n, D]

        Where every seed draws all cells, and the model sees each alone, the run embeds them once.
        """
        if seed and not twin and cells >= study.n and not self.run.rules.together:
            place = np.argsort(study.draw(0, cells))
            return self.embed(study, 0, cells, False)[place[study.draw(seed, cells)]]
        return self.embed_by(self.run.twin(seed) if twin else self.run, study, seed, cells)

    def embed_by(self, run: api.Run, study: Study, seed: int, cells: int) -> np.ndarray:
        """Return the embedding of the cells that `study` draws by a run with this one's genes. [n, D]"""
        mapping = self.mapping(study)
        if not mapping.report.mapped:
            why = "".join(f"; {note}" for note in mapping.report.notes)
            raise ValueError(f"no gene of {study.name} is one of the {len(self.run.genes)} that the run knows{why}")
        source = study.take(study.draw(seed, cells), mapping, run.genes)
        start = time.perf_counter()
        embedded = run.embed(source, min_mapped=None, say=lambda _: None)
        rate = len(embedded) / (time.perf_counter() - start)
        self.cells_per_second = max(rate, self.cells_per_second or 0)
        return embedded

    def describe(self) -> dict[str, Any]:
        """Return its line in suite.json."""
        return {
            "name": self.name,
            "model": self.run.name,
            "source": self.run.source,
            "workdir": self.workdir,
            "weights": self.weights,
            "step": self.run.meta.get("step"),
            "parameters": self.run.parameters,
            "genes": len(self.run.genes),
            "cells_per_second": self.cells_per_second,
            **({"cell_layer": self.cell_layer} if self.cell_layer else {}),
        }


def enter(text: str, name: str, cell_layer: str | None = None) -> Entrant:
    """Return the run of a workdir, or of published weights: "model:weights" and what `api.from_published` takes more.

    Args:
      cell_layer: of `Run.with_cell_layer`.
    """
    model, *files = text.split(":")
    if len(files) > 3 and model in models.names():
        raise ValueError(f"--runs={text}: published weights are given as model:weights:config:medians")
    run = api.from_published(model, *files) if files and model in models.names() else api.load(text)
    return Entrant(name, text, run.with_cell_layer(cell_layer), cell_layer=cell_layer)


def names(texts: Sequence[str]) -> list[str]:
    """Return a name for each run, that of its folder or file, numbered where two have the same."""
    stems = [pathlib.Path(text.split(":")[min(1, text.count(":"))]).resolve().stem for text in texts]
    taken = {stem for stem in stems if stems.count(stem) == 1} | {BASELINE}
    named = []
    for stem in stems:
        numbered = (f"{stem} {number}" for number in itertools.count(1))
        free = stem if stems.count(stem) == 1 and stem != BASELINE else next(n for n in numbered if n not in taken)
        taken.add(free)
        named.append(free)
    return named


@dataclasses.dataclass(frozen=True, eq=False)
class SharedGenes:
    """Genes of a study's file that every run knows.

    Attributes:
      columns: the first column of the file that is of each gene. [K]
      gene: the gene that each column of the file is summed into, -1 for none. [names]
    """

    columns: np.ndarray
    gene: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    def of(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        """Return counts [n, names] of the file as those of the genes. [n, K]"""
        used = np.flatnonzero(self.gene >= 0)
        ones = np.ones(len(used), counts.dtype)
        return counts @ sp.csr_matrix((ones, (used, self.gene[used])), (len(self.gene), len(self)))


def shared_genes(study: Study, entrants: Sequence[Entrant], least: float = 0.01) -> SharedGenes:
    """Return the genes of the file that every run knows, but for runs that know fewer than `least` of its names.

    Those have failed by themselves and are no measure for the others; with no run left every column is a gene. Columns
    that are one gene to a run are summed; a gene that is one to one run and two to another is left out.
    """
    slots = [entrant.slots(study) for entrant in entrants]
    slots = [places for places in slots if (places >= 0).mean() >= least]
    names = list(zip(*vocab.file_names(study.counts), strict=True))
    n, first = len(names), dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
    of = np.array([first[name] if any(name) else i for i, name in enumerate(names)])
    # the group of each column: those of the same names, and those that one run or another takes for the same gene
    while True:
        before = of.copy()
        for places in slots:
            lowest = np.full(places.max() + 1, n)
            np.minimum.at(lowest, places[places >= 0], of[places >= 0])
            of[places >= 0] = lowest[places[places >= 0]]
        if (of == before).all():
            break
    shared = np.ones(n, bool)
    for places in slots:
        shared[np.unique(of[(places < 0) | (places != places[of])])] = False
    columns = np.flatnonzero((of == np.arange(n)) & shared)
    place = np.full(n, -1)
    place[columns] = np.arange(len(columns))
    return SharedGenes(columns, place[of])
