"""Keys of a suite's cells: content hashes of all that a number depends on.

A change of comments or docstrings changes no key. The code that counts is that of the task and of the model, with what
they import of `FOLLOWED`; not that of JAX or the data pipeline, whose versions stand in suite.json.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import pathlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from scfm_jax import api
from scfm_jax.saving import checksums, leaves

FOLLOWED = (
    "scfm_jax.tasks",
    "scfm_jax.models.",
    "scfm_jax.layers",
    "scfm_jax.tasks.metrics",
    "scfm_jax.inference.infer",
)


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
    described = {name: run.meta.get(name) for name in ("model", "config", "genes", "classes")}
    return of({"arrays": sums, "shapes": shapes, **described})


def code(modules: Iterable[ModuleType | str]) -> str:
    """Return what stands for the code of modules and of what they import of FOLLOWED."""
    waiting = [module if isinstance(module, str) else module.__name__ for module in modules]
    seen: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen[name], imported = _source(name)
            waiting += imported
    return of(seen)


@functools.cache
def _source(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the hash of a module's code without docstrings, and the modules of FOLLOWED that it imports."""
    tree = ast.parse(pathlib.Path(importlib.util.find_spec(name).origin).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    followed = sorted(x for x in imported if x.startswith(FOLLOWED) and _is_module(x))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(followed)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, not a package: a function's name
        return False
