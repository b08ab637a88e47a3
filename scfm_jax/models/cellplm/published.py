"""Published CellPLM weights to our variables and back: a table of names, the config, and the file formats.

Torch is needed only to open the authors' files, see `torch_state`.
"""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.models.cellplm.encoder import KINDS
from scfm_jax.models.cellplm.network import Model
from scfm_jax.saving.published import files, stacks, torch_state
from scfm_jax.saving.published.torch_state import Entry, Path, linear, norm

LAYERS = ("layer", "layers")  # one by one, stacked
# In checkpoints, but without any influence on the released model's outputs (the positional term is multiplied away).
UNUSED = re.compile(r"embedder\.norm0\.|embedder\.pe_enc\.|decoder\.layer_norm\.")


def params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Return the variables of `model` from a published state dict, with or without the "module." of DDP.

    ValueError lists every unknown, missing or mis-shaped name at once. See `unused` for what is rightly left over.
    """
    tree = torch_state.variables(state, entries(model), shapes(model), unused(state, model))
    return _encoder(tree, lambda layers: stacks.stack(layers, *LAYERS, model.enc_layers)) if model.scan else tree


def unused(state: dict[str, np.ndarray], model: Model) -> list[str]:
    """Return the names in a published state dict that belong to CellPLM but not to this `model`."""
    names = {name.removeprefix("module.") for name in state} - {name for name, *_ in entries(model)}
    beyond = re.compile(r"decoder\." if model.head != "decoder" else r"head\.")
    return sorted(name for name in names if UNUSED.match(name) or beyond.match(name))


def state_dict(variables: dict[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Return variables (or gradients: missing collections are left out) under their published names."""
    alone = _encoder(variables, lambda tree: stacks.unstack(tree, *LAYERS))
    return torch_state.state_dict(alone, entries(model))


def shapes(model: Model) -> dict[str, Any]:
    """Return the shapes of all variables of `model` with its layers unrolled, without computing anything."""
    model = model.clone(scan=False, remat=False)
    cell = jnp.zeros((1, 1), jnp.int32)
    inputs = {"slots": cell[..., None], "values": jnp.zeros((1, 1, 1)), "counts": jnp.zeros((1, 1, 1))}
    inputs |= {"cell_mask": cell == 0, "coords": jnp.zeros((1, 1, 2)), "batch": cell, "study": cell, "step": 0}
    keys = dict(zip(("params", "dropout", "latent"), jax.random.split(jax.random.key(0), 3), strict=True))
    return jax.eval_shape(lambda: model.init(keys, inputs))


# ------------------------------------------------------------------------------------------------------------- names


def entries(model: Model) -> Iterator[Entry]:
    """Yield where every published name goes in the variables of `model` with its layers unrolled.

    ValueError where the model has a part that only the paper has.
    """
    for name, printed in {"latent_mod": "gmvae_paper", "dec_mod": "ff"}.items():
        if getattr(model, name) == printed:
            raise ValueError(f"{name}={printed!r}: as the paper prints it; no released weights have this layout")
    yield "embedder.feat_enc.emb", (("params", "genes"),), False
    yield from linear("embedder.extra_linear.0", "embed_linear")
    yield from _norm("embedder.extra_linear.3", "embed_norm", model.norm)
    if model.pe != "none":
        yield "embedder.pe_enc.missing_pe", (("params", "position", "missing"),), False
    if model.pe == "learned":
        yield "embedder.pe_enc.pe_enc.weight", (("params", "position", "table"),), False
    if model.input_covariate:
        yield "embedder.cov_enc.weight", (("params", "covariates"),), False
    if model.enc_mod != "none":
        for i in range(model.enc_layers):
            yield from block_entries(model.enc_mod, f"encoder.layers.{i}.", ("encoder", f"layer_{i}"), model.norm)
    yield from _norm("pre_latent_norm.norm", "pre_latent_norm", "layernorm")
    yield from _latent(model.latent_mod)
    if model.head == "annotation":
        stride, first = (3, 1) if model.dropout > 0 else (2, 0)  # the original leaves out Dropout(0) from its list
        for i in range(model.dec_layers):
            yield from linear(f"head.mlp.{stride * i + first}", "head", f"linear_{i}")
    elif model.head == "decoder":
        yield from _decoder(model)


def block_entries(kind: str, name: str, path: Path, norm: str = "groupnorm") -> Iterator[Entry]:
    """Yield the entries of one encoder layer of `kind`, whose published names begin with `name`."""
    if kind == "mlp":
        yield from linear(f"{name}0", *path, "mlp")
        yield f"{name}1.weight", (("params", *path, "prelu", "slope"),), False
        yield from _norm(f"{name}3", *path, "norm", norm)
        return
    here, parts = (*path, "attention"), ("query", "key", "value", "out")
    if kind == "transformer":
        for leaf, ours in (("weight", "kernel"), ("bias", "bias")):
            packed = tuple(("params", *here, part, ours) for part in parts[:3])
            yield f"{name}layer.self_attn.in_proj_{leaf}", packed, leaf == "weight"
        yield from linear(f"{name}layer.self_attn.out_proj", *here, "out")
    else:
        forms = {"flowformer": "{}_projection", "cosformer": "{:.1}_proj", "performer": "to_{:.1}"}
        for part in parts:
            theirs = forms[kind].format(part) if part != "out" else forms[kind].replace(":.1", "").format(part)
            yield from linear(f"{name}self_attn.{theirs}", *here, part, bias=kind != "performer" or part == "out")
    if kind == "performer":
        projection = ("constants", *here, "projection")
        yield f"{name}self_attn.fast_attention.projection_matrix", (projection,), False
    vanilla = kind == "transformer"
    layers = ("layer.linear1", "layer.linear2") if vanilla else ("_ff_block.0", "_ff_block.3")
    for theirs, ours in zip(layers, ("mlp_in", "mlp_out"), strict=True):
        yield from linear(name + theirs, *path, ours)
        if vanilla:
            yield f"{name}{theirs}.sigma", (("params", *path, ours, "gain"),), False
            yield f"{name}{theirs}.u", (("buffers", *path, ours, "u"),), False
            yield f"{name}{theirs}.spectral_norm", (("buffers", *path, ours, "norm"),), False
    rms = kind in ("performer", "transformer")
    for ours in ("norm1", "norm2"):
        yield from _norm(f"{name}{'layer.' * vanilla}{ours}", *path, ours, "rmsnorm" if rms else "layernorm")


def _latent(kind: str) -> Iterator[Entry]:
    name = "latent.layers.1"
    maps = {
        "vae": {"hid_2mu": "mean", "hid_2sigma": "log_var"},
        "ae": {"lat_2lat.0": "linear"},
        "none": {},
        "gmvae": {
            "inference.inference_qyx.0.logits": "logits",
            "inference.inference_qzyx.0": "hidden",
            "inference.inference_qzyx.2.mu": "mean",
            "inference.inference_qzyx.2.var": "var",
            "inference.y_mu": "y_mean",
            "inference.y_var": "y_var",
        },
    }
    for theirs, ours in maps[kind].items():
        yield from linear(f"{name}.{theirs}", "latent", ours)


def _decoder(model: Model) -> Iterator[Entry]:
    nbmlp = model.dec_mod == "nbmlp"
    sizes = {"batch": model.n_batches, "dataset": model.n_studies, "platform": model.n_platforms}
    for i in range(model.dec_layers - 1):
        yield from linear(f"decoder.layers.{i}.0", "decoder", f"linear_{i}")
        yield f"decoder.layers.{i}.1.weight", (("params", "decoder", f"prelu_{i}", "slope"),), False
        yield from _norm(f"decoder.layers.{i}.3", "decoder", f"norm_{i}", model.norm)
        for theirs in (name for name, size in sizes.items() if size and nbmlp):
            ours = f"{'study' if theirs == 'dataset' else theirs}_{i}"
            name = f"decoder.covariate_layers.{i}.{theirs}"
            yield f"{name}.0.weight", (("params", "decoder", f"{ours}_table"),), False
            yield f"{name}.1.weight", (("params", "decoder", f"{ours}_prelu", "slope"),), False
            yield from _norm(f"{name}.2", "decoder", f"{ours}_norm", model.norm)
    if nbmlp:
        yield from linear("decoder.out_layer.dec_1", "decoder", "hidden")
        yield "decoder.out_layer.dec_disp", (("params", "decoder", "log_theta"),), False
    yield from linear("decoder.out_layer.dec_mean.0" if nbmlp else "decoder.out_layer.0", "decoder")


def _norm(name: str, *path_and_kind: str) -> Iterator[Entry]:
    *path, kind = path_and_kind
    yield from norm(name, *path, bias=kind != "rmsnorm")


def _encoder(variables: dict[str, Any], change: Callable[[dict], dict]) -> dict[str, Any]:
    """Return the variables with what `change` makes of the encoder's, in each collection."""
    return {
        collection: {name: change(value) if name == "encoder" else value for name, value in tree.items()}
        for collection, tree in variables.items()
    }


# ------------------------------------------------------------------------------------------------------------ config


DEFAULTS = dict(
    enc_head=8, latent_mod="vae", dec_mod="nbmlp", norm="layernorm", model_dropout=0.1, mask_node_rate=0.5,
    mask_feature_rate=0.8, mask_beta=False, drop_node_rate=0.0, max_batch_size=2000, w_li=1.0, w_en=1.0, lamda=0.5,
    num_clusters=16, batch_num=0, dataset_num=0, platform_num=0, input_covariate=False, dae=True, head_type=None,
)  # fmt: skip
OBJECTIVES = {"nb": "nb", "recon": "recon", "imputation": "imputation", "denoising": "denoise", "denoise": "denoise"}
FIXED = {"dsbn": False, "dar": False, "ecs": False, "cat_pe": False, "mask_type": "input"}
CHOICES = {
    "enc_mod": KINDS,
    "latent_mod": ("gmvae", "vae", "ae", "none"),
    "dec_mod": ("nbmlp", "mlp"),
    "norm": ("groupnorm", "layernorm"),
    "head_type": (None, "annotation", "embedder"),
    "objective": tuple(OBJECTIVES),
}
IGNORED = ("activation", "pe_type", "gene_emb", "w_ce", "cat_dim", "conti_dim")
"""Arguments without an effect: never read, multiplied away, the start of a table, and those of latent_mod "split"."""


def config(published: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the "model", "inputs" and "loss" keywords of a published config (its keys, the released code's defaults).

    Covariates are off: what the rows of the published tables stand for was never released. ValueError names an option
    that no published checkpoint uses and that is not supported, or a key that is missing.
    """
    c = DEFAULTS | published
    files.check_fixed(published, FIXED)
    for key, values in CHOICES.items():
        if key in c and c[key] not in values:
            raise ValueError(f"published config: {key}={c[key]!r}: only {', '.join(map(repr, values))} are supported")
    needed = ("enc_mod", "enc_hid", "enc_layers", "post_latent_dim", "dec_hid", "dec_layers")
    if missing := [key for key in needed if key not in c]:
        raise ValueError(f"published config: no {', '.join(missing)}; is this a CellPLM config?")
    head = c["head_type"] or "decoder"
    kind = c.get("objective", "nb" if "nb" in c["dec_mod"] else "recon")
    objective = "annotation" if head == "annotation" else OBJECTIVES[kind]
    same = ("enc_mod", "enc_hid", "enc_layers", "enc_head", "latent_mod", "num_clusters", "w_li", "w_en", "lamda",
            "dec_mod", "dec_hid", "dec_layers", "norm", "input_covariate")  # fmt: skip
    n_genes = len(c["gene_list"]) if "gene_list" in c else c.get("n_genes", c.get("out_dim", 0))
    sizes = dict(n_genes=n_genes, n_batches=c["batch_num"], n_studies=c["dataset_num"], n_platforms=c["platform_num"])
    model = {key: c[key] for key in same} | sizes
    model |= dict(latent_dim=c["post_latent_dim"], dropout=c["model_dropout"], head=head, pe="none", cov_absent="sum")
    if head == "annotation":
        model["n_classes"] = c.get("out_dim", 0)
    rates = ("mask_node_rate", "mask_feature_rate", "mask_beta", "drop_node_rate")
    inputs = {key: c[key] for key in rates} | {"max_cells": c["max_batch_size"], "covariates": False}
    inputs["score"] = "masked" if objective in ("nb", "recon") else "all"
    return {"model": model, "inputs": inputs, "loss": {"objective": objective, "dae": c["dae"]}}


def load(path: str | pathlib.Path, config_path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (config, variables, gene names) of a published checkpoint (.best.ckpt) and its .config.json.

    ValueError or OSError says in one line which of the two is not what it should be.
    """
    published = files.json_object(config_path)
    if not published.get("gene_list"):
        raise ValueError(f"{config_path}: no gene_list; give the .config.json that was published with the checkpoint")
    settings = config(published)
    variables = params(torch_state.read(path), Model(**settings["model"]))
    return settings, variables, list(published["gene_list"])
