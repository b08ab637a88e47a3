"""Was a study in the pretraining of a run? By name, by the file's checksum, and cell by cell.

The store that a run was trained on is where its config says, and the same if it has the checksum that the checkpoint
remembers; from a store that was removed or changed since nothing follows: unknown is not no. Where a run began with
the weights of another, that one's studies count too. Each cell has a fingerprint: the sum over its genes of
count times a random number of the gene, modulo 2^64. Cells with the same counts of the genes that store and study share
have the same fingerprint, whatever the study is called and however its cells were chosen.
"""

import pathlib
from typing import Any

import numpy as np
import scipy.sparse as sp

from data_pipeline.files import whole
from data_pipeline.genes import vocab
from data_pipeline.store import manifest
from data_pipeline.store.store import Store, open_store
from experiments.suite.entrants import Entrant, Study
from scfm_jax.saving import checkpoint, weights

LEAST = 0.01
"""Share of a study's cells found in the store from which on it counts as seen."""
FEWEST = 20
"""Expressed genes that a cell must have to be told from others: shallow cells can be alike by chance."""
DEEPEST = 16
"""Runs that are followed back, each of which began with the weights of the one before."""


Flag = dict[str, Any]
"""{"seen": True, False or None (not known), "why": in words}"""
ORDER = (True, None, False)
"""Of several answers the first of these counts."""


def flags(entrant: Entrant, studies: list[Study]) -> dict[str, Flag]:
    """Return the flag of each study by its name."""
    answers: dict[str, list[Flag]] = {study.name: [] for study in studies}
    for meta in ancestors(entrant.run.meta):
        names = set(meta.get("classes", {}).get("study", ()))
        store, problem = _store_of(meta)
        for study in studies:
            answers[study.name].append(_flag(study, names, store, problem))
    return {name: min(of, key=lambda flag: ORDER.index(flag["seen"])) for name, of in answers.items()}


def ancestors(meta: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the metadata of a run and of those whose weights it began with; {} of one that cannot be read any more."""
    line, began = [meta], meta.get("config", {}).get("init_from")
    while began and len(line) < DEEPEST:
        try:
            line.append(_saved(pathlib.Path(began)))
        except (OSError, ValueError):
            return [*line, {}]
        began = line[-1].get("config", {}).get("init_from")
    return line


def _saved(path: pathlib.Path) -> dict[str, Any]:
    """Return the metadata of a workdir, a folder of checkpoints, or a file of weights."""
    if path.is_file():
        meta = weights.read(path)[1]
        return meta.get("run", meta)
    return checkpoint.read_meta(path / "checkpoints" if (path / "checkpoints").is_dir() else path)


def _store_of(meta: dict[str, Any]) -> tuple[Store | None, str]:
    """Return the store that a run was trained on, None with the reason where it is not there as it was."""
    path = meta.get("config", {}).get("data", {}).get("store")
    if not path:
        return None, "what the run was trained on is not known"
    try:
        store = open_store(path)
    except (OSError, ValueError):
        return None, "the store that it was trained on is not there any more"
    if meta.get("store", store.manifest["crc32c"]) != store.manifest["crc32c"]:
        return None, "the store that it was trained on has changed since, or is another one"
    return store, ""


def _flag(study: Study, names: set[str], store: Store | None, problem: str) -> Flag:
    if study.name in names or (store and study.name in store.studies):
        return {"seen": True, "why": "a study of this name was in pretraining"}
    if store is None:
        return {"seen": None, "why": f"{problem}; its cells cannot be compared"}
    checksum = whole.checksum(study.path) if study.path.is_file() else None
    for record in manifest.records(store.manifest):
        if checksum and record.get("source", {}).get("crc32c") == checksum:
            return {"seen": True, "why": f"it is the file that is called {record['name']} in pretraining"}
    share, where = overlap(study, store)
    if share >= LEAST:
        return {"seen": True, "why": f"{share:.0%} of its cells are in the pretraining store, in {where}"}
    return {"seen": False, "why": f"{share:.1%} of its cells are in the pretraining store"}


def overlap(study: Study, store: Store) -> tuple[float, str]:
    """Return the share of a study's cells with counts that a study of the store has, too, the most, and its name."""
    most, where = 0.0, ""
    table = vocab.learn([(store.genes, store.second_names)], study.table)
    mapping = vocab.onto(study.counts, store.genes, table=table, min_mapped=None)
    mine = [mapping.apply(block) for _, block in study.counts.chunks()]
    for name in store.studies:
        other = store.study(name)
        both = np.zeros(len(store.genes), bool)
        both[mapping.index[mapping.index >= 0]] = True
        both &= other.measured
        if both.sum() < FEWEST:
            continue
        store_prints = np.concatenate([fingerprints(block, both) for block in _blocks(other, len(store.genes))])
        prints = np.concatenate([fingerprints(block, both) for block in mine])
        share = float(np.isin(prints[prints != 0], store_prints).mean()) if (prints != 0).any() else 0.0
        if share > most:
            most, where = share, name
    return most, where


def fingerprints(counts: sp.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """Return a number for each cell, from its counts of the `genes`, bool [V]; 0 with FEWEST or fewer. uint64 [n]"""
    weights = np.random.default_rng(0).integers(1, 2**63, counts.shape[1], np.uint64, endpoint=False)
    weights = np.where(genes, weights, np.uint64(0))
    terms = counts.data.astype(np.uint64) * weights[counts.indices]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    number = np.concatenate([[0], np.cumsum(genes[counts.indices])])
    many = np.diff(number[counts.indptr]) > FEWEST
    return np.where(many, sums[counts.indptr[1:]] - sums[counts.indptr[:-1]], np.uint64(0))


def _blocks(other: Any, n_genes: int, size: int = 4096) -> list[sp.csr_matrix]:
    """Return the cells of a study of a store, some at a time. [n, G]"""
    n, blocks = len(other.indptr) - 1, []
    for start in range(0, n, size):
        stop = min(start + size, n)
        genes, counts = other.read(start, stop).result()
        indptr = np.asarray(other.indptr[start : stop + 1])
        blocks.append(sp.csr_matrix((counts, genes, indptr - indptr[0]), (stop - start, n_genes)))
    return blocks
