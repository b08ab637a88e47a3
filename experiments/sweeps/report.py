"""The table and the plot of a sweep: mean and 95 % interval over seeds, the paper's numbers beside ours.

Intervals are Student's t over training seeds; a difference from the base is paired, seed by seed. What the evaluation
scores beside the model (a random twin, baselines) is shown below, as it was met in the runs of the base.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.pages import comparisons, figures, names, output
from experiments.sweeps.crew import result
from experiments.sweeps.plan import Plan
from scfm_jax.tasks.imputation.imputation import interval

OURS, THEIRS, BESIDE = figures.COLOURS[0], figures.COLOURS[3], figures.COLOURS[6]
PANELS = 3
"""Metrics that are drawn, the first ones."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: a point, or a method beside the model.

    Attributes:
      scores: {metric: [value of each seed that is finished]}. difference: those minus the base's of the same seed.
      seconds: mean cpu seconds of training and evaluation. of: number of seeds.
    """

    axis: str
    label: str
    base: bool
    paper: Mapping[str, float]
    scores: Mapping[str, Sequence[float]]
    difference: Mapping[str, Sequence[float]]
    seconds: float
    of: int

    @property
    def seeds(self) -> int:
        """Number of finished seeds."""
        return len(next(iter(self.scores.values()), ()))


def write(plan: Plan, workdir: pathlib.Path) -> str:
    """Write table.md, table.csv, table.json and plot.svg of the results there are; return the table, "" for none."""
    rows = read(plan, workdir)
    if not any(row.seeds for row in rows):
        return ""
    table = markdown(plan, rows)
    output.write_file(workdir / "table.md", f"# {plan.question}\n\n{table}\n{unfinished(plan, workdir)}")
    output.write_file(workdir / "table.csv", comma_separated(plan, rows))
    output.write_file(workdir / "table.json", records(plan, rows))
    output.write_file(workdir / "plot.svg", plot(plan, rows))
    return table


def read(plan: Plan, workdir: pathlib.Path) -> list[Row]:
    """Return a row for each point in the order of the sweep, then one for each method beside the model."""
    results: dict[str, dict[int, dict[str, Any]]] = {}
    points = {}
    for point in plan.points:
        points.setdefault(point.label + point.axis, point)
        by_seed = results.setdefault(point.label + point.axis, {})
        if finished := result(plan, workdir, point):
            by_seed[point.seed] = finished
    bases = results[next(key for key, point in points.items() if point.base)]
    rows = [_row(plan, points[key], by_seed, bases) for key, by_seed in results.items()]
    beside = dict.fromkeys(m for base in bases.values() for m in base["scores"] if m != plan.method)
    for method in beside:
        scores = {m: [base["scores"][method][m] for base in bases.values()] for m in plan.metrics}
        rows.append(Row("not trained here", method, False, {}, scores, {}, math.nan, len(bases)))
    return rows


def _row(plan: Plan, point: Any, by_seed: Mapping[int, Any], bases: Mapping[int, Any]) -> Row:
    scores = {m: [one["scores"][plan.method][m] for one in by_seed.values()] for m in plan.metrics}
    both = [] if point.base else [seed for seed in by_seed if seed in bases]
    difference = {
        m: [by_seed[seed]["scores"][plan.method][m] - bases[seed]["scores"][plan.method][m] for seed in both]
        for m in plan.metrics
    }
    spent = [sum(stage["cpu"] for stage in one["seconds"].values()) for one in by_seed.values()]
    seconds = sum(spent) / len(spent) if spent else math.nan
    seeds = len({other.seed for other in plan.points})
    return Row(point.axis, point.label, point.base, point.paper, scores, difference, seconds, seeds)


def markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """Return the table; the first metric has the difference from the base and the paper's number beside it."""
    first, *others = plan.metrics
    head = ["axis", "point", "seeds", first, "difference from base", f"paper's {first}", *others, "cpu s"]
    lines = []
    for row in rows:
        label = f"**{row.label}** (base)" if row.base else row.label
        paper = f"{row.paper[first]:.2f}" if first in row.paper else "–"
        cells = [row.axis, label, f"{row.seeds} of {row.of}", _cell(row.scores[first])]
        cells += [_cell(row.difference.get(first, ()), sign="+"), paper, *(_both(row, m) for m in others)]
        lines.append([*cells, "–" if math.isnan(row.seconds) else f"{row.seconds:.0f}"])
    meaning = "; ".join(f"{name}: {what}" for name, what in plan.metrics.items())
    note = f"Mean ± half the 95 % interval over training seeds (Student's t). {meaning}."
    if others and any(row.difference.get(m) for row in rows for m in others):
        note += " In brackets: the difference from the base, paired by seed."
    return f"{output.markdown(head, lines)}\n\n{note}"


def _both(row: Row, metric: str) -> str:
    """Return the mean, and the difference from the base where there is one."""
    apart = row.difference.get(metric, ())
    return _cell(row.scores[metric]) + (f" ({_cell(apart, sign='+')})" if apart else "")


def _cell(values: Sequence[float], sign: str = "") -> str:
    if not values:
        return "–"
    mean, half = interval(values)
    return f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def unfinished(plan: Plan, workdir: pathlib.Path) -> str:
    """Return a line for each point without a result, with its reason where it failed."""
    lines = []
    for point in plan.points:
        if not result(plan, workdir, point):
            reason = (output.finished(workdir / point.name / "point.json") or {}).get("failed")
            lines.append(f"- no result: {point.name}" + (f": {reason}" if reason else ""))
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def records(plan: Plan, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as JSON-able records, every seed in them; None where there is no number."""
    entries = []
    for row in rows:
        record = {"axis": row.axis, "point": row.label, "base": row.base, "seeds": row.seeds, "cpu_s": row.seconds}
        for metric in plan.metrics:
            mean, half = interval(row.scores[metric]) if row.seeds else (math.nan, math.nan)
            record |= {metric: mean, f"{metric}_half": half, f"{metric}_paper": row.paper.get(metric, math.nan)}
            record[f"{metric}_values"] = list(row.scores[metric])
            if row.difference.get(metric):
                mean, half = interval(row.difference[metric])
                record |= {f"{metric}_difference": mean, f"{metric}_difference_half": half}
        entries.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()})
    return entries


def comma_separated(plan: Plan, rows: Sequence[Row]) -> str:
    """Return the records as CSV, without the single values."""
    names = ["axis", "point", "base", "seeds", "cpu_s"]
    parts = ("", "_half", "_paper", "_difference", "_difference_half")
    names += [f"{metric}{part}" for metric in plan.metrics for part in parts]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(plan, rows))
    return text.getvalue()


def plot(plan: Plan, rows: Sequence[Row], kind: str = "svg") -> bytes:
    """Draw every row as a mean with its interval and the single seeds, the paper's numbers beside them."""
    rows = [row for row in rows if row.seeds]
    metrics = list(plan.metrics.items())[:PANELS]
    figure = Figure(figsize=(2.6 + 2.9 * len(metrics), 1.5 + 0.36 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    base = next((row for row in rows if row.base), None)
    for axes, (metric, meaning) in zip(panels, metrics, strict=True):
        if base:
            axes.axvline(interval(base.scores[metric])[0], color=OURS, lw=1, alpha=0.4)
        for place, row in enumerate(rows):
            _draw(axes, place, row, metric)
        axes.set_title(names.label(metric), fontsize=10, loc="left", weight="bold")
        axes.set_xlabel(names.label(meaning, 80), fontsize=8.5)
        axes.grid(axis="x", color=figures.FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    for place in (i for i in range(1, len(rows)) if rows[i].axis != rows[i - 1].axis):
        for axes in panels:
            axes.axhline(place - 0.5, color=figures.FAINT, lw=0.8)
    lines = [row.label if row.base or math.isnan(row.seconds) else f"{row.axis}: {row.label}" for row in rows]
    panels[0].set_yticks(range(len(rows)), [names.label(line, 60) for line in lines])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False, fontsize=9)
    return figures.encoded(figure, kind)


def _draw(axes: Any, place: int, row: Row, metric: str) -> None:
    """Draw one row of one panel."""
    beside = math.isnan(row.seconds)
    mean, half = interval(row.scores[metric])
    colour, mark, name = (BESIDE, "s", "not trained here") if beside else (OURS, "o", "ours, 95 % interval over seeds")
    if ends := comparisons.Method(row.label, "model", mean, half, row.scores[metric]).interval(metric):
        axes.plot(ends, [place, place], "|-", color=colour, lw=1.6, ms=6)
    axes.plot(mean, place, mark, color=colour, ms=6, label=name)
    if not beside:
        seeds = [place + 0.22] * row.seeds
        axes.plot(row.scores[metric], seeds, "|", color=colour, ms=5, alpha=0.8, label="one seed")
    if metric in row.paper:
        axes.plot(row.paper[metric], place, "D", mfc="none", mec=THEIRS, mew=1.8, ms=9, label="the paper's")
