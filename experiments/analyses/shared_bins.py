"""Score gene imputation by bins that do not depend on the model, with the same cells and masks for all models.

`experiments.sweep_impute` reports these scores. The masks are those of `scfm_jax.tasks.imputation`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.analyses.cells import Cells
from scfm_jax import api
from scfm_jax.tasks.imputation import baselines, bins, imputation, tables, within_gene
from scfm_jax.tasks.imputation.imputer import Imputer


def of_seed(
    run: api.Run, file: Cells, seed: int, rate: float, n_bins: int, cells: int, bag: int, ruler: str
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the model, its random twin and the baselines on `cells` random cells of a file."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(file.n)[:cells]
    truth = file.take(chosen)
    hidden, _ = next(imputation.get("gene").cases(truth, file.measured, [], [rate], rng))
    bags = [np.arange(start, min(start + bag, len(truth))) for start in range(0, len(truth), bag)]
    problem = imputation.pose(truth, file.panels[file.panel[chosen]], hidden, bags, ruler=ruler)
    imputer = Imputer(run.module, run.model, run.meta["config"], run.constants)

    def rulers(number: int) -> tuple[bins.Ruler, bins.Ruler]:  # of predictions, of the truth
        options = imputer.binning | {"n_bins": number}
        return imputation.fit_ruler(problem, truth, ruler, **options), bins.fit(truth, truth.sum(1), **options)

    shared_rulers, model_rulers = rulers(n_bins), rulers(imputer.binning.get("n_bins", n_bins))
    for method, prediction in _predictions(run, seed, imputer, problem, model_rulers[0], file.samples[chosen]):
        yield {
            "method": method,
            "seed": seed,
            **score(prediction, problem, truth, shared_rulers, model_rulers, imputer.zeros),
        }


def score(
    prediction: np.ndarray,
    problem: imputation.Problem,
    truth: np.ndarray,
    shared: tuple[bins.Ruler, bins.Ruler],
    own: tuple[bins.Ruler, bins.Ruler],
    zeros: float = 1.0,
) -> dict[str, float]:
    """Return the scores over the hidden entries: of expressed genes, and mcc_all of all.

    Args:
      prediction: expected counts [h], or shares of the bins of own[0] [h, bins].
      shared, own: rulers of the predictions and of the truth: those to compare by, and the model's.
      zeros: how many times as often as others zeros were hidden in training; mcc_all is of shares for even masks.
    """
    rows, columns = problem.entries
    true, n_bins = truth[rows, columns], shared[0].n_bins
    counted = true > 0
    if prediction.ndim == 2:
        counts = own[0].counts(prediction, rows)
        said, said_own = rebin(prediction, n_bins).argmax(1), prediction.argmax(1)
        said_even = rebin(bins.even(prediction, zeros), n_bins).argmax(1)
    else:
        counts = prediction
        said, said_own = shared[0].bins(counts, rows), own[0].bins(counts, rows)
        said_even = said
    wanted, error = shared[1].bins(true, rows), (counts - true)[counted]
    logs = (np.log1p(counts) - np.log1p(true))[counted]
    return {
        "mcc": imputation.matthews(wanted[counted], said[counted]),
        "mcc_within_gene": within_gene.matthews(wanted[counted], said[counted], columns[counted]),
        "mcc_own": imputation.matthews(own[1].bins(true, rows)[counted], said_own[counted]),
        "mcc_all": imputation.matthews(wanted, said_even),
        "mae": float(np.abs(error).mean(dtype=np.float64)),
        "msle": float((logs**2).mean(dtype=np.float64)),
        "entries": int(counted.sum()),
    }


def rebin(shares: np.ndarray, n_bins: int) -> np.ndarray:
    """Lay shares of equal bins of a range over another number of equal bins, evenly within each. [h, m] -> [h, n_bins]

    Bin 0, no expression, stays what it is.
    """
    old_edges, new_edges = (np.linspace(0, 1, n) for n in (shares.shape[1], n_bins))
    top, bottom = np.minimum(old_edges[1:, None], new_edges[1:]), np.maximum(old_edges[:-1, None], new_edges[:-1])
    overlap = np.maximum(top - bottom, 0) * (len(old_edges) - 1)
    return np.concatenate([shares[:, :1], shares[:, 1:] @ overlap.astype(shares.dtype)], 1)


def _predictions(
    run: api.Run, seed: int, imputer: Imputer, problem: imputation.Problem, ruler: bins.Ruler, samples: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the prediction of every method; tables are told the `samples` [n], models see none."""
    yield run.name, imputer(run.variables, problem, ruler)
    yield "random twin", imputer(run.twin(seed).variables, problem, ruler)
    yield from tables.predictions(problem, ruler, samples).items()
    yield f"{baselines.NEIGHBOURS} neighbours", baselines.nearest_neighbours(problem, baselines.distances(problem))
