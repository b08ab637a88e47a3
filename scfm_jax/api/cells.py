"""What a file tells of each cell besides its counts: the genes that its batch measured, and where it lies."""

import numpy as np

from data_pipeline.files import h5ad, panels
from data_pipeline.genes import vocab
from data_pipeline.store import spatial
from scfm_jax.inference import bags


def of_file(
    counts: h5ad.Counts, mapping: vocab.Mapping, n_genes: int, rules: bags.Rules, sample_key: str | None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return (arguments of `bags.pack` for all cells, the genes of the model that each panel measured [panels, V]).

    Args:
      mapping: of the file's genes to the model's. rules, sample_key: which cells are one field, see `bags.samples`.
    """
    panel, measured = panels.onto(counts, mapping.index, n_genes)
    fields = {"panel": panel}
    if "spatial" in counts.obsm:
        fields["coords"] = np.asarray(counts.obsm["spatial"][:, :2], np.float32)
        if rules.together:
            samples = bags.sample_codes(counts.obs, sample_key)
            fields["field_coords"] = spatial.in_fields(fields["coords"], samples)
    return fields, measured
