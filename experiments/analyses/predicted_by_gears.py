"""GEARS' head among the methods of `experiments.predict_perturbation`: alone, and on what each run says of genes.

"GEARS" knows genes by a table of its own; "GEARS, RUN" has the run's representation of each gene in the control cell in
its place, through a learned linear layer, and "GEARS, RUN, random twin" that of the same network with random weights.
A fit takes minutes. What else than a preset's a table was made with is part of the method's name.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import go_graph
from experiments.analyses import annotation
from experiments.analyses.perturbation_data import Data, Plan
from experiments.analyses.perturbation_methods import CELLS, Prediction
from experiments.analyses.predicted_perturbation import Method, go_terms
from scfm_jax import api
from scfm_jax.api import gene_features, screens
from scfm_jax.tasks.perturbation import gears, gears_fit, pairs, scores, splits
from scfm_jax.tasks.perturbation.gears_fit import Settings
from scfm_jax.tasks.perturbation.screen import Screen


@dataclasses.dataclass(frozen=True)
class Options:
    """What the flags of the command say of heads.

    Attributes:
      settings: of the head. cells: of a condition to learn from, 0 for all. controls: of a group that are looked at.
      graph: file of `experiments.go_graph`; made of the plan's GO annotations where left out.
    """

    settings: Settings = dataclasses.field(default_factory=Settings)
    cells: int = 0
    controls: int = 1000
    graph: str | None = None

    def words(self, gears: bool = True) -> str:
        """Return what is not as it is by default, for the names of methods: " (3 epochs, 50 cells)", or nothing."""
        s, default = self.settings, Options()
        said = [f"preset {s.preset}"] if gears and s.preset != default.settings.preset else []
        said += [f"h {s.width}"] if gears and s.width else []
        said += [f"decay {s.decay:g}"] if gears and s.decay != default.settings.decay else []
        said += [f"{s.epochs} epochs"] if s.epochs else []
        said += [f"{self.cells} cells"] if self.cells else []
        said += [f"{self.controls} controls"] if self.controls != default.controls else []
        return f" ({', '.join(said)})" if said else ""


def methods(plan: Plan, data: Data, out: pathlib.Path, runs: Sequence[str], options: Options) -> list[Method]:
    """Return GEARS alone, and for each run GEARS on its genes in control cells and on those of its twin."""
    edges = graph_edges(options.graph, plan.go, data, plan.gene_table)
    chosen = pairs.controls(data.screen, options.controls)
    at = data.at(sorted({gene for of in data.screen.targets.values() for gene in of}))
    alone = pairs.Pairs(data.screen, at, len(data.names), chosen, options.cells or None)
    make = functools.partial(_method, alone, gears.go_graph(*edges, len(data.names)), options.settings)
    listed = [make(f"GEARS{options.words()}")]
    loaded = [(api.load(source), annotation.name_of(out, source)) for source in runs]
    where = _where(plan, out, np.unique(np.concatenate(list(chosen.values())))) if runs else {}

    @functools.lru_cache(maxsize=1)  # gigabytes each
    def of_cells(number: int, twin: int | None) -> pairs.CellFeatures:
        run = loaded[number][0] if twin is None else loaded[number][0].twin(twin)
        return gene_features.of_cells(run, names=data.names, second=data.second, say=lambda _: None, **where)

    for i, (_, name) in enumerate(loaded):
        listed.append(make(f"GEARS, {name}{options.words()}", lambda _, i=i: of_cells(i, None)))
        listed.append(make(f"GEARS, {name}, random twin{options.words()}", lambda seed, i=i: of_cells(i, seed)))
    return listed


def _where(plan: Plan, out: pathlib.Path, rows: np.ndarray) -> dict[str, Any]:
    """Return which cells the runs are shown, and where what they say of them is kept."""
    if plan.logged:
        raise ValueError("logged=True: runs read raw counts of control cells: give a file of counts, or leave runs out")
    least = {"min_mapped": plan.reading.get("min_mapped"), "gene_table": plan.gene_table}
    return {"source": plan.input, "rows": rows, "keep": out / "features", **least, **h5ad.place(plan.reading)}


def _method(
    alone: pairs.Pairs,
    graph: Any,
    settings: Settings,
    name: str,
    features: Callable[[int], pairs.CellFeatures] | None = None,
) -> Method:
    """Return the head fitted anew for every split and seed."""

    def predict(split: splits.Split, seed: int) -> Prediction:
        of = dataclasses.replace(alone, features=features(seed)) if features else alone
        fitted = gears_fit.fit(of, split.train, split.validation, graph, settings, seed)
        said = [gears_fit.predict(fitted, of, condition) for condition in split.test]
        return prediction(of.screen, split.test, said) | {"epoch": fitted.epoch, "history": fitted.history}

    return Method(name, predict, varies=True)


def prediction(screen: Screen, names: Sequence[str], said: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Return effects [A, G] and energy distances [A] of conditions by (effect, predicted cells) of each."""
    true = [screen.dense(screen.rows[name], CELLS, 1) for name in names]
    energy = [scores.energy_distance(cells[:CELLS], y) for (_, cells), y in zip(said, true, strict=True)]
    return {"effects": np.stack([effect for effect, _ in said]), "energy": np.array(energy)}


def save_heads(plan: Plan, out: pathlib.Path, runs: Sequence[str], options: Options) -> list[pathlib.Path]:
    """Fit GEARS on each run to all conditions, for `Run.perturb`, and return the files OUT/heads/RUN.safetensors.

    A file that is there is left as it is.
    """
    if not options.graph:
        raise ValueError("save_heads=True: needs graph=FILE of experiments.go_graph")
    names = ("column", "control", "separator", "groups", "filter", "targets", "least", "depth", "gene_table")
    asked = {name: getattr(plan, name) for name in names} | dict(plan.reading)
    asked |= {"cells": options.cells or None, "controls": options.controls, "keep": out / "features"}
    s, files = options.settings, []
    for source in runs:
        files.append(out / "heads" / f"{annotation.name_of(out, source)}{options.words()}.safetensors")
        if not files[-1].exists():
            settings = {"preset": s.preset, "hidden": s.width, "epochs": s.epochs, "decay": s.decay}
            head = api.load(source).fit_perturbations(plan.input, graph=options.graph, **settings, **asked)
            head.save(files[-1])
    return files


def graph_edges(graph: str | None, go: str | None, data: Data, gene_table: Sequence[str] = ()) -> screens.Edges:
    """Return (source, target, weight) of the GO graph among the genes of a screen, from a graph file or annotations.

    ValueError where there is neither, or none of the screen's genes is in it.
    """
    if graph:
        return screens.graph_edges(data, graph, gene_table)
    if not go:
        raise ValueError("heads=gears: needs the genes' GO graph: give graph=FILE of experiments.go_graph, or go=FILE")
    terms, index = go_terms(go, data.names, data.second)
    mine = sparse.diags((index >= 0).astype(int)) @ terms[np.maximum(index, 0)].astype(int)
    limits = {name: go_graph.READINGS["code"][name] for name in ("cut", "top", "self_edge")}
    edges = go_graph.neighbours(sparse.csr_matrix(mine.astype(bool)), **limits)
    return screens.with_edges(edges, go, data.names)
