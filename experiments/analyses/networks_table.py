"""What `experiments.networks` leaves: the table and picture of its scores, and of every method edges and a picture."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.analyses import networks_picture
from experiments.analyses.networks import ORACLE, START, Method
from experiments.analyses.networks_data import Data, Truth
from experiments.pages import figures, output, score_table
from scfm_jax.tasks.networks import problem

LABELS = {"epr": "EPR", "aupr_ratio": "AUPR ratio", "auroc": "AUROC", "regulator_ap": "mean AP of a TF"}
MOST = 100_000
"""Edges of a method that are listed, the strongest."""
LEAKS = "†"
CONTROLS = ("twin", "shuffled names", "random vectors", "random start", "PCA loadings", "GO-SVD", "GO-Jaccard")
"""What the names of starts end in that no run has learnt."""


def write(
    out: pathlib.Path,
    data: Data,
    listed: Sequence[Method],
    rows: Sequence[Mapping[str, Any]],
    strengths: Mapping[str, np.ndarray],
    about: str,
) -> str:
    """Write the files of a table to OUT; return the table, or where there is no truth what was written.

    They are edges_<method>.tsv and network_<method>.png of each method but untrained starts, and with truths table.md,
    table.csv (a line for each truth, method and seed), table.json and table.png.
    """
    strengths = {name: strength for name, strength in strengths.items() if not name.startswith(START)}
    for name, strength in strengths.items():
        slug = re.sub(r"[^0-9A-Za-z]+", "_", name).strip("_")
        frame = edges(data, strength)
        output.write_file(out / f"edges_{slug}.tsv", frame.head(MOST).to_csv(sep="\t", index=False))
        output.write_file(out / f"network_{slug}.png", networks_picture.strongest(frame, data, name))
    if not rows:
        return f"{about}\n\nedges_<method>.tsv and network_<method>.png of {', '.join(strengths)} are in {out}"
    summary, notes = summarised(rows), {method.name: method.note for method in listed if method.note}
    content = table(summary, notes, data.truths, about)
    return score_table.write(out, rows, summary, notes, about, content, picture(summary))


def edges(data: Data, strength: np.ndarray) -> pd.DataFrame:
    """Return TF, target, weight, rank of every pair, and for each truth 1 where it has the edge, 0 where it has not,
    nothing where it does not judge the pair."""
    frame = problem.edges(strength, data.names, data.regulators)
    place = {name: i for i, name in enumerate(data.names)}
    of, target = frame.TF.map(place).to_numpy(), frame.target.map(place).to_numpy()
    for truth in data.truths:
        judged = np.isin(of, truth.regulators) & np.isin(target, truth.targets)
        frame[f"in {truth.name}"] = np.where(judged, np.where(truth.edges[target, of], "1", "0"), "")
    return frame


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {truth: {method: {score: (mean over seeds, low and high of chance, whether above both intervals)}}}.

    None stands for the scores of a method that is made of what the truth is made of.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for (truth, method), of in pd.DataFrame(rows).groupby(["truth", "method"], sort=False):
        mean = of.drop(columns=["truth", "method"]).mean()
        values = {}
        for score in LABELS:
            both = mean[f"{score}_chance_high"], mean[f"{score}_within_high"]
            values[score] = (mean[score], mean[f"{score}_chance_low"], both[0], bool(mean[score] > max(both)))
        summary.setdefault(truth, {})[method] = None if of.leaks.any() else values
    return summary


def table(summary: Mapping[str, Any], notes: Mapping[str, str], truths: Sequence[Truth], about: str) -> str:
    """Return the scores as Markdown, a table for each truth."""
    parts = [about]
    for truth in truths:
        judged = f"{truth.edges.sum():,} edges of {len(truth.regulators)} TFs among {len(truth.targets)} genes"
        parts.append(f"## {truth.name}: {judged}")
        lines = [
            [method, *([LEAKS] * len(LABELS) if of is None else [_cell(of[score], score) for score in LABELS])]
            for method, of in summary[truth.name].items()
        ]
        parts.append(output.markdown(["", *LABELS.values()], lines))
    parts += score_table.listed(notes)
    parts.append(
        "Pairs are of a TF and another gene of the truth. EPR: true edges among as many strongest pairs as there are "
        "true ones, over those of chance; AUPR ratio: average precision over the share of true pairs. In parentheses "
        "95 % of permutations of the truth over all pairs. Bold: above these, and above permutations that leave every "
        f"TF its number of targets. {ORACLE}: knows how many partners each gene has, and nothing of which. "
        '"start": the cosines themselves, untrained; means over seeds of twins, shuffles and random vectors.'
        + (f" {LEAKS}: made of what GO or STRING say, so not judged by them." if LEAKS in str(parts) else "")
    )
    return "\n\n".join(parts)


def _cell(value: Sequence[Any], score: str) -> str:
    digits = 3 if score in ("auroc", "regulator_ap") else 2
    mean, low, high = (f"{number:.{digits}f}" for number in value[:3])
    return f"{'**' if value[3] else ''}{mean}{'**' if value[3] else ''} ({low} … {high})"


def picture(summary: Mapping[str, Any]) -> bytes:
    """Draw each method's scores before the interval of chance, a row of panels for each truth, as PNG."""
    shown = {truth: {m: of for m, of in methods.items() if of is not None} for truth, methods in summary.items()}
    return score_table.panels(shown, LABELS, _drawn)


def _drawn(axes: Axes, score: str, place: int, method: str, values: Mapping[str, Sequence[Any]]) -> None:
    value, low, high, _ = values[score]
    axes.plot([low, high], [place, place], color="#c3cad3", lw=5, solid_capstyle="butt")
    axes.plot(value, place, "D" if method == ORACLE else "o", color=_colour(method), ms=5)
    axes.tick_params(axis="y", length=0)


def _colour(method: str) -> str:
    """Return the colour of a method: black for the oracle, orange without a model, blue and grey of starts."""
    if method == ORACLE:
        return figures.INK
    if not method.startswith(("DeepSEM, ", START)):
        return figures.COLOURS[3]
    return score_table.GREY if method.endswith(CONTROLS) else figures.COLOURS[0]
