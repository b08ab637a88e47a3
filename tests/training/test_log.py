"""The log: deterministic lines, cut back on resume, readable by TensorBoard; speeds that add up."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scfm_jax.saving import sealed
from scfm_jax.training import hardware, pace, progress
from scfm_jax.training.log import Clock, Log
from tests.harness import tiny


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    log.write(1, {"loss": 0.1, "nb": float("nan")}, {"cells/s": 5.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1, "nb": null, "crc": "60281ebc"}\n'
    timing = json.loads((tmp_path / "timing.jsonl").read_text())
    assert timing["cells/s"] == 5.0 and timing["step"] == 1


def test_a_line_says_what_one_watches_and_the_files_have_the_rest(tmp_path, capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("scfm_jax.training.log.time.monotonic", lambda: now[0])
    log = Log(tmp_path, 0, 0, 100, tensorboard=False)
    log.advance(1)
    now[0] = 9.0
    timing = {"cells/s": 12345.6, "tokens/s": 9.0, "mfu": 0.5}
    log.write(10, {"loss": 0.123456, "grad_norm": 7.0}, timing)
    log.write(10, {"val/loss": 2.0, "val/nb": 3.0})
    now[0] = 19 * 60.0
    log.write(20, {"loss": float("nan"), "grad_norm": 7.0}, timing)
    log.write(100, {"loss": 0.1}, timing)
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "step 10/100  loss 0.1235  12,346 cells/s  ETA 90 s",
        "step 10/100  val loss 2  ETA 90 s",
        "step 20/100  loss not finite  val loss 2  12,346 cells/s  ETA 80 min",
        "step 100/100  loss 0.1  val loss 2  12,346 cells/s",
    ]
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    assert first.startswith('{"step": 10, "loss": 0.123456, "grad_norm": 7.0, "crc": "')
    assert sealed.loads(first) == ({"step": 10, "loss": 0.123456, "grad_norm": 7.0}, True)
    assert json.loads((tmp_path / "timing.jsonl").read_text().splitlines()[0])["mfu"] == 0.5


def test_a_run_opens_with_what_it_is_and_says_that_it_compiles(tmp_path, capsys):
    tiny.fit(tmp_path, steps=4, log_every=2)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training tiny: 808 parameters, .+, steps 0 to 4, in \S+", lines[0]), lines
    assert lines[1] == "compiling the training step for batches of 8 x 4 x 10"
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == ["step 2/4", "step 4/4"]


def test_progress_is_told_now_and_then_and_at_the_end():
    now, said = [0.0], []
    for _ in pace.counted(range(66), "scored", said.append, clock=lambda: now[0]):
        now[0] += 3
    assert said[:2] == ["scored 2 of 66, ETA 3 min", "scored 4 of 66, ETA 3 min"]
    assert said[-2:] == ["scored 64 of 66, ETA 6 s", "scored 66 of 66 in 3 min"] and len(said) == 33
    assert list(pace.counted([], "scored", said.append)) == [] and len(said) == 33
    assert [pace.words(s) for s in (0.2, 99, 100, 5400, 6000, 2e5)] == [
        "0 s",
        "99 s",
        "2 min",
        "90 min",
        "1.7 h",
        "2.3 days",
    ]


def test_resuming_cuts_the_log_back_to_where_it_was(tmp_path):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    log.write(1, {"loss": 1.0})
    length, _ = log.sync()
    log.write(2, {"loss": 2.0})
    log.close()
    log = Log(tmp_path, 1, length, 10, tensorboard=False)
    log.write(2, {"loss": 3.0})
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 3.0]


def test_a_log_that_was_shortened_is_told(tmp_path, capsys):
    Log(tmp_path, 5, 100, 10, tensorboard=False).close()
    assert "shorter than at step 5" in capsys.readouterr().err


def test_tensorboard_reads_the_curves_and_forgets_steps_done_again(tmp_path):
    log = Log(tmp_path, 0, 0, 10)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2}, {"cells/s": 10.0})
    log.close()
    log = Log(tmp_path, 2, 0, 10)
    log.write(3, {"loss": 9.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 9.0)]
    assert len(events.Scalars("cells/s")) >= 2


def test_speeds_leave_pauses_out_and_count_waits():
    now = [100.0]
    clock = Clock(lambda: now[0])
    with clock.data():
        now[0] += 1
    with clock.pause():
        now[0] += 30
    now[0] += 3
    clock.count(cells=10, tokens=20, flops=1e6)
    speeds = clock.report(peak=1e9, memory=2e9)
    wanted = {"cells/s": 2.5, "tokens/s": 5.0, "mfu": 2.5e-4, "data_wait": 0.25, "memory_gb": 2.0}
    assert speeds == pytest.approx(wanted)
    now[0] += 2
    assert clock.report(peak=1e9, memory=0)["data_wait"] == 0  # begun anew
    assert "mfu" not in clock.report(peak=None, memory=0)


def test_sums_are_divided_once():
    sums = {}
    progress.add(sums, {"z": (jnp.float32(1), jnp.float32(1)), "loss": (jnp.float32(6), jnp.float32(2))})
    progress.add(sums, {"z": (jnp.float32(0), jnp.float32(0)), "loss": (jnp.float32(6), jnp.float32(4))})
    assert progress.means(sums) == {"loss": 2.0, "z": 1.0} and list(progress.means(sums)) == ["loss", "z"]


def test_a_peak_is_known(monkeypatch):
    assert 1e8 < hardware.peak_flops() < 1e15 and hardware.memory_bytes() > 1e6

    class Device:
        platform, device_kind = "gpu", "NVIDIA H100 PCIe"

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert hardware.peak_flops.__wrapped__() == 2 * 756e12


def test_progress_within_progress_is_one_line_and_one_estimate():
    """Two runs of three batches of 6 s each: after one batch of six, 30 s are left."""
    now, said, silent = [0.0], [], []
    for _ in pace.counted(["a", "b"], "scored", said.append, clock=lambda: now[0]):
        for _ in pace.counted(iter("xyz"), "embedded", silent.append, total=3):
            now[0] += 6
    assert said[:2] == ["scored 0 of 2, embedded 1 of 3, ETA 30 s", "scored 0 of 2, embedded 2 of 3, ETA 24 s"]
    assert said[-1] == "scored 2 of 2 in 36 s" and silent == [] and pace._running == []


def test_progress_goes_to_stderr_and_what_is_quick_or_left_tells_nothing(capsys):
    now = [0.0]
    for _ in pace.counted(range(3), "scored", print, clock=lambda: now[0]):
        now[0] += 1
    for _ in pace.counted(range(3), "scored", print, clock=lambda: now[0]):
        inner = pace.counted(range(9), "embedded", print, clock=lambda: now[0])
        next(inner)  # and left
        now[0] += 10
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "scored 1 of 3, ETA 20 s",
        "scored 2 of 3, ETA 10 s",
        "scored 3 of 3 in 30 s",
    ]
    assert list(pace.counted(iter("ab"), "read", total=0)) == ["a", "b"] and pace._running == []


def test_progress_that_an_error_left_is_forgotten():
    """A notebook keeps the frames of its last error; what runs after that is told by itself."""
    now, said = [0.0], []

    def interrupted():
        for _ in pace.counted(range(9), "embedded", print, clock=lambda: now[0]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        interrupted()
    for _ in pace.counted(range(3), "scored", said.append, clock=lambda: now[0]):
        now[0] += 6
    assert kept.value is not None and said == [
        "scored 1 of 3, ETA 12 s",
        "scored 2 of 3, ETA 6 s",
        "scored 3 of 3 in 18 s",
    ]


def test_a_digit_that_changed_in_the_log_is_told_on_resuming(tmp_path, capsys):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    for step in (1, 2):
        log.write(step, {"loss": step / 8})
    length, digest = log.sync()
    log.close()
    resume = {"tensorboard": False, "digest": digest}
    Log(tmp_path, 2, length, 10, **resume).close()
    assert "warning" not in capsys.readouterr().err
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.25", "0.35"))
    Log(tmp_path, 2, length, 10, **resume).close()
    said = capsys.readouterr().err
    assert "is not what it was at step 2" in said and "line 2 does not match its checksum" in said


def test_torn_lines_are_never_appended_to(tmp_path, capsys):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    log.write(1, {"loss": 1.0}, {"cells/s": 2.0})
    length, _ = log.sync()
    log.close()
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(tmp_path / name, "a") as file:
            file.write('{"step": 2, "lo')
    log = Log(tmp_path, 1, length + 999, 10, tensorboard=False)  # as if more had been written and lost
    log.write(2, {"loss": 2.0}, {"cells/s": 3.0})
    log.close()
    for name in ("metrics.jsonl", "timing.jsonl"):
        read = sealed.read_lines(tmp_path / name)
        assert [row["step"] for _, row in read.rows] == [1, 2] and not read.problems


@pytest.mark.parametrize("replaced", [False, True])
def test_a_workdir_that_vanished_is_said(replaced, tmp_path):
    workdir = tmp_path / "w"
    workdir.mkdir()
    log = Log(workdir, 0, 0, 10)
    log.write(1, {"loss": 1.0})
    log.check()
    shutil.rmtree(workdir)
    if replaced:
        workdir.mkdir()
        Log(workdir, 0, 0, 10).close()
    log.write(2, {"loss": 1.0})
    with pytest.raises(OSError, match=r"w/metrics.jsonl was removed or replaced while the run was writing to it"):
        log.check()
