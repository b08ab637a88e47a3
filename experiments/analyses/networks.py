"""Infer every network of the table, one matrix at a time, each kept so that a killed table goes on where it was.

OUT/plan.json                which cells, genes and truths: another plan needs another folder
OUT/names.json               what each run is called here
OUT/matrices/<method>_<seed>_<member>.npz   strengths [n, n], rows targets and columns regulators

A method is a name and a function of a seed and a member of the ensemble (`Method`); `methods` lists them.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import go_graph, vocab
from experiments.analyses import annotation, resumed
from experiments.analyses.networks_data import Data, Plan, Truth
from experiments.analyses.predicted_perturbation import go_vectors, read_go
from scfm_jax import api
from scfm_jax.api import gene_features, gene_networks
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.networks import baselines, deepsem, scores
from scfm_jax.training import pace

ORACLE, START = "oracle of degrees", "start, "
PRIOR = ("graph_source", "gene_vectors")
"""Constants of a run that say beforehand what GO, STRING or other genes' vectors know of genes."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      name: what the table calls it. infer: from a seed and a member of the ensemble to strengths [n, n].
      varies: whether seeds differ. ensemble: whether it is the mean of several trainings.
      leaks: whether it is made of what GO or STRING say. note: shown beside it.
    """

    name: str
    infer: Callable[[int, int], np.ndarray]
    varies: bool = False
    ensemble: bool = False
    leaks: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A run, the kind of its similarities, of `gene_networks.KINDS`, and what the table says of both."""

    path: str
    run: api.Run
    kind: str
    label: str
    note: str


def entrants(plan: Plan, data: Data, runs: Sequence[str], kinds: Sequence[str]) -> list[Entrant]:
    """Return what each run takes part with; ValueError where cells or genes do not allow it.

    "auto" is its genes in the cells where these are counts, else the first kind of gene vectors that needs no cell.
    """
    listed = []
    for path in runs:
        run = api.load(path)
        table = run.gene_table(plan.gene_table)
        index = vocab.map_genes(data.names, run.genes, ensembl=data.second, table=table, min_mapped=None).index
        knows = int((index >= 0).sum())
        if not knows or knows < len(index) * plan.reading.get("min_mapped", 0):
            way = "check the species, give a --gene_table, or lower --min_mapped"
            raise ValueError(f"--runs={path}: knows {knows or 'none'} of the {len(index)} genes: {way}")
        for asked in kinds:
            kind = _kind(plan, data, path, run, asked)
            note = f"{kind}, knows {knows:,} of {len(index):,} genes"
            listed.append(Entrant(path, run, kind, "" if asked == "auto" else f", {asked}", note))
    return listed


def _kind(plan: Plan, data: Data, path: str, run: api.Run, asked: str) -> str:
    """Return the kind of similarities that is meant; ValueError where the run or the cells have none such."""
    plain, cells = gene_features.kinds(run), gene_networks.CELLS
    kind = (cells if data.counts else plain[0] if plain else "context") if asked == "auto" else asked
    if kind not in (cells, *gene_features.OF_CELLS):
        if kind not in plain:
            raise ValueError(f"--vectors={kind}: {path} has none; it has {', '.join([*plain, 'context', cells])}")
    elif not data.counts and (kind == cells or not plan.context):
        way = f"--vectors={plain[0]}" if plain else "--vectors=context and --context=FILE of counts"
        what = f"{kind} of {run.name} needs raw counts, and {pathlib.Path(plan.input).name} has none"
        raise ValueError(f"--runs={path}: {what}: take {way}, or another --input")
    return kind


def methods(plan: Plan, data: Data, out: pathlib.Path, taking_part: Sequence[Entrant]) -> list[Method]:
    """Return the methods of the table: correlations, GENIE3, DeepSEM from each start, and each start untrained."""
    n = len(data.names)
    listed = [
        Method("|Pearson|", lambda *_: baselines.pearson(data.x)),
        Method("|Spearman|", lambda *_: baselines.spearman(data.x)),
    ]
    if plan.trees:
        options = {"trees": plan.trees, "jobs": -1}
        listed.append(Method("GENIE3", lambda *_: baselines.genie3(data.x, data.regulators.tolist(), **options)))
    train = _trainer(plan, data)
    at_random = lambda _, member: train(deepsem.random_start(n, member), member)  # noqa: E731
    listed.append(Method("DeepSEM, random start", at_random, ensemble=True))
    starts = list(_starts(plan, data, out, taking_part))
    for start in starts:
        name, infer = f"DeepSEM, {start.name.removeprefix(START)}", functools.partial(_trained, train, out, start)
        listed.append(dataclasses.replace(start, name=name, infer=infer, ensemble=True))
    return listed + [dataclasses.replace(start, note="") for start in starts]


Train = Callable[[np.ndarray, int], np.ndarray]
"""From a start and a seed to strengths. [n, n] -> [n, n]"""


def _trained(train: Train, out: pathlib.Path, start: Method, seed: int, member: int) -> np.ndarray:
    return train(matrix(out, start, seed, 0), member)


def _trainer(plan: Plan, data: Data) -> Train:
    """Return what trains one network from a start, with a seed."""
    x, mask = deepsem.standardised(data.x)
    training = dataclasses.replace(deepsem.TRAINING, epochs=plan.epochs, rows=plan.rows)
    network = deepsem.DeepSEM(inverse=plan.inverse)
    return lambda start, seed: deepsem.infer(x, mask, start, seeds=[seed], training=training, network=network)


def _starts(plan: Plan, data: Data, out: pathlib.Path, taking_part: Sequence[Entrant]) -> Iterator[Method]:
    """Yield the starts, untrained: runs, each with its twin and its shuffled names, then controls."""
    for entrant in taking_part:
        name = START + annotation.name_of(out, entrant.path) + entrant.label
        of_run = functools.cache(functools.partial(_cosines, plan, data, entrant.run, entrant.kind))
        leaks = any(constant in entrant.run.constants for constant in PRIOR)
        yield Method(name, lambda *_, of=of_run: of(), leaks=leaks, note=entrant.note)
        of_twin = functools.partial(_of_twin, plan, data, entrant)
        yield Method(f"{name}, random twin", of_twin, varies=True, leaks=leaks)
        mixed = lambda seed, _, of=of_run: baselines.shuffled(of(), seed)  # noqa: E731
        yield Method(f"{name}, shuffled names", mixed, varies=True)
    drawn = lambda seed, _: _of_vectors(plan, features.random(data.names, seed))  # noqa: E731
    yield Method(f"{START}random vectors", drawn, varies=True)
    loadings = functools.partial(features.loadings, data.x, np.arange(len(data.names)), data.names)
    yield Method(f"{START}PCA loadings", lambda *_: _of_vectors(plan, loadings()))
    if plan.go:
        components = functools.partial(go_vectors, plan.go, data.names, data.second)
        yield Method(f"{START}GO-SVD", lambda *_: _of_vectors(plan, components()), leaks=True)
        yield Method(f"{START}GO-Jaccard", lambda *_: baselines.jaccard_start(go_terms(plan.go, data)), leaks=True)


def _cosines(plan: Plan, data: Data, run: api.Run, kind: str) -> np.ndarray:
    """Return a start of the cosines between genes in a run."""
    options = {"second": data.second, "gene_table": plan.gene_table, "centred": not plan.raw_cosine}
    if kind in (gene_networks.CELLS, *gene_features.OF_CELLS):
        options |= {"source": data.source, "rows": data.rows, **h5ad.place(plan.reading)}
        if plan.context and kind != gene_networks.CELLS:
            options |= {"source": plan.context, "rows": None}
        options["min_mapped"] = None  # looked at before
    cosines = gene_networks.similarity(run, data.names, kind, say=lambda _: None, **options)
    return deepsem.row_normalised(cosines)


def _of_twin(plan: Plan, data: Data, entrant: Entrant, seed: int, _: int) -> np.ndarray:
    return _cosines(plan, data, entrant.run.twin(seed), entrant.kind)


def _of_vectors(plan: Plan, vectors: features.GeneVectors) -> np.ndarray:
    values = vectors.values if plan.raw_cosine else vectors.standardised()
    return deepsem.row_normalised(deepsem.cosine(np.where(vectors.found[:, None], values, 0)))


def go_terms(path: str, data: Data) -> sparse.csr_matrix:
    """Return which gene has which GO term, by a file of `read_go`; ValueError where none has any. [n, T]"""
    said = read_go(path)
    table = go_graph.names_of(said)
    index = vocab.map_genes(data.names, said.names, ensembl=data.second, table=table, min_mapped=None).index
    if not (index >= 0).any():
        some = ", ".join(data.names[:3])
        raise ValueError(f"--go={path}: has none of the {len(index)} genes ({some}, ...); check the species")
    return go_graph.gene_terms(said, data.names, table, min_genes=2, min_mapped=None).matrix


def about(plan: Plan, data: Data, ensemble: int) -> str:
    """Return the title of the table and what it is of."""
    of = f"{len(data.x):,} cells, {len(data.names):,} genes, {len(data.regulators):,} of them regulators"
    values = "raw counts" if data.counts else "log-normalised values"
    return (
        f"# Networks of {pathlib.Path(plan.input).name}\n\n{of}; {values}; DeepSEM: {ensemble} x {plan.epochs} epochs."
    )


def fill(
    data: Data,
    out: pathlib.Path,
    listed: Sequence[Method],
    seeds: int,
    ensemble: int,
    say: Callable[[str], None] = print,
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Make every matrix that OUT lacks; return scores by truth, method and seed, and each method's mean strengths."""
    (out / "matrices").mkdir(exist_ok=True)
    asked = [(method, seed) for method in listed for seed in range(seeds if method.varies else 1)]
    members = [(m, seed, member) for m, seed in asked for member in range(ensemble if m.ensemble else 1)]
    for method, seed, member in pace.counted(members, "inferred network", say):
        matrix(out, method, seed, member)
    rows: list[dict[str, Any]] = []
    strengths: dict[str, np.ndarray] = {}
    for method, seed in asked:
        number = ensemble if method.ensemble else 1
        strength = sum(np.abs(matrix(out, method, seed, member)) for member in range(number)) / number
        strengths[method.name] = strengths.get(method.name, 0) + strength / (seeds if method.varies else 1)
        rows += [_scored(truth, strength, method.name, seed, method.leaks and truth.leaks) for truth in data.truths]
    rows += [_scored(truth, scores.oracle_of_degrees(truth.edges), ORACLE, 0, False) for truth in data.truths]
    return rows, strengths


def matrix(out: pathlib.Path, method: Method, seed: int, member: int) -> np.ndarray:
    """Return the strengths of a method, from their file if that is whole."""

    def make() -> dict[str, np.ndarray]:
        return {"strength": np.asarray(method.infer(seed, member), np.float32)}

    path = out / f"matrices/{resumed.slug(method.name)}_{seed}_{member}.npz"
    return resumed.arrays(path, make, lambda kept: kept["strength"].ndim == 2)["strength"]


def _scored(truth: Truth, strength: np.ndarray, method: str, seed: int, leaks: bool) -> dict[str, Any]:
    """Return a row: scores, and their intervals where the truth is permuted over all pairs and within regulators."""
    score, true, regulator = scores.pairs(strength, truth.edges, truth.regulators, truth.targets)
    values = scores.scores(score, true, regulator)
    row: dict[str, Any] = {"truth": truth.name, "method": method, "seed": seed, "leaks": leaks}
    for kind, within in (("chance", False), ("within", True)):
        for name, (low, high) in scores.permutation_interval(score, true, regulator, within=within).items():
            row |= {name: values[name], f"{name}_{kind}_low": low, f"{name}_{kind}_high": high}
    return row | {"pairs": len(true), "edges": int(true.sum())}
