"""How runs stand against the best simple baseline and their own untrained twins: in words, as a table, as a picture."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from experiments.pages import comparisons, document

LEADING = 2
"""Metrics of a task that the leaderboard and the pictures show, the first ones."""
ARROWS = {True: " ↑", False: " ↓", None: ""}
PLACE = ["task", "case", "dataset"]


def compared(done: pd.DataFrame, content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Yield (task, case, study, metric) and the rows of all methods, best first, where a metric has a better side."""
    for place, rows in done.groupby([*PLACE, "metric"], sort=False):
        higher = content["metrics"][place[0]][place[-1]]["higher"]
        if higher is not None:
            yield place, rows.dropna(subset="mean").sort_values("mean", ascending=not higher, kind="stable")


def in_short(done: pd.DataFrame, content: Mapping[str, Any]) -> str:
    """Return how often a model is ahead of all baselines and of its twin, in words and as a table by task."""
    counts: dict[str, dict[str, int]] = {}
    for (task, *_), rows in compared(done, content):
        if {"model", "baseline"} <= set(rows["kind"]):
            count = counts.setdefault(task, dict.fromkeys(("all", "simple", "model", "clear", "twin", "pairs"), 0))
            for name, one in _verdict(rows).items():
                count[name] += one
    if not counts:
        return document.note("No comparison of a model with a baseline is finished yet.")
    total = pd.DataFrame(counts).sum(axis=1)
    few = content["options"]["seeds"] < comparisons.SEEDS
    none = f" With fewer than {comparisons.SEEDS} seeds there are no intervals." if few else ""
    words = (
        f"Of {total['all']} comparisons (task, study, case and metric) the best mean is a simple baseline's in "
        f"{total['simple']} and a model's in {total['model']}, in {total['clear']} of these by more than both 95 % "
        f"intervals together; the others are ties. Models are better than their own untrained twins in {total['twin']} "
        f"of {total['pairs']} pairs.{none}"
    )
    head = (
        "Task",
        "comparisons",
        "baseline best",
        "model best",
        "and clearly",
        "ties",
        "models better than their twins",
    )
    rows = [
        [
            words_of(task),
            *(c[name] for name in ("all", "simple", "model", "clear")),
            c["all"] - c["simple"] - c["model"],
            f"{c['twin']} of {c['pairs']}",
        ]
        for task, c in counts.items()
    ]
    return f"<p>{document.text(words)}</p>" + document.table("Who has the best mean", head, rows)


def picture(done: pd.DataFrame, content: Mapping[str, Any]) -> str:
    """Return the picture of every run against the best baseline in the leading metrics, "" where none is compared."""
    ours = done[done["kind"] == "model"]
    columns = [m for run in content["runs"] for m in dict.fromkeys(ours.loc[ours["run"] == run["name"], "method"])]
    names, states, texts = [], [], []
    for (task, case, dataset, metric), rows in compared(done, content):
        about = content["metrics"][task][metric]
        simple = rows[rows["kind"] == "baseline"]
        first = [name for name, _ in leading(done[done["task"] == task], content, task)]
        if metric not in first or simple.empty:
            continue
        models = {row.method: row for row in rows[rows["kind"] == "model"].itertuples()}
        line = [_against(models.get(name), simple.iloc[0], about["higher"]) for name in columns]
        names.append(place_name(words_of(task), dataset, case, about["text"]))
        states.append([state for state, _ in line])
        texts.append([text for _, text in line])
    if not names or not columns:
        return ""
    drawn = comparisons.grid(names, columns, np.array(states, float), texts)
    caption = "Every run against the best simple baseline of the same row"
    alt = f"{caption}, differences of the means: " + "; ".join(
        f"{name}: " + ", ".join(f"{column} {text}" for column, text in zip(columns, line, strict=True) if text)
        for name, line in zip(names, texts, strict=True)
    )
    note = "In each place the run's mean minus the baseline's; blue is better, whichever way the metric counts."
    least = f"{20 + 4 * len(columns)}rem"
    figure = document.figure(caption, drawn, "svg+xml", alt, document.note(note))
    label = f'role="region" aria-label="{document.text(caption)}" tabindex="0"'
    return f'<div class="wide broad" style="--least: min({least}, 200rem)" {label}>{figure}</div>'


def _against(row: Any, simple: pd.Series, higher: bool) -> tuple[float, str]:
    """Return the index of how a run stands against a baseline, see `comparisons.STATES`, NaN for none, and a text."""
    if row is None:
        return math.nan, ""
    apart = row.mean - simple["mean"]
    text = f"{apart:+.3f}" if apart else "tie"
    if not apart:
        return math.nan, text
    clear = abs(apart) > row.half + simple["half"]  # never where there is no interval
    return (2 + clear if (apart > 0) == higher else 1 - clear), text


def _verdict(rows: pd.DataFrame) -> dict[str, int]:
    """Return what a comparison, best first, adds to the counts."""
    model, simple = (rows[rows["kind"] == kind].iloc[0] for kind in ("model", "baseline"))
    apart = abs(model["mean"] - simple["mean"])
    ahead = bool(apart) and rows["kind"][rows["kind"].isin(("model", "baseline"))].iloc[0] == "model"
    counts = {"all": 1, "simple": bool(apart) and not ahead, "model": ahead, "twin": 0, "pairs": 0}
    counts["clear"] = ahead and apart > model["half"] + simple["half"]
    both = rows[(rows["method"] == rows["run"]) | (rows["kind"] == "twin")]  # variants of a run have no twins
    for _, pair in both.groupby("run"):
        if len(pair) == 2:
            counts["pairs"] += 1
            counts["twin"] += pair["kind"].iloc[0] == "model" and pair["mean"].nunique() == 2
    return {name: int(one) for name, one in counts.items()}


def leading(part: pd.DataFrame, content: Mapping[str, Any], task: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the leading metrics of a task that were measured, and what they are."""
    measured = set(part["metric"])
    return [(name, about) for name, about in content["metrics"][task].items() if name in measured][:LEADING]


def place_name(*names: str) -> str:
    """Return the names of a place of the table, those that are there, as one."""
    return " · ".join(filter(None, names))


def words_of(task: str) -> str:
    """Return the name of a task to read."""
    return task.replace("_", " ")
