"""Clusters of an embedding against metadata: planted labels are found, chance is chance, mistakes are one line."""

import json

import numpy as np
import pandas as pd
import pytest

from data_pipeline import synthetic
from scfm_jax import api, models
from scfm_jax.tasks.cells import latent_ami as task
from tests.harness import commands


def obs(n: int = 120) -> pd.DataFrame:
    """Return metadata of every kind."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, n)
    return pd.DataFrame(
        {
            "kind": np.where(np.arange(n) % 10 == 9, None, np.array(["a", "b", "c"])[kind]),
            "lane": rng.integers(0, 2, n),
            "lane_name": np.array(["one", "two"])[rng.integers(0, 2, n)],
            "counts": rng.integers(100, 5000, n),
            "share": rng.random(n),
            "barcode": [f"cell{i}" for i in range(n)],
            "tissue": "blood",
        }
    )


def test_planted_labels_are_found_and_others_are_not():
    table = obs(300)
    codes = task.columns(table, ("kind", "lane"))
    x = np.eye(3)[np.maximum(codes["kind"], 0)] + 0.05 * np.random.default_rng(1).normal(size=(300, 3))
    assert (codes["kind"] < 0).any()  # those lie among the cells of "a" and must not count
    assert task.score(x, codes["kind"]) == pytest.approx(1)
    ami = [task.score(x, np.random.default_rng(seed).integers(0, 2, 300)) for seed in range(10, 18)]
    assert abs(np.mean(ami)) < 0.02


def test_columns_are_those_with_few_labels_and_equal_ones_are_one():
    table = obs()
    table["twin"] = table["kind"].map({"a": "x", "b": "y", "c": "z"})
    found = task.columns(table)
    assert list(found) == ["kind = twin", "lane", "lane_name"]
    assert (found["kind = twin"] < 0).sum() == 12
    with pytest.raises(ValueError, match=r"columns=nope: no such obs column; there are kind, lane"):
        task.columns(table, ("nope",))
    with pytest.raises(ValueError, match=r"columns=tissue: it has 1 label"):
        task.columns(table, ("tissue",))
    with pytest.raises(ValueError, match="no obs column has 2 to 100 labels; there are share"):
        task.columns(table[["share"]])
    with pytest.raises(ValueError, match="one finite row for each"):
        task.score(np.full((120, 2), np.nan), found["lane"])


@pytest.mark.slow
def test_command_writes_all_or_nothing(tmp_path):
    adata = synthetic.make(90, 120, depth=2000.0)
    adata.write_h5ad(tmp_path / "x.h5ad")
    config = models.options("exceiver", "tiny") | {"data": {"bag": 1, "labels": []}}
    meta = {"model": "exceiver", "config": config, "genes": list(adata.var["ensembl_id"]), "classes": {}, "step": 0}
    api.build(meta, {"params": {}}, {}, "a test").twin(0).export(tmp_path / "w.safetensors")
    args = [
        f"--workdir={tmp_path}/w.safetensors",
        f"--input={tmp_path}/x.h5ad",
        f"--output={tmp_path}/out",
        "--seeds=1",
    ]
    done = commands.run("latent_ami", *args, "--columns=nope", folder=tmp_path, timeout=600)
    assert done.code == 2 and done.err.count("\n") == 1 and "error: --columns=nope" in done.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    done = commands.run("latent_ami", *args, folder=tmp_path, timeout=600)
    assert done.code == 0, done.err
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"latent_ami.md", "latent_ami.json", "latent_ami.png"}
    rows = json.loads((tmp_path / "out" / "latent_ami.json").read_text())["rows"]
    assert {row["embedding"] for row in rows} == {"exceiver", "PCA-50", "random twin"}
    ami = {row["embedding"]: row["ami"] for row in rows if row["column"] == "cell_type"}
    assert ami["PCA-50"] > 0.5 and "| cell_type | 4 | 90 |" in (tmp_path / "out" / "latent_ami.md").read_text()
    again = commands.run("latent_ami", *args, folder=tmp_path, timeout=600)
    assert again.code == 2 and "exists already and is not overwritten" in again.err
