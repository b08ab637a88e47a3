"""Keys of a suite's cells: content hashes of all that a number depends on.

The code that counts is that of the task's file and of the model's folder, with every module of the project that they
import, anywhere in a file, and that those import in turn; of a package that is its `__init__`, and of what is imported
from it. A module that is found by its name at run time is not seen, so a task imports what it needs, and of the models
only the run's own counts. What changes no number is left out (`LEFT_OUT`), as are comments, docstrings and the
project's version; JAX and other packages, too: their versions stand in suite.json.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from scfm_jax import api
from scfm_jax.saving import checksums, leaves

PROJECT = ("scfm_jax", "data_pipeline", "configs", "experiments")
LEFT_OUT = ("experiments.pages", "experiments.cli", __name__)
"""Modules, with what is in them, that are not followed: reports, flags, and the keys themselves."""

Source = Callable[[str], str | None]
"""Returns the text of a module by its dotted name, None where there is no such module."""


def of(content: Mapping[str, Any]) -> str:
    """Return 24 hexadecimal digits that stand for plain content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def file(path: pathlib.Path) -> str:
    """Return the sha256 of a file, or of all files of a folder and their names."""
    if path.is_dir():
        return of(checksums.digests(path))
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def weights(run: api.Run) -> str:
    """Return what stands for a run: its weights, constants, config and genes."""
    arrays = leaves.flatten({"variables": run.variables, "constants": run.constants})
    sums = checksums.checksums(arrays)
    shapes = {name: [str(leaf.dtype), *leaf.shape] for name, leaf in arrays.items()}
    described = {name: run.meta.get(name) for name in ("model", "config", "genes", "second_names", "classes")}
    return of({"arrays": sums, "shapes": shapes, **described})


@functools.cache
def source(name: str) -> str | None:
    """Return the text of a module of the project, None where it is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its parent is a module, not a package: a function's name
        return None
    return pathlib.Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else None


def code(modules: Iterable[str], read: Source = source) -> str:
    """Return what stands for the code of modules and of all that they reach by imports."""
    return of(reached(modules, read))


def reached(modules: Iterable[str], read: Source = source) -> dict[str, str]:
    """Return {module: hash of its code} of modules, their packages, and all of the project that they import."""
    hashes: dict[str, str] = {}
    waiting = [package for name in modules for package in _packages(name)]
    while waiting:
        name = waiting.pop()
        if name in hashes or any(name == part or name.startswith(f"{part}.") for part in LEFT_OUT):
            continue
        text = read(name)
        if text is not None:
            hashes[name], imported = _parsed(text)
            waiting += imported
    return hashes


@functools.cache
def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's code, and the names of the project that it imports, with their packages.

    Raises:
      ValueError: an import is relative, which is not followed.
    """
    tree, imported = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"line {node.lineno}: a relative import, which the suite's keys do not follow")
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    names = {name for path in imported if path.partition(".")[0] in PROJECT for name in _packages(path)}
    return hashlib.sha256(ast.dump(_Code().visit(tree)).encode()).hexdigest(), tuple(sorted(names))


def _packages(name: str) -> list[str]:
    """Return a dotted name and the packages it is in, all of which an import runs."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


class _Code(ast.NodeTransformer):
    """Takes away what no number depends on: strings that stand by themselves, and the version."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Drop docstrings, those of values included."""
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        """Drop `__version__ = ...`."""
        return None if ast.dump(node.targets[0]) == ast.dump(ast.Name("__version__", ast.Store())) else node
