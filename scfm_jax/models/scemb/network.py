"""The network of scEMB: vectors of genes and of their positions, BERT's blocks, a decoder tied to the table of genes.

The genes to name are gathered before the decoder, so its product with 20,000 gene vectors is made for them alone. In
evaluation the embedding is that of the cell with nothing hidden.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from scfm_jax.layers.choices import check_choices
from scfm_jax.layers.dropout import dropped
from scfm_jax.layers.norms import LayerNorm
from scfm_jax.layers.platform import platform
from scfm_jax.layers.product import dot_general
from scfm_jax.layers.remat import REMAT
from scfm_jax.layers.transformer import ACTIVATIONS, Block, normal
from scfm_jax.models.scemb.inputs import PAD, SPECIAL
from scfm_jax.types import Array, Outputs

SIZES = {"n_genes": "genes"}
TUNING = {
    "lora": (r"^blocks?(_\d+)?/(query|value)/kernel$",),
    "inputs": ("^word$", "^position$", "^type$", "^norm_embed/"),
    "layers": (("block",),),
    "visible": {"mask_rate": 0.0},
}


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
        return not (self.scan or self.is_mutable_collection("intermediates") or platform() == "gpu")

    def embed(self, tokens: Array, positions: Array, train: bool) -> Array:
        """Return the vectors of the tokens: gene, position and token type 0, normalised. [N, T, D]"""
        x = self.tables["word"][tokens] + self.tables["position"][positions] + self.tables["type"][0]
        x = self.norm_embed(x).astype(self.dtype)
        self.sow("intermediates", "embeddings", x)
        return dropped(x, self.dropout, self.make_rng("dropout")) if train and self.dropout else x

    def features(self, x: Array) -> Array:
        """Return what the decoder's table is multiplied with. [..., D]"""
        return self.norm_head(ACTIVATIONS[self.activation](self.transform(x)))

    def check(self) -> None:
        """Raise ValueError for sizes that do not fit and for unknown options."""
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


def gene_vectors(variables: Mapping[str, Any], n_genes: int) -> Array:
    """Return the table of gene vectors, without those of padding and mask. [V, D]"""
    return variables["params"]["word"][-n_genes:]


def flops(model: Model, inputs: dict[str, Any], embed: bool = False) -> float:
    """Return the FLOPs of one forward pass, with `embed` of what the cells' embeddings take of it; see the contract."""
    length, d = inputs["tokens"].shape[-1], model.embed_dim
    named = inputs["places"].shape[-1] if "places" in inputs and not embed else 0
    asked = 2 * d * d + 2 * d * model.ffn_dim + 2 * d * (length + model.prefix)  # of each token that asks
    asking = model.num_layers * length - (length - named if named and not model.scan else 0)
    total = asking * asked + model.num_layers * length * 2 * d * d + named * d * (d + model.n_genes + SPECIAL)
    return 2.0 * math.prod(inputs["tokens"].shape[:2]) * total
