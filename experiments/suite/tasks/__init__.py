"""Tasks of a suite, one file each. The folder is the registry: `get("cell_typing")` imports cell_typing.py beside this.

The contract of a file, held by `tests/experiments/test_suite_tasks.py`:

  METRICS  {metric: {"text": what it is, "higher": True | False | None (no side is better)}}, the leading ones first.
  NEEDS    what it cannot do without, a set of names of `NEEDS` below. Where something is missing, the cells of the
           table are inapplicable and `score` is not called.
  score(entrant, study, seed, *, cells, **options) -> iterator of rows, as `rows` makes them
           `entrant` is a run, or None for baselines and controls; `cells`: how many a seed draws. The other keywords
           are the task's options in the suite's config, but for two that are given by the suite to a task that has
           them: `columns`, those of the study's file whose genes every run knows [K], and `reference`, the studies of
           --reference.
  installed() -> JSON value   optional; what else baselines depend on, such as the version of an optional package.

No task imports another: what several share is beside this folder. So a change of a file changes the numbers, and the
keys (see `suite.keys`), of one task. A new task is one file here, and its name in a suite's config.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from experiments.suite.entrants import Entrant, Inapplicable, Study

NEEDS = {
    "labels": "a study with two values or more in the obs column of labels",
    "batches": "a study with two values or more in the obs column of batches",
    "expression": "a model that predicts expression (it has `impute`)",
    "positions": "a study with positions",
    "reference": "--reference cells",
    "perturbations": "a study with control cells and 3 perturbed genes, in obs.perturbation or GEARS' obs.condition",
    "truth": "--truth, tables of measured edges between genes",
}
"""What a task can need, in words."""
BY_SUITE = ("cells", "columns", "reference", "truth")
"""Keywords of `score` that are no options of a config."""


def names() -> list[str]:
    """Return the names of all tasks: the files in this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """Return the module of task `name`; ValueError names the tasks there are."""
    if name not in names():
        raise ValueError(f"task {name!r}: no such task of a suite; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def keywords(task: ModuleType) -> list[str]:
    """Return the keywords of a task's `score`."""
    parameters = inspect.signature(task.score).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def check_options(name: str, options: Collection[str]) -> None:
    """Raise ValueError where there is no such task, or it has no such option."""
    those = [keyword for keyword in keywords(get(name)) if keyword not in BY_SUITE]
    for option in options:
        if option not in those:
            raise ValueError(f"task {name!r}: no option {option!r}; there are {', '.join(those) or 'none'}")


def check_needs(
    needs: Collection[str],
    entrant: Entrant | None,
    study: Study,
    reference: Sequence[Study] = (),
    truth: Sequence[Any] = (),
) -> None:
    """Raise Inapplicable, in one line, where the run, the study or the suite lacks what a task needs."""
    if entrant is not None:
        entrant.check()
        if "expression" in needs and not hasattr(entrant.run.module, "impute"):
            raise Inapplicable(f"{entrant.run.name} does not predict expression")
    absent = {"positions": study.coords is None, "reference": not reference, "truth": not truth}
    absent["perturbations"] = "perturbations" in needs and study.screened is None
    if any(absent[name] for name in absent if name in needs):
        raise Inapplicable(f"needs {', and '.join(NEEDS[name] for name in absent if name in needs)}")
    columns = {"labels": (study.label, study.labels), "batches": (study.batch, study.batches)}
    for name, (column, values) in columns.items():
        if name in needs and values is None:
            raise Inapplicable(f"{study.name} has fewer than two values in obs[{column!r}]")


def rows(method: str, kind: str, case: str, scores: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    """Yield a row for each metric of a method.

    Args:
      method: what is shown: the run's name, "<run>, random twin", or the baseline's name.
      kind: model | twin (same network, random weights) | baseline | positive | negative (controls).
      case: "" or such as "15%".
    """
    for metric, value in scores.items():
        yield {"method": method, "kind": kind, "case": case, "metric": metric, "value": value}


def absent(method: str, why: Exception) -> dict[str, Any]:
    """Return the one row of a baseline that cannot be shown, such as one that is not installed."""
    return {"method": method, "kind": "baseline", "case": "", "metric": "", "value": None, "why": str(why)}
