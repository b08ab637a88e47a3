"""sCellTransformer (sCT, InstaDeep, 2024/25): every gene of up to fifty cells in one sequence."""

from scfm_jax.models.sct.network import (
    MASKS,
    PUBLISHED,
    SAMPLE,
    SIZES,
    SMALL,
    TUNING,
    VARIANTS,
    Model,
    draw_mask,
    flops,
    gene_logits,
    impute,
    loss,
    predict,
    prepare,
    tokens,
)
