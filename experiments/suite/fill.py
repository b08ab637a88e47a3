"""A benchmark as a table of cells: every applicable task for every run on the same cells, splits and seeds.

A cell of the table is one (run, task, dataset, seed). `run` fills the cells that are not there yet and goes on past
those that fail; a killed suite loses at most the cell that it was in. What belongs to no run (baselines and controls)
is a run of its own, without a name, and is computed once. Left in the folder:

  results.jsonl   every number, see `suite.results`
  suite.json      written at the start and the end: suite (name), options, code_version, commit, keys (of the cells that
                  were asked for, in order), metrics {task: {metric: {"text": ..., "higher": true | false | null}}} (of
                  the tasks that were asked for, in order),
                  runs [{name, model, source, workdir, weights, step, parameters, genes, cells_per_second (embedding),
                  contamination: {dataset: {"seen": true | false | null, "why": ...}}}],
                  datasets [{name, path, sha256, cells, genes, label, batch, spatial}], reference (the same)
  table.csv       task, case, dataset, metric, method, run, model, kind, mean, half (of the 95 % interval), seeds,
                  contaminated (yes | no | unknown | "" of baselines), status, reason. What failed or does not apply has
                  a row with metric "" for each run, task and dataset. Also table.md, the same to read.
  pictures/RUN@DATASET.npz   of seed 0, for labelled data: embedding [n, D], label [n], batch [n] (text, "" for none),
                  confusion [T, T] (rows: true type; of 5-NN in folds), types [T]. RUN is "PCA-50" of the baseline.
  compiled/       programs, so that none is compiled twice; nothing reads it but JAX
"""

import collections
import dataclasses
import datetime
import functools
import itertools
import math
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from experiments.pages import output
from experiments.suite import contamination, keys, pictures, results, table, tasks
from experiments.suite.entrants import Entrant, Inapplicable, Study, shared_genes
from scfm_jax import __version__
from scfm_jax.training import pace


@dataclasses.dataclass
class Cell:
    """A cell of the table that is asked for: a run (None: baselines and controls), a task, a study, a seed."""

    entrant: Entrant | None
    task: str
    study: Study
    seed: int
    key: str

    def __str__(self) -> str:
        return f"{self.entrant.name if self.entrant else 'baselines'}, {self.task}, {self.study.name}, seed {self.seed}"

    @property
    def names(self) -> dict[str, Any]:
        """What its lines in results.jsonl have in common."""
        run, model = (self.entrant.name, self.entrant.run.name) if self.entrant else ("", "")
        return {
            "key": self.key,
            "run": run,
            "model": model,
            "task": self.task,
            "dataset": self.study.name,
            "seed": self.seed,
        }


class Suite:
    """Tasks, runs and studies, and the folder where the numbers go.

    Args:
      name: of the suite. chosen: {task: options}. entrants, studies: what is compared, on what. reference: studies with
        the genes that are hidden everywhere. truth: (name, file, checksum) of measured networks. cells: of a seed.
        seeds: how many. folder: of the results, made here.
      source: what gives the text of a module, which the keys depend on.

    Raises:
      ValueError: there is no such task, or it has no such option.
    """

    def __init__(
        self,
        name: str,
        chosen: Mapping[str, Mapping[str, Any]],
        entrants: Sequence[Entrant],
        studies: Sequence[Study],
        folder: pathlib.Path,
        *,
        reference: Sequence[Study] = (),
        truth: Sequence[tuple[str, str, str]] = (),
        cells: int = 300,
        seeds: int = 5,
        say: Callable[[str], None] = print,
        source: keys.Source = keys.source,
    ):
        for task, options in chosen.items():
            tasks.check_options(task, options)
        self.name, self.tasks = name, {task: dict(options) for task, options in chosen.items()}
        self.entrants, self.studies, self.reference = list(entrants), list(studies), list(reference)
        self.folder, self.n_cells, self.n_seeds, self.say = folder, cells, seeds, say
        self.truth = [tuple(table) for table in truth]
        self.columns = {study.name: shared_genes(study, entrants) for study in studies}
        self._source, self._code = source, functools.cache(lambda *modules: keys.code(modules, source))
        self.plan = [
            self._cell(entrant, task, study, seed)
            for seed in range(seeds)
            for study in studies
            for entrant in (None, *entrants)
            for task in self.tasks
        ]
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, int]:
        """Fill the cells that are not there, write the table, and return how many were kept, done, failed, ....

        Failed cells are tried again.
        """
        kept, counts = results.closed(self.folder)[0], collections.Counter()
        for problem in results.problems(self.folder):
            self.say(f"warning: {problem}")
        self.describe()
        for study, entrant in itertools.product(self.studies, self.entrants):
            self.say(f"{entrant.name}, {study.name}: {entrant.mapping(study).report}")
        todo = [cell for cell in self.plan if kept.get(cell.key, {}).get("status") not in ("done", "inapplicable")]
        counts["kept"] += len(self.plan) - len(todo)
        for i, cell in enumerate(pace.counted(todo, "filled", self.say)):
            if i and cell.study is not todo[i - 1].study:
                table.write(self.folder, *results.read(self.folder))  # of the cells so far
            self.say(f"{counts.total() + 1} of {len(self.plan)}: {cell}")
            lines = self.fill(cell)
            results.append(self.folder, lines)
            status, reason = lines[-1]["status"], lines[-1]["reason"]
            counts[status] += 1
            if status == "failed":
                self.say(f"failed: {cell.names}: {reason}")
            if cell.seed == 0 and status == "done" and "labels" in tasks.get(cell.task).NEEDS:
                self._picture(cell.entrant, cell.study)  # now, as what it shows is still in memory
        drawn = list(itertools.product((None, *self.entrants), self.studies))
        for entrant, study in pace.counted(drawn, "embedded for pictures", self.say):
            self._picture(entrant, study)
        self.describe()
        table.write(self.folder, *results.read(self.folder))
        return dict(+counts)

    def _picture(self, entrant: Entrant | None, study: Study) -> None:
        try:
            pictures.write(entrant, study, 0, self.n_cells, self.folder / "pictures", self._source)
        except Inapplicable:
            pass
        except Exception as error:  # as in `fill`
            self.say(f"no picture of {entrant.name if entrant else 'PCA-50'} on {study.name}: {_one_line(error)}")

    def fill(self, cell: Cell) -> list[dict[str, Any]]:
        """Return the lines of a cell, the closing one last; what goes wrong is its status and reason."""
        wall, cpu, rows, status, reason = time.perf_counter(), time.process_time(), [], "done", ""
        try:
            rows = [{**cell.names, **row, "value": _finite(row["value"])} for row in list(self._score(cell))]
        except Inapplicable as error:
            status, reason = "inapplicable", _one_line(error)
        except Exception as error:  # whatever it is, the other cells of the table go on
            status, reason = "failed", f"{type(error).__name__}: {_one_line(error)}"
        spent = {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
        return [*rows, {**cell.names, "status": status, "reason": reason, "cells": self.n_cells, **spent}]

    def _score(self, cell: Cell) -> Iterator[dict[str, Any]]:
        """Return the rows of a cell; Inapplicable where something that the task needs is missing."""
        task = tasks.get(cell.task)
        tasks.check_needs(task.NEEDS, cell.entrant, cell.study, self.reference, self.truth)
        columns = self.columns[cell.study.name]
        by_suite = {"cells": self.n_cells, "columns": columns, "reference": self.reference, "truth": self.truth}
        by_suite = {name: value for name, value in by_suite.items() if name in tasks.keywords(task)}
        return task.score(cell.entrant, cell.study, cell.seed, **by_suite, **self.tasks[cell.task])

    def _cell(self, entrant: Entrant | None, name: str, study: Study, seed: int) -> Cell:
        """Return a cell with its key, in which stands all that its numbers depend on."""
        task = tasks.get(name)
        content = {
            "task": name,
            "options": self.tasks[name],
            "cells": self.n_cells,
            "seed": seed,
            "data": study.sha256,
            "columns": [study.label, study.batch],
            "tables": study.tables_sha256,
            **({"place": study.place} if study.place else {}),
            "weights": entrant.weights if entrant else None,
            "name": entrant.name if entrant else None,
        }
        if "columns" in tasks.keywords(task):
            content["genes"] = keys.of({"columns": self.columns[study.name].gene.tolist()})
        if "reference" in tasks.keywords(task):
            content["reference"] = [other.sha256 for other in self.reference]
            if any(other.place for other in self.reference):
                content["reference_place"] = [other.place for other in self.reference]
        if "truth" in tasks.keywords(task):
            content["truth"] = [(name, checksum) for name, _, checksum in self.truth]
        if entrant is None and hasattr(task, "installed"):
            content["installed"] = task.installed()
        modules = [task.__name__, *([entrant.run.module.__name__] if entrant else [])]
        return Cell(entrant, name, study, seed, keys.of({**content, "code": self._code(*modules)}))

    def describe(self) -> None:
        """Write suite.json."""
        runs = []
        for entrant in pace.counted(self.entrants, "compared cells with the store of run", self.say):
            if entrant.name not in self._seen:
                self._seen[entrant.name] = contamination.flags(entrant, self.studies)
            runs.append({**entrant.describe(), "contamination": self._seen[entrant.name]})
        content = {
            "suite": self.name,
            "options": {"cells": self.n_cells, "seeds": self.n_seeds, "tasks": self.tasks},
            "reference": [study.describe() for study in self.reference],
            **({"truth": self.truth} if self.truth else {}),
            "code_version": __version__,
            "jax": jax.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "keys": [cell.key for cell in self.plan],
            "metrics": {name: tasks.get(name).METRICS for name in self.tasks},
            "runs": runs,
            "datasets": [study.describe() for study in self.studies],
        }
        output.write_file(self.folder / "suite.json", content)

    @functools.cached_property
    def _seen(self) -> dict[str, dict[str, Any]]:
        return {}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _commit() -> str | None:
    """Return the commit of the code, "+" where files differ from it; None where that cannot be told."""
    here = pathlib.Path(__file__).parent
    try:
        said = [
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] + ("+" if said[1] else "")
