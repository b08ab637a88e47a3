"""One HTML page about a run: how it scores, what the embedding looks like, how training went, what it was made from.

The page is a single file: pictures are inside, nothing is loaded from anywhere. What a workdir does not have (no
embedding yet, no scores) is listed on the page with the command that makes it.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd

from data_pipeline.files import trust
from experiments.analyses import embedding as embedding_analysis
from experiments.pages import comparisons, curves, document, figures, imputation_curves, names, output
from experiments.pages.document import Html, Section
from scfm_jax.saving import checkpoint, sealed
from scfm_jax.saving.secret import masked
from scfm_jax.tasks.cells.embedding import METRICS
from scfm_jax.tasks.cells.labels import unlabelled
from scfm_jax.training import pace

MOST_CELLS = 20_000
"""Cells of the pictures; of larger files a random sample."""
MOST_COLUMNS = 30
"""obs columns that an error lists."""
COLUMNS = ("cell_type", "batch", "donor", "study", "tissue", "assay", "perturbation", "condition")
"""obs columns to colour by, those that are there and vary, if nobody asks for others."""
BEST = " class=best"
STRUCTURED = ("genes", "shape", "step")
"""What of an embedding's provenance is JSON; all else is text, even text that looks like JSON."""


class Embedding(NamedTuple):
    """What a page shows of a file's embedding [n, D]: where it comes from, HTML of its maps, its UMAP [n, 2]."""

    provenance: dict[str, Any]
    maps: str
    values: np.ndarray | None
    places: np.ndarray | None


def write(
    workdir: str | os.PathLike,
    source: str | os.PathLike | None = None,
    columns: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> pathlib.Path:
    """Write workdir/report.html and return its path.

    Args:
      source: the .h5ad with the embedding; by default workdir/embedding.h5ad, if it is there.
      columns: obs columns to colour the cells by.
      say: is told how far it is.

    Raises:
      ValueError, OSError: the workdir or `source` is not there, or has no embedding or no such column; in one line.
    """
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise FileNotFoundError(f"--workdir={workdir}: no such folder; give the workdir of a training run")
    missing: list[str] = []
    doubts: list[str] = []
    meta = _meta(workdir, missing, doubts)
    if source is None and (workdir / "embedding.h5ad").exists():
        source = workdir / "embedding.h5ad"
    if not source:
        missing.append(
            "no embedding: python -m experiments.evaluate --workdir=… --input=x.h5ad (or embed, and --input)"
        )
    scores = _read_scores(workdir, missing, doubts)
    parts = {
        "maps": lambda: _embedding(pathlib.Path(source), columns) if source else Embedding({}, "", None, None),
        "curves": lambda: curves.drawn(workdir),
    }
    shown, drawn = (parts[name]() for name in pace.counted(parts, "drew part", say))
    doubts += problems(workdir, meta)
    if not drawn:
        missing.append("no metrics: the run has not logged a step yet")
    facts, beside = _facts(workdir, meta, doubts), compared(workdir, doubts, scores, shown)
    sections = [
        Section("Scores", _scores(scores) if scores else ""),
        Section("Embedding", beside + shown.maps),
        Section("Imputation", imputation_curves.section(workdir, lambda path: _read(path, doubts))),
        Section("Training", f"<div class='curves'>{drawn}</div>" if drawn else ""),
        Section("Genes", _genes(meta, shown.provenance)),
        Section("Not here", document.listed(missing)),
        Section("Damaged, or without a checksum", document.listed(doubts)),
        Section("Where it comes from", _provenance(meta, shown.provenance)),
    ]
    title = f"{meta.get('model', 'run')} · {workdir.resolve().name}"
    return document.write(workdir / "report.html", title, facts, sections)


def _meta(workdir: pathlib.Path, missing: list[str], doubts: list[str]) -> dict[str, Any]:
    """Return the metadata of the newest checkpoint; the config alone before there is one."""
    try:
        return checkpoint.read_meta(workdir / "checkpoints")
    except (FileNotFoundError, ValueError) as error:
        missing.append(f"no checkpoint: {error}")
    config = _read(workdir / "config.json", doubts)
    return {"config": config} if config else {}


def _read(path: pathlib.Path, doubts: list[str]) -> dict[str, Any] | None:
    """Return what a JSON file holds, None where there is none or it is damaged, which is said in `doubts`."""
    if not path.exists():
        return None
    try:
        return output.read(path, doubts.append)
    except ValueError as damage:
        doubts.append(f"{damage}; the command that wrote it makes it again")
        return None


def _facts(workdir: pathlib.Path, meta: Mapping[str, Any], doubts: list[str]) -> dict[str, str]:
    """Return the few numbers at the top of the page."""
    facts = {"steps": f"{meta['step']:,}"} if "step" in meta else {}
    if meta.get("genes"):
        facts["genes"] = f"{len(meta['genes']):,}"
    train = meta.get("split", {}).get("parts", {}).get("train", {})
    if "cells" in train:
        facts["training cells"] = f"{train['cells']:,}"
    if studies := meta.get("classes", {}).get("study"):
        facts["studies"] = f"{len(studies):,}"
    try:
        if best := checkpoint.read_best(workdir / "checkpoints"):
            facts[f"best {best[1]['metric']}"] = f"{best[1]['value']:.4g}"
    except ValueError as damage:
        doubts.append(str(damage))
    return facts


def _read_scores(workdir: pathlib.Path, missing: list[str], doubts: list[str]) -> dict[str, Any] | None:
    """Return the scores of a workdir, None where it has none."""
    path = workdir / "scores.json"
    if not path.exists():
        missing.append("no scores: python -m experiments.evaluate --workdir=… --input=x.h5ad --label=cell_type")
    return _read(path, doubts)


def _scores(scores: dict[str, Any]) -> str:
    """Return the table of scores, the best of each metric marked, and their picture."""
    means = embedding_analysis.summary(scores)
    rows, drawn, spreads = [], {}, {}
    for m in (m for m in METRICS if m in means):
        best = means[m].min() if m == "batch_accuracy" else means[m].max()
        alone = (means[m] == best).sum() == 1
        cells = [
            Html(
                f"<td{' class=best' if alone and value == best else ''}>{value:.3f} <small>± {spread:.3f}</small></td>"
            )
            for value, spread in zip(means[m], means[f"{m} ±"], strict=True)
        ]
        rows.append([METRICS[m], *cells])
        drawn[METRICS[m]], spreads[METRICS[m]] = means[m].to_dict(), means[f"{m} ±"].to_dict()
    seeds = len({row["seed"] for row in scores["rows"]})
    note = (
        f"{scores['cells']:,} of {scores['of']:,} cells of {names.short(scores['input'])}, {scores['types']} values of "
        f"obs[{scores['label']!r}]. Mean ± half the range over {seeds} seeds of folds, Leiden, PCA and twins; the "
        "best is marked, where it is one alone. PCA-50: fifty components of log-normalised highly variable genes. "
        "Random twin: the same network, untrained. The best resolution is chosen by the labels, which is optimistic."
    )
    alt = "; ".join(f"{m}: " + ", ".join(f"{e} {v:.3f}" for e, v in of.items()) for m, of in drawn.items())
    picture = document.figure("Scores beside the baselines", comparisons.scores(drawn, spreads), "svg+xml", alt)
    table = document.table("Scores of the embedding", ["", *means.index], rows)
    return f"<div class='plots'>{picture}</div>{table}{document.note(note)}"


def compared(
    workdir: pathlib.Path, doubts: list[str], scores: dict[str, Any] | None = None, shown: Embedding | None = None
) -> str:
    """Return the embedding beside PCA and the random twin as HTML, and leave the picture as beside.png.

    "" where `experiments.evaluate` has not compared them yet, or what it left is damaged, which is said in `doubts`.

    Args:
      scores: of the workdir, read if left out. shown: an embedding whose map need not be computed again.
    """
    scores = scores or _read(workdir / "scores.json", [])
    if not (workdir / embedding_analysis.BESIDE).exists() or not scores:
        return ""
    try:
        arrays = sealed.read_arrays(workdir / embedding_analysis.BESIDE)
    except sealed.Damaged as damage:
        doubts.append(f"{damage}; experiments.evaluate makes it again")
        return ""
    means, labels = embedding_analysis.summary(scores), pd.Series(arrays.pop("label")).replace("", None)
    rows = np.arange(len(labels))
    if len(rows) > MOST_CELLS // 4:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), MOST_CELLS // 4, replace=False))
    metrics = [metric for metric in ("accuracy", "nmi") if metric in means]
    maps = {
        name: (_places(x, rows, shown), ", ".join(f"{METRICS[m]} {means[m][name]:.2f}" for m in metrics))
        for name, x in arrays.items()
    }
    picture, entries = figures.beside(maps, labels.iloc[rows].reset_index(drop=True))
    output.write_file(workdir / "beside.png", picture)
    caption = f"The same {len(rows):,} cells by each embedding, coloured by {scores['label']}"
    alt = f"{caption}: " + "; ".join(f"{name}, {words}" for name, (_, words) in maps.items())
    return document.figure(caption, picture, "png", alt, legend_of(entries))


def _places(x: np.ndarray, rows: np.ndarray, shown: Embedding | None) -> np.ndarray:
    """Return the UMAP of some rows of an embedding, those of the same one's map where there is one. [rows, 2]"""
    if shown and shown.places is not None and np.array_equal(x, shown.values):
        return shown.places[rows]
    return figures.umap(x[rows])


def _embedding(path: pathlib.Path, columns: Sequence[str]) -> Embedding:
    """Return the newest embedding in an .h5ad file, drawn."""
    obs, embedding, provenance = _read_embedding(path)
    for column in columns:
        if column not in obs:
            more = f", … ({len(obs.columns)})" if len(obs.columns) > MOST_COLUMNS else ""
            listed = ", ".join(names.short(name, 40) for name in obs.columns[:MOST_COLUMNS]) + more
            raise ValueError(f"--color={column}: {path} has no such obs column; there are {listed}")
    shown = columns or [c for c in COLUMNS if c in obs and labelled(obs[c]).nunique() > 1]
    n = len(obs)
    if n > MOST_CELLS:
        rows = np.sort(np.random.default_rng(0).choice(n, MOST_CELLS, replace=False))
        obs, embedding = obs.iloc[rows], embedding[rows]
    xy = figures.umap(embedding) if len(obs) > 3 else embedding[:, :2]
    if not shown:
        obs, shown = obs.assign(cells="all cells"), ["cells"]
    cards = [cells_map(xy, labelled(obs[column]), column, str(column), inside=True)[0] for column in shown]
    of = f"a random sample of {len(obs):,} of its {n:,} cells" if len(obs) < n else f"its {n:,} cells"
    name = provenance.get("input", path.name)
    sample = provenance.get("sample", "")
    how = f"UMAP (15 neighbours, seed 0) of the embedding of {names.short(name)}, {of}; {sample}."
    maps = f"{document.note(how)}<div class='maps'>{''.join(cards)}</div>"
    return Embedding(provenance, maps, embedding.astype(np.float32), xy)


def labelled(values: pd.Series) -> pd.Series:
    """Return a column of text with what says of a cell that nobody knows as missing, so that it gets no colour."""
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return values
    return values.astype(object).mask([unlabelled(value) for value in values], None)


def cells_map(xy: np.ndarray, values: pd.Series, column: str, caption: str, inside: bool = False) -> tuple[str, str]:
    """Return the picture of cells [n, 2] coloured by a column of obs, and its legend (can be `inside`), as HTML."""
    picture, entries = figures.cells(xy, values, column)
    alt = f"{caption}: UMAP of {len(xy)} cells coloured by {column}: "
    alt += ", ".join(f"{names.short(e.name)} ({e.cells})" for e in entries)
    legend = legend_of(entries)
    return document.figure(caption, picture, "png", alt, legend if inside else ""), legend


def legend_of(entries: Sequence[figures.Entry]) -> str:
    """Return a legend as HTML, "" where there is nothing in it."""
    lines = "".join(
        f'<li><span style="color:{e.colour}" aria-hidden="true">{e.mark}</span> '
        f"<bdi>{document.clipped(e.name, 60)}</bdi> <small>{e.cells:,}</small></li>"
        for e in entries
    )
    return f'<ul class="legend">{lines}</ul>' if lines else ""


def _read_embedding(path: pathlib.Path) -> tuple[pd.DataFrame, np.ndarray, dict[str, Any]]:
    """Return (obs, embedding [n, D], provenance) of the last X_<model> that `embed` wrote into the file."""
    if not path.is_file():
        raise FileNotFoundError(f"--input={path}: no such file; give an .h5ad written by experiments.embed")
    try:
        with h5py.File(path) as file:
            trust.check_hdf5(path, file)
            ours = [
                k for k in file.get("obsm", {}) if k.startswith("X_") and "embedded_with" in file.get(f"uns/{k}", {})
            ]
            if not ours:
                raise ValueError(
                    f"--input={path}: no embedding of ours in it; give an .h5ad written by experiments.embed"
                )
            key = max(ours, key=lambda k: str(anndata.io.read_elem(file[f"uns/{k}/date"])))
            read = [anndata.io.read_elem(file[name]) for name in ("obs", f"obsm/{key}", f"uns/{key}")]
    except OSError as error:
        raise ValueError(f"--input={path}: not a readable .h5ad: {' '.join(str(error).split())}") from error
    return read[0], np.asarray(read[1]), {name: _plain(name, value) for name, value in read[2].items()}


def problems(workdir: pathlib.Path, meta: Mapping[str, Any] | None = None) -> list[str]:
    """Return what is wrong with the logs of a run, in words: lines passed over, lines that a checkpoint remembers."""
    lines = [
        problem for name in ("metrics.jsonl", "timing.jsonl") for problem in sealed.read_lines(workdir / name).problems
    ]
    progress = (meta or {}).get("progress", {})
    if progress.get("digest"):
        path = workdir / "metrics.jsonl"
        start = path.read_bytes()[: progress["length"]] if path.is_file() else b""
        if hashlib.sha256(start).hexdigest() != progress["digest"]:
            lines.append(f"metrics.jsonl is not what it was when the checkpoint of step {meta['step']} was saved")
    return lines


def _genes(meta: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return how the genes of the training store and of the embedded file met the genes of the model."""
    reports = [("training store", meta.get("mapping"))]
    reports.append((provenance.get("input", "embedded file"), provenance.get("genes")))
    rows = []
    for name, report in reports:
        if isinstance(report, Mapping):
            numbers = ("n", "mapped", "renamed", "merged", "unknown", "covered", "vocab")
            examples = ", ".join(map(str, report.get("examples", {}).get("unknown", [])))
            rows.append([name, *(f"{report[k]:,}" if k in report else "–" for k in numbers), examples])
    head = ("", "names", "mapped", "renamed", "merged", "unknown", "model's genes it has", "of", "unknown, for example")
    note = "Names beyond the model's genes are left out: of a model of few genes that is most of a file, and no fault."
    return document.table("Names of genes that met the model's", head, rows) + document.note(note) if rows else ""


def _provenance(meta: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return where everything comes from, and the config, folded."""
    first = ("model", "weights", "step", "input", "counts", "shape", "sample", "date", "trained_with", "embedded_with")
    order = sorted(provenance, key=lambda k: first.index(k) if k in first else len(first))
    listed = {k: provenance[k] for k in order if not isinstance(provenance[k], dict)}
    if not listed and "code_version" in meta:
        listed = {"trained_with": meta["code_version"]}
    if "date" in listed:
        listed["date"] = document.moment(listed["date"])
    rows = [[k.replace("_", " "), _compact(v)] for k, v in listed.items() if v is not None]
    body = document.table("Provenance", (), rows, css="facts") if rows else ""
    for title, key in (("Config", "config"), ("Split of the cells", "split"), ("Position of the data", "loader")):
        if meta.get(key):
            content = json.dumps(masked(meta[key]), indent=2, ensure_ascii=False)
            body += document.folded(title, f"<pre>{document.text(content)}</pre>")
    return body


def _compact(value: Any) -> str:
    return " × ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(name: str, value: Any) -> Any:
    """Return an entry of uns as Python's own; JSON is decoded where it is JSON, not where a name looks like it."""
    value = value.item() if isinstance(value, np.generic) else value
    if name in STRUCTURED and isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # a stranger's file: it is shown as text
            return value
    return value.tolist() if isinstance(value, np.ndarray) else value
