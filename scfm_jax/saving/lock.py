"""One training for one folder: the operating system's lock on a file in it, which ends with the process holding it."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from scfm_jax.saving.together import agree

NAME = ".lock"
_held: dict[str, tuple[threading.Thread, int]] = {}
"""{folder: (thread that holds its lock, descriptor of the file)} of this process."""


@contextlib.contextmanager
def alone(workdir: str | os.PathLike, kept_after: type[BaseException] | tuple = ()) -> Iterator[None]:
    """Hold the lock of a folder, made where there is none, inside; of several processes the first holds it for all.

    The thread that holds it may enter again. A lock of a thread or process that died is free.

    Args:
      kept_after: exceptions after which the thread goes on holding it, as somebody else saves what it was doing.

    Raises:
      ValueError: another training holds it, of this process or another; in every process.
      OSError: the folder cannot be written to.
    """
    folder = os.path.realpath(workdir)
    holder, descriptor = _held.get(folder, (None, -1))
    if holder is threading.current_thread():
        yield
        return
    if holder and not holder.is_alive():
        os.close(descriptor)
        del _held[folder]
    os.makedirs(folder, exist_ok=True)
    busy = _take(folder, str(workdir)) if jax.process_index() == 0 else ""
    if busy := agree(busy, "another training is in it"):
        raise ValueError(f"workdir={workdir}: {busy}; wait for it or stop it, or give another workdir")
    kept = False
    try:
        yield
    except kept_after:
        kept = True
        raise
    finally:
        if folder in _held and not kept:
            os.close(_held.pop(folder)[1])


def _take(folder: str, name: str) -> str:
    """Take the lock of a folder; return in words who holds it, "" where nobody did."""
    descriptor = os.open(pathlib.Path(folder, NAME), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            who = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            return f"another training is in it ({who or 'it has just begun'})"
        print(f"warning: {name} is on a file system without locks: start one training in it only", file=sys.stderr)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[folder] = threading.current_thread(), descriptor
    return ""


def _let_go() -> None:
    """Close what a forked child has inherited: it would hold the lock after the death of its parent."""
    for _, descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
