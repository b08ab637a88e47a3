"""CellPLM's head among the methods of `experiments.predict_perturbation`: expression from one vector of the cell.

"CellPLM's head, RUN" is trained with its model, as CellPLM's paper has it, where the run is one of CellPLM. "CellPLM's
head, RUN, frozen" reads what a run makes of the control cell, with its vector of the targets beside it, and leaves the
run as it is; that is what all models can. Each has its random twin.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.files import h5ad
from experiments.analyses import annotation, predicted_by_gears
from experiments.analyses.perturbation_data import Data, Plan
from experiments.analyses.perturbation_methods import Prediction
from experiments.analyses.predicted_by_gears import Options
from experiments.analyses.predicted_perturbation import Method, vectors_of_run
from scfm_jax import api
from scfm_jax.api import cell_heads
from scfm_jax.tasks.perturbation import cell_head, pairs, splits


def methods(plan: Plan, data: Data, out: pathlib.Path, runs: Sequence[str], options: Options) -> list[Method]:
    """Return the head on every run and on its twin: trained with CellPLM, and frozen."""
    if plan.logged:
        raise ValueError("logged=True: runs read raw counts of control cells: give a file of counts, or leave runs out")
    chosen = pairs.controls(data.screen, options.controls)
    at = data.at(sorted({gene for of in data.screen.targets.values() for gene in of}))
    alone = pairs.Pairs(data.screen, at, len(data.names), chosen, options.cells or None)
    rows = np.unique(np.concatenate(list(chosen.values())))
    where = {"source": plan.input, "gene_table": plan.gene_table, "min_mapped": plan.reading.get("min_mapped")}
    where |= {"data": data, "rows": rows, **h5ad.place(plan.reading)}
    listed = []

    def add(label: str, read: Callable[[int], cell_heads.Read]) -> None:
        made = functools.lru_cache(maxsize=1)(read)
        listed.append(
            _method(alone, f"CellPLM's head, {label}{options.words(gears=False)}", made, options.settings.epochs)
        )

    for source in runs:
        run, name = api.load(source), annotation.name_of(out, source)
        if run.name == "cellplm":
            add(name, lambda _, run=run: cell_heads.tuned(run, **where))
            add(f"{name}, random twin", lambda seed, run=run: cell_heads.tuned(run.twin(seed), **where))
        of = vectors_of_run(plan, data, out, run)
        add(f"{name}, frozen", lambda _, run=run, of=of: cell_heads.frozen(run, of_genes=of(None), **where))
        add(
            f"{name}, random twin, frozen",
            lambda seed, run=run, of=of: cell_heads.frozen(run.twin(seed), of_genes=of(seed), **where),
        )
    return listed


def _method(alone: pairs.Pairs, name: str, read: Callable[[int], cell_heads.Read], epochs: int | None) -> Method:
    """Return the head fitted anew for every split and seed."""

    def predict(split: splits.Split, seed: int) -> Prediction:
        known_cells = read(seed)
        of = dataclasses.replace(alone, features=known_cells.vectors)
        options = {**known_cells.options, "epochs": epochs, "seed": seed}
        fitted, shared = cell_head.fit(of, known_cells.network, split.train, split.validation, **options)
        said = [cell_head.predict(fitted, known_cells.network, shared, of, condition) for condition in split.test]
        return predicted_by_gears.prediction(of.screen, split.test, said) | {"epoch": fitted.epoch}

    return Method(name, predict, varies=True)
