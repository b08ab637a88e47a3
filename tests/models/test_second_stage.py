"""The second stage of sCT: bags are a spot and its nearest, places count from a bag's corner, weights are kept."""

import pathlib

import jax
import numpy as np
import pytest

from configs import pretrain_sct
from data_pipeline import synthetic
from data_pipeline.batches.loader import Loader
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from experiments import train
from scfm_jax import models
from scfm_jax.types import Batch

LITTLE = {
    "model.embed_dim": 32,
    "model.num_downsamples": 2,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.key_size": 8,
    "model.ffn_dim": 16,
    "model.head_layers": 0,
    "data.buckets": (64,),
    "train.steps": 2,
    "train.eval_every": 0,
    "train.checkpoint_every": 0,
    "train.tensorboard": False,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    """A store of a slide with two sections, places in pixels far from the origin."""
    folder = tmp_path_factory.mktemp("slide")
    cells = synthetic.make(120, 60, seed=0, depth=100.0)
    cells.obsm["spatial"] = 5000 + 1000 * cells.obsm["spatial"]
    cells.write_h5ad(folder / "slide.h5ad")
    options = {"workers": 0, "say": lambda text: None, "settings": Settings(group_by="batch")}
    assert not ingest(file_sources([str(folder / "slide.h5ad")]), folder / "store", **options)
    return folder / "store"


def config(store: pathlib.Path, variant: str, **changes):
    """Return a config of a very small sCT."""
    made = pretrain_sct.get_config(variant)
    made.update_from_flattened_dict({**LITTLE, "data.store": str(store), **changes})
    return made


@pytest.mark.parametrize(("variant", "bag"), [("small_spatial", 10), ("spatial", 50)])
def test_a_spatial_bag_is_a_spot_and_its_nearest_with_places_from_its_corner(store, variant, bag):
    made, slide = pretrain_sct.get_config(variant), open_store(store).study("slide")
    assert made.data.bag == bag and made.model.spatial == "paper"
    loader = Loader(open_store(store), batch=1, bag=bag, kind=made.data.kind)
    section = np.searchsorted(slide.group_starts, np.arange(slide.n_cells), side="right")
    arrays = loader.batch(0)
    rows = arrays["index"][0]
    same = np.flatnonzero(section == section[rows[0]])
    far = np.linalg.norm(slide.coords[same] - slide.coords[rows[0]], axis=1)
    assert list(rows) == list(same[np.argsort(far)][:bag])
    batch = Batch(**{field: arrays[field] for field in Batch.__dataclass_fields__})
    constants = {"slots": np.arange(61, dtype=np.int32), "measured": np.ones((1, 60), bool)}
    prepare = models.get("sct").prepare
    inputs = prepare(batch, constants, jax.random.key(0), step=0, train=True, **made.inputs.to_dict())
    places = slide.coords[rows]
    np.testing.assert_allclose(inputs["coords"][0], places - places.min(0), atol=1e-3)


@pytest.mark.slow
def test_what_the_first_stage_has_is_kept_what_is_new_is_named_and_learned(store, tmp_path, capsys):
    first = train.pretrain(config(store, "small"), str(tmp_path / "first")).params
    made, second = {"init_from": str(tmp_path / "first")}, {}
    for rate in (0.0, 1e-2):
        options = {**made, "optim.learning_rate": rate}
        second[rate] = train.pretrain(config(store, "small_spatial", **options), str(tmp_path / f"{rate}")).params
        told = f"init_from: {len(jax.tree.leaves(first))} parameters taken; new: position_bias, position_kernel"
        assert told in capsys.readouterr().out
    for name, leaf in first.items():
        for a, b in zip(jax.tree.leaves(leaf), jax.tree.leaves(second[0.0][name]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.abs(second[1e-2]["position_kernel"] - second[0.0]["position_kernel"]).max() > 1e-4
