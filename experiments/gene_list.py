"""Choose a few genes of a store, as sparse as all of them, for models that are to be small in genes only.

    python -m experiments.gene_list --store=DIR --number=128 --output=genes.txt [--min_share=0.02]

The rule: of the genes that every study measured, those expressed in at least `min_share` of the cells (the mean of the
studies' shares) are ranked by that share, and genes at equal distances in the ranking are taken. Nothing but the store
is looked at, so a held-out file has no part in it. The list keeps the order of the store: give it to
`experiments.ingest --vocab`, or to a config as data.genes.
"""

import pathlib

from absl import flags

from data_pipeline.store import open_store
from experiments import cli, gene_ranks

FLAGS = flags.FLAGS
flags.DEFINE_string("store", None, "Folder made by experiments.ingest.")
flags.DEFINE_integer("number", 128, "Number of genes.", 1)
flags.DEFINE_float("min_share", 0.02, "Least share of cells in which a gene is expressed.", 0, 1)
flags.DEFINE_string("output", None, "File to write, a gene a line.")


def main(_) -> None:
    if not FLAGS.store or not FLAGS.output:
        raise ValueError("--store and --output say where genes come from and where the list goes (see --helpshort)")
    store = open_store(FLAGS.store)
    share = gene_ranks.expressed(store)
    genes = gene_ranks.choose(share, FLAGS.number, FLAGS.min_share)
    path = pathlib.Path(FLAGS.output)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(f"{store.genes[gene]}\n" for gene in genes))
    partial.replace(path)
    print(f"{path}: {len(genes)} genes, expressed in {share[genes].min():.1%} to {share[genes].max():.1%} of the cells")


if __name__ == "__main__":
    cli.run(main)
