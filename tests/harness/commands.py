"""Run a command of `experiments` as its user would, or a function, without paying for imports each time.

A fork server that has imported the libraries and all commands (no JAX backend is up, no flag is defined) forks one
process per command: flags, exit status and output are the real ones.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

from tests.harness import ROOT

WARM = [
    "jax",
    "flax.linen",
    "optax",
    "orbax.checkpoint",
    "anndata",
    "scanpy",
    "grain",
    "tensorstore",
    "ml_collections",
    "pytest",
    "data_pipeline.files.census",
    "data_pipeline.store.ingest",
    "scfm_jax.api",
    *(f"experiments.{path.stem}" for path in sorted((ROOT / "experiments").glob("[!_]*.py"))),
]


@dataclasses.dataclass
class Ended:
    """How a command ended: its exit status and what it printed."""

    code: int
    out: str
    err: str


def run(
    command: str, *args: object, folder: pathlib.Path, timeout: float = 600, limit_bytes: int | None = None
) -> Ended:
    """Run `python -m experiments.<command> <args>`, keeping its output under `folder`.

    `limit_bytes`: no file may grow beyond this, as on a full disk.
    """
    return call(_command, [command, *map(str, args)], limit_bytes, folder=folder, timeout=timeout)


def call(function: Callable[..., Any], *args: Any, folder: pathlib.Path, timeout: float = 600) -> Ended:
    """Call a function of a module in a process of its own, keeping its output under `folder`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    process = context.Process(target=_child, args=(str(out), str(err), function, args))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    return Ended(process.exitcode, out.read_text(), err.read_text())


def _child(out: str, err: str, function: Callable[..., Any], args: tuple) -> None:
    for number, path in ((1, out), (2, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(ROOT)
    function(*args)


def _command(argv: list[str], limit_bytes: int | None) -> None:
    if limit_bytes is not None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    name = f"experiments.{argv[0]}"
    sys.argv = [f"experiments/{argv[0]}.py", *argv[1:]]
    sys.modules.pop(name, None)  # runpy warns of a module that is imported already
    runpy.run_module(name, run_name="__main__", alter_sys=True)
