"""Devices that are not here, to compile programs for: `h100:8`, `h200:1`, `v5e:4x4`, `v5p:4x4x8`, `v6e:16x16`.

Both vendors' compilers run without their devices. That of TPUs comes with `pip install "scfm_jax[tpu]"` and knows all
of them by name; that of NVIDIA's with `scfm_jax[cuda13]`, and wants to be told what it compiles for: `CONFIG`, of the
figures that NVIDIA publishes of the Hopper architecture, or a file that XLA wrote on such a machine.
"""

import importlib.metadata
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from scfm_jax.training import devices

TPUS = ("v5e", "v5p", "v6e")
GPUS = {"h100": ("NVIDIA H100 80GB HBM3", 80, 3352), "h200": ("NVIDIA H200", 141, 4800)}
"""What they call themselves, GB of memory, GB/s."""
NODE = 8
"""GPUs of one machine."""
CONFIG = """gpu_device_info {{
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  l2_cache_size: 52428800 device_memory_size: {memory} memory_bandwidth: {bandwidth}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 minor: 0 patch: 0 }}
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "{name}"
"""
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""Nothing can be timed to choose by, so products are cuBLAS'."""
PACKAGES = {"tpu": "libtpu", "cuda13": "jax-cuda13-plugin"}


class Target(NamedTuple):
    """Devices, what one of them can do, and options for the compiler."""

    name: str
    devices: Sequence[jax.Device]
    each: devices.Device
    options: dict


def absent(extra: str) -> str | None:
    """Return one line that says what to install for a compiler, of the extra `tpu` or `cuda13`; None where it is."""
    try:
        importlib.metadata.version(PACKAGES[extra])
    except importlib.metadata.PackageNotFoundError:
        return f'{PACKAGES[extra]} is not installed, which has the compiler: pip install "scfm_jax[{extra}]"'
    return None


def prepare() -> None:
    """Tell JAX, before it looks for devices, that it is to use the processor and not to wait for others."""
    settings = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")


def find(name: str, config: str | None = None) -> Target:
    """Return the target of a name.

    Args:
      config: file that describes the GPU to XLA, in place of our figures.

    Raises:
      ValueError: there is no such target, or its compiler is not installed, or refuses this arrangement.
      OSError: `config` is no file.
    """
    kind, _, size = name.partition(":")
    if kind in GPUS and re.fullmatch(r"[1-9]\d*", size):
        extra, options = "cuda13", GPU_OPTIONS
    elif kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", size):
        extra, options = "tpu", {}
    else:
        raise ValueError(f"--target={name}: there are {', '.join(GPUS)}:NUMBER and {', '.join(TPUS)}:AxB or AxBxC")
    if why := absent(extra):
        raise ValueError(f"--target={name}: {why}")
    prepare()
    make = _gpus if extra == "cuda13" else _tpus
    try:
        described = make(kind, size, config)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--target={name}: the compiler refuses it: {error}") from None
    each = devices.find(described[0].device_kind)
    return Target(name, described, each, dict(options))


def _tpus(kind: str, size: str, config: str | None) -> Sequence[jax.Device]:
    if config:
        raise ValueError(f"--target_config={config}: of GPUs; the compiler knows TPUs by name")
    sides = [int(side) for side in size.split("x")]
    host = {} if math.prod(sides) > 1 else {"chips_per_host_bounds": [1, 1, 1]}
    return topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{size}", **host).devices


def _gpus(kind: str, size: str, config: str | None) -> Sequence[jax.Device]:
    number, (name, memory, bandwidth) = int(size), GPUS[kind]
    text = CONFIG.format(name=name, memory=memory * 10**9, bandwidth=bandwidth * 10**9)
    text = pathlib.Path(config).read_text() if config else text
    if number > NODE and number % NODE:
        raise ValueError(f"--target={kind}:{size}: machines have {NODE} of them; give a multiple")
    shape = f"1x{-(-number // NODE)}x{min(number, NODE)}"
    return topologies.get_topology_desc("", "cuda", target_config=text, topology=shape).devices
