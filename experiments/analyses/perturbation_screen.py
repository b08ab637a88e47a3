"""Perturb many genes in control cells, without treated cells to compare with: how far the embedding moves, and whither.

The shift's length is told in percentiles of genes that are as highly expressed; where there are case cells, the cosine
of the shift with the direction from control to case, its p among such genes and q over genes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.analyses import cells as model_cells
from experiments.analyses import perturbation
from experiments.pages import output
from scfm_jax.api import Run
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes.gene_clusters import false_discovery
from scfm_jax.tasks.perturbation import in_silico as task
from scfm_jax.training import pace

SHOWN = 30
"""Genes of the table, for each method."""


def evaluate(
    run: Run,
    source: Any,
    *,
    column: str,
    control: str,
    case: str | None = None,
    genes: Sequence[str] = (),
    most: int = 200,
    how: str = "mask",
    within: str | None = None,
    filter: str | None = None,
    cells: int = 300,
    null: int = 100,
    seed: int = 0,
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return a row for each gene and method: length of the shift, its percentile, cosine with the direction, p, q.

    Args:
      column, control: which cells genes are perturbed in; case: those whose direction is looked for, none for none.
      genes: to perturb, beside the `most` highest expressed ones that are the null. Others are as in
        `perturbation.evaluate`.

    Raises:
      ValueError, OSError: no such column, value, gene, or too few cells; in one line.
    """
    data = model_cells.read(run, source, say=say, **options)
    condition = data.column(column, "column")
    strata = data.column(within, "within") if within else np.full(len(condition), "all")
    some = perturbation.kept(data, filter) if filter else np.ones(len(condition), bool)
    rng = np.random.default_rng(seed)
    values = [control] if case is None else [control, case]
    rows = {value: perturbation.draw(condition, value, some, cells, rng, column) for value in values}
    base = data.counts[rows[control]]
    level = np.asarray(log_normalised(base).mean(0)).ravel()
    constants = data.constants(run, say)
    seen = base if how == "overexpress" else task.read_genes(run.module, constants, run.meta["config"], base)
    ids = {name: i for names in (run.genes, data.symbols) for i, name in enumerate(names) if data.measured[i]}
    if unknown := [name for name in genes if name not in ids]:
        raise ValueError(f"genes={unknown[0]}: no gene that the file and the model share; check its spelling")
    candidates, places, _ = perturbation.places_of(seen, level, data.measured, [], how)
    few = [name for name in genes if ids[name] not in set(candidates)]
    if few:
        say(f"left out, expressed and read in fewer than {task.LEAST} control cells: {', '.join(few)}")
    listed = [ids[name] for name in genes if name not in few]
    highest = sorted(candidates, key=lambda gene: -level[gene])[:most]
    asked = sorted({*listed, *highest})
    if len(asked) < 20:
        raise ValueError(f"{len(asked)} genes are expressed and read in {task.LEAST} control cells: too few for a null")
    scored: list[dict[str, Any]] = []
    everything = np.unique(np.concatenate(list(rows.values())))
    entrants = list(perturbation.methods(run, constants, data.counts[everything], seed))
    for name, embed in pace.counted(entrants, "scored method", say):
        moved = task.shifts(embed, base, {gene: places(gene) for gene in asked}, how)
        shifts = {gene: after - before for gene, (before, after) in moved.items()}
        ends = None
        if case is not None:
            parts = [embed(data.counts[rows[value]], None, np.zeros(len(rows[value]), int)) for value in values]
            low, high = task.real_shift(*parts, *(strata[rows[value]] for value in values))
            ends = high - low
        of_method = []
        for gene in asked:
            like = task.matched(level, gene, asked, null)
            sizes = {"cells": len(places(gene)), "level": float(level[gene])}
            row = {"method": name, "gene": data.symbols[gene], **sizes}
            of_method.append(row | scores(shifts[gene], [shifts[int(g)] for g in like], ends))
        if ends is not None:
            for row, q in zip(of_method, false_discovery([r["p"] for r in of_method]), strict=True):
                row["q"] = float(q)
        scored += of_method
    return {
        "model": run.name,
        "weights": run.source,
        "input": data.name,
        "trained_on": data.trained_on,
        "how": how,
        "column": column,
        "control": control,
        "case": case,
        "seed": seed,
        "cells": len(rows[control]),
        "null": min(null, len(asked) - 1),
        "left_out": few,
        "rows": scored,
    }


def scores(shift: np.ndarray, null: Sequence[np.ndarray], ends: np.ndarray | None) -> dict[str, float]:
    """Return length and its percentile among null shifts; with a direction, the cosine with it and its two-sided p."""
    length = float(np.linalg.norm(shift))
    row = {"length": length, "percentile": task.percentile(length, [np.linalg.norm(other) for other in null])}
    if ends is None:
        return row
    value = task.cosine(shift, ends)
    return row | {"cosine": value, "p": task.p_value(abs(value), np.abs([task.cosine(other, ends) for other in null]))}


def table(result: Mapping[str, Any]) -> str:
    """Return the genes of the largest |cosine|, or without a direction of the largest percentile, as Markdown."""
    directed = result["case"] is not None
    head = ["gene", "method", "cells", "length", "percentile", *(["cosine", "p", "q"] if directed else [])]
    lines = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        for row in strongest(result, method)[:SHOWN]:
            more = [f"{row['cosine']:.2f}", f"{row['p']:.3f}", f"{row['q']:.3f}"] if directed else []
            shown = [row["gene"], method, str(row["cells"]), f"{row['length']:.3g}", f"{row['percentile']:.0f}"]
            lines.append([*shown, *more])
    text = (
        f"{result['how']} in {result['cells']} control cells ({result['column']} = {result['control']}) of "
        f"{result['input']}. Length: of the mean shift of the embedding; percentile: among {result['null']} genes that "
        "are as highly expressed."
    )
    if directed:
        text += (
            f" Cosine: of the shift with the direction from {result['control']} to {result['case']}: negative, away "
            "from it. p: two-sided, among the same genes; q: over genes."
        )
    if result["left_out"]:
        text += f"\nLeft out, expressed and read in too few control cells: {', '.join(result['left_out'])}."
    if result["trained_on"]:
        text += f"\nCaution: by its name {result['input']} is a study that the model was trained on."
    return f"{output.markdown(head, lines)}\n\n{text}"


def strongest(result: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """Return a method's rows, the largest |cosine| with the direction first, or without one the longest shift."""
    directed = result["case"] is not None
    rows = [row for row in result["rows"] if row["method"] == method]
    return sorted(rows, key=lambda row: -abs(row["cosine"]) if directed else (-row["percentile"], -row["length"]))
