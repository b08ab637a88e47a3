"""Score rankings of genes by known markers: a model's beside its random twin's and those without a model."""

import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.files import h5ad
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from experiments import cli
from experiments.analyses import marker_table
from experiments.pages import heat_map, output
from scfm_jax import api
from scfm_jax.inference.gene_representations import GeneRepresentations
from scfm_jax.tasks.cells.labels import unlabelled
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.genes import marker_genes as task
from scfm_jax.training import pace

DRAWN = ("summed", "shift")
"""The rankings whose top genes are drawn."""
METRICS = ("hits", "expected", "p", "matched_auroc", "auroc_p")


def evaluate(
    run: api.Run,
    source: Any,
    known: Mapping[str, pd.DataFrame],
    *,
    labels: str = "cell_type",
    top: int = task.TOP,
    cells: int = 50,
    min_expressed: float = 0.1,
    seeds: int = 3,
    layer: str | None = None,
    raw: bool | None = None,
    round: bool | None = None,
    gene_table: Sequence[str] = (),
    say: Callable[[str], None] = print,
    **options: Any,
) -> dict[str, Any]:
    """Return rows (one for each type, ranking and seed), the top genes of the first seed, and what to draw.

    Args:
      known: the markers of each type to rank, see `marker_table.of_type`, by its label in the file.
      labels: obs column of the types; the types that are not in `known` are what these are compared with.
      options: of `Run.gene_representations`.

    Raises:
      ValueError, OSError: no such column or type, none of its markers in the file, a model without gene
        representations; in one line.
    """
    place = {"layer": layer, "raw": raw, "round": round}
    options |= {**place, "gene_table": gene_table}
    table = run.gene_table(gene_table)
    report: dict[str, Any] = {"rows": [], "top": {}, "heat_maps": {}, "known": {}}
    with h5ad.read_counts(source, **place) as counts:
        path = pathlib.Path(str(counts.path))
        types = _types(counts.obs, labels, known)
        for seed in pace.counted(range(seeds), "scored seed", say):
            rng = np.random.default_rng(seed)
            rows = task.draw(types, cells, rng)
            seed_options = {"rows": rows, "seed": seed, **options}
            genes = run.gene_representations(source, **seed_options, say=say if seed == 0 else lambda _: None)
            if seed == 0:
                names = symbols(genes, run.mapping, counts)
                marked = {label: _marked(label, known[label], names, genes.genes, table) for label in known}
            twin = run.twin(seed).gene_representations(source, **seed_options, say=lambda _: None)
            values = log_normalised(run.mapping.apply(counts.take(rows))[:, genes.ids])
            member = np.stack([types[rows] == label for label in known], 1)
            models = {run.name: _halves(genes, member), "random twin": _halves(twin, member)}
            for i, (label, markers) in enumerate(marked.items()):
                problem = _pose(values, member[:, i], markers, min_expressed, top)
                halves = {who: (type_mean[i], rest_mean[i]) for who, (type_mean, rest_mean) in models.items()}
                ranked = dict(_rankings(halves, problem))
                for ranking, score in ranked.items():
                    scores = task.enrichment(score, problem["markers"], problem["level"], top)
                    report["rows"].append({"type": label, "ranking": ranking, "seed": seed, **scores})
                if seed == 0:
                    report["known"][label] = _numbers(known[label], markers, problem)
                    report["top"][label] = dict(_tops(ranked, problem, names, top))
                    report["heat_maps"][label] = dict(
                        _drawn(run.name, ranked, halves[run.name][0], problem, names, top)
                    )
    return {
        "input": path.name,
        "model": run.name,
        "weights": run.source,
        "trained_on": path.stem in run.classes.get("study", ()),
        "labels": labels,
        "types": sorted(set(types[rows])),
        "cells": cells,
        "top_genes": top,
        "min_expressed": min_expressed,
        "seeds": seeds,
        "genes": len(genes.genes),
        "sample": genes.provenance["sample"],
        **report,
    }


def _halves(genes: GeneRepresentations, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean representations over the cells of each group, and over the others. bool [n, S] -> [S, K, D] twice"""
    values, seen = genes.mean_of(np.concatenate([member, np.ones((len(member), 1), bool)], 1))
    return values[:-1], task.remainder(values[:-1], seen[:-1], values[-1], seen[-1])


def symbols(genes: GeneRepresentations, mapping: vocab.Mapping, counts: h5ad.Counts) -> list[str]:
    """Return the symbol of each gene, as the file has it, else its name in the model; each name once. [K]"""
    file_names, second = vocab.file_names(counts)
    column = np.full(mapping.n_vocab, -1)
    column[mapping.index[::-1]] = np.arange(counts.n_genes)[::-1]  # the first of those that are summed
    names: dict[str, None] = {}
    for place, model_name in zip(column[genes.ids], genes.genes, strict=True):
        choice = (file_names[place], second[place], model_name)
        name = next((str(name) for name in choice if name and not vocab.is_id(str(name))), model_name)
        names[name if name not in names else f"{name} ({model_name})"] = None
    return list(names)


def _types(obs: pd.DataFrame, labels: str, wanted: Mapping[str, Any]) -> np.ndarray:
    """Return the type of every cell, None where it has none; ValueError for unknown columns and types."""
    if labels not in obs:
        raise ValueError(
            f"--labels={labels}: no such obs column; there are {', '.join(map(str, obs.columns)) or 'none'}"
        )
    types = np.array([None if unlabelled(name) else name for name in text(obs[labels])], object)
    number = pd.Series(types).value_counts()
    for label in wanted:
        if number.get(label, 0) < 5:
            choices = ", ".join(f"{name} ({n})" for name, n in number.items() if n >= 5)
            hint = cli.quoting("types", list(wanted), [str(name) for name in number.index])
            few = f"obs[{labels!r}] has fewer than 5 such cells"
            raise ValueError(f"--types={label}: {few}; {hint or 'there are ' + (choices or 'none')}")
    if (number >= 5).sum() < 2:
        raise ValueError(f"--labels={labels}: has one type, and there is nothing to compare it with")
    return types


def _marked(
    label: str, known: pd.DataFrame, names: Sequence[str], own: Sequence[str], table: vocab.GeneTable | None
) -> np.ndarray:
    """Return which genes are markers, by their symbols or by their names in the model. bool [K]"""
    marked = marker_table.match(known, names, table) | marker_table.match(known, own, table)
    if not marked.any():
        raise ValueError(
            f"{label}: none of the {len(known)} markers of {known['type'].iloc[0]!r} is among the {len(own)} genes "
            f"that file and model share, such as {', '.join(names[:3])}; give a --gene_table that knows both names"
        )
    return marked


def _pose(values: Any, member: np.ndarray, markers: np.ndarray, least: float, top: int) -> dict[str, Any]:
    """Return the candidates of a group of cells and what is known of them: expression, its bin, who is a marker."""
    chosen = task.candidates(task.mean(values > 0, member), least, top)
    type_mean, rest_mean = task.mean(values, member)[chosen], task.mean(values, ~member)[chosen]
    return {
        "genes": chosen,
        "own": type_mean,
        "rest": rest_mean,
        "level": task.levels(type_mean),
        "markers": markers[chosen],
    }


def _rankings(
    models: Mapping[str, tuple[np.ndarray, np.ndarray]], problem: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the scores of every ranking of the candidates: the model's, the twin's, those without."""
    for who, (type_mean, rest_mean) in models.items():
        for ranking, score in task.rankings(type_mean[problem["genes"]], rest_mean[problem["genes"]]).items():
            yield f"{who}: {ranking}", score
    yield from task.baselines(problem["own"], problem["rest"]).items()


def _numbers(known: pd.DataFrame, markers: np.ndarray, problem: dict[str, Any]) -> dict[str, Any]:
    """Return how many markers there are, and how many of them can be found."""
    numbers = {"name": known["type"].iloc[0], "table": int(known["gene"].nunique()), "measured": int(markers.sum())}
    return numbers | {"candidates": len(problem["genes"]), "among_candidates": int(problem["markers"].sum())}


def _tops(
    ranked: Mapping[str, np.ndarray], problem: dict[str, Any], names: Sequence[str], n: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the best genes of every ranking."""
    for ranking, score in ranked.items():
        yield (
            ranking,
            [
                {"gene": names[problem["genes"][i]], "score": float(score[i]), "marker": bool(problem["markers"][i])}
                for i in task.top(score, n)
            ],
        )


def _drawn(
    model: str,
    ranked: Mapping[str, np.ndarray],
    values: np.ndarray,
    problem: dict[str, Any],
    names: Sequence[str],
    n: int,
) -> Iterator[tuple[str, tuple[np.ndarray, list[str], np.ndarray]]]:
    """Yield (similarities, names, markers) of the best genes of each ranking that is drawn."""
    for ranking in DRAWN:
        best = task.top(ranked[f"{model}: {ranking}"], n)
        genes = problem["genes"][best]
        yield ranking, (task.similarity(values[genes]), [names[i] for i in genes], problem["markers"][best])


def table(found: dict[str, Any]) -> str:
    """Return the scores as Markdown: the mean over seeds and half the range, of p the largest."""
    frame = pd.DataFrame(found["rows"])
    lines = []
    for label, of_type in frame.groupby("type", sort=False):
        counts = found["known"][label]
        lines += [
            f"### {label}: {counts['among_candidates']} markers of {counts['name']} among {counts['candidates']} genes",
            "",
            f"| ranking | markers of {found['top_genes']} | chance | p | matched AUROC | p |",
            "|---|---|---|---|---|---|",
        ]
        for ranking, rows in of_type.groupby("ranking", sort=False):
            hits, chance, p, auroc, auroc_p = (rows[metric] for metric in METRICS)
            spread = f"{hits.mean():.1f} ± {np.ptp(hits) / 2:.1f} | {chance.mean():.1f} | {p.max():.2g}"
            area = f"{auroc.mean():.3f} ± {np.ptp(auroc) / 2:.3f} | {auroc_p.max():.2g}"
            lines.append(f"| {ranking} | {spread} | {area} |")
        lines.append("")
    cells = f"at most {found['cells']} cells" if found["cells"] else "all cells"
    lines += [
        f"{cells} of each of {len(found['types'])} types; mean ± half the range, and the largest p, over "
        f"{found['seeds']} seeds. Chance, and p: a marker is exchanged with another of 25 genes as highly expressed in "
        "the type (genes taken for independent); matched AUROC: the chance that a marker ranks above such a gene."
    ]
    if found["trained_on"]:
        lines.append(f"Caution: by its name {found['input']} is a study that the model was trained on.")
    return "\n".join(lines)


def page(found: dict[str, Any], pictures: Mapping[str, Mapping[str, str]]) -> str:
    """Return the whole report as Markdown; `pictures` are the file names of the heat maps by type and ranking."""
    words = task.RANKINGS | task.BASELINES
    lines = [
        f"# Marker genes: {found['model']} on {found['input']}",
        "",
        f"Weights: {found['weights']}. Markers: {found['markers']}. {found['genes']} genes are shared by file and "
        f"model; ranked are those that {found['min_expressed']:.0%} of a type's cells express. {found['sample']}.",
        "",
        *(f"- {name}: {meaning}" for name, meaning in words.items()),
        "",
        table(found),
    ]
    for label, of_type in found["top"].items():
        lines += ["", f"## {label}: top genes of the first seed (known markers bold)"]
        for ranking, genes in of_type.items():
            text = ", ".join(f"**{gene['gene']}**" if gene["marker"] else gene["gene"] for gene in genes)
            lines += ["", f"{ranking}: {text}"]
        for ranking, file in pictures[label].items():
            lines += ["", f"![{label}, {words[ranking]}]({file})"]
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], folder: str | os.PathLike, linkage: str = "similarity") -> None:
    """Write markers.md, markers.json and the heat maps (clustered by `linkage`) to a new folder, all or nothing."""
    files: dict[str, Any] = {}
    pictures: dict[str, dict[str, str]] = {label: {} for label in found["heat_maps"]}
    for ranking in DRAWN:
        maps = {label: of_type[ranking] for label, of_type in found["heat_maps"].items()}
        limits = heat_map.limits([similarities for similarities, _, _ in maps.values()])
        for number, (label, (similarities, names, markers)) in enumerate(maps.items(), 1):
            what = f"{len(names)} genes of the greatest {_words(ranking)}"
            title = f"{label} in {found['input']}, {found['model']}: {what}"
            short = re.sub(r"[^A-Za-z0-9]+", "_", label).strip("_")
            pictures[label][ranking] = f"heat_map_{number}_{short}_{ranking}.png"
            files[pictures[label][ranking]] = heat_map.draw(similarities, names, markers, title, limits, linkage)
    kept = {name: value for name, value in found.items() if name != "heat_maps"} | {"pictures": pictures}
    files |= {"markers.md": page(found, pictures), "markers.json": json.dumps(kept, indent=1) + "\n"}
    output.write(folder, files)


def _words(ranking: str) -> str:
    return task.RANKINGS[ranking].split(" (")[0]
