"""Two-dimensional positions of cells as vectors: a grid of 100 x 100 places, sinusoidal or learned; waves."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.types import Array

GRID = 100


def grid_place(coords: Array) -> tuple[Array, Array]:
    """Return the integer places (first, second coordinate) on the grid of coordinates in [0, 1]. [..., 2] -> [...]"""
    place = jnp.clip(jnp.trunc((coords * 1.02 - 0.01) * GRID), 0, GRID - 1).astype(jnp.int32)
    return place[..., 0], place[..., 1]


def sinusoidal(coords: Array, width: int) -> Array:
    """Return sines and cosines of the grid place: the second coordinate fills the first half. [..., 2] -> [..., D]

    `width` must be divisible by four: ValueError.
    """
    if width % 4:
        raise ValueError(f"width {width}: a sinusoidal position in two dimensions needs a width divisible by 4")
    half = width // 2
    frequency = jnp.exp(jnp.arange(0, half, 2) * (-jnp.log(10000.0) / half))
    first, second = grid_place(coords)
    angles = jnp.stack([second, first], -1)[..., None] * frequency  # [..., 2, D/4]
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
    return waves.reshape(*coords.shape[:-1], width)


def scale_waves(coords: Array, kind: str, scales: int, least: float, most: float) -> Array:
    """Return waves of the coordinates at scales k = least (most / least)^(s / (scales - 1)). [B, C, 2] -> [B, C, F]

    paper: cosine and sine of x / k and y / k, s from 0. code: cosine of x / k, sine of y / k, s from `least` to `most`.
    """
    with jax.ensure_compile_time_eval():  # as the original does, which a compiler's power differs from
        s = jnp.linspace(least, most, scales) if kind == "code" else jnp.arange(scales)
        scale = least * (most / least) ** (s / max(scales - 1, 1))
    angle = coords[..., None, :] / scale[:, None]  # [B, C, scales, 2]
    if kind == "code":
        waves = jnp.stack([jnp.cos(angle[..., 0]), jnp.sin(angle[..., 1])], -1)
    else:
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
    return waves.reshape(*coords.shape[:2], -1)


class Position(nn.Module):
    """The positional term of each cell: `kind` "sin" or "learned"; cells without coordinates get a learned vector.

    `missing` "cell": each cell for itself; "first": as in the released code, the bag's first real cell decides for all.
    """

    kind: str
    missing: str = "cell"

    @nn.compact
    def __call__(self, coords: Array, mask: Array, width: int) -> Array:  # [B, C, 2], [B, C] -> [B, C, D]
        if self.kind not in ("sin", "learned") or self.missing not in ("cell", "first"):
            raise ValueError(f"pe {self.kind!r} with pe_missing {self.missing!r}: there are sin, learned; cell, first")
        absent = jnp.isnan(coords).any(-1) | (coords[..., 0] == -1)
        if self.missing == "first":
            absent = jnp.take_along_axis(absent, jnp.argmax(mask, 1)[:, None], 1)
        coords = jnp.where(jnp.isnan(coords), 0, coords)
        if self.kind == "sin":
            term = sinusoidal(coords, width)
        else:
            table = self.param("table", nn.initializers.normal(1.0), (GRID * GRID, width))
            first, second = grid_place(coords)
            term = table[first * GRID + second]
        none = self.param("missing", nn.initializers.normal(0.01), (width,))
        return jnp.where(absent[..., None], none, term)
