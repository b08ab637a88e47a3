"""What a suite has computed, results.jsonl: appended to, a JSON object with its checksum a line.

One line per metric, then one line that closes the cell; metrics without a closing line are those of a killed suite and
do not count (`read`). Of cells with the same key the last counts. A cell of which a line is damaged is as one that was
never filled: `problems` names the line, and the suite, run again, computes it anew. Metric lines:

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
  cells    cells scored;  seconds, cpu_seconds: it took;  rows: number of its metric lines
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.pages import output
from scfm_jax.saving import sealed

NAME = "results.jsonl"


def read(folder: pathlib.Path, keys: list[str] | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the metric lines of closed cells, and the closing lines, of a suite's folder.

    Args:
      keys: of the cells that are wanted; by default those that suite.json asks for.
    """
    if keys is None:
        keys = description(folder)["keys"]
    cells, metrics = closed(folder)
    wanted = [key for key in dict.fromkeys(keys) if key in cells]
    return pd.DataFrame([line for key in wanted for line in metrics[key]]), pd.DataFrame([cells[key] for key in wanted])


def description(folder: pathlib.Path) -> dict[str, Any]:
    """Return what is in suite.json; ValueError in one line where it is damaged."""
    try:
        content = output.read(folder / "suite.json")
    except sealed.Damaged as damage:
        raise ValueError(f"{damage}; the command that filled the suite, run again, writes it anew") from None
    if lacking := [key for key in ("suite", "options", "keys", "metrics", "runs", "datasets") if key not in content]:
        raise ValueError(f"{folder / 'suite.json'}: no entry {lacking[0]!r}; it was not written by evaluate --suite")
    return content


def closed(folder: pathlib.Path) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Return the closing line and the metric lines of each cell that was finished, by key.

    Lines that follow a closing line of the same key replace what there was; damaged and torn ones are passed over.
    """
    return _parsed(folder)[:2]


def problems(folder: pathlib.Path) -> list[str]:
    """Return what is wrong with results.jsonl, a text for each line that was passed over and each cell lost by it."""
    return _parsed(folder)[2]


def _parsed(
    folder: pathlib.Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]], list[str]]:
    """Return closing lines and metric lines by key, and problems in words."""
    cells: dict[str, dict[str, Any]] = {}
    metrics: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, dict[tuple, dict[str, Any]]] = {}
    lines = sealed.read_lines(folder / NAME)
    told = list(lines.problems)
    for number, line in lines.rows:
        if "status" in line:
            rows = [*waiting.pop(line["key"], {}).values()]
            if len(rows) != line.get("rows", len(rows)):
                told.append(f"{NAME}, line {number}: {len(rows)} of {line['rows']} lines of {_named(line)} are whole")
                cells.pop(line["key"], None)
                continue
            cells[line["key"]], metrics[line["key"]] = line, rows
        else:  # by what it is of, as a cell that was torn between two lines comes again
            waiting.setdefault(line["key"], {})[line["method"], line["case"], line["metric"]] = line
    return cells, metrics, told


def _named(line: Mapping[str, Any]) -> str:
    """Return what a cell is, in words."""
    return f"{line['run'] or 'baselines'}, {line['task']}, {line['dataset']}, seed {line['seed']}"


def append(folder: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append the lines of a cell in one go; a torn line of a killed suite is cut off first."""
    *metric_lines, closing = lines
    count = len({(line["method"], line["case"], line["metric"]) for line in metric_lines})
    text = "".join(f"{sealed.dumps(line)}\n" for line in (*metric_lines, {**closing, "rows": count}))
    with open(folder / NAME, "ab") as guard, sealed.open_lines(folder / NAME, guard) as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
