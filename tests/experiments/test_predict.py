"""Cell types for files that have none: by a head, by neighbours in a reference, beside all that the file has."""

import dataclasses
import json

import anndata
import numpy as np
import pandas as pd
import pytest

from data_pipeline.files import obs_columns
from experiments.analyses import prediction
from scfm_jax.tasks.cells import label_transfer
from tests.harness import commands, suites

TYPES = ["type 0", "type 1", "type 2"]


def quiet(_: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with labelled cells, others without labels, a run of random weights, and one whose head names types."""
    folder = tmp_path_factory.mktemp("predict")
    suites.write(folder / "labelled.h5ad", 0)
    suites.write(folder / "all.h5ad", 1)
    cells = anndata.read_h5ad(folder / "all.h5ad")
    cells.obs = cells.obs[["batch"]]
    cells.write_h5ad(folder / "new.h5ad")
    run = suites.entrant("cellplm", "run", classes={"cell_type": TYPES}).run
    run.export(folder / "run.safetensors")
    known = anndata.read_h5ad(folder / "labelled.h5ad")
    x = run.embed(known, say=quiet)
    wanted = np.eye(3)[[TYPES.index(name) for name in known.obs["cell_type"]]] * 8
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], wanted, rcond=None)[0].astype(np.float32)
    task = {"linear_0": {"kernel": solved[:-1], "bias": solved[-1]}}
    meta = {**run.meta, "config": {**run.meta["config"], "task": {"name": "cell_type", "label": "cell_type"}}}
    tuned = dataclasses.replace(run, task=task, meta=meta)
    tuned.export(folder / "tuned.safetensors")
    return folder, run, tuned


def truth(folder) -> np.ndarray:
    """Return the types that the cells of new.h5ad have."""
    return anndata.read_h5ad(folder / "all.h5ad").obs["cell_type"].to_numpy().astype(str)


def test_a_head_names_the_cells_and_leaves_the_rest_of_the_file_alone(place):
    folder, _, tuned = place
    shares = tuned.annotate(folder / "new.h5ad", say=quiet)
    best = shares.max(axis=1).to_numpy()
    threshold = float(np.median(best))
    options = [f"--output={folder}/named.h5ad", f"--threshold={threshold}"]
    ended = commands.run(
        "predict", f"--workdir={folder}/tuned.safetensors", f"--input={folder}/new.h5ad", *options, folder=folder
    )
    assert ended.code == 0, ended.err
    before, after = (anndata.read_h5ad(folder / name) for name in ("new.h5ad", "named.h5ad"))
    assert list(after.obs) == ["batch", "predicted_type", "predicted_probability"]
    expected = np.where(best < threshold, "unknown", shares.idxmax(axis=1))
    assert after.obs["predicted_type"].tolist() == expected.tolist() and 20 < (expected == "unknown").sum() < 70
    np.testing.assert_allclose(after.obs["predicted_probability"], best, rtol=1e-5)
    named = expected != "unknown"
    assert (expected == truth(folder))[named].mean() > 0.8
    assert after.obs_names.equals(before.obs_names) and (after.X != before.X).nnz == 0
    pd.testing.assert_series_equal(after.obs["batch"], before.obs["batch"])
    said = after.uns["predicted_type"]
    assert said["model"] == "cellplm" and said["threshold"] == pytest.approx(threshold)
    assert json.loads(said["types"]) == TYPES and said["input"] == "new.h5ad" and "head" in said["by"]
    line = next(line for line in ended.out.splitlines() if line.startswith("| unknown |"))
    assert f" {(expected == 'unknown').sum()} " in line


def test_neighbours_in_a_reference_name_the_cells(place):
    folder, run, _ = place
    reference = anndata.read_h5ad(folder / "labelled.h5ad")
    reference.obs["kind"] = reference.obs["cell_type"].astype(str).where(np.arange(90) % 10 > 0, "Unassigned")
    reference.write_h5ad(folder / "kinds.h5ad")
    shares, done = prediction.by_neighbours(
        run, folder / "new.h5ad", [folder / "kinds.h5ad"], "kind", neighbours=5, say=quiet
    )
    assert list(shares.columns) == TYPES and shares.index[0] == "c0"
    rows = np.arange(90) % 10 > 0
    near, new = (run.embed(folder / name, say=quiet) for name in ("kinds.h5ad", "new.h5ad"))
    apart = ((new[:, None] - near[rows][None]) ** 2).sum(-1)
    votes = reference.obs["cell_type"].to_numpy().astype(str)[rows][np.argsort(apart, 1)[:, :5]]
    expected = np.stack([(votes == name).mean(1) for name in TYPES], 1)
    assert np.abs(shares.to_numpy() - expected).max(1).mean() < 0.02
    assert done["by"] == "5 nearest of 81 cells of kinds.h5ad, by obs['kind']"
    best = shares.to_numpy().argmax(1)
    assert (np.array(TYPES)[best] == truth(folder)).mean() > 0.7
    words = [f"--workdir={folder}/run.safetensors", "--label_key=kind", "--neighbours=5", "--threshold=0"]
    words += [f"--input={folder}/new.h5ad", f"--reference={folder}/kinds.h5ad", f"--output={folder}/voted.h5ad"]
    ended = commands.run("predict", *words, folder=folder)
    assert ended.code == 0, ended.err
    obs = anndata.read_h5ad(folder / "voted.h5ad").obs
    assert obs["predicted_type"].tolist() == shares.idxmax(axis=1).tolist()


def test_a_mistake_is_one_line_and_leaves_nothing(place):
    folder, run, _ = place
    with pytest.raises(ValueError, match="was not fine-tuned to name cell types; give --reference"):
        prediction.by_head(run, folder / "new.h5ad")
    reference = [str(folder / "labelled.h5ad")]
    with pytest.raises(ValueError, match=r"--label_key=x: .*there are cell_type, batch"):
        prediction.by_neighbours(run, folder / "new.h5ad", reference, "x")
    with pytest.raises(ValueError, match="--neighbours=91: the reference has 90 labelled cells"):
        prediction.by_neighbours(run, folder / "new.h5ad", reference, "cell_type", neighbours=91)
    cells = anndata.read_h5ad(folder / "new.h5ad")
    cells.obs["mine_type"] = "a"
    cells.write_h5ad(folder / "taken.h5ad")
    files = f"--input={folder}/taken.h5ad", f"--output={folder}/no.h5ad"
    ended = commands.run("predict", f"--workdir={folder}/none", "--key=mine", *files, folder=folder)
    assert ended.code == 2 and "obs['mine_type'] is there already" in ended.err and ended.err.count("\n") == 1
    assert not list(folder.glob("*no.h5ad*"))


def test_columns_are_added_to_every_kind_of_file(place, tmp_path):
    cells = anndata.read_h5ad(place[0] / "new.h5ad")
    cells.write_zarr(tmp_path / "x.zarr")
    bare = anndata.AnnData(cells.X, pd.DataFrame(index=cells.obs_names), cells.var)
    bare.write_h5ad(tmp_path / "bare.h5ad")
    columns = pd.DataFrame({"a_type": pd.Categorical(["T", "B", "T"] * 30), "a_probability": np.float32(0.5)})
    for name, source in {"zarr": tmp_path / "x.zarr", "bare": tmp_path / "bare.h5ad", "memory": cells}.items():
        obs_columns.write_columns(source, tmp_path / f"{name}.out.h5ad", columns, "a_type", {"by": ["x"]})
        after = anndata.read_h5ad(tmp_path / f"{name}.out.h5ad")
        assert list(after.obs) == [*(() if name == "bare" else ("batch",)), "a_type", "a_probability"]
        assert after.obs["a_type"].tolist() == columns["a_type"].tolist() and after.uns["a_type"]["by"] == '["x"]'
        assert after.obs_names.equals(cells.obs_names) and (after.X != cells.X).nnz == 0
    with pytest.raises(ValueError, match="do not fit its 90 cells"):
        obs_columns.write_columns(cells, tmp_path / "short.h5ad", columns[:5], "a_type", {})
    cells.uns["a_type"] = 1
    with pytest.raises(ValueError, match=r"uns\['a_type'\] is there already"):
        obs_columns.check_free(cells, ["a_type"], "a_type")


def test_what_is_not_probable_enough_is_unknown():
    shares = np.array([[0.5, 0.5], [0.2, 0.8], [0.51, 0.49]])
    names, probability = label_transfer.named(shares, ["a", "b"], 0.51)
    assert names.tolist() == ["unknown", "b", "a"] and probability.tolist() == [0.5, 0.8, 0.51]
    with pytest.raises(ValueError, match="neighbours=4: there are 3"):
        label_transfer.vote(np.zeros((3, 2)), np.zeros(3, int), np.zeros((1, 2)), 1, 4)
