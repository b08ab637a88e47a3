"""Exceiver: a single-cell Perceiver IO with discrete noise masking (Connell, Khan, Keiser, LMRL 2022, 2210.14330).

A few learned latents read the genes of one cell, each the gene's vector times its shifted z-score; self-attention works
on the latents; queries made of gene vectors read them to predict the masked genes, and a class token the cell's label.

  inputs      counts to z-scores (`scaler`: their statistics), masks    perceiver, latent_attention  the network's parts
  network     the Model and its cost                                    variants, published  sizes; released weights
  objective   squared error of hidden genes, cross-entropy of the label

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published*" choose consistently:
  zero_mask     exclude (paper: latents do not see genes without counts) | additive_one (released weights: such genes
                get +1 on their logits, since a mask of floats was added)
  mask_token    learned (paper) | zero (code: a frozen zero vector)
  class_token_in_encoder   True (paper: also among the genes that the latents read) | False (code: a query alone)
  scaler        train (statistics of the training cells, for all) | per_split (code: validation cells have their own)
  explained variance   of all masked entries | `slotwise`, as the code logs it: per mask slot, then the mean
Ours, off in those variants: `value_scale` "after_norm" (as printed and released, a norm follows at once, and all that
the latents see of a value is its sign), `gene_bias` (predictions start at each gene's mean).
Shared by both, kept: z-scores are clipped at 10 from above only and targets with them; all layers of the latents start
from the same weights (`same_start`); decoder and encoder have four heads whatever `num_heads` is.
"""

from scfm_jax.models.exceiver.inputs import FITTED, fit, prepare, tokens
from scfm_jax.models.exceiver.network import SIZES, TUNING, Model, flops, gene_vectors
from scfm_jax.models.exceiver.objective import impute, loss, mask_gene
from scfm_jax.models.exceiver.variants import VARIANTS

__all__ = [
    "FITTED",
    "SIZES",
    "TUNING",
    "VARIANTS",
    "Model",
    "fit",
    "flops",
    "gene_vectors",
    "impute",
    "loss",
    "mask_gene",
    "prepare",
    "tokens",
]
