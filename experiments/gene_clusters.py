"""Cluster a model's gene vectors and test the clusters for protein interactions and gene sets.

    python -m experiments.gene_clusters --workdir=W --edges=string_links.tsv --sets=reactome.gmt --output=DIR \
        [--input=x.h5ad]

Writes DIR/gene_clusters.md (table, clusters), DIR/gene_clusters.json (every cluster of every seed) and, with --edges,
DIR/gene_clusters.png, all or nothing. With --input only genes that its cells express are clustered, the null exchanges
genes of like expression, and the data's own components stand beside the model and its random twin. The tests are those
of `scfm_jax.tasks.genes.gene_clusters`.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir output sample_key scaler reading",
    edges=(str, None, "Protein interactions: a table with columns such as gene_a and gene_b."),
    sets=(list, [], "Gene sets, GMT files."),
    input="File of raw counts that says which genes are expressed.",
    vectors=(
        ("auto", "table", "graph", "mean"),
        "auto",
        "The model's table, the output of its graph convolution, or means over cells of --input.",
    ),
    min_expressed=(float, 0.05, "Least share of the input's cells that express a gene.", 0, 1),
    cells=(int, 200, "Cells of the input to average gene representations over.", 1),
    neighbours=(int, 15, "Of a gene in the graph that is clustered.", 2),
    resolution=(float, 1.0, "Of Leiden: more of it, more clusters.", 0),
    draws=(int, 1000, "Exchanges of genes under the null.", 20),
    seeds=(int, 3, "Number of seeds of Leiden, the null and the twin.", 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "output")
    from experiments.analyses import gene_clusters
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    names = ("edges", "sets", "vectors", "min_expressed", "cells", "neighbours", "resolution", "draws", "seeds")
    options = {name: FLAGS[name].value for name in names} | cli.reading()
    options |= {"source": FLAGS.input, "sample_key": FLAGS.sample_key or None}
    result = gene_clusters.evaluate(api.load(FLAGS.workdir, scaler=FLAGS.scaler), **options)
    files = {"gene_clusters.md": gene_clusters.page(result), "gene_clusters.json": gene_clusters.records(result)}
    picture = gene_clusters.picture(result)
    output.write(FLAGS.output, files | ({"gene_clusters.png": picture} if picture else {}))
    print(gene_clusters.table(result))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
