"""The folder that an analysis leaves behind: tables, JSON and pictures, all of them or none."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def write(folder: str | os.PathLike, files: Mapping[str, Any]) -> None:
    """Write a new folder under a temporary name and rename it; bytes and text as they are, the rest as JSON."""
    folder = pathlib.Path(folder).absolute()
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        whole = partial / "all"
        whole.mkdir()
        for name, content in files.items():
            if not isinstance(content, bytes | str):
                content = json.dumps(plain(content), indent=1) + "\n"
            (whole / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        whole.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numpy numbers as Python's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean ± half the range of values over seeds, the mean alone of a single one, "–" of none."""
    known = np.asarray([value for value in values if value is not None and np.isfinite(value)])
    if not len(known):
        return "–"
    mean = f"{known.mean():.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {np.ptp(known) / 2:.{digits}f}"
