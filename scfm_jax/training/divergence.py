"""What is left of a run whose loss is not finite any more: which checkpoints are from before, and how to go on."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from scfm_jax.saving import checkpoint

GROWN = 1000.0
"""Weights are not of ordinary size once their norm is so many times that of the run's first ones."""
_BLOCK = 1 << 22


def norm(params: Any) -> float:
    """Return the Euclidean norm of all parameters, on the host and in double precision; every process calls it."""
    total = 0.0
    for leaf in jax.tree.leaves(params):
        shards = leaf.addressable_shards if isinstance(leaf, jax.Array) else ()
        parts = [shard.data for shard in shards if shard.replica_id == 0] if shards else [leaf]
        for part in parts:
            flat = np.asarray(part).reshape(-1)
            for start in range(0, flat.size, _BLOCK):
                block = flat[start : start + _BLOCK].astype(np.float64)
                total += float(block @ block)
    if jax.process_count() > 1:  # norms, not squares: they travel in single precision
        total = float((multihost_utils.process_allgather(np.float32(math.sqrt(total))).astype(np.float64) ** 2).sum())
    return math.sqrt(total)


def way_out(folder: pathlib.Path) -> str:
    """Return in words which checkpoint of `folder` is the last from before the weights grew, and how to go on."""
    norms, good = {}, None
    for step in checkpoint.steps(folder):
        try:
            progress = checkpoint.read_meta(folder, step).get("progress", {})
        except ValueError:
            continue
        now, first = progress.get("norm"), progress.get("first_norm")
        norms[step] = now
        if now is not None and now <= GROWN * max(first, 1.0) and not progress.get("skipped"):
            good = step, now, first
    if not norms:
        return "there is no checkpoint; start again with a lower optim.learning_rate"
    later = {step: now for step, now in norms.items() if good is None or step > good[0]}
    sizes = ", ".join(
        f"step {step}: {now:.3g}" if now is not None else f"step {step}: unknown" for step, now in later.items()
    )
    if good is None:
        return (
            f"no checkpoint is from before the weights grew (their norms: {sizes}); "
            "start again in another --workdir with a lower optim.learning_rate"
        )
    step, now, first = good
    rest = f"; later steps have larger ones or were saved while updates were skipped ({sizes})" if later else ""
    return (
        f"the weights of step {step} are of ordinary size (norm {now:.3g}, at the start {first:.3g}){rest}; go on from "
        f"there with a lower rate: the same command with --config.train.rewind={step} --config.optim.learning_rate=RATE"
    )


def rewinds(rewind: int, saved: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    """Return whether a run goes back to the step `rewind`, rather than on from its newest checkpoint.

    It does once for each step and optimiser that are asked for: `saved`, the metadata of the newest checkpoint, say
    whether that one was made since.
    """
    old, new = (json.loads(json.dumps(meta.get("config", {}))) for meta in (saved, metadata))
    return bool(rewind) and (old.get("train", {}).get("rewind") != rewind or old.get("optim") != new.get("optim"))
