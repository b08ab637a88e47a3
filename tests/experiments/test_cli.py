"""How a command ends when it is refused a flag of its config, or interrupted: one line."""

import subprocess
import sys

import pytest

from tests.harness.commands import run

PRETRAIN = "--config=configs/pretrain_scemb.py:tiny"
TYPOS = {
    "key of a section": (PRETRAIN, "inputs.mask_rte", "mask_rate", "did you mean --config.inputs.mask_rate"),
    "key without a value": (PRETRAIN, "model.scann", "", "did you mean --config.model.scan"),
    "section": (PRETRAIN, "inputz.mask_rate", "1", "did you mean --config.inputs.mask_rate"),
    "section alone": (PRETRAIN, "optimm", "1", "did you mean --config.optim"),
    "nested section": (PRETRAIN, "train.mesh.fdsp", "1", "did you mean --config.train.mesh.fsdp"),
    "nothing like it": (PRETRAIN, "inputs.zzzzzz", "1", "there are mask_rate"),
    "empty section": (
        "--config=configs/finetune_cell_type.py:lora",
        "inputs.qqq",
        "1",
        "see the file for those it has",
    ),
}


@pytest.mark.parametrize("name", TYPOS)
def test_an_entry_that_a_config_has_not_is_named_with_the_nearest(name, tmp_path):
    config, key, value, says = TYPOS[name]
    flag = f"--config.{key}" + (f"={value}" if value else "")
    ended = run("train", config, f"--workdir={tmp_path}/w", "--config.data.store=nowhere", flag, folder=tmp_path)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith(f"error: --config.{key}: the config {config[9:]} has no such entry; "), ended.err
    assert says in ended.err and not (tmp_path / "w").exists()


def test_a_config_given_as_a_word_of_its_own_is_read_too(tmp_path):
    words = ("--config", "configs/pretrain_scemb.py:tiny", "--config.inputs.mask_rte", "0.1")
    ended = run("train", *words, f"--workdir={tmp_path}/w", folder=tmp_path)
    assert ended.code == 2 and ended.err.count("\n") == 1, ended.err
    assert "--config.inputs.mask_rte: the config configs/pretrain_scemb.py:tiny has no such entry" in ended.err
    assert "did you mean --config.inputs.mask_rate" in ended.err


def test_an_entry_that_is_there_but_wrongly_filled_says_so(tmp_path):
    words = ("--config=configs/pretrain_scemb.py:tiny", "--config.train.steps=many")
    ended = run("train", *words, f"--workdir={tmp_path}/w", folder=tmp_path)
    assert ended.code == 2 and ended.err.count("\n") == 1 and "--config.train.steps=many" in ended.err


def test_an_interrupt_is_one_line():
    program = "from experiments import cli\ndef main(argv): raise KeyboardInterrupt\ncli.run(main)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")
