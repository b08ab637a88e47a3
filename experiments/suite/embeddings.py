"""What tasks of a suite that score embeddings share: the embeddings of a run and its twin, PCA-50, and controls.

A seed draws cells, the same for all; a model embeds them by themselves, so that what it sees together is what is
scored. Baselines: PCA-50 of those cells, and in `scored` scVI, if it is installed. Controls: noise around a place for
each label (positive), and the rows of PCA-50 exchanged (negative: all labels and batches mix).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp

from experiments.suite import scvi_baseline, tasks
from experiments.suite.entrants import Entrant, Study
from scfm_jax.tasks.cells import embedding

NOISE = 0.2
"""Standard deviation of the positive control, where two labels are a distance of 1.4 apart."""


def labels(study: Study, seed: int, cells: int) -> np.ndarray:
    """Return the labels of the cells that a seed draws, of a study that has labels. [n]"""
    return study.labels[study.draw(seed, cells)]


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


def scored(
    entrant: Entrant | None, study: Study, seed: int, cells: int, score: Callable[[np.ndarray], Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric that `score` gives embeddings [n, D]; one that says why where scVI is missing."""
    for method, kind, x in embeddings(entrant, study, seed, cells):
        yield from tasks.rows(method, kind, "", score(x))
    if entrant is None:
        try:
            x = scvi(study, seed, cells)
        except ImportError as error:
            yield tasks.absent("scVI", error)
        else:
            yield from tasks.rows("scVI", "baseline", "", score(x))


def installed() -> str | None:
    """Return the version of scVI, None where it is not installed."""
    return scvi_baseline.version()


@functools.lru_cache(maxsize=8)
def scvi(study: Study, seed: int, cells: int) -> np.ndarray:
    """Return the latent means of scVI of the cells that a seed draws, by whose batches it is told them apart. [n, 10]

    Raises:
      ImportError: it is not installed.
    """
    drawn = study.draw(seed, cells)
    batches = None if study.batches is None else embedding.encode(study.batches[drawn])
    return scvi_baseline.embed(sp.csr_matrix(study.counts.take(drawn)), batches, seed)


@functools.lru_cache(maxsize=8)
def components(study: Study, seed: int, cells: int) -> np.ndarray:
    """Return PCA-50 of the cells that a seed draws. [n, 50]"""
    return embedding.pca(sp.csr_matrix(study.counts.take(study.draw(seed, cells))), seed=seed)
