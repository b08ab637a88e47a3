"""scVI as a baseline of embeddings, if scvi-tools is installed (Lopez et al., Nature Methods 2018).

The authors' package with its defaults, fitted without labels to the very cells that are scored, their batches given to
it where there are any. Genes are those of PCA-50, counts are raw. A fit is 400 passes over the cells: of 300 cells it
took a minute of one core.
"""

import contextlib
import importlib.metadata
import io
import logging
import math
import warnings
from collections.abc import Iterator

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scfm_jax.tasks.cells.embedding import variable_genes
from scfm_jax.tasks.expression import log_normalised

GENES = 2000


def embed(counts: sp.csr_matrix, batch: np.ndarray | None, seed: int) -> np.ndarray:
    """Return the latent means of all cells by a model that was fitted to those that have counts. [n, 10]

    Args:
      counts: raw. [n, V]
      batch: codes, or None. [n]

    Raises:
      ImportError: scvi-tools is not installed.
    """
    with _quiet():
        try:
            import scvi
        except ImportError:
            raise ImportError("scVI is not installed: pip install 'scfm_jax[scvi]'") from None
        genes = variable_genes(log_normalised(counts, dtype=np.float32), GENES)
        names = [f"c{i}" for i in range(counts.shape[0])]
        obs = pd.DataFrame({"batch": "all" if batch is None else batch.astype(str)}, names)
        cells = anndata.AnnData(counts[:, genes].astype(np.float32), obs=obs)
        full = cells[np.asarray(cells.X.sum(1)).ravel() > 0].copy()
        learnt = math.ceil(0.9 * full.n_obs)
        size = next(size for size in range(128, 0, -1) if learnt % size != 1)  # a batch of one cell has no deviation
        scvi.settings.seed = seed
        scvi.model.SCVI.setup_anndata(full, batch_key="batch")
        model = scvi.model.SCVI(full)
        model.train(accelerator="cpu", batch_size=size, enable_progress_bar=False)
        return np.asarray(model.get_latent_representation(cells), np.float32)


def version() -> str | None:
    """Return the version of scvi-tools, None where it is not installed; the package itself is not loaded."""
    try:
        return importlib.metadata.version("scvi-tools")
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the package and those below it say of themselves off the screen."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
