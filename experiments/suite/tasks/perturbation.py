"""What unseen perturbations do to expression, by bilinear ridge on gene vectors: the cheapest test of these.

The perturbed genes of a screen are held out in folds; a seed draws the folds. A run's vectors are its table, or where
it has none the means of its gene representations over control cells. `experiments.predict_perturbation` has more
methods, strata and intervals over conditions.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from experiments.analyses import perturbation_methods as methods
from experiments.suite.entrants import Entrant, Study
from experiments.suite.tasks import rows
from scfm_jax.api import gene_features, screens
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.perturbation import baselines, splits

METRICS = {
    "pearson": {
        "text": "Pearson correlation of predicted and true change, mean over conditions",
        "higher": True,
    },
    "centred": {"text": "the same beyond the mean change of the training perturbations", "higher": True},
    "discrimination": {"text": "how well the right condition is told from the others, 0.5 by chance", "higher": True},
    "pearson_top": {"text": "Pearson correlation over the 20 genes of largest |t|", "higher": True},
    "mse_top": {"text": "squared error over these", "higher": False},
}
NEEDS = frozenset({"perturbations"})
Predict = Callable[[splits.Split, int], methods.Prediction]


def score(
    entrant: Entrant | None, study: Study, seed: int, *, cells: int, least: int, folds: int
) -> Iterator[dict[str, Any]]:
    """Yield the scores of effects of held-out targets.

    Args:
      cells: control cells that context vectors are means over. least: cells of a condition. folds: of the targets.
    """
    data = _screen(study, least)
    parts = splits.folds_of_targets(data.screen.targets, folds, seed)

    def scored(method: str, kind: str, predict: Predict) -> Iterator[dict[str, Any]]:
        made = [predict(split, seed) for split in parts]
        table = pd.DataFrame(methods.scored(data, method, seed, parts, made))
        yield from rows(method, kind, "", table[list(METRICS)].mean())

    if entrant is not None:
        options = _options(entrant, study, data, seed, cells)
        for name, kind, run in (
            (entrant.name, "model", entrant.run),
            (f"{entrant.name}, random twin", "twin", entrant.run.twin(seed)),
        ):
            yield from scored(name, kind, _ridge(data, run.gene_vectors(**options)))
        return
    yield from scored("no change", "baseline", functools.partial(methods.no_change, data))
    yield from scored("training mean", "baseline", methods.simple(data, "mean"))
    name = f"ridge, PCA-{baselines.COMPONENTS}"
    yield from scored(name, "baseline", functools.partial(methods.ridge_on_components, data))
    yield from scored("ridge, random vectors", "baseline", _ridge(data, features.random(data.names, seed)))
    yield from scored(methods.CEILING, "positive", functools.partial(methods.ceiling, data))
    yield from scored("effects exchanged", "negative", functools.partial(_exchanged, data))


@functools.lru_cache(maxsize=2)
def _screen(study: Study, least: int) -> screens.Data:
    options = {**study.screened, **study.place, "gene_table": study.tables, "least": least}
    return screens.read(study.path, **options, say=lambda _: None)


def _options(entrant: Entrant, study: Study, data: screens.Data, seed: int, cells: int) -> dict[str, Any]:
    """Return what the run is asked for: vectors of its own, or means over control cells."""
    options = {"names": data.names, "second": data.second, "gene_table": study.tables, "say": lambda _: None}
    if not gene_features.kinds(entrant.run):
        drawn = np.random.default_rng(seed).permutation(data.controls)[:cells]
        options |= {"source": study.path, "rows": np.sort(drawn), "min_mapped": None, **study.place}
    return options


def _ridge(data: screens.Data, vectors: features.GeneVectors) -> Predict:
    at = data.at(sorted({gene for of in data.screen.targets.values() for gene in of}))
    values = baselines.scaled(vectors.values, vectors.found)
    return lambda split, _: methods.ridge_on(data, split, values, at)


def _exchanged(data: screens.Data, split: splits.Split, seed: int) -> methods.Prediction:
    """Predict the true effect of a training condition, drawn at random."""
    drawn = np.random.default_rng(seed).choice(methods.learnt(split), len(split.test))
    return {"effects": data.screen.effects(drawn.tolist())}
