"""The commands that docstrings and pages tell a reader to type: are they ones that would start?"""

import importlib
import re
import shlex

from experiments.sweeps import plan
from experiments.training import config_file, settings

LAUNCHED = re.compile(r"-m experiments\.(\w+)|experiments/launch/\w+\.sh")
POSITIONAL = ("bench", "parity", "scale_sclong")
"""Commands that take plain words, too."""


def launched(text: str) -> list[tuple[str, str]]:
    """Return (command, its arguments as text) of every line that starts a command of `experiments`."""
    lines = [(line, LAUNCHED.search(line)) for line in text.replace("\\\n", " ").splitlines()]
    return [(match[1] or "train", line[match.end() :].partition("`")[0]) for line, match in lines if match]


def check(command: str, text: str) -> None:
    """Raise ValueError or OSError for a flag, config or config key that the command would refuse.

    Brackets mark what may be left out; "..." stands for any value.
    """
    arguments = [word.partition("...")[0] for word in shlex.split(re.sub(r"\s\[|\](?=\s|$)", " ", text))]
    groups = {"config": [], "evaluate": []}
    flags = {}
    for word in arguments:
        name, _, value = word.removeprefix("--").partition("=")
        section, dot, rest = name.partition(".")
        if not word.startswith("--") and command in POSITIONAL:
            continue
        if not word.startswith("--") or not re.fullmatch(r"\w+", section):
            raise ValueError(f"{command}: {word!r} is no flag")
        if dot:
            groups[section].append(f"--{section}.{rest}={value}")
        else:
            flags[name] = value
    settings.check_names(command, flags, importlib.import_module(f"experiments.{command}").OPTIONS)
    config = flags.get("config")
    if "sweep" in flags:
        module, variant = config_file.load(flags["sweep"], "sweep")
        sweep = module.get_sweep(*([variant] if variant else []))
        config, scored = sweep["config"], importlib.import_module(f"experiments.{sweep['evaluate']['command']}")
        names = [word.removeprefix("--evaluate.").partition("=")[0] for word in groups["evaluate"]]
        settings.check_names(f"{command} --evaluate", names, scored.OPTIONS)
    if "suite" in flags:
        config_file.find(f"suite_{flags['suite'].partition(':')[0]}", "suite")
    if config:
        unset = [word for word in groups["config"] if word.endswith("=")]
        known = settings.flatten(plan.parse(command, config, []).to_dict())
        names = [word.removeprefix("--config.").partition("=")[0] for word in unset]
        settings.check_names(f"{command} --config", names, known)
        plan.parse(command, config, [word for word in groups["config"] if word not in unset])
