"""Layers one by one, as published weights have them, and stacked, as a model that scans over them has them."""

from typing import Any

import jax
import jax.numpy as jnp


def stack(tree: dict[str, Any], one: str, whole: str, depth: int) -> dict[str, Any]:
    """Return `tree` with the entries `one`_0 ... `one`_(depth - 1) stacked as the entry `whole`, in place of them."""
    names = [f"{one}_{i}" for i in range(depth)]
    if not names or names[0] not in tree:
        return tree
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tree[name] for name in names))
    return {name: value for name, value in tree.items() if name not in names} | {whole: stacked}


def unstack(tree: dict[str, Any], one: str, whole: str) -> dict[str, Any]:
    """Undo `stack`; a tree without an entry `whole` stays as it is."""
    if whole not in tree:
        return tree
    stacked = tree[whole]
    depth = len(jax.tree.leaves(stacked)[0])
    layers = {f"{one}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)}
    return {name: value for name, value in tree.items() if name != whole} | layers
