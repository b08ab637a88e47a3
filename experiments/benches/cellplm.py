"""CellPLM in the 20230926 checkpoint's layout: pre-training on one bag of 1,000 cells x 19,374 genes; other rows.

The rows `annotation` (2,000 cells of a store of 3,000 genes, all weights tuned) and `embed` (5,000 cells of a file of
10,000; embedded, not trained) have fewer genes than the model. Their floor is 2 x 3 x 2,000 x (3,000 x 1,024 + 33.6M)
= 0.44 TFLOP of a step, 4.4 s at 100 GFLOP/s, and 2 x 5,000 x (10,000 x 1,024 + 33.6M) = 0.44 TFLOP of an embedding:
both are matrix products, which the original leaves to the same kind of library.

Pre-training:

About 1,750 expressed genes a cell, AdamW. Two floors, of which the larger binds:
  flops   2 x 3 x (1,000 x 19,374 x 1,024 less the inputs' gradient, which nobody needs, + 1,000 x 33.6M of the encoder
          + 750 x (1.5M + 128 x 19,374) of decoder and head) = about 0.31 TFLOP: 3 s at the 100 GFLOP/s of two cores
  bytes   72M float32 parameters, gradient and two moments: seven passes, 2 GB, 0.2 s at 10 GB/s; the likelihood is
          about ten passes over 750 x 19,374 float32, 0.6 GB
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benches.step import Case, bag
from scfm_jax.models import cellplm
from scfm_jax.models.cellplm.objective import negative_binomial

ROWS = {
    "published": {"s": 9.6, "cells_per_s": 104.0, "peak_gb": 4.3},
    "annotation": {"s": 2.5, "cpu_s": 4.29, "cells_per_s": 800.0, "peak_gb": 2.7},
    "embed": {},
}
INFER = {
    "annotation": {"s": 1.01, "cpu_s": 1.82, "cells_per_s": 1980.0, "peak_gb": 0.9},
    "embed": {"s": 3.52, "cpu_s": 5.71, "cells_per_s": 1420.0, "peak_gb": 2.1},
}
FEWER = {"annotation": (2000, 3000), "embed": (5000, 10_000)}
"""Cells, and genes of their file, where those are not the model's. {row: (cells, genes)}"""
TYPES = 24
N_CELLS, N_GENES, N_BATCHES, N_STUDIES = 1000, 19374, 12596, 484


def case(row: str, small: bool) -> Case:
    """Return the published layout, with a head of cell types in the rows of FEWER genes."""
    n_cells, n_genes, n_batches, n_studies = (64, 200, 8, 4) if small else (N_CELLS, N_GENES, N_BATCHES, N_STUDIES)
    rng, fewer, some = np.random.default_rng(1), row in FEWER, n_genes
    if fewer:
        n_cells, some = (n_cells, n_genes // 2) if small else FEWER[row]
    labels = {"batch": n_batches, "cell_type": TYPES} if fewer else {"batch": n_batches}
    labels = {name: rng.integers(0, size, (1, n_cells)).astype(np.int32) for name, size in labels.items()}
    slots = np.append(np.sort(rng.choice(n_genes, some, replace=False)), n_genes)
    variant = cellplm.VARIANTS["tiny" if small else "published_20230926"]
    return Case(
        network=cellplm.Model(
            n_genes=n_genes,
            n_batches=n_batches,
            n_studies=n_studies,
            **variant["model"],
            **({"head": "annotation", "n_classes": TYPES} if fewer else {}),
        ),
        inputs={**variant.get("inputs", {}), "drop_node_rate": 0.0} | ({"mask_node_rate": 0.0} if fewer else {}),
        loss={"objective": "annotation"} if fewer else {},
        batch=bag(n_cells, some).replace(labels=labels),
        constants={"slots": jnp.asarray(slots, jnp.int32), "measured": jnp.ones((n_studies, n_genes), bool)},
        optimizer={"name": "adamw", "learning_rate": 2e-4, "weight_decay": 1e-8},
    )


def beside(row: str) -> tuple[str, Callable[[], None]] | None:
    """Return (name, a training step) in torch of a row of FEWER genes; None of another, or without torch."""
    return _restated(row, infer=False)


def infer_beside(row: str) -> tuple[str, Callable[[], None]] | None:
    """Return (name, an embedding) in torch, as `beside` does."""
    return _restated(row, infer=True)


def _restated(row: str, infer: bool) -> tuple[str, Callable[[], None]] | None:
    if row not in FEWER:
        return None
    try:
        import torch
    except ImportError:
        return None
    from experiments.benches import torch_cellplm

    n_cells, n_genes = FEWER[row]
    bags, genes = bag(n_cells, n_genes), torch.arange(n_genes)
    model = torch_cellplm.annotator(N_GENES, TYPES)
    counts = torch_cellplm.sparse(np.asarray(bags.genes[0]), np.asarray(bags.counts[0]), n_genes)
    types = torch.randint(TYPES, (n_cells,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=1e-8)

    def step() -> None:
        torch.nn.functional.cross_entropy(model.train()(counts, genes), types).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def embed() -> None:
        with torch.no_grad():
            model.eval().embed(counts, genes)

    return f"restated, torch {torch.__version__}", embed if infer else step


def parts(module: ModuleType, case: Case, params: Any, inputs: Any, rngs: dict) -> dict[str, tuple]:
    """Return the step forward and backward up to where each name says."""
    if case.network.head != "decoder":
        return {}
    embedder = case.network.clone(enc_mod="none", head="embedder")
    below = {name: value for name, value in params.items() if name not in ("encoder", "decoder")}

    def forward(params, inputs):
        return case.network.apply({"params": params}, inputs, train=True, rngs=rngs)

    def cells(params, inputs):
        return embedder.apply({"params": params}, inputs, train=True, rngs=rngs).cells.sum()

    head = jax.jit(forward)(params, inputs).logits
    return {
        "embedding and latent": (jax.grad(cells), (below, inputs)),
        "the same with encoder": (jax.grad(lambda p, x: forward(p, x).cells.sum()), (params, inputs)),
        "head and loss": (jax.grad(lambda h, x: negative_binomial(h, x, True)[0]), (head, inputs)),
    }
