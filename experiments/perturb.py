"""Perturb genes in control cells and compare the shift of their embedding with that of really perturbed cells.

    python -m experiments.perturb --workdir=W --input=screen.h5ad --column=perturbation --control=non-targeting \
        --output=DIR [--targets='stim=STAT1,stim=IRF9'] [--how=overexpress] [--within=cell_type]
    python -m experiments.perturb --workdir=W --input=cells.h5ad --column=condition --control=ctrl --output=DIR \
        --screen=200 [--genes=STAT1,IRF9] [--case=stim]

Without --targets, every value of the column that is a gene of file and model is one. Writes DIR/perturb.md (the table),
DIR/perturb.json (each score and its null), DIR/perturb.png and DIR/top.png (the ten of largest cosine with treated
cells), all or nothing. Beside the model are its random twin and 50 principal components; scores and null are those of
`scfm_jax.tasks.perturbation.in_silico`.

With --screen or --genes no treated cells are needed: how far does each gene move the embedding, and with --case, does
it move towards the case cells or away from them?
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
    screen=(int, 0, "Perturb so many genes, the highest expressed, without treated cells to compare with.", 0),
    genes=(list, [], "Perturb these genes, too, without treated cells; --screen is then 200, if left out."),
    case=(str, None, "Value of --column: does a gene of --screen move control cells towards these?"),
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
    from experiments.analyses import perturbation, perturbation_bars, perturbation_screen
    from experiments.pages import output
    from scfm_jax import api

    cli.check_free(FLAGS.output)
    screening = bool(FLAGS.screen or FLAGS.genes)
    wrong = next((text for text in FLAGS.targets if "=" not in text), None)
    if wrong:
        raise ValueError(f"--targets={wrong}: write VALUE=GENE, a value of --column and a gene")
    if FLAGS.case and not screening:
        raise ValueError(f"--case={FLAGS.case}: goes with --screen or --genes, the genes that may move cells there")
    if FLAGS.targets and screening:
        raise ValueError("--targets are compared with treated cells, --screen and --genes with none: leave one out")
    names = ("column", "control", "how", "within", "filter", "cells", "null", "seed")
    options = {name: FLAGS[name].value for name in names} | cli.reading()
    run = api.load(FLAGS.workdir, scaler=FLAGS.scaler)
    if screening:
        options |= {"case": FLAGS.case, "genes": FLAGS.genes, "most": FLAGS.screen or 200}
        result = perturbation_screen.evaluate(run, FLAGS.input, **options)
        text, pictures = perturbation_screen.table(result), {"top.png": perturbation_bars.of_screen(result)}
    else:
        options["targets"] = [text.rpartition("=")[::2] for text in FLAGS.targets]
        result = perturbation.evaluate(run, FLAGS.input, **options)
        text = perturbation.table(result)
        pictures = {"perturb.png": perturbation.picture(result), "top.png": perturbation_bars.of_targets(result)}
    title = f"# {result['model']}: genes perturbed in silico in {result['input']}\n\nWeights: {result['weights']}.\n\n"
    output.write(FLAGS.output, {"perturb.md": f"{title}{text}\n", "perturb.json": result, **pictures})
    print(text)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
