"""The network of scLong: the genes of highest value through a wide Performer, the others through a small one, all
through a third.

The last Performer's last layer computes, in training, only the genes that are scored; in evaluation the embedding is
that of the cell with nothing hidden. Ties of the top genes go to the lowest slot. Padding cells of a batch are silent.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import attention, graph
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.remat import REMAT
from scfm_jax.models.sclong import performer
from scfm_jax.models.sclong.genes import GeneHead, GeneVectors
from scfm_jax.models.sclong.performer import Performer, permute
from scfm_jax.types import Array, Outputs

SIZES = {"n_genes": "genes"}
BATCH = 16  # cells that are embedded at a time: 22 MB for each array of a cell at the published size
EXPRESSION_DIM = 50
TUNING = {
    "lora": (r"^(large|mini|decoder)/layers?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^expression_", "^value_norm/", "^mask$", "^identity/", "^to_large/", "^large_norm/"),
    "layers": (("large/layer", "mini/layer"), ("decoder/layer",)),
    "visible": {"mask_rate": 0.0},
}
CHOICES = {
    "head": ("shared", "gene"),
    "head_init": ("width", "fan_in"),
    "context": ("all", "top"),
    "cells": ("mean", "outsiders"),
    "attention": performer.KINDS,
    "kernel": tuple(attention.KERNELS),
    "key_max": attention.PEAKS,
    "remat": (False, True, *REMAT),
}


class Model(nn.Module):
    """scLong over single cells; `cells` of the outputs is the mean of a cell's gene representations [B, C, D].

    `genes` are these [B, C, V, D]; `logits` are predicted values, "scored" [B, C, R] and "genes" [B, C, V].
    `cells` "outsiders" embeds a cell as the sum over D for each position, as the batch script of the code means to.
    `context` "top" leaves out the values of all genes but the top ones. `redraw`: see `performer`; 0 for never.
    `prefix`: learned keys and values of each layer, see `layers.prefix`. `head_init`: see `genes.GeneHead`.
    `scan`: one compilation for all layers of a stack, and less memory. `remat`: recompute layers backwards: False, True
    or "full" (keep only what goes in), "dots" (keep matrix products, too). Rows of the gene tables without a
    given vector start normal with deviation 0.3.
    Intermediates: token_emb, token_norm, graph, top_encodings, left_encodings, merged_encodings, merged_decodings, what
    goes into and comes out of the stacks, and those of their layers.
    """

    n_genes: int = 0
    top_seq_len: int = 4096
    base_dim: int = 200
    mini_depth: int = 2
    mini_heads: int = 8
    mini_key_size: int = 64
    large_dim: int = 1280
    large_depth: int = 42
    large_heads: int = 32
    large_key_size: int = 64
    dec_depth: int = 2
    dec_heads: int = 8
    dec_key_size: int = 64
    qkv_bias: bool = False
    attention: str = "favor"
    kernel: str = "softmax"
    key_max: str = "set"
    detach_max: bool = False
    redraw: int = 1000
    graph: bool = True
    graph_layers: int = 1
    gene_table: bool = True
    readd: bool = True
    expression_norm: bool = True
    pad_token: bool = True
    context: str = "all"
    head: str = "shared"
    head_dim: int = 16
    head_init: str = "width"
    cells: str = "mean"
    prefix: int = 0
    dtype: str = "float32"
    remat: bool | str = False
    scan: bool = False

    def setup(self) -> None:
        self.check()
        base, dtype = self.base_dim, self.dtype
        layer = {"kind": self.attention, "kernel": self.kernel, "key_max": self.key_max, "dtype": dtype}
        layer |= {"detach_max": self.detach_max, "qkv_bias": self.qkv_bias, "prefix": self.prefix}

        def stack(depth: int, heads: int, size: int, apart: bool = False) -> Performer:
            settings = {**layer, "heads": heads, "key_size": size}
            return Performer(depth, settings, self.redraw, self.remat, self.scan, apart)

        self.expression_in, self.expression_out = Dense(EXPRESSION_DIM), Dense(base)
        self.mask = self.param("mask", lambda key: in_unit_ball(jax.random.normal(key, (base,))))
        if self.expression_norm:
            self.value_norm = LayerNorm()
        layers = self.graph_layers if self.graph else 0
        self.identity = GeneVectors(self.positions, base, layers, self.gene_table or not self.graph)
        self.to_large, self.large_norm = Dense(self.large_dim, dtype=dtype), LayerNorm()
        self.large = stack(self.large_depth, self.large_heads, self.large_key_size)
        self.to_base, self.base_norm = Dense(base, dtype=dtype), LayerNorm()
        if self.context == "all" and self.top_seq_len < self.positions:
            self.mini = stack(self.mini_depth, self.mini_heads, self.mini_key_size)
        self.decoder = stack(self.dec_depth, self.dec_heads, self.dec_key_size, apart=True)
        self.decode_norm = LayerNorm()
        self.head_ = GeneHead(self.positions, self.head_dim, self.head_init) if self.head == "gene" else Dense(1)

    def __call__(self, inputs: dict[str, Any], train: bool = False) -> Outputs:
        shape, hidden = inputs["values"].shape[:2], "masked" in inputs
        vectors = self.identity(inputs.get("gene_vectors"), inputs.get("graph"))
        genes, scored = self.network(inputs["masked" if hidden else "values"], vectors, inputs, train)
        logits = {"genes": self.score(genes)[:, : self.n_genes].reshape(*shape, -1)}
        if hidden:
            logits["scored"] = self.score(scored, self.rows(inputs)).reshape(*shape, -1)
        if hidden and not train:  # XLA drops the one of the two passes that is not used
            genes, _ = self.network(inputs["values"], vectors, inputs, train)
        genes = genes.reshape(*shape, *genes.shape[1:])
        cells = genes.mean(2) if self.cells == "mean" else genes.sum(3)
        return Outputs(cells=cells, genes=genes[:, :, : self.n_genes], logits=logits)

    @property
    def positions(self) -> int:
        """Tokens of a cell."""
        return self.n_genes + self.pad_token

    def rows(self, inputs: dict[str, Any]) -> Array | None:
        """Return the scored genes of each cell. [M, R]"""
        return inputs["rows"].reshape(-1, inputs["rows"].shape[-1]) if "rows" in inputs else None

    def network(
        self, x: Array, vectors: Array, inputs: dict[str, Any], train: bool
    ) -> tuple[Array, Array | None]:  # [B, C, V], [N, D]
        """Return (representations of all genes [M, N, D], those of the scored ones [M, R, D])."""
        x = x.reshape(-1, x.shape[-1])
        x = jnp.pad(x, ((0, 0), (0, 1))) if self.pad_token else x  # [M, N]
        real = jnp.broadcast_to(inputs["cell_mask"].reshape(-1, 1), x.shape)
        e = self.values(x) + vectors
        top = min(self.top_seq_len, self.positions)
        order, inverse = split(x, top, inputs.get("top"))
        e = permute(e, order, inverse)
        high, low = self.high(e[:, :top], real[:, :top], train), jnp.zeros_like(e[:, top:])
        if hasattr(self, "mini"):
            low, _ = self.mini(e[:, top:], real[:, top:], train=train)
        self.sow("intermediates", "left_encodings", low)
        merged = permute(jnp.concatenate([high, low], 1), inverse, order)
        if self.readd or self.context == "top":
            merged = merged + vectors
        self.sow("intermediates", "merged_encodings", merged)
        full, some = self.decoder(merged, real, self.rows(inputs), train=train)
        self.sow("intermediates", "decoder_out", full)
        full = self.decode_norm(full.astype(jnp.float32))
        self.sow("intermediates", "merged_decodings", full)
        return full, None if some is None else self.decode_norm(some.astype(jnp.float32))

    def values(self, x: Array) -> Array:
        """Return what stands for each gene's value. [M, N] -> [M, N, D]"""
        t = self.expression_out(jax.nn.relu(self.expression_in(x[..., None])))
        self.sow("intermediates", "token_emb", t)
        # The original rescales the vector in place, so no gradient passes through that.
        mask = self.mask + jax.lax.stop_gradient(in_unit_ball(self.mask) - self.mask)
        self.sow("intermediates", "mask_emb", mask)
        t = jnp.where(x[..., None] <= -1, mask, t)
        t = self.value_norm(t) if self.expression_norm else t
        self.sow("intermediates", "token_norm", t)
        return t

    def high(self, e: Array, real: Array, train: bool) -> Array:
        """Pass the top genes through the wide stack. [M, L, D]"""
        high = self.to_large(e)
        self.sow("intermediates", "to_large_out", high)
        high = self.large_norm(high)
        self.sow("intermediates", "large_norm_out", high)
        high, _ = self.large(high, real, train=train)
        self.sow("intermediates", "large_out", high)
        high = self.to_base(high)
        self.sow("intermediates", "to_base_out", high)
        high = self.base_norm(high)
        self.sow("intermediates", "top_encodings", high)
        return high

    def score(self, x: Array, rows: Array | None = None) -> Array:
        """Return the predicted values of all genes, or of those in `rows`. [M, N, D] -> [M, N]"""
        return self.head_(x, rows) if self.head == "gene" else self.head_(x)[..., 0]

    def check(self) -> None:
        """Raise ValueError for unknown options, or ones that exclude each other."""
        check_choices(self, CHOICES)
        if not self.graph and not self.gene_table:
            raise ValueError("graph=False, gene_table=False: one of them must tell the genes apart")


def split(x: Array, top: int, recorded: Array | None = None) -> tuple[Array, Array]:
    """Return (the positions, those of the `top` largest values first, the others in order; the inverse order). [M, N]

    `recorded`: the first ones of another implementation, where ties fell differently. [B, C, L]
    """
    first = jax.lax.top_k(x, top)[1] if recorded is None else recorded.reshape(len(x), top)
    chosen = jax.vmap(lambda rows: jnp.zeros(x.shape[1], jnp.int32).at[rows].set(1))(first)
    others = jnp.argsort(chosen, axis=1, stable=True)[:, : x.shape[1] - top]
    order = jnp.concatenate([first.astype(jnp.int32), others.astype(jnp.int32)], 1)
    places = jnp.arange(x.shape[1], dtype=jnp.int32)
    return order, jax.vmap(lambda order: jnp.zeros_like(order).at[order].set(places, unique_indices=True))(order)


def in_unit_ball(x: Array) -> Array:
    """Return a vector of a norm of at most 1, in the direction of `x`, as torch's embeddings with max_norm do."""
    norm = jnp.linalg.norm(x)
    return jnp.where(norm > 1, x / (norm + 1e-7), x)


def project(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters as the original has them after a forward pass: the mask's vector back in the unit ball."""
    return {**params, "mask": in_unit_ball(params["mask"])}


def gene_vectors(variables: Mapping[str, Any], n_genes: int) -> Array | None:
    """Return the table of gene vectors, None where the graph stands in for it. [V, D]"""
    table = variables["params"]["identity"].get("genes")
    return None if table is None else table[:n_genes]


def graph_vectors(model: Model, variables: Mapping[str, Any], constants: Mapping[str, Array]) -> Array | None:
    """Return what the graph convolution makes of each gene, None without a graph. [V, D]"""
    if not model.graph:
        return None
    convolution = GeneVectors(model.positions, model.base_dim, model.graph_layers, table=False)
    identity = {"params": variables["params"]["identity"]}
    return convolution.apply(identity, None, graph.from_constants(constants))[: model.n_genes]


def flops(model: Model, inputs: dict[str, Any], embed: bool = False) -> float:
    """Return the FLOPs of one forward pass, with `embed` of what the cells' embeddings take of it; see the contract."""
    n_cells, n, d = math.prod(inputs["values"].shape[:2]), model.positions, model.base_dim
    top, kind = min(model.top_seq_len, n), model.attention
    scored = inputs["rows"].shape[-1] if "rows" in inputs and not embed else n
    total = n * EXPRESSION_DIM * (1 + d) + 2 * top * d * model.large_dim
    large = (model.large_dim, model.large_heads, model.large_key_size)
    total += model.large_depth * performer.flops(top, *large, kind=kind)
    if model.context == "all":
        total += model.mini_depth * performer.flops(n - top, d, model.mini_heads, model.mini_key_size, kind=kind)
    decoder = (n, d, model.dec_heads, model.dec_key_size)
    total += (model.dec_depth - 1) * performer.flops(*decoder, kind=kind) + performer.flops(*decoder, scored, kind)
    if not embed:
        total += scored * d * (model.head_dim if model.head == "gene" else 1)
    graph_once = model.graph * model.graph_layers * n * d**2
    return 2.0 * (n_cells * total + graph_once)
