"""Work in parts, so that what is made of each of them fits: in how many equal parts an axis is cut, and cells in turn.

`by_cells` walks over blocks of cells. Spread over devices, a block has as many cells of each, so none travels.
"""

from collections.abc import Callable
from typing import Any

import jax

from scfm_jax.types import Array


def equal_parts(length: int, most: int = 0) -> int:
    """Return the least number of equal parts of `length` that are at most `most` long each; 0 for no limit."""
    most = most or length
    return next((n for n in range(1, length + 1) if length % n == 0 and length <= n * most), max(1, length))


def chunk_parts(shape: tuple[int, int, int], chunk: int) -> int:
    """Return that number for the last axis of [B, C, T], with at most `chunk` elements of all cells in each part."""
    n_bags, n_cells, length = shape
    return equal_parts(length, max(1, chunk // (n_bags * n_cells)) if chunk else 0)


def by_cells(function: Callable, size: int, policy: Callable | None, *cells: Array) -> Any:
    """Return function(*cells), worked out for `size` cells of each device at a time and made again to differentiate.

    Args:
      function: what it returns has the cells first too.
      policy: which of its results are kept for the backward pass, see `jax.checkpoint_policies`.
      cells: [N, ...] each; `size` divides those of a device.
    """
    n = devices(len(cells[0]))
    if len(cells[0]) == n * size:
        return function(*cells)

    def apart(x: Array) -> Array:  # [N, ...] -> [blocks, cells, ...]
        x = x.reshape(n, -1, size, *x.shape[1:]).swapaxes(0, 1)
        return x.reshape(-1, n * size, *x.shape[3:])

    def together(x: Array) -> Array:
        x = x.reshape(len(x), n, -1, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(-1, *x.shape[3:])

    step = jax.checkpoint(lambda _, block: (None, function(*block)), prevent_cse=False, policy=policy)
    return jax.tree.map(together, jax.lax.scan(step, None, jax.tree.map(apart, cells))[1])


def devices(n_cells: int) -> int:
    """Return over how many devices (of `jax.set_mesh`) that many cells are spread."""
    n = max(1, jax.sharding.get_abstract_mesh().size)
    return n if n_cells % n == 0 else 1
