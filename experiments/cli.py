"""How every command defines its flags, starts, and reports errors: a user's mistake as one line, ours as a traceback.

A command lists its flags in `OPTIONS = cli.options(...)` and ends in `cli.run(main, OPTIONS)`, which defines them.
Importing a command therefore defines no flags: several can be imported together, and their flags read from OPTIONS.
"""

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

CONFIG = "config"
"""The kind of a flag that is a config: its name or file, with a variant after a colon, and `--config.KEY=VALUE`."""
HELP = ("--help", "-help", "--helpshort", "-helpshort", "--helpfull", "-helpfull", "-h", "-?")
WIDTH = 120
_ours: set[str] = set()
"""Names of the options of the command that runs."""
BLANKS = re.compile(r"\s*,\s*")


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag of a command.

    Attributes:
      kind: str, int, float, bool, list (of texts with commas between), a tuple of choices, or CONFIG.
      default: None where a flag that is left out has no value.
      help: what it is, one line.
      least, most: bounds of a number, None for none.
    """

    kind: Any
    default: Any
    help: str
    least: float | None = None
    most: float | None = None


SHARED = {
    "config": Option(CONFIG, None, "Config by name or file, its variant after a colon: pretrain_cellplm:tiny"),
    "workdir": Option(str, None, "A training run, a folder of checkpoints or a weights file."),
    "input": Option(str, None, "File of raw counts: .h5ad, AnnData .zarr, 10x .h5 or mtx folder."),
    "output": Option(str, None, "Folder to write; must not exist."),
    "step": Option(str, None, 'Checkpoint to use: a step or "best"; by default the newest valid one.'),
    "layer": Option(str, None, "Layer of the file that holds the counts; X, if left out."),
    "raw": Option(bool, None, "The counts are in the file's raw."),
    "round": Option(
        bool, None, "Take values to the nearest whole number: of counts that were estimated or corrected (RSEM, SoupX)."
    ),
    "sample_key": Option(str, "auto", 'obs column of tissue samples; "" for one; "auto": batch if there is one.'),
    "cell_layer": Option(
        str, None, "Layers that embeddings are of (scEMB: last, all_layers; sCT: last, mean); by default as trained."
    ),
    "gene_table": Option(
        list,
        [],
        "Tables of aliases and ids of genes, only needed where names differ: HGNC's hgnc_complete_set.txt from "
        "genenames.org, or one in GENCODE's style.",
    ),
    "min_mapped": Option(float, 0.5, "Least share of the input's genes that the model must know.", 0, 1),
    "scaler": Option(
        ("training", "file"),
        "training",
        "Whose means and deviations of genes Exceiver takes: the training cells', or each file's own, as in its paper.",
    ),
    "seed": Option(int, 0, "Seed of everything random."),
}
"""Options that several commands have."""
READING = ("layer", "raw", "round", "gene_table", "min_mapped")
"""Those of all commands that read files of counts: "reading" stands for them, and they hold for all files read."""
FIRST = ("config", "workdir", "input", "output")
"""Those of them that help lists before a command's own; the rest comes after."""


def options(shared: str = "", **own: tuple | str) -> dict[str, Option]:
    """Return a command's options by name, in the order in which its help lists them.

    Args:
      shared: names of options of SHARED, with blanks between; "reading" for those of READING.
      own: the others, each as the arguments of `Option`; a text alone is another help for one of SHARED.
    """
    table = {name: SHARED[name] for name in shared.replace("reading", " ".join(READING)).split()}
    for name, value in own.items():
        table[name] = dataclasses.replace(SHARED[name], help=value) if isinstance(value, str) else Option(*value)
    places = {name: place - len(SHARED) if name in FIRST else 1 + place for place, name in enumerate(SHARED)}
    return dict(sorted(table.items(), key=lambda item: places.get(item[0], 0)))


def define(table: Mapping[str, Option], values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the options as flags of absl."""
    kinds = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
        list: flags.DEFINE_list,
    }
    for name, option in table.items():
        default = list(option.default) if option.kind is list and option.default is not None else option.default
        if option.kind == CONFIG:
            from experiments.training import config_file

            config_file.define(name, option.help, values)
        elif isinstance(option.kind, tuple):
            flags.DEFINE_enum(name, default, option.kind, option.help, flag_values=values)
        elif option.kind in (int, float):
            kinds[option.kind](name, default, option.help, option.least, option.most, flag_values=values)
        else:
            kinds[option.kind](name, default, option.help, flag_values=values)


def help_text(doc: str | None, table: Mapping[str, Option]) -> str:
    """Return what --help prints: the command's docstring and its flags in the order of its table."""
    lines = [*(doc or "").strip().splitlines(), "", "flags:"] if table else (doc or "").strip().splitlines()
    for name, option in table.items():
        flag = f"--[no]{name}" if option.kind is bool else f"--{name}"
        line = " ".join((f"{flag}:", option.help, *_limits(option)))
        lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return "\n".join(lines)


def _limits(option: Option) -> list[str]:
    """Return what help says of an option's values, nothing or one text in parentheses."""
    words = [f"one of {', '.join(option.kind)}"] if isinstance(option.kind, tuple) else []
    words += ["several with commas between, one that has a comma in double quotes"] if option.kind is list else []
    words += [f"at least {option.least:g}"] if option.least is not None else []
    words += [f"at most {option.most:g}"] if option.most is not None else []
    if option.default not in (None, [], ""):
        default = ",".join(option.default) if option.kind is list else option.default
        words.append(f"default: {str(default).lower() if option.kind is bool else default}")
    return [f"({'; '.join(words)})"] if words else []


def run(
    main: Callable[[list[str]], int | None], table: Mapping[str, Option] | None = None, positional: bool = False
) -> None:
    """Run `main(argv)` under absl; ValueError and OSError end as one line on stderr and exit status 2, Ctrl-C 130.

    Args:
      table: the command's options, defined here. `--help` prints them after its docstring, exit status 0.
      positional: the command takes plain arguments too.

    Set SCFM_TRACEBACK=1 to see the whole traceback of such an error.
    """
    table = table or {}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in a locale of ASCII "±" is no reason to end

    def guarded(argv: list[str]) -> int | None:
        sys.stdout.reconfigure(line_buffering=True)  # each line is seen when it is said, in a pipe too
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # JAX and Optax tell much at INFO
        try:
            if len(argv) > 1 and not positional:
                raise ValueError(f"unexpected argument {argv[1]!r}: options are written --name=value (see --helpshort)")
            check_encoding(sys.argv)
            return main(argv)
        except (ValueError, OSError, RecursionError) as error:
            if os.environ.get("SCFM_TRACEBACK"):
                raise
            if isinstance(error, RecursionError):
                return fail(ValueError("a file or an expression that was given is nested too deeply to be read"))
            return fail(error)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            end(130)  # an interpreter that takes its arrays from a program still running crashes

    def parse(argv: list[str]) -> list[str]:
        before = argv[: argv.index("--")] if "--" in argv else argv
        if any(word in HELP for word in before[1:]):
            print(help_text(sys.modules[main.__module__].__doc__, table))
            sys.exit(0)
        return _parse([at_home(word) for word in argv])

    define(table)
    _ours.update(table)
    app.run(guarded, flags_parser=parse)


def at_home(word: str) -> str:
    """Return a word of a command line with the user's folder for ~: behind --name= the shell leaves it as it is."""
    home = os.path.expanduser("~")
    return re.sub(r"(^--?[\w.]+=|,)~(?=/)", lambda match: match[1] + home, word) if word.startswith("-") else word


def check_encoding(argv: Sequence[str], encoding: str | None = None) -> None:
    """Raise ValueError for the first argument that cannot be read in the `encoding` of the locale: é where it is ASCII.

    Libraries that open files take no such names.
    """
    for text in argv:
        if any("\udc80" <= letter <= "\udcff" for letter in text):
            encoding = encoding or sys.getfilesystemencoding()
            raise ValueError(
                f"{text}: not readable in a locale of {encoding}; set PYTHONUTF8=1 or LC_ALL=C.UTF-8, and run it again"
            )


def require(*names: str) -> None:
    """Raise ValueError for the first of these flags that was not given."""
    for name in names:
        if not flags.FLAGS[name].value:
            raise ValueError(f"--{name} is missing (see --helpshort)")


def reading() -> dict[str, Any]:
    """Return the options that say how files of counts are read: what `h5ad.place` and `Run.embed` take."""
    return {name: flags.FLAGS[name].value for name in READING}


def step() -> int | str | None:
    """Return the step that --step means to `api.load`: a number, "best", None for the newest; ValueError for others."""
    text = flags.FLAGS.step
    if not text or text == "best":
        return text or None
    if not text.isdecimal():
        raise ValueError(f'--step={text}: a number or "best"')
    return int(text)


def check_paths(*names: str) -> None:
    """Raise FileNotFoundError unless the files that these flags list are there; say how a comma in a name is given.

    Weights that come along ("scfm:NAME") are there; ValueError for such a name that is none.
    """
    from scfm_jax import pretrained

    for name in names:
        texts = flags.FLAGS[name].value or []
        for i, text in enumerate(texts):
            if os.path.exists(pretrained.place(text)):
                continue
            spans = [(a, b) for a in range(i + 1) for b in range(i + 1, len(texts) + 1) if b - a > 1]
            joined = next((",".join(texts[a:b]) for a, b in spans if os.path.exists(",".join(texts[a:b]))), None)
            way = f"""; a name with a comma is put into quotes of its own: --{name}='"{joined}"'""" if joined else ""
            raise FileNotFoundError(f"--{name}={text}: no such file or folder{way}")


def quoting(flag: str, values: Sequence[str], choices: Iterable[str]) -> str:
    """Return how a list flag is to be written where a comma has cut one of the `choices` into some of its `values`.

    "" where none is cut. Lists are read as a line of CSV: a value that has a comma stands in double quotes.
    """
    cut = ",".join(value.strip() for value in values)
    for choice in choices:
        if "," in choice and f",{re.sub(BLANKS, ',', choice.strip())}," in f",{cut},":
            quoted = choice.replace('"', '""')
            return f"a value that has a comma stands in double quotes: --{flag}='\"{quoted}\"'"
    return ""


def check_free(output: str) -> None:
    """Raise OSError unless --output can be made: it is not there, and the folder it is to be in is, and is writable."""
    if os.path.exists(output):
        raise FileExistsError(f"--output={output}: exists already and is not overwritten; choose another name")
    if not os.path.isdir(os.path.dirname(os.path.abspath(output))):
        raise FileNotFoundError(f"--output={output}: its folder is not there; make it first")
    check_writable(os.path.dirname(os.path.abspath(output)), f"--output={output}")


def check_writable(folder: str | os.PathLike, named: str) -> None:
    """Raise PermissionError where nothing can be written in a folder, before hours are spent on what is to go there."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{named}: no permission to write in {folder}; choose another place")


def in_flags(text: str) -> str:
    """Return a message with options in the shell's notation: `layer=counts` becomes `--layer=counts`.

    Messages come from functions, whose options they name as Python writes them.
    """
    ours = "|".join(re.escape(name) for name in flags.FLAGS if name in SHARED or name in _ours)
    if not ours:
        return text
    text = re.sub(rf"(?<![\w.\-'\"(=])({ours})=True\b", r"--\1", text)
    return re.sub(rf"(?<![\w.\-'\"(=])({ours})=(?=[^\s=])", r"--\1=", text)


def fail(error: BaseException) -> int:
    """Print `error` as one line on stderr and return exit status 2."""
    text = str(error) or type(error).__name__
    if isinstance(error, KeyError | AttributeError) and error.args:  # ml_collections: a key that is not there
        text = " ".join(str(arg) for arg in getattr(error.args[0], "args", error.args))
    print(f"error: {in_flags(' '.join(text.split()))}", file=sys.stderr, flush=True)
    return 2


def end(status: int) -> None:
    """End the process now, with all that was printed, and without what Python does at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


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
    names = []
    for key, value in config.items():
        names.append(f"{prefix}{key}")
        names += _entries(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
    return names
