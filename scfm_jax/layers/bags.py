"""What a bag of cells needs before a network sees it: order, masks, the genes it can be scored on, coordinates."""

import jax
import jax.numpy as jnp

from scfm_jax.types import Array, Batch


def shuffle(batch: Batch, key: Array, keep: float, limit: int) -> Batch:
    """Put the cells of each bag in random order, padding last, and keep the first of them."""
    n_cells = batch.cell_mask.shape[1]
    order = jnp.argsort(jax.random.uniform(key, batch.cell_mask.shape) + 2 * ~batch.cell_mask, axis=1)
    most = max(1, int(n_cells * keep))
    order = order[:, : min(most, limit or most)]

    def take(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *(1,) * (x.ndim - 2)), 1)

    number = jnp.maximum(1, jnp.floor(batch.cell_mask.sum(1, keepdims=True) * keep + 1e-6)) if keep < 1 else n_cells
    batch = jax.tree.map(take, batch)
    return batch.replace(cell_mask=batch.cell_mask & (jnp.arange(order.shape[1]) < number))


def draw_mask(key: Array, shape: tuple[int, int, int], rate: float, beta: bool) -> Array:
    """Draw which entries are hidden, every entry with its cell's probability. [B, R, V]"""
    share_key, key = jax.random.split(key)
    share = jnp.full(shape[:2], rate)
    if beta:
        share = jnp.minimum(jax.random.beta(share_key, 5.0, 4.0 / rate - 3.0, shape[:2]), 0.9)
    words = jax.random.bits(key, (*shape[:2], -(-shape[2] // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*shape[:2], -1)[..., : shape[2]]
    return bits < (share * 65536).astype(jnp.uint16)[..., None]


def measured_genes(table: Array, batch: Batch) -> Array:
    """Return the genes that every study, or batch of one, in the bag measured. [panels, V] -> [B, V]"""
    panel = batch.study if batch.panel is None else batch.panel
    here = (jax.nn.one_hot(panel, table.shape[0], dtype=bool) & batch.cell_mask[..., None]).any(1)  # [B, panels]
    return ~(here[:, :, None] & ~table[None]).any(1)


def unit_coordinates(coords: Array, mask: Array) -> Array:
    """Scale each bag's coordinates to [0, 1]; NaN stays NaN. [B, C, 2]"""
    real = jnp.where(mask[..., None], coords, jnp.nan)
    low, high = jnp.nanmin(real, 1, keepdims=True), jnp.nanmax(real, 1, keepdims=True)
    return (coords - low) / jnp.maximum(high - low, 1e-9)
