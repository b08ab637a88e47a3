"""Score what a model's class token says of the cells of files: Exceiver trained with --config.data.labels=tissue.

    python -m experiments.class_token --workdir=W --input=a.h5ad,b.h5ad --output=DIR [--label=tissue]

Writes DIR/class_token.md and DIR/class_token.json, all or nothing. Beside the model are the most common class of each
file and the model with random weights; see `scfm_jax.tasks.cells.class_token`.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir output scaler reading",
    input=(list, None, "Files of raw counts with labels in obs."),
    label=(str, None, "obs column of the truth; by default what the model was trained to tell."),
    seeds=(int, 3, "Number of seeds of hidden genes and random twins.", 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output")
    from experiments.analyses import class_token
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    cli.check_paths("input", "gene_table")
    options = {name: FLAGS[name].value for name in ("label", "seeds")} | cli.reading()
    result = class_token.evaluate(api.load(FLAGS.workdir, scaler=FLAGS.scaler), FLAGS.input, **options)
    text = class_token.table(result)
    title = f"# The class token of {result['model']}\n\nWeights: {result['weights']}.\n\n"
    output.write(FLAGS.output, {"class_token.md": f"{title}{text}\n", "class_token.json": result})
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
