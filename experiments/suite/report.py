"""One HTML page about a suite: who is ahead and where a simple baseline is, in tables and in pictures.

It is made of what `experiments.suite` leaves in its folder and, for training curves and costs, of the workdirs that the
runs came from, where they are still there. The leaderboard and the pictures show the first two metrics of a task.
"""

import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.pages import comparisons, document, figures, names
from experiments.pages import run as page
from experiments.pages.document import Html, Section
from experiments.suite import results, sources, standing
from experiments.suite import table as suite_table
from experiments.suite.standing import place_name, words_of
from scfm_jax.saving import sealed
from scfm_jax.tasks.cells import labels
from scfm_jax.training import pace

MOST_ROWS = 50
"""Methods that a picture shows."""
SAYS = "five nearest neighbours say"
ARROWS = standing.ARROWS
BEST, TIE = " class=best", " class=tie"
ABSENT = {"inapplicable": "–", "failed": "failed"}

Content = Mapping[str, Any]
"""What is in suite.json."""


def write(folder: str | os.PathLike, say: Callable[[str], None] = lambda text: None) -> pathlib.Path:
    """Write folder/report.html and return its path; FileNotFoundError where there is no suite.

    `say` is told how far it is.
    """
    folder = pathlib.Path(folder)
    if not (folder / "suite.json").is_file():
        raise FileNotFoundError(f"--suite={folder}: no suite.json there; give the --output of evaluate --suite")
    content = results.description(folder)
    metrics, cells = results.read(folder)
    table = suite_table.build(metrics, cells, content)
    table.loc[table["seeds"] < comparisons.SEEDS, "half"] = math.nan
    table = table.iloc[np.argsort(table["task"].map(list(content["metrics"]).index), kind="stable")]
    asked = [metric in content["metrics"][task] for task, metric in zip(table["task"], table["metric"], strict=True)]
    done, absent = table[np.array(asked, bool)], table[table["metric"] == ""]
    values = metrics.groupby([*standing.PLACE, "metric", "method"])["value"].agg(list).to_dict() if len(metrics) else {}
    damaged = results.problems(folder)
    if without := len(content["keys"]) - len(cells):
        damaged.append(f"{without} of {len(content['keys'])} cells of the table are not filled; the command fills them")
    maps, matrices = pictures(folder / "pictures", content, damaged, say)
    for run in content["runs"]:
        damaged += [f"{run['name']}: {problem}" for problem in page.problems(pathlib.Path(run["workdir"]))]
    tasks = [
        Section(words_of(task).capitalize(), of_task(done[done["task"] == task], values, content, task))
        for task in pace.counted(content["metrics"], "drew task", say)
    ]
    sections = [
        Section("In short", standing.in_short(done, content) + standing.picture(done, content)),
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


def leaderboard(done: pd.DataFrame, absent: pd.DataFrame, content: Content) -> str:
    """Return the table of all runs, the best baseline beside them, with the leading metrics of every task."""
    ours = done[done["kind"] == "model"]
    columns = {m: run["name"] for run in content["runs"] for m in dict.fromkeys([run["name"], *_variants(ours, run)])}
    without = {(r.task, r.dataset, r.run): ABSENT[r.status] for r in absent.itertuples()}
    rows: list[list[Any]] = []
    tied = False
    for (task, case, dataset), part in done.groupby(standing.PLACE, sort=False):
        rows.append([place_name(words_of(task), dataset, case)])
        for metric, about in standing.leading(part, content, task):
            of = part[part["metric"] == metric].dropna(subset="mean")
            ours, twins, simple = (of[of["kind"] == kind] for kind in ("model", "twin", "baseline"))
            simple = simple.sort_values("mean", ascending=not about["higher"], kind="stable")
            mark = _mark(pd.concat([ours, simple])["mean"], about["higher"])
            tied |= TIE in map(mark, [*ours["mean"], *simple["mean"]])
            below = {r.run: f"twin {r.mean:.3f}" for r in twins.itertuples()}
            by = {r.method: _cell(r, mark, below.get(r.method, "")) for r in ours.itertuples()}
            cells = [by.get(method, without.get((task, dataset, run), "")) for method, run in columns.items()]
            cells += [_cell(r, mark, r.method) for r in simple.head(1).itertuples()] or [""]
            rows.append([about["text"] + ARROWS[about["higher"]], *cells])
    note = (
        f"Mean ± half the 95 % interval over seeds, from {comparisons.SEEDS} seeds on; the star marks the best mean of "
        f"models and baselines{', = those that share it' * tied}. Under a number: the same network with random "
        "weights. ↑ higher is better, ↓ lower is better, – does not apply. "
        "“Seen”: cells of that study were in the run's pretraining, as far as that can be told."
    )
    table = document.table("Leading metrics", ("Metric", *columns, "best baseline"), rows, css="numbers")
    return document.note(note) + table if rows else ""


def _variants(ours: pd.DataFrame, run: Mapping[str, Any]) -> list[str]:
    """Return all names under which a run predicts."""
    return ours.loc[ours["run"] == run["name"], "method"].unique().tolist()


def _cell(row: Any, mark: Callable[[float], str], below: str) -> Html:
    """Return the cell of one number."""
    words = {"yes": "seen in pretraining", "unknown": "seen in pretraining: unknown"}.get(row.contaminated, "")
    seen = f"<small>{words}</small>" if words else ""
    return Html(f"<td{mark(row.mean)}>{_number(row)}<small>{document.clipped(below, 60)}</small>{seen}</td>")


def of_task(done: pd.DataFrame, values: Mapping[tuple, Sequence], content: Content, task: str) -> str:
    """Return pictures of the leading metrics of a task and, folded, the tables of all."""
    about, parts = content["metrics"][task], []
    for (_, case, dataset), part in done.groupby(standing.PLACE, sort=False):
        name, cards = place_name(dataset, case), []
        for metric, what in standing.leading(part, content, task):
            rows = _ordered(part[part["metric"] == metric].dropna(subset="mean"), what["higher"])
            methods = []
            for r in rows.itertuples():
                seeds = [v for v in values[task, case, dataset, metric, r.method] if v is not None and v == v]
                methods.append(comparisons.Method(r.method, r.kind, r.mean, r.half, seeds))
            left = len(methods) - MOST_ROWS
            if left > 0:  # the best of each kind are kept, and all baselines and controls
                run_rows = [m for m in methods if m.kind in ("model", "twin")]
                dropped = {id(m) for m in sorted(run_rows, key=lambda m: m.mean, reverse=not what["higher"])[:left]}
                methods = [m for m in methods if id(m) not in dropped]
            if methods:
                text = what["text"] + ARROWS[what["higher"]]
                alt = f"{words_of(task)}, {name}, {text}: " + ", ".join(
                    f"{names.short(m.name)} {m.mean:.3f}" for m in methods
                )
                drawn = comparisons.intervals(methods, text, metric)
                below = (
                    document.note(f"Not drawn: {left} models or twins with worse means; see the table.")
                    if left > 0
                    else ""
                )
                cards.append(document.figure(text, drawn, "svg+xml", alt, below))
        parts.append(f"<h3>{document.clipped(name)}</h3><div class='plots'>{''.join(cards)}</div>")
        parts.append(document.folded(f"All numbers of {name}", _all_metrics(part, about, f"{words_of(task)}, {name}")))
    marks = "Filled circles: models; open circles: their random twins; squares: baselines; diamonds, crosses: controls."
    return document.note(marks) + "".join(parts) if parts else ""


def _all_metrics(part: pd.DataFrame, about: Mapping[str, Any], name: str) -> str:
    """Return the table of every method and metric of one place."""
    metrics = [m for m in about if m in set(part["metric"])]
    summaries = {(r.method, r.metric): r for r in part.itertuples()}
    rows = []
    for r in _ordered(part.drop_duplicates("method"), about[metrics[0]]["higher"]).itertuples():
        numbers = [_number(summaries[r.method, m]) if (r.method, m) in summaries else "" for m in metrics]
        rows.append([r.method, r.kind, r.contaminated, *numbers])
    head = ("Method", "kind", "seen in pretraining", *(about[m]["text"] + ARROWS[about[m]["higher"]] for m in metrics))
    return document.table(f"{name}: all metrics", head, rows, css="numbers")


def pictures(
    folder: pathlib.Path, content: Content, damaged: list[str], say: Callable[[str], None] = lambda text: None
) -> tuple[str, str]:
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
        drawing = pace.counted(saved, f"mapped {names.short(study['name'], 40)} by run", say)
        places = {name: figures.umap(saved[name]["embedding"]) for name in drawing}
        for key in ("label", "batch"):
            column, drawn = study.get(key) or key, []
            for name, arrays in saved.items():
                text = arrays[key].tolist()
                values = pd.Series([None if labels.unlabelled(x) else x for x in text], dtype=object)
                if values.nunique() > 1:
                    drawn.append(page.cells_map(places[name], values, column, f"{name}, {study['name']} by {column}"))
            if drawn:
                maps.append(f"<h3>{document.clipped(study['name'])} by {document.clipped(column)}</h3>{drawn[0][1]}")
                maps.append(f"<div class='grids'>{''.join(card for card, _ in drawn)}</div>")
        grids = [_matrix(name, study["name"], arrays) for name, arrays in saved.items() if len(arrays["confusion"])]
        if grids:
            matrices.append(f"<h3>{document.clipped(study['name'])}</h3><div class='grids'>{''.join(grids)}</div>")
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
    alt += ", ".join(f"{names.short(kind)} {share:.0%}" for kind, share in zip(types, right, strict=True))
    return document.figure(name, figures.confusion(counts, types, SAYS), "png", alt)


def left_out(absent: pd.DataFrame, content: Content) -> str:
    """Return what failed or does not apply, with the reasons; what is the same for all runs in one line."""
    rows, everyone = [], len(content["runs"]) + 1
    for (status, task, dataset, reason), group in absent.groupby(["status", "task", "dataset", "reason"], sort=False):
        who = group["method"].tolist()
        rows.append(["all" if len(who) == everyone else ", ".join(who), words_of(task), dataset, status, reason])
    rows.sort(key=lambda row: row[3])
    head = ("Run", "task", "study", "status", "why")
    return document.table("Failed or not applicable", head, rows) if rows else ""


def _ordered(rows: pd.DataFrame, higher: bool | None) -> pd.DataFrame:
    """Return rows by kind as in the suite's table, the best of each kind first."""
    rows = rows.assign(order=rows["kind"].map(suite_table.KINDS.index))
    return rows.sort_values(["order", "mean"], ascending=[True, not higher], kind="stable")


def _mark(means: pd.Series, higher: bool | None) -> Callable[[float], str]:
    """Return what marks a mean among others: BEST where it alone is the best, TIE where some share that, not all."""
    best = None if higher is None or means.empty else means.max() if higher else means.min()
    number = int((means == best).sum())
    mark = BEST if number == 1 else TIE if number < len(means) else ""
    return lambda mean: mark if mean == best else ""


def _number(row: Any) -> str:
    """Return mean ± half the interval, "" for none."""
    if math.isnan(row.mean):
        return ""
    return f"{row.mean:.3f}" + ("" if math.isnan(row.half) else f" ± {row.half:.3f}")
