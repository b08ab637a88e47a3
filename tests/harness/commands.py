"""Run a command of `experiments` as its user would, without paying for its imports each time.

A fork server that has imported the heavy libraries (no command, no JAX backend) forks one process per command:
flags, exit status and output are the real ones.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import runpy
import sys

from tests.harness import ROOT

HEAVY = [
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "anndata",
    "scanpy",
    "grain",
    "tensorstore",
    "ml_collections",
]


@dataclasses.dataclass
class Ended:
    """How a command ended: its exit status and what it printed."""

    code: int
    out: str
    err: str


def run(
    command: str, *args: object, folder: pathlib.Path, timeout: float = 120, limit_bytes: int | None = None
) -> Ended:
    """Run `python -m experiments.<command> <args>`, keeping its output under `folder`.

    `limit_bytes`: no file may grow beyond this, as on a full disk.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    argv = [command, *map(str, args)]
    process = context.Process(target=_child, args=(argv, str(out), str(err), limit_bytes))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    return Ended(process.exitcode, out.read_text(), err.read_text())


def _child(argv: list[str], out: str, err: str, limit_bytes: int | None) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if limit_bytes is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    os.chdir(ROOT)
    sys.argv = [f"experiments/{argv[0]}.py", *argv[1:]]
    runpy.run_module(f"experiments.{argv[0]}", run_name="__main__", alter_sys=True)
