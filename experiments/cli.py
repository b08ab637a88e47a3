"""The way every command starts and fails: one line for a user's mistake, a traceback only for ours."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging


def run(main: Callable[[list[str]], int | None], positional: bool = False) -> None:
    """Run `main(argv)` under absl; ValueError and OSError end as one line on stderr and exit status 2, Ctrl-C 130.

    `positional` says that the command takes plain arguments too.
    Set SCFM_TRACEBACK=1 to see the whole traceback of such an error.
    """

    def guarded(argv: list[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX and Optax tell much at INFO
        try:
            if len(argv) > 1 and not positional:
                raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value (see --helpshort)")
            return main(argv)
        except (ValueError, OSError) as error:
            if os.environ.get("SCFM_TRACEBACK"):
                raise
            return fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(130)  # an interpreter that takes its arrays from a program still running crashes

    app.run(guarded, flags_parser=_parse)


def require(*names: str) -> None:
    """Raise ValueError for the first of these flags that was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise ValueError(f"--{name} is missing (see --helpshort)")


def check_free(output: str) -> None:
    """Raise OSError unless --output can be made: it is not there, and the folder it is to be in is."""
    if os.path.exists(output):
        raise FileExistsError(f"--output={output}: exists already and is not overwritten; choose another name")
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise FileNotFoundError(f"--output={output}: its folder is not there; make it first")


def fail(error: BaseException) -> int:
    """Print `error` as one line on stderr and return exit status 2."""
    text = str(error) or type(error).__name__
    if isinstance(error, KeyError | AttributeError) and error.args:  # ml_collections: a key that is not there
        text = " ".join(str(arg) for arg in getattr(error.args[0], "args", error.args))
    text = text.split("Traceback (most recent call last)")[-1].split("\nValueError: ")[-1]  # of a config file
    if "earlier failure to load:" in text:
        text = "--config: " + text[text.index("[Errno") :]
    text = " ".join(text.split())
    print(f"error: {text}", file=sys.stderr, flush=True)
    return 2


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        if os.environ.get("SCFM_TRACEBACK"):
            raise
        named = _no_entry(argv) if isinstance(error, KeyError | AttributeError) else None
        sys.exit(fail(ValueError(named) if named else error))


def _no_entry(argv: Sequence[str]) -> str | None:
    """Return what is wrong with the first --config.section.key that its config has not; None where it has them all.

    ml_collections, which reads these flags, says the key alone.
    """
    text = "\n".join(argv)
    if not (source := re.findall(r"^--?config[=\n](.*)$", text, re.MULTILINE)):
        return None
    entries = _entries(flags.FLAGS["config"].parser.parse(source[-1]).to_dict())
    for path in re.findall(r"^--?(?:no)?config\.([^=\n\[]+)", text, re.MULTILINE):
        if path not in entries:
            section, _, name = path.rpartition(".")
            beside = [entry.rpartition(".")[2] for entry in entries if entry.rpartition(".")[0] == section]
            near = [f"{section}.{key}".lstrip(".") for key in difflib.get_close_matches(name, beside, 3)]
            if section not in ("", *entries):  # it is what is wrong
                near = difflib.get_close_matches(path, entries, 3)
            hint = "did you mean " if near else "there are " if beside else "see the file for those it has"
            hint += " or ".join(f"--config.{entry}" for entry in near) if near else ", ".join(beside)
            return f"--config.{path}: the config {source[-1]} has no such entry; {hint}"
    return None


def _entries(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the names of all entries, sections too: ["model", "model.width", ...]."""
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        found += _entries(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
    return found
