"""LoRA (Hu et al., 2021) for any model: low-rank factors beside chosen kernels, as a function of the parameters.

    adapter = lora.init(key, params, ("query/kernel", "value/kernel"), rank=8, alpha=16)
    outputs = model.apply({"params": lora.apply(params, adapter)}, inputs)      trains `adapter` alone
    params = lora.merge(params, adapter)                                        for good, at no further cost

The weight itself is changed, W + alpha / r A B, not the layer, so models know nothing of it, and kernels that are
stacked for a scan or are a tap of a convolution each get factors of their own. B begins at zero: nothing changes.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from scfm_jax.saving import weights
from scfm_jax.saving.leaves import flatten, path_name
from scfm_jax.training import optim
from scfm_jax.types import Array

FORMAT = "lora"


@struct.dataclass
class Adapter:
    """What is trained.

    Attributes:
      factors: {path of the kernel: {"a": [..., fan_in, r], "b": [..., r, fan_out]}}.
      scale: alpha / r.
    """

    factors: dict[str, dict[str, Array]]
    scale: float = struct.field(pytree_node=False, default=1.0)


def init(key: Array, params: Any, patterns: Sequence[str], rank: int, alpha: float) -> Adapter:
    """Return an adapter that changes nothing yet: A uniform within 1 / sqrt(fan_in) (as in PEFT), B zero.

    Args:
      params: the parameters, or their shapes.
      patterns: regular expressions, searched for in paths such as "block_0/query/kernel".
      rank: r, at most the smaller side of every kernel.
      alpha: the factors' product is scaled by alpha / r.

    ValueError names a pattern that finds nothing, or a parameter that is no matrix.
    """
    if not patterns:
        raise ValueError("lora patterns=(): name at least one kernel")
    hits = optim.matches(params, patterns, "lora patterns")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    chosen = {path_name(p): leaf for (p, leaf), hit in zip(leaves, jax.tree.leaves(hits), strict=True) if hit}
    factors = {}
    for one, (name, leaf) in zip(jax.random.split(key, len(chosen)), sorted(chosen.items()), strict=True):
        if leaf.ndim < 2 or not 1 <= rank <= min(leaf.shape[-2:]):
            raise ValueError(f"lora: {name} {leaf.shape}: must be a matrix whose sides are at least rank={rank}")
        *more, fan_in, fan_out = leaf.shape
        bound = fan_in**-0.5
        a = jax.random.uniform(one, (*more, fan_in, rank), jnp.float32, -bound, bound)
        factors[name] = {"a": a, "b": jnp.zeros((*more, rank, fan_out))}
    return Adapter(factors, alpha / rank)


def apply(params: Any, adapter: Adapter) -> Any:
    """Return parameters with the adapter's change, through which gradients reach the adapter and nothing else."""
    return merge(jax.lax.stop_gradient(params), adapter)


def merge(params: Any, adapter: Adapter) -> Any:
    """Return parameters with the adapter's change added.

    ValueError lists kernels that the parameters do not have, or not in this shape.
    """
    shapes = {path_name(p): leaf.shape for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
    wrong = [
        f"{name} {shapes.get(name, 'missing')} under factors {f['a'].shape}, {f['b'].shape}"
        for name, f in adapter.factors.items()
        if shapes.get(name) != (*f["a"].shape[:-1], f["b"].shape[-1])
    ]
    if wrong:
        raise ValueError(f"lora: {len(wrong)} kernels do not fit these parameters: {'; '.join(wrong)}")

    def changed(path: tuple, leaf: Array) -> Array:
        factors = adapter.factors.get(path_name(path))
        if factors is None:
            return leaf
        return leaf + (adapter.scale * (factors["a"] @ factors["b"])).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(changed, params)


def save(path: str | os.PathLike, adapter: Adapter, meta: Mapping[str, Any] | None = None) -> None:
    """Write the adapter alone, with `meta` (JSON: what it was trained on), to a safetensors file."""
    content = {"format": FORMAT, "scale": adapter.scale, "meta": dict(meta or {})}
    weights.export(path, {f"{name}/{side}": x for name, f in adapter.factors.items() for side, x in f.items()}, content)


def load(path: str | os.PathLike) -> tuple[Adapter, dict[str, Any]]:
    """Return (adapter, meta) of a file of `save`; ValueError where it is damaged or something else."""
    tree, content = weights.read(path)
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: holds weights, but no LoRA adapter")
    factors: dict[str, dict[str, Array]] = {}
    for name, x in flatten(tree).items():
        kernel, side = name.rsplit("/", 1)
        factors.setdefault(kernel, {})[side] = jnp.asarray(x)
    return Adapter(factors, float(content["scale"])), content["meta"]
