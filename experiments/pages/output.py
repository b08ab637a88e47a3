"""What commands leave behind: files and folders of tables, JSON and pictures, whole or not at all.

JSON objects carry their checksum (`scfm_jax.saving.sealed`); `read` and `finished` read what is reported from.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import whole
from experiments.pages import names
from scfm_jax.saving import sealed


def write(folder: str | os.PathLike, files: Mapping[str, Any]) -> None:
    """Write a new folder of files, all of them or none; see `encoded` for what a file may be."""
    with whole.writing_folder(folder) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(encoded(content))


def write_file(path: str | os.PathLike, content: Any) -> None:
    """Write or replace one file, whole or not at all; see `encoded` for what it may be."""
    whole.write_file(path, encoded(content))


def encoded(content: Any) -> bytes:
    """Return bytes as they are, text as UTF-8, and anything else as JSON, an object with its checksum."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, Mapping) and content:
        return (sealed.dumps(plain(content), indent=1) + "\n").encode()
    return (content if isinstance(content, str) else json.dumps(plain(content), indent=1) + "\n").encode(
        errors="surrogateescape"  # file names as they are, in whatever locale
    )


def read(path: str | os.PathLike, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Return a JSON object that was written here; `say` (stderr) is told where an old one has no checksum.

    ValueError names the file where it is damaged, FileNotFoundError where it is not there.
    """
    content, has_checksum = sealed.read(path)
    if not has_checksum:
        (say or warn)(f"{path} {sealed.UNSEALED}")
    return content


def finished(path: str | os.PathLike, say: Callable[[str], None] | None = None) -> dict[str, Any] | None:
    """Return what a file of finished work holds; None where it is not there, or damaged and so to be made again."""
    if not pathlib.Path(path).is_file():
        return None
    try:
        return read(path, say)
    except sealed.Damaged as damage:
        (say or warn)(f"{damage}: it is made again")
        return None


def warn(text: str) -> None:
    """Tell the user of something that is not as it should be."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


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
