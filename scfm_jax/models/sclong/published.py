"""Published scLong weights (a torch state dict) to our variables and back, and their config.

Beside the weights the authors keep the gene list (one Ensembl id a line), the gene graph (csv) and the constructor's
arguments (a pickle, which can run code and is never opened here). The config that `load` reads is a JSON file of yours:

    {"genes": "selected_genes_27k.txt", "graph": "human_ens_gene2go_graph.csv"}

beside which the two files lie; arguments that differ from those of the published model (`DEFAULTS`) go there as well,
by their names in the authors' constructor (`ARGUMENTS` lists them all).
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers import graph
from scfm_jax.models.sclong import performer
from scfm_jax.models.sclong.network import Model
from scfm_jax.saving.published import files, stacks, torch_state
from scfm_jax.saving.published.torch_state import Entry, linear, norm

STACKS = {"mini": "mini_encoder", "large": "large_encoder", "decoder": "decoder"}
LAYERS = ("layer", "layers")  # one by one, stacked
DEFAULTS = dict(
    top_seq_len=4096, base_dim=200, mini_enc_depth=2, mini_enc_heads=8, mini_enc_dim_head=64, large_dim=1280,
    large_enc_depth=42, large_enc_heads=32, large_enc_dim_head=64, dec_depth=2, dec_heads=8, dec_dim_head=64,
    feature_redraw_interval=1000, auto_check_redraw=True, generalized_attention=False, qkv_bias=False,
    g2v_position_emb=True, go_num_layers=1,
)  # fmt: skip
FIXED = dict(
    mask_token_thres=-1, ff_mult=4, local_attn_heads=0, causal=False, reversible=False, ff_glu=False, emb_dropout=0.0,
    ff_dropout=0.0, attn_dropout=0.0, kernel_fn="ReLU", use_scalenorm=False, use_rezero=False, cross_attend=False,
    no_projection=False, go_use_gene2vec=True,
)  # fmt: skip
IGNORED = ("local_window_size", "ff_chunks", "device", "gene2vec_file", "G_go", "G_go_weight")
"""Arguments that change no number: windows of local heads (there are none), memory, and where arrays lie."""
ARGUMENTS = ("max_seq_len", "nb_features", *DEFAULTS, *FIXED, *IGNORED)
RENAMED = {
    "mini_enc_depth": "mini_depth",
    "mini_enc_heads": "mini_heads",
    "mini_enc_dim_head": "mini_key_size",
    "large_enc_depth": "large_depth",
    "large_enc_heads": "large_heads",
    "large_enc_dim_head": "large_key_size",
    "dec_dim_head": "dec_key_size",
    "go_num_layers": "graph_layers",
    "g2v_position_emb": "gene_table",
}
SAME = ("top_seq_len", "base_dim", "large_dim", "dec_depth", "dec_heads", "qkv_bias")


def params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Return the variables of `model` from a published state dict, with or without the "module." of DDP.

    ValueError lists every unknown, missing or mis-shaped name at once.
    """
    return _stack(torch_state.variables(state, entries(model), shapes(model)), model)


def state_dict(variables: dict[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Return variables (or gradients: missing collections are left out) under their published names."""
    return torch_state.state_dict(_unstack(variables, model), entries(model))


def shapes(model: Model) -> dict[str, Any]:
    """Return the shapes of all variables of `model`, layer by layer, without computing anything."""
    model = model.clone(scan=False, remat=False)
    inputs = {"values": jnp.zeros((1, 1, model.n_genes)), "cell_mask": jnp.ones((1, 1), bool)}
    if model.graph:
        inputs["graph"] = graph.build(np.zeros(1), np.zeros(1), n_nodes=model.positions)
    return jax.eval_shape(lambda: _unstack(model.init(jax.random.key(0), inputs), model))


def entries(model: Model) -> Iterator[Entry]:
    """Yield where every published name goes in the variables of `model`, layer by layer."""
    yield from linear("token_emb.fc1", "expression_in")
    yield from linear("token_emb.fc2", "expression_out")
    yield "mask_emb.weight", (("params", "mask"),), False
    if model.expression_norm:
        yield from norm("token_norm", "value_norm")
    if model.gene_table or not model.graph:
        yield "pos_emb.emb.weight", (("params", "identity", "genes"),), False
    if model.graph:
        yield "go_conv.emb.weight", (("params", "identity", "graph_genes"),), False
        for i in range(model.graph_layers):
            yield from linear(f"go_conv.sim_layers.{i}.lin", "identity", f"graph_{i}", "linear")
    yield from linear("base_to_large", "to_large")
    yield from norm("large_in_norm", "large_norm")
    yield from linear("large_to_base", "to_base")
    yield from norm("large_to_base_out_norm", "base_norm")
    yield from norm("decode_norm", "decode_norm")
    yield from linear("exp_to_out", "head_")
    for ours, theirs in STACKS.items():
        yield f"{theirs}.calls_since_last_redraw", (("buffers", ours, "calls"),), False
        for i in range(getattr(model, "dec_depth" if ours == "decoder" else f"{ours}_depth")):
            yield from _layer(model, f"{theirs}.net.layers.{i}", ours, i)


def _layer(model: Model, name: str, stack: str, i: int) -> Iterator[Entry]:
    here, attention = (stack, f"layer_{i}"), f"{name}.0.fn"
    yield f"{attention}.fast_attention.projection_matrix", (("buffers", stack, f"projection_{i}"),), False
    for theirs, ours in (("to_q", "query"), ("to_k", "key"), ("to_v", "value")):
        yield from linear(f"{attention}.{theirs}", *here, ours, bias=model.qkv_bias)
    yield from linear(f"{attention}.to_out", *here, "out")
    yield from norm(f"{name}.0.norm", *here, "norm1")
    yield from norm(f"{name}.1.norm", *here, "norm2")
    yield from linear(f"{name}.1.fn.fn.w1", *here, "mlp_in")
    yield from linear(f"{name}.1.fn.fn.w2", *here, "mlp_out")


def _unstack(variables: dict[str, Any], model: Model) -> dict[str, Any]:
    """Return the variables as the original keeps them: a layer at a time, the mask's vector as a table of one row."""
    tree = {collection: dict(content) for collection, content in variables.items()}
    if "mask" in tree.get("params", {}):
        tree["params"]["mask"] = tree["params"]["mask"][None]
    for stack in STACKS:
        if stack in tree.get("params", {}):
            tree["params"][stack] = stacks.unstack(tree["params"][stack], *LAYERS)
    for stack in tree.get("buffers", {}):
        drawn = tree["buffers"][stack]["projection"]
        one = {f"projection_{i}": drawn[i] for i in range(len(drawn))}
        tree["buffers"][stack] = {"calls": tree["buffers"][stack]["calls"], **one}
    return tree


def _stack(variables: dict[str, Any], model: Model) -> dict[str, Any]:
    """Undo `_unstack`."""
    tree = {collection: dict(content) for collection, content in variables.items()}
    tree["params"]["mask"] = tree["params"]["mask"][0]
    for stack in tree["params"].keys() & STACKS if model.scan else ():
        layers = tree["params"][stack]
        depth = len(layers) - (stack == "decoder")  # its last layer is no part of the scan
        tree["params"][stack] = stacks.stack(layers, *LAYERS, depth)
    for stack, content in tree["buffers"].items():
        drawn = [content[f"projection_{i}"] for i in range(len(content) - 1)]
        tree["buffers"][stack] = {"calls": content["calls"], "projection": jnp.stack(drawn)}
    return tree


# ------------------------------------------------------------------------------------------------------ config, files


def config(published: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the "model", "inputs" and "loss" keywords of the arguments of the original's constructor.

    ValueError names an argument that the constructor does not have, or a value that is not supported.
    """
    if unknown := sorted(set(published) - set(ARGUMENTS)):
        raise ValueError(
            f"published config: {', '.join(unknown)}: the constructor's arguments are {', '.join(ARGUMENTS)}"
        )
    files.check_fixed(published, FIXED)
    c = DEFAULTS | published
    for name in ("mini_enc_dim_head", "large_enc_dim_head", "dec_dim_head"):
        if c.get("nb_features") not in (None, performer.n_features(c[name])):
            only = f"None, or {performer.n_features(c[name])} for {name}={c[name]}"
            raise ValueError(f"published config: nb_features={c['nb_features']!r}: only {only} is supported")
    model = {key: c[key] for key in SAME} | {ours: c[theirs] for theirs, ours in RENAMED.items()}
    model["kernel"] = "relu" if c["generalized_attention"] else "softmax"
    model["redraw"] = (c["feature_redraw_interval"] or 0) if c["auto_check_redraw"] else 0
    if "max_seq_len" in c:
        model["n_genes"] = c["max_seq_len"] - 1  # and PAD
    return {"model": model, "inputs": {}, "loss": {}}


def load(path: str | pathlib.Path, config_path: str | pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (config, variables, gene names) of a published checkpoint (.pth) and a JSON file as above.

    The config's "data" says where the graph is and how it is taken. ValueError or OSError says in one line which of the
    files is not what it should be.
    """
    described = files.json_object(config_path)
    if not {"genes", "graph"} <= set(described):
        raise ValueError(
            f'{config_path}: should be {{"genes": FILE, "graph": FILE}}, the authors\' gene list and graph'
        )
    folder = pathlib.Path(config_path).parent
    genes = [line.strip() for line in (folder / described.pop("genes")).read_text(encoding="utf-8").split()]
    genes = [name for name in genes if name != "PAD"]
    data = {"graph": str(folder / described.pop("graph"))}
    settings = config(described)
    if settings["model"].setdefault("n_genes", len(genes)) != len(genes):
        raise ValueError(
            f"{config_path}: max_seq_len={described['max_seq_len']}, but {len(genes)} genes and PAD are listed"
        )
    variables = params(torch_state.read(path), Model(**settings["model"]))
    return {**settings, "data": data}, variables, genes
