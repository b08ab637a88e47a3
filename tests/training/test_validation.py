"""Floors in training: learnt and logged once, the same after a stop, beside the validation and in what it monitors."""

import json

import jax
import numpy as np
import pytest

from scfm_jax.saving import checkpoint
from scfm_jax.training import loop
from scfm_jax.training.loader import to_batch
from tests.harness import tiny

RUN = {"log_every": 2, "eval_every": 2, "floors": 60, "monitor": "-residual"}


def by_hand(cells: int) -> float:
    """Return the squared error of the mean of each gene over so many training cells, and the batch they end in."""
    seen = []
    for arrays in tiny.Loader("train").epoch_batches():
        if sum(map(len, seen)) >= cells:
            break
        made = tiny.prepare(to_batch(arrays), tiny.CONSTANTS, jax.random.key(0), step=0, train=True)
        seen.append(np.asarray(made["x"])[arrays["cell_mask"]])
    mean, errors = np.concatenate(seen).mean(0), []
    rng = jax.random.fold_in(jax.random.key(3), 0xFFFFFFFF)
    for index, arrays in enumerate(tiny.Loader("val").epoch_batches()):
        key = jax.random.split(jax.random.fold_in(rng, index), 3)[0]
        made = tiny.prepare(to_batch(arrays), tiny.CONSTANTS, key, step=0, train=False)
        errors.append(((np.asarray(made["x"]) - mean) ** 2)[np.asarray(made["scored"])])
    return float(np.concatenate(errors).mean())


def test_floors_are_of_the_validation_cells_logged_once_and_read_when_a_run_goes_on(tmp_path, monkeypatch, capsys):
    """That the run is the same, bit by bit, as one that was not stopped is in test_resume."""
    tiny.fit(tmp_path, steps=2, **RUN)
    monkeypatch.setattr(loop, "measured", lambda *args: pytest.fail("floors are measured once"))
    tiny.fit(tmp_path, steps=4, **RUN)
    said = capsys.readouterr().err
    first, *rest = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert first.keys() == {"step", "floor/loss/gene", "crc"} and first["step"] == 0
    floor = first["floor/loss/gene"]
    assert floor == pytest.approx(by_hand(60), rel=1e-5) and floor != pytest.approx(by_hand(300), rel=1e-5)
    validated = [line for line in rest if "val/loss" in line]
    residuals = [line["val/residual"] for line in validated]
    assert residuals == [1 - line["val/loss"] / floor for line in validated] and residuals[-1] > residuals[0]
    best, record = checkpoint.read_best(tmp_path / "checkpoints")
    assert best == 4 and record == {"metric": "val/residual", "value": max(residuals)}
    assert checkpoint.read_meta(tmp_path / "checkpoints")["progress"]["floors"] == {"loss/gene": floor}
    assert "floors: tables learnt from 83 training cells" in said and f"step 0/2  floor/loss/gene {floor:.4g}" in said
    value = validated[-1]["val/loss"]
    assert f"val loss {value:.4g}  floor {floor:.4g}  residual {residuals[-1]:.4g}" in said


def test_without_floors_nothing_can_be_beyond_them(tmp_path):
    for options, why in (({"floors": 0}, "train.floors=0"), ({"tables": None}, "has no floors")):
        with pytest.raises(ValueError, match=f"train.monitor=-residual: .*{why}"):
            tiny.fit(tmp_path, steps=2, **RUN | options)
    tiny.fit(tmp_path, steps=2, **RUN | {"floors": 0, "monitor": "loss"})
    assert "floor" not in (tmp_path / "metrics.jsonl").read_text()
    assert checkpoint.read_meta(tmp_path / "checkpoints")["progress"]["floors"] is None
