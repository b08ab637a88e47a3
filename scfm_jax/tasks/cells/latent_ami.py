"""How well clusters of an embedding agree with each column of the metadata: k-means, adjusted mutual information.

Table 1 of Exceiver (Connell et al., LMRL 2022): cells are clustered by k-means and the clusters compared with tissue,
method, donor, cell ontology, compartment and gender, once in the original data and once in the model's latent space.
High is wanted of biology, low of technique and donor. The paper does not say k: it is the number of the column's
labels here, over the cells that have one. AMI (Vinh et al., JMLR 2010) is 0 on average for labels at random, 1 for the
same partition, so columns of different numbers of labels compare.

Arrays in, floats out.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from scfm_jax.tasks.cells.embedding import encode

MOST_LABELS = 100
MOST_NUMBERS = 20
"""Columns of more labels are taken for names of single cells; numbers of more values for measurements."""


def columns(obs: pd.DataFrame, wanted: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Return the columns that cells can be clustered against, as codes [n], -1 without a label.

    Columns that cut the cells alike are one, called "first = second".

    Args:
      wanted: names of columns; left out, all that have 2 to MOST_LABELS labels (numbers: to MOST_NUMBERS).

    Raises:
      ValueError: a wanted column is not there or has fewer than two labels, or none is fit.
    """
    missing = [name for name in wanted if name not in obs]
    if missing:
        names = ", ".join(map(str, obs.columns)) or "none"
        raise ValueError(f"columns={','.join(missing)}: no such obs column; there are {names}")
    labels: dict[str, np.ndarray] = {}
    for name in wanted or [str(column) for column in obs.columns]:
        values = obs[name]
        codes = encode(values.astype(object))
        n = len(np.unique(codes[codes >= 0]))
        number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        most = MOST_NUMBERS if number else min(MOST_LABELS, len(values) // 2)
        if wanted and n < 2:
            raise ValueError(f"columns={name}: it has {n} label(s), and there is nothing to tell apart")
        if wanted or 2 <= n <= most:
            same = next((other for other, seen in labels.items() if _alike(seen, codes)), None)
            if same is None:
                labels[name] = codes
            else:
                labels = {f"{o} = {name}" if o == same else o: seen for o, seen in labels.items()}
    if not labels:
        raise ValueError(f"no obs column has 2 to {MOST_LABELS} labels; there are {', '.join(map(str, obs.columns))}")
    return labels


def score(x: np.ndarray, codes: np.ndarray, *, seed: int = 0, starts: int = 10) -> float:
    """Return the AMI of k-means clusters of x [n, D] with labels, codes [n], -1 where there is none.

    Args:
      seed: of k-means. starts: its random starts, of which the tightest counts.
    """
    x, codes = np.asarray(x, np.float32), np.asarray(codes)
    if x.ndim != 2 or len(x) != len(codes) or not np.isfinite(x).all():
        raise ValueError(f"embedding of shape {x.shape} for {len(codes)} labels: one finite row for each is needed")
    labelled = codes >= 0
    clusters = KMeans(len(np.unique(codes[labelled])), n_init=starts, random_state=seed).fit_predict(x[labelled])
    return float(adjusted_mutual_info_score(codes[labelled], clusters))


def table(embeddings: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], seed: int) -> list[dict[str, object]]:
    """Return a row {column, labels, cells, embedding, seed, ami} for each column and embedding."""
    rows = []
    for column, codes in labels.items():
        size = {"labels": len(np.unique(codes[codes >= 0])), "cells": int((codes >= 0).sum())}
        for name, x in embeddings.items():
            ami = score(x, codes, seed=seed)
            rows.append({"column": column, **size, "embedding": name, "seed": seed, "ami": ami})
    return rows


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two columns cut the cells in the same way."""
    pairs = np.unique(np.stack([a, b]), axis=1)
    unknown = bool(((a < 0) == (b < 0)).all())
    return unknown and pairs.shape[1] == len(np.unique(a)) == len(np.unique(b))
