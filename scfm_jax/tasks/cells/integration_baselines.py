"""Baselines of batch integration: batch means subtracted, and Harmony, if it is installed.

Each takes components of the cells and their batches, and returns components in which batches should not be told apart.
Harmony (Korsunsky et al., Nature Methods 2019) is the authors' package harmonypy, with its defaults, seeded.
"""

from collections.abc import Callable

import numpy as np


def batch_means_removed(x: np.ndarray, batch: np.ndarray, seed: int) -> np.ndarray:
    """Return the components less their mean in each batch. [n, D], codes [n]"""
    del seed
    level = np.array(x)
    for code in np.unique(batch):
        level[batch == code] -= x[batch == code].mean(0)
    return level


def harmony(x: np.ndarray, batch: np.ndarray, seed: int) -> np.ndarray:
    """Return the components after Harmony. [n, D], codes [n]

    Raises:
      ImportError: harmonypy is not installed.
    """
    harmonypy = _harmonypy()
    corrected = harmonypy.run_harmony(x, {"batch": batch}, "batch", verbose=False, random_state=seed)
    return np.asarray(corrected.Z_corr, np.float32)


def version() -> str | None:
    """Return the version of harmonypy, None where it is not installed."""
    try:
        return _harmonypy().__version__
    except ImportError:
        return None


def _harmonypy():
    """Import harmonypy; releases before 2 need torch or give their result turned."""
    try:
        import harmonypy
    except ImportError:
        raise ImportError("Harmony is not installed: pip install 'scfm_jax[harmony]'") from None
    release = getattr(harmonypy, "__version__", "0")
    if int(release.partition(".")[0]) < 2:
        raise ImportError(f"harmonypy {release} is too old: pip install 'scfm_jax[harmony]'")
    return harmonypy


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "PCA-50, batch means removed": batch_means_removed,
    "Harmony on PCA-50": harmony,
}
