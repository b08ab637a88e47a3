"""How alike genes are to a run, from which a gene regulatory network can start: cosines of what it makes of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.genes import vocab
from scfm_jax.api import gene_features
from scfm_jax.tasks.genes import features
from scfm_jax.tasks.networks import deepsem

if TYPE_CHECKING:
    from scfm_jax.api.run import Run

CELLS = "cells"
KINDS = (CELLS, *gene_features.KINDS)


def similarity(
    run: "Run",
    names: Sequence[str],
    kind: str = CELLS,
    *,
    second: Sequence[str] | None = None,
    source: Any = None,
    rows: Sequence[int] | None = None,
    gene_table: Sequence[Any] = (),
    centred: bool = True,
    say: Callable[[str], None] = print,
    **reading: Any,
) -> np.ndarray:
    """Return the cosines between genes in a run, 0 where it does not know one. [n, n]

    Args:
      names: genes, by any of their names; second: another name of each, "" for none. [n]
      kind: "cells", of all representations of a gene in all cells in a row (of a model that has none of its own,
        "table+cell+expression" of `gene_features`), a batch of cells in memory at a time; or one of the kinds of gene
        vectors.
      source: AnnData or file of raw counts, needed for kinds of cells; rows: some of its cells.
      centred: each feature has mean 0 and deviation 1 over the genes first; else what all genes share makes all of them
        alike. scLong takes its features as they are.
      gene_table, reading: of `Run.gene_representations`.

    Raises:
      ValueError, OSError: as `gene_features.vectors`, in one line.
    """
    asked = {"source": source, "rows": rows, "gene_table": gene_table, "say": say, **reading}
    if kind != CELLS:
        made = gene_features.vectors(run, kind, names=names, second=second, **asked)
        values = made.standardised() if centred else made.values
        return deepsem.cosine(np.where(made.found[:, None], values, 0))
    stream = gene_features.own_stream(run, **asked)
    table = run.gene_table(gene_table)
    index = vocab.map_genes(names, stream.genes, ensembl=second, table=table, min_mapped=None).index
    if not (index >= 0).any():
        raise ValueError(f"{run.name} ({run.source}): knows none of the {len(names)} genes; check the species")

    def parts() -> Iterator[np.ndarray]:
        for _, values in stream:
            part = np.swapaxes(values[:, index], 0, 1).reshape(len(index), -1)
            part = features.standardised(part, index >= 0) if centred else part
            yield np.where((index >= 0)[:, None], part, 0)[None]

    return deepsem.cosine(parts())
