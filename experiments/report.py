"""Write one self-contained HTML page about a run, W/report.html, or about a suite, DIR/report.html.

    python -m experiments.report --workdir=W [--input=y.h5ad] [--color=cell_type,batch]
    python -m experiments.report --suite=DIR

Shows what W has: config, training curves, the embedding of W/embedding.h5ad (or of --input, a file written by
`experiments.embed`) coloured by obs columns, the scores of `experiments.evaluate`, gene mapping, provenance. Of a suite
(DIR: --output of `experiments.evaluate --suite`): who is ahead in which task, maps of cells, costs, provenance.
"""

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    workdir="Folder of a training run.",
    suite=(str, None, "Folder of a suite's results."),
    input="File with the embedding; W/embedding.h5ad, if left out.",
    color=(list, [], "obs columns to colour the cells by; the usual ones that are there, if left out."),
)


def main(_) -> None:
    if bool(FLAGS.workdir) == bool(FLAGS.suite):
        raise ValueError("give --workdir, the folder of a training run, or --suite, that of a suite (see --helpshort)")
    if FLAGS.suite:
        from experiments.suite import report

        path = report.write(FLAGS.suite, say=print)
    else:
        from experiments.pages import run

        path = run.write(FLAGS.workdir, FLAGS.input, FLAGS.color, say=print)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, opens in any browser without network")


if __name__ == "__main__":
    cli.run(main, OPTIONS)
