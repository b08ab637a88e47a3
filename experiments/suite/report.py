"""One HTML page about a suite: who is ahead and where a simple baseline is, in tables and in pictures.

It is made of what `experiments.suite` leaves in its folder and, for training curves and costs, of the workdirs that the
runs came from, where they are still there. The leaderboard and the pictures show the first two metrics of a task.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.pages import document, figures
from experiments.pages import run as page
from experiments.pages.document import Html, Section
from experiments.suite import results, sources
from experiments.suite import table as suite_table
from scfm_jax.saving import sealed
from scfm_jax.tasks.cells import embedding

LEADING = 2
ARROWS = {True: " ↑", False: " ↓", None: ""}
PLACE = ["task", "case", "dataset"]
ABSENT = {"inapplicable": "–", "failed": "failed"}

Content = Mapping[str, Any]
"""What is in suite.json."""


def write(folder: str | os.PathLike) -> pathlib.Path:
    """Write folder/report.html and return its path; FileNotFoundError where there is no suite."""
    folder = pathlib.Path(folder)
    if not (folder / "suite.json").is_file():
        raise FileNotFoundError(f"--suite={folder}: no suite.json there; give the --output of evaluate --suite")
    content = results.description(folder)
    metrics, cells = results.read(folder)
    table = suite_table.build(metrics, cells, content)
    table = table.iloc[np.argsort(table["task"].map(list(content["metrics"]).index), kind="stable")]
    asked = [metric in content["metrics"][task] for task, metric in zip(table["task"], table["metric"], strict=True)]
    done, absent = table[np.array(asked, bool)], table[table["metric"] == ""]
    values = metrics.groupby([*PLACE, "metric", "method"])["value"].agg(list).to_dict() if len(metrics) else {}
    damaged = results.problems(folder)
    if without := len(content["keys"]) - len(cells):
        damaged.append(f"{without} of {len(content['keys'])} cells of the table are not filled; the command fills them")
    maps, matrices = pictures(folder / "pictures", content, damaged)
    for run in content["runs"]:
        damaged += [f"{run['name']}: {problem}" for problem in page.problems(pathlib.Path(run["workdir"]))]
    tasks = [
        Section(_words(task).capitalize(), of_task(done[done["task"] == task], values, content, task))
        for task in content["metrics"]
    ]
    sections = [
        Section("In short", in_short(done, content)),
        Section("Leaderboard", leaderboard(done, absent, content)),
        *tasks,
        Section("Cells in two dimensions", maps),
        Section("Confusion matrices", matrices),
        Section("Training", sources.training(content)),
        Section("Cost", sources.cost(content, cells)),
        Section("Not in the tables", left_out(absent, content)),
        Section("Damaged or missing", document.listed(damaged)),
        Section("Where it comes from", sources.provenance(content, folder)),
    ]
    facts = {"runs": len(content["runs"]), "studies": len(content["datasets"]), "tasks": done["task"].nunique()}
    facts |= {"seeds": content["options"]["seeds"], "cells a seed": f"{content['options']['cells']:,}"}
    facts |= {"failed cells of the table": int((cells["status"] == "failed").sum()) if len(cells) else 0}
    return document.write(folder / "report.html", f"Suite {content['suite']}", facts, sections)


def comparisons(done: pd.DataFrame, content: Content) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the task and the rows of all methods, best first, of every place and metric that has a better side."""
    for (task, _, _, metric), rows in done.groupby([*PLACE, "metric"], sort=False):
        higher = content["metrics"][task][metric]["higher"]
        if higher is not None:
            yield task, rows.dropna(subset="mean").sort_values("mean", ascending=not higher, kind="stable")


def in_short(done: pd.DataFrame, content: Content) -> str:
    """Return how often a model is ahead of all baselines and of its twin, in words and as a table by task."""
    counts: dict[str, dict[str, int]] = {}
    for task, rows in comparisons(done, content):
        if {"model", "baseline"} <= set(rows["kind"]):
            count = counts.setdefault(task, dict.fromkeys(("all", "simple", "model", "clear", "twin", "pairs"), 0))
            for name, one in _verdict(rows).items():
                count[name] += one
    if not counts:
        return document.note("No comparison of a model with a baseline is finished yet.")
    total = pd.DataFrame(counts).sum(axis=1)
    none = "" if content["options"]["seeds"] > 1 else " With one seed there are no intervals."
    words = (
        f"Of {total['all']} comparisons (task, study, case and metric) the best mean is a simple baseline's in "
        f"{total['simple']} and a model's in {total['model']}, in {total['clear']} of these by more than both 95 % "
        f"intervals together; the others are ties. Models are better than their own untrained twins in {total['twin']} "
        f"of {total['pairs']} pairs.{none}"
    )
    head = ("Task", "comparisons", "baseline best", "model best", "and clearly", "models better than their twins")
    rows = [
        [_words(task), c["all"], c["simple"], c["model"], c["clear"], f"{c['twin']} of {c['pairs']}"]
        for task, c in counts.items()
    ]
    return f"<p>{document.text(words)}</p>" + document.table("Who has the best mean", head, rows)


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


def leaderboard(done: pd.DataFrame, absent: pd.DataFrame, content: Content) -> str:
    """Return the table of all runs, the best baseline beside them, with the leading metrics of every task."""
    ours = done[done["kind"] == "model"]
    columns = {m: run["name"] for run in content["runs"] for m in dict.fromkeys([run["name"], *_variants(ours, run)])}
    without = {(r.task, r.dataset, r.run): ABSENT[r.status] for r in absent.itertuples()}
    rows: list[list[Any]] = []
    for (task, case, dataset), part in done.groupby(PLACE, sort=False):
        rows.append([_place(_words(task), dataset, case)])
        for metric, about in _leading(part, content, task):
            of = part[part["metric"] == metric].dropna(subset="mean")
            ours, twins, simple = (of[of["kind"] == kind] for kind in ("model", "twin", "baseline"))
            simple = simple.sort_values("mean", ascending=not about["higher"], kind="stable")
            best = _best(pd.concat([ours, simple])["mean"], about["higher"])
            below = {r.run: f"twin {r.mean:.3f}" for r in twins.itertuples()}
            by = {r.method: _cell(r, best, below.get(r.method, "")) for r in ours.itertuples()}
            cells = [by.get(method, without.get((task, dataset, run), "")) for method, run in columns.items()]
            cells += [_cell(r, best, r.method) for r in simple.head(1).itertuples()] or [""]
            rows.append([metric + ARROWS[about["higher"]], *cells])
    note = (
        "Mean ± half the 95 % interval over seeds; the star marks the best mean of models and baselines. Under a "
        "number: the same network with random weights. ↑ higher is better, ↓ lower is better, – does not apply. "
        "“Seen”: cells of that study were in the run's pretraining, as far as that can be told."
    )
    table = document.table("Leading metrics", ("Metric", *columns, "best baseline"), rows, css="numbers")
    return document.note(note) + table if rows else ""


def _variants(ours: pd.DataFrame, run: Mapping[str, Any]) -> list[str]:
    """Return all names under which a run predicts."""
    return ours.loc[ours["run"] == run["name"], "method"].unique().tolist()


def _cell(row: Any, best: float | None, below: str) -> Html:
    """Return the cell of one number."""
    words = {"yes": "seen in pretraining", "unknown": "seen in pretraining: unknown"}.get(row.contaminated, "")
    seen = f"<small>{words}</small>" if words else ""
    mark = " class=best" if row.mean == best else ""
    return Html(f"<td{mark}>{_number(row)}<small>{document.text(below)}</small>{seen}</td>")


def of_task(done: pd.DataFrame, values: Mapping[tuple, Sequence], content: Content, task: str) -> str:
    """Return pictures of the leading metrics of a task and, folded, the tables of all."""
    about, parts = content["metrics"][task], []
    for (_, case, dataset), part in done.groupby(PLACE, sort=False):
        name, cards = _place(dataset, case), []
        for metric, what in _leading(part, content, task):
            rows = _ordered(part[part["metric"] == metric].dropna(subset="mean"), what["higher"])
            methods = []
            for r in rows.itertuples():
                seeds = [v for v in values[task, case, dataset, metric, r.method] if v is not None and v == v]
                methods.append(figures.Method(r.method, r.kind, r.mean, r.half, seeds))
            if methods:
                text = what["text"] + ARROWS[what["higher"]]
                alt = f"{_words(task)}, {name}, {text}: " + ", ".join(f"{m.name} {m.mean:.3f}" for m in methods)
                cards.append(document.figure(metric, figures.intervals(methods, text), "svg+xml", alt))
        parts.append(f"<h3>{document.text(name)}</h3><div class='plots'>{''.join(cards)}</div>")
        parts.append(document.folded(f"All numbers of {name}", _all_metrics(part, about, f"{_words(task)}, {name}")))
    meaning = "; ".join(f"{name}: {what['text']}" for name, what in about.items())
    marks = "Filled circles: models; open circles: their random twins; squares: baselines; diamonds, crosses: controls."
    return document.note(f"{meaning}. {marks}") + "".join(parts) if parts else ""


def _all_metrics(part: pd.DataFrame, about: Mapping[str, Any], name: str) -> str:
    """Return the table of every method and metric of one place."""
    metrics = [m for m in about if m in set(part["metric"])]
    summaries = {(r.method, r.metric): r for r in part.itertuples()}
    rows = []
    for r in _ordered(part.drop_duplicates("method"), about[metrics[0]]["higher"]).itertuples():
        numbers = [_number(summaries[r.method, m]) if (r.method, m) in summaries else "" for m in metrics]
        rows.append([r.method, r.kind, r.contaminated, *numbers])
    head = ("Method", "kind", "seen in pretraining", *(m + ARROWS[about[m]["higher"]] for m in metrics))
    return document.table(f"{name}: all metrics", head, rows, css="numbers")


def pictures(folder: pathlib.Path, content: Content, damaged: list[str]) -> tuple[str, str]:
    """Return the maps of cells by type and batch, and the confusion matrices, of every run side by side.

    A picture that cannot be read is left out, and said in `damaged`.
    """
    maps, matrices = [], []
    for study in content["datasets"]:
        saved = {}
        for name in [*(run["name"] for run in content["runs"]), "PCA-50"]:
            if (path := folder / f"{name}@{study['name']}.npz").is_file():
                try:
                    saved[name] = sealed.read_arrays(path)
                except sealed.Damaged as damage:
                    damaged.append(f"{damage}; the command that filled the suite makes it again")
        places = {name: figures.umap(arrays["embedding"]) for name, arrays in saved.items()}
        for key in ("label", "batch"):
            column, drawn = study.get(key) or key, []
            for name, arrays in saved.items():
                text = arrays[key].tolist()
                values = pd.Series([None if x.lower() in embedding.UNLABELLED else x for x in text], dtype=object)
                if values.nunique() > 1:
                    drawn.append(page.cells_map(places[name], values, column, f"{name}, {study['name']} by {column}"))
            if drawn:
                maps.append(f"<h3>{document.text(study['name'])} by {document.text(column)}</h3>{drawn[0][1]}")
                maps.append(f"<div class='grids'>{''.join(card for card, _ in drawn)}</div>")
        grids = [_matrix(name, study["name"], arrays) for name, arrays in saved.items() if len(arrays["confusion"])]
        if grids:
            matrices.append(f"<h3>{document.text(study['name'])}</h3><div class='grids'>{''.join(grids)}</div>")
    how = "UMAP (15 neighbours, seed 0) of the cells of seed 0. Distances on such maps mislead: trust the scores."
    what = (
        "Of each true type (row), the share in per cent that its five nearest neighbours take for each type (column)."
    )
    return document.note(how) + "".join(maps) if maps else "", document.note(what) + "".join(
        matrices
    ) if matrices else ""


def _matrix(name: str, study: str, arrays: Mapping[str, np.ndarray]) -> str:
    """Return the picture of a confusion matrix."""
    counts, types = arrays["confusion"].astype(float), arrays["types"].tolist()
    right = counts.diagonal() / np.maximum(counts.sum(1), 1)
    alt = f"{name}, {study}: share of each type that is named rightly: "
    alt += ", ".join(f"{kind} {share:.0%}" for kind, share in zip(types, right, strict=True))
    return document.figure(name, figures.confusion(counts, types), "png", alt)


def left_out(absent: pd.DataFrame, content: Content) -> str:
    """Return what failed or does not apply, with the reasons; what is the same for all runs in one line."""
    rows, everyone = [], len(content["runs"]) + 1
    for (status, task, dataset, reason), group in absent.groupby(["status", "task", "dataset", "reason"], sort=False):
        who = group["method"].tolist()
        rows.append(["all" if len(who) == everyone else ", ".join(who), _words(task), dataset, status, reason])
    rows.sort(key=lambda row: row[3])
    head = ("Run", "task", "study", "status", "why")
    return document.table("Failed or not applicable", head, rows) if rows else ""


def _leading(part: pd.DataFrame, content: Content, task: str) -> list[tuple[str, Mapping[str, Any]]]:
    measured = set(part["metric"])
    return [(name, about) for name, about in content["metrics"][task].items() if name in measured][:LEADING]


def _ordered(rows: pd.DataFrame, higher: bool | None) -> pd.DataFrame:
    """Return rows by kind as in the suite's table, the best of each kind first."""
    rows = rows.assign(order=rows["kind"].map(suite_table.KINDS.index))
    return rows.sort_values(["order", "mean"], ascending=[True, not higher], kind="stable")


def _best(means: pd.Series, higher: bool | None) -> float | None:
    return None if higher is None or means.empty else means.max() if higher else means.min()


def _number(row: Any) -> str:
    """Return mean ± half the interval, "" for none."""
    if math.isnan(row.mean):
        return ""
    return f"{row.mean:.3f}" + ("" if math.isnan(row.half) else f" ± {row.half:.3f}")


def _place(*names: str) -> str:
    return " · ".join(filter(None, names))


def _words(task: str) -> str:
    return task.replace("_", " ")
