"""What a program computes on several devices: this machine's processor taken for as many, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scfm_jax.saving.leaves import path_name
from tests.harness import ROOT


def apart(module: str, devices: int, *arguments: object) -> None:
    """Run `python -m MODULE ARGUMENTS` with so many devices; CalledProcessError where it fails.

    `module`: the test's own `__name__`, whose last lines say what it does as a program.
    """
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True, env=environment, cwd=ROOT)


def named(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves of parameters or gradients by name, in host memory."""
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(ours: Mapping[str, Any], one: Mapping[str, Any], rtol: float, atol: float, mesh: Any) -> None:
    """Check that a mesh computes all that one device computes, and the same numbers."""
    assert set(ours) == set(one)
    for name, value in one.items():
        np.testing.assert_allclose(ours[name], value, rtol=rtol, atol=atol, err_msg=f"{mesh} {name}")
