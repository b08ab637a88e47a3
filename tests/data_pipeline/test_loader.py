"""The loader promises: each cell once an epoch, exact counts, one order on any hosts, resume, disjoint parts."""

import contextlib
import dataclasses
import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from absl import flags

from data_pipeline.batches.loader import Loader, Options
from data_pipeline.batches.obs import Filter
from data_pipeline.batches.sampler import Eligible, Sampler
from data_pipeline.batches.split import PARTS
from data_pipeline.files import panels
from data_pipeline.files.h5ad import read_counts
from data_pipeline.genes.vocab import map_genes
from data_pipeline.store.store import open_store, write_study
from data_pipeline.store.study import Settings
from experiments.benches import scemb
from tests.harness import ROOT

GENES = [f"GENE{i}" for i in range(400)]
STUDIES = {"blood": {"1": 90, "2": 41}, "lung": {"1": 170, "2": 64, "3": 7}, "slide": {"left": 60, "right": 75}}


def study(name: str, seed: int) -> ad.AnnData:
    """Return counts of one of STUDIES: a wide range of expressed genes, some labels missing, places on the slide."""
    rng = np.random.default_rng(seed)
    batch = np.repeat(list(STUDIES[name]), list(STUDIES[name].values()))
    n = len(batch)
    counts = rng.poisson(rng.lognormal(-2.5, 1, (n, 1)), (n, len(GENES))) * rng.integers(1, 300, (n, 1))
    counts[0], counts[:, 0] = 1, 2
    obs = pd.DataFrame({"batch": batch, "depth": counts.sum(1), "percent.mt": rng.random(n) * 10})
    obs["tissue"] = {"blood": "blood", "lung": "lung", "slide": "breast"}[name]
    obs["cell_type"] = pd.Categorical(rng.choice(["B", "T", None], n, p=[0.3, 0.5, 0.2]))
    if name == "lung":
        obs["donor"] = [f"d{i % 5}" for i in range(n)]
    obs.index = [f"{name}{i}" for i in range(n)]
    obsm = {"spatial": rng.random((n, 2)) * 50} if name == "slide" else {}
    return ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=GENES), obsm=obsm)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three studies, one of them spatial, grouped by batch."""
    path = tmp_path_factory.mktemp("loader") / "store"
    for seed, name in enumerate(STUDIES):
        with read_counts(study(name, seed)) as counts:
            write_study(path, name, counts, map_genes(counts.genes, GENES), GENES, Settings(group_by="batch"))
    return open_store(path)


@pytest.fixture(scope="module")
def truth(store):
    """All cells of the store as AnnData reads them: what a row must be."""
    parts = [ad.read_zarr(store.path / "studies" / f"{name}.zarr") for name in store.studies]
    for name, part in zip(store.studies, parts, strict=True):
        part.obs["study"], part.obs["n_genes"] = name, np.diff(part.X.indptr)
    return ad.concat(parts, join="outer", label=None)


def group_of(store) -> np.ndarray:
    """Return a number for the group of every row of the store."""
    sizes = np.concatenate([np.diff(store.study(name).group_starts) for name in store.studies])
    return np.repeat(np.arange(len(sizes)), sizes)


def same(a: dict, b: dict) -> bool:
    """Whether two batches are equal in every array."""
    flat = [{k: v for k, v in {**x, **x["labels"]}.items() if k != "labels"} for x in (a, b)]
    return flat[0].keys() == flat[1].keys() and all(
        np.array_equal(flat[0][k], flat[1][k], flat[0][k].dtype.kind == "f") for k in flat[0]
    )


def first(loader: Loader, n: int, state=None) -> list[dict]:
    """Return the next n batches from a state on."""
    with loader.iter(state) as batches:
        return list(itertools.islice(batches, n))


def rows(batches) -> np.ndarray:
    """Return the rows of all cells of the batches, in order."""
    index = np.concatenate([b["index"].reshape(-1) for b in batches])
    return index[index >= 0]


# The order of cells ------------------------------------------------------------------------------------------------


def eligible(seed=0) -> Eligible:
    """Three studies of 5, 2 and 1 groups; two thirds of the cells may be drawn, of the last group none but one."""
    rng = np.random.default_rng(seed)
    starts = [np.array([0, 40, 41, 100, 180, 256]), np.array([0, 70, 90]), np.array([0, 33])]
    masks = [rng.random(s[-1]) < 0.66 for s in starts]
    masks[2][:], masks[2][7] = False, True
    return Eligible.of(masks, starts)


KINDS = [
    {"kind": "run", "bag": 16, "batch": 1},
    {"kind": "run", "bag": 1, "batch": 12, "run": 12, "mix": 1},
    {"kind": "run", "bag": 1000, "batch": 1},
    {"kind": "study", "bag": 24, "batch": 1, "run": 8},
]


def test_places_and_rows_are_inverse_and_keep_out_what_is_not_eligible():
    cells = eligible()
    n = int(cells.places[-1])
    drawn = cells.rows(np.arange(n))
    inside = cells.contains(np.arange(-1, 400))
    assert np.array_equal(drawn, np.flatnonzero(inside) - 1)
    assert np.all(np.diff(drawn) > 0) and n == len(drawn)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o['kind']}-{o['bag']}")
def test_every_cell_comes_exactly_once_in_every_epoch_in_another_order(options):
    cells = eligible()
    sampler = Sampler(cells, **options)
    everything = cells.rows(np.arange(cells.places[-1]))
    epochs = []
    for epoch in range(3):
        steps = range(epoch * sampler.epoch_records, (epoch + 1) * sampler.epoch_records)
        bags = np.concatenate([sampler.rows(step) for step in steps])
        epochs.append(bags[bags >= 0])
        assert np.array_equal(np.sort(epochs[-1]), everything)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(
        epochs[2], np.concatenate([Sampler(cells, **options, seed=1).rows(s).ravel() for s in steps])
    )


def test_runs_that_are_dealt_over_batches_bring_the_same_cells_from_more_runs():
    cells = eligible()
    dealt, plain = (Sampler(cells, kind="run", bag=1, batch=24, run=12, mix=mix) for mix in (3, 1))
    for window in range(dealt.epoch_records):
        ours, theirs = (np.concatenate([s.rows(3 * window + i) for i in range(3)]) for s in (dealt, plain))
        assert np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None))
    line = Eligible.of([np.ones(480, bool)], [np.array([0, 480])])
    for mix, runs in ((3, 6), (1, 2)):
        drawn = Sampler(line, kind="run", bag=1, batch=24, run=12, mix=mix).rows(1)[:, 0]
        assert len(set((drawn - np.arange(24)).tolist())) == runs


def test_borders_of_runs_differ_between_epochs():
    cells = Eligible.of([np.ones(64, bool)], [np.array([0, 64])])
    sampler = Sampler(cells, kind="run", bag=8, batch=8)
    bags = [{frozenset(bag) for bag in sampler.rows(epoch).tolist()} for epoch in range(4)]
    assert len(set.union(*bags)) > 8


@pytest.mark.parametrize("options", KINDS, ids=lambda o: f"{o['kind']}-{o['bag']}")
def test_a_larger_batch_is_smaller_ones_put_together(options):
    batch = options["batch"]
    one, three = (Sampler(eligible(), **options | {"batch": batch * k, "run": options.get("run")}) for k in (1, 3))
    for step in range(40):
        assert np.array_equal(np.concatenate([one.rows(3 * step + i) for i in range(3)]), three.rows(step))


def test_runs_stay_in_their_group_and_study_bags_in_their_study_over_several_groups(store):
    group = group_of(store)
    study_of = np.repeat(np.arange(3), np.diff(store.offsets))
    for batch in first(Loader(store, batch=4, bag=16), 60):
        for bag in batch["index"]:
            assert len(set(group[bag[bag >= 0]])) == 1
    mixed = 0
    for batch in first(Loader(store, batch=4, bag=16, kind="study", run=4), 60):
        for bag, mask in zip(batch["index"], batch["cell_mask"], strict=True):
            assert len(set(study_of[bag[mask]])) == 1
            assert not np.any(np.diff(mask.astype(int)) > 0), "the cells of a bag come first"
            mixed += len(set(group[bag[mask]])) > 1
    assert mixed > 200


def test_batches_have_the_mixture_of_a_random_sample():
    """Mean entropy of study and type per batch within 1 % of sampling single cells, though a batch is few runs."""
    rng = np.random.default_rng(0)
    sizes, run, batch = (9000, 5000, 2500, 1200), 32, 1024
    starts = [np.linspace(0, n, 5).astype(int) for n in sizes]
    cells = Eligible.of([np.ones(n, bool) for n in sizes], starts)
    study_of = np.repeat(np.arange(4), sizes)
    group = np.concatenate([np.repeat(np.arange(4), np.diff(s)) for s in starts])
    kind = (rng.random(len(group)) * (3 + group)).astype(int)  # groups differ in their types
    sampler = Sampler(cells, kind="run", bag=1, batch=batch, run=run)

    def entropy(labels):
        share = np.bincount(labels) / len(labels)
        return -np.sum(share[share > 0] * np.log2(share[share > 0]))

    for labels in (study_of, kind):
        ours = np.mean([entropy(labels[b[b >= 0]]) for b in map(sampler.rows, range(2 * sampler.epoch_steps))])
        random = np.mean([entropy(labels[rng.integers(0, len(labels), batch)]) for _ in range(200)])
        assert abs(ours / random - 1) < 0.01


def by_length(lengths: np.ndarray, **options) -> Sampler:
    """Return a sampler of bags of one cell dealt by length, 24 a batch."""
    return Sampler(
        eligible(), **{"kind": "run", "bag": 1, "batch": 24, "run": 12} | options, lengths=lengths.__getitem__
    )


def test_dealt_by_length_no_cell_comes_again_before_all_have_come():
    cells, lengths = eligible(), np.random.default_rng(1).integers(1, 1000, 379)
    everything = cells.rows(np.arange(cells.places[-1]))
    for mix in (1, 5, 1000):
        sampler, drawn = by_length(lengths, mix=mix), np.zeros(379, int)
        assert sampler.epoch_records % 2, "an epoch ends inside a batch"
        for step in range(5 * sampler.epoch_steps):
            done = step * 2 // sampler.epoch_records
            assert (drawn[everything] >= done).all() and (drawn <= done + 1).all()
            batch = sampler.rows(step)
            np.add.at(drawn, batch[batch >= 0], 1)
        assert drawn.sum() == drawn[everything].sum()


def test_dealt_by_length_a_window_has_the_cells_that_it_has_otherwise():
    lengths = np.random.default_rng(1).integers(1, 1000, 379)
    plain = Sampler(eligible(), kind="run", bag=1, batch=24, run=12, mix=1)
    orders = [by_length(lengths, mix=4, seed=0), by_length(lengths[::-1], mix=4), by_length(lengths, mix=4, seed=1)]
    ours, other, third = ([order.rows(step) for step in range(12)] for order in orders)
    for w in range(3):
        window = np.concatenate([plain.rows(step) for step in range(4 * w, 4 * w + 4)])
        assert np.array_equal(np.sort(window, axis=None), np.sort(ours[4 * w : 4 * w + 4], axis=None))
        assert np.array_equal(np.sort(window, axis=None), np.sort(other[4 * w : 4 * w + 4], axis=None))
    assert not np.array_equal(ours, other) and not np.array_equal(ours, third)
    spans = np.array([np.ptp(lengths[batch[batch >= 0]]) for batch in ours])
    whole = np.array([np.ptp(lengths[batch[batch >= 0]]) for batch in map(plain.rows, range(12))])
    assert spans.mean() < 0.5 * whole.mean()
    firsts = [int(lengths[np.abs(batch)].mean()) for batch in ours]
    assert firsts != sorted(firsts), "batches are not in order of length"


def test_dealt_by_length_padding_is_spread_and_a_pass_has_every_cell_once():
    sampler = by_length(np.random.default_rng(1).integers(1, 1000, 379), mix=1000)
    batches = [sampler.pass_rows(step) for step in range(sampler.epoch_steps)]
    drawn = np.concatenate(batches)
    cells = eligible()
    assert np.array_equal(np.sort(drawn[drawn >= 0]), cells.rows(np.arange(cells.places[-1])))
    assert (drawn < 0).sum() > 24 > 2 * max((batch < 0).sum() for batch in batches)


def test_by_length_little_is_padding_in_few_shapes(store, truth):
    buckets = tuple(sorted({round(8 * 1.15**i) for i in range(28)}))
    shares, shapes = [], []
    for options in ({}, {"by_length": True}):
        loader = Loader(store, batch=8, bag=1, buckets=buckets, **options)
        batches = list(loader.epoch_batches())
        assert np.array_equal(np.sort(rows(batches)), np.arange(507))
        shares.append(sum((b["counts"] > 0).sum() for b in batches) / sum(b["counts"].size for b in batches))
        shapes.append({b["genes"].shape for b in batches})
    assert shares[1] > 0.8 > 0.6 > shares[0]
    assert len(shapes[1]) <= len(buckets) + 1


def test_mixture_gives_each_study_its_share_of_every_epoch(store):
    weights = {"blood": 1, "lung": 0, "slide": 3}
    loader = Loader(store, batch=5, bag=1, run=5, mixture=weights)
    for epoch in range(3):
        batches = first(loader, loader.epoch_steps, {"step": epoch * loader.epoch_steps})
        runs = np.bincount([b["study"][0, 0] for b in batches], minlength=3)
        assert abs(runs[0] - runs.sum() / 4) <= 1 and runs[1] == 0
    drawn = rows(first(loader, 4 * loader.epoch_steps))
    times = np.bincount(drawn, minlength=store.offsets[-1])
    assert np.ptp(times[store.offsets[2] :]) <= 1, "a study that comes more often goes through its cells in turn"


# What a batch holds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"bag": 16, "batch": 6},
        {"bag": 1, "batch": 32},
        {"bag": 32, "batch": 2, "kind": "study", "run": 8},
        {"bag": 9, "batch": 5, "kind": "neighbours", "filter": "study == 'slide'"},
        {"bag": 300, "batch": 2, "filter": "n_genes > 40 and depth > 100", "cell_buckets": (64, 128)},
    ],
    ids=lambda o: o.get("kind", "run") + str(o["bag"]),
)
def test_batches_hold_exactly_the_counts_labels_and_places_of_their_cells(store, truth, options):
    loader = Loader(store, **options, labels=("batch", "cell_type"), buckets=(16, 64))
    for batch in first(loader, 25):
        mask, index = batch["cell_mask"], batch["index"]
        genes, counts = batch["genes"], batch["counts"]
        assert genes.dtype == np.int32 and counts.dtype == np.float32 and index.dtype == np.int64
        assert genes.shape == counts.shape == (*mask.shape, genes.shape[-1])
        assert np.array_equal(mask, index >= 0) and np.all((genes == len(GENES)) == (counts == 0))
        assert np.all(counts[~mask] == 0) and np.all(batch["study"][~mask] == 0)
        dense = np.zeros((mask.size, len(GENES) + 1), np.float32)
        np.add.at(dense, (np.arange(mask.size)[:, None], genes.reshape(mask.size, -1)), counts.reshape(mask.size, -1))
        cells = truth[index[mask]]
        assert np.array_equal(dense[mask.reshape(-1), :-1], cells.X.toarray())
        assert [loader.classes["study"][s] for s in batch["study"][mask]] == list(cells.obs["study"])
        kinds = [*loader.classes["cell_type"], None]
        assert [kinds[i] for i in batch["labels"]["cell_type"][mask]] == cells.obs["cell_type"].astype(object).where(
            cells.obs["cell_type"].notna(), None
        ).tolist()
        named = [loader.classes["batch"][i] for i in batch["labels"]["batch"][mask]]
        assert named == list(cells.obs["study"].astype(str) + "/" + cells.obs["batch"].astype(str))
        assert np.all(batch["labels"]["cell_type"][~mask] == -1) and np.all(np.isnan(batch["coords"][~mask]))
        slide = cells.obs["study"].to_numpy() == "slide"
        places = np.concatenate([np.full((store.offsets[2], 2), np.nan), store.study("slide").coords])[index[mask]]
        assert np.array_equal(batch["coords"][mask], places, equal_nan=True) and np.all(np.isfinite(places[slide]))


def test_the_width_is_the_smallest_bucket_and_no_gene_is_ever_dropped(store, truth):
    lengths = np.diff(truth.X.indptr)
    assert lengths.max() == len(GENES), "one cell expresses every gene"
    widths = set()
    for batch in first(Loader(store, batch=2, bag=8, buckets=(32, 64, 128)), 200):
        longest = lengths[batch["index"][batch["cell_mask"]]].max()
        width = batch["genes"].shape[-1]
        assert width == min(b for b in (32, 64, 128, 512) if b >= longest)
        assert (batch["genes"] < len(GENES)).sum() == lengths[batch["index"][batch["cell_mask"]]].sum()
        widths.add(width)
    assert {64, 512} <= widths


def test_small_bags_are_cut_to_a_cell_bucket(store):
    sizes = {b["cell_mask"].shape[1] for b in Loader(store, batch=1, bag=100, cell_buckets=(16, 64)).epoch_batches()}
    assert sizes == {16, 64, 100}


def test_neighbour_bags_are_the_nearest_eligible_cells_of_the_group(store):
    split = {"by": "cell", "test": 0.3}
    loader = Loader(store, batch=15, bag=6, kind="neighbours", filter="study == 'slide'", split=split)
    allowed = set(rows(loader.epoch_batches()))
    slide, start = store.study("slide"), store.offsets[2]
    group = group_of(store)
    centres = []
    for batch in first(loader, loader.epoch_steps):
        for bag in batch["index"]:
            near = np.array([r for r in allowed if group[r] == group[bag[0]]])
            far = np.linalg.norm(slide.coords[near - start] - slide.coords[bag[0] - start], axis=1)
            assert list(bag) == list(near[np.argsort(far)][:6])
            centres.append(bag[0])
    assert set(centres) == allowed


def test_batches_that_are_kept_are_not_written_over(store):
    loader = Loader(store, batch=4, bag=16)
    kept = first(loader, 30)
    assert all(same(batch, Loader(store, batch=4, bag=16).batch(step)) for step, batch in enumerate(kept))


def test_memory_of_batches_that_are_gone_is_used_again(store):
    loader = Loader(store, batch=4, bag=16, buckets=())
    places = {loader.batch(step)["genes"].__array_interface__["data"][0] for step in range(30)}
    assert len(places) <= 2


def test_a_flipped_bit_is_an_error_that_says_where_and_not_a_count(store, tmp_path):
    path = shutil.copytree(store.path, tmp_path / "store")
    shard = max((path / "studies" / "lung.zarr" / "X" / "data").rglob("c/*"), key=lambda f: f.stat().st_size)
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 3] ^= 4
    shard.write_bytes(raw)
    loader = Loader(open_store(path), batch=4, bag=16)
    with pytest.raises(OSError, match=r"study 'lung' .*damaged"):
        first(loader, loader.epoch_steps)


# One order for any number of hosts, threads and restarts -------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"bag": 16}, {"bag": 1, "run": 16}, {"bag": 1, "by_length": True}, {"bag": 16, "kind": "study", "run": 8}],
    ids=str,
)
def test_the_shares_of_hosts_are_the_global_batch(store, options):
    whole = first(Loader(store, batch=16, **options, labels=("batch",)), 12)
    for n in (2, 4):
        shares = [first(Loader(store, batch=16, **options, labels=("batch",), host=h, n_hosts=n), 12) for h in range(n)]
        for batch, parts in zip(whole, zip(*shares, strict=True), strict=True):
            assert {p["genes"].shape for p in parts} == {(16 // n, *batch["genes"].shape[1:])}
            joined = {k: np.concatenate([p[k] for p in parts]) for k in batch if k != "labels"}
            joined["labels"] = {"batch": np.concatenate([p["labels"]["batch"] for p in parts])}
            assert same(batch, joined)


def test_threads_and_read_ahead_change_nothing(store):
    batches = [first(Loader(store, batch=8, bag=16, threads=t, prefetch=p), 40) for t, p in ((0, 1), (1, 1), (4, 9))]
    assert all(same(a, b) for other in batches[1:] for a, b in zip(batches[0], other, strict=True))


@pytest.mark.slow
def test_worker_processes_change_nothing_and_resume(store):
    alone, helped = (
        Loader(store, batch=8, bag=16, labels=("batch",)),
        Loader(store, batch=8, bag=16, labels=("batch",), workers=2),
    )
    expected, parsed = first(alone, 9), flags.FLAGS.is_parsed()
    assert all(same(a, b) for a, b in zip(expected, first(helped, 9), strict=True))
    assert all(same(a, b) for a, b in zip(expected[5:], first(helped, 4, {"step": 5}), strict=True))
    assert flags.FLAGS.is_parsed() == parsed  # flags are a command's business


def test_options_are_kept_and_cannot_be_changed(store):
    loader = Loader(store, batch=8, bag=16)
    assert loader.options == Options(batch=8, bag=16)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loader.options.batch = 4
    again = pickle.loads(pickle.dumps(loader))
    assert again.options == loader.options and same(again.batch(3), loader.batch(3))


def test_genes_that_a_model_does_not_have_take_no_room(store):
    keep = np.arange(len(GENES)) % 7 == 3
    options = {"batch": 4, "bag": 8, "part": "all", "buckets": (16, 32, 64, 128, 256)}
    whole, few = (Loader(store, **options, **more) for more in ({}, {"keep": keep}))
    shares = [Loader(store, **options, keep=keep, host=h, n_hosts=2) for h in (0, 1)]
    for step in range(few.epoch_steps):
        all_genes, some, halves = whole.batch(step), few.batch(step), [share.batch(step) for share in shares]
        wanted = np.pad(keep, (0, 1))[all_genes["genes"]]
        longest = wanted.sum(-1).max()
        assert longest <= some["genes"].shape[-1] <= max(2 * longest, 16), "P is that of the genes that are kept"
        for name in ("genes", "counts"):
            np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), some[name])
            kept = some[name][some["genes"] < len(GENES)]
            np.testing.assert_array_equal(kept, all_genes[name][wanted], err_msg="in the same order of cells and genes")
    sorted_by = Loader(store, batch=8, bag=1, part="all", by_length=True, mix=100, keep=keep)
    batches = [sorted_by.batch(i) for i in range(sorted_by.epoch_steps - 1)]
    numbers = [(batch["genes"] < len(GENES)).sum(-1)[batch["cell_mask"]] for batch in batches]
    assert np.mean([np.ptp(n) for n in numbers]) < np.ptp(np.concatenate(numbers)) / 5


def test_by_length_threads_hosts_and_restarts_change_nothing(store):
    options = {"batch": 12, "bag": 1, "by_length": True, "mix": 7}
    expected = first(Loader(store, **options, threads=0, prefetch=1), 100)
    assert all(
        same(a, b) for a, b in zip(expected, first(Loader(store, **options, threads=4, prefetch=9), 100), strict=True)
    )
    for step in (1, 6, 43, 99):
        with Loader(store, **options).iter() as batches:
            list(itertools.islice(batches, step))
            state = json.loads(json.dumps(batches.get_state()))
        again = first(Loader(store, **options), 100 - step, state)
        assert all(same(a, b) for a, b in zip(expected[step:], again, strict=True))
    with pytest.raises(ValueError, match="resume with the same"):
        Loader(store, **options | {"by_length": False, "mix": 1}).iter(state)


@pytest.mark.parametrize("mixture", [None, {"blood": 2, "lung": 1, "slide": 0}], ids=["plain", "mixture"])
def test_resume_from_a_saved_state_equals_going_on(store, mixture):
    loader = Loader(store, batch=3, bag=16, mixture=mixture)
    expected = first(loader, 3 * loader.epoch_steps)
    for step in (0, 1, loader.epoch_steps - 1, loader.epoch_steps, 2 * loader.epoch_steps + 1):
        with loader.iter() as batches:
            list(itertools.islice(batches, step))
            state = json.loads(json.dumps(batches.get_state()))
        again = first(Loader(store, batch=3, bag=16, mixture=mixture), len(expected) - step, state)
        assert all(same(a, b) for a, b in zip(expected[step:], again, strict=True))


def test_a_state_of_another_order_is_refused_unless_only_the_step_is_given(store):
    with Loader(store, batch=3, bag=16).iter() as batches:
        state = batches.get_state()
    other = Loader(store, batch=3, bag=16, seed=1)
    with pytest.raises(ValueError, match="resume with the same"):
        other.iter(state)
    assert other.iter({"step": 7}).get_state()["step"] == 7


def test_an_interrupted_or_closed_iterator_goes_on_with_the_batch_it_owes(store):
    loader = Loader(store, batch=3, bag=16)
    expected = first(loader, 6)
    with loader.iter() as batches:
        got = [next(batches)]
        with contextlib.suppress(TimeoutError):
            batches._batches = _Interrupted(batches._batches)
            next(batches)
        assert batches.get_state()["step"] == 1
        got += itertools.islice(batches, 2)
        batches.close()
        got += itertools.islice(batches, 3)
    assert all(same(a, b) for a, b in zip(expected, got, strict=True))


class _Interrupted:
    """An iterator whose next element is read, then lost to an exception, as a signal handler may raise it."""

    def __init__(self, batches):
        self.batches, self.close = batches, batches.close

    def __next__(self):
        next(self.batches)
        raise TimeoutError


SCRIPT = """
import signal, sys
from data_pipeline.batches.loader import Loader
from data_pipeline.store.store import open_store
batches = Loader(open_store(sys.argv[1]), batch=4, bag=16, threads=4).iter()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("ready", flush=True)
for step, batch in enumerate(batches):
    if step == int(sys.argv[2]): break
"""


@pytest.mark.parametrize("steps", [3, -1], ids=["left open at exit", "SIGTERM"])
def test_no_thread_keeps_a_process_alive(store, steps):
    command = [sys.executable, "-c", SCRIPT, str(store.path), str(steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        if steps < 0:
            process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == (7 if steps < 0 else 0)


# Parts and filters ---------------------------------------------------------------------------------------------------


SPLITS = [
    {"by": "study", "val": ["blood"], "test": "slide"},
    {"by": "study", "test": 0.3, "seed": 3},
    {"by": "donor", "val": ["d1"], "test": ["lung/d3", "slide/?"]},
    {"by": "donor", "val": 0.2, "test": 0.2},
    {"by": "batch", "val": ["lung/2"], "test": 0.2},
    {"by": "cell", "val": 0.1, "test": 0.25, "seed": 5},
    {"by": "cell_type", "test": ["B"]},
]


@pytest.mark.parametrize("split", SPLITS, ids=lambda s: f"{s['by']}-{s.get('val')}-{s.get('test')}")
def test_parts_are_disjoint_cover_the_store_and_are_recorded(store, truth, split):
    loaders = {
        part: Loader(store, batch=7, bag=1, run=7, split=split, part=part)
        for part in PARTS
        if part == "train" or split.get(part)
    }
    found = {part: rows(loader.epoch_batches()) for part, loader in loaders.items()}
    assert sorted(np.concatenate(list(found.values()))) == list(range(truth.n_obs))
    report = json.loads(json.dumps(loaders["train"].split_report))
    assert report["split"]["by"] == split["by"] and all(r.split_report == report for r in loaders.values())
    for part, drawn in found.items():
        assert report["parts"][part]["cells"] == len(drawn) == loaders[part].n_cells
        counted = truth.obs["study"].iloc[drawn].value_counts()
        assert report["parts"][part]["studies"] == counted.to_dict()
    if split["by"] != "cell":
        seen = [set(report["parts"][part]["values"]) for part in PARTS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_a_split_by_cell_takes_its_share_of_every_group(store):
    split = {"by": "cell", "val": 0.1, "test": 0.25}
    group = group_of(store)
    for part, share in (("val", 0.1), ("test", 0.25)):
        drawn = np.bincount(
            group[rows(Loader(store, batch=1, bag=4, split=split, part=part).epoch_batches())], minlength=7
        )
        assert np.all(np.abs(drawn - share * np.bincount(group)) <= 2)


def test_a_named_split_holds_out_what_it_names(store, truth):
    loader = Loader(store, batch=1, bag=4, split=SPLITS[2], part="test")
    cells = truth.obs.iloc[rows(loader.epoch_batches())]
    assert set(cells["study"]) == {"lung", "slide"} and set(cells["donor"].dropna()) == {"d3"}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("tissue == 'lung'", lambda o: o["tissue"] == "lung"),
        ("tissue != 'lung' and n_genes > 40", lambda o: (o["tissue"] != "lung") & (o["n_genes"] > 40)),
        ('30 < n_genes <= 60 or study == "slide"', lambda o: o["n_genes"].between(31, 60) | (o["study"] == "slide")),
        (
            "percent.mt < 5 and not batch in ['1', 'left']",
            lambda o: (o["percent.mt"] < 5) & ~o["batch"].isin(["1", "left"]),
        ),
        ("cell_type not in ('B',)", lambda o: o["cell_type"] != "B"),
        ("cell_type != 'B'", lambda o: o["cell_type"].astype(object) != "B"),
        ("donor == 'd1'", lambda o: o["donor"] == "d1"),
        ("not (cell_type == 'B' or 1000 > depth)", lambda o: ~((o["cell_type"] == "B") | (o["depth"] < 1000))),
        ("group == 'right'", lambda o: o["batch"] == "right"),
        ("not " * 51 + "batch == 'right'", lambda o: o["batch"] != "right"),
    ],
)
def test_a_filter_keeps_what_pandas_would(store, truth, expression, expected):
    kept = np.concatenate([Filter(expression)(store.study(name)) for name in store.studies])
    assert np.array_equal(kept, expected(truth.obs).to_numpy(bool))
    assert sorted(rows(Loader(store, batch=2, bag=8, filter=expression).epoch_batches())) == list(np.flatnonzero(kept))


MISTAKES = [
    ({"bag": 0}, "bag=0"),
    ({"batch": -2}, "batch=-2"),
    ({"batch": 2.5}, "batch=2.5"),
    ({"run": 3}, "run=3: a bag of 8 cells"),
    ({"bag": 1, "run": 3}, "run=3: must divide batch=4"),
    ({"kind": "study", "run": 5}, "run=5: must divide bag=8"),
    ({"kind": "cloud"}, "kind 'cloud'.*run, study, neighbours"),
    ({"kind": "neighbours"}, "study 'blood' has no positions"),
    ({"kind": "neighbours", "bag": 60, "filter": "study == 'slide'"}, "bag=60: the store keeps 50"),
    ({"n_hosts": 3}, "batch=4, host 0 of 3"),
    ({"host": 2, "n_hosts": 2}, "host 2 of 2"),
    ({"labels": ["color"]}, "no obs column 'color'.*cell_type"),
    ({"split": {"by": "study", "test": ["brain"]}}, "study 'brain', which is not in the store; there are blood, lung"),
    ({"split": {"by": "study", "test": ["lung"], "val": ["lung"]}}, "both in val and in test"),
    ({"split": {"by": "color", "test": 0.1}}, "no obs column 'color'"),
    ({"split": {"by": "cell", "test": ["lung"]}}, "by cell it is a fraction"),
    ({"split": {"by": "cell", "test": 1.5}}, "1.5 is not a fraction"),
    ({"split": {"by": "cell", "test": 0.5, "val": 0.5}}, "leave nothing to train on"),
    ({"split": {"by": "cell", "tset": 0.5}}, "unknown key 'tset'"),
    ({"split": {"test": 0.5}}, "'by' is missing"),
    ({"part": "dev"}, "part 'dev'"),
    ({"part": "val"}, "part 'val' has no cell"),
    ({"filter": "color == 'red'"}, "no obs column 'color'.*tissue"),
    ({"filter": "tissue == 'moon'"}, "keeps none of the 507 cells"),
    ({"filter": "tissue = 'lung'"}, "cannot be read"),
    ({"filter": "tissue"}, "is not a comparison"),
    ({"filter": "__import__('os').getcwd() == '/'"}, "is not a column"),
    ({"filter": "'a' in 'abc'"}, "is not a column"),
    ({"filter": "tissue == lung"}, "'lung' is not a value; text is written in quotes"),
    ({"filter": "batch == 1"}, "column 'batch' of study 'blood' holds text"),
    ({"filter": "depth > '5'"}, "column 'depth' of study 'blood' holds numbers"),
    ({"filter": "tissue in 'lung'"}, "does not fit"),
    ({"filter": "n_genes > None"}, "'None' is not a text or a number"),
    ({"filter": "n_genes > b'x'"}, "not a text or a number"),
    ({"filter": "n_genes == {[]}"}, "is not a value"),
    ({"filter": "n_genes == {1}"}, "not a text or a number"),
    ({"filter": "n_genes < 1j"}, "not a text or a number"),
    ({"filter": "n_genes in [1, None]"}, "not a text or a number"),
    ({"filter": f"n_genes < {10**400}"}, "not a text or a number"),
    ({"filter": "not " * 200_000 + "n_genes > 1"}, "cannot be read|nested too deeply"),
    ({"filter": "(" * 5_000 + "n_genes > 1" + ")" * 5_000}, "cannot be read|nested too deeply"),
    ({"filter": "n_genes > 1\0"}, "cannot be read"),
    ({"mixture": {"blood": 1, "lung": 1}}, "no weight for slide"),
    ({"mixture": {"blood": 1, "lung": 1, "slide": 1, "moon": 1}}, "no study 'moon'"),
    ({"mixture": {"blood": 0, "lung": 0, "slide": 0}}, "all weights are 0"),
    ({"mixture": {"blood": -1, "lung": 0, "slide": 0}}, "blood=-1"),
    ({"mixture": {"blood": 1, "lung": 1}, "filter": "study == 'lung'"}, "it has no cell in this part"),
    ({"buckets": (0, 512)}, "0 is not a positive"),
    ({"threads": -1}, "threads=-1"),
    ({"by_length": True}, "by_length: only bags of one cell"),
    ({"by_length": True, "bag": 1, "mix": 0}, "mix=0"),
]


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=[m[:30] for _, m in MISTAKES])
def test_a_mistake_in_the_options_is_one_line_that_names_it(store, options, message):
    with pytest.raises(ValueError, match=message) as error:
        Loader(store, **{"batch": 4, "bag": 8} | options)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_bench_of_lengths_counts_the_padding_of_a_pass(store, truth):
    padded, by_length = scemb.length_rows(store, seconds=0.01, batch=8, small=True)
    assert padded["padding"] == pytest.approx(1 - truth.obs["n_genes"].mean() / 2048)
    assert 0 < by_length["padding"] < padded["padding"]
    assert by_length["times_padded"] == pytest.approx(padded["s"] / by_length["s"])


@pytest.mark.slow
def test_the_bench_prints_a_table_and_the_same_as_json(tmp_path):
    study("lung", 0).write_h5ad(tmp_path / "lung.h5ad")
    command = [
        sys.executable,
        "-m",
        "experiments.bench",
        "loader",
        f"--input={tmp_path / 'lung.h5ad'}",
        "--seconds=0.2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    *text, line = done.stdout.splitlines()
    measured = json.loads(line)["rows"]
    assert len(text) == 1 + len(measured) and all(row["cells/s"] > 0 for row in measured)
    bad = subprocess.run([*command[:3], "brew"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert bad.returncode == 2
    assert bad.stderr == "error: bench brew: say what to measure: loader, step, infer, lengths\n"


def test_a_cell_says_what_its_batch_measured_and_lies_at_one_place_of_its_field(store, tmp_path):
    assert len(panels.table([store.study(name) for name in store.studies])) == 3, "a store without such columns"
    with_flags = study("blood", 0)
    with_flags.var["measured_2"] = np.arange(len(GENES)) % 4 > 0
    for name, adata in {"blood": with_flags, "slide": study("slide", 2)}.items():
        with read_counts(adata) as counts:
            write_study(tmp_path, name, counts, map_genes(counts.genes, GENES), GENES, Settings(group_by="batch"))
    flagged = open_store(tmp_path)
    table = panels.table([flagged.study(name) for name in flagged.studies])
    assert table.sum(1).tolist() == [400, 400, 300] and not table[2, ::4].any()
    two = np.concatenate([flagged.study(name).obs["batch"] == "2" for name in flagged.studies])
    slide = flagged.study("slide")
    side = (slide.obs["batch"] == "right").to_numpy()
    low, high = (np.stack([f(slide.coords[side == s], 0) for s in (False, True)])[side * 1] for f in (np.min, np.max))
    places = np.full((len(two), 2), np.nan)
    places[flagged.offsets[1] :] = (slide.coords - low) / (high - low)
    for opened in (flagged, store):
        for batch in first(Loader(opened, batch=4, bag=16), 20):
            mask, index = batch["cell_mask"], batch["index"][batch["cell_mask"]]
            if opened is store:
                np.testing.assert_array_equal(batch["panel"], batch["study"])
                continue
            np.testing.assert_array_equal(batch["panel"][mask], np.where(two[index], 2, batch["study"][mask]))
            np.testing.assert_allclose(batch["field_coords"][mask], places[index], atol=1e-6)
