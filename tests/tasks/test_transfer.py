"""Transfer and class token: both starts see the same cells and masks, and a stopped run goes on."""

import functools

import numpy as np
import pytest
from scipy import sparse

from data_pipeline import synthetic
from experiments.analyses import cells as model_cells
from experiments.analyses import class_token as class_token_analysis
from experiments.analyses import transfer as transfer_analysis
from scfm_jax import api, models
from scfm_jax.inference import bags
from scfm_jax.saving.leaves import flatten, nest
from scfm_jax.tasks.cells import class_token, transfer
from tests.harness import commands, suites

QUIET = {"say": lambda _: None}


@functools.cache
def study():
    """Return cells of four types."""
    adata = synthetic.make(100, 120, depth=2000.0)
    adata.obs["tissue"] = adata.obs["cell_type"].astype(str).to_numpy()
    return adata


def exceiver(labels: tuple[str, ...] = (), seed: int = 0) -> api.Run:
    """Return a tiny Exceiver with random weights; with labels one that tells types."""
    config = models.options("exceiver", "tiny")
    config |= {"data": {"bag": 1, "batch": 16, "labels": list(labels)}}
    config["optim"] = {"name": "adam", "learning_rate": 3e-3, "schedule": "constant"}
    classes = {"tissue": ["type0", "type1", "type2"]} if labels else {}
    genes = list(study().var["ensembl_id"])
    meta = {"model": "exceiver", "config": config, "genes": genes, "classes": classes, "step": 0}
    return api.build(meta, {"params": {}}, {}, "a test").twin(seed)


def test_the_two_parts_of_a_study_are_apart_and_all_of_it():
    train, held = transfer.split(101, 3)
    assert len(held) == 30 and np.array_equal(np.sort(np.append(train, held)), np.arange(101))
    assert not np.array_equal(held, transfer.split(101, 4)[1])
    with pytest.raises(ValueError, match="both parts need at least one"):
        transfer.split(1, 0)


def test_an_epoch_is_every_cell_once_in_another_order_and_resumes():
    counts = sparse.csr_matrix(np.arange(1, 25)[:, None] * np.eye(1, 5))
    rows = np.arange(4, 24)
    loader = transfer.CellsInMemory(counts, rows, bag=2, batch=5, seed=1)
    assert loader.epoch_steps == 2
    epochs = [[int(i) for s in (2 * e, 2 * e + 1) for i in loader.batch(s)["index"].ravel()] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(rows) and epochs[0] != epochs[1]
    batches = loader.iter()
    next(batches), next(batches)
    later = loader.iter(batches.get_state())
    assert np.array_equal(next(later)["counts"], loader.batch(2)["counts"])
    seen = np.concatenate([b["index"].ravel() for b in loader.epoch_batches()])
    assert np.array_equal(seen[seen >= 0], rows)
    with pytest.raises(ValueError, match="20 cells do not fill a batch of 16 x 2: lower the batch"):
        transfer.CellsInMemory(counts, rows, bag=2, batch=16)


def test_an_arm_takes_over_its_part_of_the_weights():
    for run in (exceiver(), suites.entrant("scemb", "run").run):
        n, measured = len(run.genes), np.arange(len(run.genes)) < 20
        assert transfer.starts(run.module, run.variables, n) == list(transfer.STARTS)
        arms = {x: transfer.beginning(x, run.module, run.variables, measured, 0) for x in transfer.STARTS}
        assert arms.pop("random") == {}
        before, genes, permuted = (flatten(arms[start]["params"]) for start in ("pretrained", "genes", "permuted"))
        assert all(np.array_equal(x, before[name]) for name, x in flatten(run.variables["params"]).items())
        table, _ = transfer.gene_table(run.module, run.variables, n)
        assert list(genes) == [table] and np.array_equal(genes[table], before[table])
        changed = [name for name in before if not np.array_equal(before[name], permuted[name])]
        assert changed == [table] and (before[table] != permuted[table]).any(1).sum() <= 20
        old, new = (np.asarray(run.module.gene_vectors({"params": nest(x)}, n)) for x in (before, permuted))
        assert np.array_equal(old[20:], new[20:]) and (old[:20] != new[:20]).any(1).mean() > 0.8
        assert sorted(map(tuple, old.tolist())) == sorted(map(tuple, new.tolist()))
    module = models.get("sct")
    assert transfer.starts(module, run.variables, n) == ["pretrained", "random"]
    with pytest.raises(ValueError, match="starts=genes: this model has no table of gene vectors"):
        transfer.beginning("genes", module, run.variables, measured, 0)


def test_floors_are_learnt_from_the_cells_to_train_on_and_scored_on_the_others():
    run = exceiver(seed=7)
    prepared = transfer_analysis._prepared(run, model_cells.read(run, study(), **QUIET), 0, None, 0.3)
    mean, depth = transfer_analysis._floors(run, prepared, 0)
    assert mean.keys() == depth.keys() == {"floor", "seed", "mse", "explained_variance", "slot_variance"}
    assert (mean["floor"], depth["floor"]) == ("gene mean", "gene mean + depth") and mean["mse"] != depth["mse"]
    train, held = prepared["rows"]
    counts = np.asarray(study().X.todense())
    logs = np.log1p(counts * 1e4 / counts.sum(1, keepdims=True))
    spread = logs[train].std(0)
    z = np.minimum((logs - logs[train].mean(0)) / np.where(spread > 1e-9, spread, 1), 10) + 1
    by_gene = np.where(counts > 0, z, 0)[train].sum(0) / np.maximum((counts > 0)[train].sum(0), 1)
    error = ((z - by_gene)[held] ** 2)[counts[held] > 0].mean()  # of all; the hidden ones are some of them
    assert mean["mse"] == pytest.approx(error, rel=0.15)
    other = transfer_analysis._floors(suites.entrant("scemb", "run").run, {**prepared, "inputs": {}}, 0)
    assert [row["floor"] for row in other][:2] == ["gene", "gene x study"]


def test_epochs_are_counted_until_a_run_is_level_with_the_mean_of_the_gene():
    rows = [
        {"start": start, "seed": seed, "epoch": epoch, "explained_variance": x}
        for start, seed, curve in (
            ("pretrained", 0, (0.1, 0.6, 0.5)),
            ("random", 0, (0, 0.1, 0.2)),
            ("random", 1, (0.4,)),
        )
        for epoch, x in enumerate(curve)
    ]
    levels = {"gene mean": 0.5, "gene mean + depth": 0.7}
    floors = [{"floor": f, "seed": s, "explained_variance": x - 0.2 * s} for f, x in levels.items() for s in (0, 1)]
    result = {"rows": rows, "floors": floors}
    assert transfer_analysis.reached(result, "pretrained") == [1, None]
    assert transfer_analysis.reached(result, "random") == [None, 0]


@pytest.mark.slow
def test_all_starts_learn_and_a_stopped_command_goes_on(tmp_path):
    run = exceiver(seed=7)
    first = transfer_analysis.evaluate(run, study(), tmp_path, epochs=2, epochs_random=3, seeds=1, **QUIET)
    rows = {(row["start"], row["epoch"]): row for row in first["rows"]}
    late = {(start, 3) for start in transfer.FROM_RANDOM}
    assert set(rows) == {(start, epoch) for start in transfer.STARTS for epoch in (0, 1, 2)} | late
    for start in transfer.STARTS:
        assert rows[start, 2]["loss"] < rows[start, 0]["loss"]
        assert {"explained_variance", "slot_variance"} <= rows[start, 0].keys() and "skipped" not in rows[start, 1]
    assert rows["pretrained", 0]["loss"] != rows["random", 0]["loss"]
    again = transfer_analysis.evaluate(run, study(), tmp_path, epochs=2, epochs_random=3, seeds=1, **QUIET)
    assert again["rows"] == first["rows"] and again["floors"] == first["floors"]
    losses = {start: rows[start, 0]["loss"] for start in transfer.STARTS}
    assert len(set(losses.values())) == 4, losses
    other = transfer_analysis.evaluate(exceiver(seed=8), study(), tmp_path / "b", epochs=1, seeds=1, **QUIET)
    pairs = [next(r for r in found["rows"] if r["start"] == "random") for found in (first, other)]
    assert pairs[0] == pairs[1]  # random weights are the seed's, whatever was pretrained
    text = transfer_analysis.table(first)
    assert "| pretrained weights | explained variance, all masked entries |" in text and "| gene mean + depth |" in text
    assert transfer_analysis.picture(first)[:4] == b"\x89PNG"


@pytest.mark.slow
def test_the_class_token_sees_every_cell_by_itself():
    run, adata = exceiver(("tissue",)), study()
    found = class_token_analysis.evaluate(run, [adata], seeds=1, **QUIET)
    row = found["rows"][0]
    methods = {r["method"] for r in found["rows"]}
    assert methods == {"exceiver", "exceiver, nothing hidden", "random twin"}
    truth = adata.obs["tissue"].to_numpy()
    assert row["cells"] == (truth != "type3").sum() and found["files"][0]["unknown"] == ["type3"]
    assert row["majority"] == max((truth == f"type{i}").sum() for i in range(3)) / row["cells"]
    counts = sparse.csr_matrix(adata.X)
    whole = bags.pack(counts, np.arange(100)[:, None])
    slots = run.complete_constants([whole], np.ones((1, 120), bool), **QUIET)

    def say(size: int) -> np.ndarray:
        batches = (
            bags.pack(counts[i : i + size], np.arange(i, min(i + size, 100))[:, None]) for i in range(0, 100, size)
        )
        return class_token.predict(run.module, run.model, run.variables, slots, batches, 100, hide=False)

    whole, parts = say(100), say(30)
    assert whole.shape == (100, 3) and np.allclose(whole.sum(1), 1, atol=1e-5) and np.allclose(whole, parts, atol=1e-5)
    with pytest.raises(ValueError, match="no class token: train one with labels"):
        class_token_analysis.evaluate(exceiver(), [adata], label="tissue", seeds=1, **QUIET)


def test_scores_of_classes_are_those_of_their_definition():
    p = np.eye(3)[[0, 0, 1, 2, 2, 1]] * 0.7 + 0.1
    found = class_token.score(p, np.array([0, 0, 1, 1, 2, -1]))
    assert found["cells"] == 5 and found["accuracy"] == 0.8 and found["majority"] == 0.4
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    with pytest.raises(ValueError, match="no cell has a label"):
        class_token.score(p, np.full(6, -1))


@pytest.mark.slow
def test_commands_write_all_or_nothing(tmp_path):
    study().write_h5ad(tmp_path / "x.h5ad")
    exceiver(("tissue",)).export(tmp_path / "w.safetensors")
    args = [f"--workdir={tmp_path}/w.safetensors", f"--input={tmp_path}/x.h5ad"]
    for command, names in (
        ("class_token", {"class_token.md", "class_token.json"}),
        ("transfer", {f"transfer.{kind}" for kind in ("md", "json", "csv", "png")}),
    ):
        out = tmp_path / command
        done = commands.run(command, *args, f"--output={tmp_path}/no/where", folder=tmp_path, timeout=600)
        assert done.code == 2 and "its folder is not there; make it first" in done.err
        more = ["--seeds=1", *(["--epochs=1", "--starts=pretrained,genes"] if command == "transfer" else [])]
        done = commands.run(command, *args, f"--output={out}", *more, folder=tmp_path, timeout=600)
        assert done.code == 0, done.err
        assert {p.name for p in out.iterdir()} == names
