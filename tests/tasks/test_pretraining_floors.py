"""Floors of the five pre-training losses: as numpy has them on the validation's own draws; residual scores by hand."""

import functools

import jax
import numpy as np
import pytest
from scipy import sparse
from scipy.special import gammaln

from experiments.analyses import pretraining_floors
from experiments.analyses.pretraining_floors import Pool, PoolLoader
from scfm_jax import models
from scfm_jax.models.cellplm.floors import lowest
from scfm_jax.models.sct import floors as sct_floors
from scfm_jax.tasks import floors
from scfm_jax.training.loader import to_batch
from scfm_jax.types import Batch, Outputs

GENES, SEED = 24, 3


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Two studies of 40 cells; the second did not measure the last gene."""
    rng = np.random.default_rng(0)
    rate = rng.lognormal(0, 1, (2, GENES)) * 2
    study = np.repeat([0, 1], 40)
    counts = rng.poisson(rate[study] * rng.lognormal(0, 0.5, (80, 1)) * rng.gamma(2, 0.5, (80, GENES)))
    measured = np.ones((2, GENES), bool)
    measured[1, -1] = False
    return Pool(["a", "b"], sparse.csr_matrix((counts * measured[study]).astype(np.float32)), study, measured)


@pytest.fixture(scope="module")
def parts() -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and held-out ones."""
    order = np.random.default_rng(1).permutation(80)
    return np.sort(order[:56]), order[56:]


@pytest.fixture
def said(request, pool, parts) -> dict[str, dict[str, float]]:
    """What the project says of a model's tables: {table: {metric: value}}."""
    rows = pretraining_floors.scores(request.param, pool, *parts, SEED)
    return {row.pop("table").partition(": ")[2]: row for row in rows}


def validation(name, pool, held, changed=()):
    """Yield what `prepare` makes of each validation batch with the key of the validation loss, as numpy."""
    module, constants = models.get(name), pool.constants
    inputs = models.options(name, "small" if "small" in module.VARIANTS else "tiny")["inputs"] | dict(changed)
    if hasattr(module, "fit"):
        train = np.setdiff1d(np.arange(80), held)
        constants, inputs = module.fit({"train": PoolLoader(pool, train, 128).epoch_batches()}, constants, inputs)
    rng = jax.random.fold_in(jax.random.key(SEED), 0xFFFFFFFF)
    prepare = jax.jit(functools.partial(module.prepare, step=0, train=False, **inputs))
    for index, arrays in enumerate(PoolLoader(pool, held, pretraining_floors.SCORED_BATCH).epoch_batches()):
        key = jax.random.split(jax.random.fold_in(rng, np.uint32(index)), 3)[0]
        batch, made = to_batch(arrays), prepare(to_batch(arrays), constants, key)
        yield batch, {k: np.asarray(v)[:, 0] if np.ndim(v) > 1 else np.asarray(v) for k, v in made.items()}, constants


def means_of_expressed(values: np.ndarray) -> np.ndarray:
    """Return the mean of each gene over entries that are not NaN. [n, V] -> [V]"""
    return np.nanmean(values, 0)


@pytest.mark.parametrize("said", ["exceiver"], indirect=True)
def test_exceiver_is_held_against_gene_means_and_one_slope_of_depth(said, pool, parts):
    counts = pool.counts.toarray().astype(float)
    total, errors, scatters = counts.sum(1), np.zeros((2, 3)), np.zeros((2, 2))
    for batch, made, constants in validation("exceiver", pool, parts[1]):
        mean, scale = (np.asarray(constants[k], float) for k in ("mean", "scale"))
        z = (np.log1p(1e4 * counts / total[:, None]) - mean) / scale + 1
        z, log_depth = np.where(counts > 0, z, np.nan)[parts[0]], np.log(total)[parts[0], None] / scale
        depth = np.where(np.isnan(z), np.nan, log_depth)
        gene, at = means_of_expressed(z), means_of_expressed(depth)
        slope = np.nansum((depth - at) * (z - gene)) / np.nansum((depth - at) ** 2)
        expressed = made["genes"] < GENES
        shown = expressed & ~made["hidden"]
        seen = (np.asarray(batch.counts)[:, 0] * shown).sum(1) / (shown.sum(1) / np.maximum(expressed.sum(1), 1))
        cells, _ = np.nonzero(made["weights"])
        target, truth = (made[k][made["weights"] > 0] for k in ("targets", "truth"))
        deep = gene[target] + slope * (np.log(seen[cells]) / scale[target] - at[target])
        for i, x in enumerate((gene[target], deep)):
            errors[i] += ((truth - x) ** 2).sum(), len(truth), 0
            scatters[i] += len(truth) * np.var(truth - x), len(truth) * np.var(truth)
    for i, name in enumerate(("gene mean", "gene mean + depth")):
        assert said[name]["squared error"] == pytest.approx(errors[i, 0] / errors[i, 1], rel=1e-4)
        assert said[name]["explained variance"] == pytest.approx(1 - scatters[i, 0] / scatters[i, 1], rel=1e-3)
    assert said["gene mean + depth"]["squared error"] < said["gene mean"]["squared error"]


@pytest.mark.parametrize("said", ["sclong"], indirect=True)
def test_sclong_is_held_against_gene_means_and_the_mean_residual_of_visible_genes(said, pool, parts):
    counts = pool.counts.toarray().astype(float)
    values = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    values *= 10 / values.max(1, keepdims=True)
    gene = means_of_expressed(np.where(counts > 0, values, np.nan)[parts[0]])
    errors, number = np.zeros(2), 0
    for _, made, _ in validation("sclong", pool, parts[1]):
        visible = (made["values"] > 0) & (made["masked"] > -10)
        apart = np.where(visible, made["values"] - gene, 0).sum(1) / np.maximum(visible.sum(1), 1)
        cells, _ = np.nonzero(made["weights"])
        rows, truth = (made[k][made["weights"] > 0] for k in ("rows", "targets"))
        errors += ((truth - gene[rows]) ** 2).sum(), ((truth - gene[rows] - apart[cells]) ** 2).sum()
        number += len(truth)
    for name, error in zip(("gene mean", "gene mean + mean residual of visible genes"), errors, strict=True):
        assert said[name]["loss"] == pytest.approx(error / number, rel=1e-4)


@pytest.mark.parametrize("said", ["sct"], indirect=True)
def test_sct_is_held_against_shares_of_bins_under_its_mask(said, pool, parts):
    shares = np.zeros((2, GENES, 5))
    for batch, made, _ in validation("sct", pool, parts[0]):
        for study, tokens in zip(batch.study[batch.cell_mask], made["tokens"][batch.cell_mask[:, 0]], strict=True):
            shares[study, np.arange(GENES), tokens] += pool.measured[study]
    one = shares.sum((0, 1)) / shares.sum()
    gene = shares.sum(0) + one
    gene /= gene.sum(1, keepdims=True)
    study = shares + gene
    rates, losses, number = np.array([0.01, 0.15, 0.15, 0.15, 0.15]), np.zeros(3), 0
    for batch, made, _ in validation("sct", pool, parts[1]):
        for cell, place in zip(*np.nonzero(made["mask"]), strict=True):
            tables = (one, gene[place], study[batch.study[cell, 0], place])
            losses -= [np.log(t * rates / (t * rates).sum())[made["tokens"][cell, place]] for t in tables]
            number += 1
            assert pool.measured[batch.study[cell, 0], place]
    for name, loss in zip(("one prior", "gene", "gene x study"), losses, strict=True):
        assert said[name]["loss"] == pytest.approx(loss / number, rel=1e-4)


@pytest.mark.parametrize("said", ["scemb"], indirect=True)
def test_scemb_is_held_against_frequencies_of_genes_not_yet_in_the_sentence(said, pool, parts):
    has = pool.counts.toarray()[parts[0]] > 0
    study = pool.study[parts[0]]
    counts = np.stack([has[study == s].sum(0) for s in (0, 1)])
    share = (counts.sum(0) + 0.5) / (len(has) + 1)
    by_study = (counts + share) / (np.bincount(study)[:, None] + 1)
    share, by_study = share / share.sum(), by_study / by_study.sum(1, keepdims=True)
    losses, number = np.zeros(3), 0
    for batch, made, _ in validation("scemb", pool, parts[1]):
        for cell in range(len(made["tokens"])):
            asked = made["targets"][cell][made["weights"][cell] > 0] - 2
            shown = np.setdiff1d(made["tokens"][cell][made["tokens"][cell] > 0] - 2, asked)
            table = by_study[batch.study[cell, 0]]
            left = 1 - table[shown].sum()
            losses -= [np.log(x[asked]).sum() for x in (share, table, table / left)]
            number += len(asked)
    names = ("gene", "gene x study", "gene x study, of genes not yet in the sentence")
    for name, loss in zip(names, losses, strict=True):
        assert said[name]["loss"] == pytest.approx(loss / number, rel=1e-4)


def rates(amounts: np.ndarray, pool: Pool, rows: np.ndarray) -> list[np.ndarray]:
    """Return each held-out cell's rates of genes by the two tables, adding up to 1 over measured genes. [n, V] each"""
    n = np.stack([amounts[rows][pool.study[rows] == s].sum(0) for s in (0, 1)])
    gene = (n.sum(0) + 0.5) / (n.sum(1) @ pool.measured + 1)
    by_study = (n + 0.5) / (n.sum(1, keepdims=True) + 0.5 / gene)
    both = (np.broadcast_to(gene, n.shape) * pool.measured, by_study * pool.measured)
    return [(x / x.sum(1, keepdims=True))[pool.study] for x in both]


def nll(k: np.ndarray, mu: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Return minus log of the negative binomial."""
    t = gammaln(theta) + gammaln(k + 1) - gammaln(k + theta)
    return t + (theta + k) * np.log1p(mu / theta) + k * (np.log(theta) - np.log(np.maximum(mu, 1e-10)))


@pytest.mark.parametrize("said", ["cellplm"], indirect=True)
def test_cellplm_is_held_against_rates_times_depth_under_its_likelihood(said, pool, parts):
    counts, (train, held) = pool.counts.toarray().astype(float), parts
    grid = np.geomspace(1e-2, 1e3, 400)
    for name, rate in zip(("gene", "gene x study"), rates(counts, pool, train), strict=True):
        mu, measured = rate * counts.sum(1, keepdims=True), pool.measured[pool.study]
        losses = [np.where(measured, nll(counts, mu, theta), 0)[train].sum(0) for theta in grid]
        theta = grid[np.argmin(losses, 0)]
        wanted = np.where(measured, nll(counts, mu, theta), 0)[held].sum() / len(held)
        assert said[f"{name} rate x depth"]["nb"] == pytest.approx(wanted, rel=3e-3)
    poisson = np.where(counts > 0, counts - counts * np.log(np.maximum(counts, 1)) + gammaln(counts + 1), 0)
    assert said["truth"]["nb"] == pytest.approx(poisson[held].sum() / len(held), rel=2e-2)
    assert said["truth"]["nb"] < said["gene x study rate x depth"]["nb"] < said["gene rate x depth"]["nb"]


def test_cellplm_is_held_against_rates_of_log_counts_under_its_squared_error(pool, parts, monkeypatch):
    options = models.options("cellplm", "tiny")
    options["loss"]["objective"] = "mse"
    monkeypatch.setattr(models, "options", lambda name, variant: options)
    found = {row["table"]: row for row in pretraining_floors.scores("cellplm", pool, *parts, SEED)}
    logs = np.log1p(pool.counts.toarray().astype(float))
    for name, rate in zip(("gene", "gene x study"), rates(logs, pool, parts[0]), strict=True):
        wanted = ((rate * logs.sum(1, keepdims=True) - logs) ** 2)[parts[1]].sum() / len(parts[1])
        assert found[f"cellplm: {name} rate x depth"]["squared error"] == pytest.approx(wanted, rel=1e-4)


def test_the_lowest_point_lies_between_those_that_were_tried():
    at = np.arange(5.0)
    values = np.stack([(at - 1.3) ** 2, (at - 2.8) ** 2, at, -at], 1)
    np.testing.assert_allclose(lowest(at, values), [1.3, 2.8, 0, 4])


@pytest.mark.parametrize("name", models.names())
def test_the_floor_scores_0_and_the_truth_1(name):
    """Of every model whose residual score is a share of what lies between floor and truth."""
    loss = models.options(name, "tiny")["loss"]
    tables = floors.of(name, {}, loss)
    metric = tables.against.partition("/")[0]
    assert metric in ("loss", "mse", "nb") and tables.score and (tables.observe is None) == (name != "sct")
    if name == "sct":
        return
    for least in (0.0, 400.0) if name == "cellplm" else (0.0,):
        measured = {tables.against: 500.0, f"{metric}/truth": least}
        shares = [tables.residual({metric: value}, measured) for value in (500.0, least, 550.0)]
        assert shares == [0.0, 1.0, -50 / (500 - least)]
    assert np.isnan(tables.residual({metric: 1.0}, {}))


def one_bag(**fields) -> Batch:
    """Return a bag of two cells of one study."""
    shape = (1, 2)
    fields = {"genes": np.zeros((*shape, 1), int), "counts": np.zeros((*shape, 1)), "labels": {}} | fields
    return Batch(cell_mask=np.ones(shape, bool), study=np.zeros(shape, int), coords=np.zeros((*shape, 2)), **fields)


def residuals(name: str, tables: dict, batch: Batch, made: dict, *logits: dict) -> tuple[dict[str, float], list[float]]:
    """Return what the tables score, and the residual score of each prediction by the model's own loss."""
    module, loss = models.get(name), models.options(name, "tiny")["loss"]
    scored = models.floors(name).score(tables, batch, made, loss)
    measured = {key: float(total / weight) for key, (total, weight) in scored.items()}
    said = [module.loss(Outputs(cells=None, logits=x), made, **loss)[1] for x in logits]
    values = [{key: float(total / weight) for key, (total, weight) in metrics.items()} for metrics in said]
    return measured, [floors.of(name, {}, {}).residual(value, measured) for value in values]


def test_exceiver_that_says_gene_mean_and_depth_has_nothing_beyond_it():
    made = {"genes": np.array([[[0, 1, 2], [0, 1, 3]]]), "hidden": np.array([[[1, 0, 0], [0, 1, 0]]], bool)}
    made |= {"targets": np.array([[[0], [1]]]), "truth": np.array([[[2.0], [1.0]]]), "weights": np.ones((1, 2, 1))}
    made |= {"zeros": np.zeros(3)}
    batch = one_bag(genes=made["genes"], counts=np.array([[[5, 3, 2], [4, 6, 0]]]))
    tables = {"mean": np.array([1.0, 2, 3]), "depth": np.ones(3), "slope": 0.5, "scale": np.array([1.0, 2, 1])}
    tables["clipped"] = tables["mean"]
    # what is shown: 5 counts of two genes in three; 4 counts of one gene in two
    said = np.array([[[1 + 0.5 * (np.log(7.5) - 1)], [2 + 0.5 * (np.log(8) / 2 - 1)]]])
    logits = [{"genes": x} for x in (said, made["truth"], np.array([[[1.0], [2.0]]]))]
    measured, (floor, truth, mean) = residuals("exceiver", tables, batch, made, *logits)
    assert measured["mse/gene mean"] == 1
    assert measured["mse/gene mean + depth"] == pytest.approx(((said - made["truth"]) ** 2).mean())
    assert floor == pytest.approx(0, abs=1e-6) and truth == 1
    assert mean == pytest.approx(1 - 1 / measured["mse/gene mean + depth"])


def test_sclong_that_says_gene_mean_and_residual_has_nothing_beyond_it():
    made = {"values": np.array([[[4.0, 3, 0], [2, 0, 6]]]), "masked": np.array([[[-10.0, 3, 0], [2, 0, -10]]])}
    made |= {"rows": np.array([[[0], [2]]]), "targets": np.array([[[4.0], [6.0]]]), "weights": np.ones((1, 2, 1))}
    said = np.array([[[3 + (3 - 2)], [7 + (2 - 3)]]], float)  # the means, and how far the one visible gene is from its
    logits = [{"scored": x} for x in (said + np.ones((1, 2, 1)), said)]
    tables = {"mean": np.array([3.0, 2, 7])}
    measured, _ = residuals("sclong", tables, one_bag(), made, *logits)
    assert measured == {"loss/gene mean": 1, "loss/gene mean + mean residual of visible genes": 0}
    made["targets"] = made["targets"] + 2.0
    logits = [{"scored": x} for x in (said, made["targets"], said + 1, made["targets"][:, ::-1])]
    measured, (floor, truth, half, exchanged) = residuals("sclong", tables, one_bag(), made, *logits)
    assert measured["loss/gene mean + mean residual of visible genes"] == 4
    assert (floor, truth, half, exchanged) == (0, 1, 0.75, 0)


def test_scemb_that_says_the_genes_left_by_frequency_has_nothing_beyond_them():
    share = np.array([0.5, 0.25, 0.125, 0.125])
    made = {"tokens": np.array([[[2, 3, 4], [2, 5, 0]]]), "targets": np.array([[[4], [2]]])}  # gene 0 is token 2
    made |= {"weights": np.ones((1, 2, 1))}
    table = np.tile(np.log(np.concatenate([[1e-30] * 2, share])), (2, 1))
    table[0, [2, 3]], table[1, 5] = -1e9, -1e9  # what each cell shows
    head = {"features": np.eye(2, dtype=np.float32)[None, :, None], "bias": np.zeros(6)}
    sure = np.where(np.arange(6) == np.array([[4], [2]]), 0, -1e9)
    logits = [head | {"kernel": np.float32(x.T)} for x in (table, sure)]
    tables = {"gene": share[None], "gene x study": share[None]}
    measured, (floor, truth) = residuals("scemb", tables, one_bag(), made, *logits)
    left = "loss/gene x study, of genes not yet in the sentence"
    assert measured["loss/gene"] == pytest.approx(np.log([8, 2]).mean())
    assert measured[left] == pytest.approx(np.log([0.25 / 0.125, 0.875 / 0.5]).mean())
    assert floor == pytest.approx(0, abs=1e-6) and truth == 1


def test_there_are_no_floors_of_labels_nor_of_a_model_without_the_file(monkeypatch):
    assert floors.of("cellplm", {}, {"objective": "annotation"}) is None
    monkeypatch.setattr(models, "floors", lambda name: None)
    assert floors.of("sct", {}, {}) is None


def observed(true: np.ndarray, said: np.ndarray, hidden: np.ndarray, n_bins: int = 4) -> float:
    """Return the residual score of bins that are said of cells [C, V], as sCT's head would say them."""
    features = 20 * jax.nn.one_hot(np.pad(said, ((0, 0), (0, 3))), n_bins + 2)[None]  # padded, as the network pads
    outputs = Outputs(
        cells=None, logits={"features": features, "head": [{"kernel": np.eye(n_bins + 2), "bias": np.zeros(1)}]}
    )
    made = {"tokens": true[None], "mask": hidden[None], "edges": np.zeros((1, len(true), n_bins))}
    sums = {name: np.asarray(pair[0]) for name, pair in sct_floors.observe(outputs, made).items()}
    assert sums["bins_within_genes"].shape == (true.shape[1], 2 * n_bins + 1)
    return sct_floors.residual(sums)


def test_mcc_within_genes_is_0_for_tables_and_shuffles_1_for_the_truth_and_what_it_is_by_hand():
    rng = np.random.default_rng(0)
    level = np.arange(6) % 3 + 1
    true = np.clip(level + rng.integers(-1, 2, (400, 6)), 0, 3)
    hidden = rng.random(true.shape) < 0.7
    assert observed(true, true, hidden) == pytest.approx(1)
    assert observed(true, np.broadcast_to(level, true.shape), hidden) == 0
    shuffled = true.copy()
    for gene in range(6):
        rows = np.flatnonzero(hidden[:, gene] & (true[:, gene] > 0))
        shuffled[rows, gene] = rng.permutation(true[rows, gene])
    assert abs(observed(true, shuffled, hidden)) < 0.06
    assert abs(observed(np.where(true == 0, 0, true), np.where(hidden, shuffled, true), hidden)) < 0.06
    # gene 0: 1 1 2 2 said as 1 2 2 2; gene 1 never hidden; zeros and what is shown do not count
    true = np.array([[1, 1], [1, 2], [2, 3], [2, 1], [0, 1], [3, 1]])
    said = np.array([[1, 1], [2, 1], [2, 1], [2, 1], [3, 1], [1, 1]])
    hidden = np.array([[1, 0]] * 5 + [[0, 0]], bool)
    both, of_true, of_said = 3 - (2 * 1 + 2 * 3) / 4, 4 - 8 / 4, 4 - 10 / 4
    assert observed(true, said, hidden) == pytest.approx(both / np.sqrt(of_true * of_said))
