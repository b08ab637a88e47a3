"""Resuming: a run that was stopped, or killed, ends bit by bit as one that was not.

SCFM_KILLS=20 python -m pytest tests/test_resume.py -k killed   kills twenty times instead of four.
"""

import os
import random
import signal
import time

import pytest

from scfm_jax.saving import checkpoint
from tests.harness import tiny

STEPS = 17
RUN = {
    "steps": STEPS,
    "log_every": 3,
    "eval_every": 6,
    "checkpoint_every": 5,
    "floors": 60,
    "dropout": 0.2,
    "optimizer": {"learning_rate": 1e-2, "decay_steps": STEPS, "ema": 0.9, "weight_decay": 0.01},
}
"""A stop at 4 is inside a window of the log, and there are epoch borders (tiny.EPOCH) at 7 and 14 after it."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of the run that nobody interrupts, compiled afresh."""
    workdir = tmp_path_factory.mktemp("whole")
    tiny.finish(tiny.start(workdir, RUN, JAX_ENABLE_COMPILATION_CACHE="false"))
    return workdir


@pytest.mark.slow
def test_stopped_and_resumed_in_new_processes_equals_uninterrupted(whole, tmp_path):
    for stop in (4, STEPS):
        said = tiny.finish(tiny.start(tmp_path, RUN | {"steps": stop}, JAX_ENABLE_COMPILATION_CACHE="false"))
        assert ("going on from step 4" in said) == (stop > 4)
    tiny.assert_same_run(whole, tmp_path, STEPS)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_log_cut_back(whole, tmp_path):
    tiny.finish(tiny.start(tmp_path, RUN | {"steps": 13, "keep": 3}))
    newest = tmp_path / "checkpoints/13"
    data = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    said = tiny.finish(tiny.start(tmp_path, RUN))
    assert "damaged checkpoint passed over: step 13" in said and "going on from step 12" in said  # the best so far
    tiny.assert_same_run(whole, tmp_path, STEPS)


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(whole, tmp_path):
    wanted, rng, found = int(os.environ.get("SCFM_KILLS", "4")), random.Random(0), []
    options, workdir = RUN | {"checkpoint_every": 1, "slow": 0.1}, tmp_path / "0"
    while len(found) < wanted:
        process, moment = tiny.start(workdir, options), rng.choice(["building", "step ", "step ", "step "])
        while (line := process.stdout.readline()) and not line.startswith(moment):
            pass
        time.sleep(rng.uniform(0, 5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:  # it was faster: begin another run
            tiny.assert_same_run(whole, workdir, STEPS)
            workdir = tmp_path / str(len(found))
        else:
            found.append(checkpoint.latest_valid(workdir / "checkpoints"))
    tiny.finish(tiny.start(workdir, options))
    print(f"newest valid step after each kill: {found}")
    assert not list((workdir / "checkpoints").glob("*.partial"))
    tiny.assert_same_run(whole, workdir, STEPS)
