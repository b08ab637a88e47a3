"""Cluster a model's embedding of a file and compare the clusters with every column of the metadata.

    python -m experiments.latent_ami --workdir=W --input=x.h5ad --output=DIR [--columns=cell_type,donor]

Writes DIR/latent_ami.md (the table), DIR/latent_ami.json (each seed) and DIR/latent_ami.png, all or nothing. Beside the
model are 50 principal components of the data and the model with random weights; see `scfm_jax.tasks.cells.latent_ami`.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir output sample_key scaler reading",
    input="File of raw counts with metadata in obs.",
    columns=(list, [], "obs columns to compare with; all that have few labels, if left out."),
    seeds=(int, 3, "Number of seeds of k-means, PCA and twins.", 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output")
    from experiments.analyses import latent_ami
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    options = {"columns": FLAGS.columns} | cli.reading()
    options |= {"seeds": range(FLAGS.seeds), "sample_key": FLAGS.sample_key or None}
    result = latent_ami.evaluate(api.load(FLAGS.workdir, scaler=FLAGS.scaler), FLAGS.input, **options)
    text = latent_ami.table(result)
    title = f"# What the clusters of {result['model']} tell of {result['input']}\n\nWeights: {result['weights']}.\n\n"
    files = {"latent_ami.md": f"{title}{text}\n", "latent_ami.json": result}
    output.write(FLAGS.output, files | {"latent_ami.png": latent_ami.picture(result)})
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
