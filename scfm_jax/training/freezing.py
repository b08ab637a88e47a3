"""Which parameters are the first n layers of a model, stacked for a scan or not."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from scfm_jax.saving.leaves import path_name


def first_layers(params: Any, n: int, layers: Mapping[str, Any]) -> Any:
    """Return what the first `n` layers and all before them are: a tree of bools, or of one bool per layer of a stack.

    Args:
      layers: a model's TUNING. Its "layers" are counted in the order of the forward pass; the i-th layers of stacks
        that work side by side count as one. A stack for a scan holds its layers along its first axis, and where only
        some of them are meant the bool is an array [L, 1, ...].

    Raises ValueError where there are not so many.
    """
    names = {path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    place, start = {}, 0  # of each parameter: the numbers of its layers
    for group in layers["layers"]:
        depth = 0
        for stack in group:
            for name, shape in names.items():
                if name.startswith(f"{stack}s/"):
                    place[name] = start + np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
                elif match := re.match(rf"{re.escape(stack)}_(\d+)/", name):
                    place[name] = np.asarray(start + int(match[1]))
                else:
                    continue
                depth = max(depth, int(place[name].max()) + 1 - start)
        start += depth
    if not 0 <= n <= start:
        raise ValueError(f"optim.frozen_layers={n}: must be from 0 to {start}, the layers of this model")
    for name in names:
        if name not in place and n and any(re.search(pattern, name) for pattern in layers["inputs"]):
            place[name] = np.asarray(-1)
    hits = {name: place.get(name, np.asarray(start)) < n for name in names}
    whole = {name: bool(hit.all()) if hit.all() == hit.any() else hit for name, hit in hits.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: whole[path_name(path)], params)
