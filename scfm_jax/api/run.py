"""A trained model and what one asks of it: embeddings, cell types, gene representations, a twin with random weights."""

import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pandas as pd
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from scfm_jax import __version__, models
from scfm_jax.api import cells as file_cells
from scfm_jax.inference import bags, infer
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.saving import weights as weights_file
from scfm_jax.training import pace, tuning
from scfm_jax.types import Array

if TYPE_CHECKING:
    from anndata import AnnData

    from scfm_jax.api.perturbation import PerturbationHead
    from scfm_jax.tasks.genes.features import GeneVectors

MAX_CELLS = 16384
"""Cells of a sample that are embedded at a time by models that look at the whole sample."""
WINDOW = 32
"""Batches of single cells that are read together, to be dealt out by length."""
SCALERS = ("training", "file")
GENE_BYTES = 128 << 20
"""Memory for the gene representations of the cells that a model of single cells is given at a time."""


@dataclasses.dataclass(repr=False)
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

    def __repr__(self) -> str:
        """Say in five lines which model, weights, genes, classes and how many parameters."""
        names = ", ".join(self.genes[:3]) + (", ..." if len(self.genes) > 3 else "")
        classes = ", ".join(f"{name} ({len(values)})" for name, values in self.classes.items())
        lines = [f"{self.name}{f' for {self.task_name}' if self.task_name else ''}", f"weights: {self.source}"]
        lines += [f"genes: {len(self.genes):,}{f' ({names})' if names else ''}", f"classes: {classes or 'none'}"]
        return "\n  ".join([*lines, f"parameters: {self.parameters:,}"])

    @property
    def name(self) -> str:
        """Name of the model, such as "cellplm"."""
        return self.meta["model"]

    @property
    def parameters(self) -> int:
        """How many parameters the network has."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.variables.get("params", {})))

    @property
    def task_name(self) -> str | None:
        """Name of the task that the run was fine-tuned to, such as "cell_type"; None for none."""
        return (self.meta["config"].get("task") or {}).get("name") if self.task is not None else None

    @property
    def rules(self) -> bags.Rules:
        """Which cells the model sees together."""
        return bags.rules(self.module, self.meta["config"])

    @property
    def config(self) -> ConfigDict:
        """The resolved config of the run."""
        return ConfigDict(self.meta["config"])

    @property
    def genes(self) -> list[str]:
        """The model's genes in the order of its vocabulary. [V]"""
        return self.meta["genes"]

    @property
    def second_names(self) -> list[str]:
        """Another name of each gene, such as the symbol of an Ensembl id; "" where the run knows none. [V]"""
        return self.meta.get("second_names") or [""] * len(self.genes)

    def gene_table(self, paths: Sequence[str | os.PathLike] = ()) -> vocab.GeneTable:
        """Return what gene tables, files of any kind that `vocab.read_table` reads, and the run know of its genes."""
        return vocab.learn([(self.genes, self.second_names)], vocab.read_table(paths) if paths else None)

    def map_genes(
        self, counts: h5ad.Counts, table: vocab.GeneTable | None = None, min_mapped: float | None = 0.5
    ) -> vocab.Mapping:
        """Return how the genes of an open file meet the model's, by all names that either has; see `vocab.onto`.

        Where the training studies were ingested with --min_gene_fraction, rare genes of the file are zeroed by it, too.

        Args:
          table: of `gene_table`; that without files, if left out.
        """
        mapping = vocab.onto(counts, self.genes, table=table or self.gene_table(), min_mapped=min_mapped)
        return mapping.without_rare(counts, self.gene_fraction) if self.gene_fraction else mapping

    @property
    def gene_fraction(self) -> float | None:
        """The --min_gene_fraction that the training studies were ingested with; None for none."""
        return self.meta.get("min_gene_fraction")

    @property
    def classes(self) -> dict[str, list[str]]:
        """Class names of the labels that the model knows: {"batch": [...], ...}."""
        return self.meta.get("classes", {})

    def with_cell_layer(self, cell_layer: str | None) -> "Run":
        """Return the run whose embedding of a cell is of other layers; itself for None.

        Args:
          cell_layer: a value of the model's option of this name: "last" or "all_layers" of scEMB, "last" or "mean" of
            sCT, whatever the run was trained with.

        Raises ValueError for a model without the option, or a value that there is not.
        """
        if cell_layer is None:
            return self
        if "cell_layer" not in models.defaults(self.module, "model"):
            some = [name for name in models.names() if "cell_layer" in models.defaults(models.get(name), "model")]
            raise ValueError(
                f"cell_layer={cell_layer}: {self.name} has no choice of layers ({', '.join(some)} have); leave it out"
            )
        model = self.model.clone(cell_layer=cell_layer)
        model.check()
        config = self.meta["config"]
        config = {**config, "model": {**config["model"], "cell_layer": cell_layer}}
        return dataclasses.replace(self, model=model, meta={**self.meta, "config": config})

    def embed(
        self,
        source: Any,
        *,
        cell_layer: str | None = None,
        layer: str | None = None,
        raw: bool | None = None,
        round: bool | None = None,
        sample_key: str | None = "auto",
        gene_table: Sequence[str | os.PathLike] = (),
        min_mapped: float | None = 0.5,
        max_cells: int = MAX_CELLS,
        seed: int = 0,
        mesh: Mesh | None = None,
        key_added: str | None = None,
        say: Callable[[str], None] = print,
    ) -> np.ndarray:
        """Return the embedding of every cell of an AnnData or a file, in its order, float32. [n, D]

        Args:
          cell_layer: of which layers the embedding is, where the model has a choice, see `with_cell_layer`; as in
            training, if left out.
          layer, raw: where the raw counts are, if not in X.
          round: take values to the nearest whole number, of counts that were estimated or corrected (RSEM, SoupX).
          sample_key: obs column that names a cell's tissue sample, for models that look at whole samples; None takes
            the file as one sample, "auto" takes obs["batch"] if there is one. Models of single cells do not use it.
          gene_table: files that translate gene names (see `vocab.read_table`).
          min_mapped: least share of the file's genes that must be genes of the model; None for no limit.
          max_cells: larger samples are cut into random parts of equal size; into tiles of neighbours where the file
            has positions and the run was trained on neighbours.
          seed: of random parts.
          mesh: devices to spread over, see `sharding.make_mesh`.
          key_added: such as "X_cellplm": the embedding is also put into obsm of the AnnData under this name, and what
            was done into uns; None leaves the AnnData as it is.
          say: gets the report on the genes, and what was fitted to these cells, if anything.

        Raises:
          ValueError, OSError: the file has no counts, no known genes or no such column, in one line.
        """
        if key_added and not hasattr(source, "obsm"):
            raise ValueError(
                f"key_added={key_added}: {source} is not an AnnData in memory; read it first (anndata.read_h5ad)"
            )
        rules, chosen = self.rules, self.with_cell_layer(cell_layer)
        with h5ad.read_counts(source, layer=layer, raw=raw, round=round) as counts:
            self.mapping = self.map_genes(counts, self.gene_table(gene_table), min_mapped)
            say(str(self.mapping.report))
            per_cell, measured = file_cells.of_file(counts, self.mapping, len(self.genes), rules, sample_key)
            coords = per_cell.get("coords")
            parts, how = bags.seen_together(rules, counts.obs, sample_key, max_cells, seed, coords=coords)
            columns, mapping = self.mapping.compact()
            once = self._batches(counts, parts, mapping, rules.cells, per_cell)
            constants = self.complete_constants(once, measured, say, columns)
            embedding = infer.embed(
                self.module,
                chosen.model,
                self.variables,
                constants,
                self._batches(counts, pace.counted(parts, "embedded batch", say), mapping, rules.cells, per_cell),
                counts.n_cells,
                inputs=self.meta["config"].get("inputs"),
                mesh=mesh,
            )
            self.provenance = chosen._provenance(counts, self.mapping, how, embedding.shape[1])
        if key_added:
            source.obsm[key_added] = embedding
            source.uns[key_added] = h5ad.plain(self.provenance)
        return embedding

    def complete_constants(
        self,
        batches: Iterable[Mapping[str, Any]],
        measured: np.ndarray,
        say: Callable[[str], None] = print,
        columns: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Return the constants for batches in the model's vocabulary, see `bags.complete_constants`."""
        how = {"measured": measured, "columns": columns, "say": say}
        return bags.complete_constants(self.module, self.constants, batches, self.meta["config"].get("inputs"), **how)

    def with_scaler(self, scaler: str) -> "Run":
        """Return the run with another answer to whose statistics of genes it takes (Exceiver's means and deviations).

        Args:
          scaler: "training", those of its training cells, where it has them; "file", of each file that it is given
            those of the file's own cells, as Exceiver's paper has it. `export` then writes none.

        Raises ValueError for another word. A model that takes no statistics stays as it is.
        """
        if scaler not in SCALERS:
            raise ValueError(f"scaler={scaler!r}: must be one of {', '.join(SCALERS)}")
        constants = self.constants if scaler == "training" else bags.unfitted(self.module, self.constants)
        return dataclasses.replace(self, constants=constants)

    def annotate(self, source: Any, **options: Any) -> pd.DataFrame:
        """Return the probability of each cell type for every cell, in its order, under its name. [n, classes]

        Args:
          options: of `embed`.

        Raises:
          ValueError: the run was not fine-tuned to annotate cells, or with another `cell_layer`, or as for `embed`.
        """
        if self.task_name != "cell_type":
            raise ValueError(f"{self.source}: this run has no head for cell types; fine-tune one that has")
        asked, learned = options.pop("cell_layer", None), getattr(self.model, "cell_layer", None)
        if self.with_cell_layer(asked) is not self and asked != learned:
            raise ValueError(f"cell_layer={asked}: the head has learned from {learned!r}; leave it out, or tune anew")
        from scfm_jax.tasks.cells import cell_type, heads

        settings = {**cell_type.OPTIONS, **self.meta["config"]["task"]}
        model, variables = heads.reader(self.module, self.model, self.variables, self.task)
        reader = dataclasses.replace(self, model=model, variables=variables)
        shares = cell_type.probabilities(self.task, settings, reader.embed(source, **options))
        self.mapping, self.provenance = reader.mapping, reader.provenance
        with h5ad.read_counts(source, **h5ad.place(options)) as counts:
            return pd.DataFrame(shares, counts.obs.index, self.classes[settings["label"]])

    def gene_representations(
        self,
        source: Any,
        *,
        rows: Sequence[int] | None = None,
        layer: str | None = None,
        raw: bool | None = None,
        round: bool | None = None,
        sample_key: str | None = "auto",
        gene_table: Sequence[str | os.PathLike] = (),
        min_mapped: float | None = 0.5,
        max_cells: int = MAX_CELLS,
        seed: int = 0,
        mesh: Mesh | None = None,
        say: Callable[[str], None] = print,
    ) -> GeneRepresentations:
        """Return what the model makes of each gene in each cell: means over groups, a stream, or a file, when asked.

        Arguments and errors are as for `embed`; samples and bags are made of the chosen cells alone, and what did not
        come with the weights is fitted to them.

        Args:
          rows: the cells; all, if left out.

        Raises:
          ValueError: the model has no gene representations, or as for `embed`.
        """
        rules = self.rules
        with h5ad.read_counts(source, layer=layer, raw=raw, round=round) as counts:
            self.mapping = mapping = self.map_genes(counts, self.gene_table(gene_table), min_mapped)
            say(str(mapping.report))
            rows = np.arange(counts.n_cells) if rows is None else np.unique(np.asarray(rows, np.int64))
            if not len(rows) or rows[0] < 0 or rows[-1] >= counts.n_cells:
                raise ValueError(f"rows: {len(rows)} rows for {counts.n_cells} cells; one or more of them are needed")
            obs = counts.obs.iloc[rows]
            per_cell, measured = file_cells.of_file(counts, mapping, len(self.genes), rules, sample_key)
            coords = per_cell["coords"][rows] if "coords" in per_cell else None
            parts, how = bags.seen_together(rules, obs, sample_key, max_cells, seed, coords=coords)
            ids = np.unique(mapping.index[mapping.index >= 0])
            once = self._batches(counts, [rows[part] for part in parts], mapping, rules.cells, per_cell)
            args = (self.module, self.model, self.variables, self.complete_constants(once, measured, say))
            options = {"inputs": self.meta["config"].get("inputs")}
            one = bags.pack(sparse.csr_matrix(measured[:1].shape), np.zeros((1, 1), int), labels=self._labels())
            width = infer.gene_width(*args, one, **options)
            provenance = self._provenance(counts, mapping, how, width)
        most = max(1, min(rules.cells, GENE_BYTES // (4 * len(ids) * width)))
        if not rules.together:
            parts, _ = bags.seen_together(rules, obs, sample_key, max_cells, seed, most)

        def batches() -> Iterator[tuple[np.ndarray, Array]]:
            with h5ad.read_counts(source, layer=layer, raw=raw, round=round) as counts:
                taken = pace.counted([rows[part] for part in parts], "read genes of batch", say)
                packed = self._batches(counts, taken, mapping, most, per_cell)
                yield from infer.genes(*args, packed, ids, **options, mesh=mesh)

        return GeneRepresentations([self.genes[i] for i in ids], ids, width, rows, obs, batches, provenance)

    def gene_vectors(self, kind: str = "auto", **options: Any) -> "GeneVectors":
        """Return a vector for each gene of the model, or for `names` by any name; see `gene_features.vectors`.

        Args:
          kind: "table", "graph", "table+graph", "context" (the mean of `gene_representations` over the cells of
            `source`), "table+cell+expression", or "auto", the first of these that the run has.
        """
        from scfm_jax.api import gene_features

        return gene_features.vectors(self, kind, **options)

    def fit_perturbations(self, screen: Any, **options: Any) -> "PerturbationHead":
        """Return a head fitted to a perturbation screen, for `perturb`; see `api.perturbation.fit`."""
        from scfm_jax.api import perturbation

        return perturbation.fit(self, screen, **options)

    def perturb(self, source: Any, genes: Sequence[str], head: Any, **options: Any) -> "AnnData":
        """Return the expression of cells as if genes were perturbed; see `api.perturbation.perturb`."""
        from scfm_jax.api import perturbation

        return perturbation.perturb(self, source, genes, head, **options)

    def twin(self, seed: int = 0) -> "Run":
        """Return the same model with fresh random weights: the baseline that shows what training has added."""
        constants = {**self.constants, **bags.own_vocabulary(np.ones((1, len(self.genes)), bool))}
        options, bag = self.meta["config"].get("inputs", {}), self.rules.fixed_bag or 8
        variables = infer.initial(self.module, self.model, constants, seed, self._labels(), bag, **options)
        return dataclasses.replace(
            self, variables=variables, source=f"random weights of seed {seed}", task=None, mapping=None, provenance=None
        )

    def export(self, path: str | os.PathLike) -> None:
        """Write weights, constants and metadata as one safetensors file that `load` reads."""
        parts = {"variables": self.variables, "constants": self.constants, tuning.TASK: self.task or {}}
        weights_file.export(path, parts, self.meta)

    def _labels(self) -> list[str]:
        return list(self.meta["config"].get("data", {}).get("labels", ()))

    def _batches(
        self,
        counts: h5ad.Counts,
        parts: Iterable[np.ndarray],
        mapping: vocab.Mapping,
        cells: int,
        per_cell: Mapping[str, np.ndarray],
    ) -> Iterator[dict[str, Any]]:
        """Yield a batch for each part of the cells, see `bags.Rules.index`; `per_cell`: of `file_cells.of_file`.

        By the rule `by_length`, the cells of `WINDOW` parts are read together and dealt out anew, the shortest first.
        """
        parts, window = iter(parts), WINDOW if self.rules.by_length else 1
        while group := list(itertools.islice(parts, window)):
            rows = np.concatenate(group)
            matrix, deal = mapping.apply(counts.take(rows)), [np.arange(len(rows))]
            if window > 1:
                order = np.argsort(np.diff(matrix.indptr), kind="stable")
                deal = np.split(order, range(cells, len(rows), cells))
            for some in deal:
                fields = {name: values[rows[some]] for name, values in per_cell.items()}
                index = self.rules.index(rows[some], cells)
                yield bags.pack(matrix[some], index, labels=self._labels(), **fields)

    def _provenance(self, counts: h5ad.Counts, mapping: vocab.Mapping, how: str, width: int) -> dict[str, Any]:
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
            "rounded": counts.round,
            **({"notes": "; ".join(counts.notes)} if counts.notes else {}),
            "shape": [counts.n_cells, width],
            **({"cell_layer": layer} if (layer := self.meta["config"].get("model", {}).get("cell_layer")) else {}),
            "sample": how,
            "genes": mapping.report.to_dict(),
        }
