"""Exceiver: a single-cell Perceiver IO with discrete noise masking (Connell, Khan, Keiser, LMRL 2022, 2210.14330).

A few learned latents read the genes of one cell, each the gene's vector times its shifted z-score; self-attention works
on the latents; queries made of gene vectors read them to predict the masked genes, and a class token the cell's label.

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published*" choose consistently:
  zero_mask     exclude (paper: latents do not see genes without counts) | additive_one (released weights: such genes
                get +1 on their logits, since a mask of floats was added)
  mask_token    learned (paper) | zero (code: a frozen zero vector)
  class_token_in_encoder   True (paper: also among the genes that the latents read) | False (code: a query alone)
  scaler        train (statistics of the training cells, for all) | per_split (code: validation cells have their own)
  explained variance   of all masked entries | `slotwise`, as the code logs it: per mask slot, then the mean
Shared by both, kept: z-scores are clipped at 10 from above only and targets are clipped with them; all layers of the
latents start from the same weights (`same_start`); decoder and encoder have four heads whatever `num_heads` is.
The paper's results are of a model with labels; the released weights are one without (8 layers) and one with (1 layer).

Differences on purpose: a gene's key in a cell is s A, with A the same in all cells and s a number, so keys and values
are projected once per gene; genes without a count have the same s in all cells, so what latents make of them is one
matrix product of the whole batch, and only expressed genes are looked at cell by cell. Genes that a study did not
measure count as genes without a count (with zero_mask "exclude" there is no difference). In evaluation the embedding
is that of the cell with nothing hidden. Cells with too few genes to hide are not dropped but not scored.

What a training step of 64 cells x 2,000 expressed of 19,067 genes must do at least (128 latents of width 4, 8 layers):
67 M exponentials of the encoder and 134 M error functions of the MLPs, twice each, and 34 M exponentials of the
latents' self-attention, twice: 0.5 G, 0.25 s at 1 ns each on two cores. Additive zeros: 2 x 3 x 1.3 GFLOP more.
Bytes: 64 x 19,067 floats (5 MB) and 64 x 2,048 x 9 (5 MB) are the largest arrays that the algorithm asks for.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers import sparse
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.linear import fan_in_uniform
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.parts import by_cells
from scfm_jax.models.exceiver import scaler as gene_statistics
from scfm_jax.models.exceiver.latent_attention import SAVED, Background, attend, look, merged, room
from scfm_jax.models.exceiver.perceiver import CrossBlock, LatentStack, columns, gelu, torch_linear
from scfm_jax.types import Array, Batch, Outputs

SIZES = {"n_genes": "genes", "n_classes": "tissue"}
FITTED = ("mean", "scale")
HEADS = 4  # of both cross-attentions
CLIP, SHIFT = 10.0, 1.0
TUNING = {
    "lora": (r"^(encoder|process/layers)/attention/(query|value)/kernel$",),
    "inputs": ("^genes$", "^mask$", "^class$", "^latents$", "^encoder/"),
    "layers": (("process/layer",),),
    "visible": {"mask_rate": 0.0, "n_mask": 0},
}
ZEROS = ("exclude", "additive_one")


# ------------------------------------------------------------------------------------------------ inputs and masking


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    target_sum: float = 1e4,
    mask_rate: float = 0.15,
    n_mask: int = 0,
    scaler: str = "train",
    label: str = "tissue",
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into shifted z-scores, and choose the expressed genes to hide and to predict.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract), and what `fit` adds: "mean" and "scale" [V]
        of log1p of normalised counts ("val_mean", "val_scale").
      target_sum: counts of a cell, over the model's genes, are scaled to this sum.
      n_mask: genes hidden in every cell that expresses twice as many, other cells are not scored; `fit` sets it. 0 or
        below: `mask_rate` of each cell's expressed genes.
      scaler: "per_split" takes the validation cells' own statistics in evaluation.
      label: of Batch.labels, what the class token predicts.
      draws: recorded "mask_ids" [B, C, M] instead of `rng`.

    Returns a dict: genes int32 [B, C, P], slots of expressed genes, V for none; values [B, C, P]; hidden bool
    [B, C, P]; targets int32 [B, C, M], slots of the hidden genes, their truth and weights [B, C, M]; zeros [V], the
    value of a gene without counts; label [B, C], -1 where unknown; cell_mask [B, C].
    """
    del step
    n_genes = constants["measured"].shape[1]
    counts = batch.counts.astype(jnp.float32)
    slots = jnp.where(counts > 0, constants["slots"][batch.genes], n_genes)
    counts = jnp.where(slots < n_genes, counts, 0)
    mean, scale = _scaler(constants, "val_" if scaler == "per_split" and not train else "", scaler)
    logs = jnp.log1p(counts * (target_sum / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)))
    at = jnp.minimum(slots, n_genes - 1)
    values = jnp.minimum((logs - mean[at]) / scale[at], CLIP) + SHIFT
    number = (slots < n_genes).sum(-1)  # expressed genes of each cell
    size = max(1, min(n_mask, slots.shape[2]) if n_mask > 0 else int(slots.shape[2] * mask_rate))
    if draws:
        places = (slots[..., None, :] == draws["mask_ids"][..., None]).argmax(-1)
        chosen = jnp.ones(places.shape, bool)
    else:
        # one draw for each gene of the model: neither padding nor the order in a file matters
        dice = jax.random.uniform(rng, (*slots.shape[:2], n_genes))
        dice = jnp.where(slots < n_genes, jnp.take_along_axis(dice, at, -1), -1.0)
        places = jax.lax.top_k(dice, size)[1]  # [B, C, M]
        wanted = jnp.where(number >= 2 * n_mask, n_mask, 0) if n_mask > 0 else (number * mask_rate).astype(jnp.int32)
        chosen = jnp.arange(size) < wanted[..., None]
    chosen = chosen & batch.cell_mask[..., None]
    hidden = _marked(places, chosen, slots.shape[2])
    return {
        "genes": slots,
        "values": values,
        "hidden": hidden,
        "targets": jnp.take_along_axis(at, places, -1),
        "truth": jnp.take_along_axis(values, places, -1),
        "weights": chosen.astype(jnp.float32),
        "zeros": jnp.minimum(-mean / scale, CLIP) + SHIFT,
        "label": batch.labels.get(label, jnp.full_like(batch.study, -1)),
        "cell_mask": batch.cell_mask,
    }


def fit(
    cells: Mapping[str, Iterable[Mapping[str, np.ndarray]]], constants: dict[str, np.ndarray], inputs: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (constants, inputs) with what one pass over the cells tells: the scaler, and the number of genes to hide.

    The scaler is the mean and the population deviation of log1p of normalised counts over all cells whose study
    measured the gene, zeros included; a gene that never varies has deviation 1. In float64, in one pass.

    Args:
      cells: batches (dicts with the fields of `Batch`, numpy) of "train" and, where there are any, of "val".
      constants: "slots" [G + 1], "measured" [S, V].
      inputs: keywords of `prepare`; an `n_mask` of 0 becomes int(mask_rate x median expressed genes of a cell).
    """
    known = {"target_sum": 1e4, "mask_rate": 0.15, "n_mask": 0, "scaler": "train"} | inputs
    table = np.asarray(constants["measured"])
    fitted = dict(constants)
    for part, prefix in {"train": "", "val": "val_"}.items():
        if part not in cells or (part == "val" and known["scaler"] != "per_split"):
            continue
        statistics = gene_statistics.Statistics(np.asarray(constants["slots"]), table, known["target_sum"])
        for batch in cells[part]:
            statistics.add(batch)
        fitted |= {f"{prefix}{name}": value for name, value in statistics.scaler().items()}
        if part == "train" and known["n_mask"] == 0:
            known["n_mask"] = max(1, int(statistics.median() * known["mask_rate"]))
    return fitted, inputs | {"n_mask": known["n_mask"]}


def _scaler(constants: dict[str, Array], prefix: str, kind: str) -> tuple[Array, Array]:
    if kind not in ("train", "per_split"):
        raise ValueError(f"scaler {kind!r}: there are train, per_split")
    if lacking := [name for name in FITTED if name not in constants]:
        raise ValueError(f"constants: no {', '.join(lacking)} of the genes; `fit` takes them from the cells at hand")
    return tuple(constants.get(f"{prefix}{name}", constants[name]) for name in FITTED)


def _marked(places: Array, chosen: Array, width: int) -> Array:
    """Return True at the chosen places. [B, C, M] -> [B, C, width]"""
    flat, there = places.reshape(-1, places.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
    rows = jnp.arange(flat.shape[0])[:, None]
    marked = jnp.zeros((flat.shape[0], width), bool).at[rows, flat].max(there)
    return marked.reshape(*places.shape[:2], width)


# ------------------------------------------------------------------------------------------------------------ network


class Model(nn.Module):
    """Exceiver over single cells; `cells` of the outputs is all latents of a cell, one after the other [B, C, Q D].

    `genes` is what the decoder makes of every gene [B, C, V, seq_dim], in evaluation. `chunk`: attention weights or
    hidden units that exist at a time, 0 for what suits the backend. `n_classes` 0: no class token.
    `in_order`: the encoder sums as the original does, every gene of every cell a key of its own, values added gene
    after gene in float32. Slower and less exact (1e-5 of the latents with 19,067 genes): to compare with the original.
    `positive_head`: the last weight of the gene head starts above 0, as its targets are. Both layers of the released
    head are one number wide, and where that draw is negative (a seed in two) the one hidden unit is soon where GELU
    has no gradient: the output is a constant for thousands of updates.
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

        found = by_cells(block, room(self.chunk) // (ids.shape[1] * rows.shape[1]), SAVED, ids, x, bias)
        background = self.background(inputs, rows)
        if background is not None:
            found = merged(found, look(queries[0], background, self.chunk))
        return found[0] + constant

    def rows(self) -> tuple[Array, Array]:
        """Return what keys and values of all tokens are made of (see `CrossBlock.tables`), side by side, and u."""
        a, u, variance, constant = self.encoder.tables(self.table())
        return jnp.concatenate([a, u, variance[:, None]], -1), constant.reshape(HEADS, 1, -1)

    def expressed(self, inputs: dict[str, Any], hidden: Array) -> tuple[Array, Array, Array]:
        """Return token, value and bias of the expressed genes, with a class token in the encoder of one more. [N, P]"""
        ids, x = self.flat(inputs["genes"]), self.flat(inputs["values"])
        bias = jnp.where(ids < self.n_genes, 0.0, -jnp.inf)
        masked = self.flat(hidden)
        return self.with_class(jnp.where(masked, self.n_genes, ids), jnp.where(masked, SHIFT, x), bias)

    def keys(self, rows: Array, ids: Array, x: Array) -> tuple[Array, Array]:
        """Return keys and values of tokens [N, P] with their values. [N, H, K, P] each"""
        rows = rows[ids]  # one gather, hence one scatter backwards
        scaled = (x * jax.lax.rsqrt(x**2 * rows[..., -1] + 1e-5))[..., None] * rows[..., :-1]
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
        """Raise ValueError for options that there are not."""
        check_choices(self, {"zero_mask": ZEROS, "mask_token": ("learned", "zero")})


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


# ---------------------------------------------------------------------------------------------------------- objective


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, class_weight: float = 1.0, slotwise: bool = False
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean squared error of the hidden genes plus cross-entropy of the label, metrics as (sum, weight)).

    "explained_variance" is 1 - var(error) / var(truth) over all hidden genes of a batch, batches pooled by their
    variance; `slotwise` adds "slot_variance", as the original logs it, of each batch.
    """
    truth, weights = inputs["truth"], inputs["weights"]
    error = outputs.logits["genes"] - truth
    number = weights.sum()
    squares = (weights * error**2).sum()
    mse = squares / jnp.maximum(number, 1)
    total, unexplained = (_scatter(x, weights) for x in (truth, error))
    metrics = {"loss": (squares, number), "mse": (squares, number)}
    metrics["explained_variance"] = (total - unexplained, total)
    if slotwise:
        flat = [x.reshape(-1, x.shape[-1]) for x in (outputs.logits["genes"], truth, weights)]
        metrics["slot_variance"] = (slot_variance(*flat), jnp.ones(()))
    if "classes" not in outputs.logits:
        return mse, metrics
    label, logits = inputs["label"], outputs.logits["classes"].astype(jnp.float32)
    known = ((label >= 0) & inputs["cell_mask"]).astype(jnp.float32)
    right = jnp.maximum(label, 0)[..., None]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), right, -1)[..., 0]
    nll, hits = (known * nll).sum(), (known * (logits.argmax(-1) == label)).sum()
    metrics |= {"cross_entropy": (nll, known.sum()), "accuracy": (hits, known.sum())}
    return mse + class_weight * nll / jnp.maximum(known.sum(), 1), metrics


def slot_variance(predicted: Array, truth: Array, weights: Array | None = None) -> Array:
    """Return the explained variance of each column over the rows, then the mean over columns. [N, M] -> scalar

    As torchmetrics has it: 1 where nothing is unexplained, 0 where truth does not vary and something is.
    """
    weights = jnp.ones(truth.shape) if weights is None else weights
    total, unexplained = (_scatter(x, weights, 0) for x in (truth, truth - predicted))
    share = jnp.where(total > 0, 1 - unexplained / jnp.where(total > 0, total, 1), 0.0)
    each = jnp.where(unexplained > 0, share, 1.0)
    there = weights.any(0)
    return jnp.where(there, each, 0).sum() / jnp.maximum(there.sum(), 1)


def _scatter(x: Array, weights: Array, axis: int | None = None) -> Array:
    """Return the weighted sum of squared distances from the mean."""
    mean = (weights * x).sum(axis, keepdims=True) / jnp.maximum(weights.sum(axis, keepdims=True), 1)
    return (weights * (x - mean) ** 2).sum(axis)


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
    """Return the z-scores read out for every gene, turned back into counts. [B, C, V]

    The latents read what is visible; hidden genes are left out, as training leaves out genes without counts, and not
    shown as masks: which of them are expressed is not known. The visible counts are normalised by their own sum, and
    the prediction is undone by it; where nothing is visible, it is scaled to the estimated total. The model was trained
    on masked genes that are expressed, so it does not predict zeros. Arguments: the contract.
    """
    del loss
    given = prepare(batch, constants, jax.random.key(0), step=0, train=False, **inputs)
    shape, n_genes = batch.cell_mask.shape, constants["measured"].shape[1]
    every = jnp.broadcast_to(jnp.arange(n_genes), (*shape, n_genes))
    given |= {"hidden": jnp.zeros_like(given["hidden"]), "targets": every}
    values = model.apply(variables, given, train=False).logits["genes"]
    kind = inputs.get("scaler", "train")
    mean, scale = _scaler(constants, "val_" if kind == "per_split" else "", kind)
    relative = jnp.maximum(jnp.expm1((values - SHIFT) * scale + mean), 0)
    visible = batch.counts.sum(-1)
    whole = jnp.maximum(jnp.where(constants["measured"][0], relative, 0).sum(-1), 1e-9)
    factor = jnp.where(visible > 0, visible / inputs.get("target_sum", 1e4), asked["depth"] / whole)
    return relative * factor[..., None]


# ------------------------------------------------------------------------------------------------------ costs and sizes


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of expressed genes of real cells."""
    expressed = inputs["genes"] < inputs["zeros"].shape[0]
    return (expressed & inputs["cell_mask"][..., None]).sum().astype(jnp.int32)


def flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of one forward pass: two for every multiplication of a matrix product, from shapes alone."""
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
    return 2.0 * (shared + n * (encoder + process + decoder + heads))


PUBLISHED = dict(seq_dim=4, query_len=128, query_dim=4, num_layers=8, num_heads=4, ffn_dim=2048)
SAFE = dict(positive_head=True)
AS_TRAINED = dict(zero_mask="additive_one", mask_token="zero")
VARIANTS = {
    "tiny": {"model": dict(seq_dim=8, query_len=16, query_dim=8, num_layers=1, num_heads=4, ffn_dim=64, **SAFE)},
    "small": {"model": dict(seq_dim=32, query_len=64, query_dim=32, num_layers=2, num_heads=4, ffn_dim=256, **SAFE)},
    "paper": {"model": dict(PUBLISHED, num_layers=1, class_token_in_encoder=True)},
    "published": {"model": dict(PUBLISHED, **AS_TRAINED), "inputs": {"scaler": "per_split"}},
    "published_classifier": {
        "model": dict(PUBLISHED, num_layers=1, n_classes=24, **AS_TRAINED),
        "inputs": {"scaler": "per_split"},
    },
}
