"""The loader in numbers: cells per second, cpu seconds, how mixed its batches are, and other readers of the same cells.

Two floors bound it, per core. Bytes: a cell of 1,200 expressed genes is 7 KB of ids and counts, 2 KB on disk, and
reading takes 4 to 6 ns of cpu an expressed gene (row "read only": runs of 256 cells, nothing else). Copies: the padded
arrays take 8 bytes times P a cell, 29 KB for P=3,584, all written once and a third of it twice (row "copy only"); in
memory fresh from the system that takes several times longer, so the reader uses the memory of past batches again.

Entropy (bits) is the mean over batches of the entropy of the labels in a batch, "random" that of as many single cells
drawn at random. Bags of one group cannot be more mixed than the few groups of a batch are; single cells can.
"""

import importlib.util
import itertools
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from data_pipeline.batches import obs
from data_pipeline.batches.loader import Loader
from data_pipeline.batches.reader import BUCKETS
from data_pipeline.files.h5ad import read_counts
from data_pipeline.genes.vocab import map_genes
from data_pipeline.store.store import write_study

CASES = {
    "bags of 256": {"bag": 256, "batch": 8},
    "bags of 50": {"bag": 50, "batch": 16},
    "single cells": {"bag": 1, "batch": 1024},
}
TYPE = "cell_type"


def rows(store, seconds: float) -> list[dict]:
    """Return the figures of every case of the loader, of the two floors, and of other readers as far as installed."""
    labels = {"study": np.repeat(np.arange(len(store.studies)), np.diff(store.offsets))}
    if any(TYPE in study.obs for study in obs.studies(store)):
        names = obs.class_names(store, [TYPE])[TYPE]
        labels[TYPE] = np.concatenate([obs.class_codes(study, TYPE, names) for study in obs.studies(store)])
    for path in store.path.rglob("*"):  # warm: the files are in the page cache
        if path.is_file():
            path.read_bytes()
    figures = []
    for case, options in CASES.items():
        with Loader(store, **options, labels=sorted(set(labels) - {"study"})).iter() as batches:
            figures.append(_row(f"scfm_jax, {case}", _rows_of(batches), seconds, labels))
    figures.append(_row("floor: read only", _read_only(store), seconds))
    figures.append(_row("floor: copy only", _copy_only(store), seconds))
    with tempfile.TemporaryDirectory() as scratch:
        path = _as_h5ad(store, pathlib.Path(scratch) / "cells.h5ad")
        figures.append(_row("AnnData backed, 64 random cells", _backed(path), seconds, labels))
        if all(map(importlib.util.find_spec, ("scdataset", "torch"))):
            figures.append(_row("scDataset, 64 cells, blocks of 16", _scdataset(path), seconds, labels))
    return figures


def make_store(path: pathlib.Path, files: list[str], copies: int, **place: Any) -> pathlib.Path:
    """Write a store of the union of the files' genes, one study a file, each cell `copies` times; return its path.

    `place` are options of `read_counts`.
    """
    studies = {}
    for file in files:
        with read_counts(file, **place) as counts:
            one = ad.AnnData(counts.rows(0, counts.n_cells), counts.obs, counts.var)
        studies[pathlib.Path(file).stem] = ad.concat([one] * copies, index_unique="-") if copies > 1 else one
    genes = sorted(set().union(*(study.var_names for study in studies.values())))
    for name, study in studies.items():
        with read_counts(study) as counts:
            write_study(path, name, counts, map_genes(counts.genes, genes), genes)
    return path


def _row(reader: str, batches: Iterable, seconds: float, labels: dict | None = None) -> dict:
    """Measure an iterator over (rows or number of cells, further figures) for some seconds, after a fifth of them."""
    drawn, cells, more = [], 0, []
    deadline = time.perf_counter() + seconds / 5
    for _ in batches:
        if time.perf_counter() > deadline:
            break
    start, cpu = time.perf_counter(), time.process_time()
    for batch, figures in batches:
        cells += batch if isinstance(batch, int) else len(batch)
        drawn.append(batch)
        more.append(figures)
        if time.perf_counter() > start + seconds:
            break
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    row = {"reader": reader, "cells/s": cells / wall, "cells/cpu s": cells / cpu, "cpu s": cpu, "cores": cpu / wall}
    row |= {key: float(np.mean([m[key] for m in more])) for key in more[0]}
    for name, codes in (labels or {}).items():
        rng = np.random.default_rng(0)
        random = [_entropy(codes[rng.integers(0, len(codes), len(batch))]) for batch in drawn]
        row[f"{name} entropy"] = float(np.mean([_entropy(codes[batch]) for batch in drawn]))
        row[f"{name} random"] = float(np.mean(random))
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def _entropy(labels: np.ndarray) -> float:
    """Return the entropy of the labels (from -1 on) in bits."""
    share = np.bincount(labels + 1) / len(labels)
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def _rows_of(batches: Iterator[dict]) -> Iterator[tuple[np.ndarray, dict]]:
    for batch in batches:
        mask = batch["cell_mask"]
        yield batch["index"][mask], {"P": batch["genes"].shape[-1], "filled": float(mask.mean())}


def _read_only(store, run: int = 256) -> Iterator[tuple[int, dict]]:
    """Read random runs, eight at a time, and leave them as they are."""
    rng = np.random.default_rng(0)
    studies = [study for study in obs.studies(store) if study.n_cells >= run]
    if not studies:
        raise ValueError(f"{store.path}: no study has {run} cells; bench with more --copies")
    while True:
        reads = []
        for study in rng.choice(studies, 8):
            start = int(rng.integers(0, study.n_cells - run + 1))
            reads.append(study.read(start, start + run))
        genes = sum(len(read.result()[0]) for read in reads)
        yield 8 * run, {"genes/cell": genes / (8 * run)}


def _copy_only(store, run: int = 256) -> Iterator[tuple[int, dict]]:
    """Lay one run into the same padded arrays over and over."""
    study = max(obs.studies(store), key=lambda study: study.n_cells)
    run = min(run, study.n_cells)
    ids, values = study.read(0, run).result()
    borders = study.indptr[: run + 1].tolist()
    longest = int(np.diff(study.indptr[: run + 1]).max())
    width = next((b for b in BUCKETS if b >= longest), longest)
    genes, counts = np.empty((run, width), np.int32), np.empty((run, width), np.float32)
    while True:
        genes.fill(len(store.genes))
        counts.fill(0)
        for i, (begin, end) in enumerate(itertools.pairwise(borders)):
            genes[i, : end - begin] = ids[begin:end]
            counts[i, : end - begin] = values[begin:end]
        yield run, {"P": width, "genes/cell": borders[-1] / run}


def _as_h5ad(store, path: pathlib.Path) -> pathlib.Path:
    """Write all cells of the store, in its order, as one uncompressed .h5ad with their row in obs."""
    parts = []
    for study in obs.studies(store):
        ids, values = study.read(0, study.n_cells).result()
        parts.append(sp.csr_matrix((values.astype(np.float32), ids, study.indptr), (study.n_cells, len(store.genes))))
    table = {"row": np.arange(int(store.offsets[-1]))}
    cells = ad.AnnData(sp.vstack(parts, format="csr"), obs=table)
    cells.write_h5ad(path)
    return path


def _backed(path: os.PathLike, batch: int = 64) -> Iterator[tuple[np.ndarray, dict]]:
    """Read random cells of a backed AnnData, as a plain data set of single cells does."""
    cells = ad.read_h5ad(path, backed="r")
    rng = np.random.default_rng(0)
    while True:
        some = np.sort(rng.choice(cells.n_obs, batch, replace=False))
        yield cells[some].to_memory().obs["row"].to_numpy(), {}


def _scdataset(path: os.PathLike) -> Iterator[tuple[np.ndarray, dict]]:
    """Read with scDataset in its block shuffling, 16 batches of 64 cells at a time."""
    from scdataset import BlockShuffling, scDataset

    cells = ad.read_h5ad(path, backed="r")
    options = {"batch_size": 64, "fetch_factor": 16, "fetch_transform": lambda fetched: fetched.to_memory(), "seed": 0}
    while True:
        for batch in scDataset(cells, BlockShuffling(block_size=16), **options):
            batch.X.sum()  # a view until it is used
            yield batch.obs["row"].to_numpy(), {}
