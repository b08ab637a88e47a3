"""Score the classes that a model's class token predicts, beside the most common class and random twins."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyses import cells as model_cells
from experiments.pages import output
from scfm_jax.api import Run
from scfm_jax.tasks.cells import class_token as task
from scfm_jax.training import pace

SHOWN = ("accuracy", "balanced_accuracy", "macro_f1")


def evaluate(
    run: Run,
    sources: Sequence[Any],
    *,
    label: str | None = None,
    seeds: int = 3,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return rows of scores: each file, and all of them together, by the model and by twins.

    Args:
      label: obs column of the truth; by default the one that the model was trained to tell.
      seeds: of the hidden genes and the twins' weights.
      options: of `model_cells.read`.

    Raises:
      ValueError, OSError: a model without a class token, no such column, no label that the model knows; in one line.
    """
    inputs = dict(run.config.get("inputs", {}))
    trained = inputs.get("label", "tissue")
    names = run.classes.get(trained, [])
    files = []
    for source in sources:
        cells = model_cells.read(run, source, say=say, **options)
        text = cells.column(label or trained, "label")
        truth = np.array([names.index(t) if t in names else -1 for t in text])
        files.append((cells, truth, sorted(set(text[truth < 0]) - {""})))
    constants = [cells.constants(run, say) for cells, _, _ in files]
    report: dict[str, Any] = {"model": run.name, "weights": run.source, "label": label or trained, "classes": names}
    report["files"] = [
        {"input": cells.name, "cells": len(truth), "unknown": unknown, "trained_on": cells.trained_on}
        for cells, truth, unknown in files
    ]
    rows = []
    methods = [(run.name, seed, run, True) for seed in range(seeds)] + [(f"{run.name}, nothing hidden", 0, run, False)]
    methods += [("random twin", seed, run.twin(seed), True) for seed in range(seeds)]
    for name, seed, model, hide in pace.counted(methods, "scored method and seed", say):
        said = [
            _predict(model, cells, file_constants, inputs, hide=hide, seed=seed)
            for (cells, _, _), file_constants in zip(files, constants, strict=True)
        ]
        parts = [(cells.name, p, truth) for (cells, truth, _), p in zip(files, said, strict=True) if (truth >= 0).any()]
        if not parts:
            labels = ", ".join(sorted({t for *_, unknown in files for t in unknown})) or "none"
            raise ValueError(f"label {report['label']}: the model knows {', '.join(names)}; in the files are {labels}")
        if len(parts) > 1:
            parts.append(("all", *(np.concatenate([part[i] for part in parts]) for i in (1, 2))))
        rows += [{"input": part, "method": name, "seed": seed, **task.score(p, truth)} for part, p, truth in parts]
    return {**report, "rows": rows}


def _predict(
    run: Run, cells: model_cells.ModelCells, constants: Mapping[str, Any], inputs: Mapping[str, Any], **how: Any
) -> np.ndarray:
    """Return the probabilities of the classes of every cell. [n, classes]"""
    parts = (run.module, run.model, run.variables, constants)
    return task.predict(*parts, cells.batches(run), cells.counts.shape[0], inputs=inputs, **how)


def table(found: dict[str, Any]) -> str:
    """Return the scores as Markdown, a line for each file and method."""
    lines = []
    for file in dict.fromkeys(row["input"] for row in found["rows"]):
        of_file = [row for row in found["rows"] if row["input"] == file]
        for method in dict.fromkeys(row["method"] for row in of_file):
            of_method = [row for row in of_file if row["method"] == method]
            scores = [output.spread([row[name] for row in of_method]) for name in SHOWN]
            lines.append([file, str(of_method[0]["cells"]), method, *scores])
        lines.append([file, str(of_file[0]["cells"]), "most common class", f"{of_file[0]['majority']:.3f}", "–", "–"])
    text = output.markdown(["file", "cells", "method", "accuracy", "balanced accuracy", "macro-F1"], lines)
    text += (
        f"\n\nThe class token tells {len(found['classes'])} classes of {found['label']}: {', '.join(found['classes'])}."
    )
    for file in found["files"]:
        if file["unknown"]:
            text += f"\nLeft out of {file['input']}, since the model does not know them: {', '.join(file['unknown'])}."
        if file["trained_on"]:
            text += f"\nCaution: by its name {file['input']} is a study that the model was trained on."
    return text
