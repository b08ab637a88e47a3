"""The device mesh, the sharding of a training state over it, and how a batch reaches the devices.

A mesh has three axes. `data` and `fsdp` split the bags of a batch; `fsdp` splits the parameters and the optimiser state
as well; `seq` splits the cells of a bag. Models know none of this: the sharding of a state follows from the shapes of
its leaves, and XLA's partitioner does the rest.
"""

import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scfm_jax.saving.leaves import path_name
from scfm_jax.types import Array

AXES = ("data", "fsdp", "seq")
BAGS = ("data", "fsdp")
"""The mesh axes over which the bags of a batch are split."""

_CLUSTER = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES")


def join_processes(distributed: bool | None = None) -> None:
    """Make this process one of a multi-process run, if it is one (before anything else touches a device).

    Args:
      distributed: True or False, or None to look whether the environment announces several processes: SLURM, Open MPI,
        a TPU pod, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set by hand.
    """
    if distributed is None:
        distributed = any(_announces_several(name, os.environ.get(name, "")) for name in _CLUSTER)
    if not distributed or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see signals.py
    by_hand = {}
    if "JAX_NUM_PROCESSES" in os.environ and "JAX_PROCESS_ID" in os.environ:
        by_hand["num_processes"] = int(os.environ["JAX_NUM_PROCESSES"])
        by_hand["process_id"] = int(os.environ["JAX_PROCESS_ID"])
    jax.distributed.initialize(**by_hand)


def _announces_several(name: str, value: str) -> bool:
    if name == "JAX_COORDINATOR_ADDRESS":
        return bool(value)
    if name == "TPU_WORKER_HOSTNAMES":
        return "," in value
    return value.isdigit() and int(value) > 1


def make_mesh(data: int = -1, fsdp: int = 1, seq: int = 1) -> Mesh:
    """Return the mesh of all devices of all processes; a size of -1 takes the devices that the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or a bag would be split over processes.
    """
    return mesh_of(jax.devices(), data, fsdp, seq)


def mesh_of(devices: Sequence[jax.Device], data: int = -1, fsdp: int = 1, seq: int = 1) -> Mesh:
    """Return the mesh of these devices, which need not be here; see `make_mesh`."""
    sizes, n = [data, fsdp, seq], len(devices)
    asked = f"mesh data={data}, fsdp={fsdp}, seq={seq}"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise ValueError(f"{asked}: sizes are positive, and at most one may be -1 (the rest)")
    if -1 in sizes:
        product = -math.prod(sizes)
        sizes[sizes.index(-1)] = n // product if n % product == 0 else 0
    if math.prod(sizes) != n:
        raise ValueError(f"{asked}: there are {n} devices, and the sizes must multiply to that")
    local = sum(device.process_index == devices[0].process_index for device in devices)
    if local % sizes[2]:
        raise ValueError(f"{asked}: seq must divide the {local} devices of a process")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def state_shardings(
    state: Any, mesh: Mesh, rules: Sequence[tuple[str, Sequence[Any]]] = (), min_size: int = 2**16
) -> Any:
    """Return a NamedSharding for every leaf of `state` (arrays or ShapeDtypeStructs).

    The first of `rules` whose regular expression is found in the leaf's path ("params/encoder_0/query/kernel") decides.
    A leaf without a rule is split over `fsdp` along its longest axis that divides evenly, and is replicated if it has
    none or fewer than `min_size` elements. Adam's moments have the shapes and path endings of their parameters, so they
    lie where the parameters lie.

    Args:
      rules: (regex, spec) pairs; a spec is one mesh axis, tuple of axes or None per axis of the array, as
        PartitionSpec.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None or (len(spec) > len(leaf.shape) and not name.startswith("params/")):  # Adafactor's factors
            return NamedSharding(mesh, _inferred(leaf.shape, mesh.shape["fsdp"], min_size))
        return _checked(NamedSharding(mesh, PartitionSpec(*map(_hashable, spec))), leaf.shape, name)

    return jax.tree_util.tree_map_with_path(sharding, state)


def batch_sharding(mesh: Mesh, ndim: int) -> NamedSharding:
    """Return where an array [B, C, ...] of a batch lives: bags over data and fsdp, cells over seq."""
    return NamedSharding(mesh, PartitionSpec(BAGS, "seq", *[None] * (ndim - 2)))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Put this process's share of a batch (numpy arrays [B / processes, C, ...]) onto the devices as global arrays.

    Raises:
      ValueError: the bags or the cells do not divide over the mesh.
    """
    bags = mesh.shape["data"] * mesh.shape["fsdp"]

    def put(array: np.ndarray) -> Array:
        shape = (array.shape[0] * jax.process_count(), *array.shape[1:])
        if shape[0] % bags or shape[1] % mesh.shape["seq"]:
            raise ValueError(
                f"a batch of {shape[0]} bags of {shape[1]} cells does not divide over data x fsdp = {bags} and "
                f"seq = {mesh.shape['seq']} devices: change config.data.batch, config.data.bag or config.train.mesh"
            )
        return jax.make_array_from_process_local_data(batch_sharding(mesh, array.ndim), array, shape)

    return jax.tree.map(put, batch)


def constrain(x: Array, merged: bool = False) -> Array:
    """Keep an activation [B, C, ...] where its batch lives; without a mesh that divides it (`jax.set_mesh`) do nothing.

    `merged`: one of cells by themselves, [B * C, ...]. Without this the partitioner is free to split a matrix product
    as its weights are split over fsdp, and then it is activations that travel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if merged:
        split = len(x) % mesh.size == 0
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES)) if split else x
    if len(x) % (mesh.shape["data"] * mesh.shape["fsdp"]) or x.shape[1] % mesh.shape["seq"]:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BAGS, "seq", *[None] * (x.ndim - 2)))


def _inferred(shape: Sequence[int], fsdp: int, min_size: int) -> PartitionSpec:
    if fsdp == 1 or math.prod(shape) < min_size:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def _hashable(axis: Any) -> Any:
    return axis if axis is None or isinstance(axis, str) else tuple(axis)


def _checked(sharding: NamedSharding, shape: Sequence[int], name: str) -> NamedSharding:
    try:
        sharding.shard_shape(tuple(shape))
    except ValueError as error:
        raise ValueError(
            f"sharding rule {sharding.spec} does not fit {name} of shape {tuple(shape)}: {error}"
        ) from None
    return sharding


def abstract(state: Any, shardings: Any | Mapping) -> Any:
    """Return `state` as ShapeDtypeStructs that carry `shardings`: what a checkpoint is restored like."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state, shardings
    )


def any_process(flag: bool, mesh: Mesh) -> Array:
    """Return a scalar that is positive on every process if `flag` is set on any, without waiting for the others."""
    votes = np.full(jax.local_device_count(), flag, np.int32)
    spec = NamedSharding(mesh, PartitionSpec(AXES))
    return _sum(jax.make_array_from_process_local_data(spec, votes, (jax.device_count(),)), mesh)


@functools.partial(jax.jit, static_argnums=1)
def _sum(votes: Array, mesh: Mesh) -> Array:
    return jax.lax.with_sharding_constraint(votes.sum(), NamedSharding(mesh, PartitionSpec()))
