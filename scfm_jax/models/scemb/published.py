"""Weights under the names of HuggingFace's BertForMaskedLM to our variables and back, their config and vocabulary.

scEMB itself released none; these names are also those of the first Geneformer (ids 0 and 1 are padding and mask, genes
follow, positions are ranks of counts over the genes' medians, which come in a file of their own). Torch files (.bin,
.pt) are read as plain tensors, .safetensors as they are.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scfm_jax.layers.transformer import ACTIVATIONS
from scfm_jax.models.scemb.inputs import MASK, PAD, SPECIAL
from scfm_jax.models.scemb.network import Model
from scfm_jax.models.scemb.variants import GENEFORMER_INPUTS
from scfm_jax.saving.published import files, stacks, torch_state
from scfm_jax.saving.published.torch_state import Entry, linear, norm

VOCAB = ("vocab.json", "token_dictionary.json")
TIED = {  # further names of the same array
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
BLOCKS = ("block", "blocks")  # one by one, stacked
UNUSED = ("bert.embeddings.position_ids", "bert.pooler.", "cls.seq_relationship.")  # nothing here depends on them


def params(state: dict[str, np.ndarray], model: Model) -> dict[str, Any]:
    """Return the variables of `model` from a state dict; prefixes, which no published file has, are left out.

    ValueError lists every unknown, missing or mis-shaped name at once, or names arrays that should be tied and are not.
    """
    for name, same in TIED.items():
        if name in state and same in state and not np.array_equal(state[name], state[same]):
            raise ValueError(f"state dict: {name} is not {same}; only a decoder tied to the embedding is supported")
    left_over = [name for name in state if name in TIED or name.startswith(UNUSED)]
    tree = torch_state.variables(state, entries(model), shapes(model), left_over)
    return {"params": stacks.stack(tree["params"], *BLOCKS, model.num_layers)} if model.scan else tree


def state_dict(variables: dict[str, Any], model: Model) -> dict[str, np.ndarray]:
    """Return the parameters (or gradients) of `model` under their published names and in their published shapes."""
    return torch_state.state_dict({"params": stacks.unstack(variables["params"], *BLOCKS)}, entries(model))


def shapes(model: Model) -> dict[str, Any]:
    """Return the shapes of all variables of `model` with its blocks unrolled, without computing anything."""
    model = model.clone(scan=False, remat=False)
    cells = jnp.zeros((1, 1, 1), jnp.int32)
    inputs = {name: cells for name in ("tokens", "masked", "positions", "places", "targets")}
    return jax.eval_shape(lambda: model.init(jax.random.key(0), inputs))


def entries(model: Model) -> Iterator[Entry]:
    """Yield where every published name goes in the parameters of `model` with its blocks unrolled."""
    for theirs, ours in (("word", "word"), ("position", "position"), ("token_type", "type")):
        yield f"bert.embeddings.{theirs}_embeddings.weight", (("params", ours),), False
    yield from norm("bert.embeddings.LayerNorm", "norm_embed")
    for i in range(model.num_layers):
        layer, block = f"bert.encoder.layer.{i}", f"block_{i}"
        for name in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{name}", block, name)
        yield from linear(f"{layer}.attention.output.dense", block, "out")
        yield from norm(f"{layer}.attention.output.LayerNorm", block, "norm1")
        yield from linear(f"{layer}.intermediate.dense", block, "mlp_in")
        yield from linear(f"{layer}.output.dense", block, "mlp_out")
        yield from norm(f"{layer}.output.LayerNorm", block, "norm2")
    yield from linear("cls.predictions.transform.dense", "transform")
    yield from norm("cls.predictions.transform.LayerNorm", "norm_head")
    yield "cls.predictions.bias", (("params", "decoder_bias"),), False


# ------------------------------------------------------------------------------------------------------ config, files


SAME = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "max_position_embeddings": "n_positions",
}
OPTIONAL = {
    "layer_norm_eps": ("eps", 1e-12),
    "type_vocab_size": ("n_types", 2),
    "hidden_act": ("activation", "gelu"),
    "hidden_dropout_prob": ("dropout", 0.1),
    "attention_probs_dropout_prob": ("attention_dropout", 0.1),
}

FIXED = {
    "pad_token_id": PAD,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
    "is_decoder": False,
    "add_cross_attention": False,
}
IGNORED = ("initializer_range", "use_cache", "classifier_dropout", "chunk_size_feed_forward")
"""Keys without an effect on what given weights compute: their start, a decoder's cache, another head, memory."""


def config(published: dict[str, Any], position: str = "rank") -> dict[str, dict[str, Any]]:
    """Return the "model", "inputs" and "loss" keywords of a published BERT config (config.json).

    Args:
      position: what its positions stand for, which the file does not say: "rank" or "bin".

    ValueError names keys that are missing, and values that are not supported.
    """
    if missing := [key for key in ("vocab_size", *SAME) if key not in published]:
        raise ValueError(f"published config: no {', '.join(missing)}; is this a BERT config?")
    model = {ours: published[theirs] for theirs, ours in SAME.items()}
    model |= {ours: published.get(theirs, default) for theirs, (ours, default) in OPTIONAL.items()}
    if model["activation"] not in ACTIVATIONS:
        raise ValueError(f"published config: hidden_act={model['activation']!r}: there are {', '.join(ACTIVATIONS)}")
    files.check_fixed(published, FIXED)
    model["n_genes"] = published["vocab_size"] - SPECIAL
    n = model["n_positions"]
    inputs = GENEFORMER_INPUTS | {"max_len": n} if position == "rank" else {"position": position, "n_bins": n - 1}
    return {"model": model, "inputs": inputs, "loss": {}}


def load(
    path: str | pathlib.Path,
    config_path: str | pathlib.Path,
    vocab: str | pathlib.Path | None = None,
    medians: str | pathlib.Path | None = None,
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return (config, variables, gene names) of published weights and their config.json.

    Args:
      vocab: JSON of token -> id, padding 0, mask 1, then genes; by default vocab.json or token_dictionary.json beside
        the config.
      medians: file of genes and medians (see `data_pipeline.genes.medians`), which ranks are not those of the weights
        without.

    ValueError or OSError says in one line which of the files is not what it should be.
    """
    folder = pathlib.Path(config_path).parent
    settings = config(files.json_object(config_path))
    if not medians:
        raise ValueError(
            f"{path}: medians=FILE is missing: weights of Geneformer's layout rank genes by count over the gene's "
            "median, and a file of these is needed (of a suite, scemb:WEIGHTS:CONFIG:FILE among its runs)"
        )
    settings["data"] = {"medians": str(medians)}
    vocab = vocab or next((folder / name for name in VOCAB if (folder / name).is_file()), folder / VOCAB[0])
    names = genes(files.json_object(vocab), settings["model"]["n_genes"], str(vocab))
    return settings, params(read(path), Model(**settings["model"])), names


def genes(vocab: dict[str, int], n_genes: int, source: str = "vocabulary") -> list[str]:
    """Return the genes in the order of their ids; ValueError where ids are not PAD, MASK and then each gene once."""
    names = {index: name for name, index in vocab.items()}
    if sorted(vocab.values(), key=str) != sorted(range(n_genes + SPECIAL), key=str):
        raise ValueError(f"{source}: {len(vocab)} tokens, but not each id of 0 ... {n_genes + SPECIAL - 1} once")
    if "pad" not in names[PAD].lower() or "mask" not in names[MASK].lower():
        raise ValueError(f"{source}: ids 0 and 1 are {names[PAD]!r}, {names[MASK]!r}, not padding and mask")
    return [names[i] for i in range(SPECIAL, n_genes + SPECIAL)]


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file, or of a torch file of plain tensors; no code is run."""
    return (files.arrays if pathlib.Path(path).suffix == ".safetensors" else torch_state.read)(path)
