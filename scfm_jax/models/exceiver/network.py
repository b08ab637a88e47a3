"""The network of Exceiver: latents read the expressed genes, work among themselves, and are read by queries.

A gene's key in a cell is s A, with A the same in all cells and s a number, so keys and values are projected once per
gene; genes without a count have the same s in all cells, so what latents make of them is one matrix product of the
whole batch, and only expressed genes are looked at cell by cell. Genes that a study did not measure count as genes
without a count (with zero_mask "exclude" there is no difference). In evaluation the embedding is that of the cell with
nothing hidden.

What a training step of 64 cells x 2,000 expressed of 19,067 genes must do at least (128 latents of width 4, 8 layers):
67 M exponentials of the encoder and 134 M error functions of the MLPs, twice each, and 34 M exponentials of the
latents' self-attention, twice: 0.5 G, 0.25 s at 1 ns each on two cores. Additive zeros: 2 x 3 x 1.3 GFLOP more.
Bytes: 64 x 19,067 floats (5 MB) and 64 x 2,048 x 9 (5 MB) are the largest arrays that the algorithm asks for.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import sparse
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.linear import fan_in_uniform
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.parts import by_cells
from scfm_jax.models.exceiver.inputs import SHIFT
from scfm_jax.models.exceiver.latent_attention import SAVED, Background, attend, look, merged, room
from scfm_jax.models.exceiver.perceiver import CrossBlock, LatentStack, columns, gelu, torch_linear
from scfm_jax.types import Array, Outputs

SIZES = {"n_genes": "genes", "n_classes": "tissue"}
HEADS = 4  # of both cross-attentions
TUNING = {
    "lora": (r"^(encoder|process/layers)/attention/(query|value)/kernel$",),
    "inputs": ("^genes$", "^mask$", "^class$", "^latents$", "^encoder/"),
    "layers": (("process/layer",),),
    "visible": {"mask_rate": 0.0, "n_mask": 0},
}
ZEROS = ("exclude", "additive_one")
SCALES = ("before_norm", "after_norm")


class Model(nn.Module):
    """Exceiver over single cells; `cells` of the outputs is all latents of a cell, one after the other [B, C, Q D].

    `genes` is what the decoder makes of every gene [B, C, V, seq_dim], in evaluation. `chunk`: attention weights or
    hidden units that exist at a time, 0 for what suits the backend. `n_classes` 0: no class token.
    `in_order`: the encoder sums as the original does, every gene of every cell a key of its own, values added gene
    after gene in float32. Slower and less exact (1e-5 of the latents with 19,067 genes): to compare with the original.
    `positive_head`: the last weight of the gene head starts above 0, as its targets are. Both layers of the released
    head are one number wide, and where that draw is negative (a seed in two) the one hidden unit is soon where GELU
    has no gradient: the output is a constant for thousands of updates.
    `value_scale`: where a gene's vector is multiplied by its value. "before_norm", as released: the norm that follows
    divides by the value again, and all that the latents see of it is its sign. "after_norm": the value stays.
    `gene_bias`: a number for each gene is added to its prediction, at first its mean over the entries of the training
    cells that are expressed (before they are clipped), so that what is left to learn is of the cell.
    `prefix`: learned keys and values of each of the latents' layers, see `layers.prefix`.
    Intermediates: encoder_latent, output of every layer [L, N, Q, D], decoder_out. `attention` gives maps.
    """

    n_genes: int = 0
    n_classes: int = 0
    seq_dim: int = 4
    query_len: int = 128
    query_dim: int = 4
    num_layers: int = 8
    num_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.0
    zero_mask: str = "exclude"
    mask_token: str = "learned"
    class_token_in_encoder: bool = False
    same_start: bool = True
    positive_head: bool = False
    value_scale: str = "before_norm"
    gene_bias: bool = False
    chunk: int = 0
    in_order: bool = False
    dtype: str = "float32"
    prefix: int = 0

    def setup(self) -> None:
        self.check()
        normal = nn.initializers.normal(1.0)
        self.vectors = self.param("genes", normal, (self.n_genes, self.seq_dim))
        if self.mask_token == "learned":
            self.mask_vector = self.param("mask", normal, (self.seq_dim,))
        if self.n_classes:
            self.class_vector = self.param("class", normal, (self.seq_dim,))
            self.class_head = Head(self.seq_dim, self.n_classes)
        self.latents = self.param("latents", normal, (self.query_len, self.query_dim))
        self.encoder = CrossBlock(self.query_dim, self.seq_dim, HEADS, self.chunk, self.dtype)
        self.decoder = CrossBlock(self.seq_dim, self.query_dim, HEADS, self.chunk, self.dtype)
        self.gene_head = Head(self.seq_dim, 1, self.positive_head)
        if self.gene_bias:
            self.output = GeneBias()
        options = (self.num_heads, self.ffn_dim, self.dropout, self.chunk, self.dtype, self.prefix)
        self.process = LatentStack(self.num_layers, self.same_start, *options)

    def __call__(self, inputs: dict[str, Any], train: bool = False) -> Outputs:
        latents = self.encode(inputs, inputs["hidden"], train)
        targets = self.flat(inputs["targets"])
        queries = self.vectors[targets]  # [N, M, S]
        if self.n_classes:
            token = jnp.broadcast_to(self.class_vector, (len(queries), 1, self.seq_dim))
            queries = jnp.concatenate([queries, token], 1)
        read = self.decoder(queries, latents)
        self.sow("intermediates", "decoder_out", read)
        logits = {"genes": self.gene_head(read[:, : targets.shape[1]])[..., 0]}
        if self.gene_bias:
            logits["genes"] += self.output(targets, inputs["expressed"])
        if self.n_classes:
            logits["classes"] = self.class_head(read[:, -1])
        shape, genes = inputs["cell_mask"].shape, None
        if not train:  # XLA drops what nobody reads
            latents = self.encode(inputs, jnp.zeros_like(inputs["hidden"]), train)
            genes = self.decoder(jnp.broadcast_to(self.vectors, (len(latents), *self.vectors.shape)), latents)
            genes = genes.reshape(*shape, *genes.shape[1:])
        logits = jax.tree.map(lambda x: x.reshape(*shape, x.shape[-1]), logits)
        return Outputs(cells=latents.reshape(*shape, -1).astype(jnp.float32), genes=genes, logits=logits)

    def encode(self, inputs: dict[str, Any], hidden: Array, train: bool) -> Array:
        """Return the latents of every cell, the genes of `hidden` [B, C, P] masked. [N, Q, D]"""
        start = self.latents[None]
        if self.in_order:
            x = self.encoder.in_order(start, *self.every_gene(inputs, hidden))
        else:
            x = self.encoder.finish(self.gathered(inputs, hidden, self.encoder.queries(start)), start)
        self.sow("intermediates", "encoder_latent", x)
        return self.process(x, train)

    def gathered(self, inputs: dict[str, Any], hidden: Array, queries: Array) -> Array:
        """Return what the latents gather from the genes of every cell. [1, H, Q, K] -> [N, H, Q, K]"""
        rows, constant = self.rows()
        ids, x, bias = self.expressed(inputs, hidden)

        def block(ids: Array, x: Array, bias: Array) -> tuple[Array, Array]:
            return attend(queries, *self.keys(rows, ids, x), bias, self.chunk)

        gathered = by_cells(block, room(self.chunk) // (ids.shape[1] * rows.shape[1]), SAVED, ids, x, bias)
        background = self.background(inputs, rows)
        if background is not None:
            gathered = merged(gathered, look(queries[0], background, self.chunk))
        return gathered[0] + constant

    def rows(self) -> tuple[Array, Array]:
        """Return what keys and values of all tokens are made of (see `CrossBlock.tables`), side by side, and u."""
        a, u, variance, constant = self.encoder.tables(self.table())
        rows = jnp.pad(jnp.concatenate([a, u], -1), ((0, 0), (0, 1)))
        # not as one more column to join, of which XLA makes a kernel that its own compiler refuses (jax 0.10.2, H100)
        last = jnp.arange(rows.shape[1]) == rows.shape[1] - 1
        return jnp.where(last, variance[:, None], rows), constant.reshape(HEADS, 1, -1)

    def expressed(self, inputs: dict[str, Any], hidden: Array) -> tuple[Array, Array, Array]:
        """Return token, value and bias of the expressed genes, with a class token in the encoder of one more. [N, P]"""
        ids, x = self.flat(inputs["genes"]), self.flat(inputs["values"])
        bias = jnp.where(ids < self.n_genes, 0.0, -jnp.inf)
        masked = self.flat(hidden)
        return self.with_class(jnp.where(masked, self.n_genes, ids), jnp.where(masked, SHIFT, x), bias)

    def keys(self, rows: Array, ids: Array, x: Array) -> tuple[Array, Array]:
        """Return keys and values of tokens [N, P] with their values. [N, H, K, P] each"""
        rows = rows[ids]  # one gather, hence one scatter backwards
        square = x**2 if self.value_scale == "before_norm" else 1.0
        scaled = (x * jax.lax.rsqrt(square * rows[..., -1] + 1e-5))[..., None] * rows[..., :-1]
        return tuple(columns(part, HEADS) for part in jnp.split(scaled, 2, -1))

    def background(self, inputs: dict[str, Any], rows: Array) -> Background | None:
        """Return the genes without counts, where the latents see those."""
        if self.zero_mask == "exclude":
            return None
        genes = jnp.arange(self.n_genes)
        keys, values = self.keys(rows, genes[None], inputs["zeros"][None])
        ids = self.flat(inputs["genes"])
        seen = 1 - sparse.scatter(ids, jnp.ones(ids.shape), self.n_genes)
        return Background(keys[0], values[0], seen, 1.0)

    def every_gene(self, inputs: dict[str, Any], hidden: Array) -> tuple[Array, Array]:
        """Return (vectors times values of all genes in their order, and the class token [N, V, S], bias [N, V])."""
        slots, masked = self.flat(inputs["genes"]), self.flat(hidden)
        at = (jnp.arange(len(slots))[:, None], slots)
        genes, silent = jnp.arange(self.n_genes), 1.0 if self.zero_mask == "additive_one" else -jnp.inf
        per_cell = (
            (genes, jnp.where(masked, self.n_genes, slots)),
            (inputs["zeros"], jnp.where(masked, SHIFT, self.flat(inputs["values"]))),
            (jnp.full(self.n_genes, silent), 0.0),
        )
        ids, x, bias = (jnp.tile(all_, (len(slots), 1)).at[at].set(one, mode="drop") for all_, one in per_cell)
        ids, x, bias = self.with_class(ids, x, bias)
        return self.table()[ids] * x[..., None], bias

    def with_class(self, *tokens: Array) -> tuple[Array, ...]:
        """Append the class token, where the encoder has one, to ids, values and bias of the genes. [N, P] each"""
        if not (self.n_classes and self.class_token_in_encoder):
            return tokens
        ends = (self.n_genes + 1, 1.0, 0.0)
        return tuple(jnp.pad(x, ((0, 0), (0, 1)), constant_values=end) for x, end in zip(tokens, ends, strict=True))

    def attention(self, inputs: dict[str, Any], hidden: Array | None = None) -> Array:
        """Return how much each latent looks at each gene, the mean over the heads; nothing hidden by default.

        The one place where weights of all genes exist: ask for a few cells. [B, C, Q, V]
        """
        hidden = jnp.zeros_like(inputs["hidden"]) if hidden is None else hidden
        rows, _ = self.rows()
        ids, x, bias = self.expressed(inputs, hidden)
        keys, _ = self.keys(rows, ids, x)
        background = self.background(inputs, rows)
        queries = self.encoder.queries(self.latents[None])
        logits = jnp.einsum("hqk,nhkp->nhqp", queries[0], keys) + bias[:, None, None]
        ids = self.flat(inputs["genes"])
        slots = jnp.broadcast_to(ids[:, None, None], (*logits.shape[:3], ids.shape[1]))
        dense = jnp.full((*logits.shape[:3], self.n_genes), -jnp.inf)
        if background is not None:
            shared = jnp.einsum("hqk,hkv->hqv", queries[0], background.keys) + background.bias
            dense = jnp.where(background.seen[:, None, None] > 0, shared, -jnp.inf)
        rows = [i[..., None] for i in jnp.indices(logits.shape[:3])]
        dense = dense.at[(*rows, slots)].set(logits[..., : ids.shape[1]], mode="drop")
        extra = logits[..., ids.shape[1] :]  # the class token
        weights = jax.nn.softmax(jnp.concatenate([dense, extra], -1), -1)[..., : self.n_genes].mean(1)
        return weights.reshape(*inputs["cell_mask"].shape, *weights.shape[1:])

    def table(self) -> Array:
        """Return the vectors of all tokens: genes, mask, class. [V + 2, seq_dim] or one row less"""
        mask = self.mask_vector if self.mask_token == "learned" else jnp.zeros(self.seq_dim)
        rows = [self.vectors, mask[None], *([self.class_vector[None]] if self.n_classes else [])]
        return jnp.concatenate(rows)

    def flat(self, x: Array) -> Array:
        """Return the cells of all bags one after the other. [B, C, ...] -> [N, ...]"""
        return x.reshape(-1, *x.shape[2:])

    def check(self) -> None:
        """Raise ValueError for unknown options."""
        check_choices(self, {"zero_mask": ZEROS, "mask_token": ("learned", "zero"), "value_scale": SCALES})
        if self.in_order and self.value_scale != "before_norm":
            raise ValueError(f"in_order with value_scale={self.value_scale!r}: the original's sums are of before_norm")


class Head(nn.Module):
    """norm, linear, gelu, linear: both as wide as the output. `positive`: the last weights start above 0."""

    fan_in: int
    features: int
    positive: bool = False

    def setup(self) -> None:
        self.norm = LayerNorm()
        self.linear_0 = torch_linear(self.fan_in, self.features)
        start = (lambda *drawn: jnp.abs(fan_in_uniform(*drawn))) if self.positive else fan_in_uniform
        self.linear_1 = torch_linear(self.features, self.features, kernel_init=start)

    def __call__(self, x: Array) -> Array:  # [N, M, S] -> [N, M, features]
        return self.linear_1(gelu(self.linear_0(self.norm(x.astype(jnp.float32)))))


class GeneBias(nn.Module):
    """A number for each gene, at first that of `start` [V]."""

    @nn.compact
    def __call__(self, genes: Array, start: Array) -> Array:  # [N, M] -> [N, M]
        return self.param("bias", lambda key: start)[genes]


def gene_vectors(variables: Mapping[str, Any], n_genes: int) -> Array:
    """Return the table of gene vectors. [V, D]"""
    return variables["params"]["genes"][:n_genes]


def flops(model: Model, inputs: dict[str, Any], embed: bool = False) -> float:
    """Return the FLOPs of one forward pass, with `embed` of what the cells' embeddings take of it; see the contract."""
    n_bags, n_cells, n_seen = inputs["genes"].shape
    n, q, d, s = n_bags * n_cells, model.query_len, model.query_dim, model.seq_dim
    asked = inputs["targets"].shape[2] + bool(model.n_classes)
    shared = 2 * model.n_genes * s * d + q * d * d  # keys and values of genes, the latents' queries
    encoder = 2 * q * n_seen * d + 3 * q * d * d
    if model.in_order:
        shared, encoder = q * d * d, 2 * model.n_genes * (s + q) * d + 3 * q * d * d
    elif model.zero_mask == "additive_one":
        encoder += q * model.n_genes * (HEADS + d)
        shared += q * model.n_genes * d
    process = model.num_layers * q * (4 * d * d + 2 * q * d + 2 * d * model.ffn_dim)
    decoder = asked * (4 * s * s + 2 * q * s) + 2 * q * d * s
    heads = asked * s + (s + model.n_classes) * model.n_classes
    return 2.0 * (shared + n * (encoder + process + (0 if embed else decoder + heads)))
