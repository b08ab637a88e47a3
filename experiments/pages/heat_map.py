"""A clustered heat map of genes by the similarity of their representations, as bytes (PNG).

Perceptually even colours without red and green (cividis), names of genes that can be read at 50 x 50, known markers
told apart by a dot and bold letters, not by colour.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np

from experiments.pages import figures
from experiments.pages import names as shown
from scfm_jax.tasks.genes import marker_genes

MAP = "cividis"
INK, MARKER = "#1b2430", "#000000"


def draw(
    similarities: np.ndarray,
    names: Sequence[str],
    markers: np.ndarray,
    title: str,
    limits: tuple[float, float],
    linkage: str = "similarity",
) -> bytes:
    """Draw similarities [M, M] of genes, clustered; `markers` bool [M]; `limits` of the colours, low and high.

    `linkage`: of `marker_genes.order`.
    """
    matplotlib.use("Agg")
    import seaborn

    tree = marker_genes.order(similarities, linkage)
    size = max(6.0, 0.2 * len(names) + 2.2)
    plain = [shown.label(name, 24) for name in names]
    labels = [f"● {name}" if is_marker else name for name, is_marker in zip(plain, markers, strict=True)]
    grid = seaborn.clustermap(
        similarities,
        row_linkage=tree,
        col_linkage=tree,
        cmap=MAP,
        vmin=limits[0],
        vmax=limits[1],
        xticklabels=labels,
        yticklabels=labels,
        figsize=(size, size),
        dendrogram_ratio=0.13,
        cbar_pos=(0.012, 0.955, 0.1, 0.014),
        cbar_kws={"orientation": "horizontal", "ticks": limits, "extend": "min"},
    )
    grid.ax_cbar.set_title("cosine similarity", fontsize=9, color=INK)
    grid.ax_cbar.set_xticklabels([f"{limit:g}" for limit in limits], fontsize=9)
    axes = grid.ax_heatmap
    axes.set_xticklabels(axes.get_xticklabels(), rotation=90)
    for label in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        is_marker = label.get_text().startswith("●")
        label.set(fontsize=8.5, color=MARKER if is_marker else INK, weight="bold" if is_marker else "normal")
    axes.tick_params(length=0, pad=2)
    grid.figure.suptitle(f"{shown.label(title, 160)}\n● bold: known marker", x=0.5, y=1.04, fontsize=12, color=INK)
    picture = figures.encoded(grid.figure, "png", bbox_inches="tight")
    matplotlib.pyplot.close(grid.figure)
    return picture


def limits(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return limits of the colours that several heat maps share: a usual gene's least similarity, rounded down, and 1.

    That is the median over genes of the tenth percentile of each one's similarities, so that one gene that is unlike
    all others does not take the range; below it colours stay the same.
    """
    others = [matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1) for matrix in matrices]
    least = np.concatenate([np.percentile(values, 10, axis=1) for values in others])
    span = max(1 - float(np.median(least)), 1e-6)
    step = 10.0 ** np.floor(np.log10(span))
    return round(float(1 - step * np.ceil(span / step - 1e-6)), 8), 1.0
