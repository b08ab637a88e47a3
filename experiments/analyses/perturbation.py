"""Perturb genes in control cells with a model, its random twin and no model, and score them: table and picture."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data_pipeline.batches import obs as columns
from experiments.analyses import cells as model_cells
from experiments.pages import figures, names, output
from scfm_jax.api import Run
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes.gene_clusters import false_discovery
from scfm_jax.tasks.perturbation import in_silico as task
from scfm_jax.training import pace

SCORES = ("direction", "downstream", "gain")
LEVEL = 0.05
NULL = "#6b7888"


def evaluate(
    run: Run,
    source: Any,
    *,
    column: str,
    control: str,
    targets: Sequence[tuple[str, str]] = (),
    how: str = "mask",
    within: str | None = None,
    filter: str | None = None,
    cells: int = 300,
    null: int = 100,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return a row for each target and method: its scores, p among genes of like expression, q over the targets.

    Args:
      column: of obs, what was done to each cell; control: its value for control cells.
      targets: (value of the column, gene); left out, all values that are names of measured genes.
      how: see `task.HOW`. within: obs column of strata within which treated and control cells are compared.
      filter: which cells count, an expression over obs columns (see `data_pipeline.batches.obs.Filter`).
      cells: control cells, and cells of each treatment, drawn at random. null: genes of the null.
      seed: of the draw, the twin's weights and the components.
      options: of `model_cells.read`.

    Raises:
      ValueError, OSError: no such column, value, gene, or too few cells; in one line.
    """
    data = model_cells.read(run, source, say=say, **options)
    condition = data.column(column, "column")
    strata = data.column(within, "within") if within else np.full(len(condition), "all")
    some = kept(data, filter) if filter else np.ones(len(condition), bool)
    rng = np.random.default_rng(seed)
    rows = {value: draw(condition, value, some, cells, rng, column) for value in (control, *_values(targets))}
    counts, base = data.counts, data.counts[rows[control]]
    level = np.asarray(log_normalised(base).mean(0)).ravel()
    asked = _targets(data, targets, condition[some], control, run.genes)
    for value, _ in asked:
        rows.setdefault(value, draw(condition, value, some, cells, rng, column))
    constants = data.constants(run, say)
    seen = base if how == "overexpress" else task.read_genes(run.module, constants, run.meta["config"], base)
    beyond = {data.symbols[g]: n for _, g in asked if (n := base[:, [g]].nnz - seen[:, [g]].nnz)}
    if beyond:
        say(not_counted(beyond))
    candidates, places, dropped = places_of(seen, level, data.measured, asked, how)
    asked = [(value, gene) for value, gene in asked if gene not in dropped]
    if not asked:
        raise ValueError(
            f"no target is expressed, and read by the model, in {task.LEAST} control cells: mask and delete need that, "
            "overexpress does not"
        )
    if len(candidates) < 20:
        raise ValueError(f"{len(candidates)} genes to compare with: too few for a null; the model knows too few genes")
    nulls = {gene: task.matched(level, gene, candidates, null) for _, gene in asked}
    genes = sorted({g for _, g in asked} | {int(g) for matched in nulls.values() for g in matched})
    everything = np.unique(np.concatenate(list(rows.values())))
    scored: list[dict[str, Any]] = []
    entrants = list(methods(run, constants, counts[everything], seed))
    for name, embed in pace.counted(entrants, "scored method", say):
        moved = task.shifts(embed, base, {g: places(g) for g in genes}, how)
        of_method = []
        for value, gene in pace.counted(asked, "compared target", say):
            truth = _truth(embed, counts, rows[control], rows[value], strata, gene)
            row = _row(moved, gene, nulls[gene], truth)
            named = {"method": name, "target": value, "gene": data.symbols[gene]}
            sizes = {"cells": len(places(gene)), "treated": len(rows[value]), "level": float(level[gene])}
            of_method.append({**named, **sizes, **row})
        for score in SCORES:
            for row, q in zip(of_method, false_discovery([r[f"{score}_p"] for r in of_method]), strict=True):
                row[f"{score}_q"] = float(q)
        scored += of_method
        say(f"perturbed {len(genes)} genes with {name}")
    return {
        "model": run.name,
        "weights": run.source,
        "input": data.name,
        "trained_on": data.trained_on,
        "how": how,
        "column": column,
        "control": control,
        "within": within,
        "filter": filter,
        "cells": len(rows[control]),
        "null": min(len(genes_of) for genes_of in nulls.values()),
        "left_out": [data.symbols[g] for g in dropped],
        "beyond": beyond,
        "seed": seed,
        "rows": scored,
    }


def kept(data: model_cells.ModelCells, expression: str) -> np.ndarray:
    """Return which cells a filter keeps. bool [n]"""
    wanted = columns.Filter(expression)
    for name in sorted(wanted.columns - {"n_genes"}):
        data.column(name, "filter")
    return wanted(types.SimpleNamespace(obs=data.obs, name=data.name, indptr=data.counts.indptr))


def _values(targets: Sequence[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(value for value, _ in targets))


def draw(
    condition: np.ndarray, value: str, some: np.ndarray, most: int, rng: np.random.Generator, column: str
) -> np.ndarray:
    """Return rows, ascending, of at most `most` random cells of a condition; `some`: which cells count. bool [n]"""
    chosen = np.flatnonzero((condition == value) & some)
    if len(chosen) < task.LEAST:
        names, number = np.unique(condition[some], return_counts=True)
        choices = ", ".join(f"{names[i]} ({number[i]})" for i in np.argsort(-number)[:8] if names[i])
        raise ValueError(
            f"obs[{column!r}] is {value!r} in {len(chosen)} cells, {task.LEAST} are needed; there are {choices}"
        )
    return np.sort(rng.permutation(chosen)[:most])


def _targets(data, targets, condition, control, model_genes) -> list[tuple[str, int]]:
    """Return (value of the column, gene id) of every target."""
    ids = {name: i for names in (model_genes, data.symbols) for i, name in enumerate(names) if data.measured[i]}
    if not targets:
        names, number = np.unique(condition, return_counts=True)
        pairs = [
            (n, ids[n]) for n, k in zip(names, number, strict=True) if n in ids and n != control and k >= task.LEAST
        ]
        if not pairs:
            raise ValueError("no value of the column is a gene that file and model share; write --targets=VALUE=GENE")
        return pairs
    unknown = [gene for _, gene in targets if gene not in ids]
    if unknown:
        raise ValueError(f"--targets: {', '.join(unknown)}: no gene that the file and the model share")
    return [(value, ids[gene]) for value, gene in targets]


def places_of(base, level, measured, asked, how):
    """Return the genes a null may have, a function gene -> control cells to perturb it in, targets without enough.

    `base`: counts of control cells that the model reads.
    """
    table = base.tocsc()

    def places(gene: int) -> np.ndarray:
        if how == "overexpress":
            return np.arange(base.shape[0])
        return np.sort(table.indices[table.indptr[gene] : table.indptr[gene + 1]])

    targets = {gene for _, gene in asked}
    enough = measured & (np.diff(table.indptr) >= task.LEAST if how != "overexpress" else level > 0)
    dropped = sorted(gene for gene in targets if how != "overexpress" and not enough[gene])
    return [int(g) for g in np.flatnonzero(enough) if g not in targets], places, dropped


def not_counted(beyond: Mapping[str, int]) -> str:
    """Return in words in how many control cells each target is expressed and not read."""
    numbers = ", ".join(f"{name} {n}" for name, n in beyond.items())
    return f"Not counted: control cells in which the target ranks beyond the genes that the model reads: {numbers}."


def methods(run: Run, constants: Mapping[str, Any], counts, seed: int):
    """Yield the name and the embedder of the model, its twin, and the components of all cells that are used."""
    for name, model in ((run.name, run), ("random twin", run.twin(seed))):
        parts = (run.name, run.module, run.model, model.variables, constants, run.meta["config"])
        yield name, task.Embedder(*parts)
    yield "PCA-50", task.Components(counts, seed=seed)


def _truth(embed, counts, control, treated, strata, gene: int) -> dict[str, Any]:
    """Return the real means with and without the gene itself, and how far two halves of the cells agree."""
    truth: dict[str, Any] = {}
    for name in ("whole", "downstream"):
        parts = []
        for rows in (control, treated):
            x = counts[rows] if name == "whole" else task.changed(counts[rows], np.full(len(rows), gene), "delete")
            parts.append(embed(x, None, np.zeros(len(rows), int)))
        truth[name] = task.real_shift(*parts, strata[control], strata[treated])
        truth[f"{name}_ceiling"] = task.reliability(*parts, strata[control], strata[treated])
    return truth


def _row(moved, gene: int, null: np.ndarray, truth: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a gene, and of each what its null is."""

    def scores(g: int) -> dict[str, float]:
        before, after = moved[int(g)]
        whole = task.score(before, after, *truth["whole"])
        return whole | {"downstream": task.score(before, after, *truth["downstream"])["direction"]}

    gene_scores, null_scores = scores(gene), [scores(g) for g in null]
    row: dict[str, Any] = dict(gene_scores)
    for name in SCORES:
        values = [other[name] for other in null_scores]
        low, middle, high = np.quantile(values, (0.025, 0.5, 0.975))
        row |= {f"{name}_p": task.p_value(gene_scores[name], values), f"{name}_null": [low, middle, high]}
    cosines = [other["cosine"] for other in null_scores]
    row |= {"percentile": task.percentile(row["cosine"], cosines), "null_cosines": cosines}
    row["null_directions"] = [other["direction"] for other in null_scores]
    return row | {"ceiling": truth["whole_ceiling"], "downstream_ceiling": truth["downstream_ceiling"]}


def table(found: Mapping[str, Any]) -> str:
    """Return the scores as Markdown, a line for each target and method."""
    head = ["target", "cells", "method", "cosine", "before", "percentile", "direction", "null, 95 %", "p", "q"]
    head += ["downstream", "p", "gain", "p", "halves"]
    lines = []
    targets = dict.fromkeys((row["target"], row["gene"]) for row in found["rows"])
    for target, gene in targets:
        for row in (r for r in found["rows"] if (r["target"], r["gene"]) == (target, gene)):
            low, _, high = row["direction_null"]
            name = target if target == gene else f"{target}: {gene}"
            values = [
                f"{row['cosine']:.3f}",
                f"{row['before']:.3f}",
                f"{row['percentile']:.0f}",
                f"{row['direction']:.2f}",
                f"{low:.2f} … {high:.2f}",
                _p(row["direction_p"]),
                _p(row["direction_q"]),
            ]
            values += [f"{row['downstream']:.2f}", _p(row["downstream_p"]), f"{row['gain']:.1e}", _p(row["gain_p"])]
            lines.append([name, str(row["cells"]), row["method"], *values, f"{row['ceiling']:.2f}"])
    text = output.markdown(head, lines) + "\n\n" + summary(found) + "\n\n"
    text += f"{found['how']} in {found['cells']} control cells ({found['column']} = {found['control']}) of "
    text += f"{found['input']}; cells: those perturbed. Cosine: of their mean embedding with that of really "
    text += "treated cells, before: of the same cells unperturbed; percentile: of the cosine among the null's. "
    text += "Direction: cosine of the shift with that of really treated cells; downstream: the same with the gene "
    text += "itself deleted from both; gain: how much the cosine with the "
    text += f"treated cells rises. p: among {found['null']} genes as highly expressed; q: over targets. Halves: the "
    text += "direction's ceiling, the cosine of the real shifts of two halves of the cells."
    if found["left_out"]:
        text += f"\nLeft out, expressed and read in fewer than {task.LEAST} control cells: "
        text += f"{', '.join(found['left_out'])}."
    if found["beyond"]:
        text += f"\n{not_counted(found['beyond'])}"
    if found["trained_on"]:
        text += f"\nCaution: by its name {found['input']} is a study that the model was trained on."
    return text


def summary(found: Mapping[str, Any]) -> str:
    """Return how many targets each method finds."""
    lines = []
    for method in dict.fromkeys(row["method"] for row in found["rows"]):
        of_method = [row for row in found["rows"] if row["method"] == method]
        hits = {name: sum(row[f"{name}_q"] < LEVEL for row in of_method) for name in SCORES}
        words = ", ".join(f"{name} {n}" for name, n in hits.items())
        lines.append(f"- {method}: of {len(of_method)} targets at a false discovery rate below {LEVEL:.0%}: {words}")
    return "\n".join(lines)


def _p(value: float) -> str:
    return f"{value:.3f}" if value < 0.0995 else f"{value:.2f}"


def picture(found: Mapping[str, Any]) -> bytes:
    """Draw the direction of every target among its null's, a panel for each method, as PNG."""
    methods = list(dict.fromkeys(row["method"] for row in found["rows"]))
    targets = list(dict.fromkeys((row["target"], row["gene"]) for row in found["rows"]))
    figure = Figure(figsize=(1.2 + 2.9 * len(methods), 1.3 + 0.36 * len(targets)), layout="constrained")
    panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    rng = np.random.default_rng(0)
    for axes, method in zip(panels, methods, strict=True):
        for row in (r for r in found["rows"] if r["method"] == method):
            place = targets.index((row["target"], row["gene"]))
            null = row["null_directions"]
            spread = place + rng.uniform(-0.25, 0.25, len(null))
            axes.plot(null, spread, "o", color=NULL, ms=3.5, mew=0, alpha=0.6, label="genes of like expression")
            colour = figures.COLOURS[3] if row["direction_q"] < LEVEL else figures.INK
            axes.plot(row["direction"], place, "D", color=colour, ms=6)
            axes.plot(row["ceiling"], place, "|", color=figures.COLOURS[0], ms=13, mew=2, label="two halves agree")
        axes.axvline(0, color=figures.INK, lw=0.6)
        axes.set_title(names.label(method), fontsize=10, loc="left")
        axes.set_xlabel("cosine with the real shift")
        axes.grid(axis="x", color=figures.FAINT, lw=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    labels = [names.label(target if target == gene else f"{target}: {gene}") for target, gene in targets]
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    panels[0].plot([], [], "D", color=figures.COLOURS[3], label=f"target, q < {LEVEL:g}")
    panels[0].plot([], [], "D", color=figures.INK, label="target")
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False, fontsize=9)
    return figures.encoded(figure, "png")
