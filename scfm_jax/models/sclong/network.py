"""scLong: a billion parameters over all genes of a cell, zeros included (Bai et al., 2024/25).

Every gene is a token. The `top_seq_len` genes of highest value go through a wide and deep Performer, all others
(masked ones among them: a mask sorts below zero) through a small one, both together through a third. A gene's identity
is a table of gene vectors plus a graph convolution over the Gene Ontology of a second such table.

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published" choose consistently:
  head           gene (paper: an MLP for each gene) | shared (code: one linear map)
  gene_table     False (paper: the graph convolution alone) | True (code: plus a table of its own)
  readd          False | True (code: gene vectors are added again before the last Performer)
  expression_norm  False (paper) | True (code: LayerNorm of what stands for the value)
  replace_rate   1 (paper: every scored gene is hidden) | 0.9 (code: a tenth stays visible)
  graph          True, built from weights as they are (code) or with `weighted=False, self_loops=True` (paper): that is
                 the data's, see `layers.graph`; False leaves the graph out
  pad_token      False (paper: 27,874 positions) | True (code: one more, which attends and is attended to)
  transform      normalised (counts per 10,000, log1p; replications and what is left of the code) | literal_paper
                 (log(1 + count / 10,000)) | none (log1p values already)
  max10          True (pre-training: the largest value of a cell is 10) | False (the code's downstream scripts)
  key_max        set (one cell) | global (code: the batch, which is the same at its micro-batch of 1) | per_head
The paper does not say how wide its MLPs are; `head_dim` is ours.

Differences on purpose: attention's feature maps never exist whole (`layers.attention`); the last Performer's last layer
computes, in training, only the genes that are scored; ties of the top genes go to the lowest slot; in evaluation the
embedding is that of the cell with nothing hidden; padding cells of a batch are silent; genes without a given vector
start at random.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph

from scfm_jax.layers import attention, graph, sparse
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.remat import REMAT
from scfm_jax.models.sclong import performer
from scfm_jax.models.sclong.performer import Performer, permute
from scfm_jax.types import Array, Batch, Outputs

SIZES = {"n_genes": "genes"}
BATCH = 16  # cells that are embedded at a time: 22 MB for each array of a cell at the published size
MASK = -10.0  # the value that stands for a hidden gene
EXPRESSION_DIM = 50
TUNING = {
    "lora": (r"^(large|mini|decoder)/layers?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^expression_", "^value_norm/", "^mask$", "^identity/", "^to_large/", "^large_norm/"),
    "layers": (("large/layer", "mini/layer"), ("decoder/layer",)),
    "visible": {"mask_rate": 0.0},
}
TRANSFORMS = ("normalised", "literal_paper", "none")
CHOICES = {
    "head": ("shared", "gene"),
    "context": ("all", "top"),
    "cells": ("mean", "outsiders"),
    "attention": performer.KINDS,
    "kernel": tuple(attention.KERNELS),
    "key_max": attention.PEAKS,
    "remat": (False, True, *REMAT),
}


# ------------------------------------------------------------------------------------------------- inputs and masking


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    transform: str = "normalised",
    target_sum: float = 1e4,
    max10: bool = True,
    mask_rate: float = 0.15,
    replace_rate: float = 0.9,
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into values, choose the genes to score and hide most of them.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract; no two store genes share a slot below V); a
        gene graph (`layers.graph.constants`) and "gene_vectors" [V, D], rows of zeros where unknown, may be among them.
      transform: normalised (counts per `target_sum` over the model's genes, then log1p), literal_paper
        (log(1 + count / `target_sum`)), none (values are used as they are).
      max10: then scale each cell so that its largest value is 10, or cut at 10 where it is larger.
      mask_rate: share of a cell's expressed genes that are scored, rounded up; exactly so many. 0 scores none.
      replace_rate: probability that a scored gene is hidden from the network.
      draws: recorded uniform draws "select" and "replace" [B, C, P] instead of `rng`.

    Returns a dict: values [B, C, V]; with mask_rate, masked [B, C, V] (-10 where hidden), rows [B, C, R] (slots of the
    scored genes), targets and weights [B, C, R]; scale and factor [B, C], which turn values back; cell_mask; graph and
    gene_vectors where there are.
    """
    del step, train
    n_genes = constants["measured"].shape[1]
    slots = jnp.where(batch.cell_mask[..., None], constants["slots"][batch.genes], n_genes)  # [B, C, P]
    counts = jnp.where(slots < n_genes, batch.counts, 0).astype(jnp.float32)
    values, scale = _transformed(counts, transform, target_sum)
    most, factor = values.max(-1, initial=0), jnp.ones(counts.shape[:2])
    if max10:
        factor = jnp.where(most > 10, 1, 10 / jnp.where(most > 0, most, 10))
        values = jnp.minimum(values * factor[..., None], 10)
    dense = sparse.scatter(slots, values, n_genes)
    inputs = {"values": dense, "scale": scale, "factor": factor, "cell_mask": batch.cell_mask}
    if mask_rate:
        inputs |= _choose(rng, draws or {}, slots, values, dense, mask_rate, replace_rate)
    if "graph_weight" in constants:
        inputs["graph"] = graph.from_constants(constants)
    if "gene_vectors" in constants:
        inputs["gene_vectors"] = constants["gene_vectors"]
    return inputs


def _transformed(counts: Array, kind: str, target: float) -> tuple[Array, Array]:
    """Return (values [B, C, P], what counts were multiplied by before the logarithm [B, C])."""
    if kind not in TRANSFORMS:
        raise ValueError(f"transform {kind!r}: there are {', '.join(TRANSFORMS)}")
    if kind == "none":
        return counts, jnp.ones(counts.shape[:2])
    scale = jnp.full(counts.shape[:2], 1 / target)
    if kind == "normalised":
        total = counts.sum(-1)
        scale = target / jnp.where(total > 0, total, target)
    return jnp.log1p(counts * scale[..., None]), scale


def _choose(
    rng: Array, draws: dict[str, Array], slots: Array, values: Array, dense: Array, rate: float, replace_rate: float
) -> dict[str, Array]:
    """Return what is scored and what is hidden: the ceil(rate n) largest of uniform draws over n expressed genes."""
    keys = dict(zip(("select", "replace"), jax.random.split(rng), strict=True))
    draws = {name: draws[name] if name in draws else jax.random.uniform(keys[name], slots.shape) for name in keys}
    expressed = values != 0
    room = min(slots.shape[-1], math.floor(rate * slots.shape[-1]) + 1)
    number = jnp.ceil(expressed.sum(-1, dtype=jnp.float32) * jnp.float32(rate))
    chosen = jax.lax.top_k(jnp.where(expressed, draws["select"], -1), room)[1]  # [B, C, R]
    scored = jnp.arange(room) < number[..., None]
    at = [jnp.take_along_axis(x, chosen, -1) for x in (slots, values, draws["replace"])]
    rows = jnp.where(scored, at[0], dense.shape[-1])
    hidden = jnp.where(scored & (at[2] < replace_rate), rows, dense.shape[-1])
    flat = dense.reshape(-1, dense.shape[-1])
    masked = flat.at[jnp.arange(len(flat))[:, None], hidden.reshape(len(flat), -1)].set(MASK, mode="drop")
    targets = {"targets": jnp.where(scored, at[1], 0), "weights": scored.astype(jnp.float32)}
    return {"masked": masked.reshape(dense.shape), "rows": jnp.where(scored, rows, 0), **targets}


# ------------------------------------------------------------------------------------------------------------ network


class Model(nn.Module):
    """scLong over single cells; `cells` of the outputs is the mean of a cell's gene representations [B, C, D].

    `genes` are these [B, C, V, D]; `logits` are predicted values, "scored" [B, C, R] and "genes" [B, C, V].
    `cells` "outsiders" embeds a cell as the sum over D for each position, as the batch script of the code means to.
    `context` "top" leaves out the values of all genes but the top ones. `redraw`: see `layers.performer`; 0 for never.
    `prefix`: learned keys and values of each layer, see `layers.prefix`.
    `scan`: one compilation for all layers of a stack, and less memory. `remat`: recompute layers backwards: False, True
    or "full" (keep only what goes in), "dots" (keep matrix products, too). Rows of the gene tables that were not given
    start normal with deviation 0.3.
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
        self.head_ = GeneHead(self.positions, self.head_dim) if self.head == "gene" else Dense(1)

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
        e = (self.values(x) + vectors).astype(self.dtype)
        top = min(self.top_seq_len, self.positions)
        order, inverse = split(x, top, inputs.get("top"))
        e = permute(e, order, inverse)
        high, low = self.high(e[:, :top], real[:, :top], train), jnp.zeros_like(e[:, top:])
        if hasattr(self, "mini"):
            low, _ = self.mini(e[:, top:], real[:, top:], train=train)
        self.sow("intermediates", "left_encodings", low)
        merged = permute(jnp.concatenate([high, low], 1), inverse, order)
        if self.readd or self.context == "top":
            merged = merged + vectors.astype(self.dtype)
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
        """Raise ValueError for options that there are not, or that do not go together."""
        check_choices(self, CHOICES)
        if not self.graph and not self.gene_table:
            raise ValueError("graph=False, gene_table=False: one of them must tell the genes apart")


class GeneVectors(nn.Module):
    """What stands for each gene's identity: a table, a graph convolution of another table, or the sum of both."""

    positions: int
    width: int
    layers: int
    table: bool

    @nn.compact
    def __call__(self, given: Array | None, network: jraph.GraphsTuple | None) -> Array:  # [V, D] -> [N, D]
        def table(name: str) -> Array:
            return self.param(name, lambda key: start(key, given, (self.positions, self.width)))

        if not self.layers:
            return table("genes")
        if network is None:
            raise ValueError(
                "model.graph=True, but there is no graph: give config.data.graph, or set model.graph=False"
            )
        x = table("graph_genes")
        for i in range(self.layers):
            x = graph.GraphConvolution(self.width, name=f"graph_{i}")(jax.nn.relu(x) if i else x, network)
        self.sow("intermediates", "graph", x)
        if not self.table:
            return x
        genes = table("genes")
        self.sow("intermediates", "table", genes)
        return x + genes


class GeneHead(nn.Module):
    """An MLP with one hidden layer for each gene: its representation to its value, in float32."""

    positions: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, rows: Array | None = None) -> Array:  # [M, N or R, D], [M, R] -> [M, N or R]
        bound = x.shape[-1] ** -0.5
        draw = lambda *shape: lambda key: jax.random.uniform(key, (self.positions, *shape), minval=-bound, maxval=bound)  # noqa: E731
        weights = [self.param("kernel", draw(x.shape[-1], self.hidden)), self.param("bias", draw(self.hidden))]
        weights += [self.param("out_kernel", draw(self.hidden)), self.param("out_bias", draw())]
        kernel, bias, out, last = weights if rows is None else (w[rows] for w in weights)
        product = "mnd,ndf->mnf" if rows is None else "mnd,mndf->mnf"
        hidden = jax.nn.relu(jnp.einsum(product, x, kernel) + bias)
        return (hidden * out).sum(-1) + last


def split(x: Array, top: int, given: Array | None = None) -> tuple[Array, Array]:
    """Return (the positions, those of the `top` largest values first, the others in order; the inverse order). [M, N]

    `given`: the first ones as recorded elsewhere, where ties fell differently. [B, C, L]
    """
    first = jax.lax.top_k(x, top)[1] if given is None else given.reshape(len(x), top)
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


def start(key: Array, given: Array | None, shape: tuple[int, int]) -> Array:
    """Return the first value of a gene table: given vectors, rows of zeros drawn at random, PAD zero. [N, D]"""
    drawn = 0.3 * jax.random.normal(key, shape)
    if given is None:
        return drawn
    if given.shape[1] != shape[1]:
        raise ValueError(f"gene vectors of width {given.shape[1]}: model.base_dim={shape[1]} must be the same")
    known = (given != 0).any(1, keepdims=True)
    rows = jnp.where(known, given, drawn[: len(given)])
    return jnp.pad(rows, ((0, shape[0] - len(given)), (0, 0)))


# ---------------------------------------------------------------------------------------------------------- objective


def loss(outputs: Outputs, inputs: dict[str, Any]) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean squared error over all scored genes of the batch, metrics as (weighted sum, weight))."""
    error = (outputs.logits["scored"] - inputs["targets"]) ** 2 * inputs["weights"]
    total, number = error.sum(), inputs["weights"].sum()
    return total / jnp.maximum(number, 1), {"loss": (total, number)}


def to_counts(values: Array, inputs: dict[str, Any], transform: str = "normalised") -> Array:
    """Return values as `prepare` makes them turned back into counts; what was cut at 10 stays cut. [B, C, V]"""
    values = jnp.maximum(values, 0) / inputs["factor"][..., None]
    return values if transform == "none" else jnp.expm1(values) / inputs["scale"][..., None]


def impute(
    model: Model,
    variables: Mapping[str, Any],
    batch: Batch,
    constants: Mapping[str, Array],
    asked: Mapping[str, Array],
    *,
    inputs: Mapping[str, Any],
    loss: Mapping[str, Any],
) -> Array:
    """Return the predicted values of genes whose input is [MASK], turned back into counts. [B, C, V]

    The visible counts are normalised by their own sum and maximum, and the prediction is undone by the same two. Where
    nothing is visible there are none: the prediction is scaled to the estimated total. The model was trained on masked
    genes that are expressed, so it does not predict zeros. Arguments: the contract.
    """
    del loss
    options = {**inputs, "mask_rate": 0.0}
    given = prepare(batch, constants, jax.random.key(0), step=0, train=False, **options)
    masked = jnp.where(asked["hidden"], MASK, given["values"])
    values = model.apply(variables, given | {"values": masked}, train=False).logits["genes"]
    counts = to_counts(values, given, options.get("transform", "normalised"))
    blind = batch.counts.sum(-1) <= 0
    whole = jnp.maximum(jnp.where(constants["measured"][0], counts, 0).sum(-1), 1e-9)
    return counts * jnp.where(blind, asked["depth"] / whole, 1)[..., None]


# ------------------------------------------------------------------------------------------------------ costs and sizes


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of gene positions of real cells."""
    return (inputs["cell_mask"].sum() * inputs["values"].shape[2]).astype(jnp.int32)


def flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of one forward pass in training: two for every multiplication of a matrix product."""
    n_cells, n, d = math.prod(inputs["values"].shape[:2]), model.positions, model.base_dim
    top, kind = min(model.top_seq_len, n), model.attention
    scored = inputs["rows"].shape[-1] if "rows" in inputs else n
    total = n * EXPRESSION_DIM * (1 + d) + 2 * top * d * model.large_dim
    large = (model.large_dim, model.large_heads, model.large_key_size)
    total += model.large_depth * performer.flops(top, *large, kind=kind)
    if model.context == "all":
        total += model.mini_depth * performer.flops(n - top, d, model.mini_heads, model.mini_key_size, kind=kind)
    decoder = (n, d, model.dec_heads, model.dec_key_size)
    total += (model.dec_depth - 1) * performer.flops(*decoder, kind=kind) + performer.flops(*decoder, scored, kind)
    total += scored * d * (model.head_dim if model.head == "gene" else 1)
    graph_once = model.graph * model.graph_layers * n * d**2
    return 2.0 * (n_cells * total + graph_once)


SMALL = dict(base_dim=64, mini_heads=2, mini_depth=1, large_depth=3, large_heads=4, large_dim=128, dec_heads=2)
VARIANTS = {
    "tiny": {
        "model": dict(
            top_seq_len=128, base_dim=32, mini_depth=1, mini_heads=2, mini_key_size=16, large_dim=48, large_depth=2,
            large_heads=2, large_key_size=16, dec_depth=1, dec_heads=2, dec_key_size=16, graph=False,
        ),
    },
    "small": {"model": dict(SMALL, top_seq_len=1024, dec_depth=1, graph=False)},
    "paper": {
        "model": dict(head="gene", gene_table=False, readd=False, expression_norm=False, pad_token=False),
        "inputs": {"replace_rate": 1.0},
    },
    "published": {"model": {}},
}  # fmt: skip
