"""A semi-synthetic screen has the effects that its formula says, and says that it is one."""

import numpy as np
import pytest
import scipy.sparse as sp

from data_pipeline import synthetic_screen as synthetic
from data_pipeline.genes import edge_lists

# 0 -> 2 (up), 1 -> 2 (up), 1 -> 3 (down), 3 -> 4 (up)
SOURCE, TARGET, SIGN = np.array([0, 1, 1, 3, 2]), np.array([2, 2, 3, 4, 2]), np.array([1, 1, -1, 0.5, 1])


def test_a_loss_spreads_over_signed_edges_and_two_losses_meet():
    w = synthetic.weights(SOURCE, TARGET, SIGN, 6)
    dense = np.zeros((6, 6))
    dense[2, [0, 1]], dense[3, 1], dense[4, 3] = 2**-0.5, -1, 1
    np.testing.assert_allclose(w.toarray(), dense)
    effects = synthetic.Effects(steps=2, decay=0.5, half=0.5, largest=3.0, left=0.1)

    def response(s):
        return np.sign(s) * np.log(3) * s**2 / (s**2 + 0.25)

    single = effects.log_fold(w, [1])
    wanted = [0, np.log(0.1), response(-(2**-0.5)), response(1), response(0.5), 0]
    np.testing.assert_allclose(single, wanted, atol=1e-12)
    double = effects.log_fold(w, [0, 1])
    assert double[2] == pytest.approx(response(-(2**0.5)))
    assert abs(double[2]) < 2 * abs(single[2]), "strong regulators of one gene say the same"
    assert effects.log_fold(0.2 * w, [0, 1])[2] < 2 * effects.log_fold(0.2 * w, [1])[2], "weak ones help each other"


def test_cells_are_thinned_to_the_effects_and_are_never_both_control_and_perturbed():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(200, (100, 6)))
    w = synthetic.weights(SOURCE, TARGET, SIGN, 6)
    asked = synthetic.choose(w, 3, 2, seed=1)
    assert asked[:3] == [(0,), (1,), (3,)] and (0, 1) in synthetic.choose(w, 3, 3) and len(asked) == 5
    made = synthetic.make(counts, list("abcdef"), w, asked, cells=70, what="a test", seed=2)
    groups = {name: made[made.obs.condition == name] for name in made.obs.condition.unique()}
    assert {"ctrl", "a+ctrl", "b+ctrl", "d+ctrl"} <= set(groups) and len(groups["a+ctrl"]) == 70
    assert set(made.obs[synthetic.LABEL]) == {"a test"}
    control = set(groups["ctrl"].obs.of_cell)
    assert len(control) == 50 and not control & set(made.obs.of_cell[made.obs.condition != "ctrl"])
    base = counts[groups["ctrl"].obs.of_cell].mean() / 3
    assert groups["ctrl"].X.mean() == pytest.approx(base, rel=0.05)
    for name, cells in groups.items():
        ratio = np.asarray(cells.X.mean(0)).ravel() / base
        np.testing.assert_allclose(ratio, np.exp(made.varm["log_fold"][name]), rtol=0.15)
    for change, what in (
        ({"singles": 4, "doubles": 0}, "singles=4: 3 expressed genes regulate others"),
        ({"singles": 3, "doubles": 4}, "doubles=4: 3 singles have 3 pairs"),
    ):
        with pytest.raises(ValueError, match=what):
            synthetic.choose(w, **change)


def test_signs_of_edges_are_read_and_have_to_be_there(tmp_path):
    (tmp_path / "e.tsv").write_text("tf\ttarget\tmor\nA\tB\t-1\nB\tC\t1\n")
    ends = (("tf", "target"),)
    assert edge_lists.read_edges(tmp_path / "e.tsv", None, ends, signs=("mor",)).weight.tolist() == [-1, 1]
    with pytest.raises(ValueError, match="the sign of an edge is sign or effect"):
        edge_lists.read_edges(tmp_path / "e.tsv", None, ends, signs=("sign", "effect"))
    with pytest.raises(ValueError, match="not negative"):
        edge_lists.read_edges(tmp_path / "e.tsv", "mor", ends)
