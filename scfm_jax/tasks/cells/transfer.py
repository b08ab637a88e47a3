"""What pre-training brings to a new study: the same model trained on from its weights and from random ones.

Exceiver (Connell et al., LMRL 2022): five models each, 70 % of the cells to train and 30 % to validate, masked genes
alone, explained variance by epoch; renal carcinoma went from 0.52 before the first update to 0.94 in ten epochs, and
from random weights to 0.73 in 350. Both see the same batches and hide the same genes: a seed decides the split, the
order, the masks and the random weights. The new study's scaler is that of its own training cells.

What of it is the gene table's and what the network's is told by two more arms (`STARTS`), and what is more than the
genes' means by the model's floors (`tasks.floors`), learnt from the same cells and scored on the same hidden genes.

Here is what such a run needs beside `scfm_jax.training.loop`: the study in memory as a loader, where an arm starts, and
the objectives.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse as sp
from flax import linen as nn

from scfm_jax import models
from scfm_jax.inference import bags
from scfm_jax.saving.leaves import flatten, nest
from scfm_jax.training import step

VALIDATION = 0.3
STARTS = {
    "pretrained": "pretrained weights",
    "random": "random weights",
    "genes": "random weights, pretrained gene table",
    "permuted": "pretrained weights, gene table permuted",
}
FROM_RANDOM = ("random", "genes")


def split(n: int, seed: int, share: float = VALIDATION) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of n cells to train on and to validate on, a random `share` of them."""
    order = np.random.default_rng(seed).permutation(n)
    held = round(n * share)
    if not 0 < held < n:
        raise ValueError(f"{n} cells, {share:.0%} of them to validate on: both parts need at least one")
    return np.sort(order[held:]), np.sort(order[:held])


class CellsInMemory:
    """A `train.Loader` of some cells of a matrix: whole batches of bags, in another order in every epoch.

    Args:
      counts: raw counts in the model's own vocabulary. [n, V]
      rows: the cells. bag, batch: cells of a bag, bags of a batch; the last cells of an epoch that fill none are left
        out of it. labels: names that the model expects, all unknown here. seed: of the order.
    """

    def __init__(
        self,
        counts: sp.csr_matrix,
        rows: np.ndarray,
        *,
        bag: int,
        batch: int,
        labels: Sequence[str] = (),
        seed: int = 0,
    ):
        self._counts, self._rows, self._shape, self._labels, self._seed = counts, rows, (batch, bag), labels, seed
        self.epoch_steps = len(rows) // (bag * batch)
        if not self.epoch_steps:
            raise ValueError(f"{len(rows)} cells do not fill a batch of {batch} x {bag}: lower the batch")

    def batch(self, step: int) -> dict[str, Any]:
        """Return the batch of a step."""
        epoch, place = divmod(step, self.epoch_steps)
        size = self._shape[0] * self._shape[1]
        order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        return self._pack(order[place * size : (place + 1) * size])

    def iter(self, start_state: Mapping[str, int] | None = None) -> "Steps":
        """Return the endless batches from a position on."""
        return Steps(self, start_state["step"] if start_state else 0)

    def epoch_batches(self) -> Iterator[dict[str, Any]]:
        """Yield all cells once, in their order; the last batch is padded."""
        size = self._shape[0] * self._shape[1]
        for start in range(0, len(self._rows), size):
            yield self._pack(self._rows[start : start + size])

    def _pack(self, rows: np.ndarray) -> dict[str, Any]:
        index = np.full(self._shape, -1, np.int64)
        index.flat[: len(rows)] = rows
        return bags.pack(self._counts[rows], index, labels=self._labels)


class Steps:
    """The endless iterator of `CellsInMemory`; its state is the next step."""

    def __init__(self, loader: CellsInMemory, start: int):
        self._loader, self._step = loader, start

    def __next__(self) -> dict[str, Any]:
        self._step += 1
        return self._loader.batch(self._step - 1)

    def get_state(self) -> dict[str, int]:
        """Return the step that comes next."""
        return {"step": self._step}

    def close(self) -> None:
        """Nothing is open."""


def objective(
    module: ModuleType, model: nn.Module, inputs: Mapping[str, Any], loss: Mapping[str, Any]
) -> step.Objective:
    """Return the pre-training objective of `loss_options`."""
    return step.pretraining(module, model, dict(inputs), loss_options(module, loss))


def loss_options(module: ModuleType, loss: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the loss, with explained variance by slot where the model reports it if asked."""
    return {**loss, **({"slotwise": True} if "slotwise" in models.defaults(module, "loss") else {})}


# --------------------------------------------------------------------------------------------------------------- starts


def gene_table(module: ModuleType, variables: Mapping[str, Any], n_genes: int) -> tuple[str, np.ndarray] | None:
    """Return the name of the parameter that holds the genes' vectors, and where in it they are, flat [V, D].

    None where the model has no such table.
    """
    numbered, n = {}, 0  # every parameter's numbers are all different, so those of the table tell where they are
    for name, x in flatten(variables["params"]).items():
        numbered[name] = n + np.arange(x.size).reshape(x.shape)
        n += x.size
    numbers = module.gene_vectors({"params": nest(numbered)}, n_genes) if hasattr(module, "gene_vectors") else None
    if numbers is None:
        return None
    name = next(name for name, x in numbered.items() if x.flat[0] <= numbers.flat[0] <= x.flat[-1])
    return name, numbers - numbered[name].flat[0]


def starts(module: ModuleType, variables: Mapping[str, Any], n_genes: int) -> list[str]:
    """Return the arms that a model can have: two of them need a table of gene vectors."""
    table = gene_table(module, variables, n_genes)
    return [start for start in STARTS if table or start in ("pretrained", "random")]


def beginning(
    start: str, module: ModuleType, variables: Mapping[str, Any], measured: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return the weights that an arm takes over from the pretrained ones, {} for none.

    Args:
      start: of STARTS. measured: genes that the study has, among which "permuted" exchanges vectors. bool [V]
      seed: of that permutation.

    Raises ValueError where the model has no table of gene vectors that an arm asks for.
    """
    if start == "random":
        return {}
    if start == "pretrained":
        return dict(variables)
    table = gene_table(module, variables, len(measured))
    if table is None:
        raise ValueError(f"starts={start}: this model has no table of gene vectors; leave it out")
    name, places = table
    flat = flatten(variables["params"])
    if start == "genes":
        return {"params": nest({name: flat[name]})}
    genes, other = np.flatnonzero(measured), np.array(flat[name])
    other.flat[places[genes]] = other.flat[places[np.random.default_rng(seed).permutation(genes)]]
    return {**variables, "params": nest({**flat, name: other})}
