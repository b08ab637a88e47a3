"""What tasks of a suite that predict counts share: the cells, what is predicted of them, baselines and controls.

All methods see the same cells, of which a seed draws whole bags, and the same genes: those that every run knows. Rare
ones among them are not zeroed, even for a run that was trained so (`Run.gene_fraction`). What a run predicts is put
into counts by its own ruler (`tasks.bins`), or stays shares of bins where its bins are the common five, which are read
off the visible counts.

Controls are made of the truth: each gene's counts exchanged among the cells (negative: the genes' distributions, and
nothing of the cells), and the truth with one in fifty of its entries replaced by those (positive).
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import panels
from data_pipeline.genes import vocab
from experiments.analyses import cells as model_cells
from experiments.suite import tasks
from experiments.suite.entrants import Entrant, SharedGenes, Study
from scfm_jax import api
from scfm_jax.inference.bags import BAG
from scfm_jax.tasks.imputation import alra, baselines, bins, dca, imputation, tables
from scfm_jax.tasks.imputation.imputer import Imputer

ERRORS = {
    "rmse": "root mean squared error of log1p",
    "mae": "mean absolute error of log1p",
    "corr": "Pearson correlation of log1p",
    "cos": "cosine of log1p",
}
"""What the scores of predicted expression are."""
SPOILED = 0.02
"""Share of entries that the positive control has from another cell."""


@dataclasses.dataclass
class Table:
    """Cells of a study as counts of the shared genes.

    Attributes:
      columns: genes of the file. rows: cells of the file. [n]
      counts: [n, K]. bags: rows seen together.
      where: samples, coords and field_coords of a `Problem`.
      measured: genes that the batch of each cell measured, bool [n, K].
    """

    columns: SharedGenes
    rows: np.ndarray
    counts: np.ndarray
    bags: list[np.ndarray]
    where: dict[str, np.ndarray]
    measured: np.ndarray


@dataclasses.dataclass
class Prediction:
    """A prediction of the hidden entries: counts [h], or shares of bins [h, n_bins] by a ruler, and whose it is."""

    method: str
    kind: str
    values: np.ndarray
    ruler: bins.Ruler | None = None

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Return it as counts of the cells `rows`. [h]"""
        return self.ruler.counts(self.values, rows) if self.values.ndim == 2 else self.values

    def by(self, ruler: bins.Ruler, rows: np.ndarray) -> np.ndarray:
        """Return it as shares of bins where its bins are those of `ruler` [h, n_bins], else as counts [h]."""
        edges = None if self.ruler is None else self.ruler.edges
        same = edges is not None and edges.shape == ruler.edges.shape and np.allclose(edges, ruler.edges)
        return self.values if same else self.counts(rows)

    def rows(self, case: str, scores: Mapping[str, float]) -> Iterator[dict[str, Any]]:
        """Yield a row for each metric."""
        return tasks.rows(self.method, self.kind, case, scores)


def draw(study: Study, columns: SharedGenes, seed: int, cells: int) -> Table:
    """Return the cells that a seed draws, whole bags of neighbours or of random cells of a sample."""
    bags = model_cells.draw(study.where["samples"], study.coords, BAG, cells, np.random.default_rng(seed))
    rows = np.concatenate(bags)
    counts = columns.of(study.counts.take(rows)).toarray().astype(np.float32)
    borders = np.cumsum([len(bag) for bag in bags])[:-1]
    where = {name: values[rows] for name, values in study.where.items()}
    panel, measured = panels.onto(study.counts, columns.gene, len(columns))
    parts = np.split(np.arange(len(rows)), borders)
    return Table(columns, rows, counts, parts, where, measured[panel[rows]])


@functools.cache
def imputer(entrant: Entrant) -> Imputer:
    """Return the run as one that imputes, compiled once; ValueError where it cannot."""
    run = entrant.run
    return Imputer(run.module, run.model, run.meta["config"], run.constants)


def predictions(
    entrant: Entrant | None,
    study: Study,
    table: Table,
    problem: imputation.Problem,
    seed: int,
    common: bins.Ruler | None = None,
    together: Callable[[imputation.Problem], imputation.Problem] | None = None,
    learn: Callable[[api.Run, imputation.Problem, int], api.Run] | None = None,
) -> Iterator[Prediction]:
    """Yield what a run and its random twin say of the hidden entries; without a run, baselines and controls.

    Args:
      common: ruler of the problem's cells, for baselines that are tables of bins; None: the gene mean alone. Where the
        problem has `totals`, a run's own ruler is of whole cells, too.
      together: puts the reference cells among the others, for a model whose cells attend to each other.
      learn: fine-tunes both first, each on the problem in its own genes and by the seed.
    """
    if entrant is None:
        yield from _simple(table, problem, seed, common)
        return
    ask, slots = imputer(entrant), entrant.slots(study)[table.columns.columns]
    if (slots < 0).any():
        raise ValueError(f"the run knows {(slots >= 0).sum()} of the {len(slots)} genes that the others share")
    posed = problem
    if together and entrant.run.rules.together is True:
        posed = together(problem)
    kind = "visible" if problem.totals is None else "cell"
    ruler = imputation.fit_ruler(posed, table.counts, kind, **ask.binning)
    asked, order = onto(posed, slots, len(entrant.run.genes), entrant.run.rules.imputed_bag)
    for kind, run in (("model", entrant.run), ("twin", entrant.run.twin(seed))):
        method = entrant.name if kind == "model" else f"{entrant.name}, random twin"
        run = learn(run, asked, seed) if learn else run
        answer = ask(run.variables, asked, ruler)
        values = np.empty_like(answer)
        values[order] = answer
        yield Prediction(method, kind, values, ruler if values.ndim == 2 else None)
        if kind == "model" and ask.zeros != 1:
            yield Prediction(f"{method}, even masks", kind, bins.even(values, ask.zeros), ruler)


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


def _simple(table: Table, problem: imputation.Problem, seed: int, common: bins.Ruler | None) -> Iterator[Prediction]:
    cells, genes = problem.entries
    simple = tables.predictions(problem, common) if common else {"gene mean": baselines.gene_mean(problem)}
    for name, values in simple.items():
        yield Prediction(name, "baseline", values, common)
    apart = baselines.distances(problem)
    yield Prediction(f"{baselines.NEIGHBOURS} neighbours", "baseline", baselines.nearest_neighbours(problem, apart))
    yield Prediction("diffusion", "baseline", baselines.diffusion(problem, apart))
    if len(apart) > len(problem.hidden):  # those that know what is hidden in all others
        apart[:, : len(problem.hidden)] = np.inf
        name = f"{baselines.NEIGHBOURS} neighbours in the reference"
        yield Prediction(name, "baseline", baselines.nearest_neighbours(problem, apart))
    rng = np.random.default_rng(seed)
    exchanged = rng.permuted(table.counts, axis=0)[cells, genes]
    mixed = np.where(rng.random(len(cells)) < SPOILED, exchanged, table.counts[cells, genes])
    yield Prediction("truth, exchanged among cells", "negative", exchanged)
    yield Prediction("truth, one in fifty exchanged", "positive", mixed)


def fitted(problem: imputation.Problem, seed: int) -> Iterator[Prediction]:
    """Yield what baselines say that are fitted to the problem's counts, where some of each cell's are visible."""
    yield Prediction("ALRA", "baseline", alra.predict(problem, seed))
    yield Prediction("DCA", "baseline", dca.predict(problem, seed))


def reference_counts(
    study: Study, columns: SharedGenes, reference: Sequence[Study], cells: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return counts [m, K] of `cells` random cells of the reference studies, and the genes that all measured. [K]"""
    names, second = ([names[i] for i in columns.columns] for names in vocab.file_names(study.counts))
    often = collections.Counter(names)
    twice = [often[name] > 1 or not name for name in names]  # genes of one symbol go by their ids
    names = [other if both else name for name, other, both in zip(names, second, twice, strict=True)]
    counts, measured = [], np.ones(len(columns), bool)
    for other in reference:
        table = vocab.learn([(names, second)], other.table or study.table)
        mapping = vocab.onto(other.counts, names, table=table, min_mapped=None)
        rows = other.draw(seed, -(-cells // len(reference)))
        counts.append(mapping.apply(other.counts.take(rows)).toarray().astype(np.float32))
        measured &= np.isin(np.arange(len(columns)), mapping.index)
    return np.concatenate(counts), measured
