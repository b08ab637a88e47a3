"""The whole walk on one file: ingest, pre-train a tiny CellPLM, embed, score beside the baselines, report.

    python -m experiments.quickstart [--input=your.h5ad] [--workdir=DIR]

Without --input it takes the 700 PBMCs that come with scanpy (10x Genomics, 68k PBMC, Zheng et al. 2017; 765 genes). The
same command again goes on where it was. Scores need obs["cell_type"]; without it they are left out.
"""

import pathlib
import re

import anndata
from absl import flags
from scipy import sparse

from configs import pretrain_cellplm
from data_pipeline.files import h5ad
from data_pipeline.files.recovery import recover_counts
from data_pipeline.store.ingest import file_sources, ingest
from experiments import cli, train
from experiments.analyses import embedding
from experiments.pages import run as page
from scfm_jax import api

FLAGS = flags.FLAGS  # --workdir is the training command's
OPTIONS = cli.options(
    input="File of raw counts; 700 PBMCs of scanpy, if left out.",
)

LABEL = "cell_type"
STEPS = 600
EXPECT = (
    "expect about: cellplm accuracy 0.80, NMI 0.58, ARI 0.28; PCA-50 0.80, 0.66, 0.51; random twin 0.57, 0.31, 0.20 "
    "(2 CPU cores, jax 0.10). 600 steps on 700 cells show that the walk works; they do not beat PCA."
)


def main(_) -> None:
    name = re.sub(r"[^\w+-]", "_", pathlib.Path(FLAGS.input).stem) if FLAGS.input else "pbmc68k_reduced"
    workdir = pathlib.Path(FLAGS.workdir or f"runs/quickstart_{name}")
    workdir.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(FLAGS.input) if FLAGS.input else scanpy_pbmcs(workdir / f"{name}.h5ad")
    with h5ad.read_counts(source) as counts:
        columns = {str(column): counts.obs[column].nunique() for column in counts.obs}
    print(f"1. ingest {source} into {workdir / 'store'}", flush=True)
    failed = ingest(file_sources([str(source)], [name]), workdir / "store", workers=0)
    if failed:
        raise ValueError(f"{source}: {next(iter(failed.values()))}")
    print(f"2. pre-train CellPLM, variant tiny, in {workdir}", flush=True)
    config = pretrain_cellplm.get_config("tiny")
    config.data.store = str(workdir / "store")
    config.train.update(
        {"steps": STEPS, "log_every": STEPS // 6, "eval_every": STEPS // 3, "checkpoint_every": STEPS // 3}
    )
    train.pretrain(config, str(workdir))
    run = api.load(workdir)
    if columns.get(LABEL, 0) > 1:
        print("3. embed and score, beside 50 principal components and untrained twins", flush=True)
        print(embedding.table(embedding.evaluate(run, source, workdir, label=LABEL)))
        print("trained on these very cells, without their labels" if FLAGS.input else EXPECT)
    else:
        print(f"3. embed; no scores, since {source} has no obs[{LABEL!r}] with two types or more", flush=True)
        embedding.embed_file(run, source, workdir)
    print(f"4. report: {page.write(workdir)}")


def scanpy_pbmcs(path: pathlib.Path) -> pathlib.Path:
    """Write scanpy's 700 PBMCs as raw counts to `path`, unless they are there, and return it."""
    if not path.exists():
        import scanpy

        reduced = scanpy.datasets.pbmc68k_reduced()
        obs = reduced.obs[["bulk_labels"]].rename(columns={"bulk_labels": LABEL})
        cells = anndata.AnnData(recover_counts(sparse.csr_matrix(reduced.raw.X)), obs, reduced.raw.var)
        partial = path.with_name(f"partial_{path.name}")
        cells.write_h5ad(partial)
        partial.replace(path)
    return path


if __name__ == "__main__":
    cli.run(main, OPTIONS)
