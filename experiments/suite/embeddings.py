"""Tasks of a suite that score embeddings: cell types by neighbours or a head, clusters, batches, metadata; pictures.

A seed draws cells, the same for all; a model embeds them by themselves, so that what it sees together is what is
scored. Baseline: PCA-50 of those cells; for integration also with the means of the batches taken away, and Harmony, if
it is installed. Controls: noise around a place for each label (positive), and the rows of PCA-50 exchanged (negative:
all labels and batches mix).
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, confusion_matrix, normalized_mutual_info_score
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.suite.entrants import Entrant, Inapplicable, Study
from scfm_jax.tasks.cells import (
    annotation_baselines,
    cell_type,
    embedding,
    integration,
    integration_baselines,
    latent_ami,
)

NOISE = 0.2
"""Standard deviation of the positive control, where two labels are a distance of 1.4 apart."""


def cell_typing(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield accuracy and macro-F1 of a vote of five neighbours."""
    counted, codes = embedding.countable(_labels(study, seed, cells))
    for method, kind, x in embeddings(entrant, study, seed, cells):
        yield from rows(method, kind, "", embedding.knn_scores(x[counted], codes, seed=seed))


def clustering(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield NMI and ARI of Leiden clusters at resolution 1, and at the best resolution by the labels."""
    counted, codes = embedding.countable(_labels(study, seed, cells))
    for method, kind, x in embeddings(entrant, study, seed, cells):
        found = {r: embedding.leiden(x[counted], resolution=r, seed=seed) for r in embedding.RESOLUTIONS}
        scores = {}
        for name, metric in (("nmi", normalized_mutual_info_score), ("ari", adjusted_rand_score)):
            scores[name] = float(metric(codes, found[1.0]))
            scores[f"{name}_best"] = max(float(metric(codes, clusters)) for clusters in found.values())
        yield from rows(method, kind, "", scores)


def integrate(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics."""
    labels = _labels(study, seed, cells)
    if study.batches is None:
        raise Inapplicable(f"{study.name} has fewer than two values in obs[{study.batch!r}]")
    drawn = study.draw(seed, cells)
    batches, before = study.batches[drawn], components(study, seed, cells)
    for method, kind, x in embeddings(entrant, study, seed, cells):
        yield from rows(method, kind, "", integration.score(x, labels, batches, before, seed=seed))
    if entrant is None:
        for method, baseline in integration_baselines.BASELINES.items():
            try:
                x = baseline(before, embedding.encode(batches), seed)
            except ImportError as error:
                yield {"method": method, "kind": "baseline", "case": "", "metric": "", "value": None, "why": str(error)}
                continue
            yield from rows(method, "baseline", "", integration.score(x, labels, batches, before, seed=seed))


def annotate(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield scores of a linear head on frozen embeddings, trained on half of the cells, or on all batches but one.

    Which batch is left out changes with the seed; cells of a type that the other batches do not have do not count.
    """
    labels, drawn = _labels(study, seed, cells), study.draw(seed, cells)
    counted, codes = embedding.countable(labels)
    kept = np.flatnonzero(counted)
    if study.batches is None:
        known, new = next(StratifiedShuffleSplit(1, test_size=0.5, random_state=seed).split(kept, codes))
    else:
        batches = embedding.encode(study.batches[drawn])[kept]
        names = np.unique(batches[batches >= 0])
        known, new = (np.flatnonzero(mask) for mask in _without(batches, names[seed % len(names)]))
    classes, y = np.unique(codes[known], return_inverse=True)
    new = new[np.isin(codes[new], classes)]
    if len(classes) < 2 or not len(new):
        raise Inapplicable(f"{study.name}: the cells to learn from have {len(classes)} of the types that are asked for")
    names, truth = [str(c) for c in classes], [str(c) for c in codes[new]]
    for method, kind, x in embeddings(entrant, study, seed, cells):
        x = x[kept]
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500, random_state=seed)).fit(x[known], y)
        yield from rows(method, kind, "", _annotation(truth, head.predict_proba(x[new]), names))
    if entrant is None:
        counts = sp.csr_matrix(study.counts.take(drawn))[kept]
        for method, baseline in annotation_baselines.BASELINES.items():
            shares = baseline(counts[known], y, counts[new], len(classes), seed)
            yield from rows(method, "baseline", "", _annotation(truth, shares, names))


def _without(batches: np.ndarray, one: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which cells are of other batches, and which of `one`. [n], [n]"""
    return (batches >= 0) & (batches != one), batches == one


def _annotation(truth: list[str], shares: np.ndarray, names: list[str]) -> dict[str, float]:
    found = cell_type.score(truth, shares, names)
    return {metric: found[metric] for metric in cell_type.METRICS}


def metadata(entrant: Entrant | None, study: Study, seed: int, *, cells: int) -> Iterator[dict[str, Any]]:
    """Yield the adjusted mutual information of clusters with each column of the metadata."""
    obs = study.counts.obs.iloc[study.draw(seed, cells)]
    try:
        columns = latent_ami.columns(obs)
    except ValueError as error:
        raise Inapplicable(str(error)) from error
    for method, kind, x in embeddings(entrant, study, seed, cells):
        for name, codes in columns.items():
            yield from rows(method, kind, name, {"ami": latent_ami.score(x, codes, seed=seed)})


def embeddings(entrant: Entrant | None, study: Study, seed: int, cells: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield name, kind and embedding [n, D] of a run and its random twin; without a run, of baseline and controls."""
    if entrant is not None:
        yield entrant.name, "model", entrant.embed(study, seed, cells, False)
        yield f"{entrant.name}, random twin", "twin", entrant.embed(study, seed, cells, True)
        return
    before, rng = components(study, seed, cells), np.random.default_rng(seed)
    yield "PCA-50", "baseline", before
    yield "PCA-50, cells exchanged", "negative", rng.permutation(before)
    if study.labels is not None:
        codes = embedding.encode(study.labels[study.draw(seed, cells)])
        places = np.eye(codes.max() + 2, dtype=np.float32)[codes]
        yield "labels with noise", "positive", places + NOISE * rng.normal(size=places.shape).astype(np.float32)


@functools.lru_cache(maxsize=8)
def components(study: Study, seed: int, cells: int) -> np.ndarray:
    """Return PCA-50 of the cells that a seed draws. [n, 50]"""
    return embedding.pca(sp.csr_matrix(study.counts.take(study.draw(seed, cells))), seed=seed)


def picture(entrant: Entrant | None, study: Study, seed: int, cells: int, folder: pathlib.Path) -> None:
    """Write the embedding of a run, or PCA-50, and the confusion of five neighbours, unless they are there already."""
    labels = _labels(study, seed, cells)
    batches = study.batches[study.draw(seed, cells)] if study.batches is not None else np.full(len(labels), "")
    key = f"{entrant.weights if entrant else ''} {study.sha256} {seed} {cells}"
    path = folder / f"{entrant.name if entrant else 'PCA-50'}@{study.name}.npz"
    if path.exists() and str(np.load(path)["key"]) == key:
        return
    x = components(study, seed, cells) if entrant is None else entrant.embed(study, seed, cells, False)
    counted, codes = embedding.countable(labels)
    said = np.empty_like(codes)
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(x[counted], codes):
        said[test] = KNeighborsClassifier(5).fit(x[counted][train], codes[train]).predict(x[counted][test])
    names = np.array([str(labels[counted][codes == code][0]) for code in np.unique(codes)])
    folder.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    arrays = {"embedding": x, "label": labels.astype(str), "batch": batches.astype(str), "types": names, "key": key}
    np.savez_compressed(partial, confusion=confusion_matrix(codes, said), **arrays)
    partial.replace(path)


def rows(method: str, kind: str, case: str, scores: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Yield a line for each metric."""
    for metric, value in scores.items():
        yield {"method": method, "kind": kind, "case": case, "metric": metric, "value": value}


def _labels(study: Study, seed: int, cells: int) -> np.ndarray:
    if study.labels is None:
        raise Inapplicable(f"{study.name} has fewer than two values in obs[{study.label!r}]")
    return study.labels[study.draw(seed, cells)]


TASKS: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "cell_typing": cell_typing,
    "annotation": annotate,
    "clustering": clustering,
    "integration": integrate,
    "metadata": metadata,
}
