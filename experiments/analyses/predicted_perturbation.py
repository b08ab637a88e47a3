"""Fill the table of predicted perturbations, one method, seed and split at a time, from files that all of them share.

OUT/plan.json                 which cells, conditions and splits: another plan needs another folder
OUT/names.json                what each run is called here
OUT/features/                 gene vectors that cost a forward pass
OUT/predictions/<method>_<seed>_<split>.npz   predicted effects of the test conditions, and of the singles of doubles
                              among them, for interactions; what is whole is not made again

A method is a name and a function of a split and a seed (`Method`); `methods` lists them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import h5ad
from data_pipeline.genes import annotations, go_graph, vocab
from experiments.analyses import annotation, resumed
from experiments.analyses.perturbation_data import Data, Plan, rounds
from experiments.analyses.perturbation_methods import (
    CEILING,
    Prediction,
    ceiling,
    no_change,
    ridge_on,
    ridge_on_components,
    scored,
    simple,
)
from scfm_jax import api
from scfm_jax.api import gene_features, vector_file
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.perturbation import baselines, splits
from scfm_jax.training import pace

CONTEXT = 500
"""Control cells of the input that context vectors are means over, where no other file is named."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      name: what the table calls it. predict: from a split and a seed to a `Prediction`.
      varies: whether seeds differ on one split. note: shown beside it, such as how many targets it knows.
    """

    name: str
    predict: Callable[[splits.Split, int], Prediction]
    varies: bool = False
    note: str = ""


def methods(
    plan: Plan,
    data: Data,
    out: pathlib.Path,
    runs: Sequence[str],
    kinds: Sequence[str] | None,
    trained: Sequence[Method] = (),
) -> list[Method]:
    """Return the methods of the table: baselines, bilinear ridge on every kind of gene vectors, heads, the ceiling.

    Args:
      kinds: of gene vectors of runs and twins; None leaves out all bilinear ridges.
      trained: heads that train (`predicted_by_gears`): each fits on split.train, chooses its epoch on split.validation,
        and predicts split.test; it varies with the seed.
    """
    listed = [Method("no change", functools.partial(no_change, data)), Method("training mean", simple(data, "mean"))]
    if any(len(of) > 1 for of in data.screen.targets.values()):
        listed += [Method("matching mean", simple(data, "matching")), Method("additive", simple(data, "additive"))]
    if kinds is not None and plan.split != "one_group_out":  # which gene vectors say nothing of
        listed.append(Method(f"ridge, PCA-{baselines.COMPONENTS}", functools.partial(ridge_on_components, data)))
        listed += [_ridge(data, *named) for named in _vectors(plan, data, out, runs, kinds)]
    return [*listed, *trained, Method(CEILING, functools.partial(ceiling, data), varies=True)]


Vectors = Callable[[int], features.GeneVectors]


def _vectors(
    plan: Plan, data: Data, out: pathlib.Path, runs: Sequence[str], kinds: Sequence[str]
) -> Iterator[tuple[str, Vectors, bool]]:
    """Yield (name, seed -> vectors of `data.names`, whether seeds differ) of controls, runs and their twins."""
    yield "random vectors", functools.partial(features.random, data.names), True
    yield "one-hot", lambda _: features.one_hot(data.names), False
    if plan.go:
        made = go_vectors(plan.go, data.names, data.second)
        yield "GO-SVD", lambda _: made, False
    if plan.vectors_file:
        read, _ = vector_file.read(plan.vectors_file, data.names, data.second, plan.gene_table)
        yield f"{read.kind} ({pathlib.Path(plan.vectors_file).name})", lambda _: read, False
    asked = {"names": data.names, "second": data.second, "gene_table": plan.gene_table, "say": lambda _: None}
    for source in runs:
        run, name = api.load(source), annotation.name_of(out, source)
        for kind in kinds:
            options = dict(asked, kind=kind)
            if kind not in gene_features.kinds(run) and (kind != "auto" or not gene_features.kinds(run)):
                options |= _context(plan, data) | {"keep": out / "features"}
            label = name if kind == "auto" else f"{name}, {kind}"
            yield label, functools.partial(_of_run, run, options), False
            yield f"{label}, random twin", functools.partial(_of_twin, run, options), True


def vectors_of_run(
    plan: Plan, data: Data, out: pathlib.Path, run: api.Run
) -> Callable[[int | None], features.GeneVectors]:
    """Return a function that gives a run's vectors of `data.names`, those of its twin for a seed."""
    asked = {"names": data.names, "second": data.second, "gene_table": plan.gene_table, "say": lambda _: None}
    if not gene_features.kinds(run):
        asked |= _context(plan, data) | {"keep": out / "features"}
    return lambda seed: _of_run(run, asked, 0) if seed is None else _of_twin(run, asked, seed)


def _of_run(run: api.Run, options: Mapping[str, Any], _: int) -> features.GeneVectors:
    return run.gene_vectors(**options)


def _of_twin(run: api.Run, options: Mapping[str, Any], seed: int) -> features.GeneVectors:
    return run.twin(seed).gene_vectors(**options)


def _context(plan: Plan, data: Data) -> dict[str, Any]:
    """Return the cells that context vectors are means over: those of another file, or control cells of the input."""
    least = {"min_mapped": plan.reading.get("min_mapped")}
    if plan.context:
        return {"source": plan.context, **least}
    if plan.logged:
        raise ValueError("logged=True: context vectors need raw counts: name a file of counts as context=FILE")
    rows = np.sort(np.random.default_rng(0).permutation(data.controls)[:CONTEXT])
    return {"source": plan.input, "rows": rows, **least, **h5ad.place(plan.reading)}


def go_vectors(path: str, names: Sequence[str], second: Sequence[str] | None = None) -> features.GeneVectors:
    """Return components of the GO terms of genes, by a file of `read_go`."""
    return features.term_components(*go_terms(path, names, second, min_genes=2), names)


def go_terms(path: str, names: Sequence[str], second: Sequence[str] | None = None, **limits: Any) -> tuple[Any, Any]:
    """Return which gene has which GO term [K, T], and the row of each of some genes, -1 for none [G].

    Args:
      limits: of `go_graph.gene_terms`.
    """
    said = read_go(path)
    known_names = go_graph.names_of(said)
    terms = go_graph.gene_terms(said, said.names, known_names, **limits)
    return terms.matrix, vocab.map_genes(names, said.names, ensembl=second, table=known_names, min_mapped=None).index


def read_go(path: str) -> annotations.Annotations:
    """Return the GO terms of genes, by a GAF file, a table of genes and terms, or an .npz matrix."""
    if path.endswith(".npz"):
        return annotations.read_matrix(path, "part_of")
    return annotations.annotate((annotations.read_gaf if ".gaf" in path else annotations.read_table)(path))


def _ridge(data: Data, name: str, vectors: Vectors, varies: bool) -> Method:
    """Return bilinear ridge on gene vectors, of which a seed's are made once."""
    made = functools.cache(vectors)
    at = data.at(sorted({gene for of in data.screen.targets.values() for gene in of}))
    first = made(0)
    knows, measured = sum(first.found[place] for place in at.values()), len(data.screen.genes)

    def predict(split: splits.Split, seed: int) -> Prediction:
        vectors_of = made(seed if varies else 0)
        return ridge_on(data, split, baselines.scaled(vectors_of.values, vectors_of.found), at)

    genes = first.found[:measured].sum()
    note = f"knows {knows} of {len(at)} targets, {genes} of {measured} measured genes"
    note = "" if (knows, genes) == (len(at), measured) else note
    return Method(f"ridge, {name}", predict, varies, note)


def fill(
    plan: Plan, data: Data, out: pathlib.Path, listed: Sequence[Method], seeds: int, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Make every prediction that OUT lacks, and return the scores of each condition by method and seed.

    Predictions of all splits of a seed are scored together: a condition is told from all others that are tested.
    """
    (out / "predictions").mkdir(exist_ok=True)
    fixed = plan.split in ("one_target_out", "one_group_out")
    asked = [(m, seed) for m in listed for seed in range(seeds) if seed == 0 or m.varies or not fixed]
    rows: list[dict[str, Any]] = []
    for method, seed in pace.counted(asked, "predicted by method and seed", say):
        parts = rounds(plan, data, seed)
        made = [_kept_or_made(out, method, seed, i, with_singles(data, split)) for i, split in enumerate(parts)]
        rows += scored(data, method.name, seed, parts, made)
    return rows


def with_singles(data: Data, split: splits.Split) -> splits.Split:
    """Return the split whose test conditions are followed by those singles of its doubles that are none of them.

    What a method says of these, trained on or not, is what its interactions are told by.
    """
    singles = {single for name in split.test for single in data.screen.singles(name)}
    return dataclasses.replace(split, test=(*split.test, *sorted(singles - set(split.test))))


def _kept_or_made(out: pathlib.Path, method: Method, seed: int, number: int, split: splits.Split) -> Prediction:
    """Return the prediction of a split, from its file if that is whole."""

    def make() -> dict[str, Any]:
        about = {"conditions": np.array(split.test), "method": method.name, "seed": seed, "split": number}
        return {**about, **method.predict(split, seed)}

    path = out / f"predictions/{resumed.slug(method.name)}_{seed}_{number}.npz"
    return resumed.arrays(path, make, lambda kept: kept["conditions"].tolist() == list(split.test))
