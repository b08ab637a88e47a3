"""Score a model's imputations of a file beside its random twin and the baselines of `scfm_jax.tasks.imputation`."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from experiments.analyses.cells import Cells
from scfm_jax import api
from scfm_jax.tasks.imputation import baselines, bins, imputation, tables
from scfm_jax.tasks.imputation.imputer import Imputer
from scfm_jax.training import pace


def evaluate(
    run: api.Run,
    source: str,
    task: str,
    *,
    rates: Sequence[float],
    seeds: int = 5,
    cells: int = 500,
    bag: int | None = None,
    rulers: Sequence[str] = ("visible",),
    bin_value: str = "median",
    reference: Sequence[str] = (),
    layer: str | None = None,
    raw: bool | None = None,
    round: bool | None = None,
    sample_key: str | None = "auto",
    gene_table: Sequence[str] = (),
    min_mapped: float = 0.5,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Return the scores of all methods, a row for each method, case, ruler and seed; options: `experiments.impute`.

    Raises:
      ValueError, OSError: the model does not predict expression, or an option or a file is wrong.
    """
    imputation.check(task, rates, rulers, bool(reference))
    same = [path for path in reference if pathlib.Path(path).resolve() == pathlib.Path(source).resolve()]
    if same:
        raise ValueError(f"reference={same[0]}: is the input itself, whose hidden counts the baselines would see")
    imputer = Imputer(run.module, run.model, run.meta["config"], run.constants, say)
    imputer.binning["bin_value"] = bin_value
    table = run.gene_table(gene_table)
    bag = bag or run.rules.imputed_bag
    rows: list[dict[str, Any]] = []
    place = {"layer": layer, "raw": raw, "round": round}
    with h5ad.read_counts(source, **place) as counts:
        file = Cells(counts, run.genes, table, min_mapped, run.gene_fraction)
        say(str(file.mapping.report))
        how = file.separate(sample_key)
        others = reference_cells(reference, run.genes, table, min_mapped, cells, **place)
        for seed in pace.counted(range(seeds), "scored seed", say):
            for ruler in rulers:
                rows += _of_seed(run, imputer, file, others, task, rates, seed, cells, bag, ruler)
    return {
        "task": task,
        "input": pathlib.Path(source).name,
        "weights": run.source,
        "trained_on": pathlib.Path(source).stem in run.classes.get("study", ()),
        "ruler": ",".join(rulers),
        "bin_value": bin_value,
        "reference": [pathlib.Path(path).name for path in reference],
        "sample": how,
        "bag": bag,
        "seeds": seeds,
        "cells": rows[0]["cells"],
        "genes": int(file.measured.sum()),
        "rows": rows,
    }


def _of_seed(
    run: api.Run,
    imputer: Imputer,
    file: Cells,
    others: tuple[np.ndarray, np.ndarray] | None,
    task: str,
    rates: Sequence[float],
    seed: int,
    cells: int,
    bag: int,
    ruler: str,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one seed."""
    twin = run.twin(seed)
    posed = problems(file, others, task, rates, seed, cells, bag, ruler, imputer.binning)
    for problem, truth, model_ruler, true_ruler, parts in posed:
        predicted = _predictions(run, twin, imputer, problem, model_ruler)
        for method, prediction in pace.counted(predicted, "predicted by method", total=13 - (imputer.zeros == 1)):
            for case, values in imputation.score(prediction, problem, truth, model_ruler, true_ruler, parts).items():
                yield {"method": method, "case": case, "ruler": ruler, "seed": seed, "cells": len(truth), **values}


def problems(
    file: Cells,
    others: tuple[np.ndarray, np.ndarray] | None,
    task: str,
    rates: Sequence[float],
    seed: int,
    cells: int,
    bag: int,
    ruler: str,
    binning: Mapping[str, Any],
) -> Iterator[tuple[imputation.Problem, np.ndarray, bins.Ruler, bins.Ruler, dict[str, np.ndarray]]]:
    """Yield what a seed asks: problem, true counts [n, V], ruler of predictions and of the truth, sets of genes.

    Args:
      others: of `reference_cells`. ruler: "visible" or "cell". binning: options of `bins.fit`.
    """
    rng = np.random.default_rng(seed)
    bags = file.draw(bag, cells, rng)
    chosen = np.concatenate(bags)
    truth = file.take(chosen)
    where = {"coords": file.coords, "field_coords": file.field_coords, "samples": file.samples}
    where = {name: values if values is None else values[chosen] for name, values in where.items()}
    measured = file.panels[file.panel[chosen]]
    bags = np.split(np.arange(len(chosen)), np.cumsum([len(part) for part in bags])[:-1])
    true_ruler = bins.fit(truth, truth.sum(1), **binning)
    for hidden, parts in imputation.get(task).cases(truth, file.measured, bags, rates, rng):
        problem = imputation.pose(truth, measured, hidden, bags, **where, reference=others, ruler=ruler)
        yield problem, truth, imputation.fit_ruler(problem, truth, ruler, **binning), true_ruler, parts


def _predictions(
    run: api.Run, twin: api.Run, imputer: Imputer, problem: imputation.Problem, ruler: bins.Ruler
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the prediction of every method, one after the other."""
    said = imputer(run.variables, problem, ruler)
    yield run.name, said
    if imputer.zeros != 1:
        yield f"{run.name}, even masks", bins.even(said, imputer.zeros)
    yield "random twin", imputer(twin.variables, problem, ruler)
    yield from tables.predictions(problem, ruler).items()
    apart = baselines.distances(problem)
    yield f"{baselines.NEIGHBOURS} neighbours", baselines.nearest_neighbours(problem, apart)
    yield "diffusion", baselines.diffusion(problem, apart)


def reference_cells(
    paths: Sequence[str],
    genes: Sequence[str],
    table: vocab.GeneTable | None,
    min_mapped: float,
    cells: int,
    **place: Any,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return counts [m, V] of at most `cells` random cells of the files together, and the genes that all measured.

    `place` are options of `h5ad.read_counts`.
    """
    matrices, measured = [], np.ones(len(genes), bool)
    for path in paths:
        with h5ad.read_counts(path, **place) as counts:
            file = Cells(counts, genes, table, min_mapped)
            share = min(file.n, -(-cells // len(paths)))
            matrices.append(file.take(np.sort(np.random.default_rng(0).permutation(file.n)[:share])))
            measured &= file.measured
    return (np.concatenate(matrices), measured) if matrices else None


def table(scores: dict[str, Any]) -> str:
    """Return the scores as a table of text: mean and half the 95 % interval over seeds."""
    frame = pd.DataFrame(scores["rows"])
    lines = []
    for (case, ruler), of_case in frame.groupby(["case", "ruler"], sort=False):
        lines.append(f"{case}, ruler: {ruler}")
        lines.append(f"  {'method':28}" + "".join(f"{metric:>18}" for metric in imputation.METRICS))
        for method, of_method in of_case.groupby("method", sort=False):
            cells = (imputation.interval(of_method[metric]) for metric in imputation.METRICS)
            lines.append(f"  {method:28}" + "".join(f"{f'{mean:.3f} ± {half:.3f}':>18}" for mean, half in cells))
    words = f"{scores['cells']} cells, {scores['genes']} genes, bags of {scores['bag']}"
    words += f"; {scores['bin_value']} of bins"
    lines.append(f"{words}; mean ± half the 95% interval over {scores['seeds']} seeds")
    if scores["trained_on"]:
        lines.append(f"caution: by its name {scores['input']} is a study that the model was trained on")
    return "\n".join(lines)
