"""Scores, splits and simple predictions of perturbation effects, by hand and against what defines them."""

import numpy as np
import pytest
from scipy import sparse, stats

from scfm_jax.tasks.perturbation import baselines, scores, screen, splits

TRUE = np.array([[1.0, 0, -1, 0], [0, 2, 0, 1], [3, 0, 0, -1]])
PREDICTED = np.array([[2.0, 1, -1, 0], [0, 1, 1, 1], [1, -1, 0, 0]])


def test_each_score_is_what_it_is_by_hand(monkeypatch):
    monkeypatch.setattr(scores, "TOP", 2)
    monkeypatch.setattr(scores, "RECALLED", 2)
    table = scores.of_conditions(PREDICTED, TRUE, TRUE, np.array([1.0, 0, 0, 0]), [[0], [], [3]])
    assert table["mse_top"].tolist() == [0.5, 0.5, 2.5]
    assert table["direction"].tolist() == [1, 1, 0.5] and table["recall"].tolist() == [0.5, 0.5, 0.5]
    assert table["discrimination"] == pytest.approx([1, 1, 2 / 3])  # without gene 3 the first is nearer to the third
    assert table["pearson"][0] == pytest.approx(3 / 10**0.5)
    assert table["centred"][0] == pytest.approx(1.25 / (2.75 * 0.75) ** 0.5)
    assert table["pearson_top"].tolist() == pytest.approx([1, 0, 1])  # (1, 1) of the second is constant
    assert table["centred_top"][0] == pytest.approx(1)  # (1, -1) and (0, -1)
    nothing = scores.of_conditions(0 * TRUE, TRUE, TRUE, np.zeros(4), [[], [], []])
    assert not any(nothing[name].any() for name in ("pearson", "centred", "direction", "recall"))


def test_ties_share_the_middle_rank():
    same = np.ones((4, 5))
    assert scores.discrimination(PREDICTED[:1].repeat(4, 0)[:, [0, 1, 2, 3, 0]], same, [[]] * 4) == pytest.approx(0.625)
    two = np.array([[0.0, 1], [1, 0], [5, 5], [9, 9]])  # both are 1 from the prediction
    assert scores.discrimination(np.zeros((4, 2)), two, [[]] * 4).tolist() == [0.875, 0.875, 0.5, 0.25]


def test_means_t_and_energy_are_the_textbooks():
    rng = np.random.default_rng(0)
    a, b = rng.poisson(1.0, (30, 6)).astype(float), rng.poisson(2.0, (50, 6)).astype(float)
    expected = stats.ttest_ind(a, b, equal_var=False).statistic
    assert scores.t_statistics(sparse.csr_matrix(a), sparse.csr_matrix(b)) == pytest.approx(expected)
    assert scores.energy_distance(np.array([[0.0], [2]]), np.array([[1.0], [3]])) == pytest.approx(2 * 1.5 - 2 - 2)
    mean, low, high = scores.bootstrap([0.0, 1.0, np.nan, 1.0, 0.0])
    assert mean == 0.5 and 0 <= low < 0.5 < high <= 1 and np.isnan(scores.bootstrap([])).all()
    names = np.array(["control"] * 50 + ["x"] * 30, object)
    made, few = screen.make(
        "abcdef", sparse.csr_matrix(np.r_[b, a]), names, {"x": ("a",), "y": ("z",)}, {"a": 0, "z": -1},
        control="control", least=20,
    )  # fmt: skip
    assert made.effects(["x"])[0] == pytest.approx(a.mean(0) - b.mean(0)) and made.places(["x"]) == [[0]]
    one, other = made.half_effects(["x"], 0)
    assert (one + other) / 2 == pytest.approx(made.effects(["x"])) and not few
    with pytest.raises(ValueError, match=r"no condition has 40 cells .* largest has 30, control 50"):
        screen.make("abcdef", made.expression, names, {"x": ("a",)}, {}, control="control", least=40)


def doubles(n: int = 8) -> dict[str, tuple[str, ...]]:
    """Return all singles and doubles of n targets."""
    genes = [f"G{i}" for i in range(n)]
    return {g: (g,) for g in genes} | {f"{a}+{b}": (a, b) for i, a in enumerate(genes) for b in genes[i + 1 :]}


def test_the_simulation_split_has_its_strata_and_none_leaks():
    of = doubles()
    split = splits.simulation(of, 1)
    sizes = {stratum: list(split.strata.values()).count(stratum) for stratum in set(split.strata.values())}
    assert sizes == {"seen 0/1": 2, "seen 2/2": 4, "seen 1/2": 12, "seen 0/2": 1}
    learnt = {*split.train, *split.validation}
    assert len(learnt) == 6 + 11 and len(split.validation) == 2 and not learnt & set(split.test)
    assert learnt | set(split.test) == set(of)
    drawn = set(np.random.RandomState(1).choice([f"G{i}" for i in range(8)], 6, replace=False))
    assert {g for name in learnt for g in of[name]} == drawn
    for name, stratum in split.strata.items():
        assert stratum == f"seen {len(drawn & set(of[name]))}/{len(of[name])}"
    assert splits.simulation(of, 1) == split != splits.simulation(of, 2)
    with pytest.raises(ValueError, match=r"1 perturbed targets with enough cells \(G0\): 2 or more are needed"):
        splits.simulation({"G0": ("G0",)})


def test_a_target_that_is_out_is_in_no_condition_that_is_learnt_from():
    of = doubles(5)
    out = splits.one_target_out(of)
    assert [split.name for split in out] == [f"G{i} out" for i in range(5)]
    folds = splits.folds_of_targets(of, 2, seed=3)
    for i, split in enumerate(out):
        assert not any(f"G{i}" in of[name] for name in (*split.train, *split.validation))
        assert all(f"G{i}" in of[name] for name in split.test) and len(split.test) == 5
        assert split.strata.pop(f"G{i}") == "seen 0/1" and set(split.strata.values()) == {"seen 1/2"}
    singles = [name for split in folds for name in split.test if len(of[name]) == 1]
    assert sorted(singles) == [f"G{i}" for i in range(5)]
    groups = {"s | B": "B", "s | T": "T", "u | T": "T"}
    first, second = splits.one_group_out({name: (name[0],) for name in groups}, groups)
    assert first.test == ("s | B",) and set(second.train + second.validation) == {"s | B"}
    with pytest.raises(ValueError, match="folds=6: between 2 and 5"):
        splits.folds_of_targets(of, 6)


def test_ridge_is_the_solution_of_its_normal_equations():
    rng = np.random.default_rng(0)
    y, p, g, new = rng.normal(size=(7, 9)), rng.normal(size=(7, 3)), rng.normal(size=(9, 4)), rng.normal(size=(2, 3))
    b = y.mean(0)
    a, c = g.T @ g + 0.1 * np.eye(4), p.T @ p + 0.1 * np.eye(3)
    w = np.linalg.solve(np.kron(a, c), (g.T @ (y - b).T @ p).ravel()).reshape(4, 3)  # a w c = g' (y - b)' p
    assert baselines.bilinear_ridge(y, p, new, g) == pytest.approx(new @ w.T @ g.T + b)


def test_planted_effects_are_recovered_with_the_vectors_that_made_them_and_no_others():
    rng = np.random.default_rng(0)
    g, p = rng.normal(size=(120, 6)), rng.normal(size=(60, 6))
    p -= p[:50].mean(0)  # so that the mean effect is b
    y = (g @ rng.normal(size=(6, 6)) @ p.T).T + rng.normal(size=120) + 0.3 * rng.normal(size=(60, 120))
    train, test = slice(0, 50), slice(50, 60)

    def score(g, p):
        guess = baselines.bilinear_ridge(y[train], p[train], p[test], g)
        reference = y[train].mean(0)
        return scores.of_conditions(guess, y[test], y[test], reference, [[]] * 10)

    right, wrong = score(g, p), score(rng.normal(size=g.shape), rng.normal(size=p.shape))
    assert right["centred"].mean() > 0.9 > 0.3 > abs(wrong["centred"].mean())
    assert right["discrimination"].mean() > 0.95 and wrong["discrimination"].mean() < 0.8


def test_baselines_of_doubles_use_the_singles_that_were_learnt():
    effects = np.array([[1.0, 0], [0, 2], [5, 5]])
    trained, asked = [("a",), ("b",), ("a", "b")], [("a", "b"), ("b", "c"), ("c",)]
    mean = effects.mean(0)
    assert baselines.matching_mean(effects, trained, asked) == pytest.approx(np.array([[0.5, 1], [0, 2], mean]))
    sums = np.array([effects[0] + effects[1], effects[1] + mean, mean])
    assert baselines.additive(effects, trained, asked) == pytest.approx(sums)
    assert not baselines.no_change(effects, 2).any() and baselines.training_mean(effects, 2)[1] == pytest.approx(mean)
    vectors = baselines.scaled(np.array([[1.0, 3], [3, 3], [9, 9]]), np.array([True, True, False]))
    assert vectors[:2] == pytest.approx(np.array([[-1, 0], [1, 0]]))
