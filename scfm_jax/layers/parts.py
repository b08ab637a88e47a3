"""Work in parts, so that what is made of each of them fits: in how many equal parts an axis is cut, and cells in turn.

`by_cells` walks over blocks of cells. Spread over devices, a block has as many cells of each, so none travels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scfm_jax.types import Array


def equal_parts(length: int, most: int = 0) -> int:
    """Return the least number of equal parts of `length` that are at most `most` long each; 0 for no limit."""
    most = most or length
    return next((n for n in range(1, length + 1) if length % n == 0 and length <= n * most), max(1, length))


def chunk_parts(shape: tuple[int, int, int], chunk: int) -> int:
    """Return that number for the last axis of [B, C, T], with at most `chunk` elements of all cells in each part."""
    n_bags, n_cells, length = shape
    return equal_parts(length, max(1, chunk // (n_bags * n_cells)) if chunk else 0)


def by_cells(function: Callable, most: int, policy: Callable | None, *cells: Array) -> Any:
    """Return function(*cells), worked out for a block of cells at a time and made again to differentiate.

    Args:
      function: what it returns has the cells first too.
      most: cells of each device in a block, at least one.
      policy: which of its results are kept for the backward pass, see `jax.checkpoint_policies`.
      cells: [N, ...] each.
    """
    n_cells, n = len(cells[0]), max(1, jax.sharding.get_abstract_mesh().size)
    n = n if n_cells % n == 0 else 1  # devices that the cells are spread over
    n_blocks = equal_parts(n_cells // n, max(1, most))
    if n_blocks == 1:
        return function(*cells)

    def apart(x: Array) -> Array:  # [N, ...] -> [blocks, cells, ...]
        x = x.reshape(n, n_blocks, -1, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(n_blocks, -1, *x.shape[3:])

    def together(x: Array) -> Array:
        x = x.reshape(n_blocks, n, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(n_cells, *x.shape[3:])

    step = jax.checkpoint(lambda _, block: (None, function(*block)), prevent_cse=False, policy=policy)
    return jax.tree.map(together, jax.lax.scan(step, None, jax.tree.map(apart, cells))[1])


def split(x: Array, n: int) -> Array:
    """Cut the queries into n equal chunks, the last padded. [N, H, Q, ...] -> [n, N, H, Q / n, ...]"""
    size = -(-x.shape[2] // n)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, n * size - x.shape[2]), (0, 0)))
    return jnp.moveaxis(x.reshape(*x.shape[:2], n, size, x.shape[3]), 2, 0)


def join(x: Array, n_queries: int) -> Array:
    """Undo `split`, and drop the padding."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, :n_queries]


def scan(part: Callable, start: Any, inputs: Any) -> tuple[Any, Any]:
    """Run `jax.lax.scan`, without a loop where there is one chunk."""
    if jax.tree.leaves(inputs)[0].shape[0] > 1:
        return jax.lax.scan(part, start, inputs)
    last, out = part(start, jax.tree.map(lambda x: x[0], inputs))
    return last, jax.tree.map(lambda x: x[None], out)
