"""Golden cases of scLong's GO graph: every pair above the cut, the edges of each target that stay, and one SGConv.

The order of edges means nothing, so ours are put in the recorded order where they are the same set. The recorded
Jaccard indices went through a csv and pandas' fast parser, which changes the last bit of a few; the weights of the
graph are the same float32 numbers.
"""

import jax.numpy as jnp
import numpy as np
from scipy import sparse

from data_pipeline.go_graph import all_pairs, neighbours
from experiments.parity import Case
from scfm_jax.layers.graph import GraphConvolution, build


def go_graph(case: Case) -> dict[str, np.ndarray]:
    """Build the graph of a case from its genes and terms, and run one convolution with the case's weights."""
    given, told, weights = case.group("in"), case.group("out"), case.group("param")
    n_genes, settings = len(given["gene_list"]), case.meta["config"]
    matrix = term_matrix(given["gene_term_pairs"].reshape(-1, 2), given["gene_has_entry"])
    cut, top = float(settings["threshold"].lstrip("> ")), settings["num_similar_genes_go_graph"] + 1
    pairs = all_pairs(matrix, cut)
    source, target, weight = edges = neighbours(matrix, cut=cut, top=top, self_edge=True)
    graph = build(source, target, weight.astype(np.float32), n_nodes=n_genes + 1)  # the last node is the padding
    linear = {"kernel": weights["sgconv.lin.weight"].T, "bias": weights["sgconv.lin.bias"]}
    layer = GraphConvolution(len(linear["bias"]))
    ours = {"sgconv": layer.apply({"params": {"linear": linear}}, jnp.asarray(given["x"]), graph)}
    for name, found in (("full_edges", pairs), ("topk", edges)):
        names = [f"{name}_{column}" for column in ("src", "dst", "jaccard")]
        ours |= dict(zip(names, as_recorded(found, *(told[column] for column in names[:2])), strict=True))
    source, target, weight = as_recorded(edges, *told["edge_index"])
    ours |= {"edge_index": np.stack([source, target]), "edge_weight": weight.astype(np.float32)}
    return {f"out/{name}": value for name, value in ours.items()}


def term_matrix(pairs: np.ndarray, has_entry: np.ndarray) -> sparse.csr_matrix:
    """Return which gene has which term; genes without an entry have none. pairs: (gene, term) [A, 2]"""
    pairs = pairs[has_entry[pairs[:, 0]]]
    shape = (len(has_entry), int(pairs[:, 1].max(initial=0)) + 1)
    return sparse.csr_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=shape)


def as_recorded(edges: tuple[np.ndarray, ...], source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return `edges` in the order of the recorded ends where they are the same set, else as they are."""
    ours, theirs = np.lexsort(edges[:2]), np.lexsort((source, target))
    if len(ours) != len(theirs) or (np.stack(edges[:2])[:, ours] != np.stack([source, target])[:, theirs]).any():
        return edges
    order = np.empty_like(ours)
    order[theirs] = ours
    return tuple(column[order] for column in edges)
