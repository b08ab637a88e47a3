"""Between a cell's expressed genes and the whole vocabulary: read a dense row at slots, spread values over it."""

import jax.numpy as jnp

from scfm_jax.types import Array


def at(dense: Array, slots: Array, fill: float = 0.0) -> Array:
    """Return `dense` [..., V] at the gene slots [..., P]; `fill` where the slot is not a gene (V: padding)."""
    shape = (*slots.shape[:-1], dense.shape[-1])
    inside = slots < dense.shape[-1]
    values = jnp.take_along_axis(jnp.broadcast_to(dense, shape), jnp.where(inside, slots, 0), -1)
    return jnp.where(inside, values, fill)


def scatter(slots: Array, values: Array, size: int) -> Array:
    """Return the values added up at their slots, zero elsewhere; slots beyond `size` are dropped. -> [..., size]"""
    flat_slots, flat_values = slots.reshape(-1, slots.shape[-1]), values.reshape(-1, slots.shape[-1])
    rows = jnp.arange(flat_slots.shape[0])[:, None]
    out = jnp.zeros((flat_slots.shape[0], size), values.dtype).at[rows, flat_slots].add(flat_values, mode="drop")
    return out.reshape(*slots.shape[:-1], size)


def product(slots: Array, values: Array, table: Array, columns: Array | None = None) -> Array:
    """Return the sum of the table's rows at the slots, each times its value. [..., P], [..., P], [V, D] -> [..., D]

    Args:
      columns: rows of the table that may occur, V for none; then slots are places among these. [M]
    """
    rows = table if columns is None else table.at[columns].get(mode="fill", fill_value=0)
    return jnp.einsum("...v,vd->...d", scatter(slots, values, len(rows)), rows)
