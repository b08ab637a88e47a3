"""Which cells a model of whole tissue samples sees together, where a file names the sample of each cell."""

import numpy as np
import pandas as pd


def samples(obs: pd.DataFrame, sample_key: str | None, max_cells: int, seed: int) -> tuple[list[np.ndarray], str]:
    """Return the rows of each sample, large ones cut into random parts, and in words what was done."""
    if max_cells < 1:
        raise ValueError(f"max_cells={max_cells}: a sample has at least one cell")
    if sample_key == "auto":
        sample_key = "batch" if "batch" in obs else None
    if sample_key is None:
        samples, how = [np.arange(len(obs))], "the whole file is one sample"
    elif sample_key not in obs:
        raise ValueError(f"sample_key={sample_key}: no such obs column; there are {', '.join(map(str, obs.columns))}")
    else:
        codes, names = pd.factorize(obs[sample_key], use_na_sentinel=False)
        samples = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        how = f'samples are obs["{sample_key}"]: {len(names)}'
    rng, bags, cut = np.random.default_rng(seed), [], 0
    for rows in samples:
        parts = -(-len(rows) // max_cells)
        cut += parts > 1
        bags += [np.sort(part) for part in np.array_split(rng.permutation(rows), parts)]
    if cut:
        how += f"; {cut} of more than {max_cells} cells cut into random parts of equal size (seed {seed})"
    return bags, how
