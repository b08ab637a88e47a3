"""The table of a suite: mean and 95 % interval over seeds of every method and metric, as CSV and to read.

Contamination stands in every row of a run; what failed or does not apply has rows of its own, with the reason.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import pandas as pd

from experiments.pages import output
from experiments.suite import results
from scfm_jax.tasks.imputation import imputation

COLUMNS = (
    "task", "case", "dataset", "metric", "method", "run", "model", "kind", "mean", "half", "seeds", "contaminated",
    "status", "reason",
)  # fmt: skip
KINDS = ("positive", "model", "twin", "baseline", "negative")
WORDS = {True: "yes", False: "no", None: "unknown"}


def write(folder: pathlib.Path, metrics: pd.DataFrame, cells: pd.DataFrame) -> None:
    """Write table.csv and table.md of what `results.read` returns."""
    content = results.description(folder)
    table = build(metrics, cells, content)
    output.write_file(folder / "table.csv", table.to_csv(index=False))
    output.write_file(folder / "table.md", markdown(table, content))


def build(metrics: pd.DataFrame, cells: pd.DataFrame, content: Mapping[str, Any]) -> pd.DataFrame:
    """Return the table: a row for each task, case, dataset, metric and method, and one for what has no numbers."""
    seen = {(run["name"], name): flag["seen"] for run in content["runs"] for name, flag in run["contamination"].items()}
    rows = []
    by = ["task", "case", "dataset", "metric", "method", "run", "model", "kind"]
    for names, group in metrics.groupby(by, sort=False) if len(metrics) else ():
        row = dict(zip(by, names, strict=True)) | {"seeds": len(group)}
        if not row["metric"]:  # a method that cannot be shown here
            rows.append(row | {"status": "inapplicable", "reason": group["why"].iloc[0]})
            continue
        mean, half = imputation.interval(group["value"].astype(float))
        rows.append(row | {"mean": mean, "half": half, "status": "done", "reason": ""})
    for names, group in cells.groupby(["task", "dataset", "run", "model"], sort=False) if len(cells) else ():
        for status in ("failed", "inapplicable"):
            of = group[group["status"] == status]
            if len(of):
                row = dict(zip(("task", "dataset", "run", "model"), names, strict=True))
                row |= {
                    "case": "",
                    "metric": "",
                    "method": row["run"] or "baselines",
                    "kind": "model" * bool(row["run"]),
                }
                rows.append(row | {"seeds": len(of), "status": status, "reason": of["reason"].iloc[0]})
    for row in rows:
        row["contaminated"] = WORDS[seen.get((row["run"], row["dataset"]))] if row["run"] else ""
    return pd.DataFrame(rows, columns=list(COLUMNS))


def markdown(table: pd.DataFrame, content: Mapping[str, Any]) -> str:
    """Return the table as text: a part for each task, dataset and case, a line for each method."""
    seeds, cells = content["options"]["seeds"], content["options"]["cells"]
    lines = [f"# Suite {content['suite']}", ""]
    lines += [
        f"{cells} cells a seed; mean ± half the 95 % interval over {seeds} seeds; commit {content['commit']}.",
        "",
    ]
    for task in content["metrics"]:
        of_task = table[table["task"] == task]
        if len(of_task):
            lines += [f"## {task}", ""]
            lines += [f"{name}: {m['text']}{_better(m['higher'])}  " for name, m in content["metrics"][task].items()]
            for (dataset, case), part in of_task[of_task["metric"] != ""].groupby(["dataset", "case"], sort=False):
                lines += ["", f"### {dataset}{', ' if case else ''}{case}", "", *_part(part, content["metrics"][task])]
            none = of_task[of_task["metric"] == ""]
            lines += ["", *(f"- {r.dataset}, {r.method}: {r.status}: {r.reason}" for r in none.itertuples()), ""]
    return "\n".join(lines) + "\n"


def _part(part: pd.DataFrame, metrics: Mapping[str, Any]) -> list[str]:
    names = [name for name in metrics if name in set(part["metric"])]
    methods = sorted(part.drop_duplicates("method").itertuples(), key=lambda row: KINDS.index(row.kind))
    lines = []
    values = {(row.method, row.metric): row for row in part.itertuples()}
    for method in methods:
        rows = [values.get((method.method, name)) for name in names]
        numbers = ["" if v is None else _number(v.mean, v.half) for v in rows]
        lines.append([method.method, method.kind, method.contaminated, *numbers])
    return output.markdown(["method", "kind", "seen in pretraining", *names], lines).split("\n")


def _number(mean: float, half: float) -> str:
    if pd.isna(mean):
        return "not defined"
    return f"{mean:.3f}" if pd.isna(half) else f"{mean:.3f} ± {half:.3f}"


def _better(higher: bool | None) -> str:
    return {True: " (higher is better)", False: " (lower is better)", None: ""}[higher]
