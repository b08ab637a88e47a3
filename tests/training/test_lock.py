"""One training for one workdir: a second one is refused, a dead one's place is free."""

import os
import subprocess
import sys
import threading

import pytest

from scfm_jax.saving.lock import alone
from tests.harness import ROOT, tiny

HOLDER = """
import sys, time
from scfm_jax.saving.lock import alone
with alone(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def in_thread(work):
    """Run `work` in a thread and return what it raised."""
    raised = []

    def run():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def test_the_holder_may_enter_again_and_others_may_not(tmp_path):
    def enter():
        with alone(tmp_path):
            pass

    with alone(tmp_path), alone(f"{tmp_path}/."):
        (refused,) = in_thread(enter)
        assert isinstance(refused, ValueError) and f"process {os.getpid()} on" in str(refused)
        assert str(tmp_path) in str(refused) and "another workdir" in str(refused)
    assert in_thread(enter) == []


def test_a_second_training_is_refused_and_changes_nothing(tmp_path):
    tiny.fit(tmp_path, steps=2, log_every=1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with alone(tmp_path):
        (refused,) = in_thread(lambda: tiny.fit(tmp_path, steps=4, log_every=1))
    assert "another training is in it" in str(refused)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} on"), alone(tmp_path):
            pass
        holder.kill()
    with alone(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_what_a_thread_left_behind_that_was_told_to_stop_is_taken_over(tmp_path):
    def stopped():
        with alone(tmp_path, kept_after=InterruptedError):
            raise InterruptedError

    assert len(in_thread(stopped)) == 1
    with alone(tmp_path):
        pass
