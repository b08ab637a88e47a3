"""Weights alone, in one file that anything can read: safetensors, with the metadata and a checksum per array inside."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scfm_jax.saving.leaves import difference, flatten, nest, table_of
from scfm_jax.saving.sealed import Damaged, one_line, seal, sync, unseal


def export(path: str | os.PathLike, variables: Any, meta: Mapping) -> None:
    """Write `variables` (a tree of arrays) and `meta` (JSON) to a safetensors file, each array with its checksum."""
    path = pathlib.Path(path)
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    content = {"leaves": table_of(leaves), "meta": dict(meta)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it; safetensors lets nobody else read its files
        save_file({n: np.array(a, order="C") for n, a in leaves.items()}, partial, {"scfm_jax": seal(content)})
        partial.chmod(mode)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: the weights could not be written: {one_line(error)}") from error


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (nested dict of numpy arrays, meta) of a file of `export`; ValueError if it is damaged."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        with safe_open(path, "numpy") as file:
            sealed = (file.metadata() or {}).get("scfm_jax")
            leaves = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if sealed is None:
            raise Damaged("it was not written by scfm_jax (published weights are read by api.from_published)")
        content = unseal(sealed, ("leaves", "meta"))
        if damage := difference(leaves, content["leaves"]):
            raise Damaged(damage)
    except (Damaged, SafetensorError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{path}: not a whole weights file: {one_line(error)}") from error
    return nest(leaves), content["meta"]
