"""What commands leave behind: files and folders of tables, JSON and pictures, whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import whole
from experiments.pages import names


def write(folder: str | os.PathLike, files: Mapping[str, Any]) -> None:
    """Write a new folder of files, all of them or none; see `encoded` for what a file may be."""
    with whole.writing_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(encoded(content))


def write_file(path: str | os.PathLike, content: Any) -> None:
    """Write or replace one file, whole or not at all; see `encoded` for what it may be."""
    whole.write_file(path, encoded(content))


def encoded(content: Any) -> bytes:
    """Return bytes as they are, text as UTF-8, and anything else as JSON."""
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(plain(content), indent=1) + "\n").encode()


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
    return "\n".join([_line(head), "|" + "---|" * len(head), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    """Return a line of a table; a bar or a line break in a name is part of the name."""
    return "| " + " | ".join(names.visible(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return mean ± half the range of values over seeds, the mean alone of a single one, "–" of none."""
    numbers = np.asarray([value for value in values if value is not None and np.isfinite(value)])
    if not len(numbers):
        return "–"
    mean = f"{numbers.mean():.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {np.ptp(numbers) / 2:.{digits}f}"
