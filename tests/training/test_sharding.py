"""Meshes: any number of devices, split any way, computes the same losses and gradients; where each array lives.

python -m tests.training.test_sharding OUT MESH...  trains two steps on each mesh and writes losses and updates to OUT.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from scfm_jax import sharding
from scfm_jax.training import optim, step
from scfm_jax.types import Batch
from tests.harness import meshes, tiny

MESHES = {
    1: [{}],
    2: [{"data": 2}, {"fsdp": 2, "data": 1}, {"seq": 2}],
    4: [{"data": 2, "fsdp": 2}],
    8: [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "fsdp": 2, "seq": 2}],
}


def train(mesh: dict[str, int], steps: int = 2) -> dict[str, np.ndarray]:
    """Return losses, gradient norms and parameters of SGD steps of the tiny model on a mesh with dropout."""
    devices = sharding.make_mesh(**mesh)
    objective = tiny.objective(dropout=0.2)
    build = functools.partial(optim.build, steps=9, name="sgd", learning_rate=1.0, schedule="constant")
    with jax.set_mesh(devices):
        init = functools.partial(step.init_state, objective, build, 0)
        batches = [tiny.Loader().batch(2 * i) for i in range(steps)]
        batches = [Batch(**{name: b[name] for name in Batch.__dataclass_fields__}) for b in batches]
        shapes = jax.eval_shape(init, batches[0], tiny.CONSTANTS)
        layout = sharding.state_shardings(shapes, devices, min_size=0)
        state = jax.jit(init, out_shardings=layout)(batches[0], tiny.CONSTANTS)
        kernel = state.params["encoder"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // devices.shape["fsdp"]
        advance = jax.jit(
            functools.partial(step.train_step, objective, build(shapes.params), 1), out_shardings=(layout, None)
        )
        result = {}
        for i, batch in enumerate(batches):
            state, metrics = advance(state, sharding.put_batch(batch, devices))
            result |= {f"{name}_{i}": np.stack(pair) for name, pair in jax.device_get(metrics).items()}
        result |= meshes.named(state.params)
    return result


def on_devices(n: int, folder: pathlib.Path) -> list[dict[str, np.ndarray]]:
    """Return what `train` returns for every mesh of n host devices, computed in a process that has them."""
    meshes.apart(__name__, n, folder / str(n), *map(json.dumps, MESHES[n]))
    return [dict(np.load(folder / str(n) / f"{i}.npz")) for i in range(len(MESHES[n]))]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The losses and parameters on one device."""
    return on_devices(1, tmp_path_factory.mktemp("one"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4, 8])
def test_every_mesh_computes_what_one_device_computes(n, one, tmp_path):
    for mesh, result in zip(MESHES[n], on_devices(n, tmp_path), strict=True):
        meshes.assert_same(result, one, 1e-5, 1e-5, mesh)  # the rate is 1: a parameter has moved by its gradients


def test_shapes_decide_and_rules_overrule():
    mesh = jax.sharding.AbstractMesh((1, 4, 1), sharding.AXES)
    shapes = {
        "params": {"wide": (8, 512), "odd": (7, 9), "small": (4,), "table": (512, 8)},
        "opt_state": {"mu": {"wide": (8, 512)}, "v_row": {"table": (512,)}},
    }
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), shapes, is_leaf=lambda s: isinstance(s, tuple))
    found = sharding.state_shardings(state, mesh, rules=[("table", (None, "fsdp"))], min_size=16)
    assert jax.tree.map(lambda s: s.spec, found) == {
        "params": {
            "wide": PartitionSpec(None, "fsdp"),
            "odd": PartitionSpec(),
            "small": PartitionSpec(),
            "table": PartitionSpec(None, "fsdp"),
        },
        "opt_state": {"mu": {"wide": PartitionSpec(None, "fsdp")}, "v_row": {"table": PartitionSpec("fsdp")}},
    }
    with pytest.raises(ValueError, match="params/odd"):
        sharding.state_shardings(state, mesh, rules=[("odd", ("fsdp",))])


def test_sizes_that_do_not_fit_are_refused_in_one_line():
    n = jax.device_count()
    for wrong in ({"data": n + 1}, {"data": -1, "fsdp": -1}, {"data": 0}, {"fsdp": 2 * n}):
        with pytest.raises(ValueError, match="mesh data=") as error:
            sharding.make_mesh(**wrong)
        assert "\n" not in str(error.value)
    assert dict(sharding.make_mesh().shape) == {"data": n, "fsdp": 1, "seq": 1}


def test_constrain_needs_no_mesh():
    x = np.ones((2, 3, 4))
    assert sharding.constrain(x) is x


if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1])
    out.mkdir()
    for i, mesh in enumerate(sys.argv[2:]):
        np.savez(out / f"{i}.npz", **train(json.loads(mesh)))
