"""CellPLM promises: padding, order and hidden values do not matter; sizes are published ones; weights go both ways."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from scfm_jax.layers import bags, norms, position, sparse
from scfm_jax.models import cellplm
from scfm_jax.models.cellplm import latent, likelihood
from scfm_jax.models.cellplm import objective as cellplm_objective
from scfm_jax.models.cellplm import published as convert
from scfm_jax.models.cellplm.objective import gene_logits
from scfm_jax.types import Batch, Outputs

KEY = jax.random.key(0)
B, C, P, G, V, S = 2, 12, 10, 40, 36, 2
KINDS = ("flowformer", "performer", "transformer", "mlp", "none")
TINY = dict(cellplm.VARIANTS["tiny"]["model"], n_genes=V, n_batches=3, n_studies=S, enc_layers=1)


# Programs this small are dear to compile and free to run.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def example():
    """Two bags, the second with four padding cells; store ids are a shuffle of slots, four are not in the model."""
    rng = np.random.default_rng(0)
    genes = np.stack([[rng.permutation(G)[:P] for _ in range(C)] for _ in range(B)])
    mask = np.ones((B, C), bool)
    mask[1, 8:] = False
    batch = Batch(
        genes=np.where(mask[..., None], genes, G).astype(np.int32),
        counts=(rng.poisson(2, (B, C, P)) + 1.0).astype(np.float32) * mask[..., None],
        cell_mask=mask,
        study=np.broadcast_to(np.arange(B)[:, None], (B, C)).astype(np.int32) * mask,
        coords=rng.random((B, C, 2)).astype(np.float32) * 500,
        labels={"batch": rng.integers(0, 3, (B, C)).astype(np.int32), "cell_type": rng.integers(0, 4, (B, C))},
    )
    slots = np.full(G + 1, V, np.int32)
    slots[rng.permutation(G)[:V]] = np.arange(V)
    measured = rng.random((S, V)) < 0.5
    return jax.tree.map(jnp.asarray, batch), {"slots": jnp.asarray(slots), "measured": jnp.asarray(measured)}


def prepare(batch=None, train=False, **options):
    given, constants = example()
    options = {"mask_beta": False} | options  # a beta distribution takes seconds to compile
    settings = functools.partial(cellplm.prepare, step=3, train=train, **options)
    return jit(settings)(batch or given, constants, KEY)


@functools.cache
def build(**changes):
    """A model and random variables of its shapes (its own initialisers are slow to compile)."""
    model = cellplm.Model(**{**TINY, **changes})
    rng = np.random.default_rng(1)
    ones = ("scale", "gain", "norm", "slope")

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        return noise if path[-1] in ("u", "projection") else 0.2 * noise + (path[-1] in ones)

    flat = {path: jnp.asarray(draw(path, leaf)) for path, leaf in flatten_dict(convert.shapes(model)).items()}
    unrolled = model.clone(scan=False)
    return model, convert.params(convert.state_dict(unflatten_dict(flat), unrolled), model)


@functools.cache
def forward(model):
    return jit(lambda variables, inputs: model.apply(variables, inputs))


def run(model, variables, inputs):
    return forward(model)(variables, inputs)


def objective(model, variables, inputs, train=True, **options):
    def value(params, variables, inputs, key):
        rngs = {"dropout": key, "latent": key}
        outputs = model.apply({**variables, "params": params}, inputs, train=train, rngs=rngs)
        return cellplm.loss(outputs, inputs, **options)[0]

    return jit(jax.value_and_grad(value))(variables["params"], variables, inputs, KEY)


def trees_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_genes_that_the_store_lacks_are_multiplied_with_nothing():
    batch, constants = example()
    slots = jnp.where(constants["slots"] < V, 2 * constants["slots"], 2 * V)  # of a model of twice as many genes
    measured = jnp.repeat(constants["measured"], 2, axis=1)
    constants = {"slots": slots, "measured": measured}
    inputs = cellplm.prepare(batch, constants, KEY, step=0, train=False)
    assert inputs["columns"].shape == (G,) and "columns" not in prepare()
    whole = {name: value for name, value in inputs.items() if name not in ("columns", "places")}
    model, variables = build(enc_mod="none", n_genes=2 * V)
    trees_close(*(objective(model, variables, each, train=False) for each in (inputs, whole)), rtol=1e-4, atol=1e-5)
    assert cellplm.flops(model, whole) - cellplm.flops(model, inputs) == 2 * B * C * (2 * V - G) * model.enc_hid


@pytest.mark.parametrize("kind", KINDS)
def test_padding_cells_change_nothing(kind):
    model, variables = build(enc_mod=kind, pe="sin", n_batches=0)
    inputs = prepare()
    cells = run(model, variables, inputs).cells
    garbage = {name: inputs[name] for name in ("values", "coords")}
    garbage = {n: jnp.where(inputs["cell_mask"][..., None], x, 9.0) for n, x in garbage.items()}
    slots = jnp.where(inputs["cell_mask"][..., None], inputs["slots"], 5)
    changed = inputs | garbage | {"slots": slots, "counts": inputs["counts"] + 7 * ~inputs["cell_mask"][..., None]}
    after = run(model, variables, changed).cells
    np.testing.assert_allclose(cells[0], after[0], atol=1e-5)
    np.testing.assert_allclose(cells[1, :8], after[1, :8], atol=1e-5)
    short = jax.tree.map(lambda x: x[1:, :8] if x.ndim > 1 and x.shape[1] == C else x[1:] if x.ndim else x, inputs)
    np.testing.assert_allclose(cells[1, :8], run(model, variables, short).cells[0], atol=1e-5)


def test_padding_adds_nothing_to_loss_or_gradient_and_a_bag_of_padding_is_finite():
    model, variables = build(dropout=0.0, latent_mod="vae")
    batch, _ = example()
    inputs = prepare()
    value, grads = objective(model, variables, inputs, train=False)
    empty = jax.tree.map(lambda x: jnp.zeros_like(x[:1]), batch).replace(genes=jnp.full((1, C, P), G))
    more = prepare(jax.tree.map(lambda *x: jnp.concatenate(x), batch, empty))
    value_more, grads_more = objective(model, variables, more, train=False)
    assert value_more == pytest.approx(float(value), rel=1e-5)
    trees_close(grads, grads_more, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["flowformer", "performer", "transformer"])
def test_cells_are_a_set_and_genes_of_a_cell_are_a_set(kind):
    model, variables = build(enc_mod=kind)
    cells = run(model, variables, prepare()).cells
    batch, _ = example()
    order = np.r_[np.random.default_rng(1).permutation(8), 8:C]
    moved = run(model, variables, prepare(jax.tree.map(lambda x: x[:, order], batch))).cells
    np.testing.assert_allclose(cells[:, order], moved, atol=2e-5)
    genes = np.random.default_rng(2).permutation(P)
    turned = batch.replace(genes=batch.genes[..., genes], counts=batch.counts[..., genes])
    np.testing.assert_allclose(cells, run(model, variables, prepare(turned)).cells, atol=2e-5)


def test_cells_attend_to_each_other_but_not_to_other_bags():
    model, variables = build()
    inputs = prepare()
    reach = jax.grad(lambda values, v, i: model.apply(v, i | {"values": values}).cells[0, 0].sum())
    grad = jit(reach)(inputs["values"], variables, inputs)
    assert float(jnp.abs(grad[0, 1:]).max()) > 0 and float(jnp.abs(grad[1]).max()) == 0


@pytest.mark.parametrize("beta", [True, False])
def test_masked_values_are_never_seen_and_rates_are_as_asked(beta):
    batch, _ = example()
    inputs = prepare(train=True, mask_beta=beta)
    rows = inputs["mask"].shape[1]
    hidden = sparse.at(inputs["mask"], inputs["slots"][:, :rows], False)
    assert rows == 9 and bool(hidden.any()) and float(jnp.abs(inputs["values"][:, :rows] * hidden).max()) == 0
    assert inputs["mask"].any(-1).sum(1).tolist() == [9, 6]  # 75 % of 12 and of 8 cells
    model, variables = build(dropout=0.0)

    def embedding(counts, variables):
        given = batch.replace(counts=counts)
        inputs = cellplm.prepare(given, example()[1], KEY, step=3, train=True, mask_beta=beta)
        return model.apply(variables, inputs, train=True, rngs={"latent": KEY}).cells.sum()

    if beta:  # one program is enough for what follows
        return
    reached = (jit(jax.grad(embedding))(batch.counts, variables) != 0).sum()
    assert (
        0
        < int(reached)
        == int((inputs["values"] > 0).sum()) - int(((inputs["slots"] == V) & (inputs["values"] > 0)).sum())
    )


def test_mask_rates_are_those_of_the_distribution():
    mask = bags.draw_mask(KEY, (1, 400, 500), 0.25, False)
    assert float(mask.mean()) == pytest.approx(0.25, abs=0.005)
    shares = bags.draw_mask(KEY, (1, 4000, 500), 0.25, True).mean(-1)[0]
    assert float(shares.mean()) == pytest.approx(5 / 18, abs=0.005)  # Beta(5, 13)
    assert float(shares.std()) == pytest.approx((5 * 13 / 18**2 / 19) ** 0.5 + 0.002, abs=0.004)


@pytest.mark.parametrize(
    ("name", "options"), [("nb", {}), ("imputation", {"score": "all"}), ("mse", {}), ("recon", {})]
)
def test_unmeasured_genes_are_never_scored(name, options):
    model, variables = build(dec_mod="nbmlp" if name in ("nb", "imputation") else "mlp", dropout=0.0)
    inputs = prepare(train=True, **options)
    _, grads = objective(model, variables, inputs, objective=name)
    unmeasured = ~np.asarray(inputs["measured"]).any(0)
    assert unmeasured.any()
    head = grads["decoder"]
    for leaf in ("kernel", "bias", "log_theta"):
        if leaf in head:
            assert np.abs(head[leaf][..., unmeasured]).max() == 0 and np.abs(head[leaf]).max() > 0


def test_dropping_cells_keeps_the_asked_number_of_real_cells_with_their_labels():
    batch, _ = example()
    inputs = prepare(train=True, drop_node_rate=0.3)
    assert inputs["cell_mask"].shape == (B, 8) and inputs["cell_mask"].sum(1).tolist() == [8, 5]
    table = {float(x.sum()): int(label) for x, label in zip(batch.coords[0], batch.labels["cell_type"][0], strict=True)}
    kept = prepare(train=True, drop_node_rate=0.3, coords="raw")
    for coords, label in zip(kept["coords"][0], kept["labels"]["cell_type"][0], strict=True):
        assert table[float(coords.sum())] == int(label)
    assert prepare(train=True, max_cells=5)["cell_mask"].shape == (B, 5)


def test_thinning_takes_molecules_from_the_input_and_none_from_the_target():
    batch, _ = example()
    inputs = prepare(train=False, keep_counts=0.5)
    ratio = jnp.expm1(inputs["values"]).sum() / batch.counts.sum()
    assert float(ratio) == pytest.approx(0.5, abs=0.1) and bool((inputs["counts"] == batch.counts).all())


def test_evaluation_is_deterministic_unless_noise_is_asked_for():
    model, variables = build()
    inputs = prepare()
    trees_close(run(model, variables, inputs).cells, run(model, variables, inputs).cells, rtol=0)
    noisy = model.clone(eval_noise=True)
    draw = jit(lambda seed: noisy.apply(variables, inputs, rngs={"latent": jax.random.key(seed)}).cells)
    draws = [draw(i) for i in range(2)]
    assert float(jnp.abs(draws[0] - draws[1]).max()) > 0


def test_bfloat16_stays_close_to_float32():
    model, variables = build()
    inputs = prepare()
    exact, short = (run(model.clone(dtype=d), variables, inputs) for d in ("float32", "bfloat16"))
    assert short.cells.dtype == jnp.float32
    assert float(jnp.abs(exact.cells - short.cells).max()) < 0.05 * float(jnp.abs(exact.cells).max())
    value = jit(lambda outputs, inputs: cellplm.loss(outputs, inputs)[0])
    values = [float(value(outputs, inputs)) for outputs in (exact, short)]
    assert values[1] == pytest.approx(values[0], rel=0.02)


@pytest.mark.slow
def test_scan_and_remat_change_neither_loss_nor_gradient():
    model, variables = build(enc_mod="transformer", enc_layers=2, dropout=0.0)
    inputs = prepare(train=True)
    state = convert.state_dict(variables, model)
    value, grads = objective(model, variables, inputs)
    for options in ({"remat": "dots"}, {"scan": True, "remat": True}):
        other = model.clone(**options)
        again, grads_again = objective(other, convert.params(state, other), inputs)
        assert float(again) == pytest.approx(float(value), rel=1e-5)
        ours, theirs = (convert.state_dict({"params": g}, m) for g, m in ((grads, model), (grads_again, other)))
        trees_close(ours, theirs, rtol=2e-3, atol=1e-4)


def test_likelihood_and_its_gradient_are_those_of_the_plain_formula(monkeypatch):
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (2, 6, 9)).astype(np.float32)
    logits, theta = jnp.asarray(rng.normal(size=(2, 6, 9)) * 4), jnp.asarray(rng.normal(size=9) * 3)
    slots = jnp.broadcast_to(jnp.arange(9), counts.shape)
    sets = (jnp.asarray(rng.random((2, 1, 9)) < 0.8), jnp.asarray(rng.random((2, 6, 9)) < 0.5))
    weights = jnp.asarray(rng.random((2, 6)))

    def plain(logits, theta):
        mean, dispersion = likelihood.nb_parameters(logits, theta)
        total = 0
        for genes in sets:
            t, m = jnp.where(genes, counts, 0), jnp.where(genes, mean, 0)
            mu = m * (t.sum(-1) / jnp.maximum(m.sum(-1), 1e-30))[..., None]
            total += (weights * jnp.where(genes, likelihood.nb_nll(t, mu, dispersion), 0).sum(-1)).sum()
        return total

    def fast(logits, theta):
        return likelihood.scaled_nb_nll(logits, theta, slots, counts, sets, weights)[0]

    value, grads = jit(jax.value_and_grad(plain, (0, 1)))(logits, theta)
    for chunk in (2**21, 40):
        monkeypatch.setattr(likelihood, "CHUNK", chunk)
        again, grads_again = jit(jax.value_and_grad(lambda *x: fast(*x), (0, 1)))(logits, theta)
        assert float(again) == pytest.approx(float(value), rel=1e-5)
        trees_close(grads_again, grads, rtol=2e-3, atol=2e-3)


def test_the_squared_error_is_a_sum_over_a_cells_hidden_entries():
    """Eq. 9 of the paper: what the latent's divergence, a sum over dimensions, is weighed against."""
    inputs = prepare(train=True)
    mean = jnp.asarray(np.random.default_rng(0).random((*inputs["weights"].shape, V)), jnp.float32)
    value, number, extra = cellplm_objective.masked_squared_error(mean, inputs)
    per_cell = []
    for b, c in zip(*np.nonzero(np.asarray(inputs["weights"])), strict=True):
        truth = np.zeros(V + 1)
        np.add.at(truth, np.asarray(inputs["slots"][b, c]), np.asarray(inputs["counts"][b, c]))
        scored = np.asarray(inputs["mask"][b, c] & inputs["measured"][b])
        per_cell.append(((np.asarray(mean[b, c]) - np.log1p(truth[:V])) ** 2)[scored].sum())
    assert float(value / number) == pytest.approx(np.mean(per_cell), rel=1e-4)
    assert float(extra["mse_entry"][0]) == pytest.approx(np.sum(per_cell), rel=1e-4)


def printed(clusters: int, seed: int = 0):
    """Return the printed mixture's module, its variables and cells for it."""
    module = latent.PrintedGMVAE(5, clusters)
    h = jax.random.normal(jax.random.key(seed), (1, 40, 7))
    mask = jnp.arange(40)[None] < 33
    return module, module.init(KEY, h, mask, 0), h, mask


def test_divergences_of_the_printed_mixture_are_those_of_its_formulas():
    module, variables, h, mask = printed(3)
    p = variables["params"]
    z, loss, metrics = module.apply(variables, h, mask, 0)
    mean = np.asarray(h[0, :33] @ p["mean"]["kernel"] + p["mean"]["bias"], np.float64)
    deviation = np.sqrt(
        np.log1p(np.exp(np.asarray(h[0, :33] @ p["var"]["kernel"] + p["var"]["bias"], np.float64))) + 1e-4
    )
    np.testing.assert_allclose(z[0, :33], mean, rtol=1e-5, atol=1e-6)
    prob = np.asarray(jax.nn.softmax(z[0, :33] @ p["logits"]["kernel"] + p["logits"]["bias"]), np.float64)
    other = np.sqrt(np.log1p(np.exp(np.asarray(p["y_var"], np.float64))) + 1e-4)
    kl = np.zeros((33, 3))
    for k in range(3):  # torch's formula of two normals
        ratio = (deviation / other[k]) ** 2
        kl[:, k] = (0.5 * (ratio + ((mean - np.asarray(p["y_mean"][k])) / other[k]) ** 2 - 1 - np.log(ratio))).sum(-1)
    assert float(metrics["kl_gauss"]) == pytest.approx((prob * kl).sum(1).mean(), rel=1e-4)
    assert float(metrics["kl_cluster"]) == pytest.approx((prob * np.log(prob * 3)).sum(1).mean(), rel=1e-3, abs=1e-6)
    assert float(loss) == pytest.approx(float(metrics["kl_gauss"] + metrics["kl_cluster"]))
    assert kl.min() >= 0


def test_one_cluster_is_a_vae_with_a_learned_prior_and_several_learn_who_belongs_where():
    module, variables, h, mask = printed(1)
    _, _, metrics = module.apply(variables, h, mask, 0)
    assert float(metrics["kl_cluster"]) == pytest.approx(0, abs=1e-6) and float(metrics["kl_gauss"]) > 0
    module, variables, h, mask = printed(4)
    grads = jax.grad(lambda v: module.apply(v, h, mask, 0)[1])(variables)["params"]
    for name in ("logits", "mean", "var"):
        assert jnp.abs(grads[name]["kernel"]).max() > 1e-4, name
    assert jnp.abs(grads["y_mean"]).max() > 1e-4 and jnp.abs(grads["y_var"]).max() > 1e-4


def test_printed_mixture_uses_its_units_where_they_pay():
    """200 updates on data of four groups: the sum over entries outweighs the divergence, so dimensions stay in use."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4, 30))[rng.integers(0, 4, 64)] * 2 + rng.normal(size=(64, 30)), jnp.float32)[None]
    module, mask = latent.PrintedGMVAE(4, 4, train=True), jnp.ones((1, 64), bool)
    keys = jax.random.split(KEY, 201)
    params = {"latent": module.init({"params": KEY, "latent": KEY}, x, mask, 0)["params"]}
    params["out"] = 0.1 * jax.random.normal(KEY, (4, 30))
    adam = optax.adam(1e-2)

    def loss(params, key):
        z, divergence, _ = module.apply({"params": params["latent"]}, x, mask, 0, rngs={"latent": key})
        return ((z @ params["out"] - x) ** 2).sum(-1).mean() + divergence

    def update(carry, key):
        params, state = carry
        changes, state = adam.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, changes), state), None

    (params, _), _ = jit(lambda p: jax.lax.scan(update, (p, adam.init(p)), keys[1:]))(params)
    means = module.clone(train=False).apply({"params": params["latent"]}, x, mask, 0)[0][0]
    assert int((means.var(0) > 0.05).sum()) >= 3, "dimensions have collapsed"


def test_dropped_labels_are_those_of_cells_in_training_alone_and_whole():
    told = prepare(train=True)
    dropped = prepare(train=True, drop_labels=0.5)
    gone = np.asarray((dropped["batch"] == -1) & (dropped["study"] == -1))
    for name in ("batch", "study"):
        np.testing.assert_array_equal(dropped[name], np.where(gone, -1, told[name]), err_msg="both or none")
    assert 0.2 < gone.mean() < 0.8
    for name, value in told.items():
        if name not in ("batch", "study"):
            jax.tree.map(np.testing.assert_array_equal, dropped[name], value)
    np.testing.assert_array_equal(prepare(drop_labels=0.5)["batch"], prepare()["batch"])


def test_the_printed_decoder_adds_covariates_to_the_latent_and_ends_linear():
    model, inputs = cellplm.Model(**TINY | {"dec_mod": "ff", "latent_mod": "ae", "enc_mod": "none"}), prepare()
    variables = jit(lambda key: model.init({"params": key, "latent": key}, inputs))(KEY)
    with pytest.raises(ValueError, match="no released weights have this layout"):
        convert.state_dict(variables, model)
    outputs = run(model, variables, inputs)
    values, theta = cellplm_objective.decode(outputs.logits)
    assert theta is None and float(values.min()) < 0, "a ReLU kills rare genes"
    p = variables["params"]["decoder"]
    x = np.asarray(outputs.cells)
    for name in ("batch", "study"):
        rows, label = np.asarray(p[f"{name}_table"]), np.asarray(inputs[name])
        x = x + np.where((label >= 0)[..., None], rows[np.maximum(label, 0)], rows.mean(0))
    hidden = x @ p["linear_0"]["kernel"] + p["linear_0"]["bias"]
    hidden = np.where(hidden > 0, hidden, np.asarray(p["prelu_0"]["slope"]) * hidden)
    hidden = norms.norm(model.norm).apply({"params": p["norm_0"]}, jnp.asarray(hidden))
    np.testing.assert_allclose(values, hidden @ p["kernel"] + p["bias"], rtol=1e-3, atol=1e-4)


def test_what_a_bag_is_scored_on_is_what_the_batches_of_its_studies_measured():
    batch, constants = example()
    table = jnp.concatenate([constants["measured"], constants["measured"][:1] & (jnp.arange(V) % 3 > 0)])
    studies = bags.measured_genes(table, batch)
    np.testing.assert_array_equal(studies, table[:2])
    panel = batch.study.at[0, :5].set(2).at[1, 8:].set(2)  # some cells of the first bag; padding of the second
    np.testing.assert_array_equal(bags.measured_genes(table, batch.replace(panel=panel)), table[jnp.array([2, 1])])


def test_a_cell_lies_at_one_place_of_its_field_in_every_bag():
    batch, _ = example()
    places = np.where(np.asarray(batch.cell_mask)[..., None], np.random.default_rng(3).random((B, C, 2)), np.nan)
    known = batch.replace(field_coords=jnp.asarray(places, jnp.float32))
    half = jax.tree.map(lambda x: x[:, :6], known)
    for bag in (known, half):
        seen = prepare(bag, coords="field")["coords"]
        np.testing.assert_array_equal(seen, places[:, : seen.shape[1]].astype(np.float32))
    scaled = [np.asarray(prepare(bag, coords="scaled")["coords"])[:, :6] for bag in (known, half)]
    assert np.abs(scaled[0] - scaled[1]).max() > 0.01, "within the bag, as before, a place depends on the others"
    np.testing.assert_array_equal(prepare(batch, coords="field")["coords"], prepare(batch)["coords"])
    shuffled = np.asarray(prepare(known, coords="shuffled")["coords"])
    assert (shuffled != places).any(-1)[np.asarray(batch.cell_mask)].mean() > 0.5
    for b, n in enumerate((12, 8)):
        np.testing.assert_array_equal(np.sort(shuffled[b, :n, 0]), np.sort(places[b, :n, 0].astype(np.float32)))
    with pytest.raises(ValueError, match="there are field, scaled, shuffled, raw"):
        prepare(batch, coords="bag")


def test_genes_that_a_relu_has_killed_are_counted():
    inputs = prepare(train=True) | {"measured": jnp.arange(V)[None] < jnp.array([[10], [20]])}
    logits = np.ones((*inputs["weights"].shape, V), np.float32)
    logits[..., :5] = -1
    logits[0, 2, 3], logits[1, 7, 4] = 1, 1  # alive in one scored cell; in one that is not scored
    assert float(inputs["weights"][0, 2]) == 1 and float(inputs["weights"][1, 7]) == 0
    head = {"hidden": jnp.asarray(logits), "kernel": jnp.eye(V), "bias": jnp.zeros(V)}
    outputs = Outputs(cells=None, logits=head)
    for objective in ("mse", "recon"):
        share, weight = cellplm.loss(outputs, inputs, objective=objective)[1]["dead_genes"]
        assert float(share) == pytest.approx(4 / 20) and float(weight) == 1
    head["linear"] = jnp.ones(())
    assert "dead_genes" not in cellplm.loss(outputs, inputs, objective="mse")[1]


def test_given_gene_vectors_start_the_table():
    model, (batch, constants) = cellplm.Model(**TINY), example()
    vectors = np.zeros((V, TINY["enc_hid"]), np.float32)
    vectors[::2] = np.random.default_rng(0).normal(size=vectors[::2].shape)

    def table(**known):
        inputs = cellplm.prepare(batch, constants | known, KEY, step=0, train=False)
        return jit(lambda x: model.init({"params": KEY, "latent": KEY}, x)["params"]["genes"])(inputs)

    drawn, started = table(), table(gene_vectors=jnp.asarray(vectors))
    assert float(drawn.std()) == pytest.approx(0.005, rel=0.1)
    np.testing.assert_array_equal(started, np.where(vectors != 0, vectors, drawn))
    with pytest.raises(ValueError, match=r"gene vectors of width 7: model.enc_hid=64 must be the same"):
        table(gene_vectors=jnp.asarray(vectors[:, :7]))


def test_vae_weight_rises_to_one_step_below_its_peak():
    weights = latent.kl_weight(jnp.asarray([0, 1, 9998, 9999, 50000]))
    np.testing.assert_allclose(weights, [0, 1e-4, 0.9998, 0.9999, 0.9999], rtol=1e-6)


def test_position_first_half_is_the_second_coordinate_and_missing_cells_get_their_own_vector():
    coords = jnp.asarray([[[0.3, 0.7], [0.9, 0.7], [jnp.nan, jnp.nan]]])
    term = position.sinusoidal(coords[:, :2], 16)[0]
    assert bool((term[0, :8] == term[1, :8]).all()) and bool((term[0, 8:] != term[1, 8:]).any())
    mask = jnp.ones((1, 3), bool)
    layer = position.Position("sin")
    variables = layer.init(KEY, coords, mask, 16)
    missing = variables["params"]["missing"]
    out = layer.apply(variables, coords, mask, 16)[0]
    assert bool((out[2] == missing).all()) and bool((out[0] == term[0]).all())
    first = position.Position("sin", "first").apply(variables, coords[:, ::-1], mask[:, ::-1], 16)[0]
    assert bool((first == missing).all())


def test_unknown_batches_get_the_pooled_table_and_no_gradient_reaches_it():
    for absent, divisor in (("sum", 1), ("mean", 3)):
        model, variables = build(cov_absent=absent)
        table = variables["params"]["decoder"]["batch_0_table"]
        unknown = prepare(covariates=False)
        replaced = {**variables["params"]["decoder"], "batch_0_table": jnp.tile(table.sum(0) / divisor, (3, 1))}
        known = unknown | {"batch": jnp.zeros_like(unknown["batch"])}
        same = {"params": {**variables["params"], "decoder": replaced}}
        trees_close(
            run(model, variables, unknown).logits["hidden"], run(model, same, known).logits["hidden"], rtol=1e-4
        )
    _, grads = objective(model, variables, unknown, train=False)
    assert float(jnp.abs(grads["decoder"]["batch_0_table"]).max()) == 0


def count(model):
    return sum(np.prod(x.shape, dtype=int) for x in flatten_dict(convert.shapes(model)["params"]).values())


@pytest.mark.parametrize("variant", ["published_20230926", "published_20231027"])
def test_published_layouts_have_the_published_number_of_parameters(variant):
    """82,402,543 in the 20230926 layout: 72,159,471 here, the frozen sinusoidal table, three vectors nothing reads."""
    sizes = dict(n_genes=19374, n_batches=12596, n_studies=484)
    model = cellplm.Model(**cellplm.VARIANTS[variant]["model"], **sizes)
    stored = count(model) + 10000 * 1024 + 3 * 1024
    mixture = 16 * 1025 + 512 * 1041 + 2 * 512 * 513 + 2 * 512 * 17
    assert stored == {"gmvae": 82_402_543, "vae": 82_402_543 - mixture + 2 * 512 * 1025}[model.latent_mod]


@pytest.mark.parametrize(
    ("variant", "millions"), [("paper_5m", 5), ("paper_10m", 10), ("paper", 10), ("paper_40m", 40)]
)
def test_paper_sizes(variant, millions):
    model = cellplm.Model(**cellplm.VARIANTS[variant]["model"], n_genes=19374)
    assert count(model) == pytest.approx(millions * 1e6, rel=0.1)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("kind", ["flowformer", "performer", "transformer", "mlp"])
def test_weights_go_out_and_come_back_unchanged(kind, scan):
    latents = {"flowformer": "gmvae", "performer": "vae", "transformer": "ae", "mlp": "none"}
    extra = {"dec_mod": "mlp"} if kind == "mlp" else {}
    model, variables = build(enc_mod=kind, scan=scan, latent_mod=latents[kind], pe="learned", **extra)
    state = convert.state_dict(variables, model)
    back = convert.params({f"module.{name}": x for name, x in state.items()}, model)
    trees_close(flatten_dict(variables), flatten_dict(back), rtol=0)
    assert sum(x.size for x in state.values()) == sum(x.size for x in jax.tree.leaves(variables))


def test_what_does_not_fit_is_one_error_that_lists_it():
    model, variables = build()
    state = convert.state_dict(variables, model)
    shape = state.pop("pre_latent_norm.norm.bias")
    state |= {"embedder.feat_enc.emb": shape[None], "surprise.weight": shape, "embedder.norm0.weight": shape}
    with pytest.raises(ValueError) as error:
        convert.params(state, model)
    text = str(error.value)
    assert "3 names" in text and "missing pre_latent_norm.norm.bias" in text and "unknown surprise.weight" in text
    assert "shape of embedder.feat_enc.emb (1, 64)" in text and "norm0" not in text
    assert convert.unused(state, model) == ["embedder.norm0.weight"]


def test_published_file_loads_with_its_config(tmp_path):
    torch = pytest.importorskip("torch")
    model, variables = build(cov_absent="sum", norm="groupnorm")
    published = dict(
        enc_mod="flowformer", enc_hid=64, enc_layers=1, enc_head=4, post_latent_dim=32, dec_mod="nbmlp", dec_hid=64,
        dec_layers=2, num_clusters=8, latent_mod="gmvae", batch_num=3, dataset_num=S, norm="groupnorm",
        gene_list=[f"g{i}" for i in range(V)], cat_pe=False, lr=1e-4,
    )  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(published))
    state = {f"module.{k}": torch.tensor(np.array(v)) for k, v in convert.state_dict(variables, model).items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "c.ckpt")
    settings, loaded, genes = convert.load(tmp_path / "c.ckpt", tmp_path / "c.json")
    assert genes == published["gene_list"] and settings["inputs"]["covariates"] is False
    trees_close(flatten_dict(loaded), flatten_dict(variables), rtol=0)
    (tmp_path / "c.ckpt").write_bytes(b"not torch")
    for broken, match in (("c.ckpt", "not a torch file"), ("none.ckpt", "no such file")):
        with pytest.raises((ValueError, OSError), match=match):
            convert.load(tmp_path / broken, tmp_path / "c.json")
    with pytest.raises(ValueError, match="dsbn"):
        convert.config(published | {"dsbn": True})


@pytest.mark.parametrize("kind", ["flowformer", "performer", "transformer", "mlp"])
def test_flops_formula_agrees_with_the_compiler(kind):
    batch, _ = example()
    n_genes = 500
    model, variables = build(n_genes=n_genes, enc_mod=kind, enc_hid=128)
    inputs = prepare() | {"measured": jnp.ones((B, n_genes), bool)}

    def scores(variables, inputs):
        outputs = model.apply(variables, inputs)
        return outputs.cells, gene_logits(outputs.logits)

    cost = jit(scores).lower(variables, inputs).compile().cost_analysis()
    assert cellplm.flops(model, inputs) == pytest.approx(cost["flops"], rel=0.15)
    assert int(cellplm.tokens(inputs)) == int(batch.cell_mask.sum())


@pytest.mark.parametrize("kind", ["flowformer", "performer"])
def test_flops_of_a_layer_agree_with_the_compiler(kind):
    """Of two layers more, so that no term of the rest hides one that is wrong in a layer."""
    inputs, flops = prepare() | {"measured": jnp.ones((B, V), bool)}, []
    for layers in (1, 3):
        model, variables = build(enc_mod=kind, enc_hid=256, enc_layers=layers)
        run = jit(lambda variables, inputs, model=model: model.apply(variables, inputs).cells)
        counted = run.lower(variables, inputs).compile().cost_analysis()["flops"]
        flops.append((cellplm.flops(model, inputs, embed=True), counted))
    formula, counted = np.subtract(flops[1], flops[0])
    assert formula == pytest.approx(counted, rel=0.1)


def test_wrong_options_say_what_there_is():
    for options, match in (
        ({"enc_mod": "lstm"}, "flowformer"),
        ({"latent_mod": "gan"}, "gmvae"),
        ({"dec_mod": "cnn"}, "nbmlp"),
        ({"pe": "polar"}, "learned"),
        ({"norm": "batchnorm"}, "groupnorm"),
        ({"remat": "some"}, "dots"),
        ({"head": "tail"}, "annotation"),
    ):
        with pytest.raises(ValueError, match=match):
            jax.eval_shape(cellplm.Model(**{**TINY, **options}).init, KEY, prepare())
    with pytest.raises(ValueError, match="imputation"):
        cellplm.loss(None, {}, objective="guess")
    assert dataclasses.is_dataclass(cellplm.Model)
