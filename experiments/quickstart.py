"""Every step on one file: embed it by a model that comes along; then ingest, pre-train a tiny CellPLM, embed, report.

    python -m experiments.quickstart [--input=your.h5ad] [--workdir=DIR] [--genes=2000]

Without --input it takes the 700 PBMCs that come with scanpy (10x Genomics, 68k PBMC, Zheng et al. 2017; 765 genes). Of
a file with more genes than --genes it trains on the most variable ones. The same command again goes on where it was.
Scores need obs["cell_type"]; without it they are left out.
"""

import pathlib
import re
from typing import Any

import anndata
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy import sparse

from configs import pretrain_cellplm
from data_pipeline.files import h5ad, whole
from data_pipeline.files.recovery import recover_counts
from data_pipeline.genes import lists
from data_pipeline.store import expression
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from experiments import cli, train
from experiments.analyses import embedding
from experiments.pages import run as page
from scfm_jax import api
from scfm_jax.training import pace

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading",
    workdir="Folder of the walk; runs/quickstart_<name of the file>, if left out.",
    input="File of raw counts; 700 PBMCs of scanpy, if left out.",
    genes=(int, 2000, "Train on so many of the most variable genes, where the file has more; 0 for all.", 0),
)

LABEL = "cell_type"
FIRST = "scfm:cellplm-small"
"""The model of the first step."""
KNOWN = 0.05
"""Least share of the file's genes that it must know, or of its genes that the file must have."""
STEPS = 600
EXPECT_FIRST = (
    "expect about: cellplm accuracy 0.74, its random twin 0.75: it knows 185 of these 765 genes, which were chosen for "
    "other cells, so nothing of what it has learnt shows here. On whole files see its card (scfm_jax/pretrained)."
)
MIN_SHARE = 0.01
"""Least share of cells that express a gene for it to be among the most variable."""
EXPECT = (
    "expect about: cellplm accuracy 0.79, NMI 0.57, ARI 0.27; PCA-50 0.80, 0.66, 0.51; random twin 0.57, 0.31, 0.19 "
    "(2 CPU cores, jax 0.10). 600 steps on 700 cells show that the walk works; they do not beat PCA."
)


def main(_) -> None:
    name = re.sub(r"[^\w+-]", "_", pathlib.Path(FLAGS.input).stem) if FLAGS.input else "pbmc68k_reduced"
    workdir = pathlib.Path(FLAGS.workdir or f"runs/quickstart_{name}")
    workdir.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(FLAGS.input) if FLAGS.input else scanpy_pbmcs(workdir / f"{name}.h5ad")
    reading = cli.reading() if FLAGS.input else {}
    with h5ad.read_counts(source, **h5ad.place(reading)) as counts:
        columns = {str(column): counts.obs[column].nunique() for column in counts.obs}
        n_cells, n_genes = counts.n_cells, len(counts.genes)
    used = min(n_genes, FLAGS.genes) if FLAGS.genes else n_genes
    seconds = pace.words(estimate(n_cells, n_genes, used))
    print(f"{source}: {n_cells:,} cells x {n_genes:,} genes: about {seconds} on two free CPU cores", flush=True)
    settings, tables = Settings(**h5ad.place(reading)), reading.pop("gene_table", [])
    options = {**reading, "gene_table": tables}
    labelled = columns.get(LABEL, 0) > 1
    as_it_came(source, workdir / "as_it_came", labelled, options)
    print(f"2. ingest {source} into {workdir / 'store'}", flush=True)
    failed = ingest(file_sources([str(source)], [name]), workdir / "store", settings=settings, tables=tables, workers=0)
    if failed:
        raise ValueError(f"{source}: {next(iter(failed.values()))}")
    config = configured(workdir, used)
    config.data.gene_table = tuple(tables)
    print(f"3. pre-train CellPLM, variant tiny, in {workdir}", flush=True)
    train.pretrain(config, str(workdir))
    run = api.load(workdir)
    options["min_mapped"] = min(config.data.min_mapped, FLAGS.min_mapped)
    if labelled:
        print("4. embed and score, beside 50 principal components and untrained twins", flush=True)
        print(embedding.table(embedding.evaluate(run, source, workdir, label=LABEL, **options)))
        print("trained on these very cells, without their labels" if FLAGS.input else EXPECT)
    else:
        print(f"4. embed; no scores, since {source} has no obs[{LABEL!r}] with two types or more", flush=True)
        embedding.embed_file(run, source, workdir, **options)
    print(f"5. report: {page.write(workdir)}")


def as_it_came(source: pathlib.Path, folder: pathlib.Path, labelled: bool, options: dict[str, Any]) -> None:
    """Embed `source` by the model FIRST, score it where there are labels, and leave both in `folder`."""
    print(f"1. embed by {FIRST}, which comes trained, in {folder}", flush=True)
    folder.mkdir(exist_ok=True)
    options = {**options, "min_mapped": KNOWN}
    try:
        if labelled:
            print(embedding.table(embedding.evaluate(api.load(FIRST), source, folder, label=LABEL, **options)))
            print("" if FLAGS.input else EXPECT_FIRST)
        else:
            embedding.embed_file(api.load(FIRST), source, folder, **options)
    except ValueError as error:
        print(f"passed over: {error}")


def estimate(n_cells: int, n_genes: int, used: int) -> float:
    """Return about how many seconds the walk takes on two CPU cores that have nothing else to do.

    Args:
      n_cells, n_genes: of the file. used: genes that are trained on.

    Compiling, the bulk of a small walk, takes as long for any size; training goes with the genes, embedding, scores and
    reading with the cells too.
    """
    return 70 + 0.01 * used + n_cells * (0.012 + 3e-6 * used + 2e-7 * n_genes)


def configured(workdir: pathlib.Path, n_genes: int) -> ConfigDict:
    """Return the config of the training: variant tiny, on the `n_genes` most variable genes of the workdir's store."""
    config = pretrain_cellplm.get_config("tiny")
    config.data.store = str(workdir / "store")
    config.train.update(
        {"steps": STEPS, "log_every": STEPS // 6, "eval_every": STEPS // 3, "checkpoint_every": STEPS // 3}
    )
    store = open_store(workdir / "store")
    if n_genes < len(store.genes):
        share = expression.expressed(store)
        number = min(n_genes, int((share >= MIN_SHARE).sum()))
        chosen = lists.most_variable(expression.variability(store), share, number, MIN_SHARE, np.zeros(0, int))
        path = workdir / f"{number}_genes.txt"
        whole.write_file(path, "".join(f"{store.genes[gene]}\n" for gene in chosen).encode())
        config.data.update({"genes": str(path), "min_mapped": 0.0})
        print(f"{path}: the {number:,} most variable of {len(store.genes):,} genes; --genes=0 takes all", flush=True)
    return config


def scanpy_pbmcs(path: pathlib.Path) -> pathlib.Path:
    """Write scanpy's 700 PBMCs as raw counts to `path`, unless they are there, and return it."""
    if not path.exists():
        import scanpy

        reduced = scanpy.datasets.pbmc68k_reduced()
        obs = reduced.obs[["bulk_labels"]].rename(columns={"bulk_labels": LABEL})
        cells = anndata.AnnData(recover_counts(sparse.csr_matrix(reduced.raw.X)), obs, reduced.raw.var)
        with whole.writing(path) as temporary:
            cells.write_h5ad(temporary)
    return path


if __name__ == "__main__":
    cli.run(main, OPTIONS)
