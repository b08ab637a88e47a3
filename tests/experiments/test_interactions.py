"""Interactions of doubles that a table predicts: right ones, wrong lengths, baselines, and what is no such table."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from experiments.analyses import interaction_table, interactions
from experiments.analyses.perturbation_data import Data, Plan, rounds
from experiments.analyses.predicted_perturbation import with_singles
from scfm_jax.tasks.perturbation import screen

G, SINGLES, CELLS = 60, "ABCDEF", 12
PLAN = Plan("x.h5ad", split="one_target_out", least=5)


@pytest.fixture(scope="module")
def planted():
    """Return a screen whose doubles are weighted sums of their singles, and the lengths of these weights."""
    rng = np.random.default_rng(0)
    pairs = [(a, b) for i, a in enumerate(SINGLES) for b in SINGLES[i + 1 :]]
    weights = {f"{a}+{b}": rng.uniform(0.3, 1.8, 2) for a, b in pairs}
    effects = {name: 0.3 * rng.normal(size=G) for name in SINGLES}
    effects |= {name: of @ [effects[gene] for gene in name.split("+")] for name, of in weights.items()}
    effects |= {"control": np.zeros(G)}
    x = np.concatenate([3 + of + 0.01 * rng.normal(size=(CELLS, G)) for of in effects.values()])
    names = np.repeat(np.array(list(effects), object), CELLS)
    targets = {name: tuple(name.split("+")) for name in effects if name != "control"}
    place = dict(zip(SINGLES, range(6), strict=True))
    genes = [*SINGLES, *(f"g{i}" for i in range(G - 6))]
    of, few = screen.make(genes, sp.csr_matrix(x), names, targets, place, control="control", least=5)
    data = Data(of, genes, [""] * G, np.flatnonzero(names == "control"), few)
    return data, {name: np.linalg.norm(of) for name, of in weights.items()}


def said(data, method, change):
    """Return predictions of all splits, the true effects changed."""
    parts = []
    for i, split in enumerate(rounds(PLAN, data, 0)):
        names = list(with_singles(data, split).test)
        truth = data.screen.effects(names)
        doubles = np.array(["+" in name for name in names])
        parts.append((i, names, change(truth, doubles[:, None]), truth))
    return interactions.Predictions(method, 0, parts)


@pytest.mark.slow
def test_magnitudes_are_told_by_whose_singles_a_preset_says(planted, tmp_path):
    data, lengths = planted
    noise = np.random.default_rng(1)
    listed = [
        said(data, "right", lambda truth, _: truth),
        said(data, "half", lambda truth, _: 0.5 * truth),
        said(data, "noise", lambda truth, _: noise.normal(size=truth.shape)),
    ]
    rows = interactions.evaluate(PLAN, data, listed, ["paper", "repo", "gears"])
    by = {(row.preset, row.method): row for row in rows}
    for preset in ("paper", "repo", "gears"):
        right = by[preset, "right"]
        assert right.doubles == sorted(lengths)
        np.testing.assert_allclose(right.measured, [lengths[name] for name in right.doubles], rtol=0.05)
        np.testing.assert_allclose(right.predicted, right.measured, rtol=1e-9)
        assert right.score["pearson"] == pytest.approx(1) and right.score["synergy_overlap"] == 15
        additive = by[preset, "additive, of measured singles"]
        np.testing.assert_allclose(additive.predicted, 2**0.5, rtol=1e-6)
        assert np.isnan(additive.score["pearson"])
    np.testing.assert_allclose(by["paper", "half"].predicted, by["paper", "right"].predicted, rtol=1e-6)
    np.testing.assert_allclose(by["repo", "half"].predicted, by["repo", "right"].predicted / 2, rtol=1e-6)
    assert by["paper", "noise"].score["pearson"] < 0.8
    assert by["paper", "right"].score["residual_ap"] == pytest.approx(1)
    assert {"mean of training doubles", "ridge on lengths of singles"} <= {row.method for row in rows}
    synthetic = dataclasses.replace(data, synthetic="effects of a test")
    text = interaction_table.write(tmp_path, PLAN, synthetic, listed, rows)
    assert text.startswith("# SYNTHETIC: Interactions in x.h5ad") and "No screen: effects of a test." in text
    line = next(line for line in text.splitlines() if line.startswith("| additive"))
    assert line.split("|")[2].strip() == line.split("|")[3].strip() == "–"
    assert line.split("|")[4].strip() == "–", "15 doubles in all: the 15 at an end are all of them"
    assert {"interactions.png", "error_map.png", "interactions.json"} <= {path.name for path in tmp_path.iterdir()}
    table = pd.read_csv(tmp_path / "interactions.csv")
    assert len(table) == sum(len(row.doubles) for row in rows)
    with pytest.raises(ValueError, match="map=nobody: no such method; there are right, half, noise"):
        interaction_table.write(tmp_path, PLAN, synthetic, listed, rows, "nobody")


def test_what_has_no_doubles_or_is_no_table_is_refused_in_a_line(planted, tmp_path):
    data, _ = planted
    with pytest.raises(FileNotFoundError, match="no table of predicted perturbations; make one first"):
        interactions.read(tmp_path)
    alone = [interactions.Predictions("m", 0, [(0, ["A", "B"], np.zeros((2, G)), np.zeros((2, G)))])]
    with pytest.raises(ValueError, match=r"m, seed 0: 0 doubles .* at least 3 are compared") as caught:
        interactions.evaluate(PLAN, data, alone, ["paper"])
    assert "\n" not in str(caught.value)
