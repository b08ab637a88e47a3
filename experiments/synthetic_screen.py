"""Make a semi-synthetic screen with single and double knock-outs: real cells, effects over signed regulatory edges.

    python -m experiments.synthetic_screen --input=cells.h5ad --edges=dorothea.tsv --output=screen.h5ad \
        [--filter="cell_type == 'A549'"] [--singles=24] [--doubles=60] [--cells=100] [--genes=1000]

How effects are made is said in `data_pipeline.synthetic_screen`. The file is in GEARS' layout; obs.synthetic says in
every cell that it is made, and tables of `experiments.predict_perturbation` and `experiments.interactions` repeat it.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "input reading seed",
    output="File of the screen (.h5ad); must not exist.",
    edges=(str, None, "Signed edges: a table of source (or tf), target and sign."),
    sign=(str, None, "Its column of signs; mor, sign, effect or weight, if left out."),
    filter=(str, None, "Which cells are taken, best of one kind, such as: cell_type == 'A549'"),
    singles=(int, 24, "Single knock-outs, those of the regulators of most genes.", 2),
    doubles=(int, 60, "Double knock-outs, pairs of these, drawn at random.", 0),
    cells=(int, 100, "Cells of each.", 2),
    genes=(int, 1000, "Genes that are kept: targets, half regulated ones, and the most expressed.", 10),
)


def main(_) -> None:
    cli.require("input", "edges", "output")
    cli.check_free(FLAGS.output)
    from data_pipeline.files import whole
    from experiments.analyses import synthetic_screen

    names = ("input", "edges", "sign", "filter", "singles", "doubles", "cells", "genes", "seed")
    made = synthetic_screen.make(**{name: FLAGS[name].value for name in names}, reading=cli.reading())
    with whole.writing(pathlib.Path(FLAGS.output)) as partial:
        made.write_h5ad(partial)
    print(
        f"{FLAGS.output}: SYNTHETIC screen of {made.n_obs:,} cells, {made.n_vars:,} genes, {made.obs.synthetic.iloc[0]}"
    )


if __name__ == "__main__":
    cli.run(main, OPTIONS)
