"""scLong on many devices and at its published size: any split gives one device's numbers; what a cell costs.

`data` and `fsdp` split the cells of a batch, `fsdp` the parameters as well; `seq` splits the cells of a bag, so it
needs bags of several. Tokens of a cell stay together.

python -m tests.models.test_sclong_mesh OUT  trains a step on each of MESHES and writes losses and parameters to OUT.
python -m tests.models.test_sclong_mesh OUT plan  compiles one for eight devices of fsdp and writes what travels to OUT.
"""

import functools
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from scfm_jax import sharding
from scfm_jax.layers import graph
from scfm_jax.models import sclong
from scfm_jax.training import optim, step
from scfm_jax.types import Batch, TrainState
from tests.harness import meshes

GENES = 63  # and PAD: the gene tables divide by 8, so that they are split along the genes the graph runs between
MESHES = {
    "one": (1, 1, 1),
    "data 2": (2, 1, 1),
    "fsdp 2": (1, 2, 1),
    "seq 2": (1, 1, 2),
    "data 2, fsdp 2": (2, 2, 1),
    "data 8": (8, 1, 1),
    "fsdp 8": (1, 8, 1),
    "data 2, fsdp 2, seq 2": (2, 2, 2),
}
MODEL = sclong.VARIANTS["tiny"]["model"] | {"top_seq_len": 16, "base_dim": 16, "large_dim": 24, "graph": True}
MODEL |= {"key_max": "global", "scan": True}
quick = {"compiler_options": {"xla_backend_optimization_level": 0}}


def bag(bags: int = 8, cells: int = 2, expressed: int = 20) -> Batch:
    """Return cells that differ in how much they express; one is padding."""
    rng = np.random.default_rng(0)
    genes = np.argsort(rng.random((bags, cells, GENES)), axis=-1)[..., :24]
    genes = np.where(np.arange(24) < expressed, genes, GENES)
    mask = np.ones((bags, cells), bool)
    mask[-1, -1] = cells == 1
    return Batch(
        genes=genes.astype(np.int32),
        counts=np.where(genes < GENES, rng.poisson(rng.gamma(1, 9, (bags, cells, 1)), genes.shape) + 1, 0).astype("f4"),
        cell_mask=mask,
        study=np.zeros((bags, cells), np.int32),
        coords=np.full((bags, cells, 2), np.nan, np.float32),
        labels={},
    )


def constants(genes: int = GENES, edges: int = 300) -> dict:
    rng = np.random.default_rng(1)
    source, target = np.unique(rng.integers(0, genes, (edges, 2)), axis=0).T
    built = graph.build(source, target, rng.random(len(source)), n_nodes=genes + 1)
    return {"slots": np.arange(genes + 1), "measured": np.ones((1, genes), bool), **graph.constants(built)}


def train(sizes: tuple[int, int, int], **options) -> dict[str, np.ndarray]:
    """Return loss, gradient's norm and parameters after a step of gradient descent on a mesh of the first devices."""
    devices = jax.devices()[: np.prod(sizes)]
    mesh = jax.make_mesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    objective = step.pretraining(sclong, sclong.Model(n_genes=GENES, **MODEL | options), {}, {})
    build = functools.partial(optim.build, steps=9, name="sgd", learning_rate=1.0, schedule="constant")
    with jax.set_mesh(mesh):
        state = first(objective, build)
        layout = sharding.state_shardings(state, mesh, min_size=0)
        state = jax.device_put(state, layout)
        split(state.params, mesh)
        update = functools.partial(step.train_step, objective, build(state.params), 1)
        update = jax.jit(update, out_shardings=(layout, None), **quick)
        state, metrics = update(state, sharding.put_batch(bag(), mesh))
        split(state.params, mesh)
    return {name: np.stack(pair) for name, pair in jax.device_get(metrics).items()} | meshes.named(state.params)


@functools.cache
def drawn() -> dict:
    """Return parameters with keys so long that a maximum over other cells is felt, and random features."""
    model = sclong.Model(n_genes=GENES, **MODEL)
    inputs = sclong.prepare(bag(), jax.tree.map(jnp.asarray, constants()), jax.random.key(1), step=0, train=True)
    variables = jax.tree.map(np.asarray, jax.jit(model.init, **quick)(jax.random.key(0), inputs))
    for stack in ("large", "mini", "decoder"):
        for layer in variables["params"][stack].values():
            layer["key"]["kernel"] = layer["key"]["kernel"] * 2
    return variables


def first(objective: step.Objective, build) -> TrainState:
    """Return the state of step 0 with these parameters, in host memory."""
    found = jax.eval_shape(functools.partial(step.init_state, objective, build, 0), bag(), constants())
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), found)
    variables = drawn()
    buffers = {"buffers": variables["buffers"]}
    return zeros.replace(params=variables["params"], buffers=buffers, constants=constants())


def split(params: dict, mesh) -> None:
    """Assert that fsdp splits the deep stack's matrices and the gene tables, whatever the update made of them."""
    fsdp = mesh.shape["fsdp"]
    table, kernel = params["identity"]["graph_genes"], params["large"]["layers"]["mlp_in"]["kernel"]
    assert table.sharding.shard_shape(table.shape) == ((GENES + 1) // fsdp, 16)
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 24, 96 // fsdp)


def plan(cells: int) -> dict:
    """Return what a step of Adam on so many cells exchanges between eight devices of fsdp, and a device's share.

    As at the published size the small matrices around the deep stack are not split.
    """
    mesh = jax.make_mesh((1, 8, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    objective = step.pretraining(sclong, sclong.Model(n_genes=GENES, **MODEL, remat="full"), {}, {})
    build = functools.partial(optim.build, steps=9, name="adam", learning_rate=1.0, schedule="constant")
    batch = bag(cells, 1)
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(functools.partial(step.init_state, objective, build, 0), batch, constants())
        layout = sharding.state_shardings(shapes, mesh, min_size=1000)
        update = functools.partial(step.train_step, objective, build(shapes.params), 1)
        where = jax.tree.map(lambda x: sharding.batch_sharding(mesh, x.ndim), batch)
        given = sharding.abstract(shapes, layout), sharding.abstract(batch, where)
        compiled = jax.jit(update, out_shardings=(layout, None)).lower(*given).compile(**quick)
    text = compiled.as_text()
    leaves, places = map(jax.tree.leaves, (shapes.opt_state, compiled.output_shardings[0].opt_state))
    share = sum(math.prod(place.shard_shape(leaf.shape)) for leaf, place in zip(leaves, places, strict=True))
    moves = re.findall(rf" = [a-z0-9]+\[([0-9,]+)\]\S* ({MOVES})\(", text)
    return {"moves": moves, "kept": share / sum(leaf.size for leaf in leaves)}


MOVES = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"


def apart(folder: pathlib.Path, *what: str) -> pathlib.Path:
    """Run this file as a program that has eight devices, and return the folder that it fills."""
    meshes.apart(__name__, 8, folder, *what)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `train` returns for every mesh, and for one device with the maximum of each cell alone."""
    folder = apart(tmp_path_factory.mktemp("meshes"))
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_every_mesh_computes_what_one_device_computes(mesh, results):
    one = results["one"]
    assert {"loss", "grad_norm", "mask", "identity/graph_0/linear/kernel"} < one.keys()
    meshes.assert_same(results[mesh], one, 1e-4, 2e-5, mesh)  # the rate is 1: a parameter has moved by its gradients


@pytest.mark.slow
def test_meshes_would_differ_if_the_keys_maximum_were_that_of_a_device(results):
    one, alone = results["one"], results["set"]
    apart = {name: np.abs(one[name] - alone[name]) - 1e-4 * np.abs(one[name]) for name in one}
    assert max(difference.max() for difference in apart.values()) > 2e-4  # ten times what is let pass above


@pytest.mark.slow
def test_fsdp_gathers_the_weights_of_a_layer_and_never_the_tokens_of_its_cells(tmp_path):
    cells = 32
    found = json.loads((apart(tmp_path, "plan", str(cells)) / "plan.json").read_text())
    sizes = [tuple(map(int, shape.split(","))) for shape, _ in found["moves"]]
    least = cells * MODEL["top_seq_len"] * MODEL["base_dim"]  # numbers of the smallest array of tokens
    assert max(map(math.prod, sizes)) < least
    gathered = {size for size, (_, kind) in zip(sizes, found["moves"], strict=True) if kind == "all-gather"}
    width, inner = MODEL["large_dim"], MODEL["large_heads"] * MODEL["large_key_size"]
    assert {(width, inner), (inner, width), (width, 4 * width), (4 * width, width)} <= gathered
    assert found["kept"] < 0.4  # of Adam's moments: what is small is whole on each device


def test_a_bag_of_one_cell_is_not_split_over_seq():
    mesh = jax.sharding.AbstractMesh((1, 1, 2), sharding.AXES)
    with pytest.raises(ValueError, match=r"2 bags of 1 cells does not divide .* seq = 2 .*config.train.mesh") as error:
        sharding.put_batch(bag(2, 1), mesh)
    assert "\n" not in str(error.value)


def test_shapes_of_the_published_size_split_over_eight_devices():
    mesh = jax.sharding.AbstractMesh((1, 8, 1), sharding.AXES)
    model = sclong.Model(n_genes=27_874, scan=True)
    objective = step.pretraining(sclong, model, {}, {})
    make = functools.partial(optim.build, steps=9, name="adam")
    known = constants(27_874, 1000)
    few = bag(1, 1)
    state = jax.eval_shape(functools.partial(step.init_state, objective, make, 0), few, known)
    layout = sharding.state_shardings(state, mesh)
    trained = [(leaf, place) for leaf, place in zip(*map(jax.tree.leaves, (state.params, layout.params)), strict=True)]
    assert sum(leaf.size for leaf, _ in trained) == 1_006_086_461
    share = sum(np.prod(place.shard_shape(leaf.shape)) for leaf, place in trained)
    assert share < 1.01 * 1_006_086_461 / 8
    assert layout.params["identity"]["genes"].spec == PartitionSpec(None, "fsdp")  # 27,875 genes do not divide by 8


def inputs(mask_rate: float) -> dict:
    """Return the shapes of one cell's inputs at the published size, 4,096 genes expressed."""
    one = bag(1, 1)
    wide = jax.ShapeDtypeStruct((1, 1, 4096), "int32")
    one = one.replace(genes=wide, counts=jax.ShapeDtypeStruct(wide.shape, "float32"))
    known = {"slots": jnp.arange(27_875), "measured": np.ones((1, 27_874), bool)}
    prepare = functools.partial(sclong.prepare, rng=jax.random.key(0), step=0, train=True, mask_rate=mask_rate)
    return jax.eval_shape(lambda batch: prepare(batch, known), one)


def test_flops_of_a_cell_are_those_that_were_counted_of_the_original():
    model = sclong.Model(n_genes=27_874)
    assert sclong.flops(model, inputs(0)) == pytest.approx(9_143e9, rel=2e-3)
    assert 3 * sclong.flops(model, inputs(0)) == pytest.approx(27.4e12, rel=3e-3)
    large = sclong.flops(model, inputs(0)) - sclong.flops(model.clone(large_depth=0), inputs(0))
    assert large == pytest.approx(8_874e9, rel=2e-3)
    assert (
        0.99 < sclong.flops(model, inputs(0.15)) / 9_143e9 < 1
    )  # genes that are not scored cost less in the last layer


if __name__ == "__main__":
    if "plan" in sys.argv:
        pathlib.Path(sys.argv[1], "plan.json").write_text(json.dumps(plan(int(sys.argv[3]))))
        sys.exit()
    for name, sizes in MESHES.items():
        np.savez(pathlib.Path(sys.argv[1]) / f"{name}.npz", **train(sizes))
    np.savez(pathlib.Path(sys.argv[1]) / "set.npz", **train((1, 1, 1), key_max="set"))
