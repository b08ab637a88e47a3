"""Gene vectors of a graph: the network by hand, edges that are held out, pairs without an edge, a file that is read."""

import jax
import numpy as np
import pytest

from scfm_jax.api import vector_file
from scfm_jax.tasks import heads
from scfm_jax.tasks.genes import graph_embedding as task


def attended(x, params, edges, elu: bool):
    """Return a layer of graph attention by its formula; `edges` are (source, target), every node to itself."""
    heads_, width = params["source"].shape
    rows = (x @ params["kernel"]).reshape(len(x), heads_, width)
    out = np.zeros((len(x), heads_, width))
    for i in range(len(x)):
        sources = [a for a, b in edges if b == i]
        for h in range(heads_):
            e = [rows[j, h] @ params["source"][h] + rows[i, h] @ params["target"][h] for j in sources]
            weight = np.exp(np.where(np.array(e) > 0, e, 0.2 * np.array(e)))
            out[i, h] = weight / weight.sum() @ rows[sources, h]
    y = out.reshape(len(x), -1) + params["bias"]
    return np.where(y > 0, y, np.exp(y) - 1) if elu else y


def test_vectors_are_three_layers_of_attention_and_the_loss_is_cross_entropy_of_dot_products():
    rng = np.random.default_rng(0)
    pairs, x = np.array([[0, 1], [1, 2], [2, 3], [0, 4]]), rng.normal(size=(6, 5)).astype(np.float32)
    shared = {"graph": task.message_graph(pairs, 6), "features": x}
    network = task.GraphGenes(None)
    variables = jax.jit(lambda: network.init(jax.random.key(0), shared, method="vectors"))()
    z = task.vectors(network, variables, pairs, 6, x)
    edges = [*pairs.tolist(), *pairs[:, ::-1].tolist(), *([i, i] for i in range(6))]
    y = x
    for name in ("attention_0", "attention_1", "last"):
        y = attended(y, variables["params"][name], edges, elu=name != "last")
    assert z.shape == (6, 64) and variables["params"]["attention_1"]["kernel"].shape == (64, 64)
    np.testing.assert_allclose(z, y, rtol=1e-4, atol=1e-5)
    batch = {"pair": pairs, "other": np.array([[[0, 3]], [[1, 3]], [[4, 5]], [[2, 5]]])}
    logits = np.stack([task.products(z, pair) for pair in (pairs, batch["other"][:, 0])], 1)
    np.testing.assert_allclose(jax.jit(network.apply)(variables, batch, shared), logits, rtol=1e-5)
    other = batch["other"][:, 0]
    sigmoid = lambda s: 1 / (1 + np.exp(-s))  # noqa: E731
    terms = [-np.log(sigmoid(task.products(y, pairs))), -np.log(1 - sigmoid(task.products(y, other)))]
    assert float(task.loss(logits, batch, shared)) == pytest.approx(np.mean(terms), rel=1e-4)


def blocks(n: int = 80, size: int = 10, seed: int = 0):
    """Return the edges (source, target) of genes that are joined within blocks alone."""
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(n, 1)
    edge = (a // size == b // size) & (rng.random(len(a)) < 0.6)
    return a[edge], b[edge]


def test_held_out_edges_of_planted_blocks_are_found_and_a_shuffled_graph_says_nothing():
    edges = task.cut(*blocks())
    training = heads.Training({"learning_rate": 0.01}, epochs=30, rows=1 << 16)
    every = {tuple(pair) for pair in edges.all.tolist()}
    assert len(every) == sum(map(len, edges)) == len(blocks()[0]) and len(edges.test) == round(0.1 * len(every))
    other = task.strangers(edges.all, 80, len(edges.test), 1)
    assert not every & {tuple(pair) for pair in other.tolist()} and (other[:, 0] < other[:, 1]).all()
    network, fitted = task.fit(edges, 80, training=training)
    z = task.vectors(network, fitted.variables, edges.train, 80)
    auroc = task.score(task.products(z, edges.test), task.products(z, other))["auroc"]
    assert auroc > 0.9 and fitted.epoch == fitted.history[:, 1].argmin()
    place = np.random.default_rng(3).permutation(80)
    shuffled = task.Cut(*(np.sort(place[part], 1) for part in edges))
    network, fitted = task.fit(shuffled, 80, training=training)
    z = task.vectors(network, fitted.variables, shuffled.train, 80)
    assert task.score(task.products(z, edges.test), task.products(z, other))["auroc"] < 0.7
    common = task.neighbours(edges, 80)["common neighbours"]
    pair = edges.test[0]
    joined = [set(edges.train[(edges.train == gene).any(1)].ravel()) - {gene} for gene in pair]
    assert common(pair[None]) == [len(joined[0] & joined[1])]
    like = task.strangers(edges.all, 80, 30, 0, like=edges.test)
    assert set(like.ravel()) <= set(edges.test.ravel())


def test_too_small_and_full_graphs_are_refused():
    with pytest.raises(ValueError, match="3 edges between two genes: too few"):
        task.cut(np.array([0, 1, 2, 2]), np.array([1, 2, 3, 2]))
    with pytest.raises(ValueError, match="hardly a pair of genes is without an edge"):
        task.strangers(np.stack(np.triu_indices(8, 1), 1), 8, 5, 0)


def test_a_file_of_vectors_is_read_by_any_name_and_noticed_where_damaged(tmp_path):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    path = tmp_path / "v.npz"
    vector_file.write(path, ["STAT1", "ENSG00000096968", "IRF1"], values, "graph attention", "GO graph", graph={"a": 1})
    read, meta = vector_file.read(path, ["JAK2", "IRF1", "NOBODY"], ["ENSG00000096968", "", ""])
    np.testing.assert_array_equal(read.values[:2], values[[1, 2]])
    np.testing.assert_allclose(read.values[2], values[1:].mean(0), rtol=1e-6)
    assert read.found.tolist() == [True, True, False] and meta == {"graph": {"a": 1}}
    assert read.kind == "graph attention" and read.source == "GO graph (v.npz)"
    with pytest.raises(ValueError, match="knows none of the 1 genes"):
        vector_file.read(path, ["Actb"])
    with pytest.raises(ValueError, match="2 vectors for 1 genes"):
        vector_file.encoded(["A"], values[:2], "", "")
    np.savez(tmp_path / "other.npz", x=values)
    with pytest.raises(ValueError, match=r"other.npz: not a file of gene vectors"):
        vector_file.read(tmp_path / "other.npz")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="torn or damaged"):
        vector_file.read(path)
    with pytest.raises(FileNotFoundError, match="no such file of gene vectors"):
        vector_file.read(tmp_path / "none.npz")
