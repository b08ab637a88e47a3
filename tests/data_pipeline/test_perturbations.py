"""What was perturbed in each cell: GEARS' layout, any column, and what cannot be read in one line each."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from data_pipeline.files import perturbations


def test_conditions_of_gears_and_of_any_column_are_the_same():
    gears = pd.DataFrame({"condition": pd.Categorical(["ctrl", "A+ctrl", "ctrl+A", "B+A", "A+B", "ctrl+ctrl", None])})
    read = perturbations.read(gears)
    assert read.names.tolist() == ["control", "A", "A", "A+B", "A+B", "control", None]
    assert read.targets == {"A": ("A",), "A+B": ("A", "B")} and read.all_targets() == ["A", "B"]
    other = pd.DataFrame({"guide": ["NT", "A", "A", "A,B", "B, A", "safe", ""]})
    again = perturbations.read(other, "guide", ["NT", "safe"], ",")
    assert again.names.tolist() == read.names.tolist() and again.targets == read.targets


def test_what_is_wrong_is_said_in_one_line_with_the_way_out():
    obs = pd.DataFrame({"gene": ["A", "B", "B"], "n": [1, 2, 3]})
    for arguments, what in (
        (("auto",), r"x: no obs column 'condition' with 'ctrl' in it .* say column=NAME .*; there are gene, n"),
        (("guide",), "x: column=guide: no such obs column; there are gene, n"),
        (("gene",), r"x: obs\['gene'\] has no control cells \(ctrl\).* say control=VALUE; there are B \(2\), A \(1\)"),
        (("gene", ["A", "B"]), r"x: obs\['gene'\] has control cells only; choose another column"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            perturbations.read(obs, *arguments, where="x")
        assert "\n" not in str(caught.value)
    places, measured = {"A": 3, "B": 4, "C": -1}, {"A": 0, "B": -1}
    perturbations.require(["A"], places, measured, "x")
    with pytest.raises(ValueError, match="x: target C is no gene of the vocabulary; check its spelling"):
        perturbations.require(["A", "C"], places, measured, "x")
    with pytest.raises(ValueError, match=r"x: target B was not measured.* choose another target"):
        perturbations.require(["B"], places, measured, "x")


def test_only_logarithms_pass_as_logarithms():
    x = sparse.csr_matrix(np.array([[0.0, 1.5], [3.0, 0.2]]))
    perturbations.check_logged(x, "x")
    for bad, what in ((-x, "negative values, as of z-scores"), (x * 100, "a value of 300"), (x * np.nan, "not finite")):
        with pytest.raises(ValueError, match=what):
            perturbations.check_logged(bad, "x")
