"""Golden cases of Exceiver: whole models from raw counts on, with both kinds of mask, and steps of the optimiser.

The encoder sums as the original does (`Model.in_order`): with 19,067 genes the recording is further from a float64
evaluation than its tolerance (4.0e-4 of 2e-4 in a gradient, 3.5e-5 of 2e-5 in a latent), nearly all of it from one
float32 sum over the genes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import Case
from scfm_jax.models import exceiver
from scfm_jax.models.exceiver import published as convert
from scfm_jax.models.exceiver.inputs import SHIFT
from scfm_jax.training import optim
from scfm_jax.types import Batch

Arrays = dict[str, np.ndarray]
MODES = {"float_mask": "additive_one", "bool_mask": "exclude"}


def model(case: Case, in_order: bool = True) -> Arrays:
    """Fit the scaler, mask, run forward, loss and gradients in both modes, embed, and train as the original did.

    Args:
      in_order: whether the encoder sums as the original does (see `Model`), else as this project does otherwise.
    """
    recorded, state = case.group("in"), case.group("param")
    settings = convert.config(case.meta["config"] | {"frac": case.meta["frac"]})
    counts = recorded["raw_counts"]
    constants, options = fitted(counts, settings["inputs"])
    expressed = (counts > 0).sum(1)
    kept = np.flatnonzero(expressed >= 2 * options["n_mask"])
    ours = {"out/n_mask": np.asarray(options["n_mask"]), "out/kept_cells": kept}
    inputs = model_inputs(case, constants, options, counts[case.group("out")["kept_cells"][recorded["idx"]]])
    for mode, zero_mask in MODES.items():
        network = exceiver.Model(**settings["model"] | {"zero_mask": zero_mask, "in_order": in_order})
        weights = convert.params(state, network)["params"]
        outputs = {f"{mode}/{name}": x for name, x in run(network, weights, inputs).items()}
        ours |= {f"out/{name}": x for name, x in outputs.items()} | gradients(case, mode, network, weights, inputs)
        cells = jax.jit(lambda w, network=network: network.apply({"params": w}, inputs).cells)(weights)
        ours[f"out/infer_{mode}/latent"] = np.asarray(cells).reshape(len(cells), network.query_len, -1)
        if mode == "float_mask":
            ours |= {f"out/train/{name}": x for name, x in train(case, network, weights, inputs).items()}
    return ours


def fitted(counts: np.ndarray, inputs: dict) -> tuple[dict, dict]:
    """Return the constants and options that `fit` makes of dense counts. [N, V]"""
    bare = {"slots": np.arange(counts.shape[1] + 1), "measured": np.ones((1, counts.shape[1]), bool)}
    packed = bag(counts)
    batch = {name: np.asarray(getattr(packed, name)) for name in ("genes", "counts", "cell_mask", "study")}
    constants, options = exceiver.fit({"train": [batch]}, bare, inputs)
    return {name: jnp.asarray(value) for name, value in constants.items()}, options | {"scaler": "train"}


def bag(counts: np.ndarray, label: np.ndarray | None = None) -> Batch:
    """Return dense counts as a batch of one cell a bag. [N, V]"""
    cells = np.zeros((len(counts), 1), np.int32)
    order = np.argsort(counts == 0, axis=1, kind="stable")[:, : (counts > 0).sum(1).max()]
    packed_counts = np.take_along_axis(counts, order, 1)
    return Batch(
        genes=np.where(packed_counts > 0, order, counts.shape[1]).astype(np.int32)[:, None],
        counts=packed_counts[:, None],
        cell_mask=cells == 0,
        study=cells,
        coords=np.full((*cells.shape, 2), np.nan, np.float32),
        labels={} if label is None else {"tissue": label[:, None].astype(np.int32)},
    )


def model_inputs(case: Case, constants: dict, options: dict, counts: np.ndarray) -> dict:
    """Return what `prepare` makes of the recorded cells with the recorded choice of hidden genes.

    ValueError where scaler, values, masks or targets are not those that were recorded.
    """
    recorded = case.group("in")
    batch = jax.tree.map(jnp.asarray, bag(counts, recorded.get("class_labels")))
    draws = {"mask_ids": jnp.asarray(recorded["mask_ids"], jnp.int32)[:, None]}
    prepare = jax.jit(
        lambda b: exceiver.prepare(b, constants, jax.random.key(0), step=0, train=True, draws=draws, **options)
    )
    inputs = prepare(batch)
    n_genes = counts.shape[1]
    slots, hidden, values = (np.asarray(inputs[name])[:, 0] for name in ("genes", "hidden", "values"))
    dense, ids = np.tile(np.asarray(inputs["zeros"]), (len(counts), 1)), np.tile(np.arange(n_genes), (len(counts), 1))
    rows, places = np.nonzero(slots < n_genes)
    at = (rows, slots[rows, places])
    dense[at] = np.where(hidden, SHIFT, values)[rows, places]
    ids[at] = np.where(hidden, n_genes, slots)[rows, places]
    made = {
        "scaler_mean": constants["mean"], "scaler_scale": constants["scale"], "gene_vals": dense, "gene_ids": ids,
        "key_padding_mask": counts == 0, "mask_ids": inputs["targets"][:, 0], "mask_vals": inputs["truth"][:, 0],
    }  # fmt: skip
    for name, value in made.items():
        if not np.allclose(value, recorded[name], rtol=1e-4, atol=2e-5):
            raise ValueError(f"in/{name} is not what fit and prepare make of in/raw_counts")
    return inputs


def run(network: exceiver.Model, weights: dict, inputs: dict) -> Arrays:
    """Return outputs, losses and intermediates under their published names."""

    def forward(weights: dict) -> tuple:
        outputs, extra = network.apply({"params": weights}, inputs, train=True, mutable=["intermediates"])
        maps = network.apply({"params": weights}, inputs, inputs["hidden"], method="attention")
        return outputs.logits, *exceiver.loss(outputs, inputs), extra["intermediates"], maps

    logits, total, metrics, inner, maps = jax.device_get(jax.jit(forward)(weights))
    layers = inner["process"]["layers"]["output"][0]
    named_outputs = {
        "encoder_latent": inner["encoder_latent"][0],
        "process_layer0": layers[0],
        "process_latent": layers[-1],
        "decoder_out": inner["decoder_out"][0],
        "encoder_attn_weights": maps[:, 0],
        "y_hat": logits["genes"][:, 0, :, None],
        "loss_mse": metrics["mse"][0] / metrics["mse"][1],
        "loss_total": total,
    }
    if network.n_classes:
        named_outputs["class_logits"] = logits["classes"][:, 0]
        named_outputs["loss_ce"] = metrics["cross_entropy"][0] / metrics["cross_entropy"][1]
    return named_outputs


def objective(network: exceiver.Model, inputs: dict):
    """Return the function from parameters to the loss."""
    return lambda w: exceiver.loss(network.apply({"params": w}, inputs, train=True), inputs)[0]


def gradients(case: Case, mode: str, network: exceiver.Model, weights: dict, inputs: dict) -> Arrays:
    """Return the gradients under their published names: all, or those recorded, where only few were."""
    grads = convert.state_dict({"params": jax.jit(jax.grad(objective(network, inputs)))(weights)}, network)
    recorded = {name for name in case.group("grad") if name.startswith(f"{mode}/")}
    if len(recorded) < len(grads) // 2:
        grads = {name: x for name, x in grads.items() if f"{mode}/{name}" in recorded}
    return {f"grad/{mode}/{name}": x for name, x in grads.items()}


def train(case: Case, network: exceiver.Model, weights: dict, inputs: dict) -> Arrays:
    """Return losses, rates and parameters of the first updates on one batch, with the case's optimiser."""
    names = [name.removeprefix("train/") for name in case.group("out") if name.startswith("train/")]
    steps, c = sum(name.startswith("loss_step") for name in names), case.meta["config"]
    options = dict(name="adam", learning_rate=c["learning_rate"], schedule="warmup", warmup=c["warmup_steps"])
    optimizer = optim.build(weights, steps=steps, weight_decay=c["weight_decay"], **options)
    state, losses, rates = optimizer.transform.init(weights), {}, []
    value_and_grad = jax.jit(jax.value_and_grad(objective(network, inputs)))
    for step in range(steps):
        losses[f"loss_step{step}"], grads = value_and_grad(weights)
        rates.append(optimizer.schedule(step + 1))  # the original's first update has the rate of step 1
        weights, state = optim.update(optimizer, grads, state, weights, step + 1)
    after = convert.state_dict({"params": weights}, network)
    return losses | {"lr": np.asarray(rates)} | {f"param_after{steps}/{name}": x for name, x in after.items()}


KINDS = {"model": model}
