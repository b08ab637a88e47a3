"""The tables and the violins of `experiments.correlate_states`, and whether genes of a list are among the strongest."""

import csv
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from data_pipeline.genes import gene_table
from experiments.analyses.state_correlation import SHUFFLES
from experiments.analyses.state_data import Question
from experiments.pages import figures, names, output
from scfm_jax.tasks.perturbation import states

LEVEL = 0.05
SHOWN = 40
"""Genes of a table, at most; table.csv has all."""
GENE = ("gene", "symbol", "gene_symbol", "gene_name")
"""What the column of a list of genes may be called."""
COLUMNS = ("gene", "cells", "cosine", "p, labels", "p, chance", "q", "", "two halves")


def write(
    out: pathlib.Path,
    question: Question,
    parts: Mapping[str, Mapping[str, Any]],
    lists: Mapping[str, set[str]],
    about: str,
) -> str:
    """Write table.md, table.csv, table.json and violin.png to OUT; return the table.

    Args:
      lists: {name: genes} whose enrichment among the strongest is told. about: the title.
    """
    enriched = {
        (space, name): states.enrichment(*_listed(part["rows"], genes))
        for space, part in parts.items()
        for name, genes in lists.items()
    }
    content = table(question, parts, enriched, about)
    rows = [{"space": space, **row, "effect": effect(row)} for space, part in parts.items() for row in part["rows"]]
    enriched_rows = [{"space": space, "list": name, **scores} for (space, name), scores in enriched.items()]
    files = {
        "table.csv": pd.DataFrame(rows).to_csv(index=False),
        "table.json": {
            "about": about,
            "synthetic": question.synthetic,
            "design": question.how,
            "rows": rows,
            "enrichment": enriched_rows,
        },
        "violin.png": violins(parts, "SYNTHETIC: " if question.synthetic else ""),
        "table.md": content + "\n",
    }
    for name, data in files.items():
        output.write_file(out / name, data)
    return content


def effect(row: Mapping[str, Any]) -> str:
    """Return what a gene's perturbation does to the state, "" where it may be chance."""
    return "" if row["q"] >= LEVEL else "reverses" if row["cosine"] < 0 else "resembles"


def _listed(rows: Sequence[Mapping[str, Any]], genes: set[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.abs([row["cosine"] for row in rows]), np.array([row["gene"] in genes for row in rows], bool)


def table(
    question: Question,
    parts: Mapping[str, Mapping[str, Any]],
    enriched: Mapping[tuple[str, str], Mapping[str, float]],
    about: str,
) -> str:
    """Return the scores as Markdown, a table for each space, the strongest reversal first."""
    plan, text = question.plan, [about]
    if question.synthetic:
        text.append(f"SYNTHETIC, not a measurement: {question.synthetic}.")
    text.append(
        f"State: {plan.case} against {plan.state_control} of {pathlib.Path(plan.state).name}, {len(question.rows):,} "
        f"cells, {question.how}. Perturbations: {len(question.data.screen.rows)} of {pathlib.Path(plan.input).name}."
    )
    for space, part in parts.items():
        rows = sorted(part["rows"], key=lambda row: row["cosine"])
        counted = {word: sum(effect(row) == word for row in rows) for word in ("reverses", "resembles")}
        halves = f"; two halves of the state's cells agree to {part['halves']:.2f}" if "halves" in part else ""
        text.append(
            f"## {space}: {counted['reverses']} of {len(rows)} genes reverse the state, {counted['resembles']} "
            f"resemble it (q < {LEVEL:g})"
        )
        what = "genes in common" if space.startswith("expression") else "numbers an embedding"
        text.append(f"{part['width']:,} {what}{halves}.{_caution(part)}")
        strong = sorted(rows, key=lambda row: -abs(row["cosine"]))[:SHOWN] if len(rows) > SHOWN else rows
        shown = [row for row in rows if row in strong] if len(rows) > SHOWN else rows
        text.append(output.markdown(COLUMNS, [_line(row) for row in shown]))
        if len(rows) > SHOWN:
            text.append(f"The {SHOWN} of largest |cosine|; table.csv has all.")
        text += [_enriched(name, scores) for (of, name), scores in enriched.items() if of == space]
    text.append(
        "Cosine: of the state (case less control) with the perturbation (perturbed less control); negative: the "
        "perturbation turns the state back. p, labels: case and control labels exchanged; p, chance: random halves of "
        "the screen's control cells in the place of perturbed ones"
        + (f", of predicted genes {SHUFFLES} predictors with shuffled gene vectors" if plan.vectors_file else "")
        + ". q: of the larger p, over the genes of a table. In expression a gene's own is left out; an embedding has "
        "it in it. Two halves: the cosine of the perturbation's differences in two halves of its cells, near 0 where "
        "there is nothing to compare."
    )
    return "\n\n".join(text)


def _caution(part: Mapping[str, Any]) -> str:
    """Return what is to be said against a part: that a model has seen the file, where gene vectors come from."""
    if part.get("reads"):
        seen = part["trained_on"]
        caution = f" Caution: by their names the model was trained on {', '.join(seen)}." if seen else ""
        return f" The run knows {part['reads']}.{caution}"
    if "vectors" not in part:
        return ""
    text = f" Effects are predicted from gene vectors: {part['kind']}, {part['vectors']}; see predictor/table.md."
    made = " ".join([part["vectors"], part["kind"], *map(str, part.get("meta", {}).values())])
    if "GO" in made:
        text += (
            " The vectors come from the Gene Ontology: that genes of a GO term stand out here is no evidence for it."
        )
    return text


def _line(row: Mapping[str, Any]) -> list[str]:
    halves = f"{row['halves']:.2f}" if row.get("halves") is not None else "–"
    numbers = [f"{row['cosine']:.2f}", *(f"{row[name]:.3f}" for name in ("p_labels", "p_chance", "q"))]
    return [row["gene"], f"{row['cells']:,}" if row["cells"] else "–", *numbers, effect(row), halves]


def _enriched(name: str, scores: Mapping[str, float]) -> str:
    if "overlap" not in scores:
        return f"{name}: {scores['listed']} of {scores['genes']} genes are on the list; nothing to compare."
    return (
        f"{name}: {scores['listed']} of {scores['genes']} genes are on the list; |cosine| of a listed gene is larger "
        f"than that of another with probability {scores['auroc']:.2f} (p {scores['p']:.3f}); {scores['overlap']} of "
        f"the {scores['top']} strongest, {scores['expected']:.1f} by chance (p {scores['overlap_p']:.3f})."
    )


def violins(parts: Mapping[str, Mapping[str, Any]], before: str = "") -> bytes:
    """Draw single cells' cosines with the state for the genes of largest |cosine|, a panel for each space, as PNG.

    Args:
      before: what stands before the name of each space.
    """
    drawn = {space: part for space, part in parts.items() if part.get("violins")}
    most = max(len(part["violins"]) for part in drawn.values())
    figure = Figure(figsize=(1.5 + 0.62 * most, 0.9 + 2.5 * len(drawn)), layout="constrained")
    for axes, (space, part) in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn.items(), strict=True):
        rows = {row["gene"]: row for row in part["rows"]}
        genes = sorted((gene for gene in part["violins"] if gene), key=lambda gene: rows[gene]["cosine"])
        for place, gene in enumerate([*genes, ""]):
            row = rows.get(gene)
            colour = {"reverses": figures.COLOURS[0], "resembles": figures.COLOURS[3]}.get(
                row and effect(row), "#9aa4b2"
            )
            if len(part["violins"][gene]) > 1:
                body = axes.violinplot(part["violins"][gene], [place], widths=0.85, showextrema=False)["bodies"][0]
                body.set(facecolor=colour, alpha=0.45, linewidth=0)
            axes.plot(place, np.median(part["violins"][gene]), "_", color=colour, ms=11, mew=2)
            if row:
                axes.plot(place, row["cosine"], "D", color=colour, ms=5)
        axes.axhline(0, color=figures.INK, lw=0.6)
        axes.set_xticks(range(len(genes) + 1), [names.label(gene, 14) for gene in genes] + ["control\ncells"])
        axes.tick_params(axis="x", rotation=45, labelsize=8)
        axes.set_title(names.label(before + space, 60), fontsize=10, loc="left")
        axes.set_ylabel("cosine with\nthe state")
        axes.grid(axis="y", color=figures.FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes = figure.axes[0]
    for label, colour in (
        ("reverses, q < 0.05", figures.COLOURS[0]),
        ("resembles", figures.COLOURS[3]),
        ("neither", "#9aa4b2"),
    ):
        axes.plot([], [], "s", color=colour, label=label)
    axes.plot([], [], "D", color=figures.INK, label="of the means")
    axes.plot([], [], "_", color=figures.INK, ms=11, mew=2, label="median cell")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figures.encoded(figure, "png")


def read_lists(paths: Sequence[str], say: Callable[[str], None] = print) -> dict[str, set[str]]:
    """Return {file: genes}: one a line, or the column "gene" of a table with tabs or commas, gzipped or not."""
    lists = {}
    for path in map(pathlib.Path, paths):
        lines = [line for line in gene_table.read_lines(path) if line.strip()]
        mark = next((mark for mark in "\t," if lines and mark in lines[0]), None)
        rows = list(csv.reader(lines, delimiter=mark)) if mark else [[line.strip()] for line in lines]
        head = [cell.strip().lower() for cell in rows[0]] if rows else []
        column = next((i for i, cell in enumerate(head) if cell in GENE), None)
        if not rows or (mark and column is None):
            raise ValueError(
                f"{path}: columns {', '.join(head[:6]) or 'none'}: one is to be called gene, or give one a line"
            )
        values = [row[0] for row in rows] if column is None else [row[column] for row in rows[1:] if len(row) > column]
        lists[path.name] = {value.strip() for value in values} - {""}
        say(f"{path}: {len(lists[path.name]):,} genes")
    return lists
