"""Light fine-tuning: LoRA, prefixes and freezing in all five models, through the one loop, bit by bit."""

import functools
import importlib
import pathlib

import anndata
import jax
import numpy as np
import pytest
import scipy.sparse as sp

from configs import finetune_cell_type, pretrain_scemb
from data_pipeline import synthetic
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.study import Settings
from experiments import train
from experiments.training import finetuning
from scfm_jax import api, models
from scfm_jax.inference import bags, infer
from scfm_jax.saving import checkpoint
from scfm_jax.saving.leaves import flatten
from scfm_jax.training import freezing, lora, tuning

QUIET = {"train.log_every": 0, "train.eval_every": 0, "train.checkpoint_every": 0, "train.tensorboard": False}
SHORT = {"cellplm": {"data.bag": 16, "data.batch": 1}, "sct": {"data.bag": 4, "data.batch": 1}}
SHORT |= {"sclong": {"model.large_depth": 2, "data.batch": 4}}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    """A store of 60 cells x 60 genes of four types."""
    folder = tmp_path_factory.mktemp("tune")
    synthetic.make(60, 60, seed=0, depth=100.0).write_h5ad(folder / "cells.h5ad")
    sources = file_sources([str(folder / "cells.h5ad")])
    assert not ingest(sources, folder / "store", workers=0, say=lambda _: None, settings=Settings())
    return folder / "store"


@pytest.fixture(scope="module")
def base(store, tmp_path_factory):
    """A function from the name of a model to the folder of a run of it: the tiny variant at step 0."""
    folder = tmp_path_factory.mktemp("bases")

    @functools.cache
    def made(name: str, scan: bool = False) -> pathlib.Path:
        config = importlib.import_module(f"configs.pretrain_{name}").get_config("tiny")
        changes = {"data.store": str(store), "data.buckets": (64,), "train.steps": 0, **QUIET}
        changes |= {key: value for key, value in SHORT.get(name, {}).items()} | ({"model.scan": True} if scan else {})
        config.update_from_flattened_dict(changes)
        train.pretrain(config, str(folder / f"{name}{scan}"))
        return folder / f"{name}{scan}"

    return made


def tuned(store, run, workdir, method="lora", steps=2, **changes) -> dict:
    """Fine-tune `run` to name cell types, and return the leaves of its last checkpoint."""
    config = finetune_cell_type.get_config(method)
    config.optim.warmup = 0
    config.update_from_flattened_dict(
        {
            "data.store": str(store),
            "init_from": str(run),
            "train.steps": steps,
            "data.buckets": (64,),
            **QUIET,
            **changes,
        }
    )
    train.pretrain(config, str(workdir))
    return flatten(checkpoint.restore(workdir / "checkpoints").state)


def own(leaves: dict) -> dict:
    """Return the parameters of the model among the leaves of a state."""
    own = {name.removeprefix("params/"): x for name, x in leaves.items() if name.startswith("params/")}
    return {name: x for name, x in own.items() if not name.startswith(("lora/", "task/", "vectors/"))}


def same(there: dict, here: dict) -> bool:
    return there.keys() == here.keys() and all(np.array_equal(there[name], here[name]) for name in there)


def outputs(run: api.Run, params) -> np.ndarray:
    """Return the embeddings of eight cells."""
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(0.6, (8, 60)).astype(np.float32))
    batch = bags.pack(counts, np.arange(8)[None], labels=["cell_type", "batch"])
    constants = {**run.constants, **bags.own_vocabulary(np.ones((1, 60), bool))}
    inputs = run.meta["config"]["inputs"]
    return infer.embed(run.module, run.model, {**run.variables, "params": params}, constants, [batch], 8, inputs=inputs)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_lora_trains_its_factors_alone_and_a_tuned_run_acts_like_any(name, store, base, tmp_path):
    there = own(flatten(checkpoint.restore(base(name) / "checkpoints").state))
    leaves = tuned(store, base(name), tmp_path / "run", **{"task.mean": "running"})
    assert same(there, own(leaves)), "a frozen weight has changed"
    factors = {n: x for n, x in leaves.items() if n.startswith("params/lora/")}
    assert factors and all(np.abs(x).max() > 0 for x in factors.values())

    run, began = api.load(tmp_path / "run"), api.load(base(name))
    fresh = lora.init(jax.random.key(0), began.variables["params"], run.module.TUNING["lora"], 4, 8.0)
    assert np.array_equal(
        outputs(began, lora.apply(began.variables["params"], fresh)), outputs(began, began.variables["params"])
    ), "B = 0 is not the identity"
    state = checkpoint.restore(tmp_path / "run/checkpoints").state["params"]
    adapter = tuning.adapter(state, run.meta["config"]["tune"])
    unmerged = outputs(began, jax.jit(lora.apply)(began.variables["params"], adapter))
    np.testing.assert_allclose(unmerged, outputs(run, run.variables["params"]), rtol=1e-5, atol=1e-6)
    assert np.abs(unmerged - outputs(began, began.variables["params"])).max() > 0

    run.export(tmp_path / "merged.safetensors")
    part = tmp_path / "run" / tuning.FILE
    assert part.stat().st_size < 0.8 * (tmp_path / "merged.safetensors").stat().st_size
    assert np.array_equal(run.task["mean"], leaves["buffers/task/mean"]) and "task" not in run.variables
    for other in (api.load(part), api.load(tmp_path / "merged.safetensors")):
        assert same(flatten(run.variables), flatten(other.variables)) and same(flatten(run.task), flatten(other.task))


@pytest.mark.slow
def test_a_tuned_file_is_refused_on_another_base(store, base, tmp_path):
    tuned(store, base("scemb"), tmp_path / "run", steps=1)
    began = api.load(base("scemb"))
    began.twin(3).export(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other weights"):
        api.load(tmp_path / "run" / tuning.FILE, base=tmp_path / "other.safetensors")


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_by_bit(store, base, tmp_path):
    options = {"optim.schedule": "constant", "optim.delay": 1, "task.mean": "running"}
    whole = tuned(store, base("scemb"), tmp_path / "whole", steps=4, **options)
    tuned(store, base("scemb"), tmp_path / "parts", steps=2, **options)
    parts = tuned(store, base("scemb"), tmp_path / "parts", steps=4, **options)
    assert same(whole, parts)


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in ("cellplm", "sct", "sclong", "exceiver"))]
)
def test_the_first_layers_stay_and_the_others_learn(name, store, base, tmp_path):
    there = own(flatten(checkpoint.restore(base(name) / "checkpoints").state))
    leaves = own(tuned(store, base(name), tmp_path / "run", "full", **{"optim.frozen_layers": 1}))
    first = flatten(
        freezing.first_layers(
            checkpoint.restore(base(name) / "checkpoints").state["params"], 1, models.get(name).TUNING
        )
    )
    assert any(np.any(hit) for hit in first.values())
    for leaf, hit in first.items():
        assert np.array_equal(np.where(hit, there[leaf], 0), np.where(hit, leaves[leaf], 0)), leaf
    assert sum(not np.array_equal(there[leaf], leaves[leaf]) for leaf in there) > 3


@pytest.mark.slow
def test_medians_are_learned_or_read_once_and_stay_with_the_run(store, tmp_path):
    config = pretrain_scemb.get_config("tiny")
    config.update_from_flattened_dict({"data.store": str(store), "data.buckets": (64,), "train.steps": 0, **QUIET})
    config.data.split = {"by": "cell", "val": 0.0, "test": 0.0, "seed": 0}
    config.inputs.medians = "file"
    with pytest.raises(ValueError, match=r"config\.data\.medians=FILE"):
        train.pretrain(config, str(tmp_path / "none"))
    config.inputs.medians = "train"
    train.pretrain(config, str(tmp_path / "run"))
    counts = anndata.read_h5ad(store.parent / "cells.h5ad").X.toarray()
    share = 1e6 * counts / counts.sum(1, keepdims=True)
    expected = [np.median(x[x > 0]) if (x > 0).any() else 0 for x in share.T]
    run = api.load(tmp_path / "run")
    np.testing.assert_allclose(sorted(run.constants["medians"]), sorted(expected), rtol=0.01)
    leaves = tuned(store, tmp_path / "run", tmp_path / "tuned", "frozen", 1)
    np.testing.assert_array_equal(leaves["constants/medians"], run.constants["medians"])
    assert api.load(tmp_path / "tuned").meta["config"]["inputs"]["medians"] == "train"


@pytest.mark.slow
def test_a_block_before_the_head_learns_at_its_own_rate_and_layers_are_chosen(store, base, tmp_path):
    there = own(flatten(checkpoint.restore(base("scemb") / "checkpoints").state))
    changes = {"task.head": "transformer", "model.cell_layer": "all_layers", "task.noise": True}
    leaves = tuned(store, base("scemb"), tmp_path / "run", "frozen", 1, **changes, **{"optim.schedule": "constant"})
    assert same(there, own(leaves)), "a frozen weight has changed"
    run = api.load(tmp_path / "run")
    assert run.model.cell_layer == "all_layers" and set(run.task) == {"block", "linear_0", "mean", "map"}
    shares = run.annotate(store.parent / "cells.h5ad", say=lambda _: None)
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
    first = finetune_cell_type.get_config("frozen")
    first.optim.learning_rate, first.task.head, first.init_from = 1e-1, "transformer", "x"
    groups = finetuning.resolve(first.to_dict(), api.load(base("scemb")))["optim"]["groups"]
    assert groups[0]["rate"] * 1e-1 == pytest.approx(5e-4) and len(groups) == 2


@pytest.mark.slow
def test_part_of_a_stack_stays_bit_by_bit_in_a_real_run(store, base, tmp_path):
    there = own(flatten(checkpoint.restore(base("scemb", True) / "checkpoints").state))
    leaves = own(tuned(store, base("scemb", True), tmp_path / "run", "full", **{"optim.frozen_layers": 1}))
    for leaf in (name for name in there if name.startswith("blocks/")):
        assert np.array_equal(there[leaf][0], leaves[leaf][0]), leaf
    assert not np.array_equal(there["blocks/mlp_in/kernel"][1], leaves["blocks/mlp_in/kernel"][1])
    assert np.array_equal(there["word"], leaves["word"]), "what comes before the first layer"


@pytest.mark.slow
def test_given_vectors_become_prefixes_by_maps_that_alone_learn(store, base, tmp_path):
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32))
    there = own(flatten(checkpoint.restore(base("scemb") / "checkpoints").state))
    changes = {"tune.vectors": str(tmp_path / "vectors.npy")}
    leaves = tuned(store, base("scemb"), tmp_path / "run", "prefix", **changes)
    here = {n: x for n, x in own(leaves).items() if "prefix" not in n}
    assert same(there, here)
    assert np.array_equal(leaves["params/vectors/given"], np.load(tmp_path / "vectors.npy"))
    run = api.load(tmp_path / "run")
    made = leaves["params/vectors/given"] @ leaves["params/vectors/maps/block_1/prefix_key/map"]
    np.testing.assert_allclose(run.variables["params"]["block_1"]["prefix_key"], made, rtol=1e-5)
    assert made.shape == (4, 64)
