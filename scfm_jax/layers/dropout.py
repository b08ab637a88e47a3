"""Dropout whose random bits are a function of a key and of an element's place, made where they are used.

Threefry 2x32 with 13 rounds, the fewest that pass all tests of randomness (Salmon et al., SC 2011). JAX draws with 20,
and on a CPU its rounds go through memory; these are part of the loop that drops, so the backward pass can make them
again instead of keeping them, and they do not depend on how an array is cut or spread over devices.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from scfm_jax.types import Array

ROUNDS = 13
_TURNS = ((13, 15, 26, 6), (17, 29, 16, 24))


def dropped(x: Array, rate: float, key: Array) -> Array:
    """Set elements to 0 with probability `rate` and scale the others up. [..., T, D]"""
    return jnp.where(kept(words(key), x.shape, rate), x / (1 - rate), 0).astype(x.dtype)


def words(key: Array) -> Array:
    """Return what a key, of whatever generator, is to `kept`. uint32 [2]"""
    return jax.random.bits(key, (2,), jnp.uint32)


def kept(words: Array, shape: Sequence[int], rate: float, first: Sequence[Array | int] = (0, 0)) -> Array:
    """Return True with probability 1 - `rate` for each element of an array [..., T, D].

    Args:
      first: places of its first element in the whole of which it is a part: among the arrays [T, D], and among their T.
    """
    shape = (1,) * (2 - len(shape)) + tuple(shape)
    at = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    place = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape[:-2]):
        place = place * jnp.uint32(size) + at[axis]
    row = at[-2] + jnp.asarray(first[1]).astype(jnp.uint32)
    bits = threefry(words, row * jnp.uint32(shape[-1]) + at[-1], place + jnp.asarray(first[0]).astype(jnp.uint32))[0]
    return (bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))).reshape(shape)


def threefry(words: Array, x: Array, y: Array, rounds: int = ROUNDS) -> tuple[Array, Array]:
    """Return two random numbers for each pair of counters (x, y). uint32, any shape"""
    keys = (words[0], words[1], words[0] ^ words[1] ^ jnp.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(rounds):
        x, turn = x + y, _TURNS[i // 4 % 2][i % 4]
        y = ((y << turn) | (y >> (32 - turn))) ^ x
        if i % 4 == 3:
            n = i // 4 + 1
            x, y = x + keys[n % 3], y + keys[(n + 1) % 3] + jnp.uint32(n)
    return x, y
