"""The table of `experiments.annotate` and its confusion matrices, from the results that are finished so far."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.analyses import annotation
from experiments.pages import figures, output
from scfm_jax.saving import sealed
from scfm_jax.tasks.cells import cell_type, embedding
from scfm_jax.tasks.cells.annotation_baselines import BASELINES

SAYS = "annotated as, all seeds together"


def write(out: pathlib.Path) -> str:
    """Write annotation.json, .csv and .md and the pictures of all rows to OUT; return the table."""
    rows, truth = finished(out), annotation.truth_of(out)
    content = {"plan": output.read(out / "plan.json"), "cells": len(truth), "rows": rows}
    text = table(rows, len(truth))
    files = {
        "annotation.json": content,
        "annotation.csv": pd.DataFrame(rows).to_csv(index=False),
        "annotation.md": text + "\n",
    }
    for name, group in groups(rows).items():
        drawn = figures.confusion(*pooled(out, group, truth), SAYS, name)
        files[f"confusion_{name.replace(' ', '_').replace(',', '')}.png"] = drawn
    for name, data in files.items():
        output.write_file(out / name, data)
    return text


def finished(out: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of the finished cells, models first, baselines last, each with the name of its files."""
    files = sorted((out / "cells").glob("*.json"))
    rows = [row | {"key": path.stem} for path in files if (row := output.finished(path))]
    methods = (*annotation.METHODS, "")
    place = {name: i for i, name in enumerate(BASELINES)}
    return sorted(
        rows,
        key=lambda row: (
            place.get(row["model"], -1),
            row["model"],
            row.get("name", ""),
            methods.index(row["method"]),
            row["seed"],
        ),
    )


def groups(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the rows of all seeds by what they are called in the table: the model, and the run if it has several."""
    runs: dict[str, set[str]] = {}
    for row in rows:
        runs.setdefault(row["model"], set()).add(row.get("name", ""))
    named: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        method = {"": "", "twin": ", random twin"}.get(row["method"], f", {row['method']}")
        run = f" {row['name']}" if len(runs[row["model"]]) > 1 else ""
        named.setdefault(row["model"] + run + method, []).append(row)
    return named


def table(rows: Sequence[Mapping[str, Any]], n: int) -> str:
    """Return the scores in Markdown, mean ± half the range over seeds."""
    head = ["", *cell_type.METRICS.values(), "seeds", "cpu s"]
    lines = []
    for name, group in groups(rows).items():
        scores = [output.spread([row[metric] for row in group]) for metric in cell_type.METRICS]
        lines.append([name, *scores, str(len(group)), output.spread([row["cpu_s"] for row in group], 0)])
    void = "".join(f"; {embedding.VOID.format(name)}" for name, group in groups(rows).items() if group[0].get("void"))
    return f"{output.markdown(head, lines)}\n\n{n} cells annotated; mean ± half the range over seeds{void}"


def pooled(out: pathlib.Path, group: Sequence[Mapping[str, Any]], truth: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the confusion matrix of all seeds together, and the types."""
    total = 0
    for row in group:
        saved = sealed.read_arrays(out / f"cells/{row['key']}.npz")
        classes = [str(name) for name in saved["classes"]]
        total = total + cell_type.confusion(truth, saved["shares"], classes)
    return total, classes
