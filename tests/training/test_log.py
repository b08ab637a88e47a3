"""The log: deterministic lines, cut back on resume, readable by TensorBoard; speeds that add up."""

import json
import time

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scfm_jax.training import hardware, progress
from scfm_jax.training.log import Clock, Log


def test_lines_are_json_and_what_is_not_finite_is_null(tmp_path):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    log.write(1, {"loss": 0.1, "nb": float("nan")}, {"cells/s": 5.0})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 0.1, "nb": null}\n'
    timing = json.loads((tmp_path / "timing.jsonl").read_text())
    assert timing["cells/s"] == 5.0 and timing["step"] == 1


def test_resuming_cuts_the_log_back_to_where_it_was(tmp_path):
    log = Log(tmp_path, 0, 0, 10, tensorboard=False)
    log.write(1, {"loss": 1.0})
    length = log.sync()
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
    clock = Clock()
    with clock.data():
        time.sleep(0.05)
    with clock.pause():
        time.sleep(0.3)
    time.sleep(0.05)
    clock.count(cells=10, tokens=20, flops=1e6)
    speeds = clock.report(peak=1e9, memory=2e9)
    assert 50 < speeds["cells/s"] < 105 and speeds["tokens/s"] == 2 * speeds["cells/s"]
    assert speeds["mfu"] == pytest.approx(speeds["cells/s"] * 1e5 / 1e9)
    assert 0.2 < speeds["data_wait"] < 0.9 and speeds["memory_gb"] == 2.0
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
