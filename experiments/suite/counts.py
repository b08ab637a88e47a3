"""Tasks of a suite that predict counts: imputation, denoising, and spatial imputation, also fine-tuned.

All methods see the same cells, of which a seed draws whole bags, and the same genes: those that every run knows. What
a run predicts is put into counts by its own ruler (`tasks.bins`), or stays shares of bins where its bins are the common
five, which are read off the visible counts.

Controls are made of the truth: each gene's counts exchanged among the cells (negative: the genes' distributions, and
nothing of the cells), and the truth with one in fifty of its entries replaced by those (positive).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.genes import vocab
from experiments.analyses import cells as model_cells
from experiments.suite import tuning as suite_tuning
from experiments.suite.entrants import Entrant, Study
from scfm_jax.tasks.cells import embedding
from scfm_jax.tasks.imputation import baselines, bins, denoising, imputation, spatial_imputation

BAG = 50
SPOILED = 0.02
"""Share of entries that the positive control has from another cell."""


@dataclasses.dataclass
class Table:
    """Cells of a study as counts of the shared genes.

    Attributes:
      columns: of the study's file. counts: [n, K]. bags: rows seen together. samples: [n]. coords: [n, 2] or None.
    """

    columns: np.ndarray
    counts: np.ndarray
    bags: list[np.ndarray]
    samples: np.ndarray
    coords: np.ndarray | None


@dataclasses.dataclass
class Said:
    """A prediction of the hidden entries: counts [h], or shares of bins [h, n_bins] by a ruler, and whose it is."""

    method: str
    kind: str
    values: np.ndarray
    ruler: bins.Ruler | None = None

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return it as counts of the cells `rows`. [h]"""
        return self.ruler.counts(self.values, rows) if self.values.ndim == 2 else self.values


def draw(study: Study, columns: np.ndarray, seed: int, cells: int) -> Table:
    """Return the cells that a seed draws, whole bags of neighbours or of random cells of a sample."""
    samples = np.zeros(study.n, int) if study.batches is None else embedding.encode(study.batches)
    bags = model_cells.draw(samples, study.coords, BAG, cells, np.random.default_rng(seed))
    rows = np.concatenate(bags)
    counts = study.counts.take(rows)[:, columns].toarray().astype(np.float32)
    borders = np.cumsum([len(bag) for bag in bags])[:-1]
    coords = None if study.coords is None else study.coords[rows]
    return Table(columns, counts, np.split(np.arange(len(rows)), borders), samples[rows], coords)


def impute(
    name: str,
    entrant: Entrant | None,
    study: Study,
    columns: np.ndarray,
    seed: int,
    *,
    cells: int,
    rates: Sequence[float] = (),
    reference: Sequence[Study] = (),
    reference_cells: int = 300,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of an imputation task ("gene", "cell", "fixed_gene") of a seed.

    Args:
      reference: studies of which baselines see some cells whole, as models have seen others in training.
    """
    table, rng = draw(study, columns, seed, cells), np.random.default_rng(seed)
    others = _reference(study, columns, reference, reference_cells, seed) if reference else None
    measured = np.ones(len(columns), bool)
    true_ruler = bins.fit(table.counts, table.counts.sum(1))
    for hidden, parts in imputation.get(name).cases(table.counts, measured, table.bags, rates, rng):
        where = {"samples": table.samples, "coords": table.coords}
        problem = imputation.pose(table.counts, measured, hidden, table.bags, **where, reference=others)
        ruler = bins.fit(problem.counts, problem.depth)
        for said in predictions(entrant, study, table, problem, seed):
            alike = said.ruler is not None and said.ruler.edges.shape == ruler.edges.shape
            values = said.values if alike and np.allclose(said.ruler.edges, ruler.edges) else None
            values = said.counts(problem.entries[0]) if values is None else values
            found = imputation.score(values, problem, table.counts, ruler, true_ruler, parts)
            for case, scores in found.items():
                yield from rows(said, case, scores)


def denoise(
    entrant: Entrant | None, study: Study, columns: np.ndarray, seed: int, *, cells: int, keep: float, rate: float
) -> Iterator[dict[str, Any]]:
    """Yield the scores of denoising of a seed: after thinning, and after flips to zero."""
    table, rng = draw(study, columns, seed, cells), np.random.default_rng(seed)
    flipped, where = denoising.flip(table.counts, rate, rng)
    thinned = denoising.thin(table.counts, keep, rng)
    cases = {
        f"thinned to {keep:.0%}": (thinned, None),
        f"zero flips {rate:.0%}: flipped": (flipped, where),
        f"zero flips {rate:.0%}: all": (flipped, None),
    }
    answers: dict[int, list[tuple[Said, np.ndarray]]] = {}
    for case, (spoiled, entries) in cases.items():
        if id(spoiled) not in answers:
            everything = np.ones(spoiled.shape, bool)
            problem = imputation.Problem(
                spoiled, everything, everything, everything[0], table.bags, table.samples, table.coords
            )
            said = list(predictions(entrant, study, table, problem, seed))
            if entrant is None:
                said.append(Said("as it is", "baseline", spoiled.ravel()))
            rows_of = problem.entries[0]
            answers[id(spoiled)] = [(one, one.counts(rows_of).reshape(spoiled.shape)) for one in said]
        alive = (spoiled.sum(1) > 0) & (table.counts.sum(1) > 0)
        for one, counts in answers[id(spoiled)]:
            found = denoising.score(counts[alive], table.counts[alive], None if entries is None else entries[alive])
            yield from rows(one, case, found)


def impute_in_space(
    entrant: Entrant | None,
    study: Study,
    columns: np.ndarray,
    seed: int,
    *,
    cells: int,
    reference: Sequence[Study],
    reference_cells: int,
    tuning: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the scores of held-out genes of a seed, with the cells of the reference studies at hand.

    Args:
      tuning: options of `suite_tuning.fine_tune`, by which the run and its twin learn from all visible counts first;
        None asks them as they are.
    """
    table, measured = draw(study, columns, seed, cells), np.ones(len(columns), bool)
    held = spatial_imputation.hold_out(table.counts, seed)
    others, there = _reference(study, columns, reference, reference_cells, seed)
    genes = np.flatnonzero(held & there)
    hidden = np.broadcast_to(np.isin(np.arange(len(columns)), genes), table.counts.shape)
    problem = imputation.pose(
        table.counts,
        measured,
        hidden,
        table.bags,
        samples=table.samples,
        coords=table.coords,
        reference=(others, there),
    )
    for said in predictions(entrant, study, table, problem, seed, together=tuning is None, tuning=tuning):
        counts = np.zeros(table.counts.shape, np.float32)
        counts[hidden] = said.counts(problem.entries[0])
        yield from rows(said, "", spatial_imputation.score(counts, table.counts, genes))


def predictions(
    entrant: Entrant | None,
    study: Study,
    table: Table,
    problem: imputation.Problem,
    seed: int,
    together: bool = False,
    tuning: Mapping[str, Any] | None = None,
) -> Iterator[Said]:
    """Yield what a run and its random twin say of the hidden entries; without a run, baselines and controls.

    Args:
      together: give the reference cells to a model whose cells attend to each other.
      tuning: fine-tune both by these options first.
    """
    if entrant is None:
        yield from _simple(table, problem, seed)
        return
    imputer, slots = entrant.imputer, entrant.slots(study)[table.columns]
    if (slots < 0).any():
        raise ValueError(f"the run knows {(slots >= 0).sum()} of the {len(slots)} genes that the others share")
    posed = problem
    if together and entrant.run.rules.together is True:
        posed = spatial_imputation.together(problem)
    ruler = bins.fit(posed.counts, posed.depth, **imputer.binning)
    asked, order = onto(posed, slots, len(entrant.run.genes), entrant.bag)
    for kind, run in (("model", entrant.run), ("twin", entrant.run.twin(seed))):
        method = entrant.name if kind == "model" else f"{entrant.name}, random twin"
        run = suite_tuning.fine_tune(run, asked, seed, **tuning) if tuning else run
        said = imputer(run.variables, asked, ruler)
        values = np.empty_like(said)
        values[order] = said
        yield Said(method, kind, values, ruler if values.ndim == 2 else None)
        if kind == "model" and imputer.zeros != 1:
            yield Said(f"{method}, even masks", kind, bins.even(values, imputer.zeros), ruler)


def onto(
    problem: imputation.Problem, slots: np.ndarray, n_genes: int, bag: int
) -> tuple[imputation.Problem, np.ndarray]:
    """Return the problem in the order of a model's genes, in bags of at most `bag`, and where its entries were. [h]

    Args:
      slots: the model's place of each gene of the problem. [K]
    """

    def spread(values: np.ndarray) -> np.ndarray:
        out = np.zeros((len(values), n_genes), values.dtype)
        out[:, slots] = values
        return out

    cells, genes = problem.entries
    order = np.lexsort((slots[genes], cells))
    bags = [part for rows in problem.bags for part in np.array_split(rows, -(-len(rows) // bag))]
    moved = {name: spread(getattr(problem, name)) for name in ("counts", "known", "hidden")}
    measured = spread(problem.measured[None])[0]
    return dataclasses.replace(problem, **moved, measured=measured, bags=bags), order


def rows(said: Said, case: str, scores: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield a line for each metric."""
    for metric, value in scores.items():
        yield {"method": said.method, "kind": said.kind, "case": case, "metric": metric, "value": value}


def _simple(table: Table, problem: imputation.Problem, seed: int) -> Iterator[Said]:
    cells, genes = problem.entries
    yield Said("gene mean", "baseline", baselines.gene_mean(problem))
    apart = baselines.distances(problem)
    yield Said(f"{baselines.NEIGHBOURS} neighbours", "baseline", baselines.nearest_neighbours(problem, apart))
    yield Said("diffusion", "baseline", baselines.diffusion(problem, apart))
    if len(apart) > len(problem.hidden):  # those that know what is hidden in all others
        apart[:, : len(problem.hidden)] = np.inf
        name = f"{baselines.NEIGHBOURS} neighbours in the reference"
        yield Said(name, "baseline", baselines.nearest_neighbours(problem, apart))
    rng = np.random.default_rng(seed)
    exchanged = rng.permuted(table.counts, axis=0)[cells, genes]
    mixed = np.where(rng.random(len(cells)) < SPOILED, exchanged, table.counts[cells, genes])
    yield Said("truth, exchanged among cells", "negative", exchanged)
    yield Said("truth, one in fifty exchanged", "positive", mixed)


def _reference(
    study: Study, columns: np.ndarray, reference: Sequence[Study], cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return counts [m, K] of `cells` random cells of the reference studies, and the genes that all measured. [K]"""
    names = study.counts.genes[columns].tolist()
    found, there = [], np.ones(len(columns), bool)
    for other in reference:
        second = vocab.second_names(other.counts.var)
        mapping = vocab.map_genes(
            other.counts.genes, names, ensembl=second, table=other.table or study.table, min_mapped=None
        )
        taken = other.draw(seed, -(-cells // len(reference)))
        found.append(mapping.apply(other.counts.take(taken)).toarray().astype(np.float32))
        there &= np.isin(np.arange(len(columns)), mapping.index)
    return np.concatenate(found), there


TASKS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "gene_imputation": lambda *args, **options: impute("gene", *args, **options),
    "cell_imputation": lambda *args, **options: impute("cell", *args, **options),
    "fixed_gene_imputation": lambda *args, **options: impute("fixed_gene", *args, **options),
    "denoising": denoise,
    "spatial_imputation": impute_in_space,
    "tuned_spatial_imputation": impute_in_space,
}
