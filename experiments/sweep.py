"""Train and score every point of a sweep, some at a time, and put the table and the plot beside the paper's numbers.

    python -m experiments.sweep --sweep=configs/sweep_sct_ablation.py --workdir=W [--parallel=2] [--dry_run]
        [--config.data.store=DIR --evaluate.input=x.h5ad ...] [--launcher=slurm]

`--config.KEY=VALUE` goes to the training of every point, `--evaluate.FLAG=VALUE` to its evaluation. Each point and seed
has a folder W/<what it changes>/seed=<n> with the run, logs and result.json, by which a finished one is known and left
alone: the same command goes on where a sweep was stopped, and training goes on from its checkpoint. A point that fails
is recorded with its reason and tried again next time; the others go on. SIGTERM stops the trainings, which save.

Exit status 0 if every point has a result or a signal stopped the sweep, 1 if a point has none, 2 for a mistake in the
command. Writes W/table.md, table.csv, table.json and plot.svg over the results there are.
"""

if __name__ == "__main__":  # before the imports that take long
    from scfm_jax.training import signals

    signals.exit_at_once()

import pathlib
import re
import shlex
import sys
from collections.abc import Sequence

from absl import flags

from experiments import cli
from experiments.sweeps import plan as sweep_plan
from experiments.sweeps import slurm
from experiments.sweeps.crew import Crew, check_same, result
from experiments.sweeps.plan import Plan, Point
from scfm_jax.training import signals

FLAGS = flags.FLAGS
OPTIONS = cli.options(
    sweep=(str, None, "Sweep file, and its variant after a colon."),
    workdir="Folder of the sweep.",
    parallel=(int, 1, "Points at a time.", 1),
    seeds=(list, [], "Training seeds; those of the sweep file, if left out."),
    dry_run=(bool, False, "Print the commands and run nothing."),
    launcher=(("local", "slurm"), "local", "Run here, or write a SLURM job array."),
    slurm=(list, [], "Options of the job array, such as time=2:00:00,gres=gpu:1."),
    point=(int, None, "Run this point alone, by its index; what an element of the job array does.", 0),
)

overrides: dict[str, list[str]] = {"config": [], "evaluate": []}
"""Arguments for the commands of the points, taken from the command line before absl reads it."""


def main(_) -> int:
    if not FLAGS.sweep or not FLAGS.workdir:
        raise ValueError("--sweep and --workdir say what to run and where to (see --helpshort)")
    workdir = pathlib.Path(FLAGS.workdir)
    if not all(seed.isdigit() for seed in FLAGS.seeds):
        raise ValueError(f"--seeds={','.join(FLAGS.seeds)}: numbers with commas between, such as 0,1,2")
    plan = sweep_plan.read(FLAGS.sweep, workdir, overrides, [int(seed) for seed in FLAGS.seeds])
    points = plan.points
    if FLAGS.point is not None:
        if FLAGS.point >= len(points):
            raise ValueError(f"--point={FLAGS.point}: the sweep has points 0 to {len(points) - 1}")
        points = points[FLAGS.point : FLAGS.point + 1]
    if FLAGS.dry_run:
        for point in points:
            print(f"# {point.index}: {point.axis}: {point.label}, seed {point.seed}")
            for arguments in (point.train, point.evaluate):
                print(shlex.join(sweep_plan.command(arguments)))
        return 0
    version = data_version(plan)
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"--workdir={workdir}: it is a file; name a folder")
    workdir.mkdir(parents=True, exist_ok=True)
    if FLAGS.launcher == "slurm":
        print(slurm.write(workdir, len(points), FLAGS.parallel, FLAGS.slurm, _same_command()))
        return 0
    for point in points:
        check_same(workdir, point, version)
    return _run(plan, points, workdir, version)


def _run(plan: Plan, points: Sequence[Point], workdir: pathlib.Path, version: str) -> int:
    """Run the points, report, and return the exit status."""
    todo = [point for point in points if not result(plan, workdir, point)]
    print(f"{len(points)} points, {len(points) - len(todo)} finished before", flush=True)
    crew = Crew(plan, workdir, version, FLAGS.parallel)
    stopped = crew.run(todo)
    if FLAGS.point is None:
        from experiments.sweeps import report

        if table := report.write(plan, workdir):
            print(table)
    if stopped:
        print(f"stopped\n{signals.RESUME}", file=sys.stderr, flush=True)
        return 0
    if crew.failed:
        name, reason = next(iter(crew.failed.items()))
        print(f"error: {len(crew.failed)} of {len(points)} points have no result: {name}: {reason}", file=sys.stderr)
    return 1 if crew.failed else 0


def data_version(plan: Plan) -> str:
    """Return the checksum of the training store; ValueError or OSError where data are not named or not there."""
    from data_pipeline.store.store import open_store

    if not plan.store:
        raise ValueError("--config.data.store is missing: give a folder made by experiments.ingest")
    source = plan.points[0].settings["evaluate"].get("input")
    if not source:
        raise ValueError("--evaluate.input is missing: give the held-out file that every point is scored on")
    if not pathlib.Path(source).exists():
        raise FileNotFoundError(f"--evaluate.input={source}: no such file")
    return str(open_store(plan.store).manifest["crc32c"])


def _same_command() -> list[str]:
    """Return this command as an element of a job array runs it, its index apart."""
    told = [f"--sweep={FLAGS.sweep}", f"--workdir={FLAGS.workdir}"]
    told += [f"--seeds={','.join(FLAGS.seeds)}"] if FLAGS.seeds else []
    told += [f"--{part}.{text}" for part, texts in overrides.items() for text in texts]
    return sweep_plan.command(["experiments.sweep", *told])


def take_overrides(argv: Sequence[str]) -> list[str]:
    """Move --config.KEY=VALUE and --evaluate.FLAG=VALUE from `argv` to `overrides`; return the rest."""
    rest = []
    for text in argv:
        match = re.fullmatch(r"--(config|evaluate)\.([\w.]+=.*)", text, re.DOTALL)
        overrides[match[1]].append(match[2]) if match else rest.append(text)
    return rest


if __name__ == "__main__":
    sys.argv = take_overrides(sys.argv)
    cli.run(main, OPTIONS)
