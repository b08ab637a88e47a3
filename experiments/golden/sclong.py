"""Golden cases of scLong: whole models, masking, preprocessing, gene alignment, learning rates, the graph, heads."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import sparse

from data_pipeline.genes.go_graph import all_pairs, neighbours
from data_pipeline.genes.vocab import map_genes
from experiments.golden import drug_heads, heads
from experiments.parity import Case
from scfm_jax.layers import attention, graph
from scfm_jax.models import sclong
from scfm_jax.models.sclong import published as convert
from scfm_jax.training import optim, schedules
from scfm_jax.types import Batch

Arrays = dict[str, np.ndarray]
HIDDEN = -10.0  # in recorded labels: not scored


# ------------------------------------------------------------------------------------------------------ whole models


def model(case: Case) -> Arrays:
    """Run forward, loss, gradients and a few steps of Adam with the case's weights, mask and top genes."""
    state = case.group("param")
    recorded = ("n_genes", "seed", "nb_features")  # beside the constructor's arguments
    settings = convert.config({key: value for key, value in case.meta["config"].items() if key not in recorded})
    network = sclong.Model(key_max="global", **settings["model"])
    variables = convert.params(state, network)
    inputs = model_inputs(case, network)
    weights = variables.pop("params")

    def objective(weights, inputs):
        outputs, extra = network.apply({"params": weights, **variables}, inputs, train=True, mutable=["intermediates"])
        return sclong.loss(outputs, inputs)[0], (outputs, extra["intermediates"])

    (value, (_, inner)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights, inputs)
    ours = {"loss": value} | intermediates(inner, network, variables)
    ours |= {"logits": scores(network, weights, inner), "top_indices": case.group("out")["top_indices"]}
    first = {name: x if name == "graph" else x[:1] for name, x in inputs.items()}
    _, (_, alone) = jax.jit(objective)(weights, first)
    ours["logits_cell0_alone"] = scores(network, weights, alone)
    weights = sclong.project(weights)
    if "adam_losses" in case.group("out"):
        steps = len(case.group("out")["adam_losses"])
        grads, weights, losses_and_norms = adam(steps, grads, weights, lambda weights: objective(weights, inputs)[0])
        ours |= losses_and_norms
    ours["param_after_fwd/mask_emb.weight"] = convert.state_dict({"params": weights}, network)["mask_emb.weight"]
    recorded = case.group("grad")  # of a few parameters only
    grads = {name: x for name, x in convert.state_dict({"params": grads}, network).items() if name in recorded}
    return {f"out/{name}": x for name, x in ours.items()} | {f"grad/{name}": x for name, x in grads.items()}


def model_inputs(case: Case, network: sclong.Model) -> dict:
    """Return what `prepare` would have made of the recorded values, mask and labels; the last position is PAD."""
    recorded = case.group("in")
    labels, n = recorded["labels"][:, None, :-1], network.n_genes
    scored = labels != HIDDEN
    room = int(scored.sum(-1).max())
    rows = np.argsort(~scored, axis=-1, kind="stable")[..., :room]
    source, target = recorded["edge_index"]
    return {
        "values": jnp.asarray(recorded["x"][:, None, :n]),
        "masked": jnp.asarray(recorded["x_masked"][:, None, :n]),
        "rows": jnp.asarray(rows),
        "targets": jnp.asarray(np.take_along_axis(labels, rows, -1)),
        "weights": jnp.asarray(np.take_along_axis(scored, rows, -1), jnp.float32),
        "cell_mask": jnp.ones((len(labels), 1), bool),
        "graph": graph.build(source, target, recorded["edge_weight"], n_nodes=n + 1),
        "top": jnp.asarray(case.group("out")["top_indices"], jnp.int32)[:, None],
    }


def scores(network: sclong.Model, weights: dict, inner: dict) -> Arrays:
    """Return the predicted value of every position, PAD included. [B, N, 1]"""
    method = sclong.Model.score
    return network.apply({"params": weights}, inner["merged_decodings"][0], method=method)[..., None]


def intermediates(inner: dict, network: sclong.Model, variables: dict) -> Arrays:
    """Return the inner activations under their published names, those of calls that repeat as a second ("#2")."""
    activations = {name: value[0] for name, value in inner.items() if isinstance(value, tuple)}
    same = ("top_encodings", "left_encodings", "merged_encodings", "merged_decodings")
    cells = activations["token_emb"].shape[0]
    published = {
        "token_emb": activations["token_emb"],
        "mask_emb": jnp.broadcast_to(activations["mask_emb"], (cells, 1, network.base_dim)),
        "token_norm": activations["token_norm"],
        "pos_emb": inner["identity"]["table"][0],
        "go_conv": inner["identity"]["graph"][0],
        "base_to_large": activations["to_large_out"],
        "large_in_norm": activations["large_norm_out"],
        "large_encoder": activations["large_out"],
        "large_to_base": activations["to_base_out"],
        "large_to_base_out_norm": activations["top_encodings"],
        "mini_encoder": activations["left_encodings"],
        "decoder": activations["decoder_out"],
        "decode_norm": activations["merged_decodings"],
    }
    for ours, theirs in convert.STACKS.items():
        for name, layer in inner[ours].items():
            here = f"{theirs}.net.layers.{name.removeprefix('layer_')}"
            attended, *_ = (x for x in layer["attended"] if x.shape[1] == layer["heads"][-1][1].shape[1])
            published[f"{here}.0"], published[f"{here}.1"] = layer["branch"][-1], layer["mlp_branch"][-1]
            published[f"{here}.0.fn.fast_attention"] = attended.swapaxes(1, 2)
    published |= {f"{name}#2": value for name, value in published.items()}
    q, k, v = inner["mini"]["layer_0"]["heads"][-1]
    published |= {f"mini0_{name}": x.swapaxes(1, 2) for name, x in zip("qkv", (q, k, v), strict=True)}
    how = {"projection": variables["buffers"]["mini"]["projection"][0], "kernel": network.kernel, "key_max": "global"}
    for name, x in (("q", q), ("k", k)):
        published[f"mini0_{name}_features"] = attention.favor_features(x, keys=name == "k", **how).swapaxes(1, 2)
    return {f"act/{name}": x for name, x in published.items()} | {name: activations[name] for name in same}


def adam(steps: int, grads: dict, weights: dict, objective: Callable) -> tuple[dict, dict, Arrays]:
    """Return (gradients and weights as recorded, losses and gradient norms) of Adam at 1e-3, the norm cut at 100.

    The recording kept references: the loss's gradients are still in place when the first step adds its own, and what is
    recorded as gradients is that sum after it was cut; the weights are those after the last step.
    """
    optimizer = optim.build(weights, steps=steps, name="adam", schedule="constant", learning_rate=1e-3, clip_norm=100.0)
    state, losses, norms = optimizer.transform.init(weights), [], []
    step, cut = jax.jit(jax.value_and_grad(objective)), optax.clip_by_global_norm(100.0)
    kept = grads
    for i in range(steps):
        value, grads = step(weights)
        if i == 0:
            grads = jax.tree.map(jnp.add, grads, kept)
            kept, _ = cut.update(grads, cut.init(grads))
        losses.append(value)
        norms.append(optax.tree.norm(grads))
        weights, state = optim.update(optimizer, grads, state, sclong.project(weights), jnp.int32(i))
    return kept, weights, {"adam_losses": np.array(losses), "adam_gradnorms": np.array(norms)}


# ----------------------------------------------------------------------------------------------------------- values


def masking(case: Case) -> Arrays:
    """Hide and score values with the recorded draws."""
    recorded, settings = case.group("in"), case.meta["config"]
    draws = {name: recorded[f"rand_{name}"][:, None] for name in ("select", "replace")}
    options = {"mask_rate": settings["mask_prob"], "replace_rate": settings["replace_prob"], "draws": draws}
    inputs = prepared(recorded["x"], transform="none", max10=False, **options)
    labels, selected = np.full(recorded["x"].shape, HIDDEN, np.float32), np.zeros(recorded["x"].shape, bool)
    for cell, (rows, targets, weights) in enumerate(
        zip(*(inputs[x][:, 0] for x in ("rows", "targets", "weights")), strict=True)
    ):
        labels[cell, rows[weights > 0]] = targets[weights > 0]
        selected[cell, rows[weights > 0]] = True
    return {"out/masked_input": inputs["masked"][:, 0], "out/labels": labels, "out/selected": selected}


def preprocess(case: Case) -> Arrays:
    """Turn counts into values in each of the ways, before and after the rule of the maximum of 10."""
    recorded, ours = case.group("in"), {}
    for name, source, transform in (
        ("literal", "counts", "literal_paper"),
        ("cpm", "counts", "normalised"),
        ("already_log", "already_log", "none"),
    ):
        for kind, max10 in (("log", False), ("max10", True)):
            key = f"out/{name}_{kind}"
            ours[key] = prepared(recorded[source], transform=transform, max10=max10, mask_rate=0.0)["values"][:, 0]
    return ours


def prepared(values: np.ndarray, **options) -> Arrays:
    """Return what `prepare` makes of dense values [B, V] of genes in the order of the model."""
    n_cells, n_genes = values.shape
    cells = jnp.zeros((n_cells, 1), jnp.int32)
    batch = Batch(
        genes=jnp.broadcast_to(jnp.arange(n_genes, dtype=jnp.int32), (n_cells, 1, n_genes)),
        counts=jnp.asarray(values, jnp.float32)[:, None],
        cell_mask=cells == 0,
        study=cells,
        coords=jnp.full((n_cells, 1, 2), jnp.nan),
        labels={},
    )
    constants = {"slots": jnp.arange(n_genes + 1), "measured": jnp.ones((1, n_genes), bool)}
    prepare = jax.jit(lambda *x: sclong.prepare(*x, step=0, train=True, **options))
    return jax.device_get(prepare(batch, constants, jax.random.key(0)))


def reindex(case: Case) -> Arrays:
    """Align genes as the authors' embedding script does: the last of two columns of a gene counts.

    What the model does not know gets the mean of all positions.
    """
    recorded = case.group("in")
    names, genes = recorded["data_genes"].tolist(), recorded["model_genes"].tolist()
    index = map_genes(names, genes, min_mapped=None).index
    index = np.where(index < 0, [genes.index(name) if name in genes else -1 for name in names], index)  # repeats
    n_data, n_positions = len(names), len(genes) + 1
    places = np.full(n_positions, n_data)
    places[index[index >= 0]] = np.flatnonzero(index >= 0)
    back = np.where(index < 0, n_positions, index)
    encodings = recorded["encodings"]
    filled = np.concatenate([encodings, encodings.mean(1, keepdims=True)], 1)
    values = np.pad(recorded["x"], ((0, 0), (0, 1)))[:, places]
    return {
        "out/model_positions": places,
        "out/data_positions": back,
        "out/x_model": values,
        "out/encodings_data": filled[:, back],
    }


def lr_schedule(case: Case) -> Arrays:
    """Return the learning rate of every step of the schedule, in double precision."""
    c, n = case.meta["config"], len(case.group("out")["lr"])
    cycles = (c["first_cycle_steps"], c["cycle_mult"], c["gamma"])
    with jax.enable_x64(True):
        schedule = schedules.restarts(c["max_lr"], c["min_lr"] / c["max_lr"], c["warmup_steps"], *cycles, n)
        return {"out/lr": np.asarray(jax.vmap(schedule)(jnp.arange(n)))}


def go_graph(case: Case) -> Arrays:
    """Build the graph of a case from its genes and terms, and run one convolution with the case's weights.

    The order of edges means nothing, so ours are put in the recorded order where they are the same set. The recorded
    Jaccard indices went through a csv and pandas' fast parser, which changes the last bit of a few; the weights of the
    graph are the same float32 numbers.
    """
    recorded, told, weights = case.group("in"), case.group("out"), case.group("param")
    n_genes, settings = len(recorded["gene_list"]), case.meta["config"]
    matrix = term_matrix(recorded["gene_term_pairs"].reshape(-1, 2), recorded["gene_has_entry"])
    cut, top = float(settings["threshold"].lstrip("> ")), settings["num_similar_genes_go_graph"] + 1
    pairs = all_pairs(matrix, cut)
    source, target, weight = edges = neighbours(matrix, cut=cut, top=top, self_edge=True)
    built = graph.build(source, target, weight.astype(np.float32), n_nodes=n_genes + 1)  # the last node is the padding
    linear = {"kernel": weights["sgconv.lin.weight"].T, "bias": weights["sgconv.lin.bias"]}
    layer = graph.GraphConvolution(len(linear["bias"]))
    ours = {"sgconv": layer.apply({"params": {"linear": linear}}, jnp.asarray(recorded["x"]), built)}
    for name, graph_edges in (("full_edges", pairs), ("topk", edges)):
        names = [f"{name}_{column}" for column in ("src", "dst", "jaccard")]
        ours |= dict(zip(names, as_recorded(graph_edges, *(told[column] for column in names[:2])), strict=True))
    source, target, weight = as_recorded(edges, *told["edge_index"])
    ours |= {"edge_index": np.stack([source, target]), "edge_weight": weight.astype(np.float32)}
    return {f"out/{name}": value for name, value in ours.items()}


def term_matrix(pairs: np.ndarray, has_entry: np.ndarray) -> sparse.csr_matrix:
    """Return which gene has which term; genes without an entry have none. pairs: (gene, term) [A, 2]"""
    pairs = pairs[has_entry[pairs[:, 0]]]
    shape = (len(has_entry), int(pairs[:, 1].max(initial=0)) + 1)
    return sparse.csr_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=shape)


def as_recorded(edges: tuple[np.ndarray, ...], source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return `edges` in the order of the recorded ends where they are the same set, else as they are."""
    ours, theirs = np.lexsort(edges[:2]), np.lexsort((source, target))
    if len(ours) != len(theirs) or (np.stack(edges[:2])[:, ours] != np.stack([source, target])[:, theirs]).any():
        return edges
    order = np.empty_like(ours)
    order[theirs] = ours
    return tuple(column[order] for column in edges)


KINDS = {
    "model": model,
    "masking": masking,
    "preprocess": preprocess,
    "reindex": reindex,
    "lr_schedule": lr_schedule,
    "go_graph": go_graph,
    **heads.KINDS,
}
TOLERANCES = drug_heads.TOLERANCES
