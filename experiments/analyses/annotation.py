"""Fill the table of fine-tuned annotation, one training or baseline at a time, from files that all of them share.

OUT/plan.json             which files, labels and numbers of cells and steps: another plan needs another folder
OUT/data/                 the labelled cells (train_0.h5ad, ...) and those to annotate (test.h5ad, or one for each file
                          of --train that has some: test_0.h5ad, ...); their store
OUT/names.json            what each run is called here: its folder's or file's name, numbered where two have the same
OUT/runs/<row>_<seed>/    a training run
OUT/cells/<row>_<seed>.*  its scores (.json) and probabilities (.npz); a result that exists is not computed again
"""

import io
import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from configs import finetune_cell_type
from data_pipeline.files import h5ad, whole
from data_pipeline.genes import vocab
from data_pipeline.store.store import open_store
from experiments import train
from experiments.analyses.annotation_cells import LABEL, Plan, open_classes, prepare, read, tables_of
from experiments.pages import output
from scfm_jax import api, pretrained
from scfm_jax.saving import checkpoint, sealed
from scfm_jax.tasks.cells import annotation_baselines, cell_type, embedding

__all__ = ["LABEL", "METHODS", "Plan", "baseline", "open_classes", "prepare", "read", "tune"]

PARTS = ("train", "test")
METHODS = ("frozen", "lora", "prefix", "full", "twin")


def name_of(out: pathlib.Path, source: str) -> str:
    """Return what the run `source` is called in OUT: its folder's or file's name, numbered where that is taken already.

    Raises ValueError where the run at this place has other weights than when OUT has used it.
    """
    file, place = out / "names.json", pretrained.place(source).resolve()
    names = output.read(file) if file.exists() else {}
    weights = _stamp(place)
    for name, run in names.items():
        if run["path"] == str(place):
            if run["weights"] != weights:
                raise ValueError(
                    f"--runs={source}: {out} has scores of other weights of this run; choose another --output"
                )
            return name
    called = place.name.removesuffix(".safetensors")
    numbered = (f"{called}-{number}" for number in itertools.count(2))
    name = next(name for name in itertools.chain([called], numbered) if name not in names)
    output.write_file(file, {**names, name: {"path": str(place), "weights": weights}})
    return name


def _stamp(place: pathlib.Path) -> str:
    """Return what changes when the weights at a place do: the checksum of the file, or of the newest meta.json."""
    folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
    steps = checkpoint.steps(folder) if folder.is_dir() else []
    file = folder / str(steps[-1]) / "meta.json" if steps else folder / "meta.json" if folder.is_dir() else folder
    return whole.checksum(file) if file.is_file() else ""


def tune(plan: Plan, out: pathlib.Path, source: str, method: str, seed: int) -> dict[str, Any]:
    """Fine-tune the run `source` by a method, annotate the test cells, and return and write the scores.

    Method "twin" is "frozen" on random weights.
    """
    name = name_of(out, source)
    key = f"{name}_{method}_{seed}"
    if done := finished(out, key):
        return done
    began = time.process_time()
    config = finetune_cell_type.get_config("frozen" if method == "twin" else method)
    config.init_from, config.model.cell_layer = source, plan.cell_layer
    options = {"min_mapped": plan.min_mapped, "gene_table": tables_of(plan)}
    config.data.update({"store": str(out / "data/store"), **options})
    config.data.split = {"by": "cell", "val": 0.0, "test": 0.0, "seed": 0}
    config.tune.update({"start": "random" if method == "twin" else "base", "scaler": plan.scaler})
    config.tune.batch_cells = plan.batch_cells
    config.train.update({"steps": plan.steps, "seed": seed, "log_every": max(1, plan.steps // 4), "eval_every": 0})
    config.train.update({"checkpoint_every": max(1, plan.steps // 4), "keep": 1, "tensorboard": False})
    train.pretrain(config, str(out / "runs" / key))
    trained = time.process_time() - began
    run = api.load(out / "runs" / key, scaler=plan.scaler)
    shares = pd.concat([run.annotate(path, **options, say=lambda _: None) for path in files(out, "test")])
    row = {"model": run.name, "run": str(source), "name": name, "method": method, "seed": seed}
    if method == "twin" and embedding.void(run.embed(files(out, "test")[0], **options, say=lambda _: None)):
        row["void"] = True
    return write(out, key, row | {"cpu_s": trained}, shares.to_numpy(), list(shares.columns))


def baseline(plan: Plan, out: pathlib.Path, name: str, seed: int, classes: Sequence[str]) -> dict[str, Any]:
    """Annotate the test cells by a baseline, and return and write the scores."""
    key = f"{name.replace(' ', '_')}_{seed}"
    if done := finished(out, key):
        return done
    began = time.process_time()
    genes = open_store(out / "data/store").genes
    table = vocab.read_table(tables_of(plan))
    labelled, new = (sparse.vstack([matrix(path, genes, table) for path in files(out, part)], "csr") for part in PARTS)
    y = np.array([classes.index(value) for value in types_of(out, "train")])
    probabilities = annotation_baselines.BASELINES[name](labelled, y, new, len(classes), seed)
    row = {"model": name, "run": "", "method": "", "seed": seed, "cpu_s": time.process_time() - began}
    return write(out, key, row, probabilities, classes)


def finished(out: pathlib.Path, key: str) -> dict[str, Any] | None:
    """Return the scores of a cell whose scores and probabilities are there and whole, None where it is to be made."""
    scores = output.finished(out / f"cells/{key}.json")
    try:
        return scores if scores and sealed.read_arrays(out / f"cells/{key}.npz") else None
    except (sealed.Damaged, FileNotFoundError) as damage:
        output.warn(f"{damage}: it is made again")
        return None


def matrix(path: pathlib.Path, genes: Sequence[str], table: vocab.GeneTable | None = None) -> sparse.csr_matrix:
    """Return the counts of all cells of a file in the columns of `genes`."""
    with h5ad.read_counts(path) as counts:
        mapping = vocab.onto(counts, genes, table=table, min_mapped=None)
        return mapping.apply(counts.take(np.arange(counts.n_cells)))


def write(
    out: pathlib.Path, key: str, row: Mapping[str, Any], shares: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Score probabilities of the test cells, write them and the scores, and return these."""
    truth = truth_of(out)
    row = {**row, **cell_type.score(truth, shares, classes)}
    folder = out / "cells"
    folder.mkdir(exist_ok=True)
    file = io.BytesIO()
    np.savez(file, shares=shares.astype(np.float32), classes=np.asarray(classes))
    output.write_file(folder / f"{key}.npz", file.getvalue())
    output.write_file(folder / f"{key}.json", row)  # last: it says that both are there
    return row


def truth_of(out: pathlib.Path) -> list[str]:
    """Return the true types of the test cells."""
    return types_of(out, "test")


def types_of(out: pathlib.Path, part: str) -> list[str]:
    """Return the types of all cells of "train" or "test"."""
    tables = [anndata.read_h5ad(path, backed="r").obs for path in files(out, part)]
    return [str(value) for obs in tables for value in obs[LABEL]]


def files(out: pathlib.Path, part: str) -> list[pathlib.Path]:
    """Return the files of the cells of "train" or "test"."""
    return sorted((out / "data").glob(f"{part}*.h5ad"))
