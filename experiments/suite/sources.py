"""Where the numbers of a suite come from and what they cost: training curves, costs, provenance, as HTML."""

import csv
import io
import json
import pathlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from experiments.pages import curves, document
from experiments.suite import table
from scfm_jax.saving import sealed

PANELS = ("Loss", "Cells per second")
CODE = {"commit": "commit", "scfm_jax": "code_version", "jax": "jax", "date": "date"}


def training(content: Mapping[str, Any]) -> str:
    """Return the training curves of the runs whose workdirs are there."""
    drawn = [curves.drawn(pathlib.Path(run["workdir"]), PANELS, run["name"]) for run in content["runs"]]
    return f"<div class='curves'>{''.join(drawn)}</div>" if any(drawn) else ""


def cost(content: Mapping[str, Any], cells: pd.DataFrame) -> str:
    """Return what each run takes: parameters, speed, memory."""
    rows = []
    for run in content["runs"]:
        lines = sealed.read_lines(pathlib.Path(run["workdir"]) / "timing.jsonl")
        timing = pd.DataFrame([row for _, row in lines.rows])
        speed = timing["cells/s"].median() if "cells/s" in timing else None
        memory = timing["memory_gb"].max() if "memory_gb" in timing else None
        spent = cells.loc[cells["run"] == run["name"], "cpu_seconds"].sum() if len(cells) else None
        sizes = [f"{run['parameters']:,}", f"{run['genes']:,}", _shown(run.get("step"), ",.0f")]
        speeds = [_shown(run.get("cells_per_second"), ",.1f"), _shown(speed, ",.1f"), _shown(memory, ".2f")]
        rows.append([run["name"], run["model"], *sizes, *speeds, _shown(spent, ",.0f")])
    head = ("Run", "model", "parameters", "genes", "steps", "embedding, cells/s", "training, cells/s (median)")
    head += ("training, most memory, GB", "scoring it, cpu s")
    words = "Speeds are of the machine that ran this, under its load of the time; embedding: the fastest of all calls."
    return document.note(words) + document.table("Cost of each run", head, rows, css="numbers") if rows else ""


def provenance(content: Mapping[str, Any], folder: pathlib.Path) -> str:
    """Return code, data with their checksums, runs, contamination, and the command that makes this again."""
    code = [[name, document.moment(content.get(key) or "–")] for name, key in CODE.items()]
    body = document.table("Code", (), code, css="facts")
    studies = [(study, "compared") for study in content["datasets"]]
    studies += [(study, "reference") for study in content.get("reference", ())]
    head = ("Study", "used as", "file", "cells", "genes", "label", "batch", "positions", "sha256")
    rows = [
        [s["name"], use, pathlib.Path(s["path"]).name, f"{s['cells']:,}", f"{s['genes']:,}", s["label"] or "–",
         s["batch"] or "–", "yes" if s["spatial"] else "no", s["sha256"][:16]]
        for s, use in studies
    ]  # fmt: skip
    body += document.table("Data", head, rows)
    runs = [[r["name"], r["model"], r["source"], _shown(r.get("step"), ",.0f"), r["weights"]] for r in content["runs"]]
    body += document.table("Runs", ("Run", "model", "weights from", "step", "checksum of weights"), runs)
    seen = [
        [f"{run['name']}, {study}", table.WORDS[flag["seen"]], flag["why"]]
        for run in content["runs"]
        for study, flag in run["contamination"].items()
    ]
    body += document.table("Was the study in pretraining?", ("Run and study", "seen", "why"), seen) if seen else ""
    options = document.text(json.dumps(content["options"], indent=1, ensure_ascii=False))
    body += document.folded("Options", f"<pre>{options}</pre>")
    return f"{body}<pre>{document.text(command(content, folder))}</pre>"


def command(content: Mapping[str, Any], folder: pathlib.Path) -> str:
    """Return the command that made the suite, options that were left at the suite's own apart."""
    parts = {"runs": content["runs"], "data": content["datasets"], "reference": content.get("reference", ())}
    words = [f"--suite={content['suite']}"]
    for name, entries in parts.items():
        words += [f"--{name}={_listed(x.get('workdir') or x['path'] for x in entries)}"] if entries else []
    tables = [f"{name}={path}" for name, path, _ in content.get("truth", ())]
    words += [f"--truth={_listed(tables)}"] if tables else []
    words += [f"--cell_layer={layer}" for layer in {run.get("cell_layer") for run in content["runs"]} if layer]
    words += [f"--{name}={content['options'][name]}" for name in ("cells", "seeds")] + [f"--output={folder}"]
    first, *others = map(shlex.quote, words)
    return " \\\n    ".join([f"python -m experiments.evaluate {first}", *others])


def _listed(paths: Iterable[str]) -> str:
    """Return paths with commas between, as a flag takes them: one that holds a comma in quotes."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(paths)
    return text.getvalue()


def _shown(value: Any, form: str) -> str:
    return "–" if value is None or value != value else format(value, form)
