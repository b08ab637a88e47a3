"""The door of the commands: options as data, help, configs by name, and mistakes that end as one line."""

import importlib
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from experiments import __main__ as door
from experiments import cli
from experiments.training import config_file, key_notes
from tests.harness import ROOT
from tests.harness.commands import run

COMMANDS = sorted(door.commands())

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


# ------------------------------------------------------------------------------------------------------------- options


def module(command: str):
    """Return the module of a command."""
    return importlib.import_module(f"experiments.{command}")


def test_all_commands_can_be_imported_together_and_define_no_flag():
    before = set(flags.FLAGS)
    tables = {command: module(command).OPTIONS for command in COMMANDS}
    assert len(tables) > 15 and all(isinstance(o, cli.Option) for table in tables.values() for o in table.values())
    ours = {name for table in tables.values() for name in table}
    assert not (set(flags.FLAGS) - before) & ours and "workdir" not in flags.FLAGS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_table_is_flags_that_absl_takes(command):
    values, table = flags.FlagValues(), module(command).OPTIONS
    cli.define(table, values)
    values(["command"])
    for name, option in table.items():
        assert option.help and "\n" not in option.help, name
        assert values[name].value == option.default, name
    assert module(command).main.__module__ == f"experiments.{command}"


def parsed(*argv: str) -> flags.FlagValues:
    """Return flags of every kind as absl reads them."""
    values = flags.FlagValues()
    table = cli.options(
        "min_mapped gene_table", raw="Other help.", seeds=(int, 3, "Seeds.", 1, 9), how=(("a", "b"), "a", "Way.")
    )
    cli.define(table, values)
    values(["command", *argv])
    return values


def test_flags_are_absls():
    values = parsed("--noraw", "--seeds=4", "--gene_table=a,b", "--how", "b", "--min_mapped=0")
    assert (values.raw, values.seeds, values.gene_table, values.how, values.min_mapped) == (
        False,
        4,
        ["a", "b"],
        "b",
        0,
    )
    assert parsed().gene_table == [] and parsed("--raw").raw is True
    for wrong in ("--seeds=0", "--seeds=10", "--how=c", "--min_mapped=2", "--seeds=x", "--nothing"):
        with pytest.raises(flags.Error):
            parsed(wrong)


def test_a_value_with_a_comma_stands_in_double_quotes_and_help_and_hints_say_so():
    name = "CD4-positive, alpha-beta T cell"
    values = parsed(f'--gene_table="{name}=T","a ""b"", c",d')
    assert values.gene_table == [f"{name}=T", 'a "b", c', "d"]
    hint = cli.quoting("held_out", ["x", "Bern", "CH"], ["x", "Basel, CH", "Bern, CH"])
    assert hint.endswith("""--held_out='"Bern, CH"'""")
    assert cli.quoting("held_out", ["Bern"], ["Bern, CH", "Bern"]) == ""
    table = cli.options(names=(list, [], "Names."))
    assert "one that has a comma in double quotes" in " ".join(cli.help_text("", table).split())
    with pytest.raises(flags.Error) as error:
        parsed('--gene_table="open, x')
    assert "\n" not in str(error.value)


def test_a_path_from_home_is_one_behind_an_option_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.at_home("--input=~/a.h5ad,~/b.h5ad") == "--input=/home/me/a.h5ad,/home/me/b.h5ad"
    assert cli.at_home("--config.data.store=~/s") == "--config.data.store=/home/me/s"
    for word in ("--names=a~/b=c", "--input=~x", "~/left alone", "--filter=a ~ b"):
        assert cli.at_home(word) == word


def test_lists_are_not_shared_between_commands():
    parsed().gene_table.append("x")
    assert parsed().gene_table == [] and cli.SHARED["gene_table"].default == []


# ---------------------------------------------------------------------------------------------------- help and one door


@pytest.mark.parametrize("flag", ["--help", "--helpshort", "--helpfull"])
def test_help_is_the_docstring_and_the_commands_own_flags(flag, tmp_path):
    ended = run("embed", flag, folder=tmp_path)
    assert ended.code == 0 and not ended.err
    assert ended.out.startswith("Embed the cells of a file") and "--max_cells" in ended.out
    assert "--[no]raw: The counts" in ended.out and "hgnc_complete_set.txt from genenames.org" in " ".join(
        ended.out.split()
    )
    assert "--[no]replace" in ended.out and "(default: false)" in ended.out
    listed = [line.split(":")[0].strip() for line in ended.out.splitlines() if line.startswith("  --")]
    assert {name.replace("[no]", "").removeprefix("--") for name in listed} == set(module("embed").OPTIONS)


def spoken(*argv: str, folder: pathlib.Path = ROOT) -> subprocess.CompletedProcess:
    """Run the door as a program."""
    program = [sys.executable, "-m", "experiments", *argv]
    return subprocess.run(program, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(ROOT)})


def test_the_door_lists_the_commands_with_their_purposes():
    ended = spoken()
    assert ended.returncode == 0 and spoken("--help").stdout == ended.stdout
    for command, purpose in door.commands().items():
        assert f"  {command} " in ended.stdout and purpose.endswith(".") and purpose in ended.stdout
    assert "  cli " not in ended.stdout and "  __main__" not in ended.stdout


def test_the_door_runs_a_command_with_its_flags():
    ended = spoken("report", "--helpshort")
    assert ended.returncode == 0 and ended.stdout.startswith("Write one self-contained HTML page")
    ended = spoken("report", "--workdir=none", "--suite=none")
    assert ended.returncode == 2 and ended.stderr.startswith("error: give --workdir") and ended.stderr.count("\n") == 1


def test_an_unknown_command_is_named_with_the_nearest():
    ended = spoken("evalute", "--workdir=w")
    assert (ended.returncode, ended.stderr) == (2, "error: evalute: no such command; did you mean evaluate?\n")
    assert "there are annotate, bench" in spoken("zzzz").stderr


def test_the_door_is_a_program():
    assert '"scfm = experiments.__main__:main"' in (ROOT / "setup.py").read_text() and callable(door.main)


# ------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", ["pretrain_cellplm", "pretrain_cellplm.py", "configs/pretrain_cellplm.py"])
def test_a_config_is_found_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file.Parser().parse(f"{name}:tiny")
    assert isinstance(config, ConfigDict) and config.model_name == "cellplm" and config.is_locked


def test_a_file_of_ones_own_comes_before_a_config_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from ml_collections import ConfigDict\ndef get_config(variant='x'): return ConfigDict({'v': variant})\n"
    (tmp_path / "pretrain_cellplm.py").write_text(text)
    parse = config_file.Parser().parse
    assert parse("pretrain_cellplm.py").v == "x" and parse(f"{tmp_path}/pretrain_cellplm.py:y").v == "y"


CONFIGS = {
    "typo": ("pretrain_celplm:tiny", "did you mean pretrain_cellplm", "There are compare_budget"),
    "nothing like it": ("zzzz", "no such file or config; there are compare_budget", "sweep_sct_ablation"),
    "elsewhere": (
        "elsewhere/pretrain_scemb.py",
        "--config=elsewhere/pretrain_scemb.py: no such file",
        "pretrain_scemb",
    ),
    "variant": ("pretrain_scemb:tny", "no such variant", "tiny"),
    "code that fails": ("bad.py", "flag --config=bad.py: NameError: name 'nothing' is not defined", ""),
    "no get_config": ("empty.py", "it has no function get_config", ""),
    "get_config that fails": ("raises.py", "get_config(''): KeyError: 'there'", ""),
    "no Python file": ("text.txt", "not a Python file", ""),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_wrong_config_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file, text in {"bad": "nothing", "empty": "", "raises": "def get_config(): return {}['there']"}.items():
        (tmp_path / f"{file}.py").write_text(text)
    (tmp_path / "text.txt").write_text("words")
    value, *says = CONFIGS[name]
    values = flags.FlagValues()
    config_file.define("config", "A config.", values, argv=["train", f"--config={value}"])
    with pytest.raises((flags.Error, OSError)) as error:
        values(["train", f"--config={value}"])
    assert cli.fail(error.value) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and all(part in line for part in says), line


def test_configs_load_where_warnings_of_deprecation_are_errors(tmp_path):
    """What Python warns of today it drops tomorrow: ml_collections' own loader calls load_module."""
    program = (
        "from absl import flags; from experiments.training import config_file\n"
        "argv = ['train', '--config=pretrain_scemb:tiny', '--config.train.steps=7', '--noconfig.train.tensorboard']\n"
        "values = flags.FlagValues(); config_file.define('config', 'A config.', values, argv); values(argv)\n"
        "print(values.config.train.steps, values.config.train.tensorboard, values['config'].config_filename)"
    )
    argv = [sys.executable, "-W", "error::DeprecationWarning", "-c", program]
    ended = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert ended.stdout == "7 False pretrain_scemb:tiny\n", ended.stderr


def test_print_config_says_every_key_with_its_note_and_trains_nothing(tmp_path):
    words = ("--config=pretrain_cellplm:tiny", "--print_config", "--config.train.steps=7", f"--workdir={tmp_path}/w")
    ended = run("train", *words, folder=tmp_path)
    assert ended.code == 0 and not (tmp_path / "w").exists(), ended.err
    lines = dict(line.removeprefix("--config.").split("=", 1) for line in ended.out.splitlines() if "=" in line)
    notes = {key: value.partition("#")[2].strip() for key, value in lines.items()}
    assert lines["train.steps"].split()[0] == "7" and "7 " in lines["train.steps"]
    assert notes["inputs.mask_node_rate"] == "share of cells with hidden entries"
    assert notes["optim.clip_norm"] == "largest global gradient norm"
    assert notes["train.keep"] == "checkpoints to keep, beside the best one"
    assert notes["data.threads"] == "threads, prefetch: threads that read, batches that are read ahead"
    assert "--config.data.store " in ended.out and "# not set; a folder made by experiments.ingest" in ended.out
    flat = cli._entries(config_file.Parser().parse("pretrain_cellplm:tiny").to_dict())
    sections = {key.rpartition(".")[0] for key in flat}
    assert all(f"--config.{key}" in ended.out for key in flat if key not in sections)


def test_what_is_printed_is_a_command_line_again():
    config = config_file.Parser().parse("finetune_cell_type:lora").to_dict()
    for line in key_notes.text(config, "finetune_cell_type:lora").splitlines():
        assert line.startswith("--config")
    words = key_notes.text({"optim": {"no_decay": ("bias$", "norm")}}, "x").splitlines()[1].split("  # ")[0].rstrip()
    said = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, text=True).stdout
    assert said == '--config.optim.no_decay=("bias$", "norm")'


def test_sweeps_are_found_by_name_too_and_a_typo_lists_them_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made, variant = config_file.load("sweep_sct_ablation:small", "sweep")
    assert callable(made.get_sweep) and variant == "small"
    with pytest.raises(
        FileNotFoundError, match=r"--sweep=sweep_sct_ablatoin: .*did you mean sweep_sct_ablation"
    ) as error:
        config_file.find("sweep_sct_ablatoin", "sweep")
    assert "pretrain" not in str(error.value)


def test_a_name_that_the_locale_cannot_read_is_one_line_with_the_way_out():
    cli.check_encoding(["ingest", "--input=x.h5ad", "--input=é.h5ad"])
    name = "--store=é".encode().decode("ascii", "surrogateescape")
    with pytest.raises(ValueError, match="not readable in a locale of ascii; set PYTHONUTF8=1"):
        cli.check_encoding(["ingest", name], "ascii")
