"""Text that carries its own checksum: JSON files, and lines of JSON that are appended to.

`seal` wraps the metadata of checkpoints and weights with their sha256. `dumps` leaves an object as it is and adds one
last key, "crc", the CRC-32 of the text before it: what reads JSON reads such files and lines unchanged. An object
without that key was written by an older version or another program; it is read, and whoever reads it is told.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np

CRC = "crc"
_SEALED = re.compile(r'(?P<body>.*?),\s*"crc": "(?P<crc>[0-9a-f]{8})"\s*\}\s*', re.DOTALL)
DIFFERS = "does not match its checksum"
UNSEALED = "has no checksum (an older version wrote it); its numbers stand as they are"


class Damaged(ValueError):
    """What is on disk is not what was written."""


def seal(content: Mapping) -> str:
    """Return `content` as JSON text that carries its own sha256."""
    body = json.dumps(content, sort_keys=True)
    return f'{{"sha256": "{hashlib.sha256(body.encode()).hexdigest()}", "content": {body}}}'


def unseal(text: str | bytes, keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the content of a sealed text; Damaged if a character of it changed, or it lacks one of `keys`."""
    text = text if isinstance(text, str) else text.decode(errors="replace")
    try:
        content = json.loads(text)["content"]
        same = seal(content) == text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"is not readable: {one_line(error)}") from None
    if not same:
        raise Damaged(DIFFERS)
    if missing := [key for key in keys if not isinstance(content, dict) or key not in content]:
        raise Damaged(f"is whole but has no entry {missing[0]!r}: another program wrote it")
    return content


def dumps(content: Mapping[str, Any], indent: int | None = None) -> str:
    """Return a JSON object, not empty, as text that ends with its own CRC-32."""
    text = json.dumps(content, indent=indent)
    body = text[:-1].rstrip()
    between = "\n" + " " * indent if indent else " "
    return f'{body},{between}"{CRC}": "{zlib.crc32(body.encode()):08x}"{text[len(body) :]}'


def loads(text: str | bytes) -> tuple[dict[str, Any], bool]:
    """Return the content of a text of `dumps`, and whether it has a checksum at all; Damaged if it changed."""
    try:
        text = text if isinstance(text, str) else text.decode()
        content = json.loads(text)
    except RecursionError:
        raise Damaged("is nested too deeply to be read") from None
    except ValueError:
        raise Damaged("is torn or damaged" if text.strip() else "is empty") from None
    if not isinstance(content, dict):
        raise Damaged("holds no JSON object")
    if CRC not in content:
        return content, False
    match = _SEALED.fullmatch(text)
    if not match or int(match["crc"], 16) != zlib.crc32(match["body"].encode()):
        raise Damaged(DIFFERS)
    return {name: value for name, value in content.items() if name != CRC}, True


def read(path: str | os.PathLike) -> tuple[dict[str, Any], bool]:
    """Return what a file of `dumps` holds, and whether it has a checksum; Damaged names the file."""
    try:
        return loads(pathlib.Path(path).read_bytes())
    except Damaged as damage:
        raise Damaged(f"{path} {damage}") from None


@dataclasses.dataclass
class Lines:
    """The lines of a file.

    Attributes:
      rows: (number of the line from 1, its content) of those that are whole.
      problems: one text for each line that was passed over, and one if lines have no checksum.
    """

    rows: list[tuple[int, dict[str, Any]]]
    problems: list[str]


def read_lines(path: str | os.PathLike) -> Lines:
    """Return the lines of a file, none where there is no file; damaged and torn ones are passed over, by name.

    Lines without a checksum are taken while none before them has one: a file that an older version began.
    """
    path, lines, sealed, plain = pathlib.Path(path), Lines([], []), False, 0
    for number, text in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), 1):
        if not text.strip():
            continue
        try:
            row, has_seal = loads(text)
            if sealed and not has_seal:
                raise Damaged("lost its checksum")
        except Damaged as damage:
            lines.problems.append(f"{path.name}, line {number} {damage}: passed over")
            continue
        sealed, plain = sealed or has_seal, plain + (not has_seal)
        lines.rows.append((number, row))
    if plain:
        lines.problems.append(f"{path.name} {UNSEALED}" if not sealed else f"{path.name}, its first part, {UNSEALED}")
    return lines


def open_lines(path: str | os.PathLike, guard: BinaryIO | None = None) -> BinaryIO:
    """Open a file of lines to append to, made where there is none; a last line that is torn is cut off first.

    Where other processes append to it too, each holds a lock meanwhile: until it closes `guard`, the same file opened.
    """
    if guard is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(guard, fcntl.LOCK_EX)
    file = open(path, "ab+")  # noqa: SIM115
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    data = file.read() if end else b""
    whole = data.rfind(b"\n") + 1
    if whole < end:
        try:
            loads(data[whole:])
            file.write(b"\n")
        except Damaged:
            file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return file


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file, each checked against the CRC-32 that it carries; Damaged names the file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and numpy raise many types for damaged files
        raise Damaged(f"{path} is torn or damaged: {one_line(error)}") from None


def sync(path: str | os.PathLike) -> None:
    """Push a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}…"
