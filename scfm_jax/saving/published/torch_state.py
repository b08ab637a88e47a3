"""State dicts of torch: read from the authors' files without running code, and placed by a table of names.

Released loaders may skip names and shapes that do not fit without a word; here one error lists them all.
Torch is needed only to open the files (`pip install scfm_jax[convert]`).
"""

import pathlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]  # collection, then the keys below it
Entry = tuple[str, tuple[Path, ...], bool]  # published name, where it goes (packed: several), whether it is transposed


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the state dict in a torch file, which holds it directly or under "model_state_dict"; no code is run."""
    content = content_of(path)
    state = content.get("model_state_dict", content) if isinstance(content, dict) else {}
    try:
        return tensors(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}, directly or under model_state_dict") from None


def content_of(path: str | pathlib.Path, allowed: Sequence[type] = ()) -> Any:
    """Return what is in a torch file of tensors, plain values and the `allowed` types; no code is run."""
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path}: reading torch files needs torch: pip install 'scfm_jax[convert]'") from None
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        raise ValueError(f"{path}: not a torch file of plain tensors ({type(error).__name__})") from None


def tensors(found: Any) -> dict[str, np.ndarray]:
    """Return torch's tensors by name as float32 arrays; ValueError where they are not such."""
    import torch

    if not isinstance(found, dict) or not found or not all(isinstance(x, torch.Tensor) for x in found.values()):
        raise ValueError("holds no state dict (tensors by name)")
    return {name: value.float().numpy() for name, value in found.items()}


def _is_zip(path: str | pathlib.Path) -> bool:
    """Whether the file is of torch's newer format, of which a part can be read: optimiser states stay on the disk."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def variables(
    state: dict[str, np.ndarray], entries: Iterable[Entry], shapes: dict[str, Any], left_over: Collection[str] = ()
) -> dict[str, Any]:
    """Return the tree of `shapes` filled from a state dict, with or without the "module." of DDP.

    `left_over`: names that are rightly not used. ValueError lists every unknown, missing or mis-shaped name at once.
    """
    state = {name.removeprefix("module."): np.asarray(value) for name, value in state.items()}
    wanted = flatten_dict(shapes)
    flat, wrong, expected = {}, [], set()
    for name, paths, transposed in entries:
        expected.add(name)
        if name not in state:
            wrong.append(f"missing {name}")
            continue
        parts = np.split(state[name], len(paths)) if len(paths) > 1 else [state[name]]
        for path, part in zip(paths, parts, strict=True):
            part = part.T if transposed else part
            if part.shape != wanted[path].shape:
                wrong.append(f"shape of {name} {state[name].shape}, which should give {wanted[path].shape}")
            flat[path] = jnp.array(part, wanted[path].dtype)  # a copy: the file may be mapped
    wrong += [f"unknown {name}" for name in state if name not in expected and name not in left_over]
    if wrong:
        raise ValueError(f"{len(wrong)} names of the state dict do not fit this config: {'; '.join(wrong)}")
    return unflatten_dict(flat)


def state_dict(tree: dict[str, Any], entries: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Return variables (or gradients: missing collections are left out) under their published names."""
    flat = flatten_dict(tree)
    state = {}
    for name, paths, transposed in entries:
        if all(path in flat for path in paths):
            parts = [np.asarray(flat[path]) for path in paths]
            parts = [part.T if transposed else part for part in parts]
            state[name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return state


def linear(name: str, *path: str, bias: bool = True) -> Iterator[Entry]:
    """Yield the entries of a linear map: published name, where it is in our parameters."""
    yield f"{name}.weight", (("params", *path, "kernel"),), True
    if bias:
        yield f"{name}.bias", (("params", *path, "bias"),), False


def norm(name: str, *path: str, bias: bool = True) -> Iterator[Entry]:
    """Yield the entries of a normalisation; see `linear`."""
    yield f"{name}.weight", (("params", *path, "scale"),), False
    if bias:
        yield f"{name}.bias", (("params", *path, "bias"),), False
