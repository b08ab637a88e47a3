"""Downstream tasks, one file each in the folder of its family: predict, score, and the baselines beside every score.

A task is found by its name: `get("cell_type")` imports `cells/cell_type.py`.
"""

import importlib
import pathlib
from types import ModuleType


def names() -> dict[str, str]:
    """Return {task: its module}, of all files in the folders beside this one."""
    files = sorted(pathlib.Path(__file__).parent.glob("*/[!_]*.py"))
    return {file.stem: f"{__name__}.{file.parent.name}.{file.stem}" for file in files}


def get(name: str) -> ModuleType:
    """Return the module of task `name`; ValueError names the tasks there are."""
    if name not in names():
        raise ValueError(f"task {name!r}: no such task; there are {', '.join(names())}")
    return importlib.import_module(names()[name])
