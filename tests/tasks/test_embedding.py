"""Clusters of an embedding: Leiden finds what was planted, the same for a seed, in every process."""

import hashlib
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

from experiments.analyses import annotation_table
from experiments.analyses import embedding as analysis
from scfm_jax.tasks.cells import cell_type, embedding, labels
from tests.harness import ROOT


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return 300 cells of five groups that overlap, and their groups."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(5), 60)
    return 1.2 * rng.normal(size=(5, 8))[groups] + rng.normal(size=(300, 8)), groups


def test_planted_groups_are_the_clusters():
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(4), 50)
    x = 9 * rng.normal(size=(4, 10))[groups] + rng.normal(size=(200, 10))
    clusters = embedding.leiden(x, resolution=0.3)
    assert adjusted_rand_score(groups, clusters) == 1 and sorted(set(clusters)) == [0, 1, 2, 3]


def test_more_resolution_gives_more_clusters():
    x, _ = drawn()
    numbers = [len(set(embedding.leiden(x, resolution=r))) for r in (0.1, 0.5, 1.0, 3.0)]
    assert numbers == sorted(numbers) and numbers[0] < numbers[-1]


@pytest.mark.slow
def test_a_seed_gives_the_same_clusters_in_every_process():
    x, _ = drawn()
    first = embedding.leiden(x, seed=3)
    assert np.array_equal(first, embedding.leiden(x, seed=3))
    code = "from tests.tasks.test_embedding import drawn; from scfm_jax.tasks.cells import embedding; import hashlib;"
    code += "print(hashlib.md5(embedding.leiden(drawn()[0], seed=3).tobytes()).hexdigest())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.md5(first.tobytes()).hexdigest()
    assert len({embedding.leiden(x, seed=seed).tobytes() for seed in range(6)}) > 1


def test_every_word_that_says_nobody_knows_is_no_label():
    words = [word for name in labels.UNLABELLED for word in (name, name.upper(), f" {name.title()} ")]
    codes = embedding.encode(["T", *words, None, float("nan"), pd.NA, pd.NaT, "B"])
    assert codes.tolist() == [1, *[-1] * (len(words) + 4), 0]
    assert not labels.unlabelled("other") and not labels.unlabelled(0) and not labels.unlabelled(False)


def test_the_label_that_cannot_be_scored_by_is_named_with_what_it_holds():
    with pytest.raises(ValueError, match=r"^label=x: fewer than two of them .* there are T \(9\), B \(4\)$"):
        embedding.countable(["T"] * 9 + ["B"] * 4 + ["unknown"] * 20, name="label=x")


BATCHES = {
    "measurements": (np.random.default_rng(0).normal(size=60), "batch=batch: is not scored: it holds measurements"),
    "ages": (np.repeat([1.5, 2.5, 3.5], 20), "batch=batch: is not scored: it holds measurements"),
    "barcodes": ([f"c{i}" for i in range(60)], "batch=batch: is not scored: its values: fewer than two"),
    "one": (["a"] * 60, None),
    "numbers": (np.arange(60) % 3, ["0", "1", "2"]),
    "whole floats with gaps": (np.where(np.arange(60) % 9 == 0, np.nan, np.arange(60) % 3), ["0.0", "1.0", "2.0"]),
    "nullable numbers": (pd.array([None if i % 9 == 0 else i % 3 for i in range(60)], "Int64"), ["0", "1", "2"]),
    "nullable flags": (pd.array([None if i % 9 == 0 else i % 2 == 0 for i in range(60)], "boolean"), ["False", "True"]),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_a_column_that_names_no_batches_is_left_out_before_anything_is_embedded(kind, monkeypatch, tmp_path):
    values, expected = BATCHES[kind]
    obs = pd.DataFrame({"cell_type": ["T", "B", "unknown"] * 20}, [f"c{i}" for i in range(60)])
    obs["batch"] = values
    cells = anndata.AnnData(np.ones((60, 3), np.float32), obs)
    said, seen = [], {}

    class Run:
        name = "a run"

    def stop(*_, **__):
        raise StopIteration("embedded")

    monkeypatch.setattr(analysis, "embed_file", stop)
    real = analysis._batches
    monkeypatch.setattr(analysis, "_batches", lambda *args: seen.setdefault("batches", real(*args)))
    with pytest.raises(StopIteration):
        analysis.evaluate(Run(), cells, tmp_path, say=said.append)
    if isinstance(expected, list):
        assert sorted(set(seen["batches"]) - {None}) == expected and not said
    else:
        assert seen["batches"] is None and [line[: len(expected)] for line in said] == ([expected] if expected else [])


def test_a_column_of_batches_that_is_asked_for_must_be_there(tmp_path):
    cells = anndata.AnnData(np.ones((4, 3), np.float32), pd.DataFrame({"cell_type": list("abab")}, list("wxyz")))
    with pytest.raises(ValueError, match="batch=dnor: no such obs column; there are cell_type"):
        analysis.evaluate(None, cells, tmp_path, batch="dnor")


def test_a_file_of_one_type_is_refused_before_anything_is_embedded(tmp_path):
    obs = pd.DataFrame({"kind": ["T"] * 60}, [f"c{i}" for i in range(60)])
    with pytest.raises(ValueError, match=r"label=kind: fewer than two of them have 5 cells or more.*T \(60\)"):
        analysis.evaluate(None, anndata.AnnData(np.ones((60, 3), np.float32), obs), tmp_path, label="kind")


def test_a_void_embedding_is_called_so_where_its_scores_are_shown():
    noise = np.random.default_rng(0).normal(size=(20, 3))
    void = embedding.void
    assert void(1e-6 * noise) and not void(noise) and not void(np.c_[noise[:, :1], np.ones((20, 9))])
    names = ("sclong", "random twin")
    rows = [{"embedding": name, "seed": 0, "accuracy": 0.5} for name in names]
    rows[1]["void"] = True
    text = analysis.table({"rows": rows, "cells": 20, "types": 2})
    assert text.count("the embedding of random twin is void") == 1 == text.count(" is void")
    metrics = dict.fromkeys(cell_type.METRICS, 0.5) | {"model": "sclong", "seed": 0, "cpu_s": 1.0}
    rows = [metrics | {"method": "frozen"}, metrics | {"method": "twin", "void": True}]
    assert "the embedding of sclong, random twin is void" in annotation_table.table(rows, 20)
