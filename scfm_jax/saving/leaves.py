"""The leaves of a tree by their names: {"params/encoder/kernel": array, ...}, and what was written down about them."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scfm_jax.saving.checksums import checksums


def path_name(path: tuple) -> str:
    """Return a leaf's path as one string, "params/encoder_0/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten(tree: Any) -> dict[str, Any]:
    """Return {"params/encoder/kernel": leaf, ...} in flattening order."""
    return {
        path_name(path): leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict that the names describe."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return nested


def table_of(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return shape, dtype and checksum of every leaf, JSON-able."""
    sums = checksums(leaves)
    return {n: {"shape": list(a.shape), "dtype": str(a.dtype), "checksum": sums[n]} for n, a in leaves.items()}


def difference(leaves: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what is wrong with `leaves` against a `table_of` them, in words; "" if nothing is."""
    if leaves.keys() != table.keys():
        return f"leaves {sorted(leaves.keys() ^ table.keys())[:3]} are missing or unknown"
    sums = checksums(leaves)
    wrong = [n for n, row in table.items() if sums[n] != row["checksum"] or str(leaves[n].dtype) != row["dtype"]]
    return f"checksum of {', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''} ({len(wrong)} leaves)" if wrong else ""
