"""The door for notebooks: load a trained model, embed cells.

    run = scfm_jax.api.load("runs/cellplm")
    adata.obsm["X_cellplm"] = run.embed(adata)
    shares = scfm_jax.api.load("runs/cellplm_types").annotate(adata)        a run that was fine-tuned to annotate cells

Raw counts of any file that `data_pipeline.h5ad` reads are mapped gene by gene onto the genes of the model, and
`run.mapping.report` says how that went.
"""

import dataclasses
import datetime
import hashlib
import importlib
import inspect
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import sparse

from data_pipeline import edge_lists, gene_vectors, graph_file, h5ad, vocab
from scfm_jax import __version__, checkpoint, infer, models, tuning
from scfm_jax import weights as weights_file
from scfm_jax.gene_representations import GeneRepresentations
from scfm_jax.layers import graph
from scfm_jax.types import Array

BATCH = 256
"""Cells that are embedded at a time by models that look at one cell at a time."""
MAX_CELLS = 16384
"""Cells of a sample that are embedded at a time by models that look at the whole sample."""
GENE_BYTES = 128 << 20
"""Memory for the gene representations of the cells that a model of single cells is given at a time."""
PUBLISHED_EDGES = 21
"""Edges into each gene that are taken from scLong's csv, which lists more."""
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
            constants = {**self.constants, **_constants(measured)}
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
        from scfm_jax.tasks import cell_type

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
            args = (self.module, self.model, self.variables, {**self.constants, **_constants(measured)})
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
        constants = {**self.constants, **_constants(np.ones((1, len(self.genes)), bool))}
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
            return samples(obs, sample_key, min(max_cells, self._bag or max_cells), seed)
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


def load(path: str | os.PathLike, which: int | str | None = None, base: str | os.PathLike | None = None) -> Run:
    """Return the run of a workdir, a folder of checkpoints, one checkpoint, or a weights file.

    That of `Run.export` has all weights, that of `tuning.save` what fine-tuning has trained of them: then the run that
    it began with is loaded, too. What fine-tuning added to a model is merged into its weights.

    Args:
      which: a step, or "best"; by default the newest valid one. Where there is a moving average of the weights, that is
        what is loaded.
      base: the run that a fine-tuned one began with, if it is elsewhere now.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: what there is is damaged, or of a model that this version does not know.
    """
    path = pathlib.Path(path)
    if path.is_file():
        tree, meta = weights_file.read(path)
        if meta.get("format") == tuning.FORMAT:
            return _tuned(path, tree, meta, base)
        variables = dict(tree["variables"])
        variables["params"] = {**variables["params"], tuning.TASK: tree.get(tuning.TASK) or {}}
        return build(meta, variables, tree.get("constants", {}), f"{path.name}, step {meta.get('step')}")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (folder / "meta.json").is_file() and folder.name.isdecimal():
        folder, which = folder.parent, int(folder.name)
    if which == "best":
        best = checkpoint.read_best(folder)
        which = best and best[0]
    entries = ("params", "ema", "buffers", "constants")
    restored = checkpoint.restore(folder, step=which, only=entries)
    if restored is None:
        raise FileNotFoundError(
            f"{path}: no checkpoint there; give the --workdir of a training run, its checkpoints/ or a weights file"
        )
    for line in restored.skipped:
        print(f"warning: {folder}: passed over {line}", file=sys.stderr)
    state = restored.state
    variables = {"params": state.get("ema") or state["params"], **state.get("buffers", {})}
    meta = restored.meta | {"step": restored.step}
    return build(meta, variables, state.get("constants", {}), f"{folder}, step {restored.step}")


def from_published(model: str, weights: str | os.PathLike, config: str | os.PathLike | None = None) -> Run:
    """Return the run of published weights and the file that was published with them: a config, or for Exceiver a list
    of its genes, if you have one (its weights bring their config).

    Raises:
      ValueError, OSError: no such model, or a file that is not what it should be; names, shapes and keys are listed.
    """
    models.get(model)
    read = importlib.import_module(f"scfm_jax.convert.{model}").load
    if config is None and list(inspect.signature(read).parameters.values())[1].default is inspect.Parameter.empty:
        raise ValueError(f"{weights}: the weights of {model} need the config that was published with them")
    sections, variables, genes = read(weights, *([] if config is None else [config]))
    meta = {"model": model, "config": sections, "genes": genes, "code_version": "published weights"}
    constants = gene_constants(sections.get("data", {}), genes)
    return build(meta, variables, constants, pathlib.Path(weights).name)


def gene_constants(
    options: Mapping[str, Any], genes: Sequence[str], table: vocab.GeneTable | None = None
) -> dict[str, np.ndarray]:
    """Return what is known of the genes beforehand, as constants of a training state; empty where nothing is given.

    Args:
      options: of a config's "data". graph: a file of `experiments.go_graph`, or a list of edges such as scLong's csv,
        of which the 21 heaviest into each gene are taken. graph_weighted: use its weights, or none but with an edge
        from every gene to itself. gene_vectors: see `data_pipeline.gene_vectors`.
      table: names that genes have in these files.
    """
    constants = {}
    if path := options.get("graph"):
        if pathlib.Path(path).suffix == ".npz":
            found, mapping = graph_file.read(path).onto(genes, table)
            edges = found.source, found.target, found.weight
        else:
            edges, mapping = edge_lists.on_genes(edge_lists.read_directed(path), genes, table)
            edges = edge_lists.directed(edges, PUBLISHED_EDGES)
        weighted = options.get("graph_weighted", True)
        built = graph.build(*edges, n_nodes=len(genes) + 1, weighted=weighted, self_loops=not weighted)
        print(f"graph: {len(built.senders):,} edges; {mapping.report}", flush=True)
        constants |= graph.constants(built)
    if path := options.get("gene_vectors"):
        constants["gene_vectors"], mapping = gene_vectors.onto(*gene_vectors.read(path), genes, table)
        print(f"gene vectors: {mapping.report}", flush=True)
    return constants


def build(meta: dict[str, Any], variables: dict[str, Any], constants: dict[str, Any], source: str) -> Run:
    """Build the network that the metadata describe; sizes that the data decide are the lengths of their lists."""
    module = models.get(meta["model"])
    lists = {"genes": meta["genes"], **meta.get("classes", {})}
    sizes = {field: len(lists.get(name, ())) for field, name in module.SIZES.items()}
    fields = dict(meta["config"]["model"])
    model = module.Model(**fields | {field: fields.get(field) or size for field, size in sizes.items()})
    params = tuning.merged(variables.get("params", {}), meta["config"].get("tune"))
    task = params.pop(tuning.TASK, None) or None
    return Run(module, model, {**variables, "params": params}, constants, meta, source, task)


def _tuned(path: pathlib.Path, tree: dict[str, Any], content: dict[str, Any], base: str | os.PathLike | None) -> Run:
    """Return the run whose trained part a file of `tuning.save` holds."""
    whole = load(base or content["base"]["path"])
    params = tuning.complete(path, content, tree["params"], whole.variables["params"])
    meta = content["run"]
    variables = {"params": params, **tree.get("buffers", {})}
    return build(meta, variables, whole.constants, f"{path.name}, step {meta['step']}, on {whole.source}")


def _constants(measured: np.ndarray) -> dict[str, np.ndarray]:
    """Return the constants of batches that are in the model's own vocabulary already. measured: [S, V]"""
    return {"slots": np.arange(measured.shape[1] + 1, dtype=np.int32), "measured": measured}


def _map_genes(
    counts: h5ad.Counts, genes: Sequence[str], tables: Sequence[str | os.PathLike], min_mapped: float | None
) -> vocab.Mapping:
    """Map the file's genes onto the model's, by name and by the other name that the file may have beside it."""
    table = vocab.read_table(tables) if tables else None
    second = vocab.second_names(counts.var)
    return vocab.map_genes(counts.genes, genes, ensembl=second, table=table, min_mapped=min_mapped)


def samples(obs: pd.DataFrame, sample_key: str | None, max_cells: int, seed: int) -> tuple[list[np.ndarray], str]:
    """Return the rows of each sample, large ones cut into random parts, and in words what was done."""
    if max_cells < 1:
        raise ValueError(f"max_cells={max_cells}: a sample has at least one cell")
    if sample_key == "auto":
        sample_key = "batch" if "batch" in obs else None
    if sample_key is None:
        samples, how = [np.arange(len(obs))], "the whole file is one sample"
    elif sample_key not in obs:
        raise ValueError(f"sample_key={sample_key}: no such obs column; there are {', '.join(map(str, obs.columns))}")
    else:
        codes, names = pd.factorize(obs[sample_key], use_na_sentinel=False)
        samples = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        how = f'samples are obs["{sample_key}"]: {len(names)}'
    rng, bags, cut = np.random.default_rng(seed), [], 0
    for rows in samples:
        parts = -(-len(rows) // max_cells)
        cut += parts > 1
        bags += [np.sort(part) for part in np.array_split(rng.permutation(rows), parts)]
    if cut:
        how += f"; {cut} of more than {max_cells} cells cut into random parts of equal size (seed {seed})"
    return bags, how
