"""Predict what unseen perturbations do to expression, by baselines and by each run's gene vectors: table, picture.

    python -m experiments.predict_perturbation --input=perturb_processed.h5ad --output=OUT --runs=RUN,RUN
    python -m experiments.predict_perturbation --input=screen.h5ad --column=perturbation --control=non-targeting \
        --output=OUT --runs=RUN,RUN --go=goa_human.gaf.gz [--split=simulation] [--seeds=3]

Methods: no change, the mean of the training perturbations, for doubles the mean and the sum of their singles, bilinear
ridge on principal components, on random and one-hot vectors, GO terms, and the gene vectors of every run and of its
random twin; with --heads=ridge,gears also GEARS, alone and on what each run and its twin make of genes in control cells
(minutes a fit, and it needs a GO graph); with cellplm, CellPLM's head: an MLP of the cell's vector, trained with its
model for runs of CellPLM, and with the vector of the targets on any run as it is. The ceiling is one half of the true
cells. Splits: one_target_out; folds of targets; simulation, GEARS' with its strata; one_group_out, each value of
--groups from the others.

Prints the table, and leaves table.md, table.csv (each condition), table.json and table.png in OUT. What OUT has already
is not computed again: the same command goes on, and one with other runs adds them.
"""

import pathlib

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
HEADS = ("ridge", "gears", "cellplm")
OPTIONS = cli.options(
    "input reading",
    output="Folder of the table; made if it is not there.",
    column=(str, "auto", "obs column that says what was done to a cell; auto: condition, in GEARS' layout."),
    control=(list, [], "Its values for control cells; ctrl, if left out."),
    separator=(str, "+", "Between the targets of a cell with several."),
    targets=(list, [], "Only conditions of these targets; all, if left out."),
    groups=(str, None, "obs column, such as cell types: each condition in each group against its own control."),
    filter=(str, None, "Which cells count, such as: single_guide == 1"),
    split=(("one_target_out", "folds", "simulation", "one_group_out"), "one_target_out", "What is held out."),
    folds=(int, 5, "Folds of --split=folds.", 2),
    least=(int, 50, "Cells that a condition needs.", 2),
    depth=(float, 0.0, "Counts a cell is scaled to before log1p; 0 for the median of the cells.", 0.0),
    logged=(bool, False, "The values are log1p of scaled counts already, as X of GEARS' files is."),
    runs=(list, [], "Folders of trained runs."),
    vectors=(list, ["auto"], "Kinds of their gene vectors: table, graph, table+graph, context; auto: the first."),
    context=(str, None, "File of counts whose cells context vectors are means over; the input's control, if left out."),
    go=(str, None, "GO annotations for a control: GAF, a table of genes and terms, or an .npz matrix."),
    heads=(list, ["ridge"], "Heads on what runs say: ridge (seconds), gears, cellplm (minutes a fit)."),
    preset=(("gears", "repo", "paper"), "gears", "GEARS as its authors, as scLong's code, or as its paper has it."),
    hidden=(int, 0, "Width of GEARS' network; that of the preset (64, 1024, 200), if left out.", 0),
    epochs=(int, 0, "Epochs of a head at most; if left out, 20 of GEARS, 16 of scLong's presets, 30 of cellplm.", 0),
    decay=(float, 0.5, "Factor of GEARS' learning rate after an epoch; larger for a screen of few cells.", 0.0, 1.0),
    cells=(int, 0, "Cells of a condition that heads learn from, drawn at random; 0 for all.", 0),
    controls=(int, 1000, "Control cells, of each group, that heads look at.", 10),
    graph=(str, None, "GO graph for GEARS, a file of experiments.go_graph; made of --go, if left out."),
    save_heads=(
        bool,
        False,
        "Also fit GEARS on each run to all conditions: OUT/heads/RUN.safetensors for Run.perturb.",
    ),
    vectors_file=(str, None, "Gene vectors of a file, such as experiments.gene_embedding writes, as a control."),
    min_mapped=(float, 0.01, "Least share of genes that a run must know where its vectors are means over cells.", 0, 1),
    seeds=(int, 3, "Number of seeds: of twins, random vectors, halves, and of folds and simulation splits.", 1),
)


def main(_) -> None:
    cli.require("input", "output")
    cli.check_paths("runs", "gene_table")
    from experiments.analyses import perturbation_data, perturbation_table, predicted_by_cells, predicted_by_gears
    from experiments.analyses import predicted_perturbation as analysis
    from scfm_jax.api import gene_features

    for name in ("input", "go", "context", "graph", "vectors_file"):
        if (path := FLAGS[name].value) and not pathlib.Path(path).exists():
            raise FileNotFoundError(f"--{name}={path}: no such file or folder")
    if wrong := [kind for kind in FLAGS.vectors if kind not in ("auto", *gene_features.KINDS)]:
        raise ValueError(f"--vectors={wrong[0]}: must be of auto, {', '.join(gene_features.KINDS)}")
    if wrong := [head for head in FLAGS.heads if head not in HEADS]:
        raise ValueError(f"--heads={wrong[0]}: must be of {', '.join(HEADS)}")
    if (FLAGS.split == "one_group_out") != bool(FLAGS.groups):
        raise ValueError("--split=one_group_out and --groups=COLUMN go together: it says what is held out")
    same = ("input", "column", "separator", "groups", "filter", "split", "folds", "least", "depth", "logged", "go")
    reading = cli.reading()
    plan = perturbation_data.Plan(
        **{name: FLAGS[name].value for name in (*same, "context", "vectors_file")},
        **{name: tuple(FLAGS[name].value) for name in ("control", "targets")},
        gene_table=tuple(reading.pop("gene_table")),
        reading=reading,
    )
    out = pathlib.Path(FLAGS.output)
    data = perturbation_data.read(plan)
    perturbation_data.rounds(plan, data, 0)
    perturbation_data.prepare(plan, out)
    settings = predicted_by_gears.Settings(FLAGS.preset, FLAGS.hidden or None, FLAGS.epochs or None, FLAGS.decay)
    options = predicted_by_gears.Options(settings, FLAGS.cells, FLAGS.controls, FLAGS.graph)
    makers = {"gears": predicted_by_gears.methods, "cellplm": predicted_by_cells.methods}
    asked = [makers[head] for head in HEADS[1:] if head in FLAGS.heads]
    trained = [method for make in asked for method in make(plan, data, out, FLAGS.runs, options)]
    kinds = FLAGS.vectors if "ridge" in FLAGS.heads else None
    listed = analysis.methods(plan, data, out, FLAGS.runs, kinds, trained)
    rows = analysis.fill(plan, data, out, listed, FLAGS.seeds)
    about = data.titled(f"Perturbations of {pathlib.Path(FLAGS.input).name} predicted: {FLAGS.split.replace('_', ' ')}")
    print(perturbation_table.write(out, rows, {method.name: method.note for method in listed}, about))
    for path in predicted_by_gears.save_heads(plan, out, FLAGS.runs, options) if FLAGS.save_heads else ():
        print(f"{path}: for Run.perturb")


if __name__ == "__main__":
    cli.run(main, OPTIONS)
