"""What a head for cell types sees of a cell: its embedding, or its genes through a transformer block of the head's own.

`HEADS`: "embedding", and "transformer", the "final task-specific transformer layer" of scEMB (Hsieh et al., bioRxiv
2024): one block of BERT over what the model makes of the cell's genes, and the mean over these. Its parameters are
"block" among the task's, and where they are there it is used: nothing else says so.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from scfm_jax.layers.transformer import Block
from scfm_jax.types import Array, Outputs

HEADS = ("embedding", "transformer")
BLOCK = "block"
SIZE = 64
"""Numbers of an attention head, as in BERT; more where the width is no multiple of it."""
RATE = 5e-4
"""Learning rate of the block, whatever that of the linear layers after it."""


def init(key: Array, head: str, module: ModuleType, outputs: Outputs, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that `read` needs, by their name among the task's: none, or those of the block.

    Args:
      head: one of HEADS. outputs, inputs: of the model in evaluation; shapes alone are looked at.

    ValueError where there is no such head, or the model has no representations of genes.
    """
    if head not in HEADS:
        raise ValueError(f"task.head={head!r}: there are {', '.join(HEADS)}")
    if head == "embedding":
        return {}
    x, real = _genes(module, outputs, inputs)
    return {BLOCK: _block(x).init(key, x, real)["params"]}


def read(
    task: Mapping[str, Any],
    module: ModuleType,
    outputs: Outputs,
    inputs: Mapping[str, Any],
    rate: float = 0.0,
    key: Array | None = None,
) -> Array:
    """Return what the head sees of each cell: its embedding, or the mean of its genes after the block. [B, C, D]

    Args:
      task: the task's parameters. outputs, inputs: of the model.
      rate, key: of the block's dropout; no key, no dropout.
    """
    if BLOCK not in task:
        return outputs.cells
    x, real = _genes(module, outputs, inputs)
    drawn = {"train": key is not None, "rngs": {} if key is None else {"dropout": key}}
    _, cells = _block(x, rate).apply({"params": task[BLOCK]}, x, real, **drawn)
    return cells.reshape(*outputs.cells.shape[:2], -1)


def reader(
    module: ModuleType, model: nn.Module, variables: Mapping[str, Any], task: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return (model, variables) that `infer.embed` takes to yield what the head sees in the place of embeddings."""
    if BLOCK not in task:
        return model, dict(variables)
    return Reader(module, model), {**variables, BLOCK: {BLOCK: task[BLOCK]}}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A model whose embedding of a cell is what the block, the collection BLOCK, makes of it."""

    module: ModuleType
    model: nn.Module

    def apply(self, variables: Mapping[str, Any], inputs: Mapping[str, Any], **options: Any) -> Outputs:
        """Return the outputs of the model in evaluation, `cells` being those of `read`."""
        rest = {name: x for name, x in variables.items() if name != BLOCK}
        outputs = self.model.apply(rest, inputs, **options)
        return outputs.replace(cells=read(variables[BLOCK], self.module, outputs, inputs))


def _block(x: Array, rate: float = 0.0) -> Block:
    """Return the block for gene vectors [N, T, D]: heads of at least SIZE numbers, four times as wide between."""
    width = x.shape[-1]
    heads = next(n for n in range(max(1, width // SIZE), 0, -1) if width % n == 0)
    return Block(heads, 4 * width, rate, rate)


def _genes(module: ModuleType, outputs: Outputs, inputs: Mapping[str, Any]) -> tuple[Array, Array]:
    """Return (the vectors of the genes of each cell [N, T, D], which of them are genes [N, T])."""
    if outputs.genes is None:
        name = module.__name__.rpartition(".")[2]
        raise ValueError(
            f"task.head='transformer': {name} represents no genes of a cell (or not in training, with noise or hide); "
            "take task.head='embedding'"
        )
    x = outputs.genes.reshape(-1, *outputs.genes.shape[2:]).astype(jnp.float32)
    real = module.gene_ids(inputs) >= 0 if hasattr(module, "gene_ids") else jnp.ones(outputs.genes.shape[:3], bool)
    return x, real.reshape(x.shape[:2])
