"""Fill the table of fine-tuned annotation, one training or baseline at a time, from files that all of them share.

OUT/plan.json             which files, labels and numbers of cells and steps: another plan needs another folder
OUT/data/                 the labelled cells (train_0.h5ad, ...) and those to annotate (test.h5ad); their store
OUT/runs/<row>_<seed>/    a training run
OUT/cells/<row>_<seed>.*  its scores (.json) and probabilities (.npz); a result that exists is not computed again
"""

import dataclasses
import io
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from configs import finetune_cell_type
from data_pipeline.files import h5ad
from data_pipeline.files.columns import text
from data_pipeline.genes import vocab
from data_pipeline.store.ingest import file_sources, ingest
from data_pipeline.store.store import open_store
from data_pipeline.store.study import Settings
from experiments import train
from experiments.pages import output
from scfm_jax import api
from scfm_jax.saving import sealed
from scfm_jax.tasks.cells import annotation_baselines, cell_type
from scfm_jax.tasks.cells.embedding import UNLABELLED

METHODS = ("frozen", "lora", "prefix", "full", "twin")
LABEL = "cell_type"
LEFT_OUT = "-"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all cells of a table share.

    Attributes:
      train: files of labelled cells. test: the file to annotate, or None where `split` says which of those are.
      split: obs column and the values of the cells to annotate: (study, donor or batch; names).
      label, test_label: obs columns of the types. names: what types are called here, LEFT_OUT for none.
      test_cells: so many of the cells to annotate, of each type alike; 0 for all. steps: updates of a training.
      min_mapped: least share of genes that the models must know.
    """

    train: tuple[str, ...]
    test: str | None
    split: tuple[str, tuple[str, ...]] | None
    label: str
    test_label: str
    names: dict[str, str]
    test_cells: int
    steps: int
    min_mapped: float


def prepare(plan: Plan, out: pathlib.Path, say: Callable[[str], None] = print) -> list[str]:
    """Write the cells of the plan and their store, unless they are there, and return the types. OUT/plan.json is last.

    Raises ValueError where OUT holds another plan, or labels do not fit.
    """
    described = json.loads(json.dumps(dataclasses.asdict(plan)))
    plan_file = out / "plan.json"
    if plan_file.exists():
        if (old := output.read(plan_file)) != described:
            differ = ", ".join(key for key in described if old.get(key) != described[key])
            raise ValueError(f"--output={out}: holds a table with another {differ}; choose another folder")
        return open_classes(out)
    data = out / "data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    tests = []
    for number, path in enumerate(plan.train):
        cells = read(path, plan.label, plan.names)
        if plan.split:
            column, values = plan.split
            if column not in cells.obs:
                raise ValueError(f"--split={column}: no such obs column in {path}")
            chosen = np.isin(text(cells.obs[column]), list(values))
            tests.append(cells[chosen].copy())
            cells = cells[~chosen].copy()
        if cells.n_obs:
            cells.write_h5ad(data / f"train_{number}.h5ad")
    test = read(plan.test, plan.test_label, plan.names) if plan.test else anndata.concat(tests, join="outer")
    if not test.n_obs:
        raise ValueError("there is no cell to annotate: no value of --split is in the files")
    some(test, plan.test_cells).write_h5ad(data / "test.h5ad")
    files = sorted(str(path) for path in data.glob("train_*.h5ad"))
    failed = ingest(file_sources(files, []), data / "store", workers=0, say=say, settings=Settings())
    if failed:
        raise ValueError("; ".join(failed.values()))
    classes = open_classes(out)
    if unknown := sorted(set(test.obs[LABEL]) - set(classes)):
        raise ValueError(f"types to annotate that no labelled cell has: {', '.join(unknown)}; name them with --names")
    output.write_file(plan_file, described)
    return classes


def open_classes(out: pathlib.Path) -> list[str]:
    """Return the types of the labelled cells, sorted."""
    store = open_store(out / "data/store")
    return sorted({str(value) for name in store.studies for value in store.study(name).obs[LABEL].unique()})


def read(path: str, label: str, names: Mapping[str, str]) -> anndata.AnnData:
    """Return the cells of a file that have a type, with raw counts and the type as obs["cell_type"]."""
    with h5ad.read_counts(path) as counts:
        if label not in counts.obs:
            raise ValueError(f"{path}: no obs column {label!r}; there are {', '.join(map(str, counts.obs.columns))}")
        types = np.array([names.get(name, name) for name in text(counts.obs[label])], object)
        kept = np.flatnonzero([name not in (None, LEFT_OUT) and name.lower() not in UNLABELLED for name in types])
        obs = counts.obs.iloc[kept]
        keep = {name: pd.Categorical(text(obs[name])) for name in ("batch", "donor", "study") if name in obs}
        obs = pd.DataFrame({**keep, LABEL: types[kept]}, index=obs.index)
        var = pd.DataFrame(index=pd.Index(counts.genes, dtype=str))
        second = vocab.second_names(counts.var)
        if second is not None:
            var["ensembl_id"] = second
        return anndata.AnnData(sparse.csr_matrix(counts.take(kept), dtype=np.float32), obs, var)


def some(cells: anndata.AnnData, n: int) -> anndata.AnnData:
    """Return about n cells, of each type as many or all that there are, the same ones every time; 0 for all."""
    types = cells.obs[LABEL].to_numpy()
    if not n or n >= len(types):
        return cells
    rng, share = np.random.default_rng(0), -(-n // len(np.unique(types)))
    rows = [rng.permutation(np.flatnonzero(types == name))[:share] for name in np.unique(types)]
    return cells[np.sort(np.concatenate(rows))].copy()


def tune(plan: Plan, out: pathlib.Path, source: str, method: str, seed: int) -> dict[str, Any]:
    """Fine-tune the run `source` by a method, annotate the test cells, and return and write the scores.

    Method "twin" is "frozen" on random weights.
    """
    key = f"{pathlib.Path(source).name}_{method}_{seed}"
    if done := finished(out, key):
        return done
    began = time.process_time()
    config = finetune_cell_type.get_config("frozen" if method == "twin" else method)
    config.init_from = source
    config.data.update({"store": str(out / "data/store"), "min_mapped": plan.min_mapped})
    config.data.split = {"by": "cell", "val": 0.0, "test": 0.0, "seed": 0}
    config.tune.start = "random" if method == "twin" else "base"
    config.train.update({"steps": plan.steps, "seed": seed, "log_every": max(1, plan.steps // 4), "eval_every": 0})
    config.train.update({"checkpoint_every": max(1, plan.steps // 4), "keep": 1, "tensorboard": False})
    train.pretrain(config, str(out / "runs" / key))
    trained = time.process_time() - began
    run = api.load(out / "runs" / key)
    shares = run.annotate(out / "data/test.h5ad", min_mapped=plan.min_mapped, say=lambda _: None)
    row = {"model": run.name, "run": str(source), "method": method, "seed": seed}
    return write(out, key, row | {"cpu_s": trained}, shares.to_numpy(), list(shares.columns))


def baseline(plan: Plan, out: pathlib.Path, name: str, seed: int, classes: Sequence[str]) -> dict[str, Any]:
    """Annotate the test cells by a baseline, and return and write the scores."""
    key = f"{name.replace(' ', '_')}_{seed}"
    if done := finished(out, key):
        return done
    began = time.process_time()
    files = sorted((out / "data").glob("train_*.h5ad"))
    *labelled, new = (matrix(path, open_store(out / "data/store").genes) for path in [*files, out / "data/test.h5ad"])
    types = np.concatenate([anndata.read_h5ad(path, backed="r").obs[LABEL].to_numpy() for path in files])
    y = np.array([classes.index(value) for value in types])
    probabilities = annotation_baselines.BASELINES[name](sparse.vstack(labelled).tocsr(), y, new, len(classes), seed)
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


def matrix(path: pathlib.Path, genes: Sequence[str]) -> sparse.csr_matrix:
    """Return the counts of all cells of a file in the columns of `genes`."""
    with h5ad.read_counts(path) as counts:
        mapping = vocab.map_genes(counts.genes, genes, ensembl=vocab.second_names(counts.var), min_mapped=None)
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
    return anndata.read_h5ad(out / "data/test.h5ad", backed="r").obs[LABEL].astype(str).tolist()
