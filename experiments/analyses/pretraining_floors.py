"""Floors of pre-training losses and of explained variance, over the cells of files: tables of `scfm_jax.tasks.floors`.

They are learnt and scored as before a training: what is hidden and scored is what each model's `prepare` makes of the
cells, here one cell a bag.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from scipy import sparse

from data_pipeline.files import h5ad
from data_pipeline.genes import vocab
from experiments.analyses.cells import Cells
from scfm_jax import models, sharding
from scfm_jax.inference import bags
from scfm_jax.tasks import floors
from scfm_jax.tasks.cells import transfer
from scfm_jax.training import validation
from scfm_jax.types import TrainState

VALIDATION = 0.1
TRAIN_BATCH, SCORED_BATCH = 128, 8
"""Cells prepared at a time to learn from, and in a batch over which explained variance is counted."""
WORDS = {"explained_variance": "explained variance", "mse": "squared error"}
"""Metrics in words, where their names are not."""


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


@dataclasses.dataclass(frozen=True)
class PoolLoader:
    """Some cells of a pool as a loader of training: one cell a bag, `size` bags a batch, all batches of one width."""

    pool: Pool
    rows: np.ndarray
    size: int

    def epoch_batches(self) -> Iterator[dict[str, Any]]:
        """Yield all cells once, in their order; the last batch is padded."""
        counts, size = self.pool.counts, min(self.size, len(self.rows))
        width = bags.size_up(int(np.diff(counts.indptr).max(initial=0)), bags.GENES_SIZE)
        for arrays in transfer.CellsInMemory(counts, self.rows, bag=1, batch=size).epoch_batches():
            room = ((0, 0), (0, 0), (0, width - arrays["genes"].shape[2]))
            arrays["genes"] = np.pad(arrays["genes"], room, constant_values=counts.shape[1])
            arrays["counts"] = np.pad(arrays["counts"], room)
            arrays["study"] = self.pool.study[np.maximum(arrays["index"], 0)].astype(np.int32)
            yield arrays


def pretraining(pool: Pool, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield what tables learnt from nine tenths of the cells score on the rest, by the losses of all models."""
    train, held = transfer.split(len(pool.study), seed, VALIDATION)
    held = np.random.default_rng(seed).permutation(held)  # studies side by side in a batch, as in validation
    for name in filter(models.floors, models.names()):
        yield from scores(name, pool, train, held, seed)


def scores(name: str, pool: Pool, train: np.ndarray, held: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Yield what the tables of a model, learnt from the cells `train`, score on the cells `held`, by its metrics.

    Inputs and loss are those of the model's own small variant.
    """
    module = models.get(name)
    parts = models.options(name, next(v for v in ("small", "tiny") if v in module.VARIANTS))
    loaders = PoolLoader(pool, train, TRAIN_BATCH), PoolLoader(pool, held, SCORED_BATCH)
    constants, inputs = pool.constants, parts["inputs"]
    if hasattr(module, "fit"):
        constants, inputs = module.fit({"train": loaders[0].epoch_batches()}, constants, inputs)
    state = TrainState(np.int32(0), jax.random.key_data(jax.random.key(seed)), {}, (), {}, constants)
    device = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    measured = validation.measured(
        floors.of(name, inputs, parts["loss"]), state, constants, *loaders, device, len(train)
    )
    rows: dict[str, dict[str, Any]] = {}
    for key, value in measured.items():
        metric, _, table = key.partition("/")
        rows.setdefault(table, {"table": f"{name}: {table}"})[WORDS.get(metric, metric)] = value
    yield from rows.values()
