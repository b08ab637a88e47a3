"""scEMB's training step at the paper's width, beside HuggingFace's BERT of the same size where that is installed.

A row is named by the cells and the genes of each: `512` is one cell of 512 genes, all of them real, so neither pads at
all; `published` is eight cells of 2,048, every layer recomputed, as in the paper's config. HuggingFace's step names
15 % of the genes, by the logits of every token, and updates by AdamW after clipping, as ours does
(`pip install "scfm_jax[bench]"`; OMP_WAIT_POLICY=PASSIVE for its cpu seconds).

What a step of one cell of 512 genes, 12 x 768, must do at least: 285 GFLOP of matrix products, 1.7 s at the 165 GFLOP/s
that two cores reach on such shapes; bytes: 101 M parameters with gradients and moments, each read and written, 2.4 GB.
"""

import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from configs.pretrain_scemb import BUCKETS
from data_pipeline.batches.loader import Loader
from experiments.benches import step as bench_step
from experiments.benches.step import Case
from scfm_jax.models import scemb
from scfm_jax.models.scemb.inputs import MASK, SPECIAL

ROWS = {"512": {}, "4x128": {}, "1024": {}, "2048": {}, "published": {}}
N_GENES = 20_000
RATE, DECAY = 1e-4, 1e-3
LENGTHS = (512, 1024, 2048)


def case(row: str, small: bool) -> Case:
    """Return cells that express as many genes as the row says."""
    (n_cells, n_genes), length = _size(row), N_GENES
    again = {"remat": True, "scan": True} if row == "published" else {}
    network = scemb.Model(n_genes=N_GENES, n_positions=101, attention_dropout=0.1, **again)
    if small:
        n_cells, n_genes, length = 1, 40, 200
        network = scemb.Model(n_genes=length, n_positions=101, embed_dim=16, num_layers=1, num_heads=2, ffn_dim=32)
    rng = np.random.default_rng(0)
    genes = np.argsort(rng.random((n_cells, 1, length)), -1)[..., :n_genes]
    return Case(
        network=network,
        inputs={},
        loss={},
        batch=bench_step.whole_batch(genes, 1 + rng.poisson(2, genes.shape)),
        constants={"slots": jnp.arange(length + 1), "measured": jnp.ones((1, length), bool)},
        optimizer={"name": "adamw", "learning_rate": RATE, "weight_decay": DECAY, "clip_norm": 1.0},
    )


def beside(row: str) -> tuple[str, Callable[[], None]] | None:
    """Return the name of HuggingFace's BERT and a function that trains it one step, None where it is not installed."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return None
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    shape = _size(row)
    config = transformers.BertConfig(
        vocab_size=N_GENES + SPECIAL, max_position_embeddings=101, attn_implementation="sdpa"
    )
    model = transformers.BertForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    genes, bins = torch.randint(SPECIAL, config.vocab_size, shape), torch.randint(1, 101, shape)
    real = torch.ones_like(genes)

    def step() -> None:
        named = torch.rand(shape) < 0.15
        labels = torch.where(named, genes, -100)
        hidden = torch.where(named, MASK, genes)
        model(input_ids=hidden, attention_mask=real, position_ids=bins, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return f"HuggingFace {transformers.__version__}, torch {torch.__version__}", step


def length_rows(store, seconds: float, batch: int = 16, small: bool = False) -> list[dict]:
    """Return a row for training on the cells of a store padded to the longest sentence, and one for them by length.

    A step of 2,048 tokens is measured with sentences of three lengths; what a cell takes between them is a parabola.
    The lengths are those of a pass over the store as `configs/pretrain_scemb.py` loads it.

    Args:
      batch: cells of a batch, padded to its longest. small: a network to test the bench itself with.
    """
    each, longest = [], LENGTHS[-1]
    for length in LENGTHS:
        made = case(f"{longest // length}x{length}", small)
        step = bench_step.build(scemb, made)
        timing, _ = bench_step.measure_carried(step.update, jax.jit(step.init)(made.batch), made.batch, seconds)
        each.append([timing["s"] * length / longest, timing["cpu_s"] * length / longest])
    curves = [np.polyfit(LENGTHS, by, 2) for by in zip(*each, strict=True)]
    sentences, widths = [], []
    for part in Loader(store, batch=batch, bag=1, buckets=BUCKETS, by_length=True).epoch_batches():
        expressed = (part["counts"] > 0).sum(-1)[part["cell_mask"]]
        sentences.append(np.minimum(expressed, longest))
        widths.append(np.full(len(expressed), min(longest, part["genes"].shape[-1])))
    sentences, widths = np.concatenate(sentences), np.concatenate(widths)

    def row(name: str, widths: np.ndarray) -> dict:
        wall, cpu = (np.polyval(curve, widths).mean() for curve in curves)
        padding = 1 - sentences.sum() / widths.sum()
        return {"part": name, "padding": padding, "s": wall, "cpu_s": cpu, "cells_per_s": 1 / wall}

    padded, sorted_ = row(f"padded to {longest}", np.full_like(widths, longest)), row(f"by length, {batch}", widths)
    return [padded, sorted_ | {"times_padded": padded["s"] / sorted_["s"]}]


def _size(row: str) -> tuple[int, int]:
    n_cells, _, n_genes = "8x2048".rpartition("x") if row == "published" else row.rpartition("x")
    return int(n_cells or 1), int(n_genes)
