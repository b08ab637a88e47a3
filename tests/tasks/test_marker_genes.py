"""Gene representations as a stream, and marker genes: planted ones are found, and chance is called chance."""

import dataclasses
import functools
import types

import anndata
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import linen as nn
from scipy import sparse, stats
from scipy.cluster import hierarchy

from scfm_jax import api, models
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes import marker_genes as task
from scfm_jax.types import Outputs

GENES = [f"GENE{i}" for i in range(60)]
QUIET = {"say": lambda _: None}


def cells(n: int = 90, seed: int = 0) -> anndata.AnnData:
    """Return cells of three types with their own genes, some without a label; the last two genes are not measured."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    rate = np.where(np.arange(60) // 20 == kind[:, None], 3.0, 0.3)
    labels = np.where(np.arange(n) % 10 == 9, None, np.array(["a", "b", "c"])[kind])
    counts = sparse.csr_matrix(rng.poisson(rate)[:, :58], dtype=np.float32)
    obs = pd.DataFrame({"cell_type": labels}, [f"cell{i}" for i in range(n)])
    return anndata.AnnData(counts, obs, pd.DataFrame(index=GENES[:58]))


class PerGene(nn.Module):
    """A model of single cells that represents each gene by its own count."""

    genes: bool = True

    @nn.compact
    def __call__(self, inputs, train=False):
        table = self.param("table", nn.initializers.normal(), (inputs.shape[-1], 4))
        genes = jnp.tanh(inputs[..., None] * table)
        return Outputs(cells=genes.mean(2), genes=genes if self.genes else None)


def per_gene(genes: bool = True) -> api.Run:
    """Return a run of it."""

    def prepare(batch, constants, rng, *, step, train):
        slots = constants["slots"][batch.genes]
        return (jax.nn.one_hot(slots, len(GENES)) * jnp.log1p(batch.counts)[..., None]).sum(2)

    module = types.ModuleType("scfm_jax.models.per_gene")
    module.prepare = prepare
    meta = {"model": "per_gene", "config": {"model": {}, "inputs": {}}, "genes": GENES, "step": 0}
    return api.Run(module, PerGene(genes), {}, {}, meta, "a test").twin(0)


@functools.cache
def sct() -> api.Run:
    """Return a small sCT with random weights whose bags are of 8 cells."""
    config = models.options("sct", "tiny") | {"data": {"bag": 8}}
    config["model"] |= {"num_downsamples": 1, "head_layers": 0}
    meta = {"model": "sct", "config": config, "genes": GENES, "classes": {}, "step": 0}
    return api.build(meta, {}, {}, "a test").twin(0)


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    return cells()


@functools.cache
def ranked() -> api.Run:
    """Return a run of a model that is given the ten most expressed genes of a cell only, and says which they are."""

    def prepare(batch, constants, rng, *, step, train):
        counts = jnp.where(batch.genes < len(GENES), batch.counts, 0)
        best, place = jax.lax.top_k(counts, 10)
        ids = jnp.take_along_axis(constants["slots"][batch.genes], place, 2)
        return {"ids": jnp.where(best > 0, ids, -1), "counts": best}

    class Ranked(nn.Module):
        @nn.compact
        def __call__(self, inputs, train=False):
            table = nn.Embed(len(GENES), 4)(jnp.maximum(inputs["ids"], 0))
            return Outputs(cells=table.sum(2), genes=table * inputs["counts"][..., None])

    module = types.ModuleType("scfm_jax.models.ranked")
    module.prepare, module.gene_ids = prepare, lambda inputs: inputs["ids"]
    meta = {"model": "ranked", "config": {"model": {}, "inputs": {}}, "genes": GENES, "step": 0}
    return api.Run(module, Ranked(), {}, {}, meta, "a test").twin(0)


def test_genes_that_the_model_was_not_given_do_not_count(adata):
    run = ranked()
    means = run.gene_representations(adata, **QUIET).mean("cell_type")
    counts, table = adata.X.toarray(), np.asarray(run.variables["params"]["Embed_0"]["embedding"])
    for group, values, seen in zip(means.groups, means.values, means.seen, strict=True):
        total, number = np.zeros(58), np.zeros(58)
        for cell in counts[(adata.obs["cell_type"] == group).to_numpy()]:
            best = [gene for gene in np.argsort(-cell, kind="stable")[:10] if cell[gene]]
            total[best] += cell[best]
            number[best] += 1
        np.testing.assert_array_equal(seen, number)
        assert 0 < (number == 0).sum() < 58 and (np.isnan(values).all(1) == (number == 0)).all()
        known = number > 0
        np.testing.assert_allclose(
            values[known], (total[known] / number[known])[:, None] * table[:58][known], rtol=1e-5
        )
    silent = types.ModuleType("silent")
    silent.prepare = run.module.prepare
    with pytest.raises(ValueError, match="model silent represents 10 of 60 genes and has no gene_ids to tell which"):
        dataclasses.replace(run, module=silent).gene_representations(adata, **QUIET)


@pytest.mark.parametrize("make", [per_gene, sct])
def test_means_of_a_stream_are_the_means_of_the_whole(make, adata):
    found = make().gene_representations(adata, **QUIET)
    assert found.genes == GENES[:58]
    whole = np.full((90, 58, found.width), np.nan)
    for rows, values in found:
        assert np.isnan(whole[rows]).all()
        whole[rows] = values
    means = found.mean("cell_type")
    labels = adata.obs["cell_type"].to_numpy()
    assert means.groups == ["a", "b", "c"] and list(means.cells) == [int((labels == g).sum()) for g in "abc"]
    for group in means.groups:
        np.testing.assert_allclose(means.of(group), whole[labels == group].mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.mean(labels).values, means.values)


def test_means_do_not_depend_on_how_many_cells_are_taken_at_a_time(adata, monkeypatch):
    run = per_gene()
    means = run.gene_representations(adata, **QUIET).mean("cell_type")
    sizes = []
    for size in (1, 7, 64):
        monkeypatch.setattr("scfm_jax.api.run.GENE_BYTES", size * 4 * 58 * 4 + 3)
        found = run.gene_representations(adata, **QUIET)
        sizes.append(max(len(rows) for rows, _ in found))
        np.testing.assert_allclose(found.mean("cell_type").values, means.values, rtol=1e-5, atol=1e-6)
    assert sizes == [1, 7, 64]


def test_chosen_cells_and_labels_given_by_hand(adata):
    run, rows = per_gene(), [4, 2, 40]
    found = run.gene_representations(adata, rows=rows, **QUIET)
    means = found.mean(["x", "y", "x"])
    some = run.gene_representations(adata[[2, 4, 40]], **QUIET).mean(["x", "y", "x"])
    np.testing.assert_allclose(means.values, some.values, rtol=1e-6)
    assert list(found.rows) == [2, 4, 40] and list(means.cells) == [2, 1]


def test_written_cells_are_those_of_the_stream(adata, tmp_path):
    import zarr

    found = sct().gene_representations(adata, rows=[1, 3, 50, 60], **QUIET)
    found.write(tmp_path / "genes.zarr")
    group = zarr.open_group(tmp_path / "genes.zarr", mode="r")
    assert list(group["rows"][:]) == [1, 3, 50, 60] and group.attrs["genes"] == GENES[:58]
    assert group.attrs["provenance"]["model"] == "sct" and group["values"].chunks == (1, 58, 32)
    for rows, values in found:
        np.testing.assert_array_equal(group["values"][:][np.searchsorted([1, 3, 50, 60], rows)], values)
    with pytest.raises(FileExistsError, match="exists already"):
        found.write(tmp_path / "genes.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["genes.zarr"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(adata, tmp_path, monkeypatch):
    found = per_gene().gene_representations(adata, **QUIET)

    def broken():
        yield np.array([[0]]), np.ones((1, 1, 58, 4))
        raise ValueError("the input has gone")

    with pytest.raises(ValueError, match="has gone"):
        dataclasses.replace(found, batches=broken).write(tmp_path / "genes.zarr")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(OSError, match=r"0\.0 GB free; use `mean`"):
        found.write(tmp_path / "genes.zarr")


def test_mistakes_about_gene_representations_are_one_line(adata):
    with pytest.raises(ValueError, match="model per_gene has no representations of the genes in a cell") as raised:
        per_gene(genes=False).gene_representations(adata, **QUIET)
    assert "\n" not in str(raised.value)
    found = per_gene().gene_representations(adata, **QUIET)
    for by, text in (("kind", "kind: no such obs column; there are cell_type"), (["a"], "1 labels for 90 cells")):
        with pytest.raises(ValueError, match=text):
            found.mean(by)
    with pytest.raises(ValueError, match="no cell has a label"):
        found.mean([None] * 90)
    with pytest.raises(ValueError, match="rows: 1 rows for 90 cells"):
        per_gene().gene_representations(adata, rows=[90], **QUIET)


def test_a_model_of_samples_without_genes_is_refused(adata):
    module = models.get("cellplm")
    config = models.options("cellplm", "tiny") | {"data": {"labels": []}}
    config["model"] |= {"enc_hid": 16, "enc_layers": 1, "enc_head": 2, "latent_dim": 8, "dec_hid": 16}
    run = api.build({"model": "cellplm", "config": config, "genes": GENES, "classes": {}}, {}, {}, "a test").twin(0)
    assert module.SAMPLE is True
    with pytest.raises(ValueError, match="model cellplm has no representations"):
        run.gene_representations(adata, **QUIET)


def test_similarity_is_the_cosine():
    values = np.array([[1.0, 0], [2, 0], [0, 3], [-1, 0], [0, 0]])
    wanted = [[1, 1, 0, -1, 0], [1, 1, 0, -1, 0], [0, 0, 1, 0, 0], [-1, -1, 0, 1, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(task.similarity(values), wanted, atol=1e-12)
    random = np.random.default_rng(0).normal(size=(2, 30, 5)).astype(np.float32)
    summed = task.rankings(*random)["summed"]
    np.testing.assert_allclose(summed, task.similarity(random[0]).sum(1) - 1, rtol=1e-5)


def test_rankings_find_what_is_particular_to_a_type():
    rng = np.random.default_rng(0)
    own, rest = np.tile(rng.normal(size=(200, 64)), (2, 1, 1))
    own[:20] += 3 * rng.normal(size=64)  # these genes point one way, in this type alone
    scores = task.rankings(own, rest)
    for name in task.RANKINGS:
        assert set(task.top(scores[name], 20)) == set(range(20)), name
    assert np.isin(task.top(task.rankings(rest, own)["contrast"], 20), range(20)).sum() < 10
    rest[5] = np.nan
    assert task.rankings(own, rest)["shift"][5] == pytest.approx(np.linalg.norm(own[5]))


def test_the_remainder_is_the_mean_of_the_other_cells(adata):
    found = ranked().gene_representations(adata, **QUIET)
    member = np.random.default_rng(0).random((90, 3)) < 0.3
    member[:, 1], member[:, 2] = np.arange(90) > 1, True
    values, seen = found.mean_of(member)
    others, of_others = found.mean_of(~member[:, :2])
    rest = task.remainder(values[:2], seen[:2], values[2], seen[2])
    assert (seen[2] - seen[:2] == of_others).all() and np.isnan(others).any()
    np.testing.assert_allclose(rest, others, rtol=1e-4, atol=1e-5)


def test_expression_and_fold_change_are_of_the_group():
    counts = sparse.csr_matrix(np.array([[1.0, 3], [2, 2], [0, 4]]))
    values, member = log_normalised(counts, target_sum=4), np.array([True, True, False])
    own, rest = task.mean(values, member), task.mean(values, ~member)
    np.testing.assert_allclose([own, rest], [[np.log([2, 3]).mean(), np.log([4, 3]).mean()], [0, np.log(5)]])
    np.testing.assert_allclose(task.baselines(own, rest)["fold change"], own - rest)
    np.testing.assert_allclose(task.mean(values > 0, ~member), [0, 1])


def test_p_of_hits_is_that_of_permutations_within_bins():
    rng = np.random.default_rng(0)
    level = np.repeat(np.arange(4), 50)
    markers = rng.random(200) < np.array([0.4, 0.2, 0.1, 0.05])[level]
    score = rng.normal(size=200) - 0.8 * level + 0.5 * markers
    found = task.enrichment(score, markers, level, 40)
    chosen = np.isin(np.arange(200), task.top(score, 40))
    hits, wins = [], []
    for _ in range(4000):
        shuffled = np.concatenate([rng.permutation(markers[level == b]) for b in range(4)])
        hits.append((chosen & shuffled).sum())
        wins.append(task.enrichment(score, shuffled, level, 40)["matched_auroc"] if len(wins) < 1000 else 0)
    assert abs(np.mean(hits) - found["expected"]) < 0.1
    assert abs(np.mean(np.array(hits) >= found["hits"]) - found["p"]) < 0.03
    assert abs(np.mean(np.array(wins[:1000]) >= found["matched_auroc"]) - found["auroc_p"]) < 0.05


def test_without_bins_the_matched_auroc_is_the_auroc_and_its_p_that_of_mann_whitney():
    rng = np.random.default_rng(1)
    score, markers = rng.normal(size=100), rng.random(100) < 0.3
    score += markers
    found = task.enrichment(score, markers, np.zeros(100, int), 20)
    other = stats.mannwhitneyu(score[markers], score[~markers], alternative="greater", use_continuity=False)
    pairs = markers.sum() * (~markers).sum()
    np.testing.assert_allclose([found["matched_auroc"], found["auroc_p"]], [other.statistic / pairs, other.pvalue])


def test_p_is_uniform_where_markers_are_chance_and_high_expression_alone_earns_nothing():
    rng = np.random.default_rng(2)
    mean = rng.gamma(0.5, size=400)
    level = task.levels(mean)
    ps, hits = [], []
    for _ in range(300):
        markers = rng.random(400) < 0.6 * (level / 15) ** 4  # the highly expressed are known more often
        found = task.enrichment(mean + 0.01 * rng.normal(size=400), markers, level, 50)
        ps.append(found["auroc_p"])
        hits.append(found["p"])
    assert stats.kstest(ps, "uniform").pvalue > 1e-3
    assert np.mean(np.array(hits) <= 0.05) <= 0.09
    naive = task.enrichment(mean, markers, np.zeros(400, int), 50)
    assert naive["p"] < 1e-3  # what a null that takes no account of expression would have said


def test_levels_keep_ties_together_and_are_alike_in_size():
    mean = np.concatenate([np.zeros(100), np.arange(1, 301)])
    level = task.levels(mean, 50)
    assert len(set(level[:100])) == 1 and level.max() == 7
    assert np.bincount(level[100:])[2:].tolist() == [50] * 6


def test_candidates_and_draw_say_when_there_are_too_few():
    with pytest.raises(ValueError, match="3 genes are expressed in 10% of the cells of a type: too few to choose 50"):
        task.candidates(np.array([0.5, 0.1, 0.2, 0.05]), 0.1)
    labels = ["a"] * 30 + ["b"] * 3 + [None] * 9 + ["c"] * 8
    rows = task.draw(labels, 10, np.random.default_rng(0))
    assert [int(np.isin(rows, part).sum()) for part in (range(30), range(30, 42), range(42, 50))] == [10, 0, 8]


def test_genes_of_a_heat_map_are_linked_by_similarity_or_as_seaborn_does():
    x = np.random.default_rng(0).normal(size=(9, 4))
    similarities = task.similarity(x)
    rows = hierarchy.linkage(similarities, "average")
    np.testing.assert_array_equal(task.order(similarities, "rows"), rows)
    ours = task.order(similarities)
    assert ours[:, 2].max() <= 2 and not np.allclose(ours[:, 2], rows[:, 2])
