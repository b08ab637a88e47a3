"""What one process of a run does for all, so that all go on or all end."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from scfm_jax.saving.sealed import one_line


def on_first(work: Callable[[], None], what: str) -> None:
    """Run `work` on process 0 while the others wait; OSError on every process if it fails there."""
    error = None
    if jax.process_index() == 0:
        try:
            work()
        except OSError as e:
            error = e
    if agree("failed" if error else ""):
        raise OSError(f"{what}: {one_line(error) if error else 'process 0 could not write'}") from error


def agree(problem: str, elsewhere: str = "damaged on another process") -> str:
    """Return this process's problem, or `elsewhere` where only another one has one; "" if no process has."""
    if jax.process_count() == 1:
        return problem
    anywhere = multihost_utils.process_allgather(np.array(bool(problem))).any()
    return problem or (elsewhere if anywhere else "")
