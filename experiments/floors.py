"""Score simple tables (such as means): floors that a trained model must beat before its score means much.

    python -m experiments.floors --input=x.h5ad --reference=a.h5ad,b.h5ad --genes=genes.txt --output=DIR

No model is needed. Writes DIR/floors.md and DIR/floors.json, and prints the tables. --parts chooses among

  imputation    hidden genes of the input, problems, bins and scores as `experiments.impute` has them: gene mean and
                most common bin, also without zeros (as scores of expressed genes alone allow), learnt from the visible
                cells of the input, and from the reference files
  denoising     counts flipped to zero, scored over the flipped entries alone and over all, as the suite spoils them
  transfer      explained variance of hidden expressed genes, as `experiments.transfer` splits the input: the gene's
                mean in the training cells, and one slope of depth
  pretraining   the floors that a training prints beside its validation (docs/floors.md), of all models, on a tenth of
                the cells of the reference files, or of the input where there are none; learnt from the rest

--genes is the gene list of the models that floors are to stand beside; --number=2048 takes so many of it, those that
every reference file measured and most of their cells express. Without a list all genes of the input count.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli

PARTS = ("imputation", "denoising", "transfer", "pretraining")

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "input output sample_key reading",
    reference=(list, [], "Files of other studies, such as those that a model was trained on."),
    parts=(list, list(PARTS), "What to score."),
    genes=(str, None, "Gene list, a gene a line; all genes of the input, if left out."),
    number=(int, 0, "Genes of the list to take, the most widely expressed of --reference; 0: all.", 0),
    rates=(list, ["0.15", "0.8"], "Shares of genes to hide."),
    seeds=(int, 5, "Number of evaluation seeds.", 1),
    cells=(int, 200, "Cells of a seed of imputation and denoising, in whole bags drawn at random.", 2),
    reference_cells=(int, 1000, "Cells of the reference that imputation learns from.", 1),
    bag=(int, 10, "Cells of a bag, which are drawn together.", 2),
    min_mapped=(float, 0.01, "Least share of a file's genes that the list must know.", 0, 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("input", "output")
    if unknown := [part for part in FLAGS.parts if part not in PARTS]:
        raise ValueError(f"--parts={unknown[0]}: there are {', '.join(PARTS)}")
    if FLAGS.number and not (FLAGS.genes and FLAGS.reference):
        raise ValueError(f"--number={FLAGS.number}: needs --genes to take from and --reference to count cells in")
    try:
        rates = [float(rate) for rate in FLAGS.rates]
    except ValueError as error:
        raise ValueError(f"--rates={','.join(FLAGS.rates)}: numbers with commas between, such as 0.15,0.8") from error
    cli.check_free(FLAGS.output)
    from experiments.analyses import floors
    from experiments.pages import output

    cli.check_paths("reference", "gene_table")
    names = ("reference", "parts", "genes", "number", "seeds", "cells", "reference_cells", "bag")
    options = {name: FLAGS[name].value for name in names} | cli.reading()
    scores = floors.evaluate(FLAGS.input, rates=rates, sample_key=FLAGS.sample_key or None, **options)
    text = floors.tables(scores)
    output.write(FLAGS.output, {"floors.md": text + "\n", "floors.json": scores})
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
