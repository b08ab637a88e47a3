"""Prefix tuning (Li and Liang, ACL 2021): learned keys and values beside those of the tokens, in every layer.

They belong to a layer and not to a cell, are never masked, and stand at no position: where an attention turns its keys
by their place, prefixes are not turned. Random features and flows see them as they see any key; an attention that asks
in which place of the sequence a key stands cannot have them.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from scfm_jax.types import Array

normal = nn.initializers.normal(0.02)


def learned(module: nn.Module, length: int, width: int) -> tuple[Array, Array]:
    """Return keys and values that the parameters "prefix_key" and "prefix_value" of `module` hold. [S, D] each"""
    return tuple(module.param(f"prefix_{name}", normal, (length, width)) for name in ("key", "value"))


def before(module: nn.Module, k: Array, v: Array, mask: Array, length: int) -> tuple[Array, Array, Array]:
    """Put `length` learned keys and values of `module` before the others; 0 changes nothing.

    [B, T, H, K], [B, T, H, K], mask of real keys [B, T] -> the same with S + T in place of T
    """
    if not length:
        return k, v, mask
    more = learned(module, length, math.prod(k.shape[2:]))
    k, v = (
        jnp.concatenate(
            [jnp.broadcast_to(x.reshape(length, *y.shape[2:]).astype(y.dtype), (y.shape[0], length, *y.shape[2:])), y],
            1,
        )
        for x, y in zip(more, (k, v), strict=True)
    )
    return k, v, jnp.pad(mask, ((0, 0), (length, 0)), constant_values=True)
