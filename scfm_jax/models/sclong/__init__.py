"""scLong: a billion parameters over all genes of a cell, zeros included (Bai et al., bioRxiv 2024.11.09.622759).

Every gene is a token. The `top_seq_len` genes of highest value go through a wide and deep Performer, all others
(masked ones among them: a mask sorts below zero) through a small one, both together through a third. A gene's identity
is a table of gene vectors plus a graph convolution over the Gene Ontology of a second such table.

  inputs      counts to values of all genes, and back; what is hidden     performer  the stacks of attention
  network     the Model and its cost                                      genes      gene vectors, the MLP of each gene
  objective   squared error of the scored genes                           variants, published  sizes; released weights

Where paper and released code differ, both are options; `VARIANTS` "paper" and "published" choose consistently:
  head           gene (paper: an MLP for each gene) | shared (code: one linear map)
  gene_table     False (paper: the graph convolution alone) | True (code: plus a table of its own)
  readd          False | True (code: gene vectors are added again before the last Performer)
  expression_norm  False (paper) | True (code: LayerNorm of what stands for the value)
  replace_rate   1 (paper: every scored gene is hidden) | 0.9 (code: a tenth stays visible)
  graph          True, built from weights as they are (code) or with `weighted=False, self_loops=True` (paper): that is
                 the data's, see `layers.graph`; False leaves the graph out
  pad_token      False (paper: 27,874 positions) | True (code: one more, which attends and is attended to)
  transform      normalised (counts per 10,000, log1p; replications and what is left of the code) | literal_paper
                 (log(1 + count / 10,000)) | none (log1p values already)
  max10          True (pre-training: the largest value of a cell is 10) | False (the code's downstream scripts)
  key_max        set (one cell) | global (code: the batch, which is the same at its micro-batch of 1) | per_head
The paper does not say how wide its MLPs are or how they start; `head_dim` and `head_init` are ours.

Differences on purpose: attention's feature maps never exist whole (`layers.attention`); genes without a given vector
start at random.
"""

from scfm_jax.models.sclong.inputs import prepare, tokens
from scfm_jax.models.sclong.network import BATCH, SIZES, TUNING, Model, flops, gene_vectors, graph_vectors, project
from scfm_jax.models.sclong.objective import impute, loss, mask_gene
from scfm_jax.models.sclong.variants import VARIANTS

__all__ = [
    "BATCH",
    "SIZES",
    "TUNING",
    "VARIANTS",
    "Model",
    "flops",
    "gene_vectors",
    "graph_vectors",
    "impute",
    "loss",
    "mask_gene",
    "prepare",
    "project",
    "tokens",
]
