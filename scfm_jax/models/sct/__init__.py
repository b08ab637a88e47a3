"""sCT, sCellTransformer: fifty cells times twenty thousand genes in one sequence (InstaDeep, 2024/25).

Every gene of every cell of a bag is a token: the bin of its expression. A convolution tower shortens the sequence
256-fold, a transformer mixes what is left, a transposed tower restores it with skip connections, and a head scores the
bins of masked genes.

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published" choose consistently:
  pooling    max (paper) | avg (code)
  pos        none (paper) | rope (code: rotary over the whole bag, whatever the border of cells)
  spatial    none | paper (cosine and sine of both coordinates) | code (cosine of x, sine of y, other scales)
  norm       shared (both) | standard, no_affine, none (the paper's ablations) | channel: standard as
             the paper's text has it, one scale and one offset across tokens, not one for each position of the bag
  mlp_init   truncated (code: normal, cut at two deviations of 1 / sqrt(inputs)) | he_uniform (what runs of ours had)
  cells      mean (both: over a cell's positions) | positions: all of them, see configs/pretrain_sct.py for why
  cell_layer last (both) | mean over the blocks | input of the first
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

from scfm_jax.models.sct.inputs import prepare, tokens
from scfm_jax.models.sct.network import SAMPLE, SIZES, TUNING, Model, flops
from scfm_jax.models.sct.objective import impute, loss, mask_gene
from scfm_jax.models.sct.variants import VARIANTS

__all__ = [
    "SAMPLE",
    "SIZES",
    "TUNING",
    "VARIANTS",
    "Model",
    "flops",
    "impute",
    "loss",
    "mask_gene",
    "prepare",
    "tokens",
]
