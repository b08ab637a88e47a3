"""Tables of genes promise: formulas by hand, 0 within genes, one sample is the file, and rate 1 is what it says."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from experiments.pages import imputation_curves, output
from scfm_jax.tasks.imputation import baselines, bins, imputation, tables, within_gene

V = 40


def studies(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return counts of two samples of opposite genes [60, V] and the code of the sample of each cell. [60]"""
    rng, samples = np.random.default_rng(seed), np.arange(60) % 2
    rate = np.where(samples[:, None] == np.arange(V) % 2, 4.0, 0.6) * rng.uniform(0.5, 2, (60, 1))
    return rng.poisson(rate).astype(np.float32), samples


def pose(counts: np.ndarray, hidden: np.ndarray, **options) -> imputation.Problem:
    """Pose a problem of one bag where every gene is measured."""
    return imputation.pose(counts, np.ones(counts.shape[1], bool), hidden, [np.arange(len(counts))], **options)


# -------------------------------------------------------------------------------------------------------- within genes


def by_the_formula(true: np.ndarray, said: np.ndarray, genes: np.ndarray) -> float:
    """Return the correlation as it is written, a gene and a bin at a time."""
    top, left, right = 0.0, 0.0, 0.0
    for gene in np.unique(genes):
        t, p, n = true[genes == gene], said[genes == gene], (genes == gene).sum()
        for k in range(6):
            hits, of_true, of_said = ((t == k) & (p == k)).sum(), (t == k).sum(), (p == k).sum()
            top += (n * hits - of_true * of_said) / n
            left, right = left + of_true - of_true**2 / n, right + of_said - of_said**2 / n
    return top / np.sqrt(left * right)


def test_the_correlation_within_genes_is_its_formula():
    rng = np.random.default_rng(0)
    genes = rng.integers(0, 30, 900) * 7  # numbers with gaps
    true = rng.integers(1, 5, 900)
    said = np.where(rng.random(900) < 0.4, true, rng.integers(0, 6, 900))
    assert within_gene.matthews(true, said, genes) == pytest.approx(by_the_formula(true, said, genes), abs=1e-12)
    one = np.zeros(900, int)
    assert within_gene.matthews(true, said, one) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)
    assert within_gene.matthews(true, true, genes) == pytest.approx(1)
    # two genes by hand: (1, 2 | 1, 2) is right, (1, 2 | 2, 1) is wrong; a third gene is the same everywhere
    hand = within_gene.matthews(*np.array([[1, 2, 1, 2, 1, 1], [1, 2, 2, 1, 1, 1], [0, 0, 1, 1, 2, 2]]))
    assert hand == 0 == within_gene.matthews(*np.zeros((3, 0), int))


def test_tables_of_genes_and_exchanged_bins_are_nothing_within_genes():
    rng = np.random.default_rng(1)
    genes = np.repeat(np.arange(50), 200)
    true = np.minimum(1 + rng.poisson(np.linspace(0, 3, 50)[genes]), 4)
    for table in (
        np.full(50, 3),
        rng.integers(0, 5, 50),
        np.array([np.bincount(x).argmax() for x in true.reshape(50, 200)]),
    ):
        assert within_gene.matthews(true, table[genes], genes) == 0
    exchanged = rng.permuted(true.reshape(50, 200), axis=1).ravel()
    assert abs(within_gene.matthews(true, exchanged, genes)) < 0.03 < 0.1 < matthews_corrcoef(true, exchanged)


def test_every_score_has_it_and_a_constant_bin_of_a_gene_has_none():
    counts, samples = studies()
    hidden = np.random.default_rng(0).random(counts.shape) < 0.4
    problem = pose(counts, hidden, samples=samples)
    ruler, true = bins.fit(problem.counts, problem.depth), bins.fit(counts, counts.sum(1))
    scored = {
        name: imputation.score(x, problem, counts, ruler, true, {"": np.ones(V, bool)})[""]
        for name, x in tables.predictions(problem, ruler).items()
    }
    within = {name: scores["mcc_within_gene"] for name, scores in scored.items()}
    assert within["most common bin"] == within["common bin, never 0"] == 0 < within["gene x sample bin, never 0"]
    assert scored["gene x sample mean"]["mcc_all"] > scored["gene mean"]["mcc_all"] + 0.2
    assert scored["gene x sample mean"]["mae_all"] < 0.7 * scored["gene mean"]["mae_all"]


# -------------------------------------------------------------------------------------------------------------- tables


def test_rates_of_a_sample_are_drawn_to_those_of_all_by_one_cell():
    counts = np.array([[2.0, 6], [4, 4], [9, 1], [6, 2]])
    hidden = np.array([[0, 0], [0, 1], [0, 0], [1, 1]], bool)
    problem, samples = pose(counts, hidden), np.array([0, 0, 1, 1])
    np.testing.assert_allclose(problem.depth, [8, 8, 10, 26 / 3])  # the second: 4 of one of two genes; the last: a mean
    one, everything = problem.depth.mean(), np.array([15 / 26, 7 / 18])
    first = (np.array([6.0, 6]) + one * everything) / (np.array([16, 8]) + one)
    second = (np.array([9.0, 1]) + one * everything) / (10 + one)
    np.testing.assert_allclose(tables.sample_rates(problem, samples), [first, second])
    said = tables.predictions(problem, bins.fit(problem.counts, problem.depth), samples)
    expected = [8 * first[1], *(26 / 3 * second)]
    np.testing.assert_allclose(said["gene x sample mean"], expected)


def test_in_one_sample_both_tables_are_one_and_codes_need_not_be_dense():
    counts, samples = studies()
    hidden = np.random.default_rng(0).random(counts.shape) < 0.4
    hidden[:, 3] = True
    problem = pose(counts, hidden)
    ruler = bins.fit(problem.counts, problem.depth)
    said = tables.predictions(problem, ruler)
    for one, other in (("gene mean", "gene x sample mean"), ("most common bin", "gene x sample bin")):
        for words in ("", ", never 0"):
            plain = said.get(f"{one}{words}", said.get("common bin, never 0"))
            np.testing.assert_allclose(said[f"{other}{words}"], plain, rtol=1e-9)
    sparse = tables.predictions(problem, ruler, np.array([7, -2])[samples])
    dense = tables.predictions(problem, ruler, samples)
    assert all((sparse[name] == dense[name]).all() for name in dense)
    assert not np.allclose(dense["gene x sample mean"], said["gene mean"])


def test_a_gene_that_a_sample_hides_has_the_bin_of_the_others():
    counts, samples = studies()
    hidden = np.zeros(counts.shape, bool)
    hidden[samples == 0, 0] = True
    problem = pose(counts, hidden, samples=samples)
    ruler = bins.fit(problem.counts, problem.depth)
    binned = ruler.bins(problem.counts)
    said = tables.sample_bin(problem, ruler, samples, least=1).argmax(1)
    assert (said == np.bincount(binned[samples == 1, 0][binned[samples == 1, 0] > 0]).argmax()).all()


# -------------------------------------------------------------------------------------------------------------- rate 1


def test_with_everything_hidden_the_ruler_of_the_cell_shares_its_total_evenly():
    counts, _ = studies()
    problem = pose(counts, np.ones(counts.shape, bool), ruler="cell")
    ruler = imputation.fit_ruler(problem, counts, "cell")
    np.testing.assert_allclose(baselines.gene_mean(problem), np.repeat(counts.sum(1) / V, V))
    said = tables.predictions(problem, ruler)
    assert (said["most common bin"].argmax(1) == 0).all() and (said["common bin, never 0"].argmax(1) == 1).all()
    true = bins.fit(counts, counts.sum(1))
    perfect = imputation.score(counts.ravel(), problem, counts, ruler, true, {"": np.ones(V, bool)})[""]
    assert perfect["mcc_all"] == perfect["mcc_within_gene"] == pytest.approx(1) and perfect["mae_all"] == 0


def test_with_everything_hidden_the_visible_ruler_is_the_mean_reference_cells():
    counts, _ = studies()
    others = studies(1)[0]
    problem = pose(counts, np.ones(counts.shape, bool), reference=(others, np.ones(V, bool)))
    ruler = imputation.fit_ruler(problem, counts)
    np.testing.assert_allclose(problem.depth[:60], others.sum(1).mean())
    np.testing.assert_allclose(ruler.edges[:60], np.broadcast_to(ruler.edges[60:].mean(0), (60, 5)))
    rates = others.sum(0) / others.sum()
    np.testing.assert_allclose(baselines.gene_mean(problem), np.tile(rates * others.sum(1).mean(), 60), rtol=1e-5)


@pytest.mark.parametrize(
    ("rates", "rulers", "reference", "words"),
    [
        ([0.5, 1.0], ["visible", "cell"], False, r"rates: 1 hides everything.*take ruler=cell alone"),
        ([0.5], ["whole"], True, "ruler=whole: there are visible, cell"),
        ([0.5], ["cell", "cell"], True, "ruler=cell,cell: name one"),
        ([1.1], ["cell"], True, "1.1 is not a share"),
    ],
)
def test_what_has_no_answer_is_refused(rates, rulers, reference, words):
    with pytest.raises(ValueError, match=words):
        imputation.check("gene", rates, rulers, reference)
    imputation.check("gene", [1.0], ["visible", "cell"], True)
    imputation.check("gene", [1.0], ["cell"], False)


# -------------------------------------------------------------------------------------------------------------- curves


def test_curves_and_the_page_of_a_run_show_every_method_and_metric(tmp_path):
    rng, methods = np.random.default_rng(0), ["sct", "sct, even masks", "random twin", "gene mean, never 0", "a $name"]

    def scored(task: str, cases: list[str]) -> dict:
        rows = [
            {"method": method, "case": case, "seed": seed} | {m: rng.random() for m in imputation.METRICS}
            for method in methods
            for case in cases
            for seed in range(3)
        ]
        return {"task": task, "input": "x.h5ad", "ruler": "cell", "rows": rows}

    text = imputation_curves.drawn(scored("fixed_gene", ["below 75% zeros", "95% zeros or more"]), "cell").decode()
    words = [*methods, *imputation.METRICS.values(), "x.h5ad: ruler of the whole cell", "below 75% zeros"]
    assert all(word in text for word in words)
    scores = scored("gene", ["15%", "100%"])
    output.write_file(tmp_path / "imputation_gene.json", scores)
    page = imputation_curves.section(tmp_path, lambda path: output.read(path) if path.is_file() else None)
    assert page.count("<img") == 1 and page.count("<tr>") == 1 + 2 * len(methods)
    within = np.mean([row["mcc_within_gene"] for row in scores["rows"][:3]])
    assert f"<td>{within:.3f} ± " in page
