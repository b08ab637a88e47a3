"""Config files on the command line: found by name from any folder, loaded as modules, changed by `--config.KEY=VALUE`.

`pretrain_cellplm:tiny`, `configs/pretrain_cellplm.py:tiny` and the path of any Python file are the same kind of name.
"""

import difflib
import importlib.util
import pathlib
import sys
from types import ModuleType

from absl import flags
from ml_collections import ConfigDict, config_flags

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "configs"
"""Where the configs of this project are."""
PREFIXES = {"sweep": "sweep_"}
"""Flags whose files are those of FOLDER with this beginning; the others' are all that are not among them."""


class Parser(flags.ArgumentParser):
    """Turns `name:variant` into the locked config that get_config(variant) of the file returns."""

    syntactic_help = "a config by name or file, its variant after a colon"

    def __init__(self, flag: str = "config"):
        self.flag = flag

    def parse(self, argument: str) -> ConfigDict:
        """Return the config; ValueError or OSError says in one line what is wrong with its name, file or variant."""
        module, variant = load(argument, self.flag)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError("it has no function get_config; `configs` says what a config file is")
        try:
            config = module.get_config(*([variant] if variant else []))
        except (ValueError, OSError):
            raise
        except Exception as error:
            raise ValueError(f"get_config({variant!r}): {type(error).__name__}: {error}") from error
        return config.lock() if isinstance(config, ConfigDict) else config

    def flag_type(self) -> str:
        """Return what absl's help calls the type."""
        return "config"


def define(name: str, help: str, values: flags.FlagValues, argv: list[str] | None = None) -> None:
    """Define the flag --`name` of a config and, as `argv` (sys.argv) overrides them, flags of its entries."""
    config_flags.DEFINE_config_file(name, None, help, flag_values=values, sys_argv=argv)
    values[name].parser = Parser(name)  # ml_collections' own loads files by a way that future Pythons lack


def load(text: str, flag: str) -> tuple[ModuleType, str]:
    """Return (module of a config file, variant) of `name:variant`, as `flag` names it.

    Raises:
      FileNotFoundError: there is no such file; names that are alike, or all there are.
      ValueError: it is no Python file, or its code fails. The flag is not named, which absl does.
    """
    name, _, variant = text.partition(":")
    path = find(name, flag)
    module_name = f"{flag}_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError("not a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return module, variant


def find(name: str, flag: str) -> pathlib.Path:
    """Return the file that `name` means: itself where it is one, else the config of this project of that name."""
    path = pathlib.Path(name)
    if path.is_file():
        return path
    ours = FOLDER / f"{path.stem if path.suffix == '.py' else path.name}.py"
    if str(path.parent) in (".", FOLDER.name) and path.name and ours.is_file():
        return ours
    names = sorted(file.stem for file in FOLDER.glob("[!_]*.py"))
    prefix = PREFIXES.get(flag, "")
    names = [one for one in names if one.startswith(prefix)] if prefix else names
    near = difflib.get_close_matches(path.stem, names, 3)
    hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
    raise FileNotFoundError(f"--{flag}={name}: no such file or config; {hint} {', '.join(names)}")
