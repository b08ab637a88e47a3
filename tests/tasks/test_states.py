"""States against perturbations: differences by hand, a planted reversal, chance that is chance, one donor refused."""

import numpy as np
import pytest
from scipy import sparse

from scfm_jax.tasks.perturbation import cell_gene, screen, states

RNG = np.random.default_rng(0)


def test_differences_are_taken_within_donor_and_type_or_among_donors():
    x = RNG.normal(size=(40, 3))
    kind, donor = np.arange(40) % 2, np.arange(40) // 20
    case = RNG.random(40) < 0.4
    made, how = states.design(case, donor, kind)
    parts = [(case & s, ~case & s) for d in (0, 1) for k in (0, 1) for s in [(donor == d) & (kind == k)]]
    expected = sum(a.sum() * (x[a].mean(0) - x[b].mean(0)) for a, b in parts) / case.sum()
    np.testing.assert_allclose(made.weights() @ x, expected)
    np.testing.assert_allclose(made.weights() @ sparse.csr_matrix(x), expected)
    assert how == "labels exchanged among the cells of each of 2 donors and type"
    for other in made.permutations(5):
        assert all((other & s).sum() == (case & s).sum() for a, b in parts for s in [a | b])

    donor = np.array(list("aabbbccdee"))  # cases a, b; controls c, d, e: a donor is the mean of its cells
    case, y = np.isin(donor, ["a", "b"]), RNG.normal(size=(10, 2))
    made, how = states.design(case, donor)
    mean = {name: y[donor == name].mean(0) for name in "abcde"}
    expected = (mean["a"] + mean["b"]) / 2 - (mean["c"] + mean["d"] + mean["e"]) / 3
    np.testing.assert_allclose(made.weights() @ y, expected)
    assert how == "labels exchanged among 5 donors, each a case or a control"
    assert {int(drawn.sum()) for drawn in made.permutations(9)} == {2}
    alone = states.design(np.arange(6) < 3, None, np.array(list("ttbbbb")))[0].weights()
    np.testing.assert_allclose(alone, [0, 0, 1, -1 / 3, -1 / 3, -1 / 3])  # a type of cases alone does not count
    np.testing.assert_allclose(states.halves(7, 3).sum(1), 0, atol=1e-12)


def test_one_donor_and_one_side_are_refused():
    donor = np.repeat(["a", "b"], 10)
    for case, who, what in (
        (np.arange(20) < 5, donor, "1 donors with case and control cells, 1 with case and 2 with control cells: two"),
        (np.arange(20) < 10, donor, "0 donors with case and control cells, 1 with case and 1 with control cells: two"),
        (np.zeros(20, bool), None, "0 case and 20 control cells"),
    ):
        with pytest.raises(ValueError, match=what) as caught:
            states.design(case, who)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no donor and type has case and control cells"):
        states.design(np.arange(20) < 10, None, donor)


def planted(n_null: int, seed: int = 0):
    """Return the arguments of `correlate`: gene 0 turns the state back, gene 1 acts along it, others do nothing."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=30)
    case = np.repeat([True, False], 60)
    cells = rng.normal(size=(120, 30)) + 0.6 * case[:, None] * direction
    made, _ = states.design(case, np.arange(120) % 3)
    labels = np.stack([made.weights(drawn) for drawn in made.permutations(200)]) @ cells
    control = rng.normal(size=(80, 30))
    groups = [rng.normal(size=(40, 30)) + c * direction for c in (-0.5, 0.5, *np.zeros(n_null))]
    shifts = np.stack([group.mean(0) - control.mean(0) for group in groups])
    return made.weights() @ cells, labels, shifts, states.halves(80, 200) @ control, np.full(len(groups), -1)


def test_a_planted_reversal_is_found_and_what_does_nothing_is_chance():
    table = states.correlate(*planted(20))
    assert table["cosine"][0] < -0.8 and table["cosine"][1] > 0.8 and table["q"][:2].max() < 0.06
    assert table["q"][2:].min() > 0.1
    state, labels, shifts, chance, _ = planted(4)
    cut = states.correlate(state, labels, shifts, chance, np.full(6, 2))
    kept = np.arange(30) != 2
    right = shifts[0][kept] @ state[kept] / np.linalg.norm(shifts[0][kept]) / np.linalg.norm(state[kept])
    assert cut["cosine"][0] == pytest.approx(right)
    np.testing.assert_allclose(states.cosines(sparse.csr_matrix(shifts), state, 2), cut["cosine"])
    null = [states.correlate(*planted(8, seed)) for seed in range(1, 9)]
    for name in ("p_labels", "p_chance"):
        p = np.concatenate([part[name][2:] for part in null])
        assert 0.35 < p.mean() < 0.65 and (p < 0.05).mean() < 0.15
    assert states.p_value(0.5, np.array([-0.6, 0.1, 0.2])) == 0.5


def test_agreement_of_halves_and_lists_among_the_strongest():
    case, direction = np.repeat([True, False], 100), 2 * RNG.normal(size=8)
    made, _ = states.design(case)
    x = RNG.normal(size=(200, 8))
    assert states.agreement(made, x + case[:, None] * direction) > 0.9 > 0.5 > abs(states.agreement(made, x))
    scores = states.enrichment(np.arange(20.0), np.arange(20) >= 17, top=5)
    assert scores["auroc"] == 1 and scores["overlap"] == 3 and scores["expected"] == 0.75
    assert scores["overlap_p"] == pytest.approx(10 / 1140)  # C(5, 3) of C(20, 3)
    assert np.isnan(states.enrichment(np.arange(3.0), np.zeros(3, bool))["auroc"])


def test_effects_of_unseen_genes_come_from_their_vectors_and_the_loss_weighs_the_top_alike():
    change, truth = np.array([[1.0, 2, 3, 4]]), np.array([[1.0, 0, 3, 6]])
    batch = {"change": truth, "top": np.array([[False, True, False, False]])}
    assert float(cell_gene.loss(change, batch, {})) == pytest.approx((4 + 4) / 4 + 4)
    rng = np.random.default_rng(1)
    names = [f"g{i}" for i in range(30)]
    vectors, mixing = rng.normal(size=(30, 4)), rng.normal(size=(4, 40))
    effects = vectors @ mixing
    x = rng.normal(size=(31 * 12, 40)) * 0.3 + np.repeat(np.vstack([np.zeros(40), effects]), 12, 0)
    rows = {name: np.arange(12 * (i + 1), 12 * (i + 2)) for i, name in enumerate(names)}
    made = screen.Screen(
        [f"m{i}" for i in range(40)], sparse.csr_matrix(x), rows, dict.fromkeys(names, np.arange(12)),
        {name: (name,) for name in names}, dict.fromkeys(names, -1), dict.fromkeys(names, ""),
    )  # fmt: skip
    cells = rng.normal(size=(len(x), 3))
    train, valid, test = names[:22], names[22:25], names[25:]

    def error(table):
        problem = cell_gene.Problem.of(made, cells, table)
        fitted = cell_gene.fit(problem, train, valid)
        asked = np.stack([table[name] for name in test])
        return np.square(cell_gene.predict(fitted, problem, asked, test) - made.effects(test)).mean()

    table = dict(zip(names, vectors, strict=True))
    shuffled = dict(zip(names, vectors[np.random.default_rng(2).permutation(30)], strict=True))
    assert 3 * error(table) < np.square(made.effects(test)).mean() < 3 * error(shuffled)
    near = cell_gene.nearest(np.eye(3), np.array([[1.0, 0], [0, 1], [-1, 0]]), np.array([[0.1, 3], [-2, 0.5]]))
    assert near.argmax(1).tolist() == [1, 2]
