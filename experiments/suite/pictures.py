"""What a suite's report draws of labelled cells: the embedding of each run and PCA-50, and who is taken for whom."""

import contextlib
import pathlib

import numpy as np
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier

from data_pipeline.files import whole
from experiments.suite import embeddings, keys, tasks
from experiments.suite.entrants import Entrant, Study
from scfm_jax.saving import sealed
from scfm_jax.tasks.cells import embedding


def write(
    entrant: Entrant | None,
    study: Study,
    seed: int,
    cells: int,
    folder: pathlib.Path,
    source: keys.Source = keys.source,
) -> None:
    """Write the embedding of a run, or PCA-50, and the confusion of five neighbours, unless they are there already.

    They are if nothing that they depend on has changed since, the code (of which `source` is the text) included.

    Raises:
      Inapplicable: the study has no labels, or the run cannot be given any study.
    """
    tasks.check_needs({"labels"}, entrant, study)
    modules = [__name__, *([entrant.run.module.__name__] if entrant else [])]
    content = {"weights": entrant.weights if entrant else None, "data": study.sha256, "tables": study.tables_sha256}
    content |= {"columns": [study.label, study.batch], "seed": seed, "cells": cells}
    key = keys.of({**content, "code": keys.code(modules, source)})
    path = folder / f"{entrant.name if entrant else 'PCA-50'}@{study.name}.npz"
    if path.exists():
        with contextlib.suppress(sealed.Damaged):  # then it is made again
            if str(sealed.read_arrays(path).get("key")) == key:
                return
    labels = embeddings.labels(study, seed, cells)
    batches = study.batches[study.draw(seed, cells)] if study.batches is not None else np.full(len(labels), "")
    if entrant is None:
        x = embeddings.components(study, seed, cells)
    else:
        x = entrant.embed(study, seed, cells, False)
    types, confusion = _confusion(x, labels, seed)
    arrays = {"embedding": x, "label": labels.astype(str), "batch": batches.astype(str), "types": types}
    folder.mkdir(exist_ok=True)
    with whole.writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, confusion=confusion, key=key, **arrays)


def _confusion(x: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the types [T], and how often each (row) is taken for each by five neighbours of other folds. [T, T]"""
    counted, codes = embedding.countable(labels)
    x, predicted = x[counted], np.empty_like(codes)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(x, codes):
        predicted[test] = KNeighborsClassifier(5).fit(x[train], codes[train]).predict(x[test])
    names = np.array([str(labels[counted][codes == code][0]) for code in np.unique(codes)])
    return names, confusion_matrix(codes, predicted)
