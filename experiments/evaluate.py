"""Score a trained model on a labelled file, or many runs on many files with a whole suite of tasks.

    python -m experiments.evaluate --workdir=W --input=x.h5ad [--label=cell_type] [--batch=batch] [--seeds=3]
    python -m experiments.evaluate --suite=zero_shot --runs=W1,W2 --data=x.h5ad,y.h5ad --output=DIR [--reference=z.h5ad]

The first writes W/embedding.h5ad and W/scores.json, which `experiments.report` shows, and prints the table of scores
beside PCA-50 and random twins. The second fills DIR with what `experiments.suite` describes; started again, with more
runs, files or seeds, or after it was killed, it computes what is not there yet. A run is a workdir, a weights file, or
"model:weights", "model:weights:config" or "model:weights:config:medians" of published weights. The exit status is 0
also where cells of the table have failed: they are in the table with their reasons.
"""

import importlib
import pathlib
import time
from typing import Any

from absl import flags

from experiments import cli

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    "cell_layer sample_key scaler reading",
    workdir="Folder of a training run.",
    input="File of raw counts with labels in obs, not one of the training studies.",
    suite=(str, None, "Tasks to score by, configs/suite_NAME.py, or NAME:variant."),
    runs=(list, [], "Runs that a suite compares, with commas between."),
    data=(list, [], "Files that a suite compares them on."),
    reference=(list, [], "Single cells that a suite takes genes from which are hidden everywhere."),
    truth=(list, [], "Measured networks for a suite's networks, FILE or NAME=FILE: columns TF,target, or Gene1,Gene2."),
    output="Folder of a suite's results.",
    cells=(int, None, "Cells that a seed of a suite draws.", 10),
    tasks=(list, [], "Tasks of the suite; by default all."),
    ruler=(list, [], "Rulers that a suite imputes by: visible, cell, or both; if left out, as the suite says."),
    label=(str, "cell_type", "obs column to score by."),
    batch=(str, "batch", "obs column of batches; used if it is there."),
    seeds=(int, None, "Number of seeds; 3, or what the suite says.", 1),
)


def main(_) -> None:
    if FLAGS.suite:
        run_suite()
        return
    if not FLAGS.workdir or not FLAGS.input:
        raise ValueError("--workdir and --input say which model is scored on what (see --helpshort)")
    from experiments.analyses import embedding
    from scfm_jax import api

    cli.check_writable(FLAGS.workdir, f"--workdir={FLAGS.workdir}") if pathlib.Path(FLAGS.workdir).is_dir() else None
    options = {name: FLAGS[name].value for name in ("label", "batch")} | cli.reading()
    options |= {"seeds": range(FLAGS.seeds or 3), "sample_key": FLAGS.sample_key or None}
    options["cell_layer"] = FLAGS.cell_layer
    run = api.load(FLAGS.workdir, scaler=FLAGS.scaler)
    scores = embedding.evaluate(run, FLAGS.input, pathlib.Path(FLAGS.workdir), **options)
    print(embedding.table(scores))


def run_suite() -> None:
    """Fill the table of a suite."""
    for name in ("runs", "data", "output"):
        if not FLAGS[name].value:
            raise ValueError(f"--{name} is missing: a suite compares --runs on --data and writes --output")
    if alone := [name for name in ("min_mapped", "sample_key") if FLAGS[name].present]:
        raise ValueError(f"--{alone[0]}: is not for suites, which compare on the genes and cells that all runs share")
    import jax

    from data_pipeline.files import h5ad
    from experiments.analyses import networks_data
    from experiments.suite import entrants as suite_data
    from experiments.suite import fill
    from scfm_jax.tasks.imputation import imputation

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(FLAGS.output) / "compiled"))
    config = suite_config(FLAGS.suite)
    unknown = [task for task in FLAGS.tasks if task not in config.tasks]
    if unknown:
        raise ValueError(f"--tasks={unknown[0]}: the suite {FLAGS.suite} has {', '.join(config.order)}")
    cli.check_paths("data", "reference", "gene_table")
    options = {"label": FLAGS.label, "batch": FLAGS.batch, "tables": FLAGS.gene_table, **h5ad.place(cli.reading())}
    studies = [suite_data.Study(path, **options) for path in FLAGS.data]
    reference = [suite_data.Study(path, **options) for path in FLAGS.reference]
    for flag, default in (("label", "cell_type"), ("batch", "batch")):
        name = FLAGS[flag].value
        if name != default and not any(name in study.counts.obs for study in studies):
            columns = ", ".join(map(str, studies[0].counts.obs.columns)) or "none"
            raise ValueError(f"--{flag}={name}: no file of --data has this obs column; {studies[0].name} has {columns}")
    same = [name for name in (study.name for study in studies) if [s.name for s in studies].count(name) > 1]
    if same:
        raise ValueError(f"--data: two files are called {same[0]}; the table would not tell them apart")
    named = zip(FLAGS.runs, suite_data.names(FLAGS.runs), strict=True)
    entrants = [suite_data.enter(*pair, FLAGS.cell_layer) for pair in named]
    tasks = {name: config.tasks[name].to_dict() for name in config.order if name in (FLAGS.tasks or config.order)}
    if FLAGS.ruler:
        ruled = [name for name in tasks if "ruler" in tasks[name]]
        if not ruled:
            raise ValueError(f"--ruler={','.join(FLAGS.ruler)}: none of these tasks puts expression into bins")
        imputation.check_rulers(FLAGS.ruler)
        tasks |= {name: tasks[name] | {"ruler": tuple(FLAGS.ruler)} for name in ruled}
    table = fill.Suite(
        FLAGS.suite,
        tasks,
        entrants,
        studies,
        pathlib.Path(FLAGS.output),
        reference=reference,
        truth=[networks_data.named(text) for text in FLAGS.truth],
        cells=FLAGS.cells or config.cells,
        seeds=FLAGS.seeds or config.seeds,
    )
    wall, cpu = time.perf_counter(), time.process_time()
    counts = table.run()
    words = ", ".join(f"{number} {status}" for status, number in counts.items())
    spent = f"{time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU"
    print(f"{FLAGS.output}: of {len(table.plan)} cells {words}; {spent}")


def suite_config(text: str) -> Any:
    """Return the config of a suite by its name, or "name:variant"."""
    name, _, variant = text.partition(":")
    path = pathlib.Path(__file__).parents[1] / "configs" / f"suite_{name}.py"
    if not name.isidentifier() or not path.is_file():
        suites = sorted(file.stem.removeprefix("suite_") for file in path.parent.glob("suite_*.py"))
        raise ValueError(f"--suite={text}: no such suite; there are {', '.join(suites)}")
    return importlib.import_module(f"configs.suite_{name}").get_config(variant)


if __name__ == "__main__":
    cli.run(main, OPTIONS)
