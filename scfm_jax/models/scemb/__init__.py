"""scEMB: the highest-ranked genes of a cell as a sentence, masked genes to be named (Hsieh et al., bioRxiv 2024).

A cell is the sequence of its expressed genes, most expressed first, at most 2,048. A gene's vector is the sum of its
identity's and its position's: the bin of its expression among the cell's, or its rank. BERT names the hidden genes.
The network names genes, not how much of them there is, so there is no `impute`.

  inputs      counts to sentences; what is hidden, masked or deleted     medians  what counts are divided by for ranks
  network     the Model and its cost (blocks: `layers.transformer`)      variants, published  sizes; BERT's weights
  objective   cross-entropy of the names (`softmax`: in parts)

Neither code nor weights were released. What the paper leaves open, or says in two ways, is an option; the defaults are
those of its text, then of its nearest relatives (BERT of HuggingFace, scGPT's bins, Geneformer's ranks):
  position      bin (Fig. 1: positions "preserve the order of real expression values") | rank (Geneformer)
  n_bins        bins of the expressed genes: 100 (paper); scGPT counts the zero as a bin, so its 100 are 99 here
  ties          one (the highest bin of equal values) | both (scGPT: in training drawn from all bins of equal values)
  medians       none (the text: values are ranked as they are) | file | train (over each gene's median: Geneformer)
  mask_replace  80 % mask, 10 % another gene, 10 % kept (BERT) | (1, 0, 0) (the text: "masked")
  cell_layer    last (the paper's perturbations) | all_layers (its fine-tuning: the mean of all layers)
  embed_dim     768; the caption of Fig. 5 says 786
  how           of `inputs.perturb`: mask (paper) | delete (Geneformer)

Differences on purpose: there is room for four standard deviations more hidden genes than expected, and what would not
fit is not hidden. A gene put in another's place is never a special token.
"""

from scfm_jax.models.scemb.inputs import gene_ids, prepare, tokens
from scfm_jax.models.scemb.medians import FITTED, fit
from scfm_jax.models.scemb.network import SIZES, TUNING, Model, flops, gene_vectors
from scfm_jax.models.scemb.objective import loss, mask_gene
from scfm_jax.models.scemb.variants import VARIANTS

__all__ = [
    "FITTED",
    "SIZES",
    "TUNING",
    "VARIANTS",
    "Model",
    "fit",
    "flops",
    "gene_ids",
    "gene_vectors",
    "loss",
    "mask_gene",
    "prepare",
    "tokens",
]
