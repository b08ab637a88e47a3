"""The training command: CellPLM on a store, stopped and resumed; keys that nothing takes; workdirs of other runs."""

import importlib
import os
import pathlib
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import pretrain_cellplm
from data_pipeline import synthetic
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from experiments import train
from experiments.training import data, key_notes, settings
from scfm_jax import api, models
from scfm_jax.saving import checkpoint, sealed
from scfm_jax.training import signals
from scfm_jax.types import TrainState
from tests.harness import ROOT, tiny

OPTIONS = {
    "data.bag": 8,
    "data.batch": 2,
    "model.enc_hid": 16,
    "model.enc_head": 2,
    "model.enc_layers": 1,
    "model.latent_dim": 8,
    "model.dec_hid": 16,
    "model.dropout": 0.2,
    "train.steps": 10,
    "train.log_every": 3,
    "train.eval_every": 5,
    "train.checkpoint_every": 5,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    """A store of two small studies: an epoch of training has 5 steps of two bags of 8."""
    folder = tmp_path_factory.mktemp("store")
    for i in range(2):
        synthetic.make(50, 60, seed=i, depth=100.0).write_h5ad(folder / f"study{i}.h5ad")
    files = [str(folder / f"study{i}.h5ad") for i in range(2)]
    assert not ingest(file_sources(files), folder / "store", workers=0, say=lambda text: None)
    return folder / "store"


def config(store: pathlib.Path, **changes):
    """Return a config of a very small CellPLM."""
    made = pretrain_cellplm.get_config("tiny")
    made.update_from_flattened_dict({**OPTIONS, "data.store": str(store), **changes})
    return made


def command(store: pathlib.Path, workdir: pathlib.Path) -> subprocess.Popen:
    """Start `experiments.train` with the options above."""
    values = {**OPTIONS, "data.store": store}
    options = [f"--config.{key}={value}" for key, value in values.items()]
    start = [sys.executable, "-m", "experiments.train", "--config=configs/pretrain_cellplm.py:tiny"]
    root = ROOT
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*start, f"--workdir={workdir}", *options], cwd=root, env=environment, **piped)


@pytest.mark.slow
def test_stopped_and_resumed_equals_uninterrupted(store, tmp_path):
    tiny.finish(command(store, tmp_path / "whole"))
    process = command(store, tmp_path / "parts")
    while (line := process.stdout.readline()) and "step 3/" not in line:
        pass
    process.send_signal(signal.SIGTERM)
    *_, saved, way_out = tiny.finish(process).splitlines()
    assert "is saved" in saved and way_out == signals.RESUME
    assert "going on from step" in tiny.finish(command(store, tmp_path / "parts"))
    tiny.assert_same_run(tmp_path / "whole", tmp_path / "parts", 10)
    meta = checkpoint.read_meta(tmp_path / "whole/checkpoints")
    assert meta["second_names"] == open_store(store).second_names and "SYN0" in meta["second_names"]
    assert meta["genes"] == open_store(store).genes and meta["classes"]["study"] == ["study0", "study1"]
    assert meta["config"]["model"]["n_genes"] == 60 and meta["loader"]["step"] == meta["step"] == 10
    first, *rest = [line for _, line in sealed.read_lines(tmp_path / "parts/metrics.jsonl").rows]
    floors = {f"floor/{name}": value for name, value in meta["progress"]["floors"].items()}
    assert first == {"step": 0} | floors and not [name for line in rest for name in line if name.startswith("floor/")]
    floor, least, at = (
        first[f"floor/nb/{name}"] for name in ("gene x study rate x depth", "truth", "gene rate x depth")
    )
    assert least < floor < at and [line["step"] for line in rest if "val/residual" in line] == [5, 10]
    for line in (line for line in rest if "val/residual" in line):
        assert line["val/residual"] == pytest.approx((floor - line["val/nb"]) / (floor - least))


TYPOS = {
    "model.enc_hidd": (3, "config.model.enc_hidd: no such key; did you mean enc_hid?"),
    "inputs.mask_rate": (0.1, "did you mean mask_node_rate?"),
    "loss.objektive": ("nb", "did you mean objective?"),
    "data.bags": (8, "did you mean bag?"),
    "optim.lr": (1.0, "config.optim.lr: no such key; there are b1"),
    "train.step": (5, "did you mean steps?"),
    "train.mesh.fdsp": (2, "did you mean fsdp?"),
    "optimizer": ({}, "config.optimizer: no such key; did you mean optim?"),
}


@pytest.mark.parametrize("key", TYPOS)
def test_a_key_that_nothing_takes_is_refused_with_a_suggestion(key, store):
    value, message = TYPOS[key]
    made = config(store)
    train.check(made, models.get("cellplm"))
    with made.unlocked():
        *sections, name = key.split(".")
        place = made
        for section in sections:
            place = place[section]
        place[name] = value
    with pytest.raises(ValueError) as error:
        train.check(made, models.get("cellplm"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_model_slots_follow_a_gene_list_and_the_measured_genes(store, tmp_path, capsys):
    opened = open_store(store)
    wanted = ["NOT_THERE", *opened.genes[10:40], opened.genes[3]]
    (tmp_path / "genes.txt").write_text("\n".join(wanted))
    genes, slots, report = data.gene_slots(opened, str(tmp_path / "genes.txt"))
    assert genes == wanted and slots.shape == (61,) and report["covered"] == 31
    assert slots[60] == slots[0] == 32 and slots[3] == 31 and list(slots[10:40]) == list(range(1, 31))
    assert "31 of the model's 32 genes" in capsys.readouterr().out
    table = data.measured(opened, slots, len(genes))
    assert table.shape == (2, 32) and not table[:, 0].any() and table[:, 1:].all()
    assert np.array_equal(data.gene_slots(opened, "store")[1], np.arange(61))


def test_a_run_of_another_config_is_not_resumed(tmp_path):
    there = {"config": {"model": {"enc_hid": 16}, "train": {"steps": 5, "seed": 0}}, "store": "crc"}
    checkpoint.save(tmp_path / "checkpoints", 1, {"x": np.zeros(1)}, there)
    longer = {"config": {"model": {"enc_hid": 16}, "train": {"steps": 9, "seed": 0}}, "store": "crc"}
    assert settings.prepare_workdir(tmp_path, longer) == tmp_path
    other = {"config": {"model": {"enc_hid": 32}, "train": {"steps": 9, "seed": 1}}, "store": "crc"}
    with pytest.raises(ValueError, match=r"model.enc_hid is 16 there and 32 here; train.seed is 0 there and 1 here"):
        settings.prepare_workdir(tmp_path, other)
    with pytest.raises(ValueError, match="on another store"):
        settings.prepare_workdir(tmp_path, longer | {"store": "other"})
    with pytest.raises(NotADirectoryError, match="it is a file"):
        settings.prepare_workdir(tmp_path / "config.json", longer)


def test_a_store_that_grew_is_said_before_the_sizes_that_grew_with_it(tmp_path):
    old = {"config": {"model": {"n_batches": 2}, "train": {}}, "store": "crc"}
    checkpoint.save(tmp_path / "checkpoints", 1, {"x": np.zeros(1)}, old)
    grown = {"config": {"model": {"n_batches": 3}, "train": {}}, "store": "new"}
    with pytest.raises(ValueError, match="the store has changed since") as error:
        settings.prepare_workdir(tmp_path, grown)
    assert "n_batches" not in str(error.value)


def test_another_rate_is_taken_where_the_run_goes_back_and_nowhere_else(tmp_path):
    def metadata(rate, rewind=0, width=8):
        train = {"steps": 9, "rewind": rewind}
        return {"config": {"model": {"w": width}, "optim": {"learning_rate": rate}, "train": train}, "store": "crc"}

    checkpoint.save(tmp_path / "checkpoints", 4, {"x": np.zeros(1)}, metadata(1e-3))
    with pytest.raises(ValueError, match=r"optim.learning_rate is 0.001 there and 0.0001 here"):
        settings.prepare_workdir(tmp_path, metadata(1e-4))
    settings.prepare_workdir(tmp_path, metadata(1e-4, rewind=4))
    with pytest.raises(ValueError, match=r"model.w is 8 there and 9 here"):
        settings.prepare_workdir(tmp_path, metadata(1e-4, rewind=4, width=9))
    checkpoint.save(tmp_path / "checkpoints", 6, {"x": np.zeros(1)}, metadata(1e-4, rewind=4))
    settings.prepare_workdir(tmp_path, metadata(1e-4))


def test_secrets_are_in_no_saved_or_printed_config(tmp_path):
    def metadata(token):
        return {"config": {"model": {"api_token": token, "width": 3}, "data": {"store": "s3://me:pw@h/s"}}, "store": ""}

    settings.prepare_workdir(tmp_path, metadata("hf_secret"))
    text = (tmp_path / "config.json").read_text()
    assert "hf_secret" not in text and "me:pw" not in text and '"width": 3' in text
    checkpoint.save(tmp_path / "checkpoints", 1, {"x": np.zeros(1)}, metadata("hf_secret"))
    with pytest.raises(ValueError, match=r"model.api_token is") as error:
        settings.prepare_workdir(tmp_path, metadata("hf_other"))
    assert "hf_" not in str(error.value)
    assert "hf_secret" not in key_notes.text(metadata("hf_secret")["config"], "x")


def test_weights_of_another_run_are_a_start(tmp_path, capsys, monkeypatch):
    def state(width: int, value: float) -> TrainState:
        params = {"genes": jnp.full((2, 3), value), "latent": {"kernel": jnp.full((3, width), value)}}
        return TrainState(0, 0, params, (), {}, {}, ema=params)

    checkpoint.save(tmp_path / "run/checkpoints", 1, state(4, 1.0), {"genes": ["A", "B"], "model": "x", "config": {}})
    monkeypatch.setattr(api, "build", lambda meta, *parts: api.Run(None, None, *parts[:2], meta, parts[2]))
    begun = train.warm_start(str(tmp_path / "run"), ["A", "B"])(state(5, 0.0))
    assert (begun.params["genes"] == 1).all() and (begun.ema["genes"] == 1).all()
    assert (begun.params["latent"]["kernel"] == 0).all()
    assert "1 parameters taken; new: latent/kernel" in capsys.readouterr().out
    with pytest.raises(ValueError, match="another gene list"):
        train.warm_start(str(tmp_path / "run"), ["B", "A"])
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        train.warm_start(str(tmp_path), ["A", "B"])


def test_a_store_without_the_covariate_trains_without_it(tmp_path, capsys):
    cells = synthetic.make(30, 40, seed=0, depth=100.0)
    del cells.obs["batch"]
    cells.write_h5ad(tmp_path / "plain.h5ad")
    ingest(file_sources([str(tmp_path / "plain.h5ad")]), tmp_path / "store", workers=0, say=lambda text: None)
    made = open_store(tmp_path / "store")
    assert data.known_labels(made, ("batch", "cell_type"), models.get("cellplm")) == ["cell_type"]
    assert "'batch'" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'bacth'"):
        train.pretrain(config(tmp_path / "store", **{"data.labels": ("bacth",)}), str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exceiver", "scemb", "sclong", "sct"])
def test_every_model_is_held_against_its_tables_where_it_trains(name, store, tmp_path):
    made = importlib.import_module(f"configs.pretrain_{name}").get_config("tiny")
    asked = {"steps": 4, "eval_every": 2, "log_every": 2, "monitor": "-residual", "tensorboard": False}
    made.update_from_flattened_dict({f"train.{key}": value for key, value in asked.items()})
    made.data.store = str(store)
    train.pretrain(made, str(tmp_path))
    first, *rest = [line for _, line in sealed.read_lines(tmp_path / "metrics.jsonl").rows]
    against = models.floors(name).against({})
    tables = {key: value for key, value in first.items() if key.startswith(f"floor/{against.partition('/')[0]}/")}
    assert first["step"] == 0 and len(tables) > 1 and f"floor/{against}" in tables
    for line in (line for line in rest if "val/loss" in line):
        value, floor = line[f"val/{against.partition('/')[0]}"], first[f"floor/{against}"]
        wanted = pytest.approx(1 - value / floor) if name != "sct" else pytest.approx(0, abs=0.3)
        assert line["val/residual"] == wanted
    assert checkpoint.read_best(tmp_path / "checkpoints")[1]["metric"] == "val/residual"
