"""CellPLM: pre-training of a cell language model beyond single cells (Wen et al., ICLR 2024).

The tokens are the cells of one tissue sample. A cell's expression is embedded as a sum of gene vectors, cells attend to
each other, a Gaussian-mixture (or plain) VAE is the bottleneck, and a batch-aware decoder scores the masked genes.

Where paper and released code differ, both are options; `VARIANTS` "paper*" and "published_*" choose consistently:
  enc_mod       performer (paper) | flowformer (every published checkpoint)
  latent_mod    gmvae (paper, 20230926) | vae (20231027, whose KL warms up and has a floor of 1)
  pe            sin (paper; coordinates scaled per bag) | none (published: the term is multiplied away)
  pe_missing    cell (each cell for itself) | first (code: the first cell of a bag decides)
  objective     mse (paper: masked squared error of log1p counts) | nb (published: masked plus all entries) | recon (the
                code's own squared error) | imputation | denoise | annotation
  dec_mod       mlp (one-hot covariates) | nbmlp (covariate tables)
  cov_absent    mean | sum (code: cells of unknown batch get the sum of the whole table, detached)
  lamda         the free-bits floor; at the published 5 the cluster term is a constant without gradient
  eval_noise    False (embeddings are deterministic) | True (published gmvae: evaluation draws noise)
The printed loss of the paper scores |M (H - (1 - M) X)|^2, with M and 1 - M swapped; masked entries are what is scored.
The paper gives sizes (5, 10, 40 million) but no widths; those of `paper_*` are chosen to land within 10 % of them.

Differences on purpose: padding cells and unmeasured genes never count; a batch holds B bags, and losses are means over
all their cells; the sinusoidal table is computed, not stored; masks compare 16 random bits with the rate.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import bags, norms, sparse
from scfm_jax.layers.head import Head
from scfm_jax.layers.linear import Dense
from scfm_jax.layers.position import Position
from scfm_jax.models.cellplm import likelihood
from scfm_jax.models.cellplm.decoder import HEAD_WIDTH, Decoder
from scfm_jax.models.cellplm.encoder import FAVOR_FEATURES, FAVOR_SIZE, Encoder
from scfm_jax.models.cellplm.latent import AE, GMVAE, LATENTS, VAE
from scfm_jax.types import Array, Batch, Outputs

SIZES = {"n_genes": "genes", "n_batches": "batch", "n_studies": "study"}
SAMPLE = True  # cells attend to each other: an embedding is defined on a whole tissue sample
TUNING = {
    "lora": (r"^encoder/layers?(_\d+)?/attention/(query|value)/kernel$",),
    "inputs": ("^genes$", "^embed_", "^position/", "^covariates$"),
    "layers": (("encoder/layer",),),
    "visible": {"mask_node_rate": 0.0},
}


# ------------------------------------------------------------------------------------------------ inputs and masking


def prepare(
    batch: Batch,
    constants: dict[str, Array],
    rng: Array,
    *,
    step: Array | int,
    train: bool,
    mask_node_rate: float = 0.75,
    mask_feature_rate: float = 0.25,
    mask_beta: bool = True,
    drop_node_rate: float = 0.0,
    max_cells: int = 0,
    keep_counts: float = 1.0,
    score: str = "masked",
    coords: str = "scaled",
    covariates: bool = True,
    draws: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Turn raw counts into what the network sees and what the loss scores.

    In training the cells of a bag are put in random order, some are dropped, and entries of the first
    `mask_node_rate` of them are hidden; every per-cell array of the result, labels included, is in that order.

    Args:
      constants: "slots" [G + 1] and "measured" [S, V] (see the contract); no two store genes share a slot below V.
      mask_node_rate: share of cells with hidden entries; mask_feature_rate: share of entries hidden in them.
      mask_beta: draw each cell's share from Beta(5, 4 / rate - 3), at most 0.9, whose mode is the rate.
      drop_node_rate: training keeps int(n * (1 - rate)) of n cells; max_cells: and at most so many (0: no limit).
      keep_counts: probability with which the network sees each molecule (binomial thinning); targets keep all.
      score: "masked" scores the masked cells (all, in evaluation), "all" scores every cell.
      coords: "scaled" maps each bag's coordinates to [0, 1], "raw" leaves them.
      covariates: give the decoder batch and study; False leaves them unknown, as imported weights need.
      draws: recorded randomness instead of `rng`: "mask" bool [B, R, V] (cells keep their order), "noise".

    Returns a dict: slots, values [B, C, P] (log1p of what is not hidden); counts [B, R, P], targets of the first R
    cells; weights [B, R] of their losses; mask bool [B, R, V] of hidden entries, in training with score "masked" only;
    measured [B, V]; cell_mask, batch, study, labels, coords, step, noise.
    """
    draws = draws or {}
    order_key, mask_key, thin_key = jax.random.split(rng, 3)
    mask_on = train and mask_node_rate > 0 and mask_feature_rate > 0
    if train and not draws:
        batch = bags.shuffle(batch, order_key, 1 - drop_node_rate, max_cells)
    slots = constants["slots"][batch.genes]  # [B, C, P]
    n_genes = constants["measured"].shape[1]
    measured = bags.measured_genes(constants["measured"], batch)
    seen = jax.random.binomial(thin_key, batch.counts, keep_counts) if keep_counts < 1 else batch.counts
    values = jnp.log1p(seen)
    weights, hidden = batch.cell_mask, None
    if mask_on:
        hidden = draws.get("mask")
        if hidden is None:
            rows = int(mask_node_rate * slots.shape[1])
            number = jnp.floor(mask_node_rate * batch.cell_mask.sum(1, keepdims=True) + 1e-6)
            hidden = bags.draw_mask(mask_key, (slots.shape[0], rows, n_genes), mask_feature_rate, mask_beta)
            hidden = hidden & (jnp.arange(rows) < number)[..., None]
        rows = hidden.shape[1]
        values = values.at[:, :rows].multiply(~sparse.at(hidden, slots[:, :rows], False))
        if score == "masked":
            weights = hidden.any(-1) & batch.cell_mask[:, :rows]
    rows = weights.shape[1]
    inputs = {
        "slots": slots,
        "values": values,
        "counts": batch.counts[:, :rows].astype(jnp.float32),
        "weights": weights.astype(jnp.float32),
        "measured": measured,
        "cell_mask": batch.cell_mask,
        "coords": bags.unit_coordinates(batch.coords, batch.cell_mask) if coords == "scaled" else batch.coords,
        "batch": batch.labels["batch"] if covariates and "batch" in batch.labels else jnp.full_like(batch.study, -1),
        "study": batch.study if covariates else jnp.full_like(batch.study, -1),
        "labels": batch.labels,
        "step": jnp.asarray(step),
    }
    if mask_on and score == "masked":
        inputs["mask"] = hidden
    return inputs | ({"noise": draws["noise"]} if "noise" in draws else {})


# ------------------------------------------------------------------------------------------------------------ network


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
        table = self.param("genes", nn.initializers.normal(0.005), (self.n_genes, width))
        x = sparse.scatter(inputs["slots"], inputs["values"].astype(self.dtype), self.n_genes)  # [B, C, V]
        x = jnp.einsum("bcv,vd->bcd", x, table.astype(self.dtype))
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
        if self.latent_mod == "vae":
            return VAE(self.latent_dim, train=train, name="latent")
        if self.latent_mod == "ae":
            return AE(self.latent_dim, name="latent")
        if self.latent_mod == "none":
            return lambda h, mask, step, noise: (h.astype(jnp.float32), jnp.zeros(()), {})
        raise ValueError(f"latent_mod {self.latent_mod!r}: there are {', '.join(LATENTS)}")


# ---------------------------------------------------------------------------------------------------------- objective


def loss(
    outputs: Outputs, inputs: dict[str, Any], *, objective: str = "nb", dae: bool = True, label: str = "cell_type"
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """Return (latent loss + mean objective of the scored cells, metrics as (weighted sum, weight)).

    `dae` adds the likelihood of the masked entries alone to that of all entries; `label` is what annotation predicts.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective {objective!r}: there are {', '.join(OBJECTIVES)}")
    aux_loss, extra = outputs.aux_loss * jnp.ones(()), {}
    total = aux_loss
    if objective == "annotation":
        value, weight = cross_entropy(outputs.logits, inputs, label)
        total = 0.0  # a head trains without the latent's loss
    elif objective == "mse":
        value, weight = masked_squared_error(decode(outputs.logits)[0], inputs)
    elif objective == "recon":
        value, weight = reconstruction(decode(outputs.logits)[0], inputs)
    else:
        masked = dae and objective == "nb" and "mask" in inputs
        value, weight, extra = negative_binomial(outputs.logits, inputs, masked)
    metrics = {objective: (value, weight), "latent_loss": (aux_loss, jnp.ones(())), **extra, **outputs.metrics}
    return total + value / jnp.maximum(weight, 1), metrics


def gene_logits(head: dict[str, Array]) -> Array:
    """Return the decoder's linear output over all genes, in float32. [B, R, V]"""
    kernel = head["kernel"].astype(head["hidden"].dtype)
    product = jnp.einsum("brf,fv->brv", head["hidden"], kernel, preferred_element_type=jnp.float32)
    return product + head["bias"]


def decode(head: dict[str, Array]) -> tuple[Array, Array | None]:
    """Return the decoder's (mean, inverse dispersion of each gene or None). [B, R, V], [V]"""
    if "log_theta" in head:
        return likelihood.nb_parameters(gene_logits(head), head["log_theta"])
    return jax.nn.relu(gene_logits(head)), None


def predict(outputs: Outputs, inputs: dict[str, Any]) -> Array:
    """Return expected counts: the decoder's means scaled to the observed total over measured genes. [B, R, V]"""
    mean, _ = decode(outputs.logits)
    measured = inputs["measured"][:, None]
    observed = (inputs["counts"] * sparse.at(measured, inputs["slots"][:, : mean.shape[1]], False)).sum(-1)
    return mean * (observed / jnp.where(measured, mean, 0).sum(-1))[..., None]


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
    """Return the decoder's means, scaled so that they add up to the visible counts over the visible genes. [B, C, V]

    With objective "mse" the decoder's values are log1p of counts already and are not scaled. Arguments: the contract.
    """
    key, hidden = jax.random.key(0), asked["hidden"]
    given = prepare(batch, constants, key, step=0, train=False, **{**inputs, "covariates": False})  # a study of its own
    mean, _ = decode(model.apply(variables, given, train=False, rngs={"latent": key}).logits)
    if loss.get("objective") == "mse":
        return jnp.expm1(mean)
    measured = given["measured"][:, None]
    visible = jnp.where(measured & ~hidden, mean, 0).sum(-1)
    whole = jnp.where(measured, mean, 0).sum(-1)
    blind = (measured <= hidden).all(-1)
    total = jnp.where(blind, asked["depth"], batch.counts.sum(-1))
    return mean * (total / jnp.maximum(jnp.where(blind, whole, visible), 1e-9))[..., None]


def negative_binomial(head: dict[str, Array], inputs: dict[str, Any], masked: bool) -> tuple[Array, Array, dict]:
    """Return (negative log-likelihood summed over scored cells, their number, the summands as metrics).

    All measured entries count and, if `masked`, the masked ones once more, with means scaled to their own total.
    """
    if "log_theta" not in head:
        raise ValueError("a negative binomial objective needs dec_mod 'nbmlp'")
    measured, weights = inputs["measured"][:, None], inputs["weights"]
    scored = {"nb_all": measured} | ({"nb_masked": measured & inputs["mask"]} if masked else {})
    slots, genes = inputs["slots"][:, : weights.shape[1]], tuple(scored.values())
    total, parts = likelihood.scaled_nb_nll(
        gene_logits(head), head["log_theta"], slots, inputs["counts"], genes, weights
    )
    weight = weights.sum()
    return total, weight, {name: (part, weight) for name, part in zip(scored, parts, strict=True)}


def masked_squared_error(mean: Array, inputs: dict[str, Any]) -> tuple[Array, Array]:
    """Return the paper's loss: squared error of log1p counts, summed over masked measured entries, and their number."""
    truth = jnp.log1p(_dense_counts(inputs, mean.shape))
    scored = _scored(inputs)
    return jnp.where(scored, (mean - truth) ** 2, 0).sum(), scored.sum()


def reconstruction(mean: Array, inputs: dict[str, Any]) -> tuple[Array, Array]:
    """Return the released code's squared error: prediction times the cell's total against counts, hidden entries kept,
    the others zero on both sides but counted in the mean over scored cells x measured genes."""
    truth = _dense_counts(inputs, mean.shape)
    error = mean * inputs["counts"].sum(-1, keepdims=True) - truth
    number = (inputs["weights"].sum(-1) * inputs["measured"].sum(-1)).sum()
    return jnp.where(_scored(inputs), error**2, 0).sum(), number


def cross_entropy(logits: Array, inputs: dict[str, Any], label: str) -> tuple[Array, Array]:
    """Return the summed cross-entropy of the cells whose label is known, and their number."""
    target = jnp.where(inputs["cell_mask"], inputs["labels"][label], -1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.maximum(target, 0)[..., None], -1)[..., 0]
    return jnp.where(target >= 0, nll, 0).sum(), (target >= 0).sum()


OBJECTIVES = ("nb", "mse", "recon", "imputation", "denoise", "annotation")


def _dense_counts(inputs: dict[str, Any], shape: tuple[int, ...]) -> Array:
    return sparse.scatter(inputs["slots"][:, : shape[1]], inputs["counts"], shape[-1])


def _scored(inputs: dict[str, Any]) -> Array:
    """Return the entries that a squared error scores: hidden (all, in evaluation), measured, of a scored cell."""
    scored = inputs["measured"][:, None] & (inputs["weights"] > 0)[..., None]
    return scored & inputs["mask"] if "mask" in inputs else scored


# ------------------------------------------------------------------------------------------------------ costs and sizes


def tokens(inputs: dict[str, Any]) -> Array:
    """Return the number of real cells: CellPLM's tokens."""
    return inputs["cell_mask"].sum().astype(jnp.int32)


def flops(model: Model, inputs: dict[str, Any]) -> float:
    """Return the FLOPs of one forward pass: two for every multiplication of a matrix product, from shapes alone."""
    n_bags, n_cells = inputs["cell_mask"].shape
    rows, d, z, g = inputs["counts"].shape[1], model.enc_hid, model.latent_dim, model.n_genes
    heads, inner = model.enc_head, FAVOR_SIZE * model.enc_head
    block = {
        "flowformer": 8 * d * d + 2 * d * d // heads,
        "cosformer": 8 * d * d + 4 * d * d // heads,
        "transformer": 8 * d * d + 2 * n_cells * d,
        "performer": 8 * d * inner // 1 - 4 * d * inner + 4 * FAVOR_FEATURES * inner,
        "mlp": d * d,
        "none": 0,
    }[model.enc_mod]
    latent = {"gmvae": d * model.num_clusters + (d + model.num_clusters) * 512 + 1024 * z + 2 * model.num_clusters * z}
    latent |= {"vae": 2 * d * z, "ae": d * z, "none": 0}
    per_cell = g * d + d * d + model.enc_layers * block + latent[model.latent_mod]
    per_row = (model.dec_layers - 1) * model.dec_hid**2 + model.dec_hid * (
        z - model.dec_hid if model.dec_layers > 1 else 0
    )
    per_row += model.dec_hid * HEAD_WIDTH + HEAD_WIDTH * g if model.dec_mod == "nbmlp" else model.dec_hid * g
    if model.head != "decoder":
        per_row = 0
    return 2.0 * n_bags * (n_cells * per_cell + rows * per_row)


TINY = dict(enc_hid=64, enc_layers=2, enc_head=4, latent_dim=32, num_clusters=8, dec_hid=64, dropout=0.1)
PAPER = dict(enc_mod="performer", pe="sin", latent_mod="gmvae", dec_mod="mlp", enc_layers=4, enc_head=8)
PAPER_LOSS = {"objective": "mse"}
PUBLISHED = dict(
    enc_mod="flowformer", enc_hid=1024, enc_layers=4, enc_head=8, latent_dim=512, dec_hid=1024, dec_layers=2,
    dropout=0.2, num_clusters=16, w_li=5.0, w_en=5.0, lamda=5.0, pe="none", cov_absent="sum",
)  # fmt: skip
PUBLISHED_INPUTS = dict(drop_node_rate=0.3, max_cells=4000)


def _paper(width: int, latent: int) -> dict[str, dict[str, Any]]:
    return {"model": dict(PAPER, enc_hid=width, dec_hid=width, latent_dim=latent), "loss": PAPER_LOSS}


VARIANTS = {
    "tiny": {"model": dict(TINY)},
    "paper": _paper(192, 128),
    "paper_5m": _paper(96, 64),
    "paper_10m": _paper(192, 128),
    "paper_40m": _paper(640, 512),
    "published": {"model": dict(PUBLISHED, latent_mod="gmvae"), "inputs": PUBLISHED_INPUTS},
    "published_20230926": {"model": dict(PUBLISHED, latent_mod="gmvae"), "inputs": PUBLISHED_INPUTS},
    "published_20231027": {"model": dict(PUBLISHED, latent_mod="vae"), "inputs": PUBLISHED_INPUTS},
}
