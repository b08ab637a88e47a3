"""Golden cases of the heads on drugs that scLong was evaluated with: DeepCE and DeepDDS."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.parity import Case
from scfm_jax.tasks.drugs import deepce, deepdds
from scfm_jax.tasks.drugs.molecules import Library

Arrays = dict[str, np.ndarray]
TOLERANCES = {r"param_after/.*": {"rtol": 1e-5, "atol": 1e-6}}
"""Running averages, of which cases say nothing."""


# ------------------------------------------------------------------------------------------------------------- DeepCE


def head_deepce(case: Case) -> Arrays:
    """Run the head twice in training, without dropout, and then in evaluation by its running averages."""
    recorded, state, levels = case.group("in"), case.group("param"), len(case.meta["config"]["conv"])
    library = compounds(recorded)
    batch = library.batch(drug=np.arange(len(library)))
    batch |= {"cell": recorded.get("cell_onehot"), "dose": recorded.get("dose_onehot"), "y": recorded["y"]}
    batch = {name: x for name, x in batch.items() if x is not None}
    layers = sum(name.endswith("layer_norm.weight") for name in state)
    network = deepce.DeepCE(
        graph_widths=tuple(case.meta["config"]["conv"]),
        width=len(state["gene_embed.bias"]),
        layers=layers,
        heads=case.meta["config"].get("heads", deepce.DeepCE.heads),
        feedforward=len(state["drug_gene_attn.layers.0.positionwise_feedforward.fc_1.bias"]),
        hidden=len(state["linear_1.bias"]),
        condition=len(state.get("cell_id_embed.bias", [0] * 4)),
        dropout=0.0,
    )
    variables, shared = deepce_variables(state, levels, layers), {"genes": recorded["gene"]}
    changing = ["batch_stats", "intermediates"]
    run = jax.jit(lambda variables: network.apply(variables, batch, shared, True, mutable=changing))
    trained, changed = run(variables)
    _, after = run({**variables, "batch_stats": changed["batch_stats"]})
    averages = after["batch_stats"]
    evaluated = jax.jit(lambda v: network.apply(v, batch, shared))({**variables, "batch_stats": averages})
    atoms = np.append(changed["intermediates"]["fingerprint"]["atoms"][0][:-1], np.zeros((1, network.width)), 0)
    ours = {
        "out/pred_train_bn": trained,
        "out/pred_eval": evaluated,
        "out/fingerprint_atoms_trainbn": atoms[batch["molecules"].globals["atoms"][:-1]],
        "out/loss": deepce.loss(trained, batch, shared),
    }
    for i in range(levels):
        for theirs, name in (("running_mean", "mean"), ("running_var", "variance")):
            place = f"param_after/drug_fp.conv_layers.{i}.normalize.{theirs}"
            ours[place] = averages["fingerprint"][f"norm_{i}"][name]
    return ours


def compounds(recorded: Mapping[str, np.ndarray]) -> Library:
    """Return the recorded molecules one after the other, atoms in their original order.

    The recorded ones lie in the order of their degrees. In the original one a chain's atoms follow each other as they
    are met along its bonds.
    """
    molecule, edges = recorded["mol_of_atom"], recorded["directed_edges(atom,neighbor,bond)"]
    along = edges[np.argsort(edges[:, 2], kind="stable"), :2].ravel()
    met = np.full(len(molecule), len(along))
    met[along[::-1]] = np.arange(len(along))[::-1]
    order = np.lexsort((met, molecule))
    n_atoms = np.bincount(molecule, minlength=len(recorded["mask"]))
    local = np.empty(len(order), int)
    local[order] = np.arange(len(order)) - np.repeat(np.cumsum(n_atoms) - n_atoms, n_atoms)
    edges = edges[np.argsort(molecule[edges[:, 0]], kind="stable")]
    number = np.bincount(molecule[edges[:, 0]], minlength=len(n_atoms))
    return Library(recorded["atom"][order], n_atoms, local[edges[:, [1, 0]]], number, recorded["bond"][edges[:, 2]])


def deepce_variables(state: Mapping[str, np.ndarray], levels: int, layers: int) -> dict[str, Any]:
    """Return the variables of DeepCE from its published names."""
    fingerprint, averages = {}, {}
    for i in range(levels + 1):
        fingerprint[f"level_{i}"] = dense(state, f"drug_fp.out_layers.{i}")
    for i in range(levels):
        theirs = f"drug_fp.conv_layers.{i}"
        near = [state[f"{theirs}.degree_layer_list.{degree}.weight"].T for degree in range(deepce.DEGREES)]
        fingerprint |= {f"near_{i}": np.stack(near), f"bias_{i}": state[f"{theirs}.bias"][0]}
        fingerprint[f"self_{i}"] = {"kernel": state[f"{theirs}.linear.weight"].T}
        running = [state[f"{theirs}.normalize.running_{name}"] for name in ("mean", "var")]
        averages[f"norm_{i}"] = dict(zip(("mean", "variance"), running, strict=True))
    params = {"fingerprint": fingerprint, "genes": dense(state, "gene_embed")}
    params |= {"genes_out": dense(state, "drug_gene_attn.fc_out"), "out": dense(state, "linear_2")}
    params |= joined(state, "linear_1")
    for ours, theirs in (("cell", "cell_id_embed"), ("dose", "pert_idose_embed")):
        if f"{theirs}.weight" in state:
            params[ours] = dense(state, theirs)
    for i in range(layers):
        theirs = f"drug_gene_attn.layers.{i}"
        norm = {"scale": state[f"{theirs}.layer_norm.weight"], "bias": state[f"{theirs}.layer_norm.bias"]}
        forward = {f"forward_{j}": dense(state, f"{theirs}.positionwise_feedforward.fc_{j + 1}") for j in range(2)}
        params[f"layer_{i}"] = {"norm": norm, **forward, **joined(state, f"{theirs}.fc")}
        for part, name in (("encoder_attention", "to_atoms"), ("self_attention", "among_genes")):
            matrices = {"query": "fc_q", "key": "fc_k", "value": "fc_v", "out": "fc_o"}
            params[f"layer_{i}"][name] = {k: dense(state, f"{theirs}.{part}.{v}") for k, v in matrices.items()}
    return {"params": params, "batch_stats": {"fingerprint": averages}}


def dense(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return a linear layer."""
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def joined(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return a linear layer of several arrays."""
    return {f"joined_{key}": value for key, value in dense(state, name).items()}


# ------------------------------------------------------------------------------------------------------------ DeepDDS


def head_deepdds(case: Case) -> Arrays:
    """Run the head on the recorded pairs in the order that they have, and its loss."""
    recorded, state = case.group("in"), case.group("param")
    sides = [molecules(recorded, side) for side in ("1", "2")]
    library = joined_libraries(*sides)
    pairs = len(sides[0])
    batch = library.batch(first=np.arange(pairs), second=pairs + np.arange(pairs))
    line, reduced = recorded["cell"], recorded["cell"].ndim == 3
    layers = ("3", "5", "7") if reduced else ("0", "2", "4")
    reduction = "reduction_scfm" if reduced else "reduction"
    if reduced:
        line = line[..., : state[f"{reduction}.0.weight"].shape[1]]
    network = deepdds.DeepDDS(
        convolutions=tuple(len(state[f"drug1_conv{i}.bias"]) for i in (1, 2, 3)),
        drug=tuple(len(state[f"drug1_fc_g{i}.bias"]) for i in (1, 2)),
        line=tuple(len(state[f"{reduction}.{i}.bias"]) for i in layers),
        channels=len(state[f"{reduction}.0.bias"]) if reduced else 4,
        joined=tuple(len(state[f"{name}.bias"]) for name in ("fc1", "fc2")),
        symmetric=False,
    )
    params = {f"drug_convolution_{i}": {"linear": convolved(state, f"drug1_conv{i + 1}")} for i in range(3)}
    params |= {f"drug_{i}": dense(state, f"drug1_fc_g{i + 1}") for i in range(2)}
    params |= {f"line_{i}": dense(state, f"{reduction}.{name}") for i, name in enumerate(layers)}
    params |= {"joined_0": dense(state, "fc1"), "joined_1": dense(state, "fc2"), "out": dense(state, "out")}
    if reduced:
        params["channels"] = dense(state, f"{reduction}.0")
    batch |= {"line": np.arange(pairs), "y": recorded["y"]}
    shared = {"lines": line}
    logits = jax.jit(lambda params: network.apply({"params": params}, batch, shared))(params)
    return {"out/logits": logits, "out/loss": deepdds.loss(logits, batch, shared)}


def molecules(recorded: Mapping[str, np.ndarray], side: str) -> Library:
    """Return the first or the second drug of each recorded pair."""
    molecule, edges = recorded[f"batch{side}"], recorded[f"ei{side}"].T
    n_atoms = np.bincount(molecule)
    edges = edges[np.argsort(molecule[edges[:, 0]], kind="stable")]
    of_edge = molecule[edges[:, 0]]
    local = edges - (np.cumsum(n_atoms) - n_atoms)[of_edge][:, None]
    return Library(recorded[f"x{side}"], n_atoms, local, np.bincount(of_edge, minlength=len(n_atoms)))


def joined_libraries(first: Library, second: Library) -> Library:
    """Return the molecules of two libraries, one after the other."""
    parts = zip(*[(one.x, one.n_atoms, one.edges, one.n_edges) for one in (first, second)], strict=True)
    return Library(*(np.concatenate(part) for part in parts))


def convolved(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Return a graph convolution."""
    return {"kernel": state[f"{name}.lin.weight"].T, "bias": state[f"{name}.bias"]}


KINDS = {"head_deepce": head_deepce, "head_deepdds": head_deepdds}
