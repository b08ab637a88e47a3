"""scLong through the training command: stopped, killed and resumed across redraws of the features, it ends the same."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import synthetic
from data_pipeline.genes import graph_file
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from scfm_jax.saving import checkpoint
from scfm_jax.training import signals
from tests.harness import ROOT, tiny

STEPS, REDRAW, MICROBATCHES = 60, 4, 2
OPTIONS = {
    "model.top_seq_len": 16,
    "model.base_dim": 16,
    "model.large_dim": 16,
    "model.large_depth": 1,
    "model.mini_key_size": 8,
    "model.dec_key_size": 8,
    "model.graph": True,
    "model.redraw": REDRAW,
    "data.batch": 4,
    "data.buckets": "(60,)",
    "train.steps": STEPS,
    "train.microbatches": MICROBATCHES,
    "train.log_every": 1,
    "train.eval_every": 20,
    "train.checkpoint_every": 7,
    "train.tensorboard": False,
}
"""Features live for five forwards, two of a step: they are drawn in both halves of steps, and between checkpoints."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """A folder with a store of 60 genes, and a graph in which each gene is tied to itself and the two after it."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.make(80, 60, depth=100.0).write_h5ad(folder / "study.h5ad")
    assert not ingest(file_sources([str(folder / "study.h5ad")]), folder / "store", workers=0, say=lambda text: None)
    target = np.repeat(np.arange(60), 3)
    source, weight = (target + np.tile(np.arange(3), 60)) % 60, np.tile([1.0, 0.5, 0.2], 60)
    genes = open_store(folder / "store").genes
    graph_file.write(folder / "graph.npz", graph_file.GeneGraph.of(genes, source, target, weight))
    return folder


def command(data: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen:
    """Start `experiments.train`."""
    values = {**OPTIONS, "data.store": data / "store", "data.graph": data / "graph.npz"}
    options = [f"--config.{key}={value}" for key, value in values.items()]
    start = [sys.executable, "-m", "experiments.train", "--config=configs/pretrain_sclong.py:tiny"]
    root = ROOT
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*start, f"--workdir={workdir}", *options], cwd=root, env=environment, **piped)


def end_at(process: subprocess.Popen, step: int, number: int) -> str:
    """Send a signal once a step is logged; return what the process said, from then on."""
    while (line := process.stdout.readline()) and f"step {step}/" not in line:
        pass
    process.send_signal(number)
    return process.communicate(timeout=300)[0]


@pytest.mark.slow
def test_stopped_and_killed_and_resumed_across_redraws_equals_uninterrupted(data, tmp_path):
    tiny.finish(command(data, tmp_path / "whole"))
    stopped = end_at(command(data, tmp_path / "parts"), 6, signal.SIGTERM)
    assert stopped.splitlines()[-1] == signals.RESUME
    first = checkpoint.latest_valid(tmp_path / "parts/checkpoints")
    before = tiny.arrays(tmp_path / "parts", first)
    end_at(command(data, tmp_path / "parts"), 25, signal.SIGKILL)
    second = checkpoint.latest_valid(tmp_path / "parts/checkpoints")
    assert 6 <= first < second < STEPS
    assert f"going on from step {second}" in tiny.finish(command(data, tmp_path / "parts"))
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts", STEPS)
    after = tiny.arrays(tmp_path / "parts", STEPS)
    drawn = [name for name in after if name.endswith("projection")]
    assert len(drawn) == 3 and all((before[name] != after[name]).any() for name in drawn)
    counters = [int(after[name]) for name in after if name.endswith("calls")]
    assert counters == [MICROBATCHES * STEPS % (REDRAW + 1)] * 3
