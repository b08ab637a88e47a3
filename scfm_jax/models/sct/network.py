"""sCT, sCellTransformer: fifty cells times twenty thousand genes in one sequence (InstaDeep, 2024/25).

Every gene of every cell of a bag is a token: the bin of its expression. A convolution tower shortens the sequence
256-fold, a transformer mixes what is left, a transposed tower restores it with skip connections, and a head scores the
bins of masked genes.

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published" choose consistently:
  pooling    max (paper) | avg (code)
  pos        none (paper) | rope (code: rotary over the whole bag, whatever the border of cells)
  spatial    none | paper (cosine and sine of both coordinates) | code (cosine of x, sine of y, other scales)
  norm       shared (both) | standard, no_affine, none (the paper's ablations)
  n_bins     5 (both; zero is the first) | 15 (ablation); the ids after the bins are mask and padding
  edges      float64 (the released notebook under its numpy < 2) | float32 (under numpy 2): they differ where a value
             lies on an edge
  log        log1p of counts per 10,000 | counts as they are: the notebook reads normalised values
Released code has no training. Masks, loss and schedule are the paper's; the padding of a cell is never masked nor
scored.

Differences on purpose: cells that are padding (short bags) are silenced before every convolution that reaches over a
border and in attention, so a short bag gives what it gives alone; genes that a study did not measure are zeros for the
network, as published, but are masked and scored only with `score_unmeasured`; in evaluation the embedding is that of
the bag with nothing hidden, whatever the mask that the loss scores.
"""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers import bags, position, sparse
from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.parts import chunk_parts
from scfm_jax.layers.remat import REMAT
from scfm_jax.models.sct import bins
from scfm_jax.models.sct.convolution import NORMS, POOLINGS, Convolution, Stage, reach, truncated, with_neighbours
from scfm_jax.models.sct.rotary import Block
from scfm_jax.types import Array, Batch, Outputs

SIZES = {"n_genes": "genes"}
SAMPLE = "bag"  # cells attend to each other, as many as were trained together
MASKS = ("stratified", "uniform", "cells", "genes", "none")
TUNING = {
    "lora": (r"^blocks?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^tokens$", "^position", "^stem/"),
    "layers": (("down",), ("block",), ("up",)),
    "visible": {"mask": "none"},
}


# ------------------------------------------------------------------------------------------------- inputs and masking


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    n_bins: int = 5,
    target_sum: float = 1e4,
    log: bool = True,
    edges: str = "float64",
    mask: str = "stratified",
    zero_rate: float = 0.01,
    nonzero_rate: float = 0.15,
    mask_cells: int = 1,
    mask_genes: Sequence[int] = (),
    score_unmeasured: bool = False,
    coords: str = "relative",
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into bins of expression, and choose the genes to hide and to score.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract); no two store genes share a slot below V.
      target_sum: counts of a cell, over the model's genes, are scaled to this sum; 0 leaves them.
      log: bin log1p of that.
      edges: precision of the bins' edges, see `bins.bin_edges`.
      mask: stratified (zeros with `zero_rate`, others with `nonzero_rate`), uniform (all with `nonzero_rate`), cells
        (`mask_cells` whole cells of a bag), genes (the slots `mask_genes`, in every cell), none.
      score_unmeasured: mask and score also genes that a study of the bag did not measure.
      coords: "relative" to the smallest of the bag, or "raw".
      draws: a recorded "mask" [B, C, V] instead of `rng`.

    Returns a dict: tokens [B, C, V], bin of each gene, 0 for no expression; mask bool [B, C, V] of those to hide,
    absent with mask "none"; edges [B, C, n_bins], scale and log [B, C], which turn bins back into counts; cell_mask,
    coords.
    """
    measured = constants["measured"]
    slots = constants["slots"][batch.genes]  # [B, C, P]
    counts = jnp.where(slots < measured.shape[1], batch.counts, 0).astype(jnp.float32)
    values, scale = bins.normalized(counts, target_sum, log)
    borders = bins.bin_edges(values, n_bins, edges)
    tokens = sparse.scatter(slots, bins.binned(values, borders), measured.shape[1])
    inputs = {"tokens": tokens, "edges": borders, "scale": scale, "log": jnp.full(scale.shape, log)}
    inputs["cell_mask"] = batch.cell_mask
    inputs["coords"] = _relative(batch.coords, batch.cell_mask) if coords == "relative" else batch.coords
    if mask == "none":
        return inputs
    hidden = (draws or {}).get("mask")
    if hidden is None:
        rates = (nonzero_rate if mask == "uniform" else zero_rate, nonzero_rate)
        hidden = draw_mask(rng, mask, tokens, batch.cell_mask, rates, mask_cells, mask_genes)
    scored = batch.cell_mask[..., None]
    if not score_unmeasured:
        scored = scored & bags.measured_genes(measured, batch)[:, None]
    return inputs | {"mask": hidden & scored}


def draw_mask(
    rng: Array,
    kind: str,
    tokens: Array,
    cell_mask: Array,
    rates: tuple[float, float],
    n_cells: int,
    genes: Sequence[int],
) -> Array:
    """Draw which genes are hidden, bool [B, C, V]; `rates` are those of zeros and of others."""
    if kind in ("stratified", "uniform"):
        return jax.random.bernoulli(rng, jnp.where(tokens > 0, rates[1], rates[0]))
    if kind == "cells":
        order = jnp.argsort(jax.random.uniform(rng, cell_mask.shape) + ~cell_mask, axis=1)
        return jnp.broadcast_to((jnp.argsort(order, axis=1) < n_cells)[..., None], tokens.shape)
    if kind == "genes":
        chosen = jnp.zeros(tokens.shape[-1], bool).at[jnp.asarray(genes, jnp.int32)].set(True)
        return jnp.broadcast_to(chosen, tokens.shape)
    raise ValueError(f"mask {kind!r}: there are {', '.join(MASKS)}")


def _relative(coords: Array, mask: Array) -> Array:
    """Move each bag's coordinates so that the smallest are 0; NaN stays NaN. [B, C, 2]"""
    return coords - jnp.min(jnp.where(mask[..., None] & ~jnp.isnan(coords), coords, jnp.inf), 1, keepdims=True)


# ------------------------------------------------------------------------------------------------------------ network


class Model(nn.Module):
    """sCT over bags of cells; `cells` of the outputs is the mean of a cell's positions after the transformer [B, C, D].

    `genes` is what the towers make of each gene [B, C, V, token_dim]; `cell_layer` "mean" averages over the blocks.
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
    spatial: str = "none"
    num_scales: int = 10
    sigma_min: float = 1.0
    sigma_max: float = 10.0
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
        options = (*options, self.prefix)
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
        known = ~jnp.isnan(coords).any(-1, keepdims=True)
        scales = (self.num_scales, self.sigma_min, self.sigma_max)
        waves = position.scale_waves(jnp.where(known, coords, 0), self.spatial, *scales)
        place = jnp.where(known, waves @ self.position["kernel"] + self.position["bias"], 0)
        return x + place[:, :, None].astype(x.dtype)

    def transform(self, x: Array, real: Array) -> tuple[Array, Array]:
        """Return (x after the transformer [B, C, L, D], embeddings of the cells [B, C, D])."""
        shape = x.shape
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
        cells = sum(states) / self.num_layers if self.cell_layer == "mean" else x
        return x.reshape(shape), cells.reshape(shape).astype(jnp.float32).mean(2)

    def linear(self, name: str, fan_in: int, features: int) -> dict[str, Array]:
        """Return kernel and bias of a linear map."""
        kernel = self.param(f"{name}_kernel", lambda key: truncated(key, (fan_in, features), fan_in))
        return {"kernel": kernel, "bias": self.param(f"{name}_bias", nn.initializers.zeros, (features,))}

    def widths(self) -> list[int]:
        """Return the channels between the stages of the towers: evenly spaced, rounded up to a multiple of 32."""
        even = np.linspace(self.token_dim, self.embed_dim, self.num_downsamples + 1)
        return [int(width) for width in np.ceil(even / 32) * 32]

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit and for options that there are not."""
        choices = {"pos": ("rope", "none"), "spatial": ("none", "code", "paper"), "cell_layer": ("last", "mean")}
        choices |= {"pooling": POOLINGS, "norm": NORMS, "remat": (False, True, *REMAT)}
        check_choices(self, choices)
        if self.token_dim % 32 or self.embed_dim % 32:
            raise ValueError(f"token_dim={self.token_dim}, embed_dim={self.embed_dim}: must be multiples of 32")


# ---------------------------------------------------------------------------------------------------------- objective


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, chunk: int = 32768
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean cross-entropy of the masked genes, metrics as (weighted sum, weight)).

    The head works on at most `chunk` tokens at a time (0: on all at once), and once more in the backward pass, so its
    hidden layer never exists whole.
    """
    features, head = outputs.logits["features"], outputs.logits["head"]
    padding = features.shape[2] - inputs["tokens"].shape[2]
    pad = functools.partial(jnp.pad, pad_width=((0, 0), (0, 0), (0, padding)))
    truth = pad(inputs["tokens"])
    hidden = pad(inputs["mask"]) if "mask" in inputs else jnp.zeros(truth.shape, bool)
    parts = chunk_parts(truth.shape, chunk)

    def split(x: Array) -> Array:  # [B, C, L, ...] -> [parts, B, C, L / parts, ...]: cells stay on their devices
        return jnp.moveaxis(x.reshape(*x.shape[:2], parts, -1, *x.shape[3:]), 2, 0)

    def add(sums: Array, part: tuple[Array, Array, Array]) -> tuple[Array, None]:
        features, truth, hidden = part
        scores = gene_logits(features, head)
        wanted = jax.nn.one_hot(truth, scores.shape[-1], dtype=bool)
        nll = jax.nn.logsumexp(scores, -1) - jnp.where(wanted, scores, 0).sum(-1)
        hits = scores.argmax(-1) == truth
        kinds = jnp.stack([hidden & (truth == 0), hidden & (truth > 0)]).astype(jnp.float32)
        return sums + jnp.einsum("kbcl,mbcl->mk", kinds, jnp.stack([nll, hits, jnp.ones_like(nll)])), None

    whole = (split(features), split(truth), split(hidden))
    sums, _ = jax.lax.scan(jax.checkpoint(add, prevent_cse=False), jnp.zeros((3, 2)), whole)
    (nll, hits, number), total = sums, sums.sum(1)
    metrics = {"loss": (total[0], total[2]), "zeros": (nll[0], number[0]), "expressed": (nll[1], number[1])}
    metrics["expressed_accuracy"] = (hits[1], number[1])
    return total[0] / jnp.maximum(total[2], 1), metrics


def gene_logits(features: Array, head: list[dict[str, Array]]) -> Array:
    """Return the scores of all tokens, bins first, in float32: gelu before every linear map. [..., D] -> [..., V]"""
    for layer in head:
        features = jax.nn.gelu(features) @ layer["kernel"].astype(features.dtype)
        features = features + layer["bias"].astype(features.dtype)
    return features.astype(jnp.float32)


def predict(outputs: Outputs, inputs: dict[str, Any]) -> Array:
    """Return expected counts: the bins' middles weighted by their probabilities, `prepare` turned back. [B, C, V]"""
    scores = gene_logits(outputs.logits["features"][:, :, : inputs["tokens"].shape[2]], outputs.logits["head"])
    shares = jax.nn.softmax(scores[..., : inputs["edges"].shape[-1]], -1)
    return bins.expected_counts(shares, inputs["edges"], inputs["scale"], inputs["log"])


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
    """Return the probabilities of the bins, the scores of mask and padding left out. [B, C, V, n_bins]

    The head goes through the genes of one cell at a time. Arguments: the contract.
    """
    del loss
    given = prepare(batch, constants, jax.random.key(0), step=0, train=False, **{**inputs, "mask": "none"})
    given |= {name: asked[name] for name in ("tokens", "edges", "scale")} | {"mask": asked["hidden"]}
    logits = model.apply(variables, given, train=False).logits
    features = logits["features"][:, :, : asked["hidden"].shape[2]]
    n_bins = asked["edges"].shape[-1]

    def shares(cell: Array) -> Array:
        return jax.nn.softmax(gene_logits(cell, logits["head"])[..., :n_bins], -1)

    flat = jax.lax.map(shares, features.reshape(-1, *features.shape[2:]))
    return flat.reshape(*features.shape[:3], n_bins)


# ------------------------------------------------------------------------------------------------------ costs and sizes


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of gene positions of real cells."""
    return (inputs["cell_mask"].sum() * inputs["tokens"].shape[2]).astype(jnp.int32)


def flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of one forward pass: two for every multiplication of a matrix product, from shapes alone."""
    n_bags, n_cells, n_genes = inputs["tokens"].shape
    n, widths, vocab = model.num_downsamples, model.widths(), model.n_bins + 2
    length = n_cells * (n_genes + -n_genes % 2**n)
    total = length * model.token_dim * (vocab + 15 * model.token_dim)
    for i, (narrow, wide) in enumerate(itertools.pairwise(widths)):
        total += (length >> i) * (5 * narrow * wide + wide**2)  # down
        total += (length >> (i + 1)) * 5 * narrow * wide + (length >> i) * narrow**2  # up
    short, d, inner = length >> n, model.embed_dim, model.num_heads * model.key_size
    total += model.num_layers * short * (4 * d * inner + 3 * d * model.ffn_dim + 2 * short * inner)
    head = [widths[0], *[d] * model.head_layers, vocab]
    return 2.0 * n_bags * (total + length * sum(math.prod(pair) for pair in itertools.pairwise(head)))


SMALL = dict(num_downsamples=5, token_dim=32, embed_dim=256, ffn_dim=512, num_layers=2, num_heads=4)
PUBLISHED = dict(num_downsamples=8, token_dim=64, embed_dim=1024, ffn_dim=2048, num_layers=4, num_heads=16)
PUBLISHED |= {"cell_chunk": 10}
VARIANTS = {
    "tiny": {"model": dict(SMALL, num_downsamples=3, embed_dim=64, ffn_dim=96, num_layers=1, key_size=16)},
    "small": {"model": dict(SMALL)},
    "paper": {"model": dict(PUBLISHED, pooling="max", pos="none"), "inputs": {"score_unmeasured": True}},
    "published": {"model": dict(PUBLISHED), "inputs": {"score_unmeasured": True}},
}
