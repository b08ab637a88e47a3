"""Golden cases of the heads that scLong was evaluated with: GEARS, DeepSEM, those on drugs, and its tables' scores."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.golden import drug_heads
from experiments.golden.selection import largest
from experiments.parity import Case
from scfm_jax.layers import graph
from scfm_jax.models import sclong
from scfm_jax.models.sclong import published
from scfm_jax.tasks.drugs import l1000
from scfm_jax.tasks.networks import deepsem, scores
from scfm_jax.tasks.perturbation import gears, interaction

Arrays = dict[str, np.ndarray]

MODEL = "singlecell_model."
PERCEPTRONS = {"pert_fuse": "effect", "recovery_w": "recover", "cross_gene_state": "cross"}
NORMS = {"bn_emb": "before_norm", "bn_pert_base_trans": "marked_norm", "bn_pert_base": "joined_norm"}
GENES = {"indv_w1": "alone_kernel", "indv_b1": "alone_bias", "indv_w2": "both_kernel", "indv_b2": "both_bias"}
PLACES = {
    **{re.escape(theirs): ours for theirs, ours in NORMS.items()},
    **{
        rf"{theirs}\.network\.{i}": f"{ours}/{part}"
        for theirs, ours in PERCEPTRONS.items()
        for i, part in ((0, "linear_0"), (1, "norm_0"), (3, "linear_1"), (4, "norm_1"))
    },
    r"sim_layers\.(\d+)\.lin": r"perturbed_table_graph_\1/linear",
    re.escape(f"{MODEL}feedforward"): "features",
}
"""Published modules of GEARS' head and where their parameters are here."""
LEAVES = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "variance"}

NETWORK = {
    "inference.inference_qzyx.0": "encode_0",
    "inference.inference_qzyx.2": "encode_1",
    "inference.inference_qzyx.4.mu": "encode_mean",
    "inference.inference_qzyx.4.var": "encode_log_variance",
    "generative.generative_pxz.0": "decode_0",
    "generative.generative_pxz.2": "decode_1",
    "generative.generative_pxz.4": "decode_out",
    "generative.y_mu.0": "prior_mean_0",
    "generative.y_mu.2": "prior_mean_1",
    "generative.y_var.0": "prior_log_variance_0",
    "generative.y_var.2": "prior_log_variance_1",
}
"""Published modules of DeepSEM and their names here; what chooses among classes is left out, as there is one class."""


# ------------------------------------------------------------------------------------------------------------- GEARS


def head_gears(case: Case) -> Arrays:
    """Run scLong on the recorded cells, the head on its representations, and the loss with its gradients."""
    recorded, settings, state = case.group("in"), case.meta["config"], case.group("param")
    width = settings["hidden_size"]
    network = gears.Gears(len(recorded["ctrl"]), width, graph_layers=settings.get("num_go_gnn_layers", 1))
    variables = imported(state)
    names, condition = np.unique(settings["perts"], return_inverse=True)
    every = np.arange(network.n_genes)
    kept = [np.isin(every, recorded.get(f"retain_{name}", every)) for name in names]
    edges = gears.go_graph(*recorded["edge_index_go"], recorded["edge_weight_go"], network.n_genes)
    shared = {"graph": edges, "control": recorded["ctrl"], "retained": np.stack(kept)}
    features = representations(case)
    batch = {"x": recorded["x"], "flags": recorded["pert"], "y": recorded["y"], "condition": condition}
    loss = gears.Loss(direction=settings["direction_lambda"])

    def predicted(params: Any, features: Any, train: bool) -> tuple[Any, Any]:
        changing = ["batch_stats"] if train else []
        return network.apply(
            {**variables, "params": params}, {**batch, "features": features}, shared, train, mutable=changing
        )

    def objective(params: Any) -> Any:
        prediction, _ = predicted(params, features, True)
        return loss(prediction, batch, shared), prediction

    (loss_train, train), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(variables["params"])
    evaluated, _ = jax.jit(predicted, static_argnums=2)(variables["params"], features, False)
    ours = {
        "pred_train": train,
        "pred_eval": evaluated,
        "loss_train": loss_train,
        "loss_eval": loss(evaluated, batch, shared),
    }
    kernel = variables["params"].get("features")
    ours["scfm_features"] = features @ kernel["kernel"] + kernel["bias"] if kernel else features
    flat = {name: exported(grads, name) for name in case.group("grad")}
    return {f"out/{name}": x for name, x in ours.items()} | {f"grad/{name}": x for name, x in flat.items()}


def imported(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the variables of the head from its published names, without those of scLong and of an unused table."""
    variables = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        if place := where(name):
            collection = "batch_stats" if place[-1] in ("mean", "variance") else "params"
            node = variables[collection]
            for part in place[:-1]:
                node = node.setdefault(part, {})
            node[place[-1]] = jnp.asarray(shaped(name, value))
    return variables


def exported(tree: Mapping[str, Any], name: str) -> np.ndarray:
    """Return what a tree of parameters holds under a published name, in its published shape."""
    for part in where(name):
        tree = tree[part]
    if name == "pert_w.weight":
        return np.asarray(tree)[:, None]
    if name in GENES:
        return np.asarray(tree)[None] if name.endswith("2") else np.asarray(tree)[..., None]
    return np.asarray(tree).T if where(name)[-1] == "kernel" else np.asarray(tree)


def where(name: str) -> tuple[str, ...] | None:
    """Return the path of a published parameter here, None for one that is not read."""
    direct = {**GENES, "pert_emb.weight": "perturbed_table", "pert_w.weight": "flag_kernel", "pert_w.bias": "flag_bias"}
    if name in direct:
        return (direct[name],)
    module, _, leaf = name.rpartition(".")
    for pattern, ours in PLACES.items():
        if leaf in LEAVES and (match := re.fullmatch(pattern, module)):
            path = match.expand(ours).split("/")
            scale = leaf == "weight" and "norm" in path[-1]
            return (*path, "scale" if scale else LEAVES[leaf])
    return None


def shaped(name: str, value: np.ndarray) -> np.ndarray:
    """Return a published array in the shape that it has here."""
    if name == "pert_w.weight" or name in GENES:
        return value.squeeze(0 if name.endswith("2") else -1)
    return value.T if where(name)[-1] == "kernel" else value


def representations(case: Case) -> np.ndarray:
    """Return scLong's representations of the head's genes in each cell, the mean of all where it lacks one. [B, G, D]

    Which zeros are among the largest values is left open by torch's `topk`; `largest` chooses as it does.
    """
    recorded, settings = case.group("in"), case.meta["config"]
    state = {
        name.removeprefix(f"{MODEL}scfm."): x for name, x in case.group("param").items() if f"{MODEL}scfm." in name
    }
    network = sclong.Model(key_max="global", **published.config(settings["scfm"])["model"])
    variables = published.params(state, network)
    values = np.pad(recorded["x"], ((0, 0), (0, 1)))[:, recorded["scfm_index_positions"]]  # [B, N]
    top = np.stack([largest(row, min(network.top_seq_len, network.positions)) for row in values])
    source, target = recorded["scfm_edge_index"]
    inputs = {
        "values": values[:, None, : network.n_genes],
        "cell_mask": jnp.ones((len(values), 1), bool),
        "graph": graph.build(source, target, recorded["scfm_edge_weight"], n_nodes=network.positions),
        "top": top[:, None],
    }
    _, inner = jax.jit(lambda *x: network.apply(*x, mutable=["intermediates"]))(variables, inputs)
    encodings = np.asarray(inner["intermediates"][settings["key_enc"]][0])  # [B, N, D]
    filled = np.concatenate([encodings, encodings.mean(1, keepdims=True)], 1)
    return filled[:, recorded["input_index_positions"]]


# ----------------------------------------------------------------------------------------------------------- DeepSEM


def head_deepsem(case: Case) -> Arrays:
    """Run the autoencoder with the recorded noise, its loss with and without the sparsity of A, and the gradients."""
    recorded, settings, state = case.group("in"), case.meta["config"], case.group("param")
    network = deepsem.DeepSEM(settings["hidden"], settings["inverse"])
    named = next(name for name in case.group("out") if name.startswith("total_with_"))  # total_with_0.1_L1
    loss = deepsem.Loss(float(named.split("_")[2]), settings["beta"])
    params = {
        ours: {"kernel": state[f"{theirs}.weight"].T, "bias": state[f"{theirs}.bias"]}
        for theirs, ours in NETWORK.items()
    }
    params["adjacency"] = state["adj_A"]
    batch = {"x": recorded["x"], "mask": recorded["dropout_mask"], "noise": recorded["noise"]}

    def objective(params: Any) -> Any:
        latent = network.apply({"params": params}, batch, {"start": params["adjacency"]})
        return loss(latent, batch, {}), (latent, loss.parts(latent, batch))

    (total, (latent, parts)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(params)
    ours = {
        "loss": total - parts["sparsity"],
        "loss_rec": parts["reconstruction"],
        "loss_gauss_times_beta": parts["divergence"],
        "loss_cat_times_beta": parts["classes"],
        "x_rec": latent.x,
        "z_mean": latent.mean,
        named: total,
    }
    flat = {"adj_A": grads["adjacency"]}
    flat |= {f"{theirs}.weight": grads[ours]["kernel"].T for theirs, ours in NETWORK.items()}
    flat |= {f"{theirs}.bias": grads[ours]["bias"] for theirs, ours in NETWORK.items()}
    flat = {name: flat[name] for name in case.group("grad") if name in flat}
    return {f"out/{name}": x for name, x in ours.items()} | {f"grad/{name}": x for name, x in flat.items()}


# ------------------------------------------------------------------------------------------------------------ scores


def metrics(case: Case) -> Arrays:
    """Return the scores of L1000 profiles, of a network and of a genetic interaction."""
    recorded = case.group("in")
    cuts = [int(match[1]) for name in case.group("out") if (match := re.fullmatch(r"precision@(\d+)_neg_pos", name))]
    profile = l1000.scores(recorded["p"], recorded["y"], cuts, published_truth=True)
    ours = {name: profile[name] for name in ("rmse", "pearson", "spearman")}
    ours |= {f"precision@{k}_neg_pos": np.array([profile[f"negative@{k}"], profile[f"positive@{k}"]]) for k in cuts}
    edges = np.unique(recorded["true_edges(send,rec)"], axis=0)
    truth, allowed = np.zeros(recorded["A"].shape, bool), recorded["evaluate_mask"] != 0
    truth[edges[:, 1], edges[:, 0]] = True
    early = np.abs(recorded["A"])[allowed], truth[allowed], len(edges)
    ours |= {"EP": scores.early_hits(*early), "EPR": scores.early_precision_ratio(*early)}
    singles = recorded["gi_single1"], recorded["gi_single2"]
    fit = interaction.coefficients(*singles, recorded["gi_double"])
    ours |= {"gi_coef_alpha_beta_c": np.array([fit.alpha, fit.beta, fit.gamma]), "gi_magnitude": fit.magnitude}
    return {f"out/{name}": x for name, x in ours.items()}


KINDS = {"head_gears": head_gears, "head_deepsem": head_deepsem, "metrics": metrics, **drug_heads.KINDS}
