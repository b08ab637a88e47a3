"""A trained model and what one asks of it: embeddings, cell types, gene representations, a twin with random weights."""

import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from scfm_jax import __version__
from scfm_jax.inference import bags as tissue
from scfm_jax.inference import infer
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.saving import weights as weights_file
from scfm_jax.training import tuning
from scfm_jax.types import Array

BATCH = 256
"""Cells that are embedded at a time by models that look at one cell at a time."""
MAX_CELLS = 16384
"""Cells of a sample that are embedded at a time by models that look at the whole sample."""
GENE_BYTES = 128 << 20
"""Memory for the gene representations of the cells that a model of single cells is given at a time."""
BAG = 50
"""Cells of a bag of a published model, which brings no data options."""


@dataclasses.dataclass
class Run:
    """A model with its weights, and all that it needs to read any file.

    Attributes:
      module, model: the model's file (`scfm_jax.models.<name>`) and the network.
      variables: Flax collections, "params" among them.
      constants: arrays of the training data that the model may need.
      meta: metadata of the checkpoint: model, config, genes, classes, step, code version and more.
      source: where the weights are from, in words.
      task: parameters of the task's layers, where the run was fine-tuned to a task.
      mapping: of the newest `embed`: how the file's genes met the model's.
      provenance: of the newest `embed`: what was done, JSON-able.
    """

    module: ModuleType
    model: nn.Module
    variables: dict[str, Any]
    constants: dict[str, Any]
    meta: dict[str, Any]
    source: str
    task: dict[str, Any] | None = None
    mapping: vocab.Mapping | None = None
    provenance: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the model, such as "cellplm"."""
        return self.meta["model"]

    @property
    def config(self) -> ConfigDict:
        """The resolved config of the run."""
        return ConfigDict(self.meta["config"])

    @property
    def genes(self) -> list[str]:
        """The model's genes in the order of its vocabulary. [V]"""
        return self.meta["genes"]

    @property
    def classes(self) -> dict[str, list[str]]:
        """Class names of the labels that the model knows: {"batch": [...], ...}."""
        return self.meta.get("classes", {})

    def embed(
        self,
        source: Any,
        *,
        layer: str | None = None,
        raw: bool | None = None,
        sample_key: str | None = "auto",
        gene_table: Sequence[str | os.PathLike] = (),
        min_mapped: float | None = 0.5,
        max_cells: int = MAX_CELLS,
        seed: int = 0,
        mesh: Mesh | None = None,
        say: Callable[[str], None] = print,
    ) -> np.ndarray:
        """Return the embedding of every cell of an AnnData or a file, in its order, float32. [n, D]

        Args:
          layer, raw: where the raw counts are, if not in X.
          sample_key: obs column that names a cell's tissue sample, for models that look at whole samples; None takes
            the file as one sample, "auto" takes obs["batch"] if there is one. Models of single cells do not use it.
          gene_table: files that translate gene names (see `vocab.read_table`).
          min_mapped: least share of the file's genes that must be genes of the model; None for no limit.
          max_cells: larger samples are cut into random parts of equal size.
          seed: of those parts.
          mesh: devices to spread over, see `sharding.make_mesh`.
          say: gets the report on the genes.

        Raises:
          ValueError, OSError: the file has no counts, no known genes or no such column, in one line.
        """
        with h5ad.read_counts(source, layer=layer, raw=raw) as counts:
            self.mapping = _map_genes(counts, self.genes, gene_table, min_mapped)
            say(str(self.mapping.report))
            bags, how = self._bags(counts.obs, sample_key, max_cells, seed)
            measured = np.zeros((1, len(self.genes)), bool)
            measured[0, self.mapping.index[self.mapping.index >= 0]] = True
            constants = {**self.constants, **infer.own_vocabulary(measured)}
            if not set(getattr(self.module, "FITTED", ())) <= constants.keys():
                say(f"{', '.join(self.module.FITTED)} did not come with the weights: those of this file are taken")
                once = {"train": self._batches(counts, bags, self.mapping, self._cells)}
                constants, _ = self.module.fit(once, constants, self.meta["config"].get("inputs", {}))
            embedding = infer.embed(
                self.module,
                self.model,
                self.variables,
                constants,
                self._batches(counts, bags, self.mapping, self._cells),
                counts.n_cells,
                inputs=self.meta["config"].get("inputs"),
                mesh=mesh,
            )
            self.provenance = self._provenance(counts, how, embedding.shape[1])
        return embedding

    def annotate(self, source: Any, **options: Any) -> pd.DataFrame:
        """Return the probability of each cell type for every cell, in its order. [n, classes]

        Args:
          options: of `embed`.

        Raises:
          ValueError: the run was not fine-tuned to annotate cells, or as for `embed`.
        """
        task = self.meta["config"].get("task") or {}
        if self.task is None or task.get("name") != "cell_type":
            raise ValueError(f"{self.source}: this run has no head for cell types; fine-tune one that has")
        from scfm_jax.tasks.cells import cell_type

        settings = {**cell_type.OPTIONS, **task}
        shares = cell_type.probabilities(self.task, settings, self.embed(source, **options))
        return pd.DataFrame(shares, columns=self.classes[settings["label"]])

    def gene_representations(
        self,
        source: Any,
        *,
        rows: Sequence[int] | None = None,
        layer: str | None = None,
        raw: bool | None = None,
        sample_key: str | None = "auto",
        gene_table: Sequence[str | os.PathLike] = (),
        min_mapped: float | None = 0.5,
        max_cells: int = MAX_CELLS,
        seed: int = 0,
        mesh: Mesh | None = None,
        say: Callable[[str], None] = print,
    ) -> GeneRepresentations:
        """Return what the model makes of each gene in each cell: means over groups, a stream, or a file, when asked.

        Arguments and errors are as for `embed`; samples and bags are made of the chosen cells alone.

        Args:
          rows: the cells; all, if left out.

        Raises:
          ValueError: the model has no gene representations, or as for `embed`.
        """
        with h5ad.read_counts(source, layer=layer, raw=raw) as counts:
            self.mapping = mapping = _map_genes(counts, self.genes, gene_table, min_mapped)
            say(str(mapping.report))
            rows = np.arange(counts.n_cells) if rows is None else np.unique(np.asarray(rows, np.int64))
            if not len(rows) or rows[0] < 0 or rows[-1] >= counts.n_cells:
                raise ValueError(f"rows: {len(rows)} rows for {counts.n_cells} cells; one or more of them are needed")
            obs = counts.obs.iloc[rows]
            bags, how = self._bags(obs, sample_key, max_cells, seed)
            ids = np.unique(mapping.index[mapping.index >= 0])
            measured = np.isin(np.arange(len(self.genes)), ids)[None]
            args = (self.module, self.model, self.variables, {**self.constants, **infer.own_vocabulary(measured)})
            options = {"inputs": self.meta["config"].get("inputs")}
            one = infer.pack(sparse.csr_matrix(measured.shape), np.zeros((1, 1), int), labels=self._labels())
            width = infer.gene_width(*args, one, **options)
            provenance = self._provenance(counts, how, width)
        most = max(1, min(self._cells, GENE_BYTES // (4 * len(ids) * width)))
        if not getattr(self.module, "SAMPLE", False):
            bags = np.split(np.arange(len(rows)), range(most, len(rows), most))

        def batches() -> Iterator[tuple[np.ndarray, Array]]:
            with h5ad.read_counts(source, layer=layer, raw=raw) as counts:
                packed = self._batches(counts, [rows[bag] for bag in bags], mapping, most)
                yield from infer.genes(*args, packed, ids, **options, mesh=mesh)

        return GeneRepresentations([self.genes[i] for i in ids], ids, width, rows, obs, batches, provenance)

    def twin(self, seed: int = 0) -> "Run":
        """Return the same model with fresh random weights: the baseline that shows what training has added."""
        constants = {**self.constants, **infer.own_vocabulary(np.ones((1, len(self.genes)), bool))}
        options = self.meta["config"].get("inputs", {})
        variables = infer.initial(self.module, self.model, constants, seed, self._labels(), self._bag or 8, **options)
        return dataclasses.replace(
            self, variables=variables, source=f"random weights of seed {seed}", task=None, mapping=None, provenance=None
        )

    def export(self, path: str | os.PathLike) -> None:
        """Write weights, constants and metadata as one safetensors file that `load` reads."""
        parts = {"variables": self.variables, "constants": self.constants, tuning.TASK: self.task or {}}
        weights_file.export(path, parts, self.meta)

    def _labels(self) -> list[str]:
        return list(self.meta["config"].get("data", {}).get("labels", ()))

    def _bags(
        self, obs: pd.DataFrame, sample_key: str | None, max_cells: int, seed: int
    ) -> tuple[list[np.ndarray], str]:
        """Return the rows of each batch of the model, and in words what a cell is seen together with."""
        if getattr(self.module, "SAMPLE", False):
            return tissue.samples(obs, sample_key, min(max_cells, self._bag or max_cells), seed)
        most = self._cells
        return np.split(np.arange(len(obs)), range(most, len(obs), most)), "every cell is embedded by itself"

    @property
    def _cells(self) -> int:
        """Cells at a time of a model of single cells."""
        return getattr(self.module, "BATCH", BATCH)

    @property
    def _bag(self) -> int | None:
        """Cells of a bag in training, for models that look at so many cells at a time; None for others."""
        if getattr(self.module, "SAMPLE", False) != "bag":
            return None
        return self.meta["config"].get("data", {}).get("bag", BAG)

    def _batches(
        self, counts: h5ad.Counts, bags: list[np.ndarray], mapping: vocab.Mapping, most: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the batches: one sample of padded size, or `most` bags of one cell."""
        coords = counts.obsm["spatial"][:, :2] if "spatial" in counts.obsm else None
        for rows in bags:
            shape = (
                (1, infer.size_up(len(rows), self._bag or 64)) if getattr(self.module, "SAMPLE", False) else (most, 1)
            )
            index = np.full(shape, -1, np.int64)
            index.flat[: len(rows)] = rows
            where = None if coords is None else coords[rows]
            yield infer.pack(mapping.apply(counts.take(rows)), index, where, self._labels())

    def _provenance(self, counts: h5ad.Counts, how: str, width: int) -> dict[str, Any]:
        config = json.dumps(self.meta["config"], sort_keys=True)
        return {
            "model": self.name,
            "weights": self.source,
            "step": self.meta.get("step"),
            "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
            "trained_with": self.meta.get("code_version"),
            "embedded_with": __version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "input": pathlib.Path(str(counts.path)).name,
            "counts": counts.source,
            "shape": [counts.n_cells, width],
            "sample": how,
            "genes": self.mapping.report.to_dict(),
        }


def _map_genes(
    counts: h5ad.Counts, genes: Sequence[str], tables: Sequence[str | os.PathLike], min_mapped: float | None
) -> vocab.Mapping:
    """Map the file's genes onto the model's, by name and by the other name that the file may have beside it."""
    table = vocab.read_table(tables) if tables else None
    second = vocab.second_names(counts.var)
    return vocab.map_genes(counts.genes, genes, ensembl=second, table=table, min_mapped=min_mapped)
