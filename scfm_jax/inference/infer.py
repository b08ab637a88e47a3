"""Embed cells: takes batches, returns one row per cell; jitted, on any mesh.

Which cells a batch holds is decided in `bags`; padding never reaches a result.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scfm_jax import sharding
from scfm_jax.inference import bags
from scfm_jax.training import hardware
from scfm_jax.types import Array, Batch

FIELDS = tuple(Batch.__dataclass_fields__)


class NoGenes(ValueError):
    """The model does not represent the genes of a cell."""


def embed(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    constants: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    n: int,
    *,
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Return the embeddings of n cells, float32. [n, D]

    Args:
      module, model: the model's file and an instance of its `Model`.
      variables: Flax collections, "params" among them.
      constants: `slots` [G + 1] and `measured` [S, V] of the batches, and what else the model needs (see `bags`).
      batches: dicts with the fields of `Batch` and "index" [B, C]: the cell's row in the result, -1 in the padding.
      inputs: keywords of the module's `prepare`.
      seed: of what a model draws at random even in evaluation (by default none does).
      mesh: devices to spread over, see `sharding.make_mesh`; a batch that does not divide is computed on all of them.

    Raises:
      ValueError: a row of the result is in no batch, or an embedding is not finite.
    """
    options = _hashable(inputs or {})
    place = functools.partial(_place, mesh=mesh)
    state = {"variables": dict(variables), "constants": dict(constants)}
    state = jax.device_put(state, sharding.state_shardings(state, mesh) if mesh else None)
    key = jax.random.key(seed)
    result, seen, pending, made = np.zeros((n, 0), np.float32), np.zeros(n, bool), None, set()
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        for batch in batches:
            arrays = jax.tree.map(place, Batch(**{field: batch[field] for field in FIELDS}))
            arguments = (module, model, options, state["variables"], state["constants"], arrays, key)
            if arrays.genes.shape not in made:
                _forward.lower(*arguments).compile()  # the call below finds it
                hardware.give_back()
                made.add(arrays.genes.shape)
            cells = _forward(*arguments)
            if result.shape[1] == 0:
                result = np.zeros((n, cells.shape[-1]), np.float32)
            if pending:
                _collect(result, seen, *pending)  # while the devices work on the batch just sent
            pending = np.asarray(batch["index"]), cells
        if pending:
            _collect(result, seen, *pending)
    if not seen.all():
        raise ValueError(f"{int((~seen).sum())} of {n} cells are in no batch, so they have no embedding")
    return result


def genes(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    constants: Mapping[str, Any],
    batches: Iterable[Mapping[str, Any]],
    kept: np.ndarray,
    *,
    inputs: Mapping[str, Any] | None = None,
    seed: int = 0,
    mesh: Mesh | None = None,
) -> Iterator[tuple[np.ndarray, Array]]:
    """Yield ("index" [B, C], representations of the genes `kept` in each cell, float32, on the devices [B, C, K, D]).

    One batch at a time: at 200 numbers for each of 27,875 genes, a cell takes 22 MB. NaN for genes the model did not
    read, e.g. outside the top-ranked genes. Arguments are as for `embed`.

    Args:
      kept: vocabulary ids of the genes that are wanted. [K]

    Raises:
      NoGenes: the model does not represent the genes of its vocabulary in a cell.
    """
    options = _hashable(inputs or {})
    state = {"variables": dict(variables), "constants": dict(constants)}
    state = jax.device_put(state, sharding.state_shardings(state, mesh) if mesh else None)
    kept, key = np.asarray(kept, np.int32), jax.random.key(seed)
    for batch in batches:
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            arrays = jax.tree.map(functools.partial(_place, mesh=mesh), Batch(**{name: batch[name] for name in FIELDS}))
            values = _genes(module, model, options, state["variables"], state["constants"], arrays, kept, key)
        yield np.asarray(batch["index"]), values


def gene_width(
    module: ModuleType,
    model: nn.Module,
    variables: Mapping[str, Any],
    constants: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    inputs: Mapping[str, Any] | None = None,
) -> int:
    """Return D of what `genes` yields for a batch, from shapes alone; ValueError as there."""
    arrays = Batch(**{name: batch[name] for name in FIELDS})
    kept, key, options = np.zeros(1, np.int32), jax.random.key(0), _hashable(inputs or {})
    return _genes.eval_shape(module, model, options, variables, constants, arrays, kept, key).shape[-1]


def initial(
    module: ModuleType,
    model: nn.Module,
    constants: Mapping[str, Any],
    seed: int,
    labels: Sequence[str] = (),
    bag: int = 8,
    **inputs: Any,
) -> dict[str, Any]:
    """Return fresh random variables of a model; the other arguments are as for `embed` and `bags.pack`.

    Args:
      constants: fitted ones (see `bags`) may be missing: no parameter depends on their values.
      bag: cells of a bag in training, which some parameters depend on (sCT's with norm "standard").
    """
    width = np.shape(constants["measured"])[1]
    counts = sp.csr_matrix((np.ones(bag), np.zeros(bag, int), np.arange(bag + 1)), (bag, width))
    batch = bags.pack(counts, np.arange(bag)[None], labels=labels)
    constants = bags.complete_constants(module, constants, [batch], inputs, say=lambda _: None)
    arrays = Batch(**{field: batch[field] for field in FIELDS})
    return dict(_init(module, model, _hashable(inputs), constants, arrays, jax.random.key(seed)))


@functools.partial(jax.jit, static_argnames=("module", "model", "options"))
def _forward(
    module: ModuleType,
    model: nn.Module,
    options: tuple[tuple[str, Any], ...],
    variables: Mapping[str, Any],
    constants: Mapping[str, Array],
    batch: Batch,
    key: Array,
) -> Array:
    """Return the cell embeddings of a batch. [B, C, D]"""
    keys = jax.random.split(key, 2)
    inputs = module.prepare(batch, constants, keys[0], step=0, train=False, **dict(options))
    return model.apply(variables, inputs, train=False, rngs={"latent": keys[1]}).cells


@functools.partial(jax.jit, static_argnames=("module", "model", "options"))
def _genes(
    module: ModuleType,
    model: nn.Module,
    options: tuple[tuple[str, Any], ...],
    variables: Mapping[str, Any],
    constants: Mapping[str, Array],
    batch: Batch,
    kept: Array,
    key: Array,
) -> Array:
    """Return the representations of the genes `kept` in each cell of a batch. [B, C, K, D]"""
    keys = jax.random.split(key, 2)
    inputs = module.prepare(batch, constants, keys[0], step=0, train=False, **dict(options))
    values = model.apply(variables, inputs, train=False, rngs={"latent": keys[1]}).genes
    name, n = module.__name__.rpartition(".")[2], constants["measured"].shape[1]
    if values is None:
        raise NoGenes(f"model {name} has no representations of the genes in a cell: choose a run of another model")
    values = values.astype(jnp.float32)
    if not hasattr(module, "gene_ids"):
        if not n <= values.shape[2] <= n + 1:
            raise ValueError(
                f"model {name} represents {values.shape[2]} of {n} genes and has no gene_ids to tell which"
            )
        return values[:, :, kept]
    ids = module.gene_ids(inputs)  # [B, C, L]
    place = jnp.full(n + 1, len(kept)).at[kept].set(jnp.arange(len(kept)))
    to = place[jnp.where((ids < 0) | (ids > n), n, ids)]
    rows, cells = jnp.ogrid[: to.shape[0], : to.shape[1]]
    empty = jnp.full((*to.shape[:2], len(kept) + 1, values.shape[3]), jnp.nan)
    return empty.at[rows[..., None], cells[..., None], to].set(values)[:, :, :-1]


@functools.partial(jax.jit, static_argnames=("module", "model", "options"))
def _init(
    module: ModuleType,
    model: nn.Module,
    options: tuple[tuple[str, Any], ...],
    constants: Mapping[str, Array],
    batch: Batch,
    key: Array,
) -> Mapping[str, Any]:
    """Return the variables of a model that has seen a batch."""
    keys = jax.random.split(key, 4)
    inputs = module.prepare(batch, constants, keys[0], step=0, train=False, **dict(options))
    return model.init(dict(zip(("params", "dropout", "latent"), keys[1:], strict=True)), inputs)


def _hashable(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(options.items()))


def _place(array: np.ndarray, mesh: Mesh | None) -> Array:
    """Put an array [B, C, ...] of a batch on the devices, split over them where it divides."""
    if mesh is None:
        return jax.device_put(array)
    split = sharding.batch_sharding(mesh, array.ndim)
    rows, cells = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["seq"]
    divides = array.shape[0] % rows == 0 and array.shape[1] % cells == 0
    return jax.device_put(array, split if divides else NamedSharding(mesh, PartitionSpec()))


def _collect(result: np.ndarray, seen: np.ndarray, index: np.ndarray, cells: Array) -> None:
    """Write a batch's embeddings into the rows of the result."""
    rows = index[index >= 0]
    values = np.asarray(cells, np.float32)[index >= 0]
    bad = rows[~np.isfinite(values).all(axis=1)]
    if len(bad):
        raise ValueError(
            f"the embeddings of {len(bad)} cells are not finite (first: cell {bad[0]}): are the weights whole?"
        )
    result[rows], seen[rows] = values, True
