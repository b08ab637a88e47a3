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
      metric, value (a number, or null where it is not defined)
  Closing lines have key, run, model, task, dataset, seed and
      status   done | failed | inapplicable;  reason: one line, "" when done
      cells    cells scored;  seconds, cpu_seconds: it took
  suite.json      written at the start and the end: suite (name), options, code_version, commit, keys (of the cells that
                  were asked for, in order), metrics {task: {metric: {"text": ..., "higher": true | false | null}}},
                  runs [{name, model, source, workdir, weights, step, parameters, genes, cells_per_second (embedding),
                  peak_bytes, contamination: {dataset: {"seen": true | false | null, "why": ...}}}],
                  datasets [{name, path, sha256, cells, genes, label, batch, spatial}]
  table.csv       task, case, dataset, metric, method, run, model, kind, mean, half (of the 95 % interval), seeds,
                  contaminated (yes | no | unknown | "" of baselines), status, reason. Failed and inapplicable cells have
                  a row with metric "" each. Also table.md, the same to read.
  pictures/RUN@DATASET.npz   of seed 0, for labelled data: embedding [n, D], label [n], batch [n] (text, "" for none),
                  confusion [T, T] (rows: true type; of 5-NN in folds), types [T]. RUN is "PCA-50" of the baseline.
"""

import json
import pathlib
from typing import Any

import pandas as pd

RESULTS = "results.jsonl"


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
    waiting: dict[str, list[dict[str, Any]]] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:  # a suite was killed while it wrote
            waiting.clear()
            continue
        if "status" in line:
            cells[line["key"]], metrics[line["key"]] = line, waiting.pop(line["key"], [])
        else:
            waiting.setdefault(line["key"], []).append(line)
    return cells, metrics
