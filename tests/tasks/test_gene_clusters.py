"""Clusters of gene vectors: planted modules interact more than chance, hubs do not, tests agree with scipy's."""

import json
import types

import numpy as np
import pytest
from scipy import sparse, stats

from data_pipeline import synthetic
from data_pipeline.genes import gene_sets
from experiments.analyses import gene_clusters
from scfm_jax import api, models
from scfm_jax.tasks.genes import gene_clusters as task
from tests.harness import commands

QUIET = {"say": lambda _: None}


def modules(seed: int = 0, n: int = 400, k: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of n genes in k modules [n, 6], and the module of each."""
    rng = np.random.default_rng(seed)
    of = rng.integers(0, k, n)
    return rng.normal(size=(k, 6))[of] + 0.1 * rng.normal(size=(n, 6)), of


def edges_within(of: np.ndarray, number: int, share: float, seed: int = 0) -> np.ndarray:
    """Return random edges [2, E], a share of them within modules."""
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, len(of), (2, number))
    for i in np.flatnonzero(rng.random(number) < share):
        target[i] = rng.choice(np.flatnonzero(of == of[source[i]]))
    return np.stack([source, target])


def degree(ends: np.ndarray, n: int) -> np.ndarray:
    """Return the number of edges of every gene."""
    return np.bincount(ends.ravel(), minlength=n)


def test_planted_modules_are_clusters_and_interact():
    x, of = modules()
    cluster = task.clusters(x)
    assert cluster.max() + 1 == 8 and len({(a, b) for a, b in zip(cluster, of, strict=True)}) == 8
    assert (np.diff(np.bincount(cluster)) <= 0).all()
    ends = edges_within(of, 600, 0.4)
    found = task.interactions(cluster, *ends, task.alike(degree(ends, 400)), draws=200)
    assert (found["q"] < 0.05).all() and found["total"] > 2 * found["total_expected"] and found["total_p"] < 0.01
    assert (found["high"] < found["edges"]).all() and (found["low"] <= found["expected"]).all()


def test_edges_at_random_are_called_chance():
    x, _ = modules()
    cluster, p = task.clusters(x), []
    for seed in range(6):
        ends = edges_within(cluster, 600, 0.0, seed)
        p += list(task.interactions(cluster, *ends, task.alike(degree(ends, 400)), draws=100, seed=seed)["p"])
    assert 0.35 < np.mean(p) < 0.75 and np.mean(np.array(p) < 0.05) < 0.15


def test_a_cluster_of_hubs_earns_nothing():
    rng = np.random.default_rng(3)
    weight = np.where(np.arange(400) < 50, 8.0, 1.0)
    ends = rng.choice(400, (2, 1500), p=weight / weight.sum())  # edges by degree alone
    cluster = (np.arange(400) >= 50).astype(int)
    plain = task.interactions(cluster, *ends, np.zeros(400, int), draws=200)
    fair = task.interactions(cluster, *ends, task.alike(degree(ends, 400)), draws=200)
    assert plain["p"][0] < 0.01 < 0.05 < fair["p"][0]


def test_direction_repetition_and_loops_of_edges_do_not_count():
    of = modules()[1]
    ends = edges_within(of, 300, 0.3)
    bins = np.zeros(400, int)
    once = task.interactions(of, *ends, bins, draws=20)
    loops = np.tile(np.arange(400), (2, 1))
    twice = task.interactions(of, *np.concatenate([ends, ends[::-1], loops], 1), bins, draws=20)
    assert all(np.array_equal(once[key], twice[key]) for key in once)


def test_genes_alike_in_two_things_share_a_bin():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 40, 900), rng.normal(size=900)
    bins = task.alike(a, b, size=50)
    assert 12 <= bins.max() + 1 <= 20
    within = np.mean([np.ptp(b[bins == i]) for i in range(bins.max() + 1)])
    assert within < 0.6 * np.ptp(b) and len(np.unique(task.alike(np.ones(300)))) == 1


def test_set_tests_are_fishers_and_q_is_benjamini_and_hochbergs():
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, 5, 200)
    member = sparse.csr_matrix(rng.random((12, 200)) < 0.1)
    found = task.sets(cluster, member, least=3)
    for i in range(5):
        c, s = found["cluster"][i], found["set"][i]
        inside = member[s].toarray()[0]
        a = int((inside & (cluster == c)).sum())
        square = [[a, inside.sum() - a], [(cluster == c).sum() - a, (~inside & (cluster != c)).sum()]]
        assert a == found["overlap"][i]
        assert found["p"][i] == pytest.approx(stats.fisher_exact(square, "greater")[1])
    p = rng.random(30) ** 2
    assert task.false_discovery(p) == pytest.approx(stats.false_discovery_control(p))
    more = stats.false_discovery_control(np.append(p, np.ones(20)))[:30]
    assert task.false_discovery(p, 50) == pytest.approx(more)


@pytest.mark.slow
def test_the_table_of_a_model_is_that_of_its_genes():
    for name in ("exceiver", "scemb", "cellplm"):
        config = models.options(name, "tiny") | {"data": {}}
        meta = {"model": name, "config": config, "genes": [f"G{i}" for i in range(30)], "classes": {}, "step": 0}
        run = api.build(meta, {"params": {}}, {}, "a test").twin(0)
        table = task.vectors(name, run.variables, 30)
        assert table.shape[0] == 30
        if name == "scemb":
            assert np.array_equal(table[3], np.asarray(run.variables["params"]["word"])[3 + run.module.SPECIAL])
    with pytest.raises(ValueError, match="model sct has no table of gene vectors; give an input"):
        task.vectors("sct", {"params": {}}, 30)


def test_gmt_files_are_read_and_refused(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("A\thttp://a\tG1\tG2\tG2\t\nB\t\tG2,1.0\tG9\n\n")
    assert gene_sets.read_gmt(path) == {"A": ["G1", "G2"], "B": ["G2", "G9"]}
    member, mapping = gene_sets.on_genes(gene_sets.read_gmt(path), ["G0", "G1", "G2"])
    assert member.toarray().tolist() == [[False, True, True], [False, False, True]] and mapping.report.mapped == 2
    for text, what in (
        ("A\tx\n", "line 1: a GMT line is"),
        ("A\tx\tG1\nA\ty\tG2\n", "line 2: a second set A"),
        ("", "no"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=what):
            gene_sets.read_gmt(path)


@pytest.mark.slow
def test_expression_of_real_structure_is_found_where_a_random_model_finds_nothing(tmp_path):
    adata = synthetic.make(300, 400, depth=4000.0)
    genes, kind = list(adata.var_names), adata.var["marker_of"].to_numpy()
    marked = np.flatnonzero(kind >= 0)
    ends = marked[edges_within(kind[marked], 400, 0.6)]
    (tmp_path / "edges.tsv").write_text("gene_a\tgene_b\n" + "".join(f"{genes[a]}\t{genes[b]}\n" for a, b in ends.T))
    lines = [f"type{t}\tx\t" + "\t".join(np.array(genes)[kind == t]) for t in range(4)]
    (tmp_path / "sets.gmt").write_text("\n".join(lines))
    config = models.options("exceiver", "tiny") | {"data": {"bag": 1, "labels": []}}
    meta = {"model": "exceiver", "config": config, "genes": list(adata.var["ensembl_id"]), "classes": {}, "step": 0}
    run = api.build(meta, {"params": {}}, {}, "a test").twin(0)
    given = {"edges": str(tmp_path / "edges.tsv"), "sets": [str(tmp_path / "sets.gmt")], "draws": 100, "seeds": 1}
    found = gene_clusters.evaluate(run, source=adata, **given, **QUIET)
    rows = {row["vectors"]: gene_clusters.summary(row) for row in found["rows"]}
    assert rows["expression PCA"]["rich"] >= 3 and rows["expression PCA"]["with_set"] >= 3
    assert rows["random twin"]["rich"] <= 1 and rows["random twin"]["with_set"] <= 1
    means = gene_clusters.evaluate(run, source=adata, vectors="mean", cells=10, **given, **QUIET)
    assert means["vectors"] == "mean" and "means over cells" in gene_clusters.page(means)
    run.export(tmp_path / "w.safetensors")
    adata.write_h5ad(tmp_path / "x.h5ad")
    args = [
        f"--workdir={tmp_path}/w.safetensors",
        f"--input={tmp_path}/x.h5ad",
        f"--output={tmp_path}/out",
        "--seeds=1",
    ]
    done = commands.run("gene_clusters", *args, folder=tmp_path, timeout=600)
    assert done.code == 2 and "--edges and --sets are both missing" in done.err and not (tmp_path / "out").exists()
    files = [f"--edges={tmp_path}/edges.tsv", f"--sets={tmp_path}/sets.gmt", "--draws=50"]
    done = commands.run("gene_clusters", *args, *files, folder=tmp_path, timeout=600)
    assert done.code == 0, done.err
    names = {"gene_clusters.md", "gene_clusters.json", "gene_clusters.png"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    rows = json.loads((tmp_path / "out" / "gene_clusters.json").read_text())["rows"]
    assert {len(row["cluster"]) for row in rows} == {len(found["genes"])}


def test_a_model_without_gene_vectors_asks_for_cells_first():
    run = types.SimpleNamespace(name="sct", module=models.get("sct"), genes=["A", "B"])
    with pytest.raises(ValueError, match=r"^--input is missing: sct has no table of gene vectors"):
        gene_clusters.evaluate(run, edges="no such file", sets=[])
