"""Gene regulatory networks by the cosines between a run's gene vectors, untrained, against measured networks.

A run's vectors are its table, or where it has none the means of its gene representations over cells.
`experiments.networks` also trains DeepSEM from these, and has GENIE3, permutation intervals and the list of edges.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.analyses import networks_data
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tasks import rows
from scfm_jax import api
from scfm_jax.api import gene_features, gene_networks
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.networks import baselines, deepsem, scores

METRICS = {
    "epr": {"text": "early precision over that of chance, which has 1", "higher": True},
    "aupr_ratio": {"text": "average precision over the share of true pairs; chance has 1", "higher": True},
    "auroc": {"text": "area under the ROC curve of pairs; chance has 0.5", "higher": True},
    "regulator_ap": {"text": "average precision among a regulator's pairs, mean over regulators", "higher": True},
}
NEEDS = frozenset({"truth"})
Truths = Sequence[tuple[str, str, str]]


def score(
    entrant: Entrant | None, study: Study, seed: int, *, cells: int, truth: Truths, n_genes: int
) -> Iterator[dict[str, Any]]:
    """Yield the scores of each measured network, a case for each.

    Args:
      cells: of the study at most, the same for all seeds. n_genes: most variable genes beside the regulators.
    """
    data = _read(study, tuple(truth), n_genes, cells)

    def scored(method: str, kind: str, strength: np.ndarray) -> Iterator[dict[str, Any]]:
        for measured in data.truths:
            pairs = scores.pairs(strength, measured.edges, measured.regulators, measured.targets)
            yield from rows(method, kind, measured.name, scores.scores(*pairs))

    if entrant is not None:
        yield from scored(entrant.name, "model", _cosines(study, data, entrant.run))
        yield from scored(f"{entrant.name}, random twin", "twin", _cosines(study, data, entrant.run.twin(seed)))
        return
    correlation = baselines.pearson(data.x)
    yield from scored("|Pearson|", "baseline", correlation)
    yield from scored("|Spearman|", "baseline", baselines.spearman(data.x))
    drawn = features.random(data.names, seed).values
    yield from scored("random vectors", "baseline", deepsem.cosine(drawn))
    yield from scored("|Pearson|, names exchanged", "negative", baselines.shuffled(correlation, seed))
    rng = np.random.default_rng(seed)
    edges = np.any([measured.edges for measured in data.truths], axis=0)
    yield from scored("edges with noise", "positive", edges + 0.2 * rng.random(edges.shape))


@functools.lru_cache(maxsize=2)
def _read(study: Study, truth: tuple, n_genes: int, cells: int) -> networks_data.Data:
    options = {"n_genes": n_genes, "cells": cells, "gene_table": study.tables, "reading": study.place}
    plan = networks_data.Plan(str(study.path), truth=truth, **options)
    return networks_data.read(plan, say=lambda _: None)


def _cosines(study: Study, data: networks_data.Data, run: api.Run) -> np.ndarray:
    kinds = gene_features.kinds(run)
    options = {"second": data.second, "gene_table": study.tables, "say": lambda _: None}
    if not kinds:
        options |= {"source": study.path, "rows": data.rows, "min_mapped": None, **study.place}
    return gene_networks.similarity(run, data.names, kinds[0] if kinds else "context", **options)
