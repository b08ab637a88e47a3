"""Golden cases of sCT: whole models, binning of normalised values, and counts to tokens."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import Case
from scfm_jax.models import sct
from scfm_jax.models.sct import published as convert
from scfm_jax.models.sct.objective import gene_logits
from scfm_jax.types import Batch

Arrays = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------------ whole models


def model(case: Case) -> Arrays:
    """Run forward, loss and gradients of a whole model with the case's weights, tokens and mask."""
    recorded, state = case.group("in"), case.group("param")
    network = sct.Model(**convert.config(case.meta["config"], case.meta["genes_real"])["model"])
    inputs = model_inputs(case, network)
    weights = convert.params(state, network)["params"]

    def objective(weights):
        outputs, extra = network.apply({"params": weights}, inputs, train=True, mutable=["intermediates"])
        scores = gene_logits(outputs.logits["features"], outputs.logits["head"])
        return sct.loss(outputs, inputs)[0], (outputs, scores, extra["intermediates"])

    (value, auxiliary), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    outputs, scores, inner = jax.device_get(auxiliary)
    ours = {"loss": value, "logits": scores.reshape(*recorded["tokens_true"].shape, -1)}
    ours |= {"embedding": outputs.logits["features"]} | dict(intermediates(inner))
    recorded_grads = case.group("grad")  # of a few parameters only
    grads = {name: x for name, x in convert.state_dict({"params": grads}, network).items() if name in recorded_grads}
    return {f"out/{name}": x for name, x in ours.items()} | {f"grad/{name}": x for name, x in grads.items()}


def model_inputs(case: Case, network: sct.Model) -> dict[str, jnp.ndarray]:
    """Return what `prepare` would have made of the recorded tokens, without the padding of each cell."""
    recorded, cells = case.group("in"), case.meta["config"]["num_cells"]
    if not (recorded["tokens_masked"] == np.where(recorded["mask"], network.n_bins, recorded["tokens_true"])).all():
        raise ValueError("in/tokens_masked is not in/tokens_true with the mask id where in/mask is set")
    shape = (len(recorded["mask"]), cells, case.meta["genes_per_cell_padded"])
    tokens, mask = (jnp.asarray(recorded[x].reshape(shape)[..., : network.n_genes]) for x in ("tokens_true", "mask"))
    return {
        "tokens": tokens,
        "mask": mask,
        "edges": jnp.zeros((*shape[:2], network.n_bins)),
        "cell_mask": jnp.ones(shape[:2], bool),
        "coords": jnp.asarray(recorded.get("coordinates", np.zeros((*shape[:2], 2))), jnp.float32),
    }


def intermediates(tree: dict):
    """Yield the inner activations under their published names, channels before positions where the original has so."""
    for name, (value, *_) in ((name, x) for name, x in tree.items() if not isinstance(x, dict)):
        if name == "deconv_out" or name.startswith("residual_"):
            value = value.reshape(value.shape[0], -1, value.shape[-1]).swapaxes(1, 2)
        yield name, value
    for name, block in ((name, x) for name, x in tree.items() if name.startswith("block_")):
        number = int(name.removeprefix("block_")) + 1
        yield f"embeddings_{number}", block["output"][0]
        maps = block["attention"][0]
        for head in range(maps.shape[1]):  # the original is one off: number m is head m + 1
            yield f"attention_map_layer_{number}_number_{head - 1}", maps[:, head]


# ----------------------------------------------------------------------------------------------------------- binning


def tokenise(case: Case) -> Arrays:
    """Map genes and bin values that are normalised already; empty cells are skipped, the others come round and round.

    Without the published gene maps (in the case, or as files beside it) the recorded map is taken as given.
    """
    recorded, settings = case.group("in"), case.meta["config"]
    slots, n_genes = gene_slots(case), settings["cell_len"]
    values = np.zeros((len(recorded["X"]), n_genes), np.float32)
    values[:, slots[slots >= 0]] = recorded["X"][:, slots >= 0]
    values = values[(values > 0).any(1)]
    padded = n_genes + -n_genes % 2 ** settings["num_downsamples"]
    ours = {"out/gene_map": slots}
    size = settings["batch_size"] * settings["num_cells"]
    numbers = {int(m[1]) for name in case.group("out") if (m := re.match(r"batch(\d+)/", name))}
    for i in sorted(numbers):
        bag = values[np.arange(i * size, (i + 1) * size) % len(values)]
        bag = bag.reshape(settings["batch_size"], settings["num_cells"], n_genes)
        options = {"n_bins": settings["gene_expression_num_bins"], "edges": case.meta["edge_dtype"]}
        inputs = prepared(bag, target_sum=0, log=False, **options)
        pad = {"pad_width": ((0, 0), (0, 0), (0, padded - n_genes)), "constant_values": settings["pad_token_id"]}
        name, rows = f"out/batch{i}", (settings["batch_size"], -1)
        ours[f"{name}/gene_expressions"] = np.pad(inputs["tokens"], **pad).reshape(rows)
        ours[f"{name}/raw_gene_expressions"] = np.pad(bag, **pad).reshape(rows)
        edges = [[e[np.isfinite(e)] for e in cells] for cells in inputs["edges"]]  # two of a constant cell
        ours[f"{name}/bin_edges_concat"] = np.stack([np.concatenate(cells) for cells in edges])
    return ours


def gene_slots(case: Case) -> np.ndarray:
    """Return the model slot of each of the case's genes, -1 for none."""
    recorded = case.group("in")
    files = [case.folder / name for name in (convert.VOCAB, convert.SLOTS)]
    if "vocab_ids" in recorded:
        vocab = dict(zip(recorded["vocab_ids"].tolist(), recorded["vocab_idx"].tolist(), strict=True))
        places = dict(zip(recorded["protein_keys"].tolist(), recorded["protein_pos"].tolist(), strict=True))
        names = convert.slot_names(vocab, places)
    elif all(map(pathlib.Path.is_file, files)):
        names = convert.slot_names(*(json.loads(file.read_text()) for file in files))
    else:
        return case.group("out")["gene_map"]
    slot = {name: i for i, name in enumerate(names)}
    return np.array([slot.get(name, -1) for name in recorded["gene_ids"].tolist()])


def counts_to_tokens(case: Case) -> Arrays:
    """Zero rare genes as ingest does, normalise to 10,000, take log1p, bin."""
    counts = case.group("in")["counts"]
    kept = counts.sum(0) >= 0.003 * len(counts)
    counts = (counts * kept).astype(np.float32)
    inputs = prepared(counts[None])
    values = np.log1p(counts * np.asarray(inputs["scale"])[0, :, None])
    return {"out/gene_kept": kept, "out/lognorm": values, "out/tokens": inputs["tokens"][0]}


def prepared(values: np.ndarray, **options) -> Arrays:
    """Return what `prepare` makes of dense values [B, C, V] of genes in the order of the model."""
    n_bags, n_cells, n_genes = values.shape
    cells = jnp.zeros((n_bags, n_cells), jnp.int32)
    batch = Batch(
        genes=jnp.broadcast_to(jnp.arange(n_genes, dtype=jnp.int32), values.shape),
        counts=jnp.asarray(values),
        cell_mask=cells == 0,
        study=cells,
        coords=jnp.full((n_bags, n_cells, 2), jnp.nan),
        labels={},
    )
    constants = {"slots": jnp.arange(n_genes + 1), "measured": jnp.ones((1, n_genes), bool)}
    prepare = jax.jit(lambda *x: sct.prepare(*x, step=0, train=False, mask="none", **options))
    return jax.device_get(prepare(batch, constants, jax.random.key(0)))


KINDS = {"model": model, "tokenise": tokenise, "counts_to_tokens": counts_to_tokens}
