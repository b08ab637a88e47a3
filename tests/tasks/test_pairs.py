"""Pairs of control and perturbed cells, what heads read of them, and CellPLM's marked cells."""

import numpy as np
import pytest
import scipy.sparse as sp

from scfm_jax.tasks.perturbation import cell_head, gears_fit, pairs, screen

G, M = 6, 1
"""Measured genes, and targets that were not measured."""


@pytest.fixture(scope="module")
def made():
    """Return pairs of a screen of two singles and their double, in two groups."""
    rng = np.random.default_rng(0)
    names = np.array(["control"] * 20 + ["A"] * 8 + ["Z"] * 8 + ["A+Z"] * 8, object)
    x = sp.csr_matrix(np.log1p(rng.poisson(1.0, (44, G))))
    groups = np.where(np.arange(44) % 2, "t", "b").astype(object)
    targets = {"A": ("A",), "Z": ("Z",), "A+Z": ("A", "Z")}
    place = {"A": 2, "Z": -1}
    of, _ = screen.make("CDAEFG", x, names, targets, place, control="control", groups=groups, least=4)
    return pairs.Pairs(of, {"A": 2, "Z": G}, G + M, pairs.controls(of, 8), most=3)


def test_a_perturbed_cell_stands_beside_a_control_cell_of_its_group(made):
    s = made.screen
    examples = made.examples(["A+Z | b", "Z | t"], seed=1, fill=4, control=True)
    batch = examples.take(np.arange(examples.n))
    assert examples.n % 4 == 0 and set(batch) == {"x", "y", "condition", "flags"}
    code = {name: i for i, name in enumerate(s.conditions)}
    counted = np.bincount(batch["condition"])
    assert counted[code["A+Z | b"]] == counted[code["Z | t"]] == 3 and counted[made.control] == 16
    assert counted[made.control + 1 :].sum() == examples.n - 22, "what fills up is of no condition"
    double, control = batch["condition"] == code["A+Z | b"], batch["condition"] == made.control
    assert (batch["flags"][double].nonzero()[1].reshape(3, 2) == [2, G]).all() and not batch["flags"][control].any()
    np.testing.assert_array_equal(batch["x"][control], batch["y"][control])
    assert not batch["x"][:, G:].any() and not batch["y"][:, G:].any()
    rows = {
        group: {tuple(np.float32(v)) for v in s.expression[pool].toarray()} for group, pool in made.controls.items()
    }
    assert {tuple(v[:G]) for v in batch["x"][double]} <= rows["b"]
    truth = {tuple(np.float32(v)) for v in s.expression[s.rows["A+Z | b"]].toarray()}
    assert {tuple(v[:G]) for v in batch["y"][double]} <= truth
    again = made.examples(["A+Z | b", "Z | t"], seed=1, fill=4, control=True).take(np.arange(examples.n))
    assert all((again[name] == batch[name]).all() for name in batch)
    asked = made.asked("Z | t")
    assert asked.n == pairs.PREDICTED and asked.take(np.arange(4))["flags"][:, G].all()
    assert s.singles("A+Z | t") == ("A | t", "Z | t") and s.singles("A | t") == ()
    de = made.changed(["A | b"], 2)
    assert de.sum(1).tolist() == [2 * (name == "A | b") for name in s.conditions] + [0]


def test_features_are_standardised_and_a_gene_that_the_model_lacks_has_the_mean_of_the_others():
    values = np.arange(24.0).reshape(3, 2, 4).astype(np.float32)
    of = pairs.CellFeatures(np.array([4, 7, 9]), values, np.array([1, -1, 0]), np.ones(4), np.full(4, 2.0))
    wanted = (values[[2, 0, 2]] - 1) / 2
    got = of.of(np.array([9, 4, 9]))
    np.testing.assert_allclose(got[:, [2, 0]], wanted)
    np.testing.assert_allclose(got[:, 1], wanted.mean(1))


def test_coexpression_joins_each_gene_with_those_of_largest_correlation_and_has_as_many_edges_whatever_the_cells():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 5)) ** 2
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    x[:, 4] = 0
    graph = gears_fit.coexpression(sp.csr_matrix(x), 6, top=2)
    weight = np.zeros((6, 6))
    weight[graph.receivers, graph.senders] = graph.edges
    likeness = np.abs(np.corrcoef(x[:, :4].T))
    plain = np.eye(6)
    plain[0, 1] = plain[1, 0] = likeness[0, 1]
    degree = plain.sum(1)
    np.testing.assert_allclose(weight, plain / np.sqrt(degree[:, None] * degree), atol=1e-6)
    assert likeness[2:, :2].max() < gears_fit.LEAST
    other = gears_fit.coexpression(sp.csr_matrix(rng.random((50, 5))), 6, top=2)
    assert len(other.edges) == len(graph.edges)


def test_the_targets_of_a_cell_are_marked_whether_it_expresses_them_or_not():
    inputs = {"slots": np.array([[[3, 5, 9]], [[1, 9, 9]]]), "values": np.float32([[[0.7, 1.2, 0]], [[2, 0, 0]]])}
    marked = cell_head.marked(inputs, np.array([[5, 9], [4, 9]]))  # 9: no gene
    dense = np.zeros((2, 10))
    for row, slots, values in zip(dense, marked["slots"][:, 0], marked["values"][:, 0], strict=True):
        np.add.at(row, slots, values)
    assert dense[0, :9].tolist() == pytest.approx([0, 0, 0, 0.7, 0, -1, 0, 0, 0])
    assert dense[1, :9].tolist() == pytest.approx([0, 2, 0, 0, -1, 0, 0, 0, 0])
