"""Write files completely or not at all (temporary name, fsync, rename), and take their checksums (crc32c)."""

import contextlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator

import google_crc32c


def crc32c(data: bytes) -> str:
    """Return the crc32c of `data` as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"


def checksum(path: pathlib.Path, sync: bool = False) -> str:
    """Return the crc32c of a file as eight hexadecimal digits, read in blocks; `sync` also flushes it to disk."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            value = google_crc32c.extend(value, block)
        if sync:
            os.fsync(file.fileno())
    return f"{value:08x}"


def files(folder: pathlib.Path) -> list[str]:
    """Return every file below `folder`, as sorted POSIX paths relative to it."""
    paths = (pathlib.Path(place, name) for place, _, names in os.walk(folder) for name in names)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """Flush every file below `folder` to disk and return its crc32c by relative path."""
    sums = {name: checksum(folder / name, sync=True) for name in files(folder)}
    for place, _, _ in os.walk(folder):
        sync_folder(place)
    return sums


def sync_folder(path: str | os.PathLike) -> None:
    """Flush the names in a folder to disk, so that a rename in it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a temporary file beside `path` that takes its name when all went well, and is removed otherwise.

    It is flushed to disk before it is renamed, and the folder after it. What a killed process of this machine was
    writing for `path` is removed first. OSError names `path` where the disk is full.
    """
    path = pathlib.Path(path)
    remove_orphans(path)
    temporary = path.with_name(f".{path.name}.{_owner()}")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Give errors of the operating system that name no file, such as of a full disk, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _owner() -> str:
    """Return what marks this process in the names of its temporary files."""
    return f"{socket.gethostname()}.{os.getpid()}"


def remove_orphans(path: pathlib.Path) -> None:
    """Remove temporary files and folders for `path` of processes of this machine that are not alive any more."""
    mark = re.compile(re.escape(f".{path.name}.{socket.gethostname()}.") + r"(\d+)(\..*)?")
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for match in filter(None, map(mark.fullmatch, names)):
        if _is_alive(int(match[1])):
            continue
        orphan = path.with_name(match[0])
        if orphan.is_dir():
            shutil.rmtree(orphan, ignore_errors=True)
        else:
            orphan.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextlib.contextmanager
def writing_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a temporary folder beside `path` that takes its name when all went well, and is removed otherwise.

    As for `writing`. OSError where `path` is there already and not empty.
    """
    path = pathlib.Path(path).absolute()
    remove_orphans(path)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.{_owner()}.", dir=path.parent))
    try:
        with naming(path):
            (temporary / "all").mkdir()
            yield temporary / "all"
            checksums(temporary / "all")  # flushes every file
            (temporary / "all").rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(path.parent)


def write_file(path: str | os.PathLike, data: bytes) -> None:
    """Put `data` in the file `path` in one step."""
    with writing(path) as temporary:
        temporary.write_bytes(data)
