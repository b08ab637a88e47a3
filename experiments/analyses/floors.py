"""Floors of a file: imputation, denoising, explained variance and pre-training losses without a model; see the command.

Problems, masks, bins and scores are the project's own: `analyses.imputation.problems`, `tasks.imputation.denoising`,
and `prepare` and `loss` of the models.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from experiments.analyses import imputation as imputation_analysis
from experiments.analyses.cells import Cells
from experiments.analyses.pretraining_floors import Pool, pretraining
from experiments.analyses.pretraining_floors import scores as pretraining_scores
from experiments.pages import output
from scfm_jax.tasks.cells import transfer
from scfm_jax.tasks.imputation import baselines, denoising, imputation
from scfm_jax.training import pace

BAG = 50
KEEP, FLIPS = 0.5, 0.1
"""Of denoising, as the suite has it: cells of a bag, share of molecules kept, share of expressed genes flipped."""


def evaluate(
    source: str,
    *,
    reference: Sequence[str] = (),
    parts: Sequence[str],
    genes: str | None = None,
    number: int = 0,
    rates: Sequence[float] = (0.15, 0.8),
    seeds: int = 5,
    cells: int = 200,
    reference_cells: int = 1000,
    bag: int = 10,
    sample_key: str | None = "auto",
    layer: str | None = None,
    raw: bool | None = None,
    round: bool | None = None,
    gene_table: Sequence[str] = (),
    min_mapped: float = 0.01,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return {"rows": [{part, case, table, seed, metric: value}], ...}; see `experiments.floors` for the options.

    Raises:
      ValueError, OSError: an option or a file is wrong, in one line.
    """
    imputation.get("gene").check(rates)
    table = vocab.read_table(gene_table) if gene_table else None
    if same := [path for path in reference if pathlib.Path(path).resolve() == pathlib.Path(source).resolve()]:
        raise ValueError(f"reference={same[0]}: is the input itself")
    place = {"layer": layer, "raw": raw, "round": round}
    with h5ad.read_counts(source, **place) as counts:
        file_names = vocab.file_names(counts)
        names = vocab.read_genes(genes) if genes else vocab.union([file_names])
        table = table if genes else vocab.learn([file_names], table)
        if number:
            names = widely_expressed(reference, names, number, table, min_mapped, **place)
        file = Cells(counts, names, table, min_mapped)
        say(str(file.mapping.report))
        file.separate(sample_key)
        rows: list[dict[str, Any]] = []
        if "imputation" in parts:
            others = imputation_analysis.reference_cells(reference, names, table, min_mapped, reference_cells, **place)
            for seed in pace.counted(range(seeds), "imputed with seed", say):
                rows += impute(file, others, rates, seed, cells, bag)
        if "denoising" in parts:
            for seed in pace.counted(range(seeds), "denoised with seed", say):
                rows += denoise(file, seed, cells)
        file_pool = Pool.read([source], names, table, min_mapped, **place)
    if "transfer" in parts:
        for seed in pace.counted(range(seeds), "explained variance with seed", say):
            of_seed = pretraining_scores("exceiver", file_pool, *transfer.split(len(file_pool.study), seed), seed)
            rows += [{"part": "transfer", "case": file_pool.names[0], "seed": seed, **row} for row in of_seed]
    if "pretraining" in parts:
        pool = Pool.read(reference, names, table, min_mapped, **place) if reference else file_pool
        rows += [{"part": "pretraining", "case": ", ".join(pool.names), "seed": 0, **row} for row in pretraining(pool)]
    return {
        "input": pathlib.Path(source).name,
        "reference": [pathlib.Path(path).name for path in reference],
        "genes": len(names),
        "measured": int(file.measured.sum()),
        "cells": cells,
        "seeds": seeds,
        "rows": rows,
    }


def widely_expressed(
    paths: Sequence[str],
    genes: Sequence[str],
    number: int,
    table: vocab.GeneTable | None,
    min_mapped: float,
    **place: Any,
) -> list[str]:
    """Return `number` of the genes, in their order: of those that every file measured, most of all cells express."""
    pool = Pool.read(paths, genes, table, min_mapped, **place)
    cells = np.bincount(pool.counts.indices, minlength=len(genes))
    shared = np.flatnonzero(pool.measured.all(0))
    if len(shared) < number:
        raise ValueError(f"--number={number}: the reference files share only {len(shared)} genes of the list")
    return [genes[i] for i in np.sort(shared[np.argsort(-cells[shared], kind="stable")[:number]])]


def impute(
    file: Cells,
    others: tuple[np.ndarray, np.ndarray] | None,
    rates: Sequence[float],
    seed: int,
    cells: int,
    bag: int,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the tables on hidden genes, of one seed: learnt from the file, and from the reference."""
    posed = imputation_analysis.problems(file, others, "gene", rates, seed, cells, bag, "visible", {})
    for problem, truth, ruler, true_ruler, parts in posed:
        taught = {"": slice(0, len(truth))} | ({", of the reference": slice(len(truth), None)} if others else {})
        for words, rows in taught.items():
            predictions = {
                "gene mean": baselines.gene_mean(problem, rows),
                "most common bin": baselines.most_common_bin(problem, ruler, cells=rows),
                "gene mean, never 0": baselines.expressed_gene_mean(problem, ruler, rows),
                "common bin, never 0": baselines.most_common_bin(problem, ruler, least=1, cells=rows),
            }
            for name, prediction in predictions.items():
                scored = imputation.score(prediction, problem, truth, ruler, true_ruler, parts)
                for case, values in scored.items():
                    yield {
                        "part": "imputation",
                        "case": f"{case} hidden",
                        "table": name + words,
                        "seed": seed,
                        **values,
                    }


def denoise(file: Cells, seed: int, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the errors of leaving counts as they are and of baselines: over flipped entries alone, and over all."""
    rng = np.random.default_rng(seed)
    truth = file.take(np.concatenate(file.draw(BAG, cells, rng)))[:, file.measured]
    flipped, entries = denoising.flip(truth, FLIPS, rng)
    cases = {
        "flipped entries alone": (flipped, entries),
        "all entries after flips": (flipped, None),
        "all entries after thinning": (denoising.thin(truth, KEEP, rng), None),
    }
    for case, (spoiled, where) in cases.items():
        everything = np.ones(spoiled.shape, bool)
        rows = [np.arange(len(spoiled))]
        problem = imputation.Problem(spoiled, everything, everything, everything[0], rows, np.zeros(len(spoiled), int))
        apart = baselines.distances(problem)
        predictions = {
            "as it is": spoiled,
            "gene mean": baselines.gene_mean(problem),
            f"{baselines.NEIGHBOURS} neighbours": baselines.nearest_neighbours(problem, apart),
            "diffusion": baselines.diffusion(problem, apart),
        }
        alive = (spoiled.sum(1) > 0) & (truth.sum(1) > 0)
        for name, prediction in predictions.items():
            counts = np.reshape(prediction, spoiled.shape)[alive]
            values = denoising.score(counts, truth[alive], None if where is None else where[alive])
            shown = {metric: values[metric] for metric in ("rmse", "mae")}
            yield {"part": "denoising", "case": case, "table": name, "seed": seed, **shown}


def tables(scores: dict[str, Any]) -> str:
    """Return the scores as Markdown: mean and half the 95 % interval over seeds."""
    frame = pd.DataFrame(scores["rows"])
    text = [f"# Floors of {scores['input']}", _words(scores)]
    for (part, case), rows in frame.groupby(["part", "case"], sort=False):
        metrics = [name for name in rows.columns[4:] if rows[name].notna().any()]
        metrics = [name for name in frame.columns if name in metrics]
        lines = []
        for name, of_table in rows.groupby("table", sort=False):
            lines.append([name, *(_spread(of_table[metric].dropna()) for metric in metrics)])
        words = [imputation.METRICS.get(name, name) for name in metrics]
        text += [f"## {part}: {case}", output.markdown(["table", *words], lines)]
    return "\n\n".join(text)


def _words(scores: dict[str, Any]) -> str:
    words = f"{scores['measured']:,} of {scores['genes']:,} genes measured"
    words += f"; imputation and denoising of {scores['cells']} cells a seed, {scores['seeds']} seeds; mean ± half the "
    words += "95 % interval."
    return words + (f" Reference: {', '.join(scores['reference'])}." if scores["reference"] else "")


def _spread(values: Sequence[float]) -> str:
    if not len(values):
        return ""
    mean, half = imputation.interval(values)
    return f"{mean:.3f}" if np.isnan(half) else f"{mean:.3f} ± {half:.3f}"
