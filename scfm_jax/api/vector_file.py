"""Gene vectors as one small file, which every command that takes gene vectors reads: `--vectors_file=genes.npz`.

An .npz of `values` [N, D] (float32), `names` and `meta` (UTF-8 text, JSON). The container carries a checksum of every
array, and `read` says so where one differs. Anything that has a vector for each gene can be written like this.
"""

import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipeline.files import whole
from data_pipeline.genes import vocab
from scfm_jax.saving import sealed
from scfm_jax.tasks.genes import features

FORMAT = "scfm_jax gene vectors"


def write(path: str | os.PathLike, names: Sequence[str], values: np.ndarray, kind: str, source: str, **meta: Any):
    """Write a vector of each gene as the file `path`, whole or not at all; see `encoded`."""
    whole.write_file(pathlib.Path(path), encoded(names, values, kind, source, **meta))


def encoded(names: Sequence[str], values: np.ndarray, kind: str, source: str, **meta: Any) -> bytes:
    """Return a vector of each gene as the bytes of a file; ValueError where they do not fit, or are not finite.

    Args:
      names: of the genes, each once. [N]  values: finite. [N, D]
      kind, source: of `features.GeneVectors`. meta: what else is known of them, JSON.
    """
    values = np.asarray(values, np.float32)
    if len(values) != len(names) or len(set(names)) < len(names) or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} vectors for {len(names)} genes: a finite one for each, names differ")
    arrays = {"values": values, "names": _text("\n".join(names))}
    arrays["meta"] = _text(json.dumps({"format": FORMAT, "kind": kind, "source": source, **meta}, sort_keys=True))
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    return data.getvalue()


def read(
    path: str | os.PathLike,
    names: Sequence[str] | None = None,
    second: Sequence[str] | None = None,
    gene_table: Sequence[str | os.PathLike] = (),
) -> tuple[features.GeneVectors, Mapping[str, Any]]:
    """Return the vectors of genes by any of their names (all, if left out), and what is known of them.

    Raises:
      FileNotFoundError: no such file. ValueError: another file, a damaged one, or one that knows none of the genes.
    """
    try:
        arrays = sealed.read_arrays(path)
        meta = json.loads(arrays["meta"].tobytes())
        listed = arrays["names"].tobytes().decode().split("\n")
        if meta.pop("format") != FORMAT or len(arrays["values"]) != len(listed):
            raise KeyError("format")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file of gene vectors; experiments.gene_embedding makes one") from None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise ValueError(f"{path}: not a file of gene vectors; experiments.gene_embedding makes them") from None
    kind, source, values = meta.pop("kind"), f"{meta.pop('source')} ({pathlib.Path(path).name})", arrays["values"]
    if names is None:
        return features.taken(values, np.arange(len(listed)), listed, kind, source), meta
    table = vocab.read_table(gene_table) if gene_table else None
    mapping = vocab.map_genes(names, listed, ensembl=second, table=table, min_mapped=None)
    return features.taken(values, mapping.index, names, kind, source, str(mapping.report)), meta


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)
