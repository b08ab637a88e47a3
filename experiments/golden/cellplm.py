"""Golden cases of CellPLM: whole models, single encoder layers, and functions."""

import re
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from experiments.parity import Case
from scfm_jax.layers.position import Position, sinusoidal
from scfm_jax.models import cellplm
from scfm_jax.models.cellplm import likelihood
from scfm_jax.models.cellplm import published as convert
from scfm_jax.models.cellplm.encoder import Block
from scfm_jax.models.cellplm.latent import VAE, kl_weight
from scfm_jax.models.cellplm.objective import decode, predict, reconstruction
from scfm_jax.tasks import metrics
from scfm_jax.types import Batch

Arrays = dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------------ whole models


def model(case: Case) -> Arrays:
    """Run forward, loss and gradients of a whole model with the case's weights, masks and noise."""
    settings = convert.config(case.meta["config"])
    described = cellplm.Model(**settings["model"])
    network = described.clone(dropout=0.0)  # recorded without dropout; the names of the weights are those with it
    train = case.meta["mode"] == "train"
    inputs = model_inputs(case, settings, network)
    variables = convert.params(case.group("param"), described)
    weights = variables.pop("params")

    def objective(weights):
        collections = ["intermediates", "buffers"]
        outputs, extra = network.apply({"params": weights, **variables}, inputs, train=train, mutable=collections)
        if network.head == "embedder":
            return jnp.zeros(()), (outputs, extra)
        return cellplm.loss(outputs, inputs, **settings["loss"])[0], (outputs, extra)

    (value, (outputs, extra)), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(weights)
    ours = {f"out/{name}": array for name, array in intermediates(extra["intermediates"])}
    ours |= {f"out/{name}": array for name, array in model_outputs(case, settings, inputs, outputs, value)}
    return ours | {f"grad/{name}": array for name, array in convert.state_dict({"params": grads}, described).items()}


def model_inputs(case: Case, settings: dict, network: cellplm.Model) -> dict:
    """Return what `prepare` makes of the recorded counts, labels, mask and noise."""
    recorded = case.group("in")
    n_cells, n_columns = recorded["x"].shape
    columns = recorded.get("gene_idx", np.arange(n_columns))
    measured = np.zeros((1, network.n_genes), bool)
    measured[0, columns[recorded.get("gene_mask", np.ones(n_columns, bool))]] = True
    absent = np.full(n_cells, -1, np.int32)
    label = (
        np.where(recorded["loss_mask"], recorded["label"], -1)
        if "loss_mask" in recorded
        else recorded.get("label", absent)
    )
    batch = Batch(
        genes=jnp.broadcast_to(jnp.arange(n_columns, dtype=jnp.int32), (1, n_cells, n_columns)),
        counts=jnp.asarray(recorded["x"])[None],
        cell_mask=jnp.ones((1, n_cells), bool),
        study=jnp.zeros((1, n_cells), jnp.int32),
        coords=jnp.asarray(recorded.get("coord", np.full((n_cells, 2), np.nan)), jnp.float32)[None],
        labels={"cell_type": jnp.asarray(label)[None]},
    )
    constants = {"slots": jnp.asarray([*columns, network.n_genes]), "measured": jnp.asarray(measured)}
    hidden = np.zeros((1, n_cells, network.n_genes), bool)
    hidden[0][:, columns] = recorded["input_mask"] > 0
    draws = {"mask": jnp.asarray(hidden)} | noise(recorded, network)
    inputs = cellplm.prepare(
        batch,
        constants,
        jax.random.key(0),
        step=0,
        train=case.meta["mode"] == "train",
        draws=draws,
        **settings["inputs"],
    )
    if case.meta["mode"] == "train" and settings["inputs"]["score"] == "masked":
        inputs["mask"] = draws["mask"]  # without masking rates the original counts every entry as masked
    for ours, theirs in (("batch", "batch"), ("study", "dataset"), ("platform", "platform")):
        inputs[ours] = jnp.asarray(recorded.get(theirs, absent), jnp.int32)[None]
    if settings["loss"]["objective"] == "denoise" and recorded["label"].ndim == 2:
        inputs["counts"] = counts_of_label(recorded, n_columns)
    return inputs


def counts_of_label(given: Arrays, n_columns: int) -> jnp.ndarray:
    """Return the counts to be recovered, over all input columns. [1, N, P]"""
    label = given["label"]
    if label.shape[1] != n_columns:
        full = np.zeros((len(label), n_columns), label.dtype)
        full[:, given["gene_mask"]] = label
        label = full
    return jnp.asarray(label, jnp.float32)[None]


def noise(given: Arrays, network: cellplm.Model) -> dict[str, dict[str, jnp.ndarray]]:
    """Return the latent's recorded draws: they come last, after those of the mask."""
    draws = {}
    for name in sorted((n for n in given if n.startswith("noise")), key=lambda n: int(re.match(r"noise(\d+)", n)[1])):
        width = network.latent_dim if "randn" in name else network.num_clusters
        if given[name].shape[-1:] == (width,):
            draws["normal" if "randn" in name else "uniform"] = jnp.asarray(given[name])[None]
    needed = {"gmvae": {"uniform", "normal"}, "vae": {"normal"}}.get(network.latent_mod, set())
    return {"noise": draws} if needed and needed <= set(draws) else {}


def intermediates(tree: dict) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the recorded inner activations under their published names."""
    for name in ("gene_embed", "embedder", "pre_latent"):
        yield name.replace("pre_latent", "pre_latent_norm"), tree[name][0][0]
    for name, layer in tree.get("encoder", {}).items():
        index = name.removeprefix("layer_")
        yield f"enc_layer{index}", layer["output" if "attended" in layer else "branch"][0][0]
        if "attended" in layer:
            yield f"enc_layer{index}_attn", layer["attended"][0]
    for name, (value,) in tree.get("latent", {}).items():
        yield name, value[0] if value.ndim else value


def model_outputs(case: Case, settings: dict, inputs: dict, outputs, value) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what the original's forward returned."""
    recorded, objective = case.group("in"), settings["loss"]["objective"]
    head = settings["model"]["head"]
    yield "latent", outputs.cells[0]
    yield "latent_loss", outputs.aux_loss
    yield "loss", value
    yield "target_loss", value if head != "decoder" else value - outputs.aux_loss
    if head == "embedder":
        yield "pred", outputs.cells[0]
    elif head == "annotation":
        yield "pred", outputs.logits[0].argmax(-1)[recorded["loss_mask"]]
        yield "label", recorded["label"][recorded["loss_mask"]]
    else:
        yield from decoded(recorded, objective, inputs, outputs)


def decoded(given: Arrays, objective: str, inputs: dict, outputs) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the decoder's means, dispersions and predictions."""
    mean, theta = decode(outputs.logits)
    mean = mean[0]
    n_columns = given["x"].shape[1]
    kept = given.get("gene_mask", np.ones(n_columns, bool))
    if objective == "recon":
        shown = given["input_mask"] > 0
        scaled = mean * given["x"].sum(1, keepdims=True) * shown
        yield "pred", scaled[shown.any(1)][:, kept]
    elif objective in ("imputation", "denoise"):
        pred = predict(outputs, inputs)[0]
        if objective == "imputation" and "gene_idx" not in given:
            mean = pred  # scaled in place by the original, which then is the same array
        pred = pred[:, given.get("gene_idx", np.arange(n_columns))]
        yield "pred", pred if objective == "imputation" else pred[:, kept]
    yield "recon", mean
    if theta is not None:
        yield "mean", mean
        yield "disp", jnp.broadcast_to(theta, mean.shape)


# ----------------------------------------------------------------------------------------------------- single layers


def layers(case: Case) -> Arrays:
    """Run each recorded encoder layer alone, with the gradient of the sum of sines of its outputs.

    The cosines that start the gradient are those of the recorded outputs (which are compared too): cosformer's reach
    4e5, where a float32 has no digits left for its angle.
    """
    ours = {}
    for kind in sorted({name.split("/")[0] for name in case.group("param")}):
        state = {name.split("/", 1)[1]: x for name, x in case.group("param").items() if name.startswith(f"{kind}/")}
        block = Block(kind, case.meta["heads"])
        x = jnp.asarray(case.group("in")["x"])[None]
        mask = jnp.ones(x.shape[:2], bool)
        variables = layer_variables(kind, state)

        def run(x, block=block, variables=variables, mask=mask):
            (y, _), changed = block.apply(variables, x, mask, mutable=["buffers"])
            return y, changed

        y, backward, changed = jax.vjp(run, x, has_aux=True)
        at = case.group("out")[f"{kind}/y"][None] if kind == "cosformer" else y  # its values reach 4e5
        (grad,) = backward(jnp.cos(at))
        ours |= {f"out/{kind}/y": y[0], f"grad/{kind}/x": grad[0]}
        for i, name in enumerate(("mlp_in", "mlp_out"), 1):
            if kind == "transformer":
                ours[f"out/{kind}/linear{i}_u_after"] = changed["buffers"][name]["u"]
    return ours


def layer_variables(kind: str, state: Arrays) -> dict:
    """Return the variables of one block from the published names of one layer."""
    flat = {}
    for name, paths, transposed in convert.block_entries(kind, "", ()):
        for path, part in zip(
            paths, np.split(state[name], len(paths)) if len(paths) > 1 else [state[name]], strict=True
        ):
            flat[path] = jnp.asarray(part.T if transposed else part)
    return unflatten_dict(flat)


# --------------------------------------------------------------------------------------------------------- functions


def functions(case: Case) -> Arrays:
    """Compute every function of which an output is recorded."""
    ours = {}
    for name in case.group("out"):
        rule = next((rule for pattern, rule in FUNCTIONS.items() if re.fullmatch(pattern, name)), None)
        if rule is None:
            raise ValueError(f"out/{name}: no such function here")
        ours[f"out/{name}"] = rule(case, name)
    return ours


def position(case: Case, name: str) -> np.ndarray:
    """Return the positional term of each cell; the first cell decides whether coordinates are missing."""
    coords, width = jnp.asarray(case.group("in")["pe_coord"])[None], case.group("out")[name].shape[1]
    weights = {"params": {"missing": jnp.asarray(case.group("param")["missing_pe"])}}
    return Position("sin", "first").apply(weights, coords, jnp.ones(coords.shape[:2], bool), width)[0]


def position_table(case: Case, name: str) -> np.ndarray:
    """Return the first rows of the table of all places, row = 100 x first + second."""
    rows, width = case.group("out")[name].shape
    places = jnp.stack(jnp.divmod(jnp.arange(rows), 100), -1)
    return sinusoidal(((places + 0.5) / 100 + 0.01) / 1.02, width)


def imputation(case: Case, name: str) -> np.ndarray:
    """Return mse, rmse, mae, corr, cos with the published root."""
    scores = metrics.imputation_scores(case.group("in")["pred"], case.group("in")["true"], published_rmse=True)
    return np.array([scores[key] for key in ("mse", "rmse", "mae", "corr", "cos")])


def denoising(case: Case, name: str) -> np.ndarray:
    """Return mse, rmse, mae, corr, cos of |pred|, over the mask or over all entries."""
    recorded = case.group("in")
    mask = recorded["eval_mask"] if name.endswith("mask") else None
    scores = metrics.denoising_scores(np.abs(recorded["pred"]), recorded["true"], mask)
    return np.array([scores[key] for key in ("mse", "rmse", "mae", "corr", "cos")])


def annotation(case: Case, name: str) -> np.ndarray:
    """Return acc, f1, precision, recall, all macro."""
    scores = metrics.classification_scores(case.group("in")["pred_lab"], case.group("in")["true_lab"])
    return np.array([scores[key] for key in ("acc", "f1_score", "precision", "recall")])


def objective(case: Case, name: str) -> np.ndarray:
    """Return the loss of recorded decoder outputs."""
    recorded = case.group("in")
    y, n_genes = jnp.asarray(recorded["obj_y"])[None], recorded["obj_y"].shape[1]
    hidden = jnp.asarray(recorded["obj_input_mask"] > 0)[None]
    inputs = {"slots": jnp.broadcast_to(jnp.arange(n_genes), y.shape), "counts": y, "mask": hidden}
    inputs["measured"] = jnp.asarray(recorded["obj_gmask"])[None]
    inputs["weights"] = (hidden.any(-1) if "recon" in name else jnp.ones(y.shape[:2])).astype(jnp.float32)
    mean = jnp.asarray(recorded["obj_mean"])[None]
    if "recon" in name:
        value, weight = reconstruction(mean, inputs)
        return value / weight
    theta, measured = jnp.asarray(recorded["obj_disp"]), (inputs["measured"],)

    def cell(mean, theta, slots, counts):  # each cell has dispersions of its own here
        nested = (mean[None, None], theta, slots[None, None], counts[None, None])
        return likelihood.scaled_nb_nll(*nested, measured, jnp.ones((1, 1)))[0]

    return jax.vmap(cell)(jnp.log(mean[0]), jnp.log(theta), inputs["slots"][0], y[0]).mean()


def vae(case: Case, name: str) -> np.ndarray:
    """Return the sampled latent, or the divergence at the weight that the name tells."""
    state, h = case.group("param"), jnp.asarray(case.group("in")["vae_h"])[None]
    maps = {"mean": "vae.hid_2mu", "log_var": "vae.hid_2sigma"}
    weights = {ours: {"kernel": state[f"{x}.weight"].T, "bias": state[f"{x}.bias"]} for ours, x in maps.items()}
    step = round(float(match[1]) * 10000) if (match := re.search(r"_w([\d.]+)$", name)) else 0
    draw = {"normal": jnp.asarray(case.group("in")["vae_noise"])[None]}
    layer = VAE(state["vae.hid_2mu.bias"].size, train=True)
    z, loss, _ = layer.apply({"params": weights}, h, jnp.ones(h.shape[:2], bool), jnp.asarray(step), draw)
    return loss if match else z[0]


def weight_after(case: Case, name: str) -> np.ndarray:
    """Return the weight one update after the one at which the divergence was recorded."""
    before = next(float(m[1]) for n in case.group("out") if (m := re.fullmatch(r"vae_kl_w([\d.]+)", n)))
    return kl_weight(jnp.asarray(round(before * 10000) + 1))


def weight_schedule(case: Case, name: str) -> np.ndarray:
    """Return the weights of the first updates."""
    return kl_weight(jnp.arange(case.group("out")[name].size))


def held_out_genes(case: Case, name: str) -> np.ndarray:
    """Return the genes held out, with the seed that the case's description tells."""
    told = re.search(r"seed (\d+)", case.meta.get("arrays", {}).get(f"out/{name}", ""))
    return np.array(metrics.stratified_genes(case.group("in")["strat_X"], int(told[1]) if told else 10))


FUNCTIONS: dict[str, Callable[[Case, str], np.ndarray]] = {
    r"pe_\d+": position,
    "pe_table_corner": position_table,
    "imputation_eval": imputation,
    "denoising_eval_(mask|full)": denoising,
    "annotation_eval": annotation,
    "obj_.*": objective,
    r"vae_z|vae_kl_w[\d.]+": vae,
    "vae_kl_weight_after": weight_after,
    "vae_kl_weight_schedule": weight_schedule,
    "strat_genes": held_out_genes,
}

TOLERANCES = {"(out|grad)/cosformer/.*": {"rtol": 1e-3, "atol": 1e-6}}  # ill-conditioned: the cases' README says so
KINDS = {"model": model, "layers": layers, "functions": functions}
