"""The card of a model that others are given: data, licences, genes, losses beside floors, scores beside baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.pages import output
from scfm_jax.api import Run

SHOWN = {
    ("cell_typing", "accuracy"): "5-NN accuracy",
    ("annotation", "f1"): "cell types by a linear head, macro-F1",
    ("clustering", "nmi"): "Leiden clusters, NMI",
    ("gene_imputation", "mcc_within_gene"): "hidden genes, MCC within genes",
    ("denoising", "rmse"): "denoising, RMSE",
}
"""Scores of a card, by task and metric of a suite."""
LIMITS = """It is small and has seen few cells: it is for trying the tools on a CPU, without training. For work of your
own train on your own studies, or load the authors' weights. Where a score is no better than the random twin's or a
simple baseline's, the model adds nothing."""


def written(
    run: Run,
    name: str,
    studies: Mapping[str, Mapping[str, Any]],
    licences: pd.DataFrame,
    logged: Sequence[Mapping[str, Any]],
    table: pd.DataFrame | None = None,
    content: Mapping[str, Any] | None = None,
    known_as: str = "",
) -> str:
    """Return the card, Markdown.

    Args:
      name: under which `api.load("scfm:NAME")` finds the weights.
      studies: of the store's manifest. licences: columns licence and source, by the study's name.
      logged: lines of metrics.jsonl.
      table, content: of `suite.table` and `suite.results`, None for no scores. known_as: the run's name there.
    """
    parts = [_head(run, name), _data(run, studies, licences), _genes(run), _losses(logged, run)]
    if table is not None:
        parts.append(_scores(table, content, known_as))
    return "\n\n".join([*parts, f"## Limits\n\n{LIMITS}"]) + "\n"


def _head(run: Run, name: str) -> str:
    config = run.meta["config"]
    cells = run.meta["step"] * config["data"]["bag"] * config["data"]["batch"]
    return (
        f'# {name}\n\n`scfm_jax.api.load("scfm:{name}")`: {run.name} with {run.parameters:,} parameters, trained for '
        f"{run.meta['step']:,} updates, {cells:,} cells seen, seed {config['train']['seed']}, learning rate "
        f"{config['optim']['learning_rate']:g}, by scfm_jax {run.meta['code_version']}. The weights are under the "
        "licence of scfm_jax."
    )


def _data(run: Run, studies: Mapping[str, Mapping[str, Any]], licences: pd.DataFrame) -> str:
    rows = [
        [name, f"{study['shape'][0]:,}", str(len(study["groups"])), licences.licence[name], licences.source[name]]
        for name, study in studies.items()
    ]
    head = ["study", "cells", "samples", "licence", "from"]
    held = run.meta["config"]["data"]["split"]["val"]
    return f"## Trained on\n\n{held:.0%} of the cells validate.\n\n{output.markdown(head, rows)}"


def _genes(run: Run) -> str:
    some = ", ".join(second or first for first, second in zip(run.genes[:8], run.second_names[:8], strict=True))
    return f"## Genes\n\n{len(run.genes):,} genes, among them {some}; `load(...).genes` has all."


def _losses(logged: Sequence[Mapping[str, Any]], run: Run) -> str:
    values = {name: value for row in logged if row["step"] <= run.meta["step"] for name, value in row.items()}
    floors = {name.removeprefix("floor/"): value for name, value in values.items() if name.startswith("floor/")}
    if "val/residual" not in values:
        raise ValueError(f"{run.source}: was not validated beside floors, so its card could not say what it has learnt")
    metrics = dict.fromkeys(name.split("/")[0] for name in floors)
    rows = [[f"**{m}**, the model", f"{values[f'val/{m}']:.4g}"] for m in metrics if f"val/{m}" in values]
    rows += [[f"{name.replace('/', ', ', 1)}", f"{value:.4g}"] for name, value in floors.items()]
    rows += [["residual, beyond the floor (more than 0 is better than it)", f"{values['val/residual']:.3f}"]]
    said = output.markdown(["score", "value"], sorted(rows[:-1]) + rows[-1:])
    return f"## Validation, beside tables that know no cell\n\n{said}"


def _scores(table: pd.DataFrame, content: Mapping[str, Any], known_as: str) -> str:
    rows = []
    for (task, metric), text in SHOWN.items():
        of_task = table[(table.task == task) & (table.metric == metric)]
        for (dataset, case), part in of_task.groupby(["dataset", "case"], sort=False):
            ours = part[part.run == known_as].set_index("kind")
            if not len(ours):
                continue
            higher = content["metrics"][task][metric]["higher"]
            simple = part[part.kind == "baseline"].sort_values("mean", ascending=not higher).head(1)
            said = [_interval(ours.loc[kind]) if kind in ours.index else "" for kind in ("model", "twin")]
            best = "".join(f"{_interval(row)} ({row.method})" for _, row in simple.iterrows())
            rows.append([f"{text}{', ' if case else ''}{case}", dataset, *said, best])
    head = ["score", "study", "model", "random twin", "best baseline"]
    options = content["options"]
    said = f"{options['cells']} cells, mean ± half the 95 % interval of {options['seeds']} seeds"
    return f"## On studies that it never saw\n\n{said}.\n\n{output.markdown(head, rows)}"


def _interval(row: pd.Series) -> str:
    return f"{row['mean']:.2f} ± {row['half']:.2f}"
