"""The network of CellPLM: cells embedded as sums of gene vectors, a transformer over them, a latent, a decoder."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import norms, sparse
from scfm_jax.layers.gene_start import start
from scfm_jax.layers.head import Head
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.position import Position
from scfm_jax.models.cellplm.decoder import HEAD_WIDTH, Decoder
from scfm_jax.models.cellplm.encoder import FAVOR_FEATURES, FAVOR_SIZE, Encoder
from scfm_jax.models.cellplm.latent import AE, GMVAE, LATENTS, VAE, PrintedGMVAE
from scfm_jax.types import Array, Outputs

SIZES = {"n_genes": "genes", "n_batches": "batch", "n_studies": "study"}
SAMPLE = True  # cells attend to each other: an embedding is defined on a whole tissue sample
TUNING = {
    "lora": (r"^encoder/layers?(_\d+)?/attention/(query|value)/kernel$",),
    "inputs": ("^genes$", "^embed_", "^position/", "^covariates$"),
    "layers": (("encoder/layer",),),
    "visible": {"mask_node_rate": 0.0},
}


class Model(nn.Module):
    """CellPLM over bags of cells; `cells` of the outputs is the latent [B, C, Z].

    `head`: "decoder" scores genes, "annotation" scores `n_classes` cell types, "embedder" stops at the latent.
    `prefix`: learned keys and values of each layer, see `layers.prefix`.
    Intermediates (collection "intermediates"): gene_embed, embedder, each layer's attention and output, pre_latent_norm
    and the parts of the mixture latent.
    """

    n_genes: int = 0
    n_batches: int = 0
    n_studies: int = 0
    n_platforms: int = 0
    n_classes: int = 0
    enc_mod: str = "flowformer"
    enc_hid: int = 1024
    enc_layers: int = 4
    enc_head: int = 8
    pe: str = "none"
    pe_missing: str = "cell"
    input_covariate: bool = False
    latent_mod: str = "gmvae"
    latent_dim: int = 512
    num_clusters: int = 16
    w_li: float = 1.0
    w_en: float = 1.0
    lamda: float = 0.5
    eval_noise: bool = False
    dec_mod: str = "nbmlp"
    dec_hid: int = 1024
    dec_layers: int = 2
    cov_absent: str = "mean"
    head: str = "decoder"
    norm: str = "groupnorm"
    dropout: float = 0.2
    dtype: str = "float32"
    remat: bool | str = False
    scan: bool = False
    prefix: int = 0

    @nn.compact
    def __call__(self, inputs: dict[str, Any], train: bool = False) -> Outputs:
        mask = inputs["cell_mask"]
        x = self.embed(inputs, train)
        x = Encoder(
            self.enc_mod, self.enc_layers, self.enc_head, self.dropout, self.norm, train, self.dtype, self.remat,
            self.scan, self.prefix, name="encoder",
        )(x, mask)  # fmt: skip
        x = norms.LayerNorm(name="pre_latent_norm")(x)
        self.sow("intermediates", "pre_latent", x)
        z, latent_loss, metrics = self.latent(train)(x, mask, inputs["step"], inputs.get("noise"))
        metrics = {name: (value, jnp.ones(())) for name, value in metrics.items()}
        outputs = Outputs(cells=z, aux_loss=latent_loss, metrics=metrics)
        if self.head == "embedder":
            return outputs
        if self.head == "annotation":
            classifier = Head(self.n_classes, self.dec_hid, self.dec_layers, self.dropout, train, name="head")
            return outputs.replace(logits=classifier(z))
        if self.head != "decoder":
            raise ValueError(f"head {self.head!r}: there are decoder, annotation, embedder")
        sizes = {"batch": self.n_batches, "study": self.n_studies, "platform": self.n_platforms}
        sizes = {name: size for name, size in sizes.items() if size}
        rows = inputs["counts"].shape[1]
        unknown = jnp.full_like(inputs["study"], -1)
        labels = {name: inputs.get(name, unknown)[:, :rows] for name in sizes}
        decoder = Decoder(
            self.dec_mod, self.n_genes, sizes, self.dec_hid, self.dec_layers, self.dropout, self.norm, self.cov_absent,
            train, self.dtype, name="decoder",
        )  # fmt: skip
        return outputs.replace(logits=decoder(z[:, :rows], labels))

    def embed(self, inputs: dict[str, Any], train: bool) -> Array:
        """Sum gene vectors weighted by log1p counts, add position and covariate, and pass one layer. [B, C, D]"""
        width = self.enc_hid
        vectors = inputs.get("gene_vectors")
        table = self.param("genes", lambda key: start(key, vectors, (self.n_genes, width), 0.005, "enc_hid"))
        places, columns = inputs.get("places", inputs["slots"]), inputs.get("columns")
        x = sparse.product(places, inputs["values"].astype(self.dtype), table.astype(self.dtype), columns)
        self.sow("intermediates", "gene_embed", x)
        if self.pe != "none":
            position = Position(self.pe, self.pe_missing, name="position")
            x = x + position(inputs["coords"], inputs["cell_mask"], width).astype(x.dtype)
        if self.input_covariate:
            covariates = self.param("covariates", nn.initializers.normal(1.0), (self.n_batches, width))
            batch = inputs["batch"]
            x = x + jnp.where((batch >= 0)[..., None], covariates[jnp.maximum(batch, 0)], 0).astype(x.dtype)
        x = jax.nn.relu(Dense(width, dtype=self.dtype, name="embed_linear")(x))
        x = norms.norm(self.norm, name="embed_norm")(nn.Dropout(self.dropout, deterministic=not train)(x))
        self.sow("intermediates", "embedder", x)
        return x

    def latent(self, train: bool):
        """Return the bottleneck that `latent_mod` names."""
        if self.latent_mod == "gmvae":
            floors = (self.w_li, self.w_en, self.lamda, self.eval_noise)
            return GMVAE(self.latent_dim, self.num_clusters, *floors, train, name="latent")
        if self.latent_mod == "gmvae_paper":
            return PrintedGMVAE(self.latent_dim, self.num_clusters, self.w_li, self.w_en, train, name="latent")
        if self.latent_mod == "vae":
            return VAE(self.latent_dim, train=train, name="latent")
        if self.latent_mod == "ae":
            return AE(self.latent_dim, name="latent")
        if self.latent_mod == "none":
            return lambda h, mask, step, noise: (h.astype(jnp.float32), jnp.zeros(()), {})
        raise ValueError(f"latent_mod {self.latent_mod!r}: there are {', '.join(LATENTS)}")


def gene_vectors(variables: Mapping[str, Any], n_genes: int) -> Array:
    """Return the table of gene vectors. [V, D]"""
    return variables["params"]["genes"][:n_genes]


def flops(model: Model, inputs: dict[str, Any], embed: bool = False) -> float:
    """Return the FLOPs of one forward pass, with `embed` of what the cells' embeddings take of it; see the contract."""
    n_bags, n_cells = inputs["cell_mask"].shape
    rows, d, z, g = inputs["counts"].shape[1], model.enc_hid, model.latent_dim, model.n_genes
    read = len(inputs["columns"]) if "columns" in inputs else g
    heads, inner = model.enc_head, FAVOR_SIZE * model.enc_head
    block = {
        "flowformer": 8 * d * d + 2 * d * d // heads,
        "cosformer": 8 * d * d + 4 * d * d // heads,
        "transformer": 8 * d * d + 2 * n_cells * d,
        "performer": 4 * d * inner + 4 * d * d + 4 * FAVOR_FEATURES * inner,
        "mlp": d * d,
        "none": 0,
    }[model.enc_mod]
    latent = {"gmvae": d * model.num_clusters + (d + model.num_clusters) * 512 + 1024 * z + 2 * model.num_clusters * z}
    latent |= {"gmvae_paper": 2 * d * z + z * model.num_clusters, "vae": 2 * d * z, "ae": d * z, "none": 0}
    if embed:  # the mean alone: no variances, no clusters' densities
        latent |= {"gmvae": latent["gmvae"] - 512 * z - 2 * model.num_clusters * z, "gmvae_paper": d * z, "vae": d * z}
    per_cell = read * d + d * d + model.enc_layers * block + latent[model.latent_mod]
    per_row = (model.dec_layers - 1) * model.dec_hid**2 + model.dec_hid * (
        z - model.dec_hid if model.dec_layers > 1 else 0
    )
    per_row += model.dec_hid * HEAD_WIDTH + HEAD_WIDTH * g if model.dec_mod == "nbmlp" else model.dec_hid * g
    if model.head != "decoder" or embed:
        per_row = 0
    return 2.0 * n_bags * (n_cells * per_cell + rows * per_row)


def input_flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of the embedder's first product, of the counts themselves with a vector for each gene."""
    read = len(inputs["columns"]) if "columns" in inputs else model.n_genes
    return 2.0 * math.prod(inputs["cell_mask"].shape) * read * model.enc_hid
