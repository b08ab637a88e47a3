"""For notebooks: load a trained model and embed cells with it.

    run = scfm_jax.api.load("runs/cellplm")                                 or "scfm:cellplm-small", which comes along
    adata.obsm["X_cellplm"] = run.embed(adata)
    shares = scfm_jax.api.load("runs/cellplm_types").annotate(adata)        a run that was fine-tuned to annotate cells

Raw counts of any file that `data_pipeline.files.h5ad` reads are mapped gene by gene onto the genes of the model, and
`run.mapping.report` says how that went.
"""

import inspect
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.genes import edge_lists, gene_vectors, graph_file, vocab
from data_pipeline.genes import medians as gene_medians
from scfm_jax import models, pretrained
from scfm_jax.api.run import MAX_CELLS, Run
from scfm_jax.layers import graph
from scfm_jax.saving import checkpoint
from scfm_jax.saving import weights as weights_file
from scfm_jax.training import tuning

__all__ = ["MAX_CELLS", "Run", "build", "from_published", "gene_constants", "load"]

PUBLISHED_EDGES = 21
"""Edges into each gene that are taken from scLong's csv, which lists more."""


def load(
    path: str | os.PathLike,
    which: int | str | None = None,
    base: str | os.PathLike | None = None,
    scaler: str = "training",
) -> Run:
    """Return the run of a workdir, a folder of checkpoints, one checkpoint, a weights file, or of weights that come
    with the package, such as "scfm:cellplm-small" (see `scfm_jax.pretrained`).

    That of `Run.export` has all weights, that of `tuning.save` what fine-tuning has trained of them: then the run that
    it began with is loaded, too. What fine-tuning added to a model is merged into its weights.

    Args:
      which: a step, or "best"; by default the newest valid one. Another step is never taken for it. Where there is a
        moving average of the weights, that is what is loaded.
      base: the run that a fine-tuned one began with, if it is elsewhere now.
      scaler: "training" or "file", see `Run.with_scaler`.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: what there is is damaged, or of a model that this version does not know; the run was not validated, so
        there is no best step.
    """
    return _load(path, which, base).with_scaler(scaler)


def _load(path: str | os.PathLike, which: int | str | None, base: str | os.PathLike | None) -> Run:
    """Return what `load` does, the scaler as it came."""
    path = pretrained.place(path)
    if path.is_file():
        tree, meta = weights_file.read(path)
        _check_step(which, meta.get("step", meta.get("run", {}).get("step")), f"{path}: a file of weights")
        if meta.get("format") == tuning.FORMAT:
            return _tuned(path, tree, meta, base)
        variables = dict(tree["variables"])
        variables["params"] = {**variables["params"], tuning.TASK: tree.get(tuning.TASK) or {}}
        return build(meta, variables, tree.get("constants", {}), f"{path.name}, step {meta.get('step')}")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if (folder / "meta.json").is_file() and folder.name.isdecimal():
        _check_step(which, int(folder.name), f"{path}: one checkpoint")
        folder, which = folder.parent, int(folder.name)
    if which == "best" and checkpoint.steps(folder):
        best = checkpoint.read_best(folder)
        if best is None:
            raise ValueError(f"{folder}: this run was not validated, so no step is the best; choose a step, or none")
        which = best[0]
    elif which == "best":
        which = None
    entries = ("params", "ema", "buffers", "constants")
    restored = checkpoint.restore(folder, step=which, only=entries)
    if restored is None:
        raise FileNotFoundError(
            f"{path}: no checkpoint there; give the workdir of a training run, its checkpoints/ or a weights file"
        )
    for line in restored.skipped:
        print(f"warning: {folder}: passed over {line}", file=sys.stderr)
    state = restored.state
    variables = {"params": state.get("ema") or state["params"], **state.get("buffers", {})}
    meta = restored.meta | {"step": restored.step}
    return build(meta, variables, state.get("constants", {}), f"{folder}, step {restored.step}")


def _check_step(which: int | str | None, step: int | None, what: str) -> None:
    """Raise ValueError where another step is asked for than the one there is."""
    if which is not None and str(which) != str(step):
        raise ValueError(f"{what}, of step {step}: step={which} cannot be had of it, leave the step out")


def from_published(
    model: str,
    weights: str | os.PathLike,
    config: str | os.PathLike | None = None,
    medians: str | os.PathLike | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Return the run of published weights and the file that was published with them: a config, or for Exceiver a list
    of its genes, if you have one (its weights bring their config). `say` gets the report of `gene_constants`.

    Args:
      medians: of each gene, a file that weights of Geneformer's layout need; see `data_pipeline.genes.medians`. The run
        keeps them, and so does a file of `Run.export`.

    Raises:
      ValueError, OSError: no such model, or a file that is not what it should be; names, shapes and keys are listed.
    """
    read = models.published(model).load
    if config is None and list(inspect.signature(read).parameters.values())[1].default is inspect.Parameter.empty:
        raise ValueError(f"{weights}: the weights of {model} need the config that was published with them")
    if medians is not None and "medians" not in inspect.signature(read).parameters:
        raise ValueError(f"medians={medians}: the weights of {model} do not rank genes by them; leave it out")
    more = {} if medians is None else {"medians": medians}
    sections, variables, genes = read(weights, *([] if config is None else [config]), **more)
    meta = {"model": model, "config": sections, "genes": genes, "code_version": "published weights"}
    constants = gene_constants(sections.get("data", {}), genes, say=say)
    return build(meta, variables, constants, pathlib.Path(weights).name)


def gene_constants(
    options: Mapping[str, Any],
    genes: Sequence[str],
    table: vocab.GeneTable | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, np.ndarray]:
    """Return what is known of the genes beforehand, as constants of a training state; empty where nothing is given.

    Args:
      options: of a config's "data". graph: a file of `experiments.go_graph`, or a list of edges such as scLong's csv,
        of which the 21 heaviest into each gene are taken. graph_weighted: use its weights, or none but with an edge
        from every gene to itself. gene_vectors, medians: see the modules of `data_pipeline.genes` of these names.
      table: names that genes have in these files.
      say: gets a line for each file: how many edges, and how its genes met the model's.
    """
    constants = {}
    if path := options.get("graph"):
        if pathlib.Path(path).suffix == ".npz":
            gene_graph, mapping = graph_file.read(path).onto(genes, table)
            _check_reading(path, gene_graph.meta.get("options", {}), options.get("graph_weighted", True))
            edges = gene_graph.source, gene_graph.target, gene_graph.weight
        else:
            edges, mapping = edge_lists.on_genes(edge_lists.read_directed(path), genes, table)
            edges = edge_lists.directed(edges, PUBLISHED_EDGES)
        weighted = options.get("graph_weighted", True)
        built = graph.build(*edges, n_nodes=len(genes) + 1, weighted=weighted, self_loops=not weighted)
        say(f"graph: {len(built.senders):,} edges; {mapping.report}")
        constants |= graph.constants(built)
    if path := options.get("gene_vectors"):
        constants["gene_vectors"], mapping = gene_vectors.onto(*gene_vectors.read(path), genes, table)
        say(f"gene vectors: {mapping.report}")
    if path := options.get("medians"):
        constants["medians"], mapping = gene_medians.onto(*gene_medians.read(path), genes, table)
        without = int((constants["medians"] == 0).sum())
        say(f"medians: {mapping.report}; {without:,} genes of the model have none and are never read")
    return constants


def _check_reading(path: str, made: Mapping[str, Any], weighted: bool) -> None:
    """Raise ValueError where a graph has no edge of a gene to itself, and nobody would add it."""
    if weighted and made.get("self_edge") is False:
        raise ValueError(
            f"{path}: a graph without edges of a gene to itself (the paper's reading) under graph_weighted=True, which "
            "adds none: take it with graph_weighted=False, or make one by experiments.go_graph in the code's reading"
        )


def build(meta: dict[str, Any], variables: dict[str, Any], constants: dict[str, Any], source: str) -> Run:
    """Build the network that the metadata describe; sizes that the data decide are the lengths of their lists.

    ValueError where the metadata lack what every run has.
    """
    if lacking := [key for key in ("model", "config", "genes") if key not in meta] or [
        f"config.{key}" for key in ("model",) if key not in meta["config"]
    ]:
        raise ValueError(f"{source}: its metadata have no entry {lacking[0]!r}; it was not saved by a training run")
    module = models.get(meta["model"])
    lists = {"genes": meta["genes"], **meta.get("classes", {})}
    sizes = {field: len(lists.get(name, ())) for field, name in module.SIZES.items()}
    fields = dict(meta["config"]["model"])
    model = module.Model(**fields | {field: fields.get(field) or size for field, size in sizes.items()})
    params = tuning.merged(variables.get("params", {}), meta["config"].get("tune"))
    variables = {**variables, "params": params}
    task = {**(params.pop(tuning.TASK, None) or {}), **variables.pop(tuning.TASK, {})}
    return Run(module, model, variables, constants, meta, source, task or None)


def _tuned(path: pathlib.Path, tree: dict[str, Any], content: dict[str, Any], base: str | os.PathLike | None) -> Run:
    """Return the run whose trained part a file of `tuning.save` holds."""
    if lacking := [key for key in ("base", "run") if key not in content]:
        raise ValueError(f"{path}: its metadata have no entry {lacking[0]!r}; it was not saved by fine-tuning")
    whole = load(base or content["base"]["path"])
    params = tuning.complete(path, content, tree["params"], whole.variables["params"])
    meta = content["run"]
    variables = {"params": params, **tree.get("buffers", {})}
    fitted = tree.get("constants", {})  # to the cells that it was tuned on
    constants = {**(whole.with_scaler("file") if fitted else whole).constants, **fitted}
    return build(meta, variables, constants, f"{path.name}, step {meta['step']}, on {whole.source}")
