"""Score zero-shot denoising and genes held out of a spatial file, so that points of a sweep compare.

    python -m experiments.sweep_expression --workdir=W --input=x.h5ad --spatial=y.h5ad --reference=z.h5ad

As CellPLM's ablation is scored (Wen et al., ICLR 2024): root mean squared errors of log expression where expressed
entries of --input were flipped to zero, and of whole genes that were taken from --spatial and that single cells of
--reference still have. Both are tasks of the zero-shot suite (`denoising`, `spatial_imputation`) with its random twin
and baselines. Cells, flips and genes of a seed are the same for every run of a sweep. Writes W/sweep_expression.json.
"""

import pathlib

from absl import flags

from data_pipeline.files import h5ad
from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading",
    workdir="Folder of a training run.",
    input="File of raw counts to denoise, not one of the training studies.",
    spatial=(str, None, "File of raw counts with positions, of which genes are held out."),
    reference=(list, [], "Single cells that have these genes, with commas between."),
    rate=(float, 0.1, "Share of each cell's expressed genes that are flipped to zero.", 0.001, 0.999),
    seeds=(int, 3, "Number of evaluation seeds: of the cells, the flips, the genes and the random twin.", 1),
    cells=(int, 300, "Cells of a seed, in whole bags drawn at random.", 10),
)


def main(_) -> None:
    cli.require("workdir", "input", "spatial", "reference")
    cli.check_paths("reference", "gene_table")
    if FLAGS["min_mapped"].present:
        raise ValueError("--min_mapped: run and files are compared on the genes that they share; leave it out")
    from experiments.analyses import sweep_expression
    from experiments.pages import output
    from experiments.suite.entrants import Entrant, Study
    from scfm_jax import api

    run = api.load(FLAGS.workdir)
    options = {"tables": FLAGS.gene_table, **h5ad.place(cli.reading())}
    source, spatial = (Study(path, **options) for path in (FLAGS.input, FLAGS.spatial))
    reference = [Study(path, **options) for path in FLAGS.reference]
    how = {name: FLAGS[name].value for name in ("rate", "seeds", "cells")}
    rows = sweep_expression.rows(Entrant(run.name, FLAGS.workdir, run), source, spatial, reference, **how)
    files = {"input": source.name, "spatial": spatial.name, "reference": [study.name for study in reference]}
    output.write_file(pathlib.Path(FLAGS.workdir) / "sweep_expression.json", {**files, **how, "rows": rows})
    for row in rows:
        print("  ".join(f"{name} {v:.4f}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items()))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
