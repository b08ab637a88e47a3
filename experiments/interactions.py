"""Score the genetic interactions in a table of predicted perturbations: what doubles do beyond their singles.

    python -m experiments.predict_perturbation --input=screen.h5ad --split=simulation --output=OUT ...
    python -m experiments.interactions --output=OUT [--presets=paper,repo,gears] [--map="GEARS, RUN"]

Reads what OUT has: every method's predictions of test doubles and of their singles; nothing is fitted anew. A double's
effect is fitted by those of its singles, magnitudes are compared with those of the measured effects
(`scfm_jax.tasks.perturbation.interaction` has the formulas and the presets). Baselines beside the table's methods:
additive, the mean of the training doubles, ridge on the lengths of the two singles.

Prints the table, and leaves in OUT interactions.md, interactions.csv (each double), interactions.json, interactions.png
(magnitudes), error_map.png (where one method errs, clustered, beside error against true change).
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    output="Folder of a table of experiments.predict_perturbation; its screen has doubles.",
    presets=(list, ["paper", "repo", "gears"], "Of how a double is fitted: paper, repo, gears."),
    map=(str, None, "Method whose errors are drawn; the one of the best correlation, if left out."),
)


def main(_) -> None:
    cli.require("output")
    from experiments.analyses import interaction_table, interactions
    from scfm_jax.tasks.perturbation.interaction import PRESETS

    if wrong := [preset for preset in FLAGS.presets if preset not in PRESETS]:
        raise ValueError(f"--presets={wrong[0]}: must be of {', '.join(PRESETS)}")
    out = pathlib.Path(FLAGS.output)
    plan, data, predictions = interactions.read(out)
    rows = interactions.evaluate(plan, data, predictions, FLAGS.presets)
    print(interaction_table.write(out, plan, data, predictions, rows, FLAGS.map))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
