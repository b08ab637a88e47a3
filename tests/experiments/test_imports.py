"""What a command does not need is not imported: it costs seconds of every start, on every machine of a training run."""

import os
import subprocess
import sys

import pytest

from tests.harness import ROOT

HEAVY = ("anndata", "scanpy", "igraph", "graspologic_native", "seaborn", "matplotlib", "sklearn", "dask", "distributed")
LOOK = """
import runpy, sys
sys.argv = [f"experiments.{sys.argv[1]}", "--help"]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit:
    print("imported:", *(name for name in %r if name in sys.modules))
"""


@pytest.mark.parametrize("command", ["train", "embed", "ingest"])
def test_a_command_does_not_import_what_it_may_not_need(command):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", LOOK % (HEAVY,), command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "--input" in done.stdout or "--workdir" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["imported:"]
