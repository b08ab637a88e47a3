"""Stopping well: SIGTERM or SIGINT at any moment ends in a saved state and exit status 0.

Python runs a signal handler in the main thread only, and only between two bytecodes: a compilation or a read that hangs
would keep it waiting for minutes. So the work runs in a second thread, and the main thread does nothing but wait for
the end of the work or for a signal. The worker holds a `StateLock` while it updates the training state (a step donates
the old state to the new one) and lets it go whenever it merely waits: for data, for the compiler, for a validation.
While the lock is free the supervisor may take it for good and save the state.

Several processes must save the same step, so there none stops by itself: they vote (`sharding.any_process`), and all
raise `Stopped` at the same step; then the supervisors save together.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESUME = "resume with the same command"
PATIENCE_S = 1.0
"""How long stopped work may take to notice before the process ends without it."""


class Stopped(Exception):
    """The work was asked to stop and has reached a point where it can."""


class StateLock:
    """The lock of the training state: held by the worker while it updates the state, else free for saving it.

    Attributes:
      save: saves the state and returns what to tell the user; None while there is nothing to save.
      stopping: True once a stop was asked for.
      shared: True in a run of several processes, which stop together, by vote only.
    """

    def __init__(self) -> None:
        self.save: Callable[[], str] | None = None
        self.stopping = False
        self.shared = False
        self._lock = threading.Lock()
        self._held = False
        self._taken = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock inside, where the state changes, except while it is `released`."""
        self._acquire()
        try:
            yield
        finally:
            self._release()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Let the lock go while waiting, when the state is not touched; Stopped if it was taken meanwhile."""
        if self.shared:
            yield
            return
        self._release()
        try:
            yield
        except Exception as error:
            if self.stopping:  # a reader's process that got the signal, too, may have failed
                raise Stopped from error
            raise
        self._acquire()

    def take(self) -> None:
        """Take the lock for good, as soon as the worker does not hold it: the state changes no more."""
        with self._lock:
            self._taken = True

    def _acquire(self) -> None:
        self._lock.acquire()
        if self._taken or (self.stopping and not self.shared):
            self._lock.release()
            raise Stopped
        self._held = True

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._lock.release()


def exit_at_once() -> None:
    """Let SIGTERM and SIGINT end the process with status 0 until `supervise` takes over: nothing is there to save."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: _end(f"nothing to save\n{RESUME}\n"))


def supervise(work: Callable[[StateLock], None]) -> None:
    """Run `work(lock)` in a thread and wait for it; on SIGTERM or SIGINT save the state that the lock is of.

    Call it from the main thread. What the work raises is raised here. After a signal the function returns if the work
    ends within PATIENCE_S, else it ends the process with status 0: nothing can interrupt a thread that is inside XLA.
    """
    lock, ending = StateLock(), []

    def run() -> None:
        try:
            work(lock)
        except BaseException as error:
            ending.append(error)

    def on_signal(number: int, _frame: object) -> None:
        if not lock.stopping:
            _say(f"\n{signal.Signals(number).name}: stopping\n")
        lock.stopping = True

    previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    try:
        thread = threading.Thread(target=run, name="work", daemon=True)
        thread.start()
        while thread.is_alive() and (lock.shared or not lock.stopping):
            thread.join(0.1)  # not for ever: handlers run between two waits
        if ending and not isinstance(ending[0], Stopped):
            raise ending[0]
        if ending or thread.is_alive():
            _close(lock, thread)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _close(lock: StateLock, thread: threading.Thread) -> None:
    lock.take()
    _say(f"{lock.save() if lock.save else 'nothing to save'}\n{RESUME}\n")
    thread.join(PATIENCE_S)
    if thread.is_alive():
        _end()


def _say(text: str) -> None:
    os.write(2, text.encode())  # not print: a handler may have interrupted one


def _end(text: str = "") -> None:
    _say(text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the interrupted code may be inside the stream
            stream.flush()
    os._exit(0)
