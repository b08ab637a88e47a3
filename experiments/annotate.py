"""Annotate the cells of one study by models that were fine-tuned on the types of others, beside baselines.

    python -m experiments.annotate --train=a.h5ad,b.h5ad --test=c.h5ad --runs=RUN,RUN --output=OUT \
        --names="CD8 T=T,CD14+ Mono=Monocyte" [--methods=frozen,lora,full,twin] [--seeds=3]
    python -m experiments.annotate --train=a.h5ad --split=donor --held_out=D3,D4 --runs=RUN --output=OUT

Both need true labels: how well a run does is what is asked. `experiments.predict` names the types of unlabelled cells.

Prints the table, and leaves annotation.json, annotation.csv, annotation.md and a confusion matrix of each row (PNG) in
OUT. What OUT has already is not computed again: the same command goes on, and one with other runs adds them. A name
that has a comma stands in double quotes: --names='"CD4-positive, alpha-beta T cell=T",B=B cell'
"""

import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "cell_layer scaler reading",
    train=(list, [], "Files of labelled cells, raw counts."),
    test=(str, None, "File of the cells to annotate, of another study, with their true types."),
    split=(str, None, "Instead of --test: obs column, such as donor_id, whose values are held out."),
    held_out=(list, [], "Values of --split to annotate; the cells of all others are trained on."),
    label=(str, "cell_type", "obs column of the types of --train."),
    test_label=(str, None, "obs column of the types of --test; --label, if left out."),
    names=(list, [], 'Types under one name: "CD8 T=T"; "Doublet=-" leaves cells out.'),
    runs=(list, [], "Folders of trained runs."),
    methods=(list, ["frozen", "lora", "full"], "Of frozen, lora, prefix, full, twin (frozen, random weights)."),
    seeds=(int, 3, "Number of seeds of trainings and baselines.", 1),
    steps=(int, 300, "Updates of a training.", 1),
    batch_cells=(int, 0, "Cells of an update, the same for all runs; 0 for as many as each was trained with.", 0),
    test_cells=(int, 0, "Annotate about so many cells, of each type alike; 0 for all.", 0),
    test_layer=(str, None, 'The same of --test, "" for none; as for --train, if left out.'),
    test_raw=(bool, None, "The same of --test; as for --train, if left out."),
    min_mapped=(float, 0.01, "Least share of genes that must be the model's.", 0, 1),
    output="Folder of the table; made if it is not there.",
)


def main(_) -> None:
    if not FLAGS.train or not FLAGS.output or bool(FLAGS.test) == bool(FLAGS.split):
        raise ValueError("--train, --output, and one of --test and --split say what is annotated (see --helpshort)")
    if FLAGS.split and not FLAGS.held_out:
        raise ValueError(f"--split={FLAGS.split}: --held_out says which of its values are annotated")
    cli.check_paths("train", "gene_table")
    import jax

    from experiments.analyses import annotation, annotation_table
    from scfm_jax import api, pretrained
    from scfm_jax.tasks.cells.annotation_baselines import BASELINES
    from scfm_jax.training import pace

    if wrong := [method for method in FLAGS.methods if method not in annotation.METHODS]:
        raise ValueError(f"--methods={wrong[0]}: must be of {', '.join(annotation.METHODS)}")
    if FLAGS.test_label and not FLAGS.test:
        raise ValueError(f"--test_label={FLAGS.test_label}: it is a column of --test, which is not given")
    plan = _plan(annotation.Plan)
    if gone := [source for source in FLAGS.runs if not pretrained.place(source).exists()]:
        raise FileNotFoundError(f"--runs={gone[0]}: no such folder or file; give workdirs of training runs")
    for source in FLAGS.runs if FLAGS.cell_layer else ():
        api.load(source).with_cell_layer(FLAGS.cell_layer)
    out = pathlib.Path(FLAGS.output)
    out.mkdir(parents=True, exist_ok=True)
    if not jax.config.jax_compilation_cache_dir:  # seeds compile once
        jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    classes = annotation.prepare(plan, out)
    asked = [("", name) for name in BASELINES]
    asked += [(source, method) for source in FLAGS.runs for method in FLAGS.methods]
    rows = [(source, method, seed) for seed in range(FLAGS.seeds) for source, method in asked]
    for source, method, seed in pace.counted(rows, "annotated by method and seed"):
        if source:
            annotation.tune(plan, out, source, method, seed)
        else:
            annotation.baseline(plan, out, method, seed, classes)
    print(annotation_table.write(out))


def _plan(make: Callable[..., Any]) -> Any:
    """Return what `annotation.Plan` makes of the flags."""
    same = ("test", "label", "test_cells", "steps", "min_mapped", "test_layer", "test_raw")
    same += ("cell_layer", "batch_cells", "scaler")
    reading = {name: value for name, value in cli.reading().items() if value and name != "min_mapped"}
    return make(
        train=tuple(FLAGS.train),
        split=(FLAGS.split, tuple(FLAGS.held_out)) if FLAGS.split else None,
        test_label=FLAGS.test_label or FLAGS.label,
        names=dict(_pair(text) for text in FLAGS.names),
        reading=reading,
        **{name: FLAGS[name].value for name in same},
    )


def _pair(text: str) -> tuple[str, str]:
    before, sign, after = text.rpartition("=")
    if not sign or not before or not after:
        quote = "a name that has a comma stands in double quotes: --names='\"CD4-positive, alpha-beta T cell=T\"'"
        raise ValueError(f"--names: {text!r} is not of the form old=new; {quote}")
    return before, after


if __name__ == "__main__":
    cli.run(main, OPTIONS)
