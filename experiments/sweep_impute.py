"""Score a model's gene imputation by a ruler that does not depend on the model, so that points of a sweep compare.

    python -m experiments.sweep_impute --workdir=W --input=x.h5ad [--rate=0.15] [--bins=5] [--cells=500] [--bag=50]

What `experiments.impute --task=gene` scores, but for three things. Cells and masks of a seed are the same whatever the
size of bags, so two runs are compared entry by entry. Truth and predictions are put into `--bins` bins, whatever the
model's own number: shares of its bins are laid over those, evenly within a bin (with equal numbers nothing changes, see
`shared_bins`), and "mcc_own" keeps the paper's way, the model's own bins. Counts are scored without bins: mean absolute
error, and mean squared error of log1p. These are of expressed genes, as in the paper, and a model whose training hid
zeros rarely says zero rarely, which that rewards; "mcc_all" is of all hidden entries and corrects for the masks, and
"mcc_within_gene" is of expressed entries within genes, 0 for a constant bin of each gene. Only tables are told the
samples of --sample_key. Writes W/sweep_imputation.json.
"""

import json
import pathlib
from typing import Any

from absl import flags

from data_pipeline.files import h5ad
from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "scaler sample_key reading",
    workdir="Folder of a training run.",
    input="File of raw counts, not one of the training studies.",
    rate=(float, 0.15, "Share of the genes of every cell that is hidden.", 0.001, 1),
    bins=(int, 5, "Bins to score in, zero included.", 2),
    seeds=(int, 1, "Number of evaluation seeds: of the cells, the mask and the random twin.", 1),
    cells=(int, 500, "Cells of a seed.", 1),
    bag=(int, 50, "Cells that the model sees together.", 1),
    ruler=(str, "visible", "What the borders of bins are read off: visible entries, or the whole cell."),
    min_mapped=(float, 0.0, "Least share of the input's genes that the model must know.", 0, 1),
)


def main(_) -> None:
    if not FLAGS.workdir or not FLAGS.input:
        raise ValueError("--workdir and --input say which model imputes what (see --helpshort)")
    from experiments.analyses import shared_bins
    from experiments.analyses.cells import Cells
    from experiments.pages import output
    from scfm_jax import api
    from scfm_jax.tasks.imputation import imputation

    imputation.check("gene", [FLAGS.rate], [FLAGS.ruler], reference=False)
    run = api.load(FLAGS.workdir, scaler=FLAGS.scaler)
    table = run.gene_table(FLAGS.gene_table)
    rows: list[dict[str, Any]] = []
    with h5ad.read_counts(FLAGS.input, **h5ad.place(cli.reading())) as counts:
        file = Cells(counts, run.genes, table, FLAGS.min_mapped, run.gene_fraction)
        print(str(file.mapping.report))
        print(file.separate(FLAGS.sample_key or None))
        for seed in range(FLAGS.seeds):
            rows += shared_bins.of_seed(run, file, seed, FLAGS.rate, FLAGS.bins, FLAGS.cells, FLAGS.bag, FLAGS.ruler)
    options = {name: FLAGS[name].value for name in ("rate", "bins", "seeds", "cells", "bag", "ruler")}
    path = pathlib.Path(FLAGS.workdir) / "sweep_imputation.json"
    content = {"input": pathlib.Path(FLAGS.input).name, **options, "rows": rows}
    output.write_file(path, json.dumps(content, indent=1) + "\n")
    for row in rows:
        print("  ".join(f"{name} {v:.4f}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items()))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
