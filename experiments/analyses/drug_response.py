"""Fill the table of predicted drug responses, one method, split and seed at a time, from files that all of them share.

OUT/plan.json, names.json     which measurements; what each run is called here
OUT/features/                 molecules, and gene vectors that cost a forward pass
OUT/predictions/<method>_<split>_<seed>.npz   what a method says of the test rows; what is whole is not made again

Seed s of a method learns from and is tested on fold s of a split, its parameters drawn by s: so do all methods.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import anndata
import jax
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline import bulk
from experiments.analyses import annotation, resumed
from experiments.analyses.drug_data import Data, Plan, rounds
from scfm_jax import api
from scfm_jax.api import gene_features
from scfm_jax.tasks import heads
from scfm_jax.tasks.drugs import baselines, deepcdr, scores, splits
from scfm_jax.tasks.genes import features
from scfm_jax.training import pace

TABLE = "drug and line means"
PREDICTED_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: its name, a function of a split and a seed that returns what it says of `split.test`."""

    name: str
    predict: Callable[[splits.Split, int], np.ndarray]
    note: str = ""


def methods(plan: Plan, data: Data, out: pathlib.Path, runs: Sequence[str], kinds: Sequence[str]) -> list[Method]:
    """Return the methods of the table: lookup tables, neighbours, ridge, then DeepCDR's head on vectors of lines."""
    listed = [
        Method(
            "drug mean", lambda s, _: baselines.group_mean(data.drug[s.learnt], data.y[s.learnt], data.drug[s.test])
        ),
        Method(TABLE, lambda s, _: table_of_means(data, s)),
        Method("nearest line", lambda s, _: baselines.nearest_line(*_codes(data, s), data.z)),
        Method(
            "ridge, fingerprints x expression",
            lambda s, _: baselines.ridge_on_fingerprints(*_codes(data, s), data.bits, data.z),
        ),
    ]
    if data.tissue is not None:
        listed.append(Method("drug and tissue means", lambda s, _: table_of_means(data, s, data.tissue)))
    listed.append(_head(plan, data, "DeepCDR, expression", lambda _: data.z))
    random = lambda seed: bulk.weighted(data.z, features.random(data.profiles.genes, seed).values)  # noqa: E731
    if plan.lines == "weighted":
        listed.append(_head(plan, data, "random vectors", random))
    for source in runs:
        run, name = api.load(source), annotation.name_of(out, source)
        for kind in kinds if plan.lines == "weighted" else ("auto",):
            of = functools.partial(_lines, plan, data, out, run, kind)
            label, made = name if kind == "auto" else f"{name}, {kind}", functools.cache(of)
            note = made(None)[1]
            listed.append(_head(plan, data, label, lambda _, made=made: made(None)[0], note))
            listed.append(_head(plan, data, f"{label}, random twin", lambda seed, of=of: of(seed)[0]))
            listed.append(
                _head(plan, data, f"{label}, permuted lines", lambda seed, made=made: permuted(made(None)[0], seed))
            )
    return listed


def table_of_means(data: Data, split: splits.Split, line: np.ndarray | None = None) -> np.ndarray:
    """Return what the additive table of drugs and lines, or of drugs and tissues, says of the test rows."""
    return baselines.additive(*_codes(data, split, line))


def _codes(data: Data, split: splits.Split, line: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
    """Return (drug, line, y) of what is learnt from, (drug, line) of what is tested on."""
    learnt, test, line = split.learnt, split.test, data.line if line is None else line
    return data.drug[learnt], line[learnt], data.y[learnt], data.drug[test], line[test]


def permuted(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return the vectors of other lines: which line it is may still be learnt, what it is like may not. [L, K]"""
    return vectors[np.random.default_rng(seed).permutation(len(vectors))]


def _lines(
    plan: Plan, data: Data, out: pathlib.Path, run: api.Run, kind: str, twin: int | None
) -> tuple[np.ndarray, str]:
    """Return a vector of each line by a run, or by its twin of a seed, and how many genes it knows. [L, K]"""
    run = run if twin is None else run.twin(twin)
    quiet = {"gene_table": plan.gene_table, "say": lambda _: None}
    genes = data.profiles.genes
    if plan.lines == "cells":
        counts = sparse.csr_matrix(bulk.pseudo_counts(data.profiles).astype(np.float32))
        cells = anndata.AnnData(counts, pd.DataFrame(index=data.profiles.lines), pd.DataFrame(index=genes))
        values = run.embed(cells, sample_key=None, min_mapped=None, **quiet)
        return values, f"knows {(run.mapping.index >= 0).sum()} of {len(genes)} genes"
    asked = dict(quiet, kind=kind, names=genes)
    if kind not in gene_features.kinds(run) and (kind != "auto" or not gene_features.kinds(run)):
        if plan.context is None:
            raise ValueError(
                f"{run.name} ({run.source}) has gene vectors of cells only: name a file of counts to average over "
                "(context=FILE)"
            )
        asked |= {"source": plan.context, "keep": out / "features", "min_mapped": None}
    made = run.gene_vectors(**asked)
    return bulk.weighted(data.z, made.standardised()), f"knows {made.found.sum()} of {len(genes)} genes"


def _head(plan: Plan, data: Data, name: str, lines: Callable[[int], np.ndarray], note: str = "") -> Method:
    """Return DeepCDR's network on vectors of lines, stopped by validation rows."""

    def predict(split: splits.Split, seed: int) -> np.ndarray:
        shared = jax.device_put({"lines": features.standardised(lines(seed)).astype(np.float32)})
        train = split.train
        if plan.most and len(train) > plan.most:
            train = np.sort(np.random.default_rng(seed).permutation(train)[: plan.most])
        examples = [
            deepcdr.examples(data.library, data.drug[rows], data.line[rows], data.y[rows])
            for rows in (train, split.validation, split.test)
        ]
        training = dataclasses.replace(deepcdr.TRAINING, epochs=plan.epochs)
        head = deepcdr.head(plan.preset)
        fitted = heads.fit(head, *examples[:2], shared, training, seed)
        return heads.predict(head.network, fitted.variables, examples[2], shared, PREDICTED_AT_ONCE)

    return Method(name, predict, note)


def fill(
    plan: Plan,
    data: Data,
    out: pathlib.Path,
    listed: Sequence[Method],
    kinds: Sequence[str],
    seeds: int,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Make every prediction that OUT lacks, and return the scores by split, method and seed."""
    (out / "predictions").mkdir(parents=True, exist_ok=True)
    parts = {kind: rounds(plan, data, kind) for kind in kinds}
    asked = [(kind, method, seed) for kind in kinds for seed in range(seeds) for method in listed]
    rows = []
    for kind, method, seed in pace.counted(asked, "predicted by split, seed and method", say):
        split = parts[kind][seed % plan.folds]
        predicted = _kept_or_made(out, method, kind, seed, split)
        additive = table_of_means(data, split)
        made = scores.response(predicted, data.y[split.test], data.drug[split.test], additive)
        rows.append({"split": kind, "method": method.name, "seed": seed, "rows": len(split.test)} | made)
    return rows


def _kept_or_made(out: pathlib.Path, method: Method, kind: str, seed: int, split: splits.Split) -> np.ndarray:
    """Return what a method says of a split's test rows, from its file if that is whole."""

    def make() -> dict[str, np.ndarray]:
        return {"rows": split.test, "predicted": method.predict(split, seed)}

    path = out / f"predictions/{resumed.slug(method.name)}_{kind}_{seed}.npz"
    return resumed.arrays(path, make, lambda kept: np.array_equal(kept["rows"], split.test))["predicted"]
