"""Exceiver's training step at the released sizes and two smaller ones.

In all of them the latents read zeros as those of the released models do.
`published` and `classifier` express 2,000 of 19,067 genes and hide 300, `small` and `wide` 1,000 of 2,000 and hide 150.
For floors see `scfm_jax/models/exceiver.py`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.benches.step import Case, whole_batch
from scfm_jax.models import exceiver

ROWS = {
    "published": {"s": 11.6, "cells_per_s": 5.5, "peak_gb": 8.0},
    "classifier": {"s": 18.8, "cells_per_s": 5.3, "peak_gb": 12.2},
    "small": {"s": 2.65, "cells_per_s": 24.0, "peak_gb": 2.0},
    "wide": {"s": 1.41, "cells_per_s": 45.0, "peak_gb": 1.8},
}
INFER = {
    "published": {"s": 64 / 13.9, "cells_per_s": 13.9},
    "classifier": {"s": 100 / 15.5, "cells_per_s": 15.5},
    "small": {"s": 64 / 90, "cells_per_s": 90.0},
    "wide": {"s": 64 / 152, "cells_per_s": 152.0},
}


class Size(NamedTuple):
    """Cells, genes of the model, expressed genes, hidden genes, and what the network changes of the published one."""

    cells: int
    genes: int
    expressed: int
    hidden: int
    model: dict


SIZES = {
    "published": Size(64, 19_067, 2000, 300, {}),
    "classifier": Size(100, 19_067, 2000, 300, {"num_layers": 1, "n_classes": 24}),
    "small": Size(64, 2000, 1000, 150, {}),
    "wide": Size(64, 2000, 1000, 150, {"seq_dim": 64, "query_dim": 64, "num_layers": 2}),
}


def case(row: str, small: bool) -> Case:
    """Return one of the sizes, zeros seen as the released weights see them."""
    size = SIZES[row]
    if small:
        size = Size(4, 200, 60, 9, size.model | {"query_len": 8, "ffn_dim": 16})
    rng = np.random.default_rng(0)
    shape = (size.cells, 1)
    number = rng.integers(size.expressed - size.expressed // 50, size.expressed + 1, size.cells)
    expressed = np.arange(-(-size.expressed // 256) * 256) < number[:, None, None]
    order = np.argsort(rng.random((*shape, size.genes)), axis=-1)[..., : expressed.shape[-1]]
    expressed = expressed[..., : order.shape[-1]]
    genes, counts = np.where(expressed, order, size.genes), np.where(expressed, 1 + rng.poisson(2, order.shape), 0)
    batch = whole_batch(genes, counts).replace(labels={"tissue": rng.integers(0, 24, shape).astype(np.int32)})
    constants = {"slots": np.arange(size.genes + 1), "measured": np.ones((1, size.genes), bool)}
    cells = {name: value for name, value in vars(batch).items() if name != "labels"}
    constants, inputs = exceiver.fit({"train": [cells]}, constants, {"n_mask": size.hidden})
    options = exceiver.VARIANTS["published"]["model"] | size.model
    return Case(
        network=exceiver.Model(n_genes=size.genes, **options),
        inputs=inputs,
        loss={},
        batch=batch,
        constants={name: jnp.asarray(value) for name, value in constants.items()},
        optimizer={"name": "adam", "learning_rate": 3e-4, "weight_decay": 1e-5},
    )
