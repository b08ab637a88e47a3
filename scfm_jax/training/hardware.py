"""What the machine can do at most and what a run takes of it: peak FLOP/s, memory."""

import contextlib
import ctypes
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.training import devices


@functools.cache
def peak_flops() -> float | None:
    """Return the peak FLOP/s of all devices together, None for an accelerator that is not in the table.

    A CPU's peak is measured: the fastest of a few float32 matrix products on this process's cores, however many devices
    they pose as.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _measured_matmul() * jax.process_count()
    listed = devices.find(device.device_kind)
    return listed.tflops * 1e12 * jax.device_count() if listed else None


def name() -> str:
    """Return what a run computes on: "2 x NVIDIA H100", "cpu, 2 cores"."""
    device, n = jax.local_devices()[0], jax.device_count()
    if device.platform == "cpu" and n == 1:
        return f"cpu, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return f"{n} x {device.device_kind}"


def memory_bytes() -> int:
    """Return the largest memory in use so far on this process's first device; on a CPU the resident size of the
    process.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats.get("peak_bytes_in_use", stats.get("bytes_in_use", 0))
    import psutil

    return psutil.Process().memory_info().rss


def _measured_matmul(n: int = 1024, repeats: int = 5) -> float:
    x = jax.device_put(np.ones((n, n), np.float32), jax.local_devices()[0])
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def give_back() -> None:
    """Give freed memory back to the system, where that is glibc: it keeps what compiling a program took."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
