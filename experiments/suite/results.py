"""What a suite has computed, results.jsonl: appended to, a JSON object a line.

One line per metric, then one line that closes the cell; metrics without a closing line are those of a killed suite and
do not count (`read`). Of cells with the same key the last counts. Metric lines:

  key      content hash of all that the number depends on, of the cell: weights, data file, task with its options,
           seed, and the code of task and model (see `suite.keys`)
  run      name of the run, "" of baselines and controls;  model: such as "cellplm", "" of those
  method   what is shown: the run's name, "<run>, random twin", or the baseline's name
  kind     model | twin (same network, random weights) | baseline | positive | negative (controls)
  task, case ("" or such as "15%"), dataset (the file's name without ending), seed
  metric, value (a number, or null where it is not defined). A method that cannot be shown here has one line with
           the metric "" and why

Closing lines have key, run, model, task, dataset, seed and

  status   done | failed | inapplicable;  reason: one line, "" when done
  cells    cells scored;  seconds, cpu_seconds: it took
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

NAME = "results.jsonl"


def read(folder: pathlib.Path, keys: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the metric lines of closed cells, and the closing lines, of a suite's folder.

    Args:
      keys: of the cells that are wanted; by default those that suite.json asks for.
    """
    if keys is None:
        keys = json.loads((folder / "suite.json").read_text())["keys"]
    cells, metrics = closed(folder)
    wanted = [key for key in dict.fromkeys(keys) if key in cells]
    return pd.DataFrame([line for key in wanted for line in metrics[key]]), pd.DataFrame([cells[key] for key in wanted])


def closed(folder: pathlib.Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Return the closing line and the metric lines of each cell that was finished, by key; a torn line is passed over.

    Lines that follow a closing line of the same key replace what there was.
    """
    cells: dict[str, dict[str, Any]] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, dict[tuple, dict[str, Any]]] = {}
    path = folder / NAME
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


def append(folder: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append the lines of a cell in one go, after a torn line of a killed suite if there is one."""
    path = folder / NAME
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    text = ("\n" if torn else "") + "".join(json.dumps(line) + "\n" for line in lines)
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
