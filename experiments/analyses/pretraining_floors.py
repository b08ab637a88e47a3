"""Floors of pre-training losses and of explained variance, over the cells of files: tables of `scfm_jax.tasks.floors`.

What is hidden and scored is what `prepare` of Exceiver, sCT and scEMB makes of the same cells, one cell a bag.
"""

import dataclasses
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from experiments.analyses.cells import Cells
from scfm_jax import models
from scfm_jax.tasks import floors
from scfm_jax.tasks.cells import transfer
from scfm_jax.types import Batch, Outputs

VALIDATION = 0.1
TRAIN_BATCH, SCORED_BATCH = 128, 8
"""Cells prepared at a time to learn from, and in a batch over which explained variance is counted."""


@dataclasses.dataclass
class Pool:
    """Cells of one or more files in one vocabulary.

    Attributes:
      names: of the files, their studies. counts: raw counts [n, V]. study: number of each cell's file [n].
      measured: genes that each file measured. [S, V]
    """

    names: list[str]
    counts: sparse.csr_matrix
    study: np.ndarray
    measured: np.ndarray

    @classmethod
    def read(
        cls, paths: Sequence[str], genes: Sequence[str], table: vocab.GeneTable | None, min_mapped: float, **place: Any
    ) -> "Pool":
        """Read whole files, `place` as of `h5ad.read_counts`; ValueError, OSError in one line."""
        matrices, measured, names = [], [], []
        for path in paths:
            with h5ad.read_counts(path, **place) as counts:
                file = Cells(counts, genes, table, min_mapped)
                matrices.append(sparse.csr_matrix(file.mapping.apply(counts.take(np.arange(file.n)))))
                measured.append(file.measured)
                names.append(str(path).rpartition("/")[2].removesuffix(".h5ad"))
        study = np.repeat(np.arange(len(paths)), [matrix.shape[0] for matrix in matrices])
        return cls(names, sparse.vstack(matrices, "csr"), study, np.stack(measured))

    @property
    def constants(self) -> dict[str, np.ndarray]:
        """What `prepare` of a model must know of the genes: the vocabulary is the cells' own, in its order."""
        return {"slots": np.arange(self.counts.shape[1] + 1, dtype=np.int32), "measured": self.measured}

    def batches(self, rows: np.ndarray, size: int) -> Iterator[Batch]:
        """Yield the cells `rows`, one a bag, in batches of `size`; the last is padded."""
        loader = transfer.CellsInMemory(self.counts, rows, bag=1, batch=min(size, len(rows)))
        for arrays in loader.epoch_batches():
            arrays["study"] = self.study[np.maximum(arrays["index"], 0)].astype(np.int32)
            yield Batch(**{field: arrays[field] for field in Batch.__dataclass_fields__})


def pretraining(pool: Pool, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield what tables learnt from nine tenths of the cells score on the rest, by the losses of three models."""
    train, held = transfer.split(len(pool.study), seed, VALIDATION)
    held = np.random.default_rng(seed).permutation(held)  # studies side by side in a batch, as in validation
    yield from explained_variance(pool, train, held, seed)
    yield from bin_loss(pool, train, held, seed)
    yield from name_loss(pool, train, held, seed)


def explained_variance(pool: Pool, train: np.ndarray, held: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Yield Exceiver's explained variance and squared error of hidden genes, by the gene's mean, and with depth.

    Depth is the logarithm of a cell's counts; of a held-out cell, of those that are not hidden, for the share of its
    expressed genes that they are. The slope is one of log-normalised counts: z-scores of a gene have it over the gene's
    deviation.
    """
    module = models.get("exceiver")
    batches = (dataclasses.asdict(batch) for batch in pool.batches(train, TRAIN_BATCH))
    constants, inputs = module.fit({"train": batches}, pool.constants, models.options("exceiver", "small")["inputs"])
    prepared = _prepared(module, constants, inputs, seed)
    n_genes, scale, entries = pool.counts.shape[1], constants["scale"], []
    for batch, made in prepared(pool.batches(train, TRAIN_BATCH), False):
        cells, places = ((made["genes"] < n_genes) & batch.cell_mask[..., None])[:, 0].nonzero()
        depth = np.log(np.maximum(np.asarray(batch.counts, np.float64).sum(-1)[:, 0], 1))
        at = made["genes"][cells, 0, places]
        entries.append((at, made["values"][cells, 0, places], depth[cells] / scale[at]))
    genes, values, depths = (np.concatenate(part) for part in zip(*entries, strict=True))
    table = floors.ValueTable.fit(genes, values.astype(np.float64), depths, n_genes)
    sums = {"gene mean": np.zeros((2, 2)), "gene mean + depth": np.zeros((2, 2))}
    for batch, made in prepared(pool.batches(held, SCORED_BATCH), False):
        shown = (made["genes"] < n_genes) & ~made["hidden"]
        share = shown.sum(-1) / np.maximum((made["genes"] < n_genes).sum(-1), 1)
        counts = (np.asarray(batch.counts, np.float64) * shown).sum(-1)
        depth = np.log(np.maximum(counts, 1) / np.maximum(share, 1e-9))
        depth = depth[..., None] / scale[made["targets"]]
        for name, depths in zip(sums, (None, depth), strict=True):
            logits = {"genes": table.predict(made["targets"], depths).astype(np.float32)}
            _, metrics = module.loss(Outputs(cells=None, genes=None, logits=logits), made)
            sums[name] += np.asarray([metrics[metric] for metric in ("explained_variance", "mse")], float)
    for name, both in sums.items():
        (explained, error) = both[:, 0] / both[:, 1]
        yield {"table": f"exceiver: {name}", "explained variance": explained, "squared error": error}


def bin_loss(pool: Pool, train: np.ndarray, held: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Yield sCT's loss under its stratified mask by shares of bins: of all, of the gene, of gene x study."""
    module, inputs = models.get("sct"), models.options("sct", "small")["inputs"]
    n_bins = inputs["n_bins"]
    counts = np.zeros((*pool.measured.shape, n_bins))
    for batch, made in _prepared(module, pool.constants, {**inputs, "mask": "none"}, seed)(
        pool.batches(train, TRAIN_BATCH), True
    ):
        study = batch.study[:, 0]
        for each in np.unique(study[batch.cell_mask[:, 0]]):
            tokens = made["tokens"][:, 0][(study == each) & batch.cell_mask[:, 0]]
            counts[each] += np.stack([(tokens == b).sum(0) for b in range(n_bins)], -1)
    rates = np.where(np.arange(n_bins) == 0, inputs["zero_rate"], inputs["nonzero_rate"])
    priors = floors.BinTable(counts * pool.measured[..., None]).priors(rates)
    losses, number = dict.fromkeys(priors, 0.0), 0
    for batch, made in _prepared(module, pool.constants, inputs, seed)(pool.batches(held, TRAIN_BATCH), False):
        cells, genes = made["mask"][:, 0].nonzero()
        tokens, study = made["tokens"][:, 0][cells, genes], batch.study[:, 0][cells]
        number += len(cells)
        for name, table in priors.items():
            losses[name] -= float(table[study, genes, tokens].sum())
    for name, loss in losses.items():
        yield {"table": f"sct: {name}", "loss": loss / max(number, 1)}


def name_loss(pool: Pool, train: np.ndarray, held: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Yield scEMB's loss by how often genes are in sentences: in all, in a study, there among genes not yet shown."""
    module, inputs = models.get("scemb"), models.options("scemb", "small")["inputs"]
    n_studies, n_genes = pool.measured.shape
    counts, cells = np.zeros((n_studies, n_genes)), np.bincount(pool.study[train], minlength=n_studies)
    whole = _prepared(module, pool.constants, {**inputs, "mask_rate": 0.0}, seed)
    for batch, made in whole(pool.batches(train, TRAIN_BATCH), False):
        rows, places = (made["ids"][:, 0] >= 0).nonzero()
        np.add.at(counts, (batch.study[rows, 0], made["ids"][rows, 0, places]), 1)
    tables = floors.GeneTable(counts, cells).frequencies()
    sums, number = np.zeros(3), 0
    for batch, made in _prepared(module, pool.constants, inputs, seed)(pool.batches(held, TRAIN_BATCH), False):
        for cell in np.flatnonzero(batch.cell_mask[:, 0]):
            genes, study = made["ids"][cell, 0], batch.study[cell, 0]
            asked = made["places"][cell, 0][made["weights"][cell, 0] > 0]
            shown = np.setdiff1d(np.flatnonzero(genes >= 0), asked)
            gene, _ = floors.name_loss(tables["gene"][study], genes[shown], genes[asked])
            sums += (gene, *floors.name_loss(tables["gene x study"][study], genes[shown], genes[asked]))
            number += len(asked)
    names = ("gene", "gene x study", "gene x study, of genes not yet in the sentence")
    for name, loss in zip(names, sums, strict=True):
        yield {"table": f"scemb: {name}", "loss": loss / max(number, 1)}


def _prepared(module: types.ModuleType, constants: dict[str, Any], inputs: dict[str, Any], seed: int) -> Any:
    """Return a function that yields batches and what the model's `prepare` makes of them, as numpy."""
    constants = jax.tree.map(jax.numpy.asarray, constants)

    @functools.partial(jax.jit, static_argnames=("train",))
    def prepare(batch: Batch, step: np.ndarray, train: bool) -> dict[str, Any]:
        key = jax.random.fold_in(jax.random.key(seed), step)
        made = module.prepare(batch, constants, key, step=step, train=train, **inputs)
        return made | ({"ids": module.gene_ids(made)} if hasattr(module, "gene_ids") else {})

    def each(batches: Iterator[Batch], train: bool) -> Iterator[tuple[Batch, dict[str, Any]]]:
        for step, batch in enumerate(batches):
            yield batch, jax.tree.map(np.asarray, prepare(batch, np.uint32(step), train))

    return each
