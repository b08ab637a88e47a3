"""Files of published weights and what lies beside them: JSON, safetensors, npz, arguments; nothing is unpickled."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

UNKNOWN = "unknown"
"""Genes of weights that came without their names are called unknown:0, unknown:1, and so on."""


def json_object(path: str | pathlib.Path) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError or OSError says in one line that it is none."""
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: should hold one JSON object")
    return content


def check_fixed(published: Mapping[str, Any], fixed: Mapping[str, Any], what: str = "published config") -> None:
    """Raise ValueError, in one line that names them, for arguments whose only supported value is another.

    Args:
      fixed: {name of an argument: the value that is supported}.
    """
    if wrong := {name: value for name, value in published.items() if name in fixed and value != fixed[name]}:
        asked = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
        only = ", ".join(f"{name}={fixed[name]!r}" for name in wrong)
        raise ValueError(f"{what}: {asked}: only {only} is supported")


def arrays(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors or npz file by name."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        with np.load(path, allow_pickle=False) as content:
            return dict(content)
    except Exception as error:
        raise ValueError(f"{path}: not a whole safetensors or npz file ({type(error).__name__})") from None
