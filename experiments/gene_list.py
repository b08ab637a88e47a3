"""Choose a few genes of a store for models that are to be small: as sparse as all of them, or the most variable.

    python -m experiments.gene_list --store=DIR --number=128 --output=genes.txt [--min_share=0.02]
    python -m experiments.gene_list --store=DIR --number=2000 --by=variability [--keep=PANEL] --output=genes.txt

The rule: of the genes that every study measured, those expressed in at least `min_share` of the cells (the mean of the
studies' shares) are ranked. By `sparsity`, that share, genes at equal distances in the ranking are taken; by
`variability`, beyond what others of the same mean have, the first ones, with all genes of the list `keep`. Nothing but
the store is looked at, so a held-out file has no part in it. The list keeps the order of the store: give it to
`experiments.ingest --vocab`, or to a config as data.genes.
"""

import pathlib

import numpy as np
from absl import flags

from data_pipeline.files import whole
from data_pipeline.genes import lists
from data_pipeline.genes.vocab import learn, map_genes, read_genes, read_table
from data_pipeline.store import expression
from data_pipeline.store.store import Store, open_store
from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    store=(str, None, "Folder made by experiments.ingest."),
    number=(int, 128, "Number of genes.", 1),
    min_share=(float, 0.02, "Least share of cells in which a gene is expressed.", 0, 1),
    by=(("sparsity", "variability"), "sparsity", "What genes are ranked by."),
    keep=(str, None, "With --by=variability: list of genes to take in any case, such as a panel's."),
    gene_table="HGNC or GENCODE-style tables that tell what the names in --keep mean.",
    output="File to write, a gene a line.",
)


def main(_) -> None:
    if not FLAGS.store or not FLAGS.output:
        raise ValueError("--store and --output say where genes come from and where the list goes (see --helpshort)")
    if FLAGS.keep and FLAGS.by != "variability":
        raise ValueError(f"--keep={FLAGS.keep}: genes are kept only with --by=variability")
    store = open_store(FLAGS.store)
    share = expression.expressed(store)
    if FLAGS.by == "sparsity":
        genes = lists.spread(share, FLAGS.number, FLAGS.min_share)
    else:
        keep = kept(store) if FLAGS.keep else np.zeros(0, int)
        genes = lists.most_variable(expression.variability(store), share, FLAGS.number, FLAGS.min_share, keep)
    path = pathlib.Path(FLAGS.output)
    whole.write_file(path, "".join(f"{store.genes[gene]}\n" for gene in genes).encode())
    least, most = np.nanmin(share[genes]), np.nanmax(share[genes])
    print(f"{path}: {len(genes)} genes, expressed in {least:.1%} to {most:.1%} of the cells")


def kept(store: Store) -> np.ndarray:
    """Return the store genes that the list --keep means; print which are unknown."""
    table = read_table(FLAGS.gene_table) if FLAGS.gene_table else None
    table = learn([(store.genes, store.second_names)], table)
    mapping = map_genes(read_genes(FLAGS.keep), store.genes, table=table)
    print(mapping.report, flush=True)
    return np.unique(mapping.index[mapping.index >= 0])


if __name__ == "__main__":
    cli.run(main, OPTIONS)
