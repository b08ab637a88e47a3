"""The platform that a program is for, which is not always that of the process which compiles it."""

import jax


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": of the devices of the mesh (`jax.set_mesh`), without one those of the process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()
