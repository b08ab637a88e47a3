"""Train vectors of the genes of a graph, and score what they say of edges that were held out."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_pipeline.genes import edge_lists, graph_file, vocab
from experiments.pages import figures, output
from scfm_jax.tasks.genes import graph_embedding as task
from scfm_jax.training import pace

TRAINED = "graph attention"


def read(
    graph: str | None,
    ppi: str | None,
    names: str | None,
    genes: Sequence[str] | None,
    table: vocab.GeneTable | None,
    min_score: float,
) -> graph_file.GeneGraph:
    """Return the graph of a file of `experiments.go_graph`, or of a table of protein interactions, among `genes`.

    Args:
      names: STRING's protein.info, where the interactions are of its ids. genes: all of the file, if left out.

    Raises:
      ValueError, OSError: no graph, or none of the genes in it; in one line.
    """
    source = graph or ppi
    if graph:
        read = graph_file.read(graph)
        if genes is None:
            return read
        index = vocab.map_genes(read.genes, genes, table=table, min_mapped=None).index
        kept = (index[read.source] >= 0) & (index[read.target] >= 0)
        ends, meta = (index[read.source][kept], index[read.target][kept]), read.meta
    else:
        edges = edge_lists.read_edges(ppi)
        proteins = edge_lists.read_protein_names(names) if names else None
        genes = genes or list(dict.fromkeys((proteins or [{}])[0].get(n, n) for n in edges.source + edges.target))
        placed, _ = edge_lists.on_genes(edges, genes, table, proteins, min_mapped=None)
        ends, meta = edge_lists.symmetric(placed, min_score)[:2], {"kind": "protein interactions"}
    if not len(ends[0]):
        raise ValueError(
            f"{source}: no edge joins two of the {len(genes):,} genes ({', '.join(genes[:3])}, ...); check the "
            "species, or give a gene_table that knows the names of both"
        )
    pairs = np.unique(np.stack(ends, 1), axis=0)
    return graph_file.GeneGraph.of(genes, *pairs.T, np.ones(len(pairs)), **meta)


def train(
    graph: graph_file.GeneGraph,
    features: np.ndarray | None = None,
    *,
    epochs: int = task.TRAINING.epochs,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the vectors of the genes that have an edge, and the scores of held-out edges beside baselines.

    Args:
      features: of each gene to start from, standardised; learnt, if left out. [N, F]

    Returns:
      names [K], values [K, D] (messages along all edges), rows (scores by method), epoch, history, edges (of each part)
    """
    n_genes, edges = len(graph.genes), task.cut(graph.source, graph.target, seed)
    training = dataclasses.replace(task.TRAINING, epochs=epochs)
    shuffle = np.random.default_rng(seed + 1).permutation(n_genes)
    fitted = {}
    graphs = {TRAINED: edges, "names shuffled": task.Cut(*(np.sort(shuffle[part], 1) for part in edges))}
    for name, pairs in pace.counted(list(graphs.items()), "trained graph", say):
        fitted[name] = task.fit(pairs, n_genes, features, seed=seed, training=training)
    methods = {
        name: _by_vectors(task.vectors(network, fit.variables, graphs[name].train, n_genes, features))
        for name, (network, fit) in fitted.items()
    }
    methods["untrained network"] = _by_vectors(task.untrained(edges, n_genes, features, seed))
    methods |= task.neighbours(edges, n_genes)
    network, best = fitted[TRAINED]
    values = task.vectors(network, best.variables, edges.all, n_genes, features)
    kept = np.unique(edges.all)
    return {
        "names": [graph.genes[i] for i in kept],
        "values": values[kept],
        "rows": _scored(methods, edges, n_genes, seed),
        "epoch": best.epoch,
        "history": best.history,
        "edges": [len(part) for part in edges],
    }


def _by_vectors(z: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda pairs: task.products(z, pairs)


def _scored(methods: Mapping[str, Callable], edges: task.Cut, n_genes: int, seed: int) -> list[dict[str, Any]]:
    """Return the scores of each method on the test edges, against random pairs and against pairs of like degree."""
    others = {
        kind: task.strangers(edges.all, n_genes, len(edges.test), seed + 2, like)
        for kind, like in (("random", None), ("degree", edges.test))
    }
    return [
        {"method": name}
        | {f"{what}_{kind}": value for kind, pairs in others.items() for what, value in _pair(scorer, edges, pairs)}
        for name, scorer in methods.items()
    ]


def _pair(scorer: Callable, edges: task.Cut, pairs: np.ndarray) -> list[tuple[str, float]]:
    return list(task.score(scorer(edges.test), scorer(pairs)).items())


def table(result: Mapping[str, Any], about: str) -> str:
    """Return the scores as Markdown."""
    measures = ("auroc_random", "ap_random", "auroc_degree", "ap_degree")
    head = ["held-out edges", "AUROC", "AP", "AUROC, like degree", "AP, like degree"]
    lines = [[row["method"], *(f"{row[name]:.3f}" for name in measures)] for row in result["rows"]]
    train, validation, test = result["edges"]
    text = (
        f"{test:,} edges were held out and scored, {validation:,} chose the epoch ({result['epoch'] + 1} of "
        f"{len(result['history'])}), {train:,} were trained on; as many pairs without an edge beside them, of any two "
        "genes or of genes with as many edges (like degree), which degrees cannot tell apart. Names shuffled: the "
        "same network trained on the graph with its genes exchanged. The vectors in vectors.npz, of "
        f"{len(result['names']):,} genes that have an edge, are of {TRAINED} with messages along all edges."
    )
    return f"# {about}\n\n{output.markdown(head, lines)}\n\n{text}"


def picture(result: Mapping[str, Any]) -> bytes:
    """Draw each method's AUROC against both kinds of pairs, as PNG."""
    figure = Figure(figsize=(6.4, 1.3 + 0.34 * len(result["rows"])), layout="constrained")
    axes = figure.add_subplot()
    kinds = (
        ("random", figures.COLOURS[0], "against any pair"),
        ("degree", figures.COLOURS[1], "against pairs of like degree"),
    )
    for place, row in enumerate(result["rows"]):
        for kind, colour, label in kinds:
            axes.plot(row[f"auroc_{kind}"], place, "o", color=colour, ms=7, label=None if place else label)
    axes.axvline(0.5, color=figures.INK, lw=0.8, ls=(0, (4, 3)))
    axes.set_yticks(range(len(result["rows"])), [row["method"] for row in result["rows"]])
    axes.set_ylim(len(result["rows"]) - 0.5, -0.5)
    axes.set_xlabel("AUROC of held-out edges")
    axes.grid(axis="x", color=figures.FAINT, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figures.encoded(figure, "png")


def source_of(graph: graph_file.GeneGraph, path: str) -> str:
    """Return in words whose vectors these are."""
    return f"{graph.meta.get('kind', 'gene graph')} {pathlib.Path(path).name}"
