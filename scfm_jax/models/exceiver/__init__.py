"""Exceiver (Connell, Khan, Keiser, LMRL 2022): latents that look at the genes of one cell."""

from scfm_jax.models.exceiver.network import (
    AS_TRAINED,
    CLIP,
    FITTED,
    HEADS,
    PUBLISHED,
    SAFE,
    SHIFT,
    SIZES,
    TUNING,
    VARIANTS,
    ZEROS,
    Head,
    Model,
    fit,
    flops,
    impute,
    loss,
    prepare,
    slot_variance,
    tokens,
)
