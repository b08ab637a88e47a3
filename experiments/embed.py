"""Embed the cells of a file with a trained model.

    python -m experiments.embed --workdir=W --input=x.h5ad --output=y.h5ad

The output is the input with obsm["X_<model>"] and, in uns, where that comes from: model, step, config
hash, gene mapping, what a sample is, versions, date. It must not exist yet.
"""

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir input step cell_layer sample_key scaler reading",
    output="File to write, .h5ad; must not exist.",
    max_cells=(int, None, "Cut larger samples into parts: random ones, or neighbours if trained on them.", 1),
    replace=(bool, False, "Replace an embedding of the same name that the input has."),
    seed="Seed of those parts.",
)


def main(argv: list[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output")
    cli.check_free(FLAGS.output)
    which = cli.step()

    from data_pipeline.files import h5ad
    from scfm_jax import api

    run = api.load(FLAGS.workdir, which, scaler=FLAGS.scaler)
    embedding = run.embed(
        FLAGS.input,
        **cli.reading(),
        cell_layer=FLAGS.cell_layer,
        sample_key=FLAGS.sample_key or None,
        max_cells=FLAGS.max_cells or api.MAX_CELLS,
        seed=FLAGS.seed,
    )
    key = f"X_{run.name}"
    h5ad.write_embedding(FLAGS.input, FLAGS.output, key, embedding, run.provenance, replace=FLAGS.replace)
    print(f"{FLAGS.output}: obsm[{key!r}], {len(embedding)} cells x {embedding.shape[1]}; {run.provenance['sample']}")


if __name__ == "__main__":
    cli.run(main, OPTIONS)
