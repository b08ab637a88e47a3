"""Golden cases of scEMB: counts to sentences, forward, loss, gradients, embeddings, perturbation, LoRA, prefixes."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import Case
from scfm_jax.models import scemb
from scfm_jax.models.scemb import published as convert
from scfm_jax.models.scemb.inputs import MASK, PAD, SPECIAL, perturb
from scfm_jax.models.scemb.objective import gene_logits
from scfm_jax.training import lora
from scfm_jax.types import Batch

Arrays = dict[str, np.ndarray]


def model(case: Case) -> Arrays:
    """Run all that a case records, from its counts on."""
    recorded, meta = case.group("in"), case.meta
    if (meta["pad_id"], meta["mask_id"], meta["n_special"]) != (PAD, MASK, SPECIAL):
        raise ValueError("other special tokens than pad 0, mask 1, genes from 2")
    settings = convert.config(meta["config"], meta["pos_mode"])
    network = scemb.Model(**settings["model"])
    weights = convert.params(case.group("param"), network)["params"]
    ours, inputs = sentences(case)
    if (recorded["position_ids"] != inputs["positions"][:, 0]).any():
        raise ValueError("in/position_ids are not those of in/counts")
    clean = {key: inputs[key] for key in ("tokens", "positions", "edges") if key in inputs}
    masked = embeddings(network, weights, clean | {"tokens": inputs["masked"]})  # inner activations are of this pass
    cells = {name: x for name, x in embeddings(network, weights, clean).items() if name.startswith("cell_emb")}
    ours |= objective(case, network, weights, inputs) | masked | cells
    gene = int(recorded["perturb_token"]) - SPECIAL
    changed = embeddings(network, weights, perturb(clean, gene))["cell_emb_last"]
    ours |= {"perturb_mask_cell_emb_last": changed, "perturb_mask_cosine": cosine(ours["cell_emb_last"], changed)}
    ours |= prefixed(network, weights, clean, recorded["prefix_k"], recorded["prefix_v"])
    tuned = lora.apply(weights, adapter(case, network))
    ours["lora_last_hidden"] = embeddings(network, tuned, clean)[f"hidden{network.num_layers}"]
    grads = {f"grad/{name}": x for name, x in ours.pop("grads").items() if name in case.group("grad")}
    return {f"out/{name}": x for name, x in ours.items()} | grads


def sentences(case: Case) -> tuple[Arrays, dict[str, jnp.ndarray]]:
    """Return (recorded steps from counts to ids, what `prepare` makes of the counts and the recorded mask)."""
    recorded, meta = case.group("in"), case.meta
    n_cells, n_genes = recorded["counts"].shape
    cells = jnp.zeros((n_cells, 1), jnp.int32)
    batch = Batch(
        genes=jnp.broadcast_to(jnp.arange(n_genes, dtype=jnp.int32), (n_cells, 1, n_genes)),
        counts=jnp.asarray(recorded["counts"])[:, None],
        cell_mask=cells == 0,
        study=cells,
        coords=jnp.full((n_cells, 1, 2), jnp.nan),
        labels={},
    )
    constants = {"slots": jnp.arange(n_genes + 1), "measured": jnp.ones((1, n_genes), bool)}

    def prepare(**options) -> dict[str, jnp.ndarray]:
        options |= {"n_bins": meta["n_bins"], "step": 0, "train": True}
        return jax.jit(lambda batch: scemb.prepare(batch, constants, jax.random.key(0), **options))(batch)

    whole = prepare(max_len=n_genes, mask_rate=0)
    rows, columns = jnp.arange(n_cells)[:, None], whole["tokens"][:, 0] - SPECIAL
    columns = jnp.where(columns < 0, n_genes, columns)

    def dense(x: jnp.ndarray) -> jnp.ndarray:
        return jnp.zeros((n_cells, n_genes), x.dtype).at[rows, columns].set(x[:, 0], mode="drop")

    draws = {"mask": recorded["labels"][:, None] >= 0, "tokens": recorded["masked_input_ids"][:, None]}
    inputs = prepare(max_len=meta["max_len"], position=meta["pos_mode"], draws=jax.tree.map(jnp.asarray, draws))
    real = inputs["tokens"][:, 0] != PAD
    ours = {"lognorm": dense(whole["values"]), "bins": dense(whole["positions"])}
    return ours | {"input_ids": inputs["tokens"][:, 0], "attention_mask": real}, inputs


def objective(case: Case, network: scemb.Model, weights: dict, inputs: dict) -> Arrays:
    """Return loss and gradients over the gathered genes, and the logits of all places."""
    labels = case.group("in")["labels"][:, None]
    if (labels != np.where(labels >= 0, inputs["tokens"], labels)).any():
        raise ValueError("in/labels are not those of in/counts")

    def value(weights):
        outputs = network.apply({"params": weights}, inputs)
        return scemb.loss(outputs, inputs)[0]

    def scores(weights):
        places = jnp.broadcast_to(jnp.arange(inputs["tokens"].shape[2]), inputs["tokens"].shape)
        return gene_logits(network.apply({"params": weights}, inputs | {"places": places}).logits)

    loss, grads = jax.jit(jax.value_and_grad(value))(weights)
    results = {"mlm_loss": loss, "mlm_logits": jax.jit(scores)(weights)[:, 0]}
    return results | {"grads": convert.state_dict({"params": grads}, network)}


def embeddings(network: scemb.Model, weights: dict, inputs: dict) -> Arrays:
    """Return what the network makes of these tokens: inner activations and both embeddings of the cells."""

    def run(weights, inputs, kind):
        outputs, extra = network.clone(cell_layer=kind).apply({"params": weights}, inputs, mutable=["intermediates"])
        return outputs.cells[:, 0], extra["intermediates"]

    run = jax.jit(run, static_argnums=2)
    (last, inner), (mean, _) = (run(weights, inputs, kind) for kind in ("last", "all_layers"))
    ours = {"cell_emb_last": last, "cell_emb_all_layers": mean, "embeddings": inner["embeddings"][0]}
    ours["attn_layer0"] = inner["block_0"]["attention"][0]
    return ours | {f"hidden{i + 1}": inner[f"block_{i}"]["output"][0] for i in range(network.num_layers)}


def prefixed(network: scemb.Model, weights: dict, inputs: dict, keys: np.ndarray, values: np.ndarray) -> Arrays:
    """Return the outputs with recorded prefixes [layers, H, S, K], and what prefixes of length 0 change."""
    tuned = dict(weights)
    for i in range(network.num_layers):
        more = {name: x[i].swapaxes(0, 1).reshape(x.shape[2], -1) for name, x in (("key", keys), ("value", values))}
        tuned[f"block_{i}"] = weights[f"block_{i}"] | {f"prefix_{name}": jnp.asarray(x) for name, x in more.items()}
    outputs = embeddings(network.clone(prefix=keys.shape[2]), tuned, inputs)
    last = f"hidden{network.num_layers}"
    fused = jax.jit(lambda weights: network.apply({"params": weights}, inputs).genes[:, 0])(weights)
    change = jnp.abs(fused - embeddings(network, weights, inputs)[last]).max()
    return {
        "prefix_last_hidden": outputs[last],
        "prefix_cell_emb_last": outputs["cell_emb_last"],
        "prefix_selfcheck_maxabs": change,
    }


def adapter(case: Case, network: scemb.Model) -> lora.Adapter:
    """Return the recorded LoRA factors under the paths of our kernels."""
    kernels = {name.removeprefix("bert."): "/".join(path[1:]) for name, (path,), _ in convert.entries(network)}
    factors: dict[str, dict[str, jnp.ndarray]] = {}
    for name, x in case.group("in").items():
        if match := re.fullmatch(r"lora/(.+)\.lora_([AB])\.weight", name):
            factors.setdefault(kernels[f"{match[1]}.weight"], {})[match[2].lower()] = jnp.asarray(x.T)
    return lora.Adapter(factors, case.meta["lora"]["alpha"] / case.meta["lora"]["r"])


def cosine(a: jnp.ndarray, b: jnp.ndarray) -> jnp.ndarray:
    """Return the cosine of each row of `a` with that of `b`."""
    return (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


KINDS = {"model": model}
