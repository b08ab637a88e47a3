"""Two real processes on one machine, joined by jax.distributed: they train, save and stop as one."""

import signal
import socket

import numpy as np
import pytest

from scfm_jax.saving import checkpoint, sealed
from scfm_jax.training import signals
from tests.harness import tiny

STEPS = 8
RUN = {"steps": STEPS, "log_every": 2, "eval_every": 4, "optimizer": {"learning_rate": 1e-2}, "dropout": 0.2}
RUN |= {"floors": 60}
FSDP = {"mesh": {"data": 1, "fsdp": 2, "min_size": 0}}


def start_two(workdir, options):
    """Start two processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [tiny.start(workdir, options, **joined, JAX_PROCESS_ID=str(i)) for i in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The workdir of a run of two processes, the parameters split over them."""
    workdir = tmp_path_factory.mktemp("two")
    for process in start_two(workdir, RUN | FSDP):
        tiny.finish(process)
    return workdir


@pytest.mark.slow
def test_two_processes_train_and_save_what_one_does(two, tmp_path):
    tiny.finish(tiny.start(tmp_path, RUN))
    one, both = tiny.arrays(tmp_path, STEPS), tiny.arrays(two, STEPS)
    assert one.keys() == both.keys()
    for name in one:
        np.testing.assert_allclose(both[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for mine, theirs in zip(*((w / "metrics.jsonl").read_text().splitlines() for w in (two, tmp_path)), strict=True):
        (mine, sealed_mine), (theirs, sealed_theirs) = sealed.loads(mine), sealed.loads(theirs)
        assert sealed_mine and sealed_theirs
        assert mine.keys() == theirs.keys()
        np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(two, tmp_path):
    processes = start_two(tmp_path, RUN | FSDP | {"slow": 0.3})
    while "step 2/" not in processes[0].stdout.readline():
        pass
    processes[1].send_signal(signal.SIGTERM)
    last = [tiny.finish(process).splitlines()[-2:] for process in processes]
    assert last[0] == last[1] and last[0][1] == signals.RESUME
    step = int(last[0][0].split()[1])
    assert 2 < step < STEPS and checkpoint.latest_valid(tmp_path / "checkpoints") == step
    said = [tiny.finish(process) for process in start_two(tmp_path, RUN | FSDP)]
    assert f"going on from step {step}" in said[0]
    tiny.assert_same_run(two, tmp_path, STEPS)
