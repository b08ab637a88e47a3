"""Launching: scripts start what they say, two processes train as one, documented commands and keys exist."""

import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import synthetic
from data_pipeline.store.ingest import file_sources, ingest
from experiments.sweeps import plan
from experiments.training import settings
from tests.harness import commands, documented

ROOT = commands.ROOT
PAGES = sorted((ROOT / "docs").glob("*.md"))
PLACES = ("gke", "many_gpus", "one_gpu", "slurm", "tpu_pods")
"""Pages about places to launch in."""
SCRIPTS = sorted((ROOT / "experiments/launch").glob("*.sh"))
CONFIG = "--config=configs/pretrain_cellplm.py:tiny"
OPTIONS = {
    "data.bag": 8,
    "data.batch": 2,
    "model.enc_hid": 16,
    "model.enc_head": 2,
    "model.enc_layers": 1,
    "model.latent_dim": 8,
    "model.dec_hid": 16,
    "optim.schedule": "constant",
    "train.log_every": 1,
    "train.eval_every": 0,
    "train.tensorboard": False,
}
QUICK = "--xla_backend_optimization_level=0"  # to compile
SRUN = """#!/usr/bin/env bash
shift
for i in 0 1; do
  SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost "$@" &
  tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || status=1; done
exit "${status:-0}"
"""
"""A stand-in for srun: two tasks on this machine under the variables that Slurm sets."""


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
    """Write a program and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def start(argv: list, folder: pathlib.Path = ROOT, **environment: str) -> subprocess.Popen:
    """Start a program with further variables in its environment."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        argv, cwd=folder, env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK, **environment}, **piped
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for the end of a program and return what it said; AssertionError where its exit status is not 0."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def metrics(workdir: pathlib.Path) -> list[dict]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_tasks_of_slurm_then_two_processes_by_hand_train_as_one(tmp_path):
    synthetic.make(60, 50, seed=0, depth=80.0).write_h5ad(tmp_path / "study.h5ad")
    assert not ingest(file_sources([str(tmp_path / "study.h5ad")]), tmp_path / "s", workers=0, say=lambda text: None)
    options = [CONFIG, *(f"--config.{k}={v}" for k, v in {**OPTIONS, "data.store": tmp_path / "s"}.items())]
    train = [sys.executable, "-m", "experiments.train"]
    executable(tmp_path / "bin" / "srun", SRUN)
    with socket.socket() as free:
        while True:
            port = random.randrange(61440, 65536)  # JAX adds 61440 to the job's number modulo 4096
            if free.connect_ex(("localhost", port)):
                break
    slurm = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable}
    slurm |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": str(port - 61440)}
    half = [*options, f"--workdir={tmp_path / 'two'}", "--config.train.steps=3"]
    said = finish(start(["bash", str(ROOT / "experiments/launch/slurm.sh"), *half], tmp_path, **slurm))
    assert len(metrics(tmp_path / "two")) == 3, said

    whole = [*options, "--config.train.steps=5"]
    joined = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    argv = [*train, *whole, f"--workdir={tmp_path / 'two'}", "--distributed"]
    pair = [start(argv, **joined, JAX_PROCESS_ID=str(i)) for i in range(2)]
    said = [finish(process) for process in pair]
    assert "going on from step 3" in said[0]
    finish(start([*train, *whole, f"--workdir={tmp_path / 'one'}"]))
    for both, one in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        assert both.keys() == one.keys()
        np.testing.assert_allclose(list(both.values()), list(one.values()), rtol=1e-4)


def test_every_worker_of_a_pod_is_told_the_command_as_it_was_given(tmp_path):
    executable(tmp_path / "bin" / "gcloud", f'#!/usr/bin/env bash\nprintf "%s\\0" "$@" > {tmp_path}/told\n')
    given = ["--config=a.py:b", "--config.data.filter=patient not in ('G', 'H')", "--workdir=/mnt/x y"]
    script = str(ROOT / "experiments/launch/tpu_pod.sh")
    folder = tmp_path / "my project"
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    finish(start(["bash", script, *given], TPU="pod", ZONE="there", FOLDER=str(folder), **path))
    *told, command = (tmp_path / "told").read_text().split("\0")[:-1]
    assert told == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=there", "--worker=all"]
    executable(folder / ".venv/bin/python", '#!/usr/bin/env bash\npwd; printf "%s\\n" "$@"\n')
    ran = finish(start(["bash", "-c", command.removeprefix("--command=")])).splitlines()
    assert ran == [str(folder), "-u", "-m", "experiments.train", "--distributed", *given]
    missing = start(["bash", script], TPU="pod", **path)
    assert "ZONE" in missing.communicate()[0] and missing.returncode != 0


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash(path):
    finish(start(["bash", "-n", str(path)]))
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and os.access(path, os.X_OK)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_documented_commands_exist(path):
    text = path.read_text().replace("<name>", "cellplm")
    assert path.stem not in PLACES or ("Untested:" in text and "Tested:" in text)
    blocks = re.findall(r"```(?:bash|yaml)\n(.*?)```", text, re.DOTALL)
    lines = "\n".join([*blocks, *re.findall(r"`(python -m [^`]+)`", text)])
    for name in re.findall(r"experiments/\S+\.sh", lines):
        assert (ROOT / name).is_file()
    found = documented.launched(lines)
    for command, arguments in found:
        documented.check(command, arguments)
    for script in SCRIPTS:
        if path.stem in PLACES and script.name in text:
            assert (ROOT / "docs" / path.name).name in script.read_text()
    assert found or path.stem not in PLACES or path.stem == "gke"
    for link in re.findall(r"\]\((\w+\.md)\)", text):
        assert (ROOT / "docs" / link).is_file()


@pytest.mark.parametrize("key", ["train.microbatches", "data.threads", "data.workers", "data.batch", "data.buckets"])
def test_keys_that_the_pages_advise_are_there(key):
    assert any(f"config.{key}" in path.read_text() for path in PAGES)
    assert key in settings.flatten(plan.parse("docs", "configs/pretrain_sct.py:tiny", []).to_dict())
