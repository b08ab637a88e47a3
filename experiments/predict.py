"""Name the cell types of a file without labels: type and probability of each cell, "unknown" where it is too low.

    python -m experiments.predict --workdir=RUN --input=x.h5ad --output=y.h5ad [--threshold=0.5]
    python -m experiments.predict --workdir=RUN --input=x.h5ad --output=y.h5ad --reference=labelled.h5ad \
        [--label_key=cell_type] [--neighbours=15]

In the first RUN was fine-tuned to cell types (--config=finetune_cell_type, or a run of `experiments.annotate`): its
workdir, or its tuned.safetensors. In the second it is any run: the types are those of the nearest cells of the
reference in its embedding, and the probability is the share of them that have the type.

The output is the input with obs["predicted_type"], obs["predicted_probability"] (of the most probable type, also where
that is too low to be named) and, in uns["predicted_type"], where they come from. Prints how many cells each type has.
How often a run is right is what `experiments.annotate` tells, on cells whose types are known.
"""

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "input step scaler reading cell_layer sample_key",
    workdir="A run fine-tuned to cell types, or with --reference any run.",
    output="File to write, .h5ad; must not exist.",
    base=(str, None, "For a tuned.safetensors: the run that it began with, if that is elsewhere now."),
    reference=(list, [], "Files of labelled cells whose neighbours name the types."),
    label_key=(str, "cell_type", "obs column of the types of --reference."),
    reference_layer=(str, None, "Layer of the reference that holds the counts."),
    reference_raw=(bool, None, "The counts are in the reference's raw."),
    neighbours=(int, 15, "Cells of the reference that vote.", 1),
    threshold=(float, 0.5, 'A most probable type below this is "unknown".', 0, 1),
    key=(str, "predicted", "What the new columns begin with: KEY_type, KEY_probability."),
    max_cells=(int, None, "Cut larger samples into random parts.", 1),
    seed="Seed of those parts.",
)


def main(argv: list[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output", "key")
    cli.check_free(FLAGS.output)
    which = cli.step()

    from data_pipeline.files import obs_columns
    from experiments.analyses import prediction
    from scfm_jax import api

    names = [f"{FLAGS.key}_type", f"{FLAGS.key}_probability"]
    obs_columns.check_free(FLAGS.input, names, names[0])
    run = api.load(FLAGS.workdir, which, FLAGS.base, FLAGS.scaler)
    options = cli.reading() | {
        "seed": FLAGS.seed,
        "cell_layer": FLAGS.cell_layer,
        "sample_key": FLAGS.sample_key or None,
        "max_cells": FLAGS.max_cells or api.MAX_CELLS,
    }
    if FLAGS.reference:
        where = {"layer": FLAGS.reference_layer, "raw": FLAGS.reference_raw, "round": FLAGS.round}
        chosen = {"neighbours": FLAGS.neighbours, "where": where}
        shares, done = prediction.by_neighbours(run, FLAGS.input, FLAGS.reference, FLAGS.label_key, **chosen, **options)
    else:
        shares, done = prediction.by_head(run, FLAGS.input, **options)
    columns = prediction.columns(shares, FLAGS.key, FLAGS.threshold)
    done |= {"threshold": FLAGS.threshold, "types": list(shares.columns)}
    obs_columns.write_columns(FLAGS.input, FLAGS.output, columns, names[0], done)
    print(prediction.table(columns))
    print(f"{FLAGS.output}: obs[{names[0]!r}] and obs[{names[1]!r}] of {len(columns):,} cells, by {done['by']}")


if __name__ == "__main__":
    cli.run(main, OPTIONS)
