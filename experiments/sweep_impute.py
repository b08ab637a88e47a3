"""Score a model's gene imputation by a ruler that does not depend on the model, so that points of a sweep compare.

    python -m experiments.sweep_impute --workdir=W --input=x.h5ad [--rate=0.15] [--bins=5] [--cells=500] [--bag=50]

What `experiments.impute --task=gene` scores, but for three things. Cells and masks of a seed are the same whatever the
size of bags, so two runs are compared entry by entry. Truth and predictions are put into `--bins` bins, whatever the
model's own number: shares of its bins are laid over those, evenly within a bin (`rebin`; with equal numbers nothing
changes), and "mcc_own" keeps the paper's way, the model's own bins. Counts are scored without bins: mean absolute error
and mean squared error of log1p. All are of expressed genes. Writes W/sweep_imputation.json.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from data_pipeline import h5ad, vocab
from experiments import cli

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Folder of a training run.")
flags.DEFINE_string("input", None, "File of raw counts, not one of the training studies.")
flags.DEFINE_float("rate", 0.15, "Share of the genes of every cell that is hidden.", 0.001, 0.999)
flags.DEFINE_integer("bins", 5, "Bins to score in, zero included.", 2)
flags.DEFINE_integer("seeds", 1, "Number of evaluation seeds: of the cells, the mask and the random twin.", 1)
flags.DEFINE_integer("cells", 500, "Cells of a seed.", 1)
flags.DEFINE_integer("bag", 50, "Cells that the model sees together.", 1)
flags.DEFINE_string("ruler", "visible", "What the borders of bins are read off: visible entries, or the whole cell.")
flags.DEFINE_list("gene_table", [], "Tables that translate gene names, HGNC or GENCODE style.")
flags.DEFINE_float("min_mapped", 0.0, "Least share of the input's genes that the model must know.", 0, 1)


def main(_) -> None:
    if not FLAGS.workdir or not FLAGS.input:
        raise ValueError("--workdir and --input say which model imputes what (see --helpshort)")
    if FLAGS.ruler not in ("visible", "cell"):
        raise ValueError(f"--ruler={FLAGS.ruler}: there are visible, cell")
    from scfm_jax import api

    run, table = api.load(FLAGS.workdir), vocab.read_table(FLAGS.gene_table) if FLAGS.gene_table else None
    rows: list[dict[str, Any]] = []
    with h5ad.read_counts(FLAGS.input) as counts:
        from experiments.imputing import Cells

        file = Cells(counts, run.genes, table, FLAGS.min_mapped)
        print(file.mapping.report)
        for seed in range(FLAGS.seeds):
            rows += of_seed(run, file, seed, FLAGS.rate, FLAGS.bins, FLAGS.cells, FLAGS.bag, FLAGS.ruler)
    options = {name: FLAGS[name].value for name in ("rate", "bins", "seeds", "cells", "bag", "ruler")}
    path = pathlib.Path(FLAGS.workdir) / "sweep_imputation.json"
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps({"input": pathlib.Path(FLAGS.input).name, **options, "rows": rows}, indent=1) + "\n")
    partial.replace(path)
    for row in rows:
        print("  ".join(f"{name} {v:.4f}" if isinstance(v, float) else f"{name} {v}" for name, v in row.items()))


def of_seed(
    run: Any, file: Any, seed: int, rate: float, n_bins: int, cells: int, bag: int, ruler: str
) -> Iterator[dict[str, Any]]:
    """Yield the scores of the model, its random twin and the baselines on `cells` random cells of a file."""
    from scfm_jax.tasks import bins, imputation
    from scfm_jax.tasks.adapters import Imputer

    rng = np.random.default_rng(seed)
    truth = file.take(rng.permutation(file.n)[:cells])
    hidden, _ = next(imputation.get("gene").cases(truth, file.measured, [], [rate], rng))
    bags = [np.arange(start, min(start + bag, len(truth))) for start in range(0, len(truth), bag)]
    problem = imputation.pose(truth, file.measured, hidden, bags)
    imputer = Imputer(run.name, run.module, run.model, run.meta["config"], run.constants)
    seen = (truth, truth.sum(1)) if ruler == "cell" else (problem.counts, problem.depth)

    def rulers(number: int) -> tuple[bins.Ruler, bins.Ruler]:  # of predictions, of the truth
        options = imputer.binning | {"n_bins": number}
        return bins.fit(*seen, **options), bins.fit(truth, truth.sum(1), **options)

    shared, own = rulers(n_bins), rulers(imputer.binning.get("n_bins", n_bins))
    for method, prediction in _predictions(run, run.twin(seed), imputer, problem, own[0]):
        yield {"method": method, "seed": seed, **score(prediction, problem, truth, shared, own)}


def score(prediction: np.ndarray, problem: Any, truth: np.ndarray, shared: tuple, own: tuple) -> dict[str, float]:
    """Return the scores over the hidden entries of expressed genes.

    Args:
      prediction: expected counts [h], or shares of the bins of own[0] [h, bins].
      shared, own: rulers of the predictions and of the truth: those to compare by, and the model's.
    """
    from scfm_jax.tasks import imputation

    rows, columns = problem.entries
    true = truth[rows, columns]
    counted = true > 0
    if prediction.ndim == 2:
        counts = own[0].counts(prediction, rows)
        said = rebin(prediction, shared[0].n_bins).argmax(1), prediction.argmax(1)
    else:
        counts = prediction
        said = shared[0].bins(counts, rows), own[0].bins(counts, rows)
    mcc, mcc_own = (
        imputation.matthews(ruler[1].bins(true, rows)[counted], names[counted])
        for ruler, names in zip((shared, own), said, strict=True)
    )
    error, logs = np.abs(counts - true)[counted], (np.log1p(counts) - np.log1p(true))[counted]
    mae, msle = float(error.mean(dtype=np.float64)), float((logs**2).mean(dtype=np.float64))
    return {"mcc": mcc, "mcc_own": mcc_own, "mae": mae, "msle": msle, "entries": int(counted.sum())}


def rebin(shares: np.ndarray, n_bins: int) -> np.ndarray:
    """Lay shares of equal bins of a range over another number of equal bins, evenly within each. [h, m] -> [h, n_bins]

    Bin 0, no expression, stays what it is.
    """
    there, here = (np.linspace(0, 1, n) for n in (shares.shape[1], n_bins))
    top, bottom = np.minimum(there[1:, None], here[1:]), np.maximum(there[:-1, None], here[:-1])
    overlap = np.maximum(top - bottom, 0) * (len(there) - 1)
    return np.concatenate([shares[:, :1], shares[:, 1:] @ overlap.astype(shares.dtype)], 1)


def _predictions(run: Any, twin: Any, imputer: Any, problem: Any, ruler: Any) -> Iterator[tuple[str, np.ndarray]]:
    from scfm_jax.tasks import imputation_baselines as baselines

    yield run.name, imputer(run.variables, problem, ruler)
    yield "random twin", imputer(twin.variables, problem, ruler)
    yield "gene mean", baselines.gene_mean(problem)
    yield "most common bin", baselines.most_common_bin(problem, ruler)
    yield f"{baselines.NEIGHBOURS} neighbours", baselines.nearest_neighbours(problem, baselines.distances(problem))


if __name__ == "__main__":
    cli.run(main)
