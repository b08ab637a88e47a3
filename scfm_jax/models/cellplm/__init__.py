"""CellPLM: pre-training of a cell language model beyond single cells (Wen et al., ICLR 2024).

The tokens are the cells of one tissue sample. A cell's expression is embedded as a sum of gene vectors, cells attend to
each other, a Gaussian-mixture (or plain) VAE is the bottleneck, and a batch-aware decoder scores the masked genes.

  inputs      order, drops and masks of a bag's cells       encoder, latent, decoder  the parts of the network
  network     the Model and its cost                        likelihood  negative binomial of sparse counts
  objective   six losses; counts from the decoder           variants, published  sizes; released weights

Where paper and released code differ, both are options; `VARIANTS` "paper*" and "published_*" choose consistently:
  enc_mod       performer (paper) | flowformer (every published checkpoint)
  latent_mod    gmvae_paper (q(z|x), then q(y|z), no floor) | gmvae (20230926: y from h, z from h and y, a floor)
                | vae (20231027, whose KL warms up and has a floor of 1)
  pe            sin (paper) | none (published: the term is multiplied away); `coords` of `prepare` scales coordinates
                over the field of view (paper, and what we train) or over each bag
  pe_missing    cell (each cell for itself) | first (code: the first cell of a bag decides)
  objective     mse (paper: masked squared error of log1p counts, summed over a cell) | nb (published: masked plus all
                entries) | recon (the code's own squared error) | imputation | denoise | annotation
  dec_mod       ff (paper: covariates added to z, linear output) | mlp (one-hot covariates) | nbmlp (published: tables)
  cov_absent    mean | sum (code: cells of unknown batch get the sum of the whole table, detached)
  lamda         the free-bits floor; at the published 5 the cluster term is a constant without gradient
  eval_noise    False (embeddings are deterministic) | True (published gmvae: evaluation draws noise)

Differences on purpose: padding cells and unmeasured genes never count; a batch holds B bags, and losses are means over
all their cells; the sinusoidal table is computed, not stored; masks compare 16 random bits with the rate.
"""

from scfm_jax.models.cellplm.inputs import prepare, tokens
from scfm_jax.models.cellplm.network import SAMPLE, SIZES, TUNING, Model, flops, gene_vectors, input_flops
from scfm_jax.models.cellplm.objective import impute, loss, mask_gene
from scfm_jax.models.cellplm.variants import VARIANTS

__all__ = [
    "SAMPLE",
    "SIZES",
    "TUNING",
    "VARIANTS",
    "Model",
    "flops",
    "gene_vectors",
    "impute",
    "input_flops",
    "loss",
    "mask_gene",
    "prepare",
    "tokens",
]
