"""Batch integration after the run and its twin have gone on learning on the study, as scEMB's paper has it.

Low-rank factors or prefixes alone learn, by what the run was pre-trained on, from cells of the study without a label.
Beside them are the run as it is, baselines and controls; each way to learn is a case.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.suite import adaptation, mixing
from experiments.suite.entrants import Entrant, Study

METRICS = {name: about | {"text": f"{about['text']} (after adaptation)"} for name, about in mixing.METRICS.items()}
NEEDS = frozenset({"labels", "batches"})
installed = mixing.installed


def score(
    entrant: Entrant | None, study: Study, seed: int, *, cells: int, methods: Sequence[str], tuning: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield the scIB metrics of each way to adapt, a case each.

    Args:
      methods: "lora", "prefix" or "full", see `scfm_jax.training.tuning`.
      tuning: options of `suite.adaptation.adapt`.
    """
    if entrant is None:
        rows = list(mixing.simple(study, seed, cells))
        yield from ({**row, "case": method} for method in methods for row in rows)
        return
    plain, posed = entrant.embed(study, seed, cells, False), adaptation.problems(entrant, study, seed)
    for method in methods:
        embedded = [(f"{entrant.name}, as it is", "model", plain)]
        for kind, run in (("model", entrant.run), ("twin", entrant.run.twin(seed))):
            name = entrant.name if kind == "model" else f"{entrant.name}, random twin"
            adapted = adaptation.adapt(run, posed, seed, method=method, **tuning)
            embedded.append((name, kind, entrant.embed_by(adapted, study, seed, cells)))
        yield from mixing.score(embedded, study, seed, cells, method)
