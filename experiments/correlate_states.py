"""Which perturbation turns a state back? Cosines of case against control with every perturbation of a screen.

    python -m experiments.correlate_states --state=donors.h5ad --state_column=condition --case=stim \
        --state_control=ctrl [--donor=donor --types=cell_type] --input=screen.h5ad --column=perturbation \
        --control=non-targeting --output=OUT [--runs=RUN,RUN] [--vectors_file=genes.npz] [--gene_list=FILE]

In the expression of the genes that both files have measured, and in each run's embeddings with its random twin beside:
cosine, p against exchanged labels and against halves of control cells, q over genes. With --vectors_file genes that
were not screened are predicted, too, and OUT/predictor has how far such predictions are to be trusted.

Prints the tables, and leaves table.md, table.csv, table.json and violin.png in OUT. What OUT has already is not
computed again: the same command goes on, and one with other runs adds them.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "reading seed",
    state=(str, None, "File of raw counts of case and control cells."),
    state_column=(str, None, "Its obs column that says which cells are cases."),
    case=(str, None, "Its value for case cells."),
    state_control=(str, None, "Its value for control cells."),
    donor=(str, None, "obs column of --state: whose each cell is; labels are exchanged within, or among, donors."),
    types=(str, None, "obs column of --state, such as cell types, within which cases and controls are compared."),
    state_filter=(str, None, "Which cells of --state count, such as: cell_type == 'Mono'"),
    input="The screen: file of raw counts of perturbed and unperturbed cells.",
    column=(str, "auto", "Its obs column that says what was done to a cell; auto: condition, in GEARS' layout."),
    control=(list, [], "Its values for unperturbed cells; ctrl, if left out."),
    separator=(str, "+", "Between the targets of a cell with several, which are left out."),
    targets=(list, [], "Only perturbations of these genes; all, if left out."),
    within=(str, None, "obs column of the screen, such as replicates, within which cells are compared."),
    filter=(str, None, "Which cells of the screen count, such as: single_guide == 1"),
    least=(int, 50, "Cells that a perturbation needs.", 2),
    output="Folder of the table; made if it is not there.",
    runs=(list, [], "Folders of trained runs, in whose embeddings cells are compared."),
    vectors_file=(str, None, "Gene vectors (experiments.gene_embedding) from which unscreened genes are predicted."),
    predict=(list, [], "Genes to predict; all that the vectors know, if left out."),
    folds=(int, 5, "Parts of the perturbed genes that the predictor is judged by.", 2),
    gene_list=(list, [], "Files of genes, one a line or a table with a column gene: are they among the strongest?"),
    permutations=(int, 1000, "Draws of each null.", 20),
    seeds=(int, 3, "Seeds that the predictor is judged by.", 1),
)


def main(_) -> None:
    cli.require("state", "state_column", "case", "state_control", "input", "output")
    cli.check_paths("runs", "gene_table", "gene_list")
    from experiments.analyses import perturbation_data, state_correlation, state_data, state_table

    for name in ("state", "input", "vectors_file"):
        if (path := FLAGS[name].value) and not pathlib.Path(path).exists():
            raise FileNotFoundError(f"--{name}={path}: no such file or folder")
    if FLAGS.predict and not FLAGS.vectors_file:
        raise ValueError("--predict needs --vectors_file, the vectors that genes are predicted from")
    reading = cli.reading()
    texts = "input column separator filter within vectors_file state state_column case state_control donor types"
    same = (*texts.split(), "state_filter", "least", "folds", "permutations", "seed", "seeds")
    plan = state_data.StatePlan(
        **{name: FLAGS[name].value for name in same},
        **{name: tuple(FLAGS[name].value) for name in ("control", "targets", "predict")},
        gene_table=tuple(reading.pop("gene_table")),
        reading=reading,
        stamps=state_data.stamps(FLAGS.state),
    )
    lists = state_table.read_lists(FLAGS.gene_list)
    out = pathlib.Path(FLAGS.output)
    question = state_data.read(plan)
    perturbation_data.prepare(plan, out)
    parts = state_correlation.fill(question, out, FLAGS.runs)
    about = f"# {plan.case} against {plan.state_control} and the perturbations of {pathlib.Path(plan.input).name}"
    print(state_table.write(out, question, parts, lists, about))


if __name__ == "__main__":
    cli.run(main, OPTIONS)
