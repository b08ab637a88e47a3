"""Published sCT weights (a haiku parameter tree) to our variables and back, their config, and their gene maps.

Names are "long_range_nt/<module>/<name>", in a safetensors or npz file. The authors' joblib file is a pickle, which is
never opened here; in an environment of yours, numpy.savez(path, **{f"{module}/{name}": array ...}) turns it into npz.
"""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scfm_jax.models.sct.network import Model
from scfm_jax.saving.published import files, stacks

ROOT = "long_range_nt"
BLOCKS = ("block", "blocks")  # one by one, stacked
VOCAB, SLOTS = "ensembl_id_vocab.json", "protein_gene_map.json"

Path = tuple[str, ...]
Entry = tuple[str, Path, str]  # published name, path in our parameters, how the array is turned, a key of TURNS


class Turn(NamedTuple):
    """How a published array differs from ours: there, back, and our shape to theirs."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


TURNS = {
    "": Turn(lambda x: x, lambda x: x, lambda shape: shape),
    "column": Turn(lambda x: x[:, 0], lambda x: x[:, None], lambda shape: (*shape, 1)),  # bias of a convolution
    "taps": Turn(*[lambda x: x.swapaxes(1, 2)] * 2, lambda shape: (shape[0], shape[2], shape[1])),  # taps, out, in
}


def params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Return the variables of `model` from a published parameter tree, flat: {"long_range_nt/stem/conv1_d/w": ...}.

    ValueError lists every unknown, missing or mis-shaped name at once.
    """
    wanted = {path: leaf.shape for path, leaf in flatten_dict(shapes(model)["params"]).items()}
    flat, wrong, expected = {}, [], set()
    for name, path, turn in entries(model):
        expected.add(name)
        if name not in state:
            wrong.append(f"missing {name}")
            continue
        right = TURNS[turn].shape(wanted[path])
        if np.shape(state[name]) == right:
            flat[path] = jnp.asarray(TURNS[turn].ours(np.asarray(state[name], np.float32)))
        else:
            wrong.append(f"shape of {name} {np.shape(state[name])}, which should be {right}")
    wrong += [f"unknown {name}" for name in state if name not in expected]
    if wrong:
        raise ValueError(f"{len(wrong)} names of the parameter tree do not fit this config: {'; '.join(wrong)}")
    tree = unflatten_dict(flat)
    return {"params": stacks.stack(tree, *BLOCKS, model.num_layers) if model.scan else tree}


def state_dict(variables: dict[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Return the parameters (or gradients) of `model` under their published names and in their published shapes."""
    flat = flatten_dict(stacks.unstack(variables["params"], *BLOCKS))
    return {name: TURNS[turn].theirs(np.asarray(flat[path])) for name, path, turn in entries(model)}


def shapes(model: Model) -> dict[str, Any]:
    """Return the shapes of all variables of `model` with its blocks unrolled, without computing anything."""
    model = model.clone(scan=False, remat=False)
    inputs = {"tokens": jnp.zeros((1, 1, model.n_genes), jnp.int32), "edges": jnp.zeros((1, 1, model.n_bins))}
    inputs |= {"cell_mask": jnp.ones((1, 1), bool), "coords": jnp.zeros((1, 1, 2))}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=True))


def entries(model: Model) -> Iterator[Entry]:
    """Yield where every published name goes in the parameters of `model` with its blocks unrolled."""
    yield f"{ROOT}/~/embed/embeddings", ("tokens",), ""
    if model.spatial != "none":
        yield from _affine("spatial_encoding/~/spatial_fully_connected", "position")
    yield from _convolution("stem/conv1_d", "", "stem")
    for i in range(model.num_downsamples):
        down, up = f"conv_block_{i}", f"deconv_block_{i}"
        yield from _layers(model, f"{down}/conv_block", "conv1_d", "", f"down_{i}", "")
        yield from _layers(model, f"{down}/residual_conv_block/conv_block", "conv1_d", "", f"down_{i}", "residual_")
        yield from _layers(model, f"{up}/de_conv_block", "conv1_d_transpose", "taps", f"up_{i}", "")
        residual = f"{up}/residual_de_conv_block/de_conv_block"
        yield from _layers(model, residual, "conv1_d_transpose", "taps", f"up_{i}", "residual_")
    for i in range(model.num_layers):
        theirs, ours = f"attention_layer_{i}/~", f"block_{i}"
        names = {"query": "query", "key": "key", "value": "value", "mha_output": "out"}
        for name in names:
            for leaf, our_leaf in (("w", "kernel"), ("b", "bias")):
                yield f"{ROOT}/{theirs}/self_attention/{name}/{leaf}", (ours, names[name], our_leaf), ""
        for name, our_name in (("self_attention_layer_norm", "norm1"), ("final_layer_norm", "norm2")):
            yield f"{ROOT}/{theirs}/{name}/scale", (ours, our_name, "scale"), ""
            yield f"{ROOT}/{theirs}/{name}/offset", (ours, our_name, "bias"), ""
        yield f"{ROOT}/{theirs}/fc1/w", (ours, "mlp_in", "kernel"), ""
        yield f"{ROOT}/{theirs}/fc2/w", (ours, "mlp_out", "kernel"), ""
    for i in range(model.head_layers + 1):
        yield from _affine(f"linear_{i}" if i else "linear", f"head_{i}")


def _affine(theirs: str, ours: str) -> Iterator[Entry]:
    yield f"{ROOT}/{theirs}/w", (f"{ours}_kernel",), ""
    yield f"{ROOT}/{theirs}/b", (f"{ours}_bias",), ""


def _convolution(theirs: str, turn: str, *ours: str) -> Iterator[Entry]:
    yield f"{ROOT}/{theirs}/w", (*ours, "kernel"), turn
    yield f"{ROOT}/{theirs}/b", (*ours, "bias"), "column"


def _layers(model: Model, theirs: str, kind: str, turn: str, stage: str, prefix: str) -> Iterator[Entry]:
    """Yield the entries of a norm and the convolution after it."""
    if model.norm not in ("no_affine", "none"):
        for leaf in ("scale", "offset"):
            yield f"{ROOT}/{theirs}/layer_norm/{leaf}", (stage, f"{prefix}norm", leaf), ""
    yield from _convolution(f"{theirs}/{kind}", turn, stage, f"{prefix}conv")


# ------------------------------------------------------------------------------------------------------ config, files


SAME = ("num_downsamples", "embed_dim", "num_layers", "num_scales", "sigma_min", "sigma_max")
RENAMED = {
    "token_embed_dim": "token_dim",
    "ffn_embed_dim": "ffn_dim",
    "attention_heads": "num_heads",
    "num_hidden_layers_head": "head_layers",
    "use_skip_connection": "skip",
}
OPTIONAL = {"num_scales": 10, "sigma_min": 1.0, "sigma_max": 10.0, "num_hidden_layers_head": 1, "key_size": None}
FIXED = {"layer_norm_eps": 1e-5}
IGNORED = ("interpolation_method", "max_positions", "embeddings_layers_to_save", "attention_maps_to_save")
"""Keys without an effect on what the model computes: two that the code never reads, two of what it returns besides."""


def config(published: dict[str, Any], n_genes: int = 0) -> dict[str, dict[str, Any]]:
    """Return the "model", "inputs" and "loss" keywords of a published config (jax_params/config.json).

    Args:
      n_genes: length of the gene list, before padding.

    "data" has the number of cells of a bag, where it is there. ValueError names keys that are missing, and token ids or
    an epsilon that no published config has.
    """
    files.check_fixed(published, FIXED)
    c = OPTIONAL | published
    needed = [*SAME, *RENAMED, "alphabet_size", "mask_token_id", "pad_token_id"]
    if missing := [key for key in needed if key not in c]:
        raise ValueError(f"published config: no {', '.join(missing)}; is this an sCT config?")
    n_bins = c["alphabet_size"] - 2
    if (c["mask_token_id"], c["pad_token_id"]) != (n_bins, n_bins + 1):
        ids = ", ".join(f"{key}={c[key]}" for key in ("mask_token_id", "pad_token_id", "alphabet_size"))
        raise ValueError(f"published config: {ids}: only mask and padding as the last two are supported")
    model = {key: c[key] for key in SAME} | {ours: c[theirs] for theirs, ours in RENAMED.items()}
    model |= {"n_genes": n_genes, "n_bins": n_bins, "pooling": "avg", "pos": "rope", "norm": "shared"}
    model["key_size"] = c["key_size"] or c["embed_dim"] // c["attention_heads"]
    model["remat"] = bool(c.get("use_gradient_checkpointing", False))
    model["spatial"] = "code" if c.get("use_spatial_information") else "none"
    inputs = {"n_bins": n_bins, "score_unmeasured": True, "coords": "raw"}
    bag = {"data": {"bag": c["num_cells"]}} if "num_cells" in c else {}
    return {"model": model, "inputs": inputs, "loss": {}, **bag}


def load(
    path: str | pathlib.Path,
    config_path: str | pathlib.Path,
    vocab: str | pathlib.Path | None = None,
    slots: str | pathlib.Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (config, variables, gene names) of published weights (safetensors or npz) and their config.json.

    Args:
      vocab, slots: the gene maps, see `genes`; by default the files of their published names beside the config.

    ValueError or OSError says in one line which of the files is not what it should be.
    """
    folder = pathlib.Path(config_path).parent
    names = genes(vocab or folder / VOCAB, slots or folder / SLOTS)
    settings = config(files.json_object(config_path), len(names))
    return settings, params(read(path), Model(**settings["model"])), names


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors or npz file by name; nothing is unpickled."""
    if pathlib.Path(path).suffix == ".joblib":
        raise ValueError(f"{path}: a joblib file is a pickle and can run code; give its arrays as npz or safetensors")
    return files.arrays(path)


def genes(vocab: str | pathlib.Path, slots: str | pathlib.Path) -> list[str]:
    """Return the model's genes in the order of their slots, by Ensembl id where one is known, else "census:<index>".

    Args:
      vocab: JSON of Ensembl id -> index in the Census (ensembl_id_vocab.json).
      slots: JSON of that index, as a string -> slot of the model (protein_gene_map.json).
    """
    return slot_names(files.json_object(vocab), files.json_object(slots), f"{vocab}, {slots}")


def slot_names(vocab: dict[str, int], slots: dict[str, int], source: str = "gene maps") -> list[str]:
    """Return what `genes` returns, from what is in its files; ValueError where the slots are not 0, 1, 2, ..."""
    try:
        places = {int(index): int(slot) for index, slot in slots.items()}
        ids = {int(index): name for name, index in reversed(vocab.items())}  # the first of two names wins
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{source}: should be an object of ids and one of slots, both to whole numbers") from None
    if sorted(places.values()) != list(range(len(places))):
        raise ValueError(f"{source}: {len(places)} slots, but not each of 0 ... {len(places) - 1} once")
    return [ids.get(index, f"census:{index}") for index in sorted(places, key=places.get)]
