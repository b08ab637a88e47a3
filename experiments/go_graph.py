"""Make the gene graph of a model, one small file, from the Gene Ontology, protein interactions or a list of edges.

  python -m experiments.go_graph --gaf=goa_human.gaf.gz [--obo=go-basic.obo] --genes=GENES --output=graph.npz
  python -m experiments.go_graph --table=GENES_AND_TERMS --genes=GENES --output=graph.npz
  python -m experiments.go_graph --ppi=protein.links.txt.gz --ppi_names=protein.info.txt.gz --min_score=0.7 …
  python -m experiments.go_graph --edges=human_ens_gene2go_graph.csv --top=21 …     (scLong's own csv)
  python -m experiments.go_graph --describe=graph.npz

--reading=code (Jaccard > 0.1, weighted, the 21 nearest with the gene itself) or paper (the 20 nearest, unweighted) sets
--cut, --top, --self_edge and --weighted of a GO graph where they are left out. Prints what was read and dropped, how
gene names were found, and what the graph is like. Exit status 2 for a mistake in the command or a wrong file.
"""

import os
import pathlib
import resource
import sys
import time

from absl import flags

from experiments import cli
from scfm_jax.training import pace

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "gene_table",
    gaf=(str, None, "GO annotations, GAF 2.x."),
    obo=(str, None, "The ontology, OBO: resolves alternative and obsolete terms, needed for --ancestors."),
    table=(str, None, "Instead of --gaf: a table of genes and GO terms, or an .npz matrix of them."),
    ppi=(str, None, "Protein interactions: STRING's protein.links, or a table such as gene_a, gene_b, score."),
    ppi_names=(str, None, "STRING's protein.info or protein.aliases file, that names its protein ids."),
    edges=(str, None, "A directed graph: csv of source, target, importance."),
    genes=(str, None, "The model's gene list; the genes of the input, if left out."),
    genes_of_table=(str, None, "Instead of --genes: protein-coding genes and lncRNAs of this gene table."),
    n_genes=(int, None, "Length of the list of --genes_of_table; scLong's 27,874, if left out.", 1),
    write_genes=(str, None, "Also write the gene list to this file, one a line."),
    output="File of the graph (.npz).",
    describe=(str, None, "Print what this graph file holds, after checking it."),
    reading=(("code", "paper"), "code", "scLong's released code, or its paper."),
    cut=(float, None, "Keep gene pairs of a Jaccard index above this.", 0.0, 1.0),
    top=(int, None, "Keep so many edges into each gene; 0 for all.", 0),
    self_edge=(bool, None, "A gene is among its own sources."),
    weighted=(bool, None, "Weigh edges by the Jaccard index (else by 1)."),
    evidence=(list, [], "Evidence codes to keep; all, if left out."),
    exclude_evidence=(list, ["ND"], "Evidence codes to drop, such as IEA."),
    aspects=(str, "PFC", "Aspects to keep: P process, F function, C component."),
    ancestors=(("none", "is_a", "part_of"), "none", "Genes have the ancestors of their terms too."),
    taxon=(str, None, "Species of a GAF file of several, as NCBI number."),
    min_genes=(int, 1, "Leave out terms that fewer genes of the list have.", 1),
    max_genes=(int, None, "Leave out terms that more genes of the list have.", 1),
    weight_column=(str, None, "Column of --ppi or --edges that has the weights."),
    min_score=(float, 0.0, "Leave out interactions of a smaller score; STRING's are read as 0 to 1.", 0.0),
    min_mapped="Least fraction of the names, or of the gene list, to be found.",
    pairs=(list, [], "Print weight and rank of these edges, SOURCE:TARGET, by any name of a gene."),
)

SOURCES = ("gaf", "table", "ppi", "edges")


def main(_) -> int:
    if wrong := [pair for pair in FLAGS.pairs if pair.count(":") != 1]:
        raise ValueError(f"--pairs={wrong[0]}: two genes with a colon between them, as A:B")
    if FLAGS.describe:
        return describe()
    sources = [name for name in SOURCES if FLAGS[name].value]
    if len(sources) != 1 or not FLAGS.output:
        raise ValueError("one of --gaf, --table, --ppi or --edges says what to read, and --output where to write")
    from data_pipeline.files import whole
    from data_pipeline.genes import graph_file

    started, cpu = time.perf_counter(), time.process_time()
    graph, table = (go if sources[0] in ("gaf", "table") else lists)(sources[0])
    graph_file.write(FLAGS.output, graph)
    if FLAGS.write_genes:
        whole.write_file(pathlib.Path(FLAGS.write_genes), ("\n".join(graph.genes) + "\n").encode())
    print(graph)
    print_pairs(graph, table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        f"{FLAGS.output}: {os.path.getsize(FLAGS.output) / 1e6:.1f} MB in {time.perf_counter() - started:.1f} s "
        f"({time.process_time() - cpu:.1f} s of CPU, at most {peak / 1e9:.1f} GB of memory)"
    )
    return 0


def describe() -> int:
    """Print what the graph file of --describe holds, and how it was made."""
    from data_pipeline.genes import graph_file

    graph = graph_file.read(FLAGS.describe)
    print(graph)
    print(f"  made of {', '.join(item['name'] for item in graph.meta['inputs'].values())}")
    print(f"  with {', '.join(f'{key}={value}' for key, value in graph.meta['options'].items())}")
    print_pairs(graph, known_genes())
    return 0


def known_genes():
    """Return what --gene_table and --genes_of_table tell of genes, None without any."""
    from data_pipeline.genes.vocab import read_table

    paths = [*FLAGS.gene_table, *filter(None, [FLAGS.genes_of_table])]
    return read_table(paths) if paths else None


def gene_list(names: list[str]) -> list[str]:
    """Return the gene list that the flags ask for: `names`, if they ask for none."""
    from data_pipeline.genes.lists import SCLONG_GENES, coding_and_lncrna
    from data_pipeline.genes.vocab import read_genes

    if FLAGS.genes and FLAGS.genes_of_table:
        raise ValueError("--genes and --genes_of_table both say what the gene list is: give one")
    if FLAGS.genes_of_table:
        return coding_and_lncrna(FLAGS.genes_of_table, FLAGS.n_genes or SCLONG_GENES)
    return read_genes(FLAGS.genes) if FLAGS.genes else names


def go(source: str):
    """Return the GO graph of --gaf or --table, and what is known of its genes' names."""
    from data_pipeline.genes import annotations as go_annotations
    from data_pipeline.genes import go_graph
    from data_pipeline.genes.graph_file import GeneGraph
    from data_pipeline.genes.ontology import read_obo

    path, ontology = FLAGS[source].value, read_obo(FLAGS.obo) if FLAGS.obo else None
    if path.endswith(".npz"):
        if FLAGS.obo or FLAGS.evidence:
            raise ValueError(
                f"{path}: a matrix has neither evidence nor term ids to look up: leave --obo, --evidence out"
            )
        annotations = go_annotations.read_matrix(path, FLAGS.ancestors)
    else:
        rows = go_annotations.read_gaf(path, FLAGS.taxon) if source == "gaf" else go_annotations.read_table(path)
        filters = {name: FLAGS[name].value for name in ("evidence", "exclude_evidence", "ancestors")}
        annotations = go_annotations.annotate(rows, ontology, **filters)
    genes, table = gene_list(annotations.names), known_genes() or go_graph.names_of(annotations)
    limits = {name: FLAGS[name].value for name in ("aspects", "min_genes", "max_genes", "min_mapped")}
    terms = go_graph.gene_terms(annotations, genes, table, **limits)
    counts = ", ".join(f"{what} {number:,}" for what, number in annotations.notes.items())
    with_terms = int((terms.matrix.getnnz(1) > 0).sum())
    print(f"annotations: {counts}\n{terms.mapping.report}")
    print(f"terms: {len(terms.ids):,}; {with_terms:,} of {len(genes):,} genes have one, {terms.matrix.nnz:,} pairs")
    options = go_graph.READINGS[FLAGS.reading] | {
        name: FLAGS[name].value for name in ("cut", "top", "self_edge", "weighted") if FLAGS[name].value is not None
    }
    weighted, top = options["weighted"], options["top"] or None
    limited = {name: options[name] for name in ("cut", "self_edge")}
    a, b, weight = go_graph.neighbours(terms.matrix, top=top, progress=pace.progress, **limited)
    used = limits | options | {name: FLAGS[name].value for name in ("evidence", "exclude_evidence", "ancestors")}
    meta = {"kind": "GO graph", "options": used, "inputs": inputs(), "genes_with_terms": with_terms}
    return GeneGraph.of(
        genes, a, b, weight if weighted else weight * 0 + 1, annotations=annotations.notes, **meta
    ), table


def lists(source: str):
    """Return the graph of --ppi or --edges, and what is known of its genes' names."""
    from data_pipeline.genes import edge_lists
    from data_pipeline.genes.graph_file import GeneGraph

    read = edge_lists.read_edges if source == "ppi" else edge_lists.read_directed
    edges = read(FLAGS[source].value, FLAGS.weight_column)
    proteins = edge_lists.read_protein_names(FLAGS.ppi_names) if FLAGS.ppi_names else None
    names = list(dict.fromkeys(edges.source + edges.target))
    genes = gene_list(list(dict.fromkeys((proteins or [{}])[0].get(name, name) for name in names)))
    table, top = known_genes(), FLAGS.top or None
    listed_edges, mapping = edge_lists.on_genes(edges, genes, table, proteins, FLAGS.min_mapped)
    print(f"edges: read {len(edges.source):,}, between genes of the list {len(listed_edges[0]):,}\n{mapping.report}")
    if source == "ppi":
        chosen, kind = edge_lists.symmetric(listed_edges, FLAGS.min_score, top), "protein interactions"
    else:
        top = 21 if FLAGS.top is None else top
        chosen, kind = edge_lists.directed(listed_edges, top), "directed graph"
    options = {"min_score": FLAGS.min_score, "top": top, "weighted": FLAGS.weighted is not False}
    weight = chosen[2] if options["weighted"] else chosen[2] * 0 + 1
    return GeneGraph.of(genes, *chosen[:2], weight, kind=kind, options=options, inputs=inputs()), table


def inputs() -> dict[str, dict[str, str]]:
    """Return name and checksum of every file that the graph is made of."""
    from data_pipeline.files.whole import checksum

    paths = {name: FLAGS[name].value for name in (*SOURCES, "obo", "ppi_names", "genes", "genes_of_table")}
    paths |= {f"gene_table_{i}": path for i, path in enumerate(FLAGS.gene_table)}
    files = {name: pathlib.Path(path) for name, path in paths.items() if path}
    return {name: {"name": path.name, "crc32c": checksum(path)} for name, path in files.items()}


def print_pairs(graph, table) -> None:
    """Print weight and rank among the edges into the target of each of --pairs."""
    from data_pipeline.genes.vocab import map_genes

    for pair in FLAGS.pairs:
        ends = pair.split(":")
        source, target = map_genes(ends, graph.genes, table=table, min_mapped=None).index
        if min(source, target) < 0:
            print(f"  {pair}: {ends[int(source >= 0)]} is not in the graph's gene list")
            continue
        into = graph.target == target
        weight = graph.weight[into & (graph.source == source)]
        rank = 1 + int((graph.weight[into & (graph.source != target)] > weight).sum()) if len(weight) else 0
        place = f"weight {weight[0]:.3f}, rank {rank} of {into.sum():,}" if rank else f"no edge among {into.sum():,}"
        print(f"  {pair}: {place}")


if __name__ == "__main__":
    cli.run(main, OPTIONS)
