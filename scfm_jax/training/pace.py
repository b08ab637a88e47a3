"""How long something still takes: durations in words, and a line now and then for what is done of a long list."""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
EVERY_S = 5.0
"""Seconds between two lines; what takes less tells none."""


def tell(text: str) -> None:
    """Print a line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(eq=False)
class _Count:
    """What is `done` of `total` items, 0 where their number is not known.

    Attributes:
      say: where lines go. clock: seconds. caller: the id of the frame that takes the items.
      began, told: when it began, and when a line was told.
    """

    what: str
    total: int
    say: Callable[[str], None]
    clock: Callable[[], float]
    caller: int
    done: int = 0

    def __post_init__(self) -> None:
        self.began = self.told = self.clock()

    def __str__(self) -> str:
        return f"{self.what} {self.done:,}" + (f" of {self.total:,}" if self.total else "")


_running: list[_Count] = []
"""The counts that run now, each within the one before."""


def counted(
    items: Iterable[Item],
    what: str,
    say: Callable[[str], None] = tell,
    clock: Callable[[], float] = time.monotonic,
    total: int | None = None,
) -> Iterator[Item]:
    """Yield the items, and between them tell `say` "<what> 12 of 66, ETA 3 min", every few seconds and at the end.

    A count within another one is told with it, by its `say`: "scored 2 of 9, embedded 31 of 120, ETA 4 min".

    Args:
      what: is done with an item, such as "scored".
      say: where lines go; `print`, the default of reports, stands for `tell`, as progress is no result; `lambda text:
        None` for nowhere. clock: seconds.
      total: number of the items, where they have no length; 0 if it is not known.
    """
    number = len(items) if total is None else total  # type: ignore[arg-type]
    callers = _callers()
    here = _Count(what, number, tell if say is print else say, clock, next(iter(callers)))
    _running[:] = [count for count in _running if count.caller in callers]  # others were left by an error
    _running.append(here)
    try:
        for item in items:
            yield item
            if here in _running:  # else the one around it has gone on without the rest
                del _running[_running.index(here) + 1 :]
                here.done += 1
                _now_and_then()
    finally:
        last = bool(_running) and _running[0] is here
        if here in _running:
            del _running[_running.index(here) :]
    taken = clock() - here.began
    if last and here.done and taken >= EVERY_S:
        here.say(f"{here} in {words(taken)}")


def progress(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Tell on stderr how far a loop is: `counted` as `data_pipeline.progress` has it."""
    return counted(items, what, total=total)


def _callers() -> dict[int, None]:
    """Return the ids of the frames that wait for the caller's, the nearest first."""
    frame, ids = sys._getframe(2), {}
    while frame:
        ids[id(frame)] = None
        frame = frame.f_back
    return ids


def _now_and_then() -> None:
    """Tell what is done in all counts that run, if the last line is old and the whole is not over."""
    whole = _running[0]
    now, done = whole.clock(), 0.0
    if now - whole.told < EVERY_S or whole.done == whole.total > 0:
        return
    for count in reversed(_running):
        done = (count.done + done) / count.total if count.total else 0.0
    whole.told = now
    left = f", ETA {words((now - whole.began) * (1 - done) / done)}" if 0 < done <= 1 else ""
    whole.say(", ".join(map(str, _running)) + left)


def words(seconds: float) -> str:
    """Return a duration as one reads it: "40 s", "12 min", "3.5 h", "2.1 days"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
