"""Make vectors of genes from a gene graph: graph attention that learns to predict held-out edges.

    python -m experiments.gene_embedding --graph=go.npz --output=DIR [--workdir=RUN [--vectors=table]]
    python -m experiments.gene_embedding --ppi=protein.links.txt.gz --min_score=0.7 --output=DIR

--graph is a file of experiments.go_graph, --ppi a table of protein interactions. Genes are those of the graph, or with
--workdir or --genes those of a run or a list; each starts from a learnt vector, or with --vectors from the run's.

Prints how edges that were held out are told from other pairs, beside common neighbours, degrees, an untrained network
and a graph with its names shuffled. Writes DIR/vectors.npz (for --vectors_file of other commands), DIR/table.md,
DIR/table.json and DIR/table.png, all or nothing.
"""

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "gene_table seed",
    graph=(str, None, "Gene graph, .npz of experiments.go_graph."),
    ppi=(str, None, "Protein interactions: STRING's protein.links, or a table such as gene_a, gene_b, score."),
    ppi_names=(str, None, "STRING's protein.info or protein.aliases file, that names its protein ids."),
    min_score=(float, 0.0, "Leave out interactions of a smaller score; STRING's are read as 0 to 1.", 0.0),
    genes=(str, None, "List of the genes; those of the graph, if left out."),
    workdir="A run whose genes these are.",
    vectors=(str, None, "Kind of the run's gene vectors that genes start from: table, graph; learnt, if left out."),
    epochs=(int, 100, "At most; the best on the validation edges is kept.", 1),
    output="Folder to write; must not exist.",
)


def main(_) -> None:
    cli.require("output")
    cli.check_paths("gene_table")
    if bool(FLAGS.graph) == bool(FLAGS.ppi):
        raise ValueError("one of --graph and --ppi says what the edges are")
    if FLAGS.workdir and FLAGS.genes:
        raise ValueError("--workdir and --genes both say what the genes are: give one")
    if FLAGS.vectors and not FLAGS.workdir:
        raise ValueError(f"--vectors={FLAGS.vectors} are a run's: name it as --workdir=RUN")
    cli.check_free(FLAGS.output)
    from data_pipeline.genes import vocab
    from experiments.analyses import gene_embedding
    from experiments.pages import output
    from scfm_jax import api
    from scfm_jax.api import vector_file

    run = api.load(FLAGS.workdir) if FLAGS.workdir else None
    genes = run.genes if run else vocab.read_genes(FLAGS.genes) if FLAGS.genes else None
    table = (
        run.gene_table(FLAGS.gene_table) if run else vocab.read_table(FLAGS.gene_table) if FLAGS.gene_table else None
    )
    graph = gene_embedding.read(FLAGS.graph, FLAGS.ppi, FLAGS.ppi_names, genes, table, FLAGS.min_score)
    features = run.gene_vectors(FLAGS.vectors).standardised() if FLAGS.vectors else None
    result = gene_embedding.train(graph, features, epochs=FLAGS.epochs, seed=FLAGS.seed)
    source = gene_embedding.source_of(graph, FLAGS.graph or FLAGS.ppi)
    source += f", from the {FLAGS.vectors} of {run.name}" if features is not None else ""
    about = f"Vectors of {len(result['names']):,} genes: {gene_embedding.TRAINED} on {source}"
    text, (names, values) = gene_embedding.table(result, about), (result.pop("names"), result.pop("values"))
    files = {
        "vectors.npz": vector_file.encoded(names, values, gene_embedding.TRAINED, source, graph=graph.meta),
        "table.md": text + "\n",
        "table.json": {"about": about, "seed": FLAGS.seed, **result},
        "table.png": gene_embedding.picture(result),
    }
    output.write(FLAGS.output, files)
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
