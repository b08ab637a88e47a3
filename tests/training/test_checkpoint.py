"""Checkpoints: bitwise round trips onto any mesh, never a wrong number, never a half-written step."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scfm_jax.saving import checkpoint, weights
from scfm_jax.saving.checksums import Damaged, checksums
from scfm_jax.types import TrainState
from tests.harness import ROOT

META = {"model": "cellplm", "genes": ["CD3E", "MS4A1"], "config": {"width": 8}, "loader": {"index": 7}}


def make_state(seed: int = 0, width: int = 8) -> TrainState:
    """Return a small training state with every kind of leaf a real one has."""
    rng = np.random.default_rng(seed)
    params = {"encoder": {"kernel": jnp.asarray(rng.normal(size=(16, width)), jnp.float32)}, "bias": jnp.ones(3)}
    return TrainState(
        step=jnp.int32(seed),
        rng=jax.random.key_data(jax.random.key(seed)),
        params=params,
        opt_state=optax.adamw(1e-3).init(params),
        buffers={"constants": {"projection": jnp.asarray(rng.normal(size=(4, 4)), jnp.bfloat16)}},
        constants={"measured": jnp.asarray(rng.random((2, 5)) > 0.5), "empty": jnp.zeros((0, 3))},
        ema=None,
    )


def same(a, b) -> bool:
    """Whether two trees hold bitwise the same leaves."""
    x, y = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(x) == len(y) and all(
        p.dtype == q.dtype and p.shape == q.shape and np.asarray(p).tobytes() == np.asarray(q).tobytes()
        for p, q in zip(x, y, strict=True)
    )


def flip(path: pathlib.Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def run(code: str, *args: str, env: dict | None = None, **options) -> subprocess.Popen:
    """Start a Python process that runs `code`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *args],
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"} | (env or {}),
        cwd=ROOT,
        **options,
    )


def test_round_trip_is_bitwise(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 3, state, META)
    restored = checkpoint.restore(tmp_path, like=state)
    assert same(restored.state, state) and isinstance(restored.state, TrainState)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    assert (restored.meta, restored.step, restored.skipped) == (META, 3, [])
    assert checkpoint.read_meta(tmp_path) == META and checkpoint.latest_valid(tmp_path) == 3


def test_without_like_a_checkpoint_describes_itself(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 3, state, META)
    restored = checkpoint.restore(tmp_path).state
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert same(restored["params"], state.params) and same(restored["constants"], state.constants)
    assert checkpoint.restore(tmp_path, only=("params",)).state.keys() == {"params"}


def test_checksum_changes_with_every_single_bit_and_every_exchange():
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    seen = {checksums({"x": array})["x"]}
    for bit in range(array.nbytes * 8):
        changed = array.copy()
        changed.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        seen.add(checksums({"x": changed})["x"])
    seen.add(checksums({"x": array[::-1]})["x"])
    seen.add(checksums({"x": array[:, ::-1]})["x"])
    assert len(seen) == array.nbytes * 8 + 3


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float32", "float64"])
def test_checksum_covers_the_last_bit_of_every_type(dtype):
    array = np.arange(70_001).astype(jnp.dtype(dtype))
    changed = array.copy()
    changed.view(np.uint8)[-1] ^= 1
    assert checksums({"x": array}) == checksums({"x": array.copy()}) != checksums({"x": changed})


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    old, new = make_state(1), make_state(2)
    checkpoint.save(tmp_path, 1, old, META)
    checkpoint.save(tmp_path, 2, new, META)
    files = [p for p in (tmp_path / "2").rglob("*") if p.is_file()]
    chance = random.Random(0)
    for _ in range(60):
        path, bit = chance.choice(files), chance.randrange(2**30)
        flip(path, bit)
        restored = checkpoint.restore(tmp_path, like=new)
        assert restored.step == 1 and same(restored.state, old), path
        assert len(restored.skipped) == 1 and restored.skipped[0].startswith("step 2: "), restored.skipped
        with pytest.raises(ValueError, match=r"no valid checkpoint \(step 2: ") as error:
            checkpoint.restore(tmp_path, like=new, step=2)
        assert "\n" not in str(error.value)
        flip(path, bit)
    assert checkpoint.restore(tmp_path, like=new).step == 2


def test_wrong_numbers_from_orbax_are_noticed_by_leaf(tmp_path):
    """Files that agree with their digests but hold other numbers: what a fault while writing would leave."""
    state = make_state()
    checkpoint.save(tmp_path / "a", 1, state, META)
    checkpoint.save(tmp_path / "b", 1, state.replace(params=state.params | {"bias": jnp.zeros(3)}), META)
    content = json.loads((tmp_path / "a/1/meta.json").read_text())["content"]
    other = json.loads((tmp_path / "b/1/meta.json").read_text())["content"]
    shutil.rmtree(tmp_path / "a/1/state")
    shutil.copytree(tmp_path / "b/1/state", tmp_path / "a/1/state")
    (tmp_path / "a/1/meta.json").write_text(checkpoint.seal(content | {"files": other["files"]}))
    with pytest.raises(ValueError, match="step 1: checksum of params/bias"):
        checkpoint.restore(tmp_path / "a", like=state)


def test_missing_truncated_and_empty_are_no_checkpoints(tmp_path):
    state = make_state()
    assert checkpoint.restore(tmp_path / "nowhere") is None and checkpoint.latest_valid(tmp_path) is None
    (tmp_path / "5").mkdir()
    (tmp_path / "6").mkdir()
    (tmp_path / "6" / "state").mkdir()
    assert checkpoint.restore(tmp_path, like=state) is None and checkpoint.latest_valid(tmp_path) is None
    checkpoint.save(tmp_path, 4, state, META)
    assert checkpoint.restore(tmp_path, like=state).step == checkpoint.latest_valid(tmp_path) == 4
    data = max((tmp_path / "4" / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"step 4: .*{data.name} is changed"):
        checkpoint.restore(tmp_path)
    data.unlink()
    with pytest.raises(ValueError, match=f"step 4: .*{data.name} is missing"):
        checkpoint.restore(tmp_path)
    with pytest.raises(FileNotFoundError, match="step 9: not in"):
        checkpoint.restore(tmp_path, step=9)


def test_wrong_model_is_one_line_that_names_the_difference(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path, 1, state, META)
    with pytest.raises(ValueError, match=r"params/encoder/kernel is \(\(16, 8\), 'float32'\)") as error:
        checkpoint.restore(tmp_path, like=make_state(width=9))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"1 leaves of the model are not in it: params/head"):
        checkpoint.restore(tmp_path, like=state.replace(params=state.params | {"head": jnp.ones(2)}))


def test_newest_and_best_are_kept_and_leftovers_removed(tmp_path):
    state = make_state()
    (tmp_path / "1.partial").mkdir()
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, state, META, keep=2, best={"value": 0.5} if step == 2 else None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "4", "5"]
    assert checkpoint.read_best(tmp_path) == (2, {"value": 0.5})
    checkpoint.save(tmp_path, 6, state, META, keep=1, best={"value": 0.4})
    assert checkpoint.steps(tmp_path) == [6] and checkpoint.read_best(tmp_path) == (6, {"value": 0.4})


def test_a_step_can_be_written_again(tmp_path):
    checkpoint.save(tmp_path, 1, make_state(0), META)
    checkpoint.save(tmp_path, 1, make_state(1), META)
    assert same(checkpoint.restore(tmp_path, like=make_state()).state, make_state(1))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


@pytest.mark.slow
def test_any_mesh_gives_the_same_checksums_and_restores_bitwise(tmp_path):
    code = """
        import sys, jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from scfm_jax.saving import checkpoint
        from scfm_jax.saving.checksums import checksums
        host = {"a": np.random.default_rng(0).normal(size=(8, 6, 4)), "b": np.arange(16, dtype=np.uint16)}
        host["a"] = host["a"].astype(np.float32)
        def put(n, *specs):
            mesh = jax.make_mesh(n, ("x", "y"), devices=jax.devices()[: n[0] * n[1]], axis_types=(AxisType.Auto,) * 2)
            return {k: jax.device_put(host[k], NamedSharding(mesh, s)) for k, s in zip(host, specs)}
        layouts = [put((1, 1), P(), P()), put((4, 2), P("x", "y"), P(("x", "y"))), put((2, 2), P(None, "x", "y"), P()),
                   put((2, 4), P("y", None, "x"), P("y")), put((1, 2), P(None, None, "y"), P("x"))]
        sums = [checksums(layout) for layout in [host, *layouts]]
        assert all(s == sums[0] for s in sums), sums
        for i, saved in enumerate(layouts):
            checkpoint.save(sys.argv[1], i, saved, {})
            for like in layouts:
                back = checkpoint.restore(sys.argv[1], like=like, step=i).state
                assert all(back[k].sharding == like[k].sharding for k in host)
                assert all((np.asarray(back[k]) == host[k]).all() for k in host)
        print("fine")
    """
    process = run(
        code,
        str(tmp_path),
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.communicate()[0].strip() == "fine"


@pytest.mark.slow
def test_killed_saves_leave_only_whole_checkpoints(tmp_path):
    code = """
        import sys, jax.numpy as jnp
        from scfm_jax.saving import checkpoint
        step = (checkpoint.latest_valid(sys.argv[1]) or 0) + 1
        print("ready", flush=True)
        while True:
            checkpoint.save(sys.argv[1], step, {"x": jnp.full((300, 300), step, jnp.float32)}, {"step": step})
            step += 1
    """
    chance, reached = random.Random(0), 0
    for _ in range(6):
        process = run(code, str(tmp_path), stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(chance.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if checkpoint.steps(tmp_path):
            restored = checkpoint.restore(tmp_path)
            assert not restored.skipped and restored.meta == {"step": restored.step}
            assert (restored.state["x"] == restored.step).all() and restored.step >= reached
            reached = restored.step
    assert reached > 0
    checkpoint.save(tmp_path, reached + 1, {"x": np.ones(2)}, {})
    assert all(p.name.isdecimal() for p in tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path):
    code = """
        import resource, sys, numpy as np
        from scfm_jax.saving import checkpoint
        state = {"x": np.random.default_rng(0).normal(size=200_000)}
        checkpoint.save(sys.argv[1], 1, state, {})
        for limit in (100_000, 500):  # the arrays do not fit; meta.json does not fit
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                checkpoint.save(sys.argv[1], 2, state if limit > 1000 else {}, {"long": "x" * 1000})
            except OSError as error:
                print(type(error).__name__, str(error).count("\\n"), "step 2" in str(error))
        print(checkpoint.steps(sys.argv[1]), checkpoint.latest_valid(sys.argv[1]))
    """
    process = run(code, str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.communicate()[0].splitlines() == ["OSError 0 True", "OSError 0 True", "[1] 1"]
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="checkpoint of step 1 in ") as error:
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, make_state(), META)
    assert "\n" not in str(error.value)


def test_weights_file_round_trip_and_flipped_bits(tmp_path):
    path, variables = (
        tmp_path / "weights.safetensors",
        {"params": make_state().params, "constants": make_state().constants},
    )
    weights.export(path, variables, META)
    back, meta = weights.read(path)
    assert same(back, variables) and meta == META and [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    chance = random.Random(0)
    for _ in range(40):
        bit = chance.randrange(path.stat().st_size * 8)
        flip(path, bit)
        try:
            back, meta = weights.read(path)
            assert same(back, variables) and meta == META
        except ValueError as error:
            assert "\n" not in str(error)
        flip(path, bit)
    with pytest.raises(FileNotFoundError):
        weights.read(tmp_path / "none.safetensors")
    path.write_bytes(b"PK not safetensors")
    with pytest.raises(Damaged, match="not a whole weights file"):
        weights.read(path)


@pytest.mark.slow
def test_two_processes_save_one_checkpoint(tmp_path):
    code = """
        import sys, jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[3]))
        from scfm_jax.saving import checkpoint
        mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
        host = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
        array = jax.make_array_from_callback(host.shape, NamedSharding(mesh, P("x")), lambda i: host[i])
        checkpoint.save(sys.argv[1], 1, {"x": array}, {"a": 1})
        back = checkpoint.restore(sys.argv[1], like={"x": array})
        mine = [(np.asarray(s.data) == host[s.index]).all() for s in back.state["x"].addressable_shards]
        print("fine" if all(mine) and back.step == 1 else "wrong", flush=True)
    """
    port = str(random.Random(time.time()).randrange(20_000, 60_000))
    both = [run(code, str(tmp_path), port, str(i), stdout=subprocess.PIPE, text=True) for i in range(2)]
    assert [p.communicate(timeout=120)[0].split()[-1] for p in both] == ["fine", "fine"]
    one = checkpoint.restore(tmp_path)
    assert (one.state["x"] == np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)).all()


# ------------------------------------------------------------------------------------------------ saved again, and best


def test_a_kill_between_the_two_renames_of_a_step_saved_again_loses_nothing(tmp_path, monkeypatch):
    old, new, rename = make_state(0), make_state(1), pathlib.Path.rename

    def killed(path, target):
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        return rename(path, target)

    checkpoint.save(tmp_path, 5, old, META)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pathlib.Path, "rename", killed)
        checkpoint.save(tmp_path, 5, new, META)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5.partial", "5.stale"]
    restored = checkpoint.restore(tmp_path, like=old)
    assert restored.step == 5 and same(restored.state, old) and checkpoint.read_meta(tmp_path) == META
    checkpoint.save(tmp_path, 6, new, META)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "6"]
    assert same(checkpoint.restore(tmp_path, like=old, step=5).state, old)


def test_a_kill_while_an_old_step_is_removed_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, make_state(), META, keep=1 + (step == 1))
    checkpoint.save(tmp_path, 3, make_state(), META, keep=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", lambda path, **_: (_ for _ in ()).throw(KeyboardInterrupt))
        checkpoint._prune(tmp_path, 3, 1)
    assert checkpoint.steps(tmp_path) == [3]
    checkpoint.save(tmp_path, 4, make_state(), META)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4"]


def damage_meta(path: pathlib.Path) -> None:
    """Change one digit of the metadata of a step."""
    text = (path / "meta.json").read_text()
    (path / "meta.json").write_text(text.replace("0.25", "0.35") if "0.25" in text else text.replace("1", "2", 1))


@pytest.mark.parametrize("damaged", [2, 4])
def test_the_best_step_is_the_best_or_an_error_that_names_the_damaged_one(damaged, tmp_path):
    progress = {2: {"best_step": 2}, 4: {"best_step": 2}}
    for step, best in ((2, {"metric": "val/loss", "value": 0.25}), (4, None)):
        checkpoint.save(tmp_path, step, make_state(), {"progress": progress[step]}, best=best)
    assert checkpoint.read_best(tmp_path)[0] == 2
    damage_meta(tmp_path / str(damaged))
    with pytest.raises(ValueError, match=f"best is not known .step {damaged}: meta.json does not match") as error:
        checkpoint.read_best(tmp_path)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / str(damaged))
    if damaged == 2:
        with pytest.raises(ValueError, match="the best step, 2, is not there any more"):
            checkpoint.read_best(tmp_path)
    else:
        assert checkpoint.read_best(tmp_path)[0] == 2


@pytest.mark.parametrize("missing", ["leaves", "files", "meta", "best", "step"])
def test_metadata_that_lack_an_entry_are_one_line(missing, tmp_path):
    checkpoint.save(tmp_path, 1, make_state(), META)
    content = json.loads((tmp_path / "1/meta.json").read_text())["content"]
    (tmp_path / "1/meta.json").write_text(checkpoint.seal({k: v for k, v in content.items() if k != missing}))
    with pytest.raises(ValueError, match=f"no entry '{missing}'") as error:
        checkpoint.restore(tmp_path)
    assert "\n" not in str(error.value)
