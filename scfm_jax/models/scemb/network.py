"""scEMB: the highest-ranked genes of a cell as a sentence, masked genes to be named (Hsieh et al., bioRxiv 2024).

A cell is the sequence of its expressed genes, most expressed first, at most 2,048. A gene's vector is the sum of its
own and that of its position: the bin of its expression among the cell's, or its rank. BERT names the hidden genes.

Neither code nor weights were released. What the paper leaves open, or says in two ways, is an option; the defaults are
those of its text, then of its nearest relatives (BERT of HuggingFace, scGPT's bins, Geneformer's ranks):
  position      bin (Fig. 1: positions "preserve the order of real expression values") | rank (Geneformer)
  n_bins        bins of the expressed genes: 100 (paper); scGPT counts the zero as a bin, so its 100 are 99 here
  ties          one (the highest bin of equal values) | both (scGPT: in training drawn from all bins of equal values)
  mask_replace  80 % mask, 10 % another gene, 10 % kept (BERT) | (1, 0, 0) (the text: "masked")
  cell_layer    last (the paper's perturbations) | all_layers (its fine-tuning: the mean of all layers)
  embed_dim     768; the caption of Fig. 5 says 786
  how           of `perturb`: mask (paper) | delete (Geneformer)

Differences on purpose: the genes to name are gathered before the decoder, so its product with 20,000 gene vectors is
made for them alone; there is room for four standard deviations more than expected, and what would not fit is not
hidden. A gene put in another's place is never a special token. In evaluation the embedding is that of the cell with
nothing hidden. The network names genes, not how much of them there is, so there is no `impute`.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.product import dot_general
from scfm_jax.layers.remat import REMAT
from scfm_jax.models.scemb.dropout import dropped
from scfm_jax.models.scemb.softmax import cross_entropy
from scfm_jax.models.scemb.transformer import ACTIVATIONS, Block, normal
from scfm_jax.types import Array, Batch, Outputs

SIZES = {"n_genes": "genes"}
PAD, MASK, SPECIAL = 0, 1, 2  # token ids; gene 0 is token 2
POSITIONS = ("bin", "rank")
TUNING = {
    "lora": (r"^blocks?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^word$", "^position$", "^type$", "^norm_embed/"),
    "layers": (("block",),),
    "visible": {"mask_rate": 0.0},
}


# ------------------------------------------------------------------------------------------------- inputs and masking


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    max_len: int = 2048,
    target_sum: float = 1e6,
    position: str = "bin",
    n_bins: int = 100,
    ties: str = "one",
    mask_rate: float = 0.15,
    mask_replace: Sequence[float] = (0.8, 0.1, 0.1),
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into sentences of genes, and hide some of them.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract); no two store genes share a slot below V.
      max_len: genes of a sentence; lower-ranked ones are left out (bins are those of all).
      target_sum: counts of a cell, over the model's genes, are scaled to this sum before log1p.
      position: what the second vector of a gene stands for, "bin" or "rank".
      ties: bin of equal values, see above.
      mask_rate: share of genes to name; 0 hides none, and then nothing can be scored.
      mask_replace: shares of these that become the mask, become another gene, stay.
      draws: recorded "mask" bool and "tokens" [B, C, T] instead of `rng`.

    Returns a dict: tokens [B, C, T], PAD in the padding; positions [B, C, T]; values [B, C, T], log1p of the scaled
    counts; edges [B, C, n_bins] with position "bin"; cell_mask, labels; and of the genes to name: masked [B, C, T],
    the tokens that the network sees instead; places, targets, weights [B, C, M], their places in the sentence, what
    they are, and 1, or 0 where there are fewer.
    """
    if position not in POSITIONS or ties not in ("one", "both"):
        raise ValueError(f"position {position!r}, ties {ties!r}: there are {', '.join(POSITIONS)}, and one, both")
    n_genes = constants["measured"].shape[1]
    slots = constants["slots"][batch.genes]  # [B, C, P]
    counts = jnp.where(slots < n_genes, batch.counts, 0).astype(jnp.float32)
    values = jnp.log1p(counts * (target_sum / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)))
    descending, slots = jax.lax.sort((jnp.where(counts > 0, -values, jnp.inf), slots), num_keys=2)
    values = jnp.where(jnp.isfinite(descending), -descending, 0)
    short, tie_key, mask_key = values[..., :max_len], *jax.random.split(rng)
    real = (short > 0) & batch.cell_mask[..., None]
    tokens = jnp.where(real, slots[..., :max_len] + SPECIAL, PAD)
    inputs = {"tokens": tokens, "values": jnp.where(real, short, 0)}
    inputs |= {"cell_mask": batch.cell_mask, "labels": batch.labels}
    if position == "bin":
        below, above = bin_edges(values, n_bins)
        noise = jax.random.uniform(tie_key, short.shape) if ties == "both" and train else None
        inputs |= {"positions": jnp.where(real, bins(short, below, above, noise), 0), "edges": above}
    else:
        inputs["positions"] = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    if not mask_rate:
        return inputs
    return inputs | hide(mask_key, tokens, n_genes, mask_rate, mask_replace, draws)


def bin_edges(values: Array, n_bins: int) -> tuple[Array, Array]:
    """Return `n_bins` quantiles of each cell's positive values, from least to greatest, rounded down and up to float32.

    As numpy's quantile (linear) computes them in float64: a value lies at or above an edge exactly where it does there.
    [..., P] in descending order -> two of [..., n_bins]
    """
    n = (values > 0).sum(-1, keepdims=True)
    with jax.enable_x64(True):
        at = np.linspace(0, 1, n_bins) * (n - 1).astype(jnp.float64)
        before = jnp.floor(at)
        part, before = at - before, before.astype(jnp.int32)
    low, high = (jnp.take_along_axis(values, jnp.maximum(n - 1 - before - after, 0), -1) for after in (0, 1))
    with jax.enable_x64(True):
        step = (high - low).astype(jnp.float64)
        edge = jnp.where(part < 0.5, low + step * part, high - step * (1 - part))
        near = edge.astype(jnp.float32)
        wide = near.astype(jnp.float64)
        below = jnp.where(wide > edge, jnp.nextafter(near, jnp.float32(-jnp.inf)), near)
        above = jnp.where(wide < edge, jnp.nextafter(near, jnp.float32(jnp.inf)), near)
    return below, above


def bins(values: Array, below: Array, above: Array, noise: Array | None = None) -> Array:
    """Return the number of edges at or below each value, 1 ... n_bins; with noise in [0, 1) one of all its bins."""
    most = (values[..., None] >= above[..., None, :]).sum(-1, dtype=jnp.int32)
    if noise is None:
        return most
    least = (values[..., None] > below[..., None, :]).sum(-1, dtype=jnp.int32)
    return jnp.ceil(noise * (least - most) + most).astype(jnp.int32)


def hide(
    key: Array,
    tokens: Array,
    n_genes: int,
    rate: float,
    replace: Sequence[float],
    draws: dict[str, Array] | None = None,
) -> dict[str, Array]:
    """Choose the genes to name and what the network sees in their place; see `prepare`."""
    if len(replace) != 3 or min(replace) < 0 or not math.isclose(sum(replace), 1, abs_tol=1e-6):
        raise ValueError(f"mask_replace={tuple(replace)}: must be three shares that add up to 1")
    length = tokens.shape[-1]
    keys, room = jax.random.split(key, 3), length
    if draws:
        hidden, masked = draws["mask"], draws["tokens"]
    else:
        room = min(length, 8 * math.ceil((length * rate + 4 * math.sqrt(length * rate * (1 - rate))) / 8))
        hidden = jax.random.bernoulli(keys[0], rate, tokens.shape) & (tokens != PAD)
        hidden = hidden & (jnp.cumsum(hidden, -1) <= room)
        dice = jax.random.uniform(keys[1], tokens.shape)
        other = jax.random.randint(keys[2], tokens.shape, SPECIAL, n_genes + SPECIAL)
        new = jnp.where(dice < replace[0], MASK, jnp.where(dice < replace[0] + replace[1], other, tokens))
        masked = jnp.where(hidden, new, tokens)
    places = jnp.sort(jnp.where(hidden, jnp.arange(length), length), -1)[..., :room]
    there, places = places < length, jnp.minimum(places, length - 1)
    targets = jnp.where(there, jnp.take_along_axis(tokens, places, -1), PAD)
    return {"masked": masked, "places": places, "targets": targets, "weights": there.astype(jnp.float32)}


def perturb(inputs: dict[str, Array], gene: Array | int, how: str = "mask") -> dict[str, Array]:
    """Return the inputs of cells in which `gene` (slot of the model) is masked or deleted, where it is there at all."""
    hit = inputs["tokens"] == gene + SPECIAL
    if how == "mask":
        return inputs | {"tokens": jnp.where(hit, MASK, inputs["tokens"])}
    if how != "delete":
        raise ValueError(f"how {how!r}: there are mask, delete")
    order = jnp.argsort(hit, axis=-1, stable=True)  # what is deleted goes behind the padding
    tokens = jnp.take_along_axis(jnp.where(hit, PAD, inputs["tokens"]), order, -1)
    if "edges" not in inputs:
        return inputs | {"tokens": tokens}
    positions = jnp.where(tokens == PAD, 0, jnp.take_along_axis(inputs["positions"], order, -1))
    return inputs | {"tokens": tokens, "positions": positions}


# ------------------------------------------------------------------------------------------------------------ network


class Model(nn.Module):
    """scEMB over cells, each by itself; `cells` is the mean over a cell's genes after the last layer or all [B, C, D].

    `genes` is what the last layer makes of each gene [B, C, T, D]. `n_positions` are n_bins + 1, or max_len for ranks.
    `prefix` keys and values are learned in each layer; vectors inputs["prefix"] [B, C, S, E] are projected to more.
    `remat`: False, True or "full" (keep only what goes into a block), "dots" (keep matrix products, too).
    Intermediates: embeddings; attention and output of every block, maps being computed only where they are asked for.
    """

    n_genes: int = 0
    n_positions: int = 101
    n_types: int = 2
    embed_dim: int = 768
    ffn_dim: int = 3072
    num_layers: int = 12
    num_heads: int = 12
    activation: str = "gelu"
    eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    cell_layer: str = "last"
    prefix: int = 0
    dtype: str = "float32"
    remat: bool | str = False
    scan: bool = False

    def setup(self) -> None:
        self.check()
        block = Block
        if self.remat:
            policy = REMAT["full" if self.remat is True else self.remat]
            block = nn.remat(Block, policy=policy, prevent_cse=not self.scan, static_argnums=(4,))
        sizes = {"word": self.n_genes + SPECIAL, "position": self.n_positions, "type": self.n_types}
        self.tables = {name: self.param(name, normal, (size, self.embed_dim)) for name, size in sizes.items()}
        self.norm_embed, self.norm_head = LayerNorm(eps=self.eps), LayerNorm(eps=self.eps)
        rates = (self.dropout, self.attention_dropout)
        options = (self.num_heads, self.ffn_dim, *rates, self.activation, self.eps, self.prefix, self.dtype)
        if self.scan:
            block = nn.scan(
                block,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,
                length=self.num_layers,
            )
            self.blocks = block(*options)
        else:
            self.block = [block(*options) for _ in range(self.num_layers)]
        self.transform = nn.Dense(self.embed_dim, dtype=self.dtype, kernel_init=normal, dot_general=dot_general)
        self.decoder_bias = self.param("decoder_bias", nn.initializers.zeros, (self.n_genes + SPECIAL,))

    def __call__(self, inputs: dict[str, Any], train: bool = False) -> Outputs:
        self.check_inputs(inputs)
        if "masked" not in inputs:
            genes, cells, _ = self.network(inputs["tokens"], inputs, train)
            return Outputs(cells=cells, genes=genes)
        genes, cells, named = self.network(inputs["masked"], inputs, train)
        features = self.features(named)
        if not train:  # XLA drops the one of the two passes that is not used
            genes, cells, _ = self.network(inputs["tokens"], inputs, train)
        logits = {"features": features, "kernel": self.tables["word"], "bias": self.decoder_bias}
        return Outputs(cells=cells, genes=genes, logits=logits)

    def network(self, tokens: Array, inputs: dict[str, Any], train: bool) -> tuple[Array, Array, Array | None]:
        """Return (the last layer [B, C, T, D], embeddings of the cells [B, C, D], genes to name [B, C, M, D] or None).

        The last of unrolled layers works out the genes to name by themselves: in training XLA drops all others.
        """
        shape = tokens.shape
        real = (tokens != PAD).reshape(-1, shape[2])
        vectors = inputs.get("prefix")
        vectors = None if vectors is None else vectors.reshape(-1, *vectors.shape[2:])
        x = self.embed(tokens.reshape(real.shape), inputs["positions"].reshape(real.shape), train)
        if self.scan:
            x, means = self.blocks(x, real, vectors, train)
        else:
            means = []
            for block in self.block:
                before = x
                x, cells = block(x, real, vectors, train)
                means.append(cells)
        named = None
        if "places" in inputs:
            places = inputs["places"].reshape(-1, inputs["places"].shape[2])
            if self.names_alone():
                named, _ = self.block[-1](before, real, vectors, train, places)
            else:
                named = jnp.take_along_axis(x, places[..., None], 1)
            named = named.reshape(*shape[:2], *named.shape[1:])
        cells = means[-1] if self.cell_layer == "last" else sum(means) / self.num_layers
        return x.reshape(*shape, -1), cells.reshape(*shape[:2], -1), named

    def names_alone(self) -> bool:
        """Return whether the genes to name are worked out apart from the others in the last layer."""
        return not (self.scan or self.is_mutable_collection("intermediates") or jax.default_backend() == "gpu")

    def embed(self, tokens: Array, positions: Array, train: bool) -> Array:
        """Return the vectors of the tokens: gene, position and the one type there is, normalised. [N, T, D]"""
        x = self.tables["word"][tokens] + self.tables["position"][positions] + self.tables["type"][0]
        x = self.norm_embed(x).astype(self.dtype)
        self.sow("intermediates", "embeddings", x)
        return dropped(x, self.dropout, self.make_rng("dropout")) if train and self.dropout else x

    def features(self, x: Array) -> Array:
        """Return what the decoder's table is multiplied with. [..., D]"""
        return self.norm_head(ACTIVATIONS[self.activation](self.transform(x)))

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit and for options that there are not."""
        choices = {
            "activation": tuple(ACTIVATIONS),
            "cell_layer": ("last", "all_layers"),
            "remat": (False, True, *REMAT),
        }
        check_choices(self, choices)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads}: must divide embed_dim={self.embed_dim}")

    def check_inputs(self, inputs: dict[str, Any]) -> None:
        """Raise ValueError where positions may lie beyond their table."""
        if "edges" in inputs and inputs["edges"].shape[-1] + 1 != self.n_positions:
            raise ValueError(
                f"model.n_positions={self.n_positions}: must be inputs.n_bins + 1 = {inputs['edges'].shape[-1] + 1}"
            )
        if "edges" not in inputs and inputs["tokens"].shape[-1] > self.n_positions:
            raise ValueError(f"model.n_positions={self.n_positions}: must be at least inputs.max_len with ranks")


# ---------------------------------------------------------------------------------------------------------- objective


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, chunk: int = 8192
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (mean cross-entropy of the hidden genes' names, metrics as (weighted sum, weight)).

    All tokens are candidates. The decoder works on at most `chunk` genes at a time (0: on all at once).
    """
    if outputs.logits is None:
        raise ValueError("inputs.mask_rate=0 leaves nothing to score")
    head = outputs.logits
    nll, hits = cross_entropy(
        head["features"], head["kernel"], head["bias"], inputs["targets"], inputs["weights"], chunk
    )
    number = inputs["weights"].sum()
    return nll / jnp.maximum(number, 1), {"loss": (nll, number), "accuracy": (hits, number)}


def gene_logits(head: dict[str, Array]) -> Array:
    """Return the scores of all tokens, in float32; those of genes begin at SPECIAL. [..., D] -> [..., V + SPECIAL]"""
    kernel = head["kernel"].astype(head["features"].dtype)
    return jnp.einsum("...d,vd->...v", head["features"], kernel, preferred_element_type=jnp.float32) + head["bias"]


# ------------------------------------------------------------------------------------------------------ costs and sizes


def gene_ids(inputs: dict[str, Any]) -> Array:
    """Return the vocabulary id of each token, below 0 for what is no gene. [B, C, T]"""
    return inputs["tokens"] - SPECIAL


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of genes in the sentences, padding left out."""
    return (inputs["tokens"] != PAD).sum(dtype=jnp.int32)


def flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of one forward pass: two for every multiplication of a matrix product, from shapes alone."""
    length, d = inputs["tokens"].shape[-1], model.embed_dim
    named = inputs["places"].shape[-1] if "places" in inputs else 0
    asked = 2 * d * d + 2 * d * model.ffn_dim + 2 * d * (length + model.prefix)  # of each token that asks
    asking = model.num_layers * length - (length - named if named and not model.scan else 0)
    total = asking * asked + model.num_layers * length * 2 * d * d + named * d * (d + model.n_genes + SPECIAL)
    return 2.0 * math.prod(inputs["tokens"].shape[:2]) * total


TINY = dict(embed_dim=64, ffn_dim=128, num_layers=2, num_heads=4)
SMALL = dict(embed_dim=256, ffn_dim=512, num_layers=4, num_heads=4, attention_dropout=0.0)
GENEFORMER = dict(
    embed_dim=256, ffn_dim=512, num_layers=6, num_heads=4, activation="relu", n_positions=2048, dropout=0.02,
    attention_dropout=0.02,
)  # fmt: skip
VARIANTS = {
    "tiny": {"model": TINY},
    "small": {"model": SMALL},
    "paper": {},
    "geneformer": {"model": GENEFORMER, "inputs": {"position": "rank"}},
}
