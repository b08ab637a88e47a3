"""Nothing that is held out is trained on; scores and baselines of drug tables are those worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics

from scfm_jax.tasks.drugs import baselines, scores, splits


def rows(n=400, seed=0):
    """Return drugs, second drugs and lines of rows, with repeated measurements."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 12, n), rng.integers(0, 12, n), rng.integers(0, 9, n)


def promised(parts, n, whole=True):
    """Hold splits to what all of them promise: disjoint sets, and every row tested on."""
    for split in parts:
        three = np.concatenate([split.train, split.validation, split.test])
        assert len(np.unique(three)) == len(three) and min(len(split.train), len(split.test)) > 0
        assert len(split.validation) and split.learnt.tolist() == sorted({*split.train, *split.validation})
        assert not whole or len(three) == n
    if whole:
        assert len(np.unique(np.concatenate([split.test for split in parts]))) == n


@pytest.mark.parametrize("what", ["pairs", "drugs", "lines", "triples", "two drugs"])
def test_keys_that_are_held_out_are_in_no_training_or_validation_row(what):
    first, second, line = rows()
    keys = {
        "pairs": splits.pair(first, line, ordered=True),
        "drugs": first,
        "lines": np.array([f"line {i}" for i in line], object),
        "triples": splits.pair(splits.pair(first, second), line, ordered=True),
        "two drugs": np.stack([first, second], 1),
    }[what]
    parts = splits.groups_out(keys, 4, seed=3)
    promised(parts, len(first))
    for split in parts:
        sets = [set(np.ravel(keys[some])) for some in (split.train, split.validation, split.test)]
        assert not sets[0] & (sets[1] if what != "two drugs" else set()), "replicates lie on one side"
        held = sets[2] if what != "two drugs" else set(np.ravel(keys)) - sets[0] - sets[1]
        assert held and not held & (sets[0] | sets[1])
    again = splits.groups_out(keys, 4, seed=3)
    assert all((a.test == b.test).all() for a, b in zip(parts, again, strict=True))
    assert any(
        (a.test.shape != b.test.shape) or (a.test != b.test).any()
        for a, b in zip(parts, splits.groups_out(keys, 4), strict=True)
    )


def test_pairs_are_alike_in_whatever_order():
    one, other = np.array(["a", "b", "b", "a"]), np.array(["b", "a", "c", "c"])
    code = splits.pair(one, other)
    assert code[0] == code[1] and len(set(code)) == 3
    assert len(set(splits.pair(one, other, ordered=True))) == 4
    code = splits.pair(np.array([1, 2, 10]), np.array([2, 1, 1]))
    assert code[0] == code[1] != code[2]


def test_both_are_out_and_what_has_one_of_them_is_left_out():
    drug, _, line = rows(2000)
    parts = splits.both_out(drug, line, 3, of="drugs")
    promised(parts, len(drug), whole=False)
    for split in parts:
        for keys in (drug, line):
            assert not set(keys[split.test]) & set(keys[split.learnt])
            assert not set(keys[split.validation]) & set(keys[split.train])
    with pytest.raises(ValueError, match="folds=13: between 2 and 12, the number of drugs"):
        splits.both_out(drug, line, 13, of="drugs")


def test_an_independent_study_shares_no_key_with_what_is_learnt():
    keys, test = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 2]), np.arange(10) >= 9
    split = splits.independent(keys, test)
    assert split.test.tolist() == [9] and 4 not in split.learnt and len(split.learnt) == 8
    with pytest.raises(ValueError, match="independent: no rows to train on"):
        splits.independent(np.zeros(3), np.array([True, False, False]))


def test_response_is_scored_within_drugs():
    drug = np.array([0, 0, 0, 1, 1, 1, 2])
    true = np.array([1.0, 2, 3, 11, 12, 13, 5])
    means = np.array([2.0, 2, 2, 12, 12, 12, 5])
    table = scores.response(means, true, drug, additive=means)
    assert table["within_drug"] == 0 and table["pearson"] > 0.98 and table["over_additive"] == 0
    better = means + np.array([-0.5, 0, 0.5, 0.5, 0, -0.5, 0])
    table = scores.response(better, true, drug, additive=means)
    assert table["within_drug"] == pytest.approx(0), "one drug's right, one's reversed"
    assert table["rmse"] == pytest.approx(np.sqrt((2 * 0.25 + 2 * 2.25) / 7))
    assert table["over_additive"] == pytest.approx(1 - 5 / 4)
    assert scores.response(true, true, drug)["within_drug"] == pytest.approx(1)
    assert np.isnan(scores.response(true[:2], true[:2], drug[:2])["within_drug"]), "two rows are no correlation"
    with pytest.raises(ValueError, match="one for each"):
        scores.response(true[:3], true, drug)


def test_synergy_is_scored_as_scikit_learn_does_and_within_groups():
    rng = np.random.default_rng(0)
    label, group = rng.integers(0, 2, 200), rng.integers(0, 6, 200)
    score = np.round(0.3 * label + rng.random(200), 1) / 1.4  # with ties
    table = scores.synergy(score, label, {"line": group})
    said = score >= 0.5
    assert table["auroc"] == pytest.approx(metrics.roc_auc_score(label, score))
    assert table["aupr"] == pytest.approx(metrics.average_precision_score(label, score))
    assert table["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(label, said))
    assert table["kappa"] == pytest.approx(metrics.cohen_kappa_score(label, said))
    each = [metrics.roc_auc_score(label[group == i], score[group == i]) for i in range(6)]
    assert table["within_line"] == pytest.approx(np.mean(each))
    lines_mean = baselines.group_mean(group, label.astype(float), group)
    assert scores.synergy(lines_mean, label, {"line": group})["within_line"] == 0.5
    assert np.isnan(scores.auroc(score[:1], label[:1]))


def test_means_and_the_additive_table_are_those_of_the_training_rows():
    drug, line = np.repeat(np.arange(3), 4), np.tile(np.arange(4), 3)
    y = np.array([1.0, 5, 9])[drug] + np.array([0, 0.5, 2, -1])[line]
    kept = np.arange(12) != 5
    asked = np.array([1, 3, 0]), np.array([1, 2, 7])  # a known cell, an unseen drug, an unseen line
    table = baselines.additive(drug[kept], line[kept], y[kept], *asked, rounds=200)
    assert table[0] == pytest.approx(5.5), "an additive truth is filled in"
    left = y[kept].mean()
    assert baselines.group_mean(drug[kept], y[kept], np.array([0, 3])).tolist() == [y[:4].mean(), left]
    effect = baselines.additive(drug[kept], line[kept], y[kept], np.array([3, 3]), np.array([2, 3]), rounds=200)
    assert effect[0] - effect[1] == pytest.approx(3)
    several = np.stack([y, -y], 1)
    assert baselines.group_mean(drug, several, np.array([2])).tolist() == [[y[8:].mean(), -y[8:].mean()]]


def test_the_nearest_line_that_was_treated_answers():
    lines = np.array([[0, 1, 2, 3.0], [0, 1, 2, 3.1], [3, 2, 1, 0], [0, 2, 1, 3]])
    drug, line, y = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 2, 2, 3]), np.array([1.0, 3, 7, 4, 6])
    asked = np.array([0, 1, 0, 2]), np.array([0, 0, 2, 1])
    # line 0 is like 1 (mean of its replicates: 2), and for drug 1 like 3; a line is not its own neighbour; no such drug
    assert baselines.nearest_line(drug, line, y, *asked, lines).tolist() == [2, 6, 2, y.mean()]


def test_the_nearest_compounds_are_weighed_by_their_similarity():
    bits = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    y = np.array([3.0, 6, 100])
    made = baselines.nearest_compounds(bits, y, np.arange(3), np.array([3]), number=2)
    assert made[0] == pytest.approx((1 * 3 + 2 / 3 * 6) / (1 + 2 / 3))


def test_ridge_is_the_normal_equation_with_a_free_constant_dense_and_sparse():
    from scipy import sparse

    rng = np.random.default_rng(1)
    x, y, asked = rng.normal(size=(30, 4)), rng.normal(size=30) + 5, rng.normal(size=(3, 4))
    centred = x - x.mean(0)
    weights = np.linalg.solve(centred.T @ centred + 2 * np.eye(4), centred.T @ (y - y.mean()))
    wanted = (asked - x.mean(0)) @ weights + y.mean()
    np.testing.assert_allclose(baselines.ridge(x, y, asked, 2), wanted)
    made = baselines.ridge(sparse.csr_matrix(x), y, sparse.csr_matrix(asked), 2)
    np.testing.assert_allclose(made, wanted, rtol=1e-4)
    both = baselines.ridge(x, np.stack([y, -y], 1), asked, 2)
    np.testing.assert_allclose(both, np.stack([wanted, -wanted], 1))


def test_ridge_on_fingerprints_learns_what_a_product_of_drug_and_line_says():
    rng = np.random.default_rng(2)
    bits, lines = (rng.random((20, 6)) < 0.5).astype(float), rng.normal(size=(15, 5))
    drug, line = np.repeat(np.arange(20), 15), np.tile(np.arange(15), 20)
    y = (bits[drug, 0] - 0.5) * lines[line, 1]
    train = drug < 16
    made = baselines.ridge_on_fingerprints(
        drug[train], line[train], y[train], drug[~train], line[~train], bits, lines, (6, 5), 1e-3
    )
    assert scores.pearson(made, y[~train]) > 0.95


def test_one_hot_pairs_know_no_order_and_the_pair_term_is_the_pair():
    first, second, line = np.array([0, 1, 2]), np.array([1, 0, 0]), np.array([0, 0, 1])
    made = baselines.one_hot_features(first, second, line, splits.pair(first, second)).toarray()
    assert (made[0] == made[1]).all() and made[0].tolist() == [1, 1, 0, 1, 0, *np.eye(2)[splits.pair(first, second)[0]]]
    bits = np.array([[1, 0], [1, 1], [0, 1]])
    assert baselines.fingerprint_features(first, second, line, bits)[2].tolist() == [1, 1, 0, 0, 0, 1]
