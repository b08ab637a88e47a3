"""scLong's training step: the sizes S, M and L that the original was timed with, and the published one.

  S, M, L     2,000, 5,000 or 27,874 genes of which the top 512, 1,024 or 4,096 go through a narrow and shallow stack
  published   one cell of 27,874 genes through all of the billion parameters, recomputing every layer; never measured of
              the original; `experiments.bench compile` says what it takes of devices

Floors, counted before anything was made faster; the largest binds:
  flops      forward 99, 185, 500 and 9,143 GFLOP, less what the last layer need not compute of genes that are not
             scored; three times that for a step: 3, 5.6, 15 and 274 s at the 100 GFLOP/s of two cores
  exp        two feature maps a layer, 2 x 266 numbers a token and head: 0.15, 0.21, 0.58 and 3.4 G exponentials forward
             and as many backwards; at 0.5 G/s (with their product, difference and sum) 0.6, 0.8, 2.3 and 14 s
  bytes      a layer reads and writes 24 D + 8 H K numbers a token where feature maps stay in the cache, D wide and
             H K all heads together: forward 1.3, 2.1, 5.2 and 36 GB, three times that for a step, four with
             recomputation; and seven passes over float32 parameters, gradient and moments, 0.2, 0.7, 1.1 and 28 GB:
             4, 7, 17 and 172 GB, 0.4, 0.7, 1.7 and 17 s at 10 GB/s

Batches are single cells of about 9 % expressed genes, on a graph of 21 random edges into each gene.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benches.step import Case, bag
from scfm_jax.layers import graph
from scfm_jax.models import sclong

ROWS = {
    "S": {"s": 5.80, "cells_per_s": 0.69, "peak_gb": 3.7},
    "M": {"s": 8.46, "cells_per_s": 0.24, "peak_gb": 5.2},
    "L": {"s": 35.8, "cells_per_s": 0.028, "peak_gb": 10.6},
    "published": {},
}
INFER = {
    "S": {"s": 2.99, "cells_per_s": 1.34, "peak_gb": 1.0},
    "M": {"s": 3.21, "cells_per_s": 0.62, "peak_gb": 1.2},
    "L": {"s": 11.9, "cells_per_s": 0.084, "peak_gb": 2.0},
}
LAYOUTS = {  # cells, genes, options
    "S": (4, 2_000, dict(top_seq_len=512, large_dim=256, large_depth=4, large_heads=8)),
    "M": (2, 5_000, dict(top_seq_len=1_024, large_dim=512, large_depth=6, large_heads=8)),
    "L": (1, 27_874, dict(top_seq_len=4_096, large_dim=640, large_depth=4, large_heads=16)),
    "published": (1, 27_874, sclong.VARIANTS["published"]["model"] | {"remat": True}),
}
EDGES = 21
"""Edges into each gene."""


def case(row: str, small: bool) -> Case:
    """Return the layout of that row."""
    n_cells, n_genes, options = LAYOUTS[row]
    if small:
        n_cells, n_genes, options = 4, 300, sclong.VARIANTS["tiny"]["model"] | {"graph": True}
    return Case(
        network=sclong.Model(n_genes=n_genes, **options | {"scan": True}),
        inputs={},
        loss={},
        batch=jax.tree.map(lambda x: x.swapaxes(0, 1), bag(n_cells, n_genes)),
        constants=constants(n_genes),
        optimizer={"name": "adam", "learning_rate": 5e-5},
        infer={"mask_rate": 0.0},
    )


def constants(n_genes: int, edges: int = EDGES) -> dict[str, jax.Array]:
    """Return the constants of a model that has a slot for every gene, and a random graph."""
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(n_genes), edges)
    source = rng.integers(0, n_genes, len(target))
    built = graph.build(source, target, rng.random(len(target)), n_nodes=n_genes + 1)
    measured_slots = {"slots": np.arange(n_genes + 1, dtype=np.int32), "measured": np.ones((1, n_genes), bool)}
    return jax.tree.map(jnp.asarray, measured_slots | graph.constants(built))
