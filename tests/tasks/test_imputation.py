"""Imputation promises: no hidden value reaches a method, masks and bins are the paper's, scores are the textbook's."""

import json

import anndata
import jax
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import matthews_corrcoef

from experiments.analyses import cells as model_cells
from experiments.analyses import imputation as imputation_analysis
from scfm_jax import api, models
from scfm_jax.inference import bags, infer
from scfm_jax.tasks.imputation import baselines, bins, imputation
from scfm_jax.tasks.imputation.imputer import Imputer
from scfm_jax.types import Batch
from tests.harness import commands

N, V = 40, 64
ABLE = [name for name in models.names() if hasattr(models.get(name), "impute")]
GENES = [f"GENE{i}" for i in range(V)]
SMALL = {
    "exceiver": {"seq_dim": 4, "query_len": 8, "query_dim": 8, "ffn_dim": 16},
    "cellplm": {"enc_hid": 16, "enc_layers": 1, "enc_head": 2, "latent_dim": 8, "num_clusters": 4, "dec_hid": 16},
    "sct": {"embed_dim": 32, "num_downsamples": 2, "num_heads": 2, "key_size": 8, "ffn_dim": 16},
    "sclong": {"top_seq_len": 16, "base_dim": 16, "large_dim": 16, "large_depth": 1, "mini_key_size": 8},
}


def two_types(n: int = N, seed: int = 0) -> np.ndarray:
    """Return counts of two types of cells, each with its own half of the genes."""
    rng = np.random.default_rng(seed)
    own = (np.arange(n)[:, None] % 2) == (np.arange(V) % 2)
    return rng.poisson(np.where(own, 4.0, 0.2) * rng.uniform(0.5, 2, (n, 1))).astype(np.float32)


def make_run(name: str, bag: int | None = None, **options) -> api.Run:
    """Return a small model with random weights."""
    sections = models.options(name, "tiny")
    data = {"labels": []} | ({"bag": bag} if bag else {})
    config = {**sections, "model": sections["model"] | SMALL[name] | options, "data": data}
    meta = {"model": name, "config": config, "genes": GENES, "classes": {}, "step": 3}
    return api.build(meta, {"params": {}}, {}, "a test").twin(0)


def make_problem(counts: np.ndarray, hidden: np.ndarray, **options) -> imputation.Problem:
    """Pose a problem whose last gene is not measured, in bags of 10."""
    measured = np.arange(V) < V - 1
    return imputation.pose(counts * measured, measured, hidden, np.split(np.arange(len(counts)), 4), **options)


def draw(task: str, counts: np.ndarray, rates, seed: int = 0, size: int = 50):
    """Return the first mask of a task, and its parts."""
    bags = np.array_split(np.arange(len(counts)), -(-len(counts) // size))
    measured = np.arange(counts.shape[1]) < counts.shape[1] - 1
    return next(imputation.get(task).cases(counts, measured, bags, rates, np.random.default_rng(seed)))


# ------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("rate", [0.15, 0.8])
def test_gene_masks_hide_that_share_of_measured_genes(rate):
    counts = np.ones((100, 400), np.float32)
    hidden, parts = draw("gene", counts, [rate])
    assert list(parts) == [f"{rate:.0%}"]
    assert abs(hidden[:, :-1].mean() - rate) < 0.01 and not hidden[:, -1].any()
    assert 0.5 * rate < hidden[:, :-1].mean(1).min() and not (hidden[0] == hidden[1]).all()
    assert (draw("gene", counts, [rate])[0] == hidden).all()
    assert (draw("gene", counts, [rate], seed=1)[0] != hidden).any()


def test_cell_masks_hide_whole_cells_of_every_bag():
    counts = np.ones((125, 6), np.float32)
    for rate, numbers in ((1, {1}), (10, {8, 9}), (40, {33, 34})):
        hidden, _ = draw("cell", counts, [rate])
        whole = hidden[:, :-1].all(1)
        assert (hidden[:, :-1].any(1) == whole).all() and not hidden[:, -1].any()
        assert {int(part.sum()) for part in np.array_split(whole, 3)} <= numbers
    assert draw("cell", counts[:2], [40])[0].any(1).sum() == 1, "one cell stays to impute from"


def test_fixed_genes_are_hidden_everywhere_in_four_disjoint_strata():
    zeros = np.repeat([0.0, 0.74, 0.75, 0.89, 0.9, 0.94, 0.95, 0.99, 1.0], 30)
    counts = (np.arange(100)[:, None] >= np.round(100 * zeros)).astype(np.float32)
    measured = np.ones(len(zeros), bool)
    expected = np.repeat([0, 0, 1, 1, 2, 2, 3, 3, -1], 30)
    assert (imputation.get("fixed_gene").strata(counts, measured) == expected).all()
    hidden, parts = draw("fixed_gene", counts, [])
    assert [int(part.sum()) for part in parts.values()] == [25] * 4
    assert (sum(part.astype(int) for part in parts.values()) <= 1).all()
    assert (hidden == hidden[0]).all() and hidden[0].sum() == 100
    for number, part in enumerate(parts.values()):
        assert (expected[part] == number).all()


@pytest.mark.parametrize(
    ("task", "rate"), [("gene", 0.0), ("gene", 1.01), ("cell", 50), ("cell", 0.5), ("fixed_gene", 1)]
)
def test_rates_that_make_no_sense_are_refused(task, rate):
    with pytest.raises(ValueError, match="rates: "):
        draw(task, two_types(), [rate])
    with pytest.raises(ValueError, match="there are gene, cell, fixed_gene"):
        imputation.get("genes")


# -------------------------------------------------------------------------------------------------------------- bins


@pytest.mark.parametrize("options", [{}, {"n_bins": 15}, {"log": False, "target_sum": 0}])
def test_bins_are_those_of_the_model(options):
    counts = two_types()
    counts[3] = np.where(np.arange(V) < 5, 2, 0)  # all values equal
    counts[4] = 0
    batch = bags.pack(sp.csr_matrix(counts), np.arange(N)[None])
    batch = Batch(**{field: batch[field] for field in infer.FIELDS})
    constants = {"slots": np.arange(V + 1, dtype=np.int32), "measured": np.ones((1, V), bool)}
    key = jax.random.key(0)
    theirs = models.get("sct").prepare(batch, constants, key, step=0, train=False, mask="none", **options)
    ruler = bins.fit(counts, counts.sum(1), **options)
    np.testing.assert_array_equal(ruler.bins(counts), theirs["tokens"][0])
    some = np.delete(np.arange(N), 4)
    np.testing.assert_allclose(ruler.edges[some], theirs["edges"][0][some], rtol=1e-6)
    rows, columns = counts.nonzero()
    np.testing.assert_array_equal(ruler.bins(counts[rows, columns], rows), theirs["tokens"][0, rows, columns])


def test_shares_of_bins_become_expected_counts():
    edges = np.log1p([[10.0, 30.0, 70.0]])  # 1, 3, 7 counts
    ruler = bins.Ruler(np.array([10.0]), edges, (edges[:, 1:] + edges[:, :-1]) / 2)
    row = np.zeros(1, int)
    assert ruler.counts(np.array([[1.0, 0, 0]]), row) == 0
    middle = np.expm1((np.log1p(10) + np.log1p(30)) / 2) / 10
    assert ruler.counts(np.array([[0, 1.0, 0]]), row) == pytest.approx(middle)
    both = np.expm1(np.log1p([10, 30, 30, 70]).sum() / 4 * 0.5) / 10
    assert ruler.counts(np.array([[0.5, 0.25, 0.25]]), row) == pytest.approx(both)
    assert ruler.bins(np.array([0.0, 0.9, 1.1, 3.1, 99]), np.zeros(5, int)).tolist() == [0, 0, 1, 2, 2]


def test_the_value_of_a_bin_is_the_median_of_the_cells_counts_in_it():
    counts = np.array([[0, 1, 1, 1, 2, 50], [1, 1, 1, 1, 1, 1]], np.float32)
    one = np.array([[0, 1.0, 0, 0, 0], [0, 0, 1.0, 0, 0], [0, 0, 0, 0, 1.0]])
    median, middle = (bins.fit(counts, counts.sum(1), bin_value=kind) for kind in bins.BIN_VALUES)
    said = median.counts(one, np.zeros(3, int))
    np.testing.assert_allclose(said[[0, 2]], [1, 50], rtol=1e-4)
    between = middle.counts(one, np.zeros(3, int))
    assert between[0] > 1.4 and between[2] < 45
    np.testing.assert_allclose(said[1], between[1], err_msg="a bin without counts has its middle")
    np.testing.assert_allclose(median.counts(one[:1], np.ones(1, int)), 1, rtol=1e-4)
    np.testing.assert_array_equal(median.edges, middle.edges)
    with pytest.raises(ValueError, match="there are median, middle"):
        bins.fit(counts, counts.sum(1), bin_value="mean")


def test_shares_for_even_masks_are_those_counted_under_even_masks():
    """Count bins among entries hidden unevenly; reweighted they are what is counted when all are hidden alike."""
    rng = np.random.default_rng(0)
    bin_of = rng.choice(4, 400_000, p=[0.9, 0.06, 0.03, 0.01])
    uneven = rng.random(bin_of.size) < np.where(bin_of == 0, 0.01, 0.15)
    shares = np.bincount(bin_of[uneven], minlength=4)[None] / uneven.sum()
    assert shares[0, 0] < 0.5
    np.testing.assert_allclose(bins.even(shares, 0.01 / 0.15), [[0.9, 0.06, 0.03, 0.01]], atol=0.01)
    np.testing.assert_allclose(bins.even(shares, 1.0), shares)


@pytest.mark.parametrize(("mask", "zeros"), [("stratified", 0.01 / 0.15), ("uniform", 1.0)])
def test_how_much_rarer_zeros_were_hidden_is_read_off_the_config(mask, zeros):
    run = make_run("sct")
    run.meta["config"]["inputs"]["mask"] = mask
    assert Imputer(run.module, run.model, run.meta["config"], run.constants).zeros == pytest.approx(zeros)


@pytest.mark.parametrize(("name", "bag"), [("sct", 12), ("cellplm", 50)])
def test_bags_have_the_size_of_training_where_it_matters(name, bag):
    assert make_run(name, 12).rules.imputed_bag == bag


def test_parameters_of_a_place_in_the_bag_fit_bags_of_training_and_smaller_ones():
    run = make_run("sct", 12, norm="standard")
    assert run.variables["params"]["down_0"]["norm"]["scale"].shape == (12 * V,)
    counts = two_types()
    hidden, _ = draw("gene", counts, [0.4])
    problem = make_problem(counts, hidden)  # in bags of 10
    impute = Imputer(run.module, run.model, run.meta["config"], run.constants)
    said = impute(run.variables, problem, bins.fit(problem.counts, problem.depth))
    np.testing.assert_allclose(said.sum(1), 1, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ scores


def test_matthews_is_sklearns():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 500)
    said = np.where(rng.random(500) < 0.6, true, rng.integers(0, 3, 500))
    assert imputation.matthews(true, said) == pytest.approx(matthews_corrcoef(true, said), abs=1e-12)
    assert imputation.matthews(true, true) == pytest.approx(1)
    assert imputation.matthews(true, np.zeros(500, int)) == 0 == imputation.matthews(true[:0], true[:0])


def test_scores_by_hand_expressed_apart_from_all():
    truth = np.array([[1.0, 3, 0, 5], [0, 2, 4, 1]])
    hidden = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], bool)
    problem = imputation.pose(truth, np.ones(4, bool), hidden, [np.arange(2)])
    ruler = bins.fit(truth, truth.sum(1))
    parts = {"all": np.ones(4, bool), "third": np.arange(4) == 2}
    scores = imputation.score(np.array([2.0, 1.0, 4.0, 3.0]), problem, truth, ruler, ruler, parts)
    assert scores["all"]["mae_all"] == pytest.approx((1 + 1 + 0 + 2) / 4)
    assert scores["all"]["mae_expressed"] == pytest.approx((1 + 0 + 2) / 3)
    assert scores["third"]["mae_all"] == pytest.approx(0.5) and scores["third"]["mae_expressed"] == 0
    perfect = imputation.score(truth[hidden], problem, truth, ruler, ruler, parts)["all"]
    assert perfect.pop("mcc_within_gene") == 0, "each gene has one expressed entry, which its table knows"
    assert perfect == {"mcc_expressed": 1, "mcc_all": 1, "mae_expressed": 0, "mae_all": 0}
    with pytest.raises(ValueError, match="not finite"):
        imputation.score(np.full(4, np.nan), problem, truth, ruler, ruler, parts)


def test_interval_is_students():
    mean, half = imputation.interval([1.0, 2, 3, 4, 5])
    assert mean == 3 and half == pytest.approx(2.776445 * np.sqrt(2.5 / 5), rel=1e-5)
    assert np.isnan(imputation.interval([1.0])[1])


# ----------------------------------------------------------------------------------------------------------- methods


def methods(problem: imputation.Problem, runs: dict[str, api.Run], imputers: dict[str, Imputer]) -> dict:
    """Return the predictions of every model and baseline."""
    ruler = bins.fit(problem.counts, problem.depth)
    said = {}
    for name, run in runs.items():
        said |= {
            f"{name}: {method}": x
            for method, x in imputation_analysis._predictions(run, run, imputers[name], problem, ruler)
        }
    return said


@pytest.fixture(scope="module")
def runs() -> dict[str, api.Run]:
    return {name: make_run(name) for name in ABLE}


@pytest.fixture(scope="module")
def imputers(runs) -> dict[str, Imputer]:
    return {name: Imputer(run.module, run.model, run.meta["config"], run.constants) for name, run in runs.items()}


@pytest.mark.parametrize(("task", "rates"), [("gene", [0.4]), ("cell", [20]), ("fixed_gene", [])])
def test_hidden_values_change_no_prediction(task, rates, runs, imputers):
    counts = two_types()
    hidden, _ = draw(task, counts, rates, size=10)
    rng = np.random.default_rng(1)
    other = np.where(hidden, rng.permutation(counts.ravel()).reshape(N, V) * 7 + 3, counts)
    coords = rng.random((N, 2)).astype(np.float32) if task == "cell" else None
    one = methods(make_problem(counts, hidden, coords=coords), runs, imputers)
    two = methods(make_problem(other, hidden, coords=coords), runs, imputers)
    assert len(one) == 12 * len(ABLE) + 1 and "sct: sct, even masks" in one
    for method in one:
        assert len(one[method]) == hidden[:, : V - 1].sum() and np.isfinite(one[method]).all(), method
        np.testing.assert_array_equal(one[method], two[method], err_msg=method)


def test_where_everything_is_hidden_methods_know_the_ruler_and_nothing_else(runs, imputers):
    """Counts exchanged among the genes of each cell leave its ruler as it was, and so every prediction."""
    counts = two_types() * (np.arange(V) < V - 1)
    turned, hidden = counts.copy(), draw("gene", counts, [1.0])[0]
    turned[:, : V - 1] = np.random.default_rng(0).permuted(counts[:, : V - 1], axis=1)
    said = []
    for truth in (counts, turned):
        problem = make_problem(truth, hidden, ruler="cell")
        assert not problem.known.any() and (problem.depth == counts.sum(1)).all()
        ruler = imputation.fit_ruler(problem, truth, "cell")
        np.testing.assert_array_equal(ruler.bins(truth), bins.fit(truth, truth.sum(1)).bins(truth))
        said.append({})
        for name, run in runs.items():
            predicted = imputation_analysis._predictions(run, run, imputers[name], problem, ruler)
            said[-1] |= {f"{name}: {method}": x for method, x in predicted}
    for method, one in said[0].items():
        assert np.isfinite(one).all(), method
        np.testing.assert_array_equal(one, said[1][method], err_msg=method)
        scaled = not method.startswith(("exceiver: exceiver", "exceiver: random"))  # no scaler came with these weights
        if one.ndim == 1 and "never 0" not in method and scaled:
            totals = one.reshape(N, V - 1).sum(1)
            np.testing.assert_allclose(totals, counts.sum(1), rtol=1e-3, err_msg=method)


def test_counts_of_a_hidden_cell_add_up_to_the_depth_of_the_others(runs, imputers):
    counts = two_types()
    hidden, _ = draw("cell", counts, [20], size=10)
    problem = make_problem(counts, hidden)
    said = imputers["cellplm"](runs["cellplm"].variables, problem, bins.fit(problem.counts, problem.depth))
    others = problem.counts.sum(1)[~hidden.any(1)].mean()
    np.testing.assert_allclose(said.reshape(-1, V - 1).sum(1), others, rtol=1e-3)


@pytest.mark.parametrize("name", ABLE)
def test_visible_values_do_change_what_a_model_says(name, runs, imputers):
    counts = two_types()
    hidden, _ = draw("gene", counts, [0.4])
    said = []
    for shift in (0, 1):
        problem = make_problem(np.roll(counts, shift, 1) * ~hidden, hidden)
        ruler = bins.fit(problem.counts, problem.depth)
        said.append(imputers[name](runs[name].variables, problem, ruler))
    assert np.abs(said[0] - said[1]).max() > 1e-4
    if name == "sct":
        assert said[0].shape[1] == 5
        np.testing.assert_allclose(said[0].sum(1), 1, rtol=1e-5)


def test_a_models_predictions_are_put_where_they_belong(runs, imputers):
    """Another partition into bags changes the order of work, not what a whole sample says of an entry."""
    counts = two_types()
    hidden, _ = draw("gene", counts, [0.4])
    problem = make_problem(counts, hidden)
    ruler = bins.fit(problem.counts, problem.depth)
    said = imputers["cellplm"](runs["cellplm"].variables, problem, ruler)
    mean = np.zeros((N, V))
    mean[problem.hidden] = said
    order = np.random.default_rng(0).permutation(N)
    turned = make_problem(counts[order], hidden[order])
    again = np.zeros((N, V))
    again[turned.hidden] = imputers["cellplm"](runs["cellplm"].variables, turned, bins.fit(turned.counts, turned.depth))
    np.testing.assert_allclose(again, mean[order], rtol=1e-3, atol=1e-5)


def test_baselines_find_the_structure_there_is():
    counts = two_types(200)
    hidden, parts = draw("gene", counts, [0.3])
    problem = make_problem(counts, hidden)
    apart = baselines.distances(problem)
    near = np.argsort(apart, 1)[:, :5]
    assert (near % 2 == np.arange(200)[:, None] % 2).all(), "neighbours are of the same type"
    truth, ruler = counts * (np.arange(V) < V - 1), bins.fit(problem.counts, problem.depth)
    true_ruler = bins.fit(truth, truth.sum(1))
    said = {
        "mean": baselines.gene_mean(problem),
        "bin": baselines.most_common_bin(problem, ruler),
        "knn": baselines.nearest_neighbours(problem, apart),
        "diffusion": baselines.diffusion(problem, apart),
    }
    scores = {k: imputation.score(x, problem, truth, ruler, true_ruler, parts)["30%"] for k, x in said.items()}
    for metric, sign in (("mcc_all", 1), ("mae_all", -1)):
        for smooth in ("knn", "diffusion"):
            assert sign * scores[smooth][metric] > sign * scores["mean"][metric] + 0.05


def test_gene_means_are_rates_of_known_entries_by_hand():
    counts = np.array([[2.0, 2, 4, 0], [4, 4, 8, 0]])
    hidden = np.array([[1, 0, 0, 0], [0, 0, 0, 0]], bool)
    problem = imputation.pose(counts, np.arange(4) < 3, hidden, [np.arange(2)])
    np.testing.assert_allclose(problem.depth, [6 * 3 / 2, 16])
    np.testing.assert_allclose(baselines.gene_mean(problem), [4 / 16 * 9])
    whole = imputation.pose(counts, np.arange(4) < 3, np.array([[1] * 4, [0] * 4], bool), [np.arange(2)])
    np.testing.assert_allclose(whole.depth, [16, 16])
    np.testing.assert_allclose(baselines.nearest_neighbours(whole, baselines.distances(whole)), [4, 4, 8])


def test_genes_that_a_cells_batch_did_not_measure_are_neither_zeros_nor_asked_for():
    counts = two_types()
    measured = np.ones((N, V), bool)
    measured[: N // 2, :8] = False  # of the first batch
    hidden = np.random.default_rng(0).random((N, V)) < 0.3
    problem = imputation.pose(counts * measured, measured, hidden, [np.arange(N)])
    assert not problem.hidden[: N // 2, :8].any() and not problem.known[: N // 2, :8].any() and problem.measured.all()
    assert (problem.hidden == hidden)[N // 2 :].all()
    rates = baselines.gene_rates(problem)
    cells = np.flatnonzero(problem.known[:, 3])
    assert cells.min() >= N // 2 and rates[3] == pytest.approx(counts[cells, 3].sum() / problem.depth[cells].sum())
    visible = problem.known[0].sum()
    assert problem.depth[0] == pytest.approx(problem.counts[0].sum() * (V - 8) / visible), "of what it measured"


def test_reference_cells_tell_of_genes_hidden_everywhere():
    counts, measured = two_types(), np.arange(V) < V - 1
    hidden = np.broadcast_to(np.arange(V) < 4, (N, V))
    blind, told = make_problem(counts, hidden), make_problem(counts, hidden, reference=(two_types(seed=1), measured))
    rates = [np.abs(baselines.gene_mean(p) - counts[:, :4].ravel()).mean() for p in (blind, told)]
    near = baselines.nearest_neighbours(told, baselines.distances(told))
    assert np.abs(near - counts[:, :4].ravel()).mean() < min(rates) - 0.3
    assert len(set(np.round(baselines.gene_rates(blind)[:4], 9))) == 1


def test_hidden_cells_are_near_in_space_and_in_their_sample():
    hidden = np.broadcast_to((np.arange(N) == 0)[:, None], (N, V))
    coords, samples = np.stack([np.arange(N), np.zeros(N)], 1), np.arange(N) % 3
    apart = baselines.distances(make_problem(two_types(), hidden, coords=coords, samples=samples))
    assert np.argsort(apart[0])[:4].tolist() == [3, 6, 9, 12] and np.isinf(apart[:, 0]).all()


def test_cells_of_which_nothing_is_known_get_the_gene_mean():
    hidden = np.broadcast_to((np.arange(N) < 8)[:, None], (N, V))
    problem = make_problem(two_types(), hidden)
    apart, mean = baselines.distances(problem), baselines.gene_mean(problem)
    np.testing.assert_allclose(baselines.nearest_neighbours(problem, apart), mean, rtol=1e-4)
    np.testing.assert_allclose(baselines.diffusion(problem, apart), mean, rtol=1e-4)


def test_spatial_bags_are_compact_and_whole():
    coords = np.random.default_rng(0).random((430, 2))
    parts = model_cells.halves(np.arange(430), coords, 50)
    assert sorted(np.concatenate(parts)) == list(range(430)) and max(map(len, parts)) == 50 and len(parts) == 9
    assert max(np.ptp(coords[part], 0).prod() for part in parts) < 0.3


# ----------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Return a folder with a file, a store of it and a run of two steps."""
    folder = tmp_path_factory.mktemp("imputation")
    obs = pd.DataFrame({"batch": ["a", "b"] * (N // 2)}, [f"cell{i}" for i in range(N)])
    adata = anndata.AnnData(sp.csr_matrix(two_types()), obs=obs, var=pd.DataFrame(index=GENES))
    adata.write_h5ad(folder / "x.h5ad")
    anndata.AnnData(sp.csr_matrix(two_types(seed=1)), obs=obs, var=adata.var).write_h5ad(folder / "other.h5ad")
    made = commands.run("ingest", f"--input={folder}/x.h5ad", f"--store={folder}/store", "--workers=0", folder=folder)
    assert made.code == 0, made.err
    options = ["--config=configs/pretrain_cellplm.py:tiny", f"--config.data.store={folder}/store"]
    options += [
        "--config.data.bag=8",
        "--config.data.batch=1",
        "--config.train.steps=2",
        "--config.model.enc_layers=1",
        f"--workdir={folder}/run",
    ]
    trained = commands.run("train", *options, folder=folder)
    assert trained.code == 0, trained.err
    return folder


@pytest.mark.slow
def test_command_writes_and_prints_the_table(ground):
    given = [f"--workdir={ground}/run", f"--input={ground}/x.h5ad", "--seeds=2", "--bag=10"]
    done = commands.run("impute", *given, "--rates=0.15,0.8", "--cells=30", folder=ground)
    assert done.code == 0, done.err
    written = json.loads((ground / "run" / "imputation_gene.json").read_text())
    assert len(written["rows"]) == 12 * 2 * 2 and written["cells"] == 30 and written["ruler"] == "visible"
    assert (ground / "run" / "imputation_gene_visible.svg").read_bytes().startswith(b"<?xml")
    assert all(set(imputation.METRICS) <= set(row) for row in written["rows"])
    assert written["trained_on"] and "caution: by its name x.h5ad" in done.out
    for words in (
        "cellplm",
        "random twin",
        "gene mean",
        "most common bin",
        "never 0",
        "5 neighbours",
        "diffusion",
        "80%",
    ):
        assert words in done.out
    both = ["--task=fixed_gene", f"--reference={ground}/other.h5ad", "--ruler=visible,cell"]
    more = commands.run("impute", *given, *both, folder=ground)
    assert more.code == 0 and "zeros, ruler: visible" in more.out and "zeros, ruler: cell" in more.out, more.err
    assert {path.name for path in (ground / "run").glob("*.svg")} >= {
        "imputation_fixed_gene_visible.svg",
        "imputation_fixed_gene_cell.svg",
    }
    assert json.loads((ground / "run" / "imputation_fixed_gene.json").read_text())["reference"] == ["other.h5ad"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("--input={d}/x.h5ad", "--workdir"),
        ("--workdir={d}/run --input={d}/nowhere.h5ad", "nowhere.h5ad"),
        ("--workdir={d}/none --input={d}/x.h5ad", "none"),
        ("--workdir={d}/run --input={d}/x.h5ad --task=genes", "genes"),
        ("--workdir={d}/run --input={d}/x.h5ad --rates=many", "many"),
        ("--workdir={d}/run --input={d}/x.h5ad --rates=1.5", "1.5"),
        ("--workdir={d}/run --input={d}/x.h5ad --ruler=truth", "truth"),
        ("--workdir={d}/run --input={d}/x.h5ad --rates=0.5,1", "take --ruler=cell alone"),
        ("--workdir={d}/run --input={d}/x.h5ad --bin_value=mean", "mean"),
        ("--workdir={d}/run --input={d}/x.h5ad --sample_key=slide", "slide"),
        ("--workdir={d}/run --input={d}/x.h5ad --reference={d}/x.h5ad", "is the input itself"),
    ],
)
def test_mistakes_are_one_line(args, says, ground, tmp_path):
    (ground / "run" / "imputation_gene.json").unlink(missing_ok=True)
    ended = commands.run("impute", *args.format(d=ground).split(), folder=tmp_path)
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and len(lines) == 1 and says in lines[0] and "Traceback" not in ended.err
    assert not (ground / "run" / "imputation_gene.json").exists()
