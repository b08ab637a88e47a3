"""Hide entries of a file, let a trained model and simple baselines impute them, and score both side by side.

    python -m experiments.impute --workdir=W --input=x.h5ad --task=gene --rates=0.15,0.8 --seeds=5

The tasks are the sCT paper's: gene (a share of the genes of every cell, up to 1), cell (whole cells, so many of fifty),
fixed_gene (genes of four sparsities, hidden in every cell). Writes W/imputation_TASK.json, draws every method over the
rates in W/imputation_TASK_RULER.svg, and prints the table: the mean over seeds and half its 95 % interval. A seed draws
the cells, the bags, the mask and the weights of a random twin.

A model that learned from masks which hide zeros more rarely than others (sCT) has two rows: its own shares of bins, by
which the paper scores expressed genes, and "even masks", the same shares for masks that hide all entries alike. Tables
that know genes, and samples, but nothing of the cell stand beside it, also such that never say zero, as scores of
expressed entries alone allow; within genes (mcc_within_gene) a constant bin of each gene scores 0.

No hidden value reaches a method. With --ruler=cell, the paper's protocol, the borders of a cell's bins and its total
are those of the whole cell, hidden counts included, for inputs and predictions; --ruler=visible,cell scores both on the
same masks. Where everything is hidden (rate 1) the visible ruler is that of the mean reference cell, and there must be
some. Baselines see all visible entries of the cells drawn, a model those of its bag; with --reference=studies they see
these too, as the model did in training.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "sample_key scaler reading",
    workdir="Folder of a training run.",
    input="File of raw counts, not one of the training studies.",
    task=(str, "gene", "What to hide: gene, cell or fixed_gene."),
    rates=(list, None, "Shares of genes, or numbers of cells of 50; by default the paper's."),
    seeds=(int, 5, "Number of evaluation seeds.", 1),
    cells=(int, 500, "Cells of a seed, in whole bags drawn at random.", 2),
    bag=(int, None, "Cells of a bag; as many as in training, if left out, or the paper's 50.", 2),
    ruler=(list, ["visible"], "What the borders of bins are read off: visible entries, the whole cell, or both apart."),
    bin_value=(str, "median", "Count that stands for a bin: median of those in it, or middle of the bin."),
    reference=(list, [], "Files that the baselines see whole, such as the training studies."),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    if not FLAGS.workdir or not FLAGS.input:
        raise ValueError("--workdir and --input say which model imputes what (see --helpshort)")
    if FLAGS.bin_value not in ("median", "middle"):
        raise ValueError(f"--bin_value={FLAGS.bin_value}: there are median, middle")
    from experiments.analyses import imputation as imputation_analysis
    from experiments.pages import imputation_curves, output
    from scfm_jax import api
    from scfm_jax.tasks.imputation import imputation

    task = imputation.get(FLAGS.task)
    workdir = pathlib.Path(FLAGS.workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"--workdir={workdir}: no such folder; give that of a training run")
    cli.check_paths("reference", "gene_table")
    names = ("seeds", "cells", "bag", "bin_value", "reference")
    options: dict[str, Any] = {name: FLAGS[name].value for name in names} | cli.reading()
    options |= {"sample_key": FLAGS.sample_key or None, "rates": _numbers(FLAGS.rates, task.RATES)}
    options |= {"rulers": FLAGS.ruler}
    scores = imputation_analysis.evaluate(api.load(workdir, scaler=FLAGS.scaler), FLAGS.input, FLAGS.task, **options)
    written = workdir / f"imputation_{FLAGS.task}.json"
    output.write_file(written, scores)
    for ruler in FLAGS.ruler:
        output.write_file(workdir / f"imputation_{FLAGS.task}_{ruler}.svg", imputation_curves.drawn(scores, ruler))
    print(imputation_analysis.table(scores))


def _numbers(texts: Sequence[str] | None, default: Sequence[float]) -> list[float]:
    """Return the rates that were given, or the default ones."""
    try:
        return list(default) if texts is None else [float(text) for text in texts]
    except ValueError as error:
        raise ValueError(f"--rates={','.join(texts or ())}: numbers with commas between, such as 0.15,0.8") from error


if __name__ == "__main__":
    cli.run(main, OPTIONS)
