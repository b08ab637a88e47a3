"""SIGTERM and SIGINT at any moment: status 0, a state that is saved, and the same command ends as if nothing was."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from scfm_jax.training import signals
from tests.harness import tiny

STEPS = 12
RUN = {"steps": STEPS, "log_every": 5, "eval_every": 6, "optimizer": {"learning_rate": 1e-2}, "dropout": 0.2}
MOMENTS = {
    "building": ({"stall": "build"}, "stalling in build", signal.SIGTERM, None),
    "first compilation": ({"stall": "compile"}, "stalling in compile", signal.SIGINT, 0),
    "later compilation": ({"stall": "compile", "stall_at": 1}, "stalling in compile", signal.SIGTERM, 2),
    "waiting for data": ({"stall": "train", "stall_at": 8}, "stalling in train", signal.SIGINT, 8),
    "validation": ({"stall": "validation", "stall_at": 3}, "stalling in val", signal.SIGTERM, 6),
    "training": ({"slow": 0.2}, "step 5/", signal.SIGINT, range(5, 9)),
}
"""moment: (how to make the run slow there, what it says there, signal, step that is saved)"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of the run that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    tiny.finish(tiny.start(workdir, RUN))
    return workdir


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read what the process says up to a line with `text`."""
    said = ""
    while line := process.stdout.readline():
        said += line
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said: {said}")


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_saves_and_the_same_command_resumes(moment, whole, tmp_path):
    slow, text, number, saved = MOMENTS[moment]
    process = tiny.start(tmp_path, RUN | slow)
    wait_for(process, text)
    process.send_signal(number)
    start = time.monotonic()
    last = tiny.finish(process).splitlines()[-2:]
    assert time.monotonic() - start < 30  # it sleeps for a minute
    assert last[1] == signals.RESUME
    if saved is None:
        assert last[0] == "nothing to save"
    else:
        step = int(last[0].split()[1])
        assert "is saved" in last[0] and (step in saved if isinstance(saved, range) else step == saved)
    said = tiny.finish(tiny.start(tmp_path, RUN))
    assert saved is None or f"going on from step {step}" in said
    tiny.assert_same_run(whole, tmp_path, STEPS)


def test_a_signal_before_there_is_work_ends_with_status_0():
    code = "import time; from scfm_jax.training import signals; signals.exit_at_once(); print('x', flush=True)"
    code += "; time.sleep(60)"
    for number in signals.SIGNALS:
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_for(process, "x")
        process.send_signal(number)
        assert tiny.finish(process).splitlines()[-1] == signals.RESUME


def test_more_signals_do_not_disturb_the_saving():
    code = """
import time
from scfm_jax.training import signals

def work(lock):
    def save():
        print("saving", flush=True)
        time.sleep(1)
        return "saved"
    lock.save = save
    with lock.held(), lock.released():
        print("away", flush=True)
        time.sleep(60)

signals.supervise(work)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(process, "away")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "saving")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert tiny.finish(process).splitlines() == ["saved", signals.RESUME]


def test_the_lock_is_taken_only_while_the_work_has_released_it():
    lock, order = signals.StateLock(), []

    def work():
        with lock.held():
            seated.set()
            time.sleep(0.2)
            order.append("worked")
            with pytest.raises(signals.Stopped), lock.released():
                taken.wait(5)
        order.append("left")

    seated, taken = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    seated.wait(5)
    lock.take()
    order.append("taken")
    taken.set()
    thread.join(5)
    assert order == ["worked", "taken", "left"]


def test_errors_of_the_work_are_raised_by_the_supervisor_and_handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.SIGNALS]

    def work(lock):
        raise ValueError("no such store")

    with pytest.raises(ValueError, match="no such store"):
        signals.supervise(work)
    signals.supervise(lambda lock: None)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
