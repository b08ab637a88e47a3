"""Floors promise: tables by hand on toy counts, nothing hidden is learnt from, and a command that needs no model."""

import json

import numpy as np
import pytest
from scipy import sparse

from data_pipeline import synthetic
from experiments.analyses import pretraining_floors
from experiments.analyses.pretraining_floors import Pool
from scfm_jax.models.exceiver.floors import ValueTable
from scfm_jax.models.scemb.floors import GeneTable
from scfm_jax.models.sct.floors import BinTable
from scfm_jax.tasks.imputation import baselines, bins, imputation
from tests.harness import commands

COUNTS = np.array(
    [
        # a rare gene, one of four counts, a strong one, and one that makes depth
        [0, 4, 9, 7],
        [1, 0, 9, 10],
        [0, 4, 9, 7],
        [0, 4, 9, 7],
    ],
    np.float32,
)


def problem(hidden: list[tuple[int, int]], reference: np.ndarray | None = None) -> imputation.Problem:
    """Return the toy problem of hiding these entries, with a reference that measured everything."""
    mask = np.zeros(COUNTS.shape, bool)
    mask[tuple(zip(*hidden, strict=True))] = True
    measured = np.ones(4, bool)
    others = None if reference is None else (reference, measured)
    return imputation.pose(COUNTS, measured, mask, [np.arange(4)], reference=others)


def test_a_table_that_never_says_zero_is_the_gene_mean_or_the_least_count_of_the_cell():
    posed = problem([(0, 0), (0, 2)])
    ruler = bins.fit(posed.counts, posed.depth)
    said = baselines.expressed_gene_mean(posed, ruler)
    plain = baselines.gene_mean(posed)
    # gene 0: 1 count in three cells, of which cell 0's depth makes less than its own least count, 4
    assert plain[0] < 1 and said[0] == pytest.approx(4, rel=1e-3)
    assert said[1] == plain[1] > 4
    rows = posed.entries[0]
    assert (ruler.bins(said.astype(np.float32), rows) >= 1).all() and ruler.bins(plain, rows)[0] == 0


def test_never_zero_holds_for_cells_of_one_value_and_cells_of_which_nothing_is_seen():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, (30, 40)).astype(np.float32)
    counts[0], counts[1] = 0, np.arange(40) == 3  # nothing, and one count of one gene
    hidden = rng.random(counts.shape) < 0.5
    hidden[2] = True
    posed = imputation.pose(counts, np.ones(40, bool), hidden, [np.arange(30)])
    for options in ({}, {"log": False}, {"target_sum": 0}):
        ruler = bins.fit(posed.counts, posed.depth, **options)
        assert (ruler.bins(baselines.expressed_gene_mean(posed, ruler), posed.entries[0]) >= 1).all(), options


def test_the_most_common_bin_of_expressed_entries_leaves_zeros_out():
    posed = problem([(1, 0), (2, 1), (2, 0)])
    ruler = bins.fit(posed.counts, posed.depth)
    everything = baselines.most_common_bin(posed, ruler).argmax(1)
    expressed = baselines.most_common_bin(posed, ruler, least=1).argmax(1)
    binned = ruler.bins(posed.counts)
    assert posed.entries[1].tolist() == [0, 0, 1]
    assert everything[0] == 0 and (expressed >= 1).all()
    seen = binned[posed.known & (binned > 0)]
    assert expressed[0] == np.bincount(seen).argmax()  # the rare gene's one count is hidden: what all genes have most
    assert expressed[2] == np.bincount(binned[[0, 3], 1]).argmax()


def test_tables_of_the_reference_learn_from_its_cells_alone():
    reference = np.array([[2, 2, 2, 2], [2, 2, 2, 2]], np.float32)
    posed = problem([(0, 1), (3, 2)], reference)
    only = slice(4, None)
    np.testing.assert_allclose(baselines.gene_rates(posed, only), 0.25)
    np.testing.assert_allclose(baselines.gene_mean(posed, only), posed.depth[[0, 3]] / 4)
    own = problem([(0, 1), (3, 2)])
    np.testing.assert_allclose(baselines.gene_mean(posed, slice(0, 4)), baselines.gene_mean(own))
    ruler = bins.fit(posed.counts, posed.depth)
    said = baselines.most_common_bin(posed, ruler, least=1, cells=only).argmax(1)
    assert (said == ruler.bins(posed.counts)[4, 0]).all()


def test_zeros_counted_lose_expressed_genes_and_a_constant_per_gene_does_not():
    rng = np.random.default_rng(1)
    rate = np.geomspace(0.2, 30, 60)
    counts = rng.poisson(rate, (80, 60)).astype(np.float32) * (rng.random((80, 60)) < 0.4)
    hidden = rng.random(counts.shape) < 0.3
    posed = imputation.pose(counts, np.ones(60, bool), hidden, [np.arange(80)])
    ruler, true = bins.fit(posed.counts, posed.depth), bins.fit(counts, counts.sum(1))
    predictions = {least: baselines.most_common_bin(posed, ruler, least=least) for least in (0, 1)}
    parts = {"all": np.ones(60, bool)}
    scores = {k: imputation.score(x, posed, counts, ruler, true, parts)["all"] for k, x in predictions.items()}
    assert scores[0]["mcc_expressed"] < 0.2 < 0.5 < scores[1]["mcc_expressed"]
    assert scores[1]["mcc_all"] < scores[0]["mcc_all"] + 0.5


def test_values_by_gene_and_depth_are_least_squares_within_genes():
    genes = np.array([0, 0, 0, 1, 1])
    depths = np.array([1.0, 2.0, 3.0, 2.0, 4.0])
    values = np.array([5.0, 4.0, 3.0, 10.0, 8.0])  # one unit less for each of depth, in both genes
    table = ValueTable.fit(genes, values, depths, 3)
    np.testing.assert_allclose(table.mean, [4, 9, 6])
    np.testing.assert_allclose(table.depth, [2, 3, 2.4])
    assert table.slope == pytest.approx(-1)


def test_priors_of_bins_are_shares_under_the_mask():
    counts = np.zeros((2, 2, 3))
    counts[0, 0], counts[1, 0], counts[0, 1] = (900, 100, 0), (0, 0, 1000), (500, 500, 0)
    priors = BinTable(counts).priors(np.array([0.01, 0.15, 0.15]))
    one = np.array([1400 * 0.01, 600 * 0.15, 1000 * 0.15])
    np.testing.assert_allclose(np.exp(priors["one prior"][0, 0]), one / one.sum(), rtol=1e-6)
    gene = np.array([900 * 0.01, 100 * 0.15, 1000 * 0.15])
    np.testing.assert_allclose(np.exp(priors["gene"][0, 0]), gene / gene.sum(), rtol=1e-2)
    study = np.array([900 * 0.01, 100 * 0.15])
    np.testing.assert_allclose(np.exp(priors["gene x study"][0, 0, :2]), study / study.sum(), rtol=1e-2)
    np.testing.assert_allclose(priors["gene x study"][1, 1], priors["gene"][0, 1], rtol=0.05)  # nothing seen there


def test_frequencies_add_up_and_none_is_0():
    tables = GeneTable(np.array([[8.0, 4.0, 4.0], [0.0, 0.0, 9.0]]), np.array([8, 9])).frequencies()
    assert tables["gene"].shape == (1, 3) and tables["gene x study"].shape == (2, 3)
    np.testing.assert_allclose(tables["gene x study"].sum(1), 1)
    assert tables["gene x study"][1, 2] > 0.9 and tables["gene x study"].min() > 0


def test_a_study_is_told_by_its_table():
    """Two studies of opposite genes: with the study known, losses fall to what is left of chance."""
    rng = np.random.default_rng(0)
    n, half = 360, 20
    own = np.repeat([[1] * half + [0] * half, [0] * half + [1] * half], n // 2, 0)
    counts = sparse.csr_matrix(own * rng.poisson(3, (n, 2 * half)).astype(np.float32))
    pool = Pool(["a", "b"], counts, np.repeat([0, 1], n // 2), np.ones((2, 2 * half), bool))
    found = {row["table"]: row for row in pretraining_floors.pretraining(pool)}
    for model in ("sct", "scemb"):
        assert found[f"{model}: gene x study"]["loss"] < found[f"{model}: gene"]["loss"] - 0.1
    assert found["scemb: gene"]["loss"] == pytest.approx(np.log(2 * half), abs=0.1)
    assert found["scemb: gene x study"]["loss"] == pytest.approx(np.log(half), abs=0.1)
    last = found["scemb: gene x study, of genes not yet in the sentence"]["loss"]
    assert last < found["scemb: gene x study"]["loss"] - 0.5


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Write three small studies."""
    folder, paths = tmp_path_factory.mktemp("studies"), []
    for seed, name in enumerate("abc"):
        paths.append(str(folder / f"{name}.h5ad"))
        synthetic.make(60, 64, seed=seed, study=name).write_h5ad(paths[-1])
    return paths


def test_the_command_scores_a_file_without_a_model(files, tmp_path):
    options = ["--seeds=2", "--cells=30", "--rates=0.4", f"--output={tmp_path / 'out'}"]
    reference = f"--reference={files[1]},{files[2]}"
    ended = commands.run("floors", f"--input={files[0]}", reference, *options, folder=tmp_path, timeout=300)
    assert ended.code == 0, ended.err
    scores = json.loads((tmp_path / "out/floors.json").read_text())
    found = {(row["part"], row["case"], row["table"]) for row in scores["rows"]}
    assert {part for part, *_ in found} == {"imputation", "denoising", "transfer", "pretraining"}
    for words in ("gene mean, never 0", "common bin, never 0, of the reference"):
        assert ("imputation", "40% hidden", words) in found
    errors = {row["case"]: row["rmse"] for row in scores["rows"] if row["table"] == "as it is"}
    assert errors["flipped entries alone"] > 2 * errors["all entries after flips"]
    text = (tmp_path / "out/floors.md").read_text()
    assert text in ended.out + "\n" and "## pretraining: b, c" in text and "± " in text
    for table in ("exceiver: gene mean + depth", "sct: gene x study", "scemb: gene x study, of genes not yet in"):
        assert table in text


def test_a_list_of_genes_is_cut_to_those_the_reference_expresses_most(files, tmp_path):
    (tmp_path / "genes.txt").write_text("".join(f"{gene}\n" for gene in synthetic.make(1, 64).var_names[::-1]))
    options = [f"--genes={tmp_path / 'genes.txt'}", "--number=20", "--parts=imputation", "--seeds=1", "--cells=30"]
    where = [f"--reference={files[1]}", f"--output={tmp_path / 'out'}"]
    ended = commands.run("floors", f"--input={files[0]}", *where, *options, folder=tmp_path)
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "out/floors.json").read_text())["genes"] == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--parts=imputation,nothing"], "--parts=nothing: there are imputation, denoising, transfer, pretraining"),
        (["--number=20"], "--number=20: needs --genes"),
        (["--rates=much"], "--rates=much: numbers"),
        (["--rates=2", "--parts=imputation"], "2 is not a share"),
    ],
)
def test_mistakes_are_one_line(files, tmp_path, options, words):
    where = [f"--input={files[0]}", f"--output={tmp_path / 'out'}"]
    ended = commands.run("floors", *where, *options, folder=tmp_path)
    assert ended.code == 2 and words in ended.err and ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
