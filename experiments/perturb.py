"""Perturb genes in control cells and compare the shift of their embedding with that of really perturbed cells.

    python -m experiments.perturb --workdir=W --input=screen.h5ad --column=perturbation --control=non-targeting \
        --output=DIR [--targets='stim=STAT1,stim=IRF9'] [--how=overexpress] [--within=cell_type]

Without --targets, every value of the column that is a gene of file and model is one. Writes DIR/perturb.md (the table),
DIR/perturb.json (each score and its null) and DIR/perturb.png, all or nothing. Beside the model are its random twin and
50 principal components; scores and null are those of `scfm_jax.tasks.perturbation.in_silico`.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "workdir output scaler reading",
    input="File of raw counts of control and perturbed cells.",
    column=(str, "perturbation", "obs column that says what was done to a cell."),
    control=(str, None, "Its value for control cells."),
    targets=(list, [], "VALUE=GENE: cells of this value are compared with control cells with this gene hit."),
    how=(("mask", "delete", "overexpress"), "mask", "What is done to the gene."),
    within=(str, None, "obs column of strata to compare within, such as cell types or replicates."),
    filter=(str, None, "Which cells count, such as: single_guide == 1"),
    cells=(int, 300, "Control cells, and cells of each value, drawn at random.", 20),
    null=(int, 100, "Genes of like expression to compare a target with.", 20),
    seed="Of that draw, the twin's weights and the components.",
)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    del argv
    cli.require("workdir", "input", "output", "control")
    from experiments.analyses import perturbation
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    wrong = next((text for text in FLAGS.targets if "=" not in text), None)
    if wrong:
        raise ValueError(f"--targets={wrong}: write VALUE=GENE, a value of --column and a gene")
    names = ("column", "control", "how", "within", "filter", "cells", "null", "seed")
    options = {name: FLAGS[name].value for name in names} | cli.reading()
    options["targets"] = [text.rpartition("=")[::2] for text in FLAGS.targets]
    result = perturbation.evaluate(api.load(FLAGS.workdir, scaler=FLAGS.scaler), FLAGS.input, **options)
    text = perturbation.table(result)
    title = f"# {result['model']}: genes perturbed in silico in {result['input']}\n\nWeights: {result['weights']}.\n\n"
    files = {"perturb.md": f"{title}{text}\n", "perturb.json": result, "perturb.png": perturbation.picture(result)}
    output.write(FLAGS.output, files)
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
