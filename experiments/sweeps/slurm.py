"""A SLURM job array: one element per point of a sweep, the same script again goes on where it was stopped.

The script is written without a cluster at hand and needs none to be read: options of the cluster (time, partition,
gres) come from the command line, or from `sbatch` itself.
"""

import pathlib
import re
import shlex
from collections.abc import Sequence

from data_pipeline.files import whole

SAVE_S = 120
"""SLURM's warning before the time limit: what a training has to save in."""


def write(workdir: pathlib.Path, points: int, parallel: int, options: Sequence[str], command: Sequence[str]) -> str:
    """Write workdir/array.sbatch and return the lines that submit it and make the table after it."""
    (workdir / "slurm").mkdir(parents=True, exist_ok=True)
    path = workdir / "array.sbatch"
    whole.write_file(path, script(workdir, points, parallel, options, command, pathlib.Path.cwd()).encode())
    return f"sbatch {shlex.quote(str(path))}\n# then, for the table:\n{shlex.join(command)}"


def script(
    workdir: pathlib.Path,
    points: int,
    parallel: int,
    options: Sequence[str],
    command: Sequence[str],
    folder: pathlib.Path,
) -> str:
    """Return the text of the job array.

    Args:
      points: elements, 0 to points - 1. parallel: at most so many at a time.
      options: of sbatch, such as "time=2:00:00"; they come after ours and so outrank them.
      command: of one element, its index apart. folder: to run it in.

    ValueError for an option that is not a name and a value.
    """
    for option in options:
        if not re.fullmatch(r"[a-z][a-z-]*(=[^\s]+)?", option):
            raise ValueError(f"--slurm={option}: options are written name=value, such as time=2:00:00")
    ours = [
        "job-name=sweep",
        f"array=0-{points - 1}%{parallel}",
        f"output={(folder / workdir / 'slurm').as_posix()}/%a.log",
        "open-mode=append",
        f"signal=B:TERM@{SAVE_S}",
    ]
    if any(re.search(r"\s", line) for line in ours):
        raise ValueError(f"--workdir={workdir}: SLURM takes no folder with a blank in its name")
    lines = ["#!/bin/bash", *(f"#SBATCH --{option}" for option in [*ours, *options])]
    lines += ["set -euo pipefail", f"cd {shlex.quote(str(folder))}"]
    lines += [f'exec {shlex.join(command)} --point="$SLURM_ARRAY_TASK_ID"']
    return "\n".join(lines) + "\n"
