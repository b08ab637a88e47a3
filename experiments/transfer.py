"""Train a model on a new study from its weights and from random ones, and compare them epoch by epoch.

    python -m experiments.transfer --workdir=W --input=new.h5ad --output=DIR [--epochs=10] [--seeds=5] \
        [--epochs_random=50] [--starts=pretrained,random]

The starts: pretrained weights, random ones, random ones with the pretrained gene table ("genes"), pretrained ones with
the vectors of the genes exchanged ("permuted"). Beside a model of values (Exceiver) are the gene's mean, and that with
one slope of the cell's depth, of the same cells and hidden genes, and how many epochs it takes to be level with the
first. Random weights need more epochs than a table of genes: with too few of them nothing is told of pre-training.

Writes DIR/transfer.md (the table), DIR/transfer.csv and DIR/transfer.json (every validation), DIR/transfer.png (the
curves). The runs lie in DIR.runs; the same command goes on where it was stopped. See `scfm_jax.tasks.cells.transfer`.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir output reading",
    input="File of raw counts of a study that the model has not seen.",
    epochs=(int, 10, "Epochs of every run.", 1),
    epochs_random=(int, None, "Epochs of the runs whose network starts from random weights; --epochs, if left out.", 1),
    starts=(list, [], "Of pretrained, random, genes, permuted; by default all that the model has."),
    seeds=(int, 5, "Runs of each start.", 1),
    batch=(int, None, "Bags of a batch; by default as the model was trained.", 1),
    learning_rate=(float, None, "Peak rate; by default as the model was trained.", 0),
    validation=(float, 0.3, "Share of the cells to validate on.", 0, 1),
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output")
    import jax

    from experiments.analyses import transfer
    from experiments.pages import output
    from scfm_jax import api
    from scfm_jax.tasks.cells import transfer as task

    cli.check_free(FLAGS.output)
    if wrong := [start for start in FLAGS.starts if start not in task.STARTS]:
        raise ValueError(f"--starts={wrong[0]}: must be of {', '.join(task.STARTS)}")
    runs = pathlib.Path(f"{FLAGS.output.rstrip('/')}.runs")
    runs.mkdir(exist_ok=True)
    if not jax.config.jax_compilation_cache_dir:  # every run compiles the same programs
        jax.config.update("jax_compilation_cache_dir", str(runs / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    names = ("epochs", "epochs_random", "starts", "seeds", "batch", "learning_rate", "validation")
    options = {name: FLAGS[name].value for name in names} | cli.reading()
    result = transfer.evaluate(api.load(FLAGS.workdir), FLAGS.input, runs, **options)
    text = transfer.table(result)
    title = (
        f"# {result['model']} on {result['input']}, pretrained and from random weights\n\nWeights: {result['weights']}."
    )
    files = {"transfer.md": f"{title}\n\n{text}\n", "transfer.json": result}
    files |= {"transfer.csv": transfer.comma_separated(result), "transfer.png": transfer.picture(result)}
    output.write(FLAGS.output, files)
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
