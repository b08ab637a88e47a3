"""Take files into a store of studies, or check a store.

  python -m experiments.ingest --input=a.h5ad,b.h5ad --store=DIR [--group_by=batch] [--vocab=GENES] [--gene_table=TABLE]
  python -m experiments.ingest --census_query='tissue_general == "lung"' --store=DIR
  python -m experiments.ingest --verify=DIR

Prints the gene mapping report of every study and a table of what the store holds. A file that cannot be read, or holds
no counts, fails alone: all others are taken in, and a line for each that failed comes at the end. Exit status 0 if all
is well, 1 if a study failed or a file of the store is damaged, 2 for a mistake in the command, such as a path that is
not there: then nothing is done. The same command again takes up an ingest that was interrupted, and what failed.
"""

import sys

from absl import flags

from experiments import cli
from scfm_jax.training import pace

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading",
    input=(list, [], "Files or folders with raw counts: .h5ad, .zarr, .zarr.zip, 10x .h5, mtx folders."),
    store=(str, None, "Folder of the store; made where there is none."),
    verify=(str, None, "Check every checksum of this store and name what is damaged."),
    names=(list, [], "Names of the studies, in the order of --input; the file names without ending, if left out."),
    vocab=(str, None, "Gene list that the store is to hold; all genes that are ingested, if left out."),
    group_by=(str, None, "obs column of the tissue sample or field of view; each study is one, if left out."),
    min_genes=(int, 1, "Leave out cells with fewer expressed genes.", 0),
    min_counts=(int, 1, "Leave out cells with fewer counts.", 0),
    max_mito=(float, None, "Leave out cells with a larger fraction of mitochondrial counts.", 0.0, 1.0),
    min_gene_fraction=(float, None, "Zero genes with fewer counts than this times the cells (sCT: 0.003).", 0.0),
    min_mapped="Least fraction of a file's genes to be found in the vocabulary.",
    seed=(int, 0, "Seed of the order of cells within their group.", 0),
    scheduler=(str, None, "Dask cluster to use (tcp://…); this machine's cores, if left out."),
    workers=(int, None, "Processes on this machine; 0 for none but this one.", 0),
    census_query=(str, None, "Condition on obs: take the answer from the CELLxGENE Census, a study per data set."),
    census_uri=(str, None, "Census release or SOMA experiment to query; the stable release, if left out."),
    census_organism=(str, "homo_sapiens", "Organism of the Census."),
)

SETTINGS = (
    "group_by",
    "seed",
    "layer",
    "raw",
    "round",
    "min_genes",
    "min_counts",
    "max_mito",
    "min_gene_fraction",
    "min_mapped",
)


def main(_) -> int:
    if FLAGS.verify:
        return verify(FLAGS.verify)
    if not FLAGS.store or not (FLAGS.input or FLAGS.census_query or FLAGS.census_uri):
        raise ValueError("--input and --store say what to take in and where to (or --verify which store to check)")
    cli.check_paths("input", "gene_table")
    from data_pipeline.files import census
    from data_pipeline.store.ingest import census_sources, file_sources
    from data_pipeline.store.store import open_store

    sources = file_sources(FLAGS.input, FLAGS.names)
    if FLAGS.census_query or FLAGS.census_uri:
        uri = FLAGS.census_uri or census.release()
        sources += census_sources(census.Query(uri, FLAGS.census_query or "", FLAGS.census_organism))
    try:
        failed = take(sources)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
    for name, reason in failed.items():
        print(f"error: {name}: {cli.in_flags(reason)}", file=sys.stderr)
    if len(failed) < len(sources):
        print(table(open_store(FLAGS.store)))
    return 1 if failed else 0


def take(sources: list) -> dict[str, str]:
    """Ingest the sources as the flags say; return the reasons of those that failed."""
    from data_pipeline.store.ingest import ingest
    from data_pipeline.store.study import Settings

    return ingest(
        sources,
        FLAGS.store,
        settings=Settings(**{key: FLAGS[key].value for key in SETTINGS}),
        vocabulary=FLAGS.vocab,
        tables=FLAGS.gene_table,
        scheduler=FLAGS.scheduler,
        workers=FLAGS.workers,
        progress=pace.progress,
    )


def verify(path: str) -> int:
    """Print what is damaged in the store at `path`; return 1 if anything is."""
    from data_pipeline.store.store import open_store
    from data_pipeline.store.store import verify as damaged

    wrong = damaged(path, pace.progress)
    for line in wrong:
        print(f"damaged: {line}", file=sys.stderr)
    if not wrong:
        store = open_store(path)
        files = sum(len(record["files"]) for record in store.manifest["studies"].values())
        print(f"{path}: whole: {len(store.studies)} studies, {store.offsets[-1]:,} cells, {files} files")
    return 1 if wrong else 0


def table(store) -> str:
    """Return the store's studies as a text table."""
    head = ("study", "cells", "groups", "genes", "counts", "left out", "spatial")
    rows = []
    for record in (store.manifest["studies"][name] for name in store.studies):
        cells, out = record["shape"][0], sum(record["removed"]["cells"].values())
        genes = record["measured"]
        spatial = "yes" if record["spatial"] else ""
        row = (
            record["name"],
            f"{cells:,}",
            len(record["groups"]),
            f"{genes:,}",
            f"{record['nnz']:,}",
            f"{out:,}",
            spatial,
        )
        rows.append([str(value) for value in row])
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(f"{value:{'<' if i == 0 else '>'}{widths[i]}}" for i, value in enumerate(row))
        for row in (head, *rows)
    ]
    return "\n".join([*(line.rstrip() for line in lines), repr(store)])


if __name__ == "__main__":
    cli.run(main, OPTIONS)
