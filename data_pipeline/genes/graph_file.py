"""A gene graph as one small file that training reads: edges, gene names, where they come from, and a checksum.

The file is an .npz of `source`, `target` (int32, positions in the gene list), `weight` (float32), sorted by target and
then source, `genes` and `meta` (UTF-8 text, JSON). A crc32c in `meta` covers everything else, the file is put in place
in one rename, and the same input gives the same bytes. scLong's own file, `human_ens_gene2go_graph.csv`, is imported by
`edge_lists.read_directed`.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files.whole import crc32c, write_file
from data_pipeline.genes.vocab import GeneTable, Mapping, map_genes

SCHEMA = 1
FORMAT = "scfm_jax gene graph"
_TYPES = {"source": np.int32, "target": np.int32, "weight": np.float32}


@dataclass
class GeneGraph:
    """A directed weighted graph of genes, edges sorted by target and then source.

    Attributes:
      genes: names, in the order of the nodes. [N]
      source, target: nodes, int32. weight: of each edge, float32. [E]
      meta: `kind`, `options`, `inputs` (name and crc32c of each file), and what was counted on the way.
    """

    genes: list[str]
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def of(cls, genes: Sequence[str], source: np.ndarray, target: np.ndarray, weight: np.ndarray, **meta: Any):
        """Return the graph of edges in any order; ValueError where an edge is there twice or leads out of `genes`."""
        source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
        ends = np.concatenate([source, target])
        if len(ends) and not (ends.min() >= 0 and ends.max() < len(genes)):
            raise ValueError(f"edges between genes {ends.min()} to {ends.max()} of {len(genes):,}")
        if len(set(genes)) < len(genes):
            raise ValueError("a gene is in the list twice: a graph names every gene once")
        order = np.lexsort((source, target))
        key = (target * len(genes) + source)[order]
        if (np.diff(key) == 0).any():
            raise ValueError(f"{int((np.diff(key) == 0).sum()):,} edges are there twice")
        arrays = (values[order] for values in (source, target, np.asarray(weight)))
        typed = (values.astype(kind) for values, kind in zip(arrays, _TYPES.values(), strict=True))
        return cls(list(genes), *typed, meta)

    def onto(self, genes: Sequence[str], table: GeneTable | None = None) -> tuple["GeneGraph", Mapping]:
        """Return the graph among `genes`, and how names were found; edges of genes that are not there are dropped.

        ValueError where too few genes are known, or two genes of the graph are one of `genes`.
        """
        mapping = map_genes(self.genes, genes, table=table)
        index = mapping.index
        if mapping.report.merged:
            raise ValueError(f"genes of the graph are one gene of the list: {mapping.report.examples['merged']}")
        kept = (index[self.source] >= 0) & (index[self.target] >= 0)
        edges = index[self.source][kept], index[self.target][kept], self.weight[kept]
        return GeneGraph.of(genes, *edges, **self.meta), mapping

    def __str__(self) -> str:
        nodes, other = len(self.genes), self.source != self.target
        into, out = (np.bincount(ends[other], minlength=nodes) for ends in (self.target, self.source))
        edged = np.bincount(self.target, minlength=nodes) + np.bincount(self.source, minlength=nodes) > 0
        quantiles = "  ".join(f"{q}% {n:,.0f}" for q in (0, 25, 50, 75, 100) for n in [np.percentile(into[edged], q)])
        weights = "  ".join(f"{q}% {np.percentile(self.weight, q):.3g}" for q in (0, 25, 50, 75, 100))
        return "\n".join(
            [
                f"{self.meta.get('kind', 'graph')}: {nodes:,} genes, {len(self.source):,} edges, "
                f"{len(self.source) - other.sum():,} of a gene to itself",
                f"  genes with an edge {edged.sum():,}; with one to another gene {((into + out) > 0).sum():,}; "
                f"without {(~edged).sum():,}",
                f"  edges into a gene that has any: {quantiles}; out of one gene at most {out.max():,}",
                f"  weights: {weights}",
            ]
        )


def write(path: str | os.PathLike, graph: GeneGraph) -> None:
    """Write `graph` as the file `path` in one step; ValueError where it has no edges, OSError for a wrong folder."""
    path = Path(path)
    if not len(graph.source):
        raise ValueError(f"{path}: not written: the graph has no edges")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder {path.parent} does not exist")
    arrays = {name: getattr(graph, name) for name in _TYPES}
    arrays["genes"] = _text("\n".join(graph.genes))
    meta = {"format": FORMAT, "schema": SCHEMA} | graph.meta
    arrays["meta"] = _text(json.dumps(meta | {"crc32c": _checksum(arrays, meta)}, sort_keys=True))
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_file(path, data.getvalue())


def read(path: str | os.PathLike) -> GeneGraph:
    """Return the graph in the file `path`.

    Raises:
      FileNotFoundError: no such file. ValueError: not a gene graph, or of a later version. OSError: damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such gene graph; make one: python -m experiments.go_graph --output={path}")
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except ValueError:
        raise ValueError(f"{path}: not a gene graph: python -m experiments.go_graph makes them") from None
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise OSError(f"{path}: damaged gene graph ({error}): copy it again or make it anew") from None
    if set(arrays) != {*_TYPES, "genes", "meta"}:
        raise ValueError(f"{path}: not a gene graph (it holds {', '.join(sorted(arrays)[:5])})")
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
        version, checksum = (meta.pop("format"), meta["schema"]), meta.pop("crc32c")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OSError(f"{path}: damaged gene graph: copy it again or make it anew") from None
    if version[0] != FORMAT or version[1] > SCHEMA:
        raise ValueError(f"{path}: {version[0]} of schema {version[1]}: this version reads up to {SCHEMA}")
    if _checksum(arrays, {"format": FORMAT} | meta) != checksum:
        raise OSError(f"{path}: damaged gene graph (its checksum differs): copy it again or make it anew")
    del meta["schema"]
    return GeneGraph(arrays.pop("genes").tobytes().decode().split("\n"), **arrays, meta=meta)


def _text(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _checksum(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> str:
    described = [json.dumps(meta, sort_keys=True).encode()]
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        described += [f"{name} {array.dtype.str} {array.shape}".encode(), array.tobytes()]
    return crc32c(b"\n".join(described))
