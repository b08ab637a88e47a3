"""Light fine-tuning of any model, the section `tune` of a config: what is added to its parameters and what is trained.

  full    nothing is added, everything is trained
  lora    low-rank factors beside some kernels (see `lora`), under "lora" of the parameters; they alone are trained
  prefix  learned keys and values in every layer (see `layers.prefix`); they alone are trained, or with `vectors` the
          maps that make them of given vectors (knowledge of genes, say), under "vectors" of the parameters
  frozen  nothing of the model is trained

What a task adds lies under "task" and is always trained; `optim.frozen` and `optim.frozen_layers` hold of all methods.
The model's own parameters keep their names, so that a run begins with those of another. `merged` gives back what the
model alone needs; checkpoints hold everything, and the file of `save` only what was trained.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.saving import checksums, weights
from scfm_jax.saving.leaves import flatten, nest, path_name
from scfm_jax.training import lora, optim
from scfm_jax.training.step import Objective
from scfm_jax.types import Array, Batch, TrainState

METHODS = ("full", "lora", "prefix", "frozen")
LORA, VECTORS, TASK = "lora", "vectors", "task"
FORMAT = "tuned"
FILE = "tuned.safetensors"
WHOLE = (f"{TASK}/", f"{VECTORS}/")
PREFIX = r"(.*/)?prefix_(key|value)$"
PASSES = {"full": 3, "lora": 2, "prefix": 2, "frozen": 1}
"""See `step.Objective`: with additions alone trained, gradients pass through the layers but not to their kernels."""
TRAINED = {"lora": f"{LORA}/", "prefix": PREFIX, "frozen": "$"}


def options(
    module: ModuleType,
    *,
    method: str = "full",
    targets: Sequence[str] = (),
    rank: int = 8,
    alpha: float = 16.0,
    length: int = 10,
    vectors: str | None = None,
) -> dict[str, Any]:
    """Return the section `tune` of a config with all of its keys.

    Args:
      module: the model's file.
      method: one of METHODS.
      targets: regular expressions of the kernels that get factors; those of the model's TUNING by default.
      rank, alpha: of the factors, see `lora.init`.
      length: keys and values of each layer with method "prefix".
      vectors: a .npy file of vectors [S, E] that each layer projects to its keys and values; then `length` is S.

    Raises ValueError for options that there are not.
    """
    if method not in METHODS:
        raise ValueError(f"tune.method={method!r}: must be one of {', '.join(METHODS)}")
    if length < 1:
        raise ValueError(f"tune.length={length}: must be at least 1")
    if vectors and method != "prefix":
        raise ValueError(f"tune.vectors={vectors}: they become prefixes, so they need tune.method=prefix")
    if vectors:
        length = len(read_vectors(vectors))
    targets = tuple(targets) or module.TUNING["lora"]
    return {"method": method, "targets": targets, "rank": rank, "alpha": alpha, "length": length, "vectors": vectors}


def read_vectors(path: str) -> np.ndarray:
    """Return the vectors of a .npy file, float32 [S, E]; ValueError where it holds something else."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"tune.vectors={path}: no such file")
    vectors = np.load(path, allow_pickle=False)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating) or not np.isfinite(vectors).all():
        raise ValueError(f"tune.vectors={path}: must be a matrix of finite numbers, one row a vector")
    return vectors.astype(np.float32)


def model_options(tune: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the model that the method sets."""
    return {"prefix": tune["length"]} if tune["method"] == "prefix" else {}


def frozen(tune: Mapping[str, Any]) -> tuple[str, ...]:
    """Return regular expressions of the parameters that the method does not train; () where it trains all."""
    if tune["method"] == "full":
        return ()
    trained = f"{VECTORS}/maps/" if tune["vectors"] else TRAINED[tune["method"]]
    return (f"^(?!{TASK}/|{trained})",)


def objective(inner: Objective, tune: Mapping[str, Any]) -> Objective:
    """Return the objective with what the method adds to the parameters: made at the start, merged before every use."""
    inner, added = inner._replace(passes=PASSES[tune["method"]]), _added(tune)
    if added is None:
        return inner

    def init(rng: Array, batch: Batch, constants: dict[str, Array]) -> Any:
        variables = dict(inner.init(rng, batch, constants))
        more = added(jax.random.fold_in(rng, 1), variables["params"])
        return {**variables, "params": {**variables["params"], **more}}

    def loss(params: Any, *args: Any) -> Any:
        return inner.loss(merged(params, tune), *args)

    return inner._replace(init=init, loss=loss)


def merged(params: Mapping[str, Any], tune: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters with factors and projected prefixes put into those of the model, a task's beside them."""
    model_params = {name: x for name, x in params.items() if name not in (LORA, VECTORS)}
    if LORA in params:
        task = {name: model_params.pop(name) for name in (TASK,) if name in model_params}
        model_params = {**lora.merge(model_params, adapter(params, tune)), **task}
    if VECTORS in params:
        vectors = jnp.asarray(params[VECTORS]["given"])
        made = {name.removesuffix("/map"): vectors @ x for name, x in flatten(params[VECTORS]["maps"]).items()}
        model_params = jax.tree_util.tree_map_with_path(lambda path, x: made.get(path_name(path), x), model_params)
    return model_params


def adapter(params: Mapping[str, Any], tune: Mapping[str, Any]) -> lora.Adapter:
    """Return the factors among the parameters as `lora` knows them."""
    factors: dict[str, dict[str, Array]] = {}
    for name, x in flatten(params[LORA]).items():
        kernel, side = name.rsplit("/", 1)
        factors.setdefault(kernel, {})[side] = x
    return lora.Adapter(factors, tune["alpha"] / tune["rank"])


def _added(tune: Mapping[str, Any]) -> Callable[[Array, Any], dict[str, Any]] | None:
    """Return the function from (key, parameters) to what the method adds to them; None for nothing."""
    if tune["method"] == "lora":

        def factors(key: Array, params: Any) -> dict[str, Any]:
            model_params = {name: x for name, x in params.items() if name != TASK}
            made = lora.init(key, model_params, tune["targets"], tune["rank"], tune["alpha"]).factors
            return {LORA: nest({f"{name}/{side}": x for name, pair in made.items() for side, x in pair.items()})}

        return factors
    if tune["vectors"]:
        vectors = read_vectors(tune["vectors"])

        def maps(key: Array, params: Any) -> dict[str, Any]:
            places = jax.tree.leaves(optim.matches(params, (f"^{PREFIX}",), "prefix"))
            leaves = jax.tree_util.tree_leaves_with_path(params)
            prefixes = [(path_name(path), x.shape) for (path, x), hit in zip(leaves, places, strict=True) if hit]
            made = {}
            for one, (name, shape) in zip(jax.random.split(key, len(prefixes)), prefixes, strict=True):
                size = (*shape[:-2], vectors.shape[1], shape[-1])
                made[f"{name}/map"] = 0.02 * jax.random.normal(one, size)
            return {VECTORS: {"given": jnp.asarray(vectors), "maps": nest(made)}}

        return maps
    return None


# ---------------------------------------------------------------------------------------------------------------- files


def save(
    path: str | os.PathLike,
    state: TrainState,
    trained: Any,
    base: Mapping[str, Any],
    meta: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
) -> None:
    """Write what was trained, and what it was trained on, to a safetensors file.

    Args:
      state: of the run. trained: of its optimiser, which parameters it changed; None for all.
      base: "path" and "digest" of the run that it began with.
      meta: of the run. constants: those that were fitted to its cells because the run that it began with lacked them.
    """
    hits = jax.tree.leaves(jax.tree.map(lambda _: True, state.params) if trained is None else trained)
    flat = flatten(state.params)
    kept = {name: x for (name, x), hit in zip(flat.items(), hits, strict=True) if np.any(hit) or name.startswith(WHOLE)}
    tree = {"params": nest(kept), "buffers": state.buffers, "constants": dict(constants or {})}
    weights.export(path, tree, {"format": FORMAT, "base": dict(base), "run": dict(meta)})


def complete(path: str | os.PathLike, content: Mapping[str, Any], part: Any, base: Any) -> dict[str, Any]:
    """Return all parameters of the run whose file `save` wrote: `part`, and the rest of `base`.

    Raises ValueError where `base` is not what the run began with.
    """
    if digest(base) != content["base"]["digest"]:
        raise ValueError(f"{path}: {content['base']['path']} has other weights than those that this was trained on")
    return nest({**flatten(base), **flatten(part)})


def digest(params: Any) -> str:
    """Return one checksum of parameters and their names, whatever their order."""
    sums = checksums.checksums(dict(sorted(flatten(params).items())))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
