"""A benchmark as a table of cells: every applicable task for every run on the same cells, splits and seeds.

A cell of the table is one (run, task, dataset, seed). `run` fills the cells that are not there yet and goes on past
those that fail; a killed suite loses at most the cell that it was in. What belongs to no run (baselines and controls)
is a run of its own, without a name, and is computed once. Left in the folder:

  results.jsonl   appended to, a JSON object per line. One line per metric, then one line that closes the cell; metrics
                  without a closing line are those of a killed suite and do not count (`read`). Of cells with the same
                  key the last counts. Metric lines:
      key      content hash of all that the number depends on, of the cell: weights, data file, task with its options,
               seed, and the code of task and model (see `suite_keys`)
      run      name of the run, "" of baselines and controls;  model: such as "cellplm", "" of those
      method   what is shown: the run's name, "<run>, random twin", or the baseline's name
      kind     model | twin (same network, random weights) | baseline | positive | negative (controls)
      task, case ("" or such as "15%"), dataset (the file's name without ending), seed
      metric, value (a number, or null where it is not defined). A method that cannot be shown here has one line with
               the metric "" and why
  Closing lines have key, run, model, task, dataset, seed and
      status   done | failed | inapplicable;  reason: one line, "" when done
      cells    cells scored;  seconds, cpu_seconds: it took
  suite.json      written at the start and the end: suite (name), options, code_version, commit, keys (of the cells that
                  were asked for, in order), metrics {task: {metric: {"text": ..., "higher": true | false | null}}},
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
import json
import math
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import pandas as pd

from experiments.suite import contamination, embeddings, table
from experiments.suite import counts as suite_counts
from experiments.suite import keys as suite_keys
from experiments.suite.entrants import Entrant, Inapplicable, Study, shared_genes
from scfm_jax import __version__
from scfm_jax.tasks.cells import integration_baselines

RESULTS = "results.jsonl"
SPATIAL = ("spatial_imputation", "tuned_spatial_imputation")
REFERRING = (*SPATIAL, "fixed_gene_imputation")
"""Tasks that look at the cells of --reference."""
TUNING = (
    "experiments.suite.tuning",
    "configs.finetune_pretraining",
    "scfm_jax.training.step",
    "scfm_jax.training.optim",
)
"""Code that fine-tuned numbers depend on, too."""


def read(folder: pathlib.Path, keys: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the metric lines of closed cells, and the closing lines, of a suite's folder.

    Args:
      keys: of the cells that are wanted; by default those that suite.json asks for.
    """
    if keys is None:
        keys = json.loads((folder / "suite.json").read_text())["keys"]
    cells, metrics = closed(folder / RESULTS)
    wanted = [key for key in dict.fromkeys(keys) if key in cells]
    return pd.DataFrame([line for key in wanted for line in metrics[key]]), pd.DataFrame([cells[key] for key in wanted])


def closed(path: pathlib.Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Return the closing line and the metric lines of each cell that was finished, by key; a torn line is passed over.

    Lines that follow a closing line of the same key replace what there was.
    """
    cells: dict[str, dict[str, Any]] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, dict[tuple, dict[str, Any]]] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a suite was killed while it wrote
            waiting.clear()
            continue
        if "status" in line:
            cells[line["key"]], metrics[line["key"]] = line, [*waiting.pop(line["key"], {}).values()]
        else:  # by what it is of, as a cell that was torn between two lines comes again
            waiting.setdefault(line["key"], {})[line["method"], line["case"], line["metric"]] = line
    return cells, metrics


@dataclasses.dataclass
class Cell:
    """A cell of the table that is asked for: a run (None: baselines and controls), a task, a study, a seed."""

    entrant: Entrant | None
    task: str
    study: Study
    seed: int
    key: str

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
      name: of the suite. tasks: {task: options}. entrants, studies: what is compared, on what. reference: studies with
        the genes that are hidden everywhere. cells: of a seed. seeds: how many. folder: of the results, made here.

    Raises:
      ValueError: there is no such task.
    """

    def __init__(
        self,
        name: str,
        tasks: Mapping[str, Mapping[str, Any]],
        entrants: Sequence[Entrant],
        studies: Sequence[Study],
        folder: pathlib.Path,
        *,
        reference: Sequence[Study] = (),
        cells: int = 300,
        seeds: int = 5,
        say: Callable[[str], None] = print,
    ):
        known = {**suite_counts.TASKS, **embeddings.TASKS}
        for task in tasks:
            if task not in known:
                raise ValueError(f"task {task!r}: no such task of a suite; there are {', '.join(known)}")
        self.name, self.tasks = name, {task: dict(options) for task, options in tasks.items()}
        self.entrants, self.studies, self.reference = list(entrants), list(studies), list(reference)
        self.folder, self.n_cells, self.n_seeds, self.say = folder, cells, seeds, say
        self.columns = {study.name: shared_genes(study, entrants) for study in studies}
        self.plan = [
            self._cell(entrant, task, study, seed)
            for seed in range(seeds)
            for study in studies
            for entrant in (None, *entrants)
            for task in tasks
        ]
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, int]:
        """Fill the cells that are not there, write the table, and return how many were kept, done, failed, ....

        Failed cells are tried again.
        """
        kept, counts = closed(self.folder / RESULTS)[0], collections.Counter()
        self.describe()
        for i, cell in enumerate(self.plan):
            if i and cell.study is not self.plan[i - 1].study and counts.total() > counts["kept"]:
                table.write(self.folder, *read(self.folder))  # of the cells so far
            if kept.get(cell.key, {}).get("status") in ("done", "inapplicable"):
                counts["kept"] += 1
                continue
            lines = self.fill(cell)
            append(self.folder / RESULTS, lines)
            status, reason = lines[-1]["status"], lines[-1]["reason"]
            counts[status] += 1
            if status == "failed":
                self.say(f"failed: {cell.names}: {reason}")
            if cell.seed == 0 and cell.task == "cell_typing" and status == "done":
                self._picture(cell.entrant, cell.study)  # now, as what it shows is still in memory
        for entrant, study in itertools.product((None, *self.entrants), self.studies):
            self._picture(entrant, study)
        self.describe()
        table.write(self.folder, *read(self.folder))
        return dict(counts)

    def _picture(self, entrant: Entrant | None, study: Study) -> None:
        try:
            if entrant is not None:
                entrant.check()
            embeddings.picture(entrant, study, 0, self.n_cells, self.folder / "pictures")
        except Inapplicable:
            pass
        except Exception as error:  # as in `fill`
            self.say(f"no picture of {entrant.name if entrant else 'PCA-50'} on {study.name}: {_one_line(error)}")

    def fill(self, cell: Cell) -> list[dict[str, Any]]:
        """Return the lines of a cell, the closing one last; what goes wrong is its status and reason."""
        wall, cpu, rows, status, reason = time.perf_counter(), time.process_time(), [], "done", ""
        try:
            self.say(" ".join(("baselines" if cell.entrant is None else cell.entrant.name, cell.task, cell.study.name)))
            found = list(self._compute(cell))
            rows = [{**cell.names, **row, "value": _finite(row["value"])} for row in found]
        except Inapplicable as error:
            status, reason = "inapplicable", _one_line(error)
        except Exception as error:  # whatever it is, the other cells of the table go on
            status, reason = "failed", f"{type(error).__name__}: {_one_line(error)}"
        spent = {"seconds": round(time.perf_counter() - wall, 3), "cpu_seconds": round(time.process_time() - cpu, 3)}
        return [*rows, {**cell.names, "status": status, "reason": reason, "cells": self.n_cells, **spent}]

    def _compute(self, cell: Cell) -> Iterator[dict[str, Any]]:
        options = {"cells": self.n_cells, **self.tasks[cell.task]}
        if cell.entrant is not None:
            cell.entrant.check()
        if cell.task in embeddings.TASKS:
            return embeddings.TASKS[cell.task](cell.entrant, cell.study, cell.seed, **options)
        if cell.entrant is not None and not hasattr(cell.entrant.run.module, "impute"):
            raise Inapplicable(f"{cell.entrant.run.name} does not predict expression")
        if cell.task in SPATIAL and (cell.study.coords is None or not self.reference):
            raise Inapplicable("needs a study with positions, and --reference cells")
        if cell.task in REFERRING:
            options["reference"] = self.reference
        columns = self.columns[cell.study.name]
        return suite_counts.TASKS[cell.task](cell.entrant, cell.study, columns, cell.seed, **options)

    def _cell(self, entrant: Entrant | None, task: str, study: Study, seed: int) -> Cell:
        content = {
            "task": task,
            "options": self.tasks[task],
            "cells": self.n_cells,
            "seed": seed,
            "data": study.sha256,
            "columns": [study.label, study.batch],
            "weights": entrant.weights if entrant else None,
            "name": entrant.name if entrant else None,
        }
        modules: list[Any] = [embeddings if task in embeddings.TASKS else suite_counts]
        if task in suite_counts.TASKS:
            content["genes"] = suite_keys.of({"columns": self.columns[study.name].tolist()})
        if task in REFERRING:
            content["reference"] = [other.sha256 for other in self.reference]
        if task == "integration" and entrant is None:
            content["harmony"] = integration_baselines.version()
        if entrant:
            modules.append(entrant.run.module)
            modules += TUNING if "tuning" in self.tasks[task] else ()
        return Cell(entrant, task, study, seed, suite_keys.of({**content, "code": suite_keys.code(modules)}))

    def describe(self) -> None:
        """Write suite.json."""
        runs = []
        for entrant in self.entrants:
            if entrant.name not in self._seen:
                self._seen[entrant.name] = contamination.flags(entrant, self.studies)
            runs.append({**entrant.describe(), "contamination": self._seen[entrant.name]})
        content = {
            "suite": self.name,
            "options": {"cells": self.n_cells, "seeds": self.n_seeds, "tasks": self.tasks},
            "reference": [study.describe() for study in self.reference],
            "code_version": __version__,
            "jax": jax.__version__,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "keys": [cell.key for cell in self.plan],
            "metrics": table.METRICS,
            "runs": runs,
            "datasets": [study.describe() for study in self.studies],
        }
        partial = self.folder / "suite.json.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(self.folder / "suite.json")

    @functools.cached_property
    def _seen(self) -> dict[str, dict[str, Any]]:
        return {}


def append(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append the lines of a cell in one go, after a torn line of a killed suite if there is one."""
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    text = ("\n" if torn else "") + "".join(json.dumps(line) + "\n" for line in lines)
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


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
