"""sCT's training step: the layouts S, M and L that the original was timed with, and the published one.

  S, M        10 cells x 1,024 or 4,096 genes of narrow networks
  L           2 cells x 19,965 genes of the published network
  published   50 cells x 19,965 genes, 998,400 tokens, recomputing every stage and block; never measured of the original

Two floors of the published row, counted before anything was made faster; the larger binds:
  flops   forward 4.09 TFLOP (convolutions 3.7, of which the first two and the last two stages are half; head 0.14;
          transformer 0.41), three times that for a step 12.3, four times with recomputation 16.4: 164 s at the
          100 GFLOP/s of two cores. L is a 27th of that: 0.46 TFLOP, 4.6 s.
  bytes   maps of all stages before pooling 620 + 370 float32 a token: 4 GB, about six passes forward and twelve
          backwards, 71 GB; hidden layer of the head 4.1 GB, six passes; scores of attention 4 x 0.97 GB, ten passes:
          about 135 GB, 14 s at 10 GB/s

What must be alive at once in float32: what goes into each stage of the towers, 1.5 GB down (its skips) and 1.5 GB up;
inside the one stage that is recomputed about eight maps of at most 192 x 998,400, 6 GB; 1.3 GB of parameters, gradient
and moments; a block's scores, 0.97 GB and as much again for their gradient. Recomputation alone does not get there on a
CPU, whose compiler drops the barriers that keep it from being done early: `--plan` says 42.5 GB for whole stages, and
16.7 GB where a stage works on 10 cells at a time. So it ran here: 230 s (277 cpu s), 19.6 GB in all.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benches.step import Case, bag
from scfm_jax.models import sct

ROWS = {
    "S": {"s": 0.80, "peak_gb": 1.5},
    "M": {"s": 15.0, "peak_gb": 3.6},
    "L": {"s": 36.8, "peak_gb": 6.2},
    "published": {},
}
LAYOUTS = {
    "S": (10, 1024, dict(num_downsamples=5, token_dim=32, embed_dim=256, ffn_dim=512, num_layers=2, num_heads=4)),
    "M": (10, 4096, dict(num_downsamples=6, token_dim=32, embed_dim=512, ffn_dim=1024, num_layers=4, num_heads=8)),
    "L": (2, 19_965, sct.VARIANTS["published"]["model"]),
    "published": (50, 19_965, sct.VARIANTS["published"]["model"] | {"remat": True, "scan": True}),
}


def case(row: str, small: bool) -> Case:
    """Return the layout of that row."""
    n_cells, n_genes, options = LAYOUTS[row]
    if small:
        n_cells, n_genes, options = 4, 61, sct.VARIANTS["tiny"]["model"]
    return Case(
        network=sct.Model(n_genes=n_genes, **options),
        inputs={"score_unmeasured": True},
        loss={},
        batch=bag(n_cells, n_genes),
        constants={"slots": jnp.arange(n_genes + 1), "measured": jnp.ones((1, n_genes), bool)},
        optimizer={"name": "adam", "learning_rate": 1e-4},
    )


def parts(module: ModuleType, case: Case, params: Any, inputs: Any, rngs: dict) -> dict[str, tuple]:
    """Return the head with its loss, forward and backward."""
    outputs = jax.jit(lambda p, x: case.network.apply({"params": p}, x, train=True))(params, inputs)
    return {
        "of these head and loss": (
            jax.grad(lambda o, x: module.loss(o, x, **case.loss)[0], allow_int=True),
            (outputs, inputs),
        )
    }
