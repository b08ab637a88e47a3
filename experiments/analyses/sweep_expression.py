"""Errors of denoised and of held-out expression of a run, its random twin and the baselines, a row for each seed."""

from collections.abc import Sequence
from typing import Any

from experiments.suite import entrants, tasks
from experiments.suite.entrants import Entrant, Study

METRICS = {
    "rmse_denoised": "RMSE of flipped entries, log expression",
    "corr_denoised": "their correlation",
    "rmse_spatial": "RMSE of genes held out of a spatial study, log expression",
    "corr_spatial": "their correlation",
}
KINDS = ("model", "twin", "baseline")


def rows(
    entrant: Entrant,
    source: Study,
    spatial: Study,
    reference: Sequence[Study],
    *,
    rate: float,
    seeds: int,
    cells: int,
) -> list[dict[str, Any]]:
    """Return {"method", "seed", each of METRICS} of every method that answers both tasks.

    Args:
      source: cells to denoise. spatial: to hold genes out of. reference: studies that have them.
      rate: share of each cell's expressed genes that are flipped. cells: of a seed.

    Raises:
      ValueError: the run does not predict expression, or a file lacks what a task needs.
    """
    denoising, held_out = tasks.get("denoising"), tasks.get("spatial_imputation")
    flips, others = {"keep": 0.5, "rate": rate}, {"reference": reference, "reference_cells": cells}
    asked = {"denoised": (denoising, source, flips), "spatial": (held_out, spatial, others)}
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for seed in range(seeds):
        for name, (task, study, options) in asked.items():
            tasks.check_needs(task.NEEDS, entrant, study, reference)
            columns = entrants.shared_genes(study, [entrant])
            for who in (entrant, None):
                for row in task.score(who, study, seed, cells=cells, columns=columns, **options):
                    metric = f"{row['metric']}_{name}"
                    case = task is held_out or row["case"].endswith("flipped")
                    if case and metric in METRICS and row["kind"] in KINDS:
                        scores.setdefault((row["method"], seed), {})[metric] = row["value"]
    whole = {key: values for key, values in scores.items() if len(values) == len(METRICS)}
    return [{"method": method, "seed": seed, **values} for (method, seed), values in whole.items()]
