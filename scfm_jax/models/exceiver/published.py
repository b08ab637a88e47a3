"""Published Exceiver weights (PyTorch Lightning checkpoints) to our variables and back, their settings, their genes.

Differences: the released table of vectors holds the mask's (frozen zeros) and the class token's as its last rows; the
checkpoints carry `process_self_attn.encoder_layer.*`, a template that no computation uses, which is passed over.
The order of the released rows was never published: see `load`.
"""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.models.exceiver.network import HEADS, Model
from scfm_jax.models.exceiver.variants import VARIANTS
from scfm_jax.saving.published import stacks, torch_state
from scfm_jax.saving.published.files import UNKNOWN
from scfm_jax.saving.published.torch_state import Entry, linear, norm

TABLE = "gene_emb.weight"
LAYERS = ("layer", "layers")  # one by one, stacked
UNUSED = "process_self_attn.encoder_layer."
UNKNOWN_ORDER = (
    "the order of the published genes (and of the classes) was never released: which gene a row of these weights "
    "stands for is unknown. Golden cases, gradients, sizes and speeds can be reproduced, and the weights can start a "
    "training whose table of genes is new; embeddings or predictions of real cells would be meaningless. If you have "
    "the order, give it as a file with one gene a line (the config of api.from_published)"
)

ROWS = {"genes": "gene_emb.weight: genes", "mask": "gene_emb.weight: mask", "class": "gene_emb.weight: class"}


def params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Return the variables of `model` from a published state dict.

    ValueError lists every unknown, missing or mis-shaped name at once.
    """
    left_over = [name for name in state if name.startswith(UNUSED)]
    tree = torch_state.variables(_split(state, model), entries(model), shapes(model), left_over)["params"]
    return {"params": tree | {"process": stacks.stack(tree["process"], *LAYERS, model.num_layers)}}


def state_dict(variables: dict[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Return the parameters (or gradients) of `model` under their published names, without the unused template."""
    state = torch_state.state_dict(_apart(variables), entries(model))
    zeros = np.zeros((1, model.seq_dim), np.float32)
    rows = {name: state.pop(row, zeros if name == "mask" else zeros[:0]) for name, row in ROWS.items()}
    return {TABLE: np.concatenate([x.reshape(-1, model.seq_dim) for x in rows.values()])} | state


def shapes(model: Model) -> dict[str, Any]:
    """Return the shapes of all variables of `model`, its layers apart, without computing anything."""
    cell = jnp.zeros((1, 1, 1))
    inputs = {"genes": cell.astype(int), "values": cell, "hidden": cell > 0, "targets": cell.astype(int)}
    inputs |= {"zeros": jnp.zeros(model.n_genes), "cell_mask": jnp.ones((1, 1), bool)}
    return jax.eval_shape(lambda: _apart(model.init(jax.random.key(0), inputs, train=True)))


def _apart(variables: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters with each layer of the latents by itself, as torch has them."""
    tree = variables["params"]
    return {"params": tree | {"process": stacks.unstack(tree["process"], *LAYERS)}}


def _split(state: dict[str, np.ndarray], model: Model) -> dict[str, np.ndarray]:
    """Return the state dict with the table of vectors cut into genes, mask and class token."""
    rows = model.n_genes + (2 if model.n_classes else 1)
    table = np.asarray(state.get(TABLE, ()))
    if table.shape != (rows, model.seq_dim):
        raise ValueError(f"{TABLE} {table.shape}: should be {(rows, model.seq_dim)}: genes, mask and class token")
    mask = table[model.n_genes]
    if model.mask_token == "zero" and mask.any():
        raise ValueError(f"{TABLE}: its mask row is not zero, which mask_token='zero' has no room for")
    cut = {ROWS["genes"]: table[: model.n_genes]}
    cut |= {ROWS["mask"]: mask} if model.mask_token == "learned" else {}
    cut |= {ROWS["class"]: table[-1]} if model.n_classes else {}
    return {name: value for name, value in state.items() if name != TABLE} | cut


# ------------------------------------------------------------------------------------------------------------- names


def entries(model: Model) -> Iterator[Entry]:
    """Yield where every published name goes in the variables of `model` with its layers apart."""
    rows = {"genes": True, "mask": model.mask_token == "learned", "class": model.n_classes > 0}
    for name in (name for name, exists in rows.items() if exists):
        yield ROWS[name], (("params", name),), False
    yield "query_emb", (("params", "latents"),), False
    for block in ("encoder", "decoder"):
        theirs = f"{block}_cross_attn"
        yield from norm(f"{theirs}.layernorm_kv", block, "norm_kv")
        yield from norm(f"{theirs}.layernorm_q", block, "norm_q")
        yield from _attention(f"{theirs}.cross_attn", (block, "attention"), model.seq_dim == model.query_dim)
        for number, name in {0: "mlp_norm1", 1: "mlp_in", 3: "mlp_norm2", 4: "mlp_out"}.items():
            yield from (norm if "norm" in name else linear)(f"{theirs}.mlp.{number}", block, name)
    for i in range(model.num_layers):
        theirs, ours = f"process_self_attn.transformer.layers.{i}", ("process", f"layer_{i}")
        yield from _attention(f"{theirs}.self_attn", (*ours, "attention"), True)
        for name, path in {"linear1": "mlp_in", "linear2": "mlp_out", "norm1": "norm1", "norm2": "norm2"}.items():
            yield from (norm if "norm" in name else linear)(f"{theirs}.{name}", *ours, path)
    for theirs, ours in {"mlp": "gene_head", **({"mlp_classify": "class_head"} if model.n_classes else {})}.items():
        yield from norm(f"{theirs}.0", ours, "norm")
        yield from linear(f"{theirs}.1", ours, "linear_0")
        yield from linear(f"{theirs}.3", ours, "linear_1")


def _attention(name: str, path: tuple[str, ...], packed: bool) -> Iterator[Entry]:
    """Yield the entries of torch's MultiheadAttention, whose projections are one matrix where widths are equal."""
    here = {part: ("params", *path, part) for part in ("query", "key", "value")}
    if packed:
        yield f"{name}.in_proj_weight", tuple((*ours, "kernel") for ours in here.values()), True
    else:
        yield from ((f"{name}.{part[0]}_proj_weight", ((*ours, "kernel"),), True) for part, ours in here.items())
    yield f"{name}.in_proj_bias", tuple((*ours, "bias") for ours in here.values()), False
    yield from linear(f"{name}.out_proj", *path, "out")


# ------------------------------------------------------------------------------------------------------ config, files


SAME = ("seq_dim", "query_len", "query_dim", "num_layers", "dropout")
OPTIONAL = {"num_layers": 1, "nhead": 1, "dim_feedforward": 2048, "dropout": 0.0, "classify_dim": 0, "frac": 0.15}
IGNORED = ("learning_rate", "weight_decay", "warmup_steps")
"""Arguments of the training that the weights come from."""


def config(published: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the "model", "inputs" and "loss" keywords of published hyperparameters (hparams.yaml, case.json).

    They are those that the released weights were trained with: zeros favoured, mask frozen, own scaler for validation.
    ValueError names keys that are missing.
    """
    c = OPTIONAL | published
    if missing := [key for key in (*SAME, "seq_len") if key not in c]:
        raise ValueError(f"published hyperparameters: no {', '.join(missing)}; is this an Exceiver checkpoint?")
    model = VARIANTS["published"]["model"] | {key: c[key] for key in SAME}
    model |= {"n_genes": c["seq_len"], "n_classes": c["classify_dim"] or 0}
    model |= {"num_heads": c["nhead"], "ffn_dim": c["dim_feedforward"]}
    if wrong := [w for w in ("query_dim", "seq_dim") if model[w] % HEADS]:
        raise ValueError(f"published hyperparameters: {wrong[0]}={model[wrong[0]]} must be a multiple of {HEADS}")
    return {"model": model, "inputs": {"mask_rate": c["frac"], "scaler": "per_split"}, "loss": {}}


def load(
    path: str | pathlib.Path, genes: str | pathlib.Path | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (config, variables, gene names) of a published Lightning checkpoint, which brings its hyperparameters.

    Args:
      genes: a file with the names of the rows, one a line. Without it they are named unknown:0, unknown:1, ..., and it
        is said what that means.

    ValueError or OSError says in one line what is wrong with a file.
    """
    state, published = read(path)
    settings = config(published)
    variables = params(state, Model(**settings["model"]))
    n_genes = settings["model"]["n_genes"]
    if genes is None:
        print(f"warning: {path}: {UNKNOWN_ORDER}", file=sys.stderr)
        return settings, variables, [f"{UNKNOWN}:{i}" for i in range(n_genes)]
    try:
        names = [line.strip() for line in pathlib.Path(genes).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{genes}: not a text file; give the genes in their order, one a line") from None
    if len(names) != n_genes or len(set(names)) != n_genes:
        raise ValueError(f"{genes}: {len(set(names))} different names for {n_genes} rows; one gene a line is needed")
    return settings, variables, names


def read(path: str | pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (state dict, hyperparameters) of a Lightning checkpoint; nothing in it is run."""
    content = torch_state.content_of(path, [pathlib.PosixPath])  # hyperparameters hold paths, and nothing worse
    try:
        return torch_state.tensors(content["state_dict"]), dict(content["hyper_parameters"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a Lightning checkpoint of plain tensors ({error})") from None
