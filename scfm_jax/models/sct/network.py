"""The network of sCT: a convolution tower, a transformer over what is left, a transposed tower, a head."""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers import position
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.remat import REMAT
from scfm_jax.models.sct.convolution import NORMS, POOLINGS, Convolution, Stage, reach, truncated, with_neighbours
from scfm_jax.models.sct.rotary import INITIALISERS, Block
from scfm_jax.types import Array, Outputs

SIZES = {"n_genes": "genes"}
SAMPLE = "bag"  # cells attend to each other, as many as were trained together
TUNING = {
    "lora": (r"^blocks?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^tokens$", "^position", "^stem/"),
    "layers": (("down",), ("block",), ("up",)),
    "visible": {"mask": "none"},
}


class Model(nn.Module):
    """sCT over bags of cells; `cells` of the outputs is the mean of a cell's positions after the transformer [B, C, D].

    `genes` is what the towers make of each gene [B, C, V, token_dim].
    `cells`: "mean" (the paper's), or "positions", all of a cell's positions beside each other [B, C, L D].
    `cell_layer` that they are read from: "last", the "mean" over the blocks, or "input", what the first block is given.
    `mlp_init`: kernels of the transformer's MLP are drawn "he_uniform" or, as in the released code, "truncated" normal.
    `remat`: False, True or "full" (keep only what goes into a stage or block), "dots" (keep matrix products, too).
    `cell_chunk`: cells that a stage works on at a time (0: all), each part once more in the backward pass.
    `query_chunk`: queries that attention works on at a time (0: all); its maps are kept only where that is all.
    `prefix`: learned keys and values of each block, see `layers.prefix`.
    Parameters depend on the number of genes, not on the number of cells (but with norm "standard").
    Intermediates: residual_{i}, conv_out, transformer_out, deconv_out, attention and output of every block.
    """

    n_genes: int = 0
    n_bins: int = 5
    num_downsamples: int = 8
    token_dim: int = 64
    embed_dim: int = 1024
    ffn_dim: int = 2048
    num_layers: int = 4
    num_heads: int = 16
    key_size: int = 64
    head_layers: int = 1
    skip: bool = True
    pooling: str = "avg"
    pos: str = "rope"
    norm: str = "shared"
    mlp_init: str = "he_uniform"
    spatial: str = "none"
    num_scales: int = 10
    sigma_min: float = 1.0
    sigma_max: float = 10.0
    cells: str = "mean"
    cell_layer: str = "last"
    prefix: int = 0
    dtype: str = "float32"
    cell_chunk: int = 0
    query_chunk: int = 1024
    remat: bool | str = False
    scan: bool = False

    def setup(self) -> None:
        self.check()
        remat = functools.partial(nn.remat, policy=REMAT["full" if self.remat is True else self.remat or "full"])
        stage, block = (remat(Stage), remat(Block, prevent_cse=not self.scan)) if self.remat else (Stage, Block)
        widths = self.widths()
        self.tokens = self.param("tokens", nn.initializers.truncated_normal(1.0), (self.n_bins + 2, self.token_dim))
        if self.spatial != "none":
            features = {"code": 2, "paper": 4}[self.spatial] * self.num_scales
            self.position = self.linear("position", features, self.token_dim)
        self.stem = Convolution(self.token_dim, 15, dtype=self.dtype)
        options = {"norm": self.norm, "dtype": self.dtype, "cell_chunk": self.cell_chunk}
        self.down = [stage(width, pooling=self.pooling, **options) for width in widths[1:]]
        self.up = [stage(width, stride=2, **options) for width in widths[-2::-1]]
        options = (self.num_heads, self.key_size, self.ffn_dim, self.pos == "rope", self.dtype, self.query_chunk)
        options = (*options, self.prefix, self.mlp_init)
        if self.scan:
            axes = {"variable_axes": {"params": 0, "intermediates": 0}, "in_axes": nn.broadcast}
            block = nn.scan(block, split_rngs={"params": True}, length=self.num_layers, **axes)
            self.blocks = block(*options)
        else:
            self.block = [block(*options) for _ in range(self.num_layers)]
        sizes = [widths[0], *[self.embed_dim] * self.head_layers, self.n_bins + 2]
        self.head = [self.linear(f"head_{i}", *size) for i, size in enumerate(itertools.pairwise(sizes))]

    def __call__(self, inputs: dict[str, Any], train: bool = False) -> Outputs:
        if inputs["edges"].shape[-1] != self.n_bins:
            raise ValueError(f"model.n_bins={self.n_bins}, inputs.n_bins={inputs['edges'].shape[-1]}: must be the same")
        tokens, mask = inputs["tokens"], inputs.get("mask")
        features, cells = self.network(tokens if mask is None else jnp.where(mask, self.n_bins, tokens), inputs)
        logits = {"features": features, "head": self.head}
        if mask is not None and not train:  # XLA drops the one of the two passes that is not used
            features, cells = self.network(tokens, inputs)
        return Outputs(cells=cells, genes=features[:, :, : self.n_genes], logits=logits)

    def network(self, tokens: Array, inputs: dict[str, Any]) -> tuple[Array, Array]:
        """Return (features of the genes [B, C, L, token_dim], embeddings of the cells [B, C, D])."""
        real, skips = inputs["cell_mask"], []
        x = self.embed(tokens, inputs["coords"]) * real[..., None, None].astype(self.dtype)
        x = jax.nn.gelu(self.stem(with_neighbours(x, *reach(15))))
        for i, stage in enumerate(self.down):
            self.sow("intermediates", f"residual_{i}", x)
            skips.append(x)
            x = stage(x, real)
        x, cells = self.transform(x, real)
        for stage in self.up:
            x = stage(x, real)
            x = x + skips.pop() if self.skip else x
        self.sow("intermediates", "deconv_out", x)
        return x, cells

    def embed(self, tokens: Array, coords: Array) -> Array:
        """Return the vectors of the tokens, each cell padded, plus that of the cell's place. [B, C, L, token_dim]"""
        padding = -self.n_genes % 2**self.num_downsamples
        tokens = jnp.pad(tokens, ((0, 0), (0, 0), (0, padding)), constant_values=self.n_bins + 1)
        x = jax.nn.one_hot(tokens, self.n_bins + 2, dtype=self.dtype) @ self.tokens.astype(self.dtype)
        if self.spatial == "none":
            return x
        located = ~jnp.isnan(coords).any(-1, keepdims=True)
        scales = (self.num_scales, self.sigma_min, self.sigma_max)
        waves = position.scale_waves(jnp.where(located, coords, 0), self.spatial, *scales)
        place = jnp.where(located, waves @ self.position["kernel"] + self.position["bias"], 0)
        return x + place[:, :, None].astype(x.dtype)

    def transform(self, x: Array, real: Array) -> tuple[Array, Array]:
        """Return (x after the transformer [B, C, L, D], embeddings of the cells [B, C, D])."""
        shape, first = x.shape, x
        x, mask = x.reshape(shape[0], -1, shape[3]), jnp.repeat(real | ~real.any(1, keepdims=True), shape[2], axis=1)
        self.sow("intermediates", "conv_out", x)
        if self.scan:
            x, states = self.blocks(x, mask)
        else:
            states = []
            for block in self.block:
                x, state = block(x, mask)
                states.append(state)
        self.sow("intermediates", "transformer_out", x)
        cells = {"input": first, "last": x}.get(self.cell_layer)
        cells = sum(states) / self.num_layers if cells is None else cells
        cells = cells.reshape(shape).astype(jnp.float32)
        return x.reshape(shape), cells.mean(2) if self.cells == "mean" else cells.reshape(*shape[:2], -1)

    def linear(self, name: str, fan_in: int, features: int) -> dict[str, Array]:
        """Return kernel and bias of a linear map."""
        kernel = self.param(f"{name}_kernel", lambda key: truncated(key, (fan_in, features), fan_in))
        return {"kernel": kernel, "bias": self.param(f"{name}_bias", nn.initializers.zeros, (features,))}

    def widths(self) -> list[int]:
        """Return the channels between the stages of the towers: evenly spaced, rounded up to a multiple of 32."""
        even = np.linspace(self.token_dim, self.embed_dim, self.num_downsamples + 1)
        return [int(width) for width in np.ceil(even / 32) * 32]

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit and for unknown options."""
        choices = {"pos": ("rope", "none"), "spatial": ("none", "code", "paper"), "cells": ("mean", "positions")}
        choices |= {"cell_layer": ("last", "mean", "input"), "pooling": POOLINGS, "norm": NORMS}
        choices |= {"mlp_init": tuple(INITIALISERS), "remat": (False, True, *REMAT)}
        check_choices(self, choices)
        if self.token_dim % 32 or self.embed_dim % 32:
            raise ValueError(f"token_dim={self.token_dim}, embed_dim={self.embed_dim}: must be multiples of 32")


def flops(model: Model, inputs: dict[str, Any], embed: bool = False) -> float:
    """Return the FLOPs of one forward pass, with `embed` of what the cells' embeddings take of it; see the contract."""
    n_bags, n_cells, n_genes = inputs["tokens"].shape
    n, widths, vocab = model.num_downsamples, model.widths(), model.n_bins + 2
    length = n_cells * (n_genes + -n_genes % 2**n)
    total = length * model.token_dim * (vocab + 15 * model.token_dim)
    for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
        total += (length >> i) * (5 * narrow * wide + wide**2)  # down
        if not embed:
            total += (length >> (i + 1)) * 5 * narrow * wide + (length >> i) * narrow**2  # up
    short, d, inner = length >> n, model.embed_dim, model.num_heads * model.key_size
    n_layers = 0 if embed and model.cell_layer == "input" else model.num_layers
    total += n_layers * short * (4 * d * inner + 3 * d * model.ffn_dim + 2 * short * inner)
    if not embed:
        head = [widths[0], *[d] * model.head_layers, vocab]
        total += length * sum(math.prod(pair) for pair in itertools.pairwise(head))
    return 2.0 * n_bags * total
