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
flags.DEFINE_string("workdir", None, "A training run, a folder of checkpoints or a weights file.")
flags.DEFINE_string("output", None, "Folder to write; must not exist.")
flags.DEFINE_string("edges", None, "Protein interactions: a table with columns such as gene_a and gene_b.")
flags.DEFINE_list("sets", [], "Gene sets, GMT files.")
flags.DEFINE_string("input", None, "File of raw counts that says which genes are expressed.")
flags.DEFINE_enum("vectors", "auto", ["auto", "table", "mean"], "The model's table, or means over cells of --input.")
flags.DEFINE_float("min_expressed", 0.05, "Least share of the input's cells that express a gene.", 0, 1)
flags.DEFINE_integer("cells", 200, "Cells of the input to average gene representations over.", 1)
flags.DEFINE_integer("neighbours", 15, "Of a gene in the graph that is clustered.", 2)
flags.DEFINE_float("resolution", 1.0, "Of Leiden: more of it, more clusters.", 0)
flags.DEFINE_integer("draws", 1000, "Exchanges of genes under the null.", 20)
flags.DEFINE_integer("seeds", 3, "Number of seeds of Leiden, the null and the twin.", 1)
flags.DEFINE_string("layer", None, "Layer of the input that holds the counts.")
flags.DEFINE_bool("raw", None, "The counts are in the input's raw.")
flags.DEFINE_string("sample_key", "auto", 'obs column of tissue samples; "" for one; "auto": batch if there is one.')
flags.DEFINE_list("gene_table", [], "Tables that translate gene names, HGNC or GENCODE style.")
flags.DEFINE_float("min_mapped", 0.5, "Least share of the input's genes that the model must know.", 0, 1)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "output")
    from experiments.analyses import gene_clusters
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    names = ("edges", "sets", "vectors", "min_expressed", "cells", "neighbours", "resolution", "draws", "seeds")
    names += ("layer", "raw", "gene_table", "min_mapped")
    options = {name: FLAGS[name].value for name in names}
    options |= {"source": FLAGS.input, "sample_key": FLAGS.sample_key or None}
    found = gene_clusters.evaluate(api.load(FLAGS.workdir), **options)
    files = {"gene_clusters.md": gene_clusters.page(found), "gene_clusters.json": gene_clusters.records(found)}
    picture = gene_clusters.picture(found)
    output.write(FLAGS.output, files | ({"gene_clusters.png": picture} if picture else {}))
    print(gene_clusters.table(found))


if __name__ == "__main__":
    cli.run(main)
