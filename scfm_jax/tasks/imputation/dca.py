"""DCA: an autoencoder whose output is a distribution of counts (Eraslan et al., Nat. Commun. 2019).

A cell's counts over its size factor, as z-scores of their logarithms, go through 64, 32 and 64 units to the mean, the
inverse dispersion and the dropout probability of every gene. What is minimised is the negative log-likelihood of the
counts under a zero-inflated negative binomial, and the prediction is the mean without the inflation. It is trained on
the spoiled counts themselves, until the likelihood of a tenth of the cells, which are kept out, has not grown for a
while.

As in the paper: batch normalisation without a scale, RMSprop at 1e-3, gradients clipped at 5, 32 cells a step.
Differences: hidden entries are not part of the likelihood; the best weights are kept, not the last; the rate is not
lowered on a plateau; batch statistics are averaged over some tens of steps, as studies here are small; there is no
penalty on the probabilities.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.scipy.special import gammaln

from scfm_jax.tasks.imputation.imputation import Problem
from scfm_jax.types import Array

EPOCHS, PATIENCE, CELLS = 300, 15, 32
"""Passes over the cells at most, passes without a better likelihood of those kept out, and cells of a step."""
KEPT_OUT = 0.1
OPTIMIZER = optax.chain(optax.clip(5.0), optax.rmsprop(1e-3, decay=0.9))
MEAN_RANGE, THETA_RANGE = (1e-5, 1e6), (1e-4, 1e4)


class Autoencoder(nn.Module):
    """The network: z-scores [n, V] to log mean, inverse dispersion and logit of dropout, each [n, V].

    Attributes:
      widths: of the hidden layers. zero_inflated: without it the logit is None and the counts a negative binomial.
    """

    widths: Sequence[int] = (64, 32, 64)
    zero_inflated: bool = True

    @nn.compact
    def __call__(self, x: Array, train: bool) -> tuple[Array, Array, Array | None]:
        """Return the three parameters of every gene; the means are of a cell of size factor 1."""
        dense = functools.partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
        n_genes = x.shape[1]
        for width in self.widths:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_scale=False)(dense(width)(x))
            x = nn.relu(x)
        mean = jnp.clip(jnp.exp(dense(n_genes, name="mean")(x)), *MEAN_RANGE)
        theta = jnp.clip(nn.softplus(dense(n_genes, name="dispersion")(x)), *THETA_RANGE)
        return mean, theta, dense(n_genes, name="dropout")(x) if self.zero_inflated else None


def nll(counts: Array, mean: Array, theta: Array, dropout: Array | None = None) -> Array:
    """Return the negative log-likelihood of each count under a (zero-inflated) negative binomial.

    Args:
      theta: inverse dispersion, so that the variance is mean + mean^2 / theta.
      dropout: logit of the probability of a zero beside those of the negative binomial; None for none.
    """
    log_share = jnp.log(theta) - jnp.log(theta + mean)
    log_nb = gammaln(counts + theta) - gammaln(theta) - gammaln(counts + 1)
    log_nb += theta * log_share + counts * (jnp.log(mean) - jnp.log(theta + mean))
    if dropout is None:
        return -log_nb
    log_zero = jnp.logaddexp(nn.log_sigmoid(dropout), nn.log_sigmoid(-dropout) + theta * log_share)
    return -jnp.where(counts > 0, nn.log_sigmoid(-dropout) + log_nb, log_zero)


def predict(problem: Problem, seed: int = 0, zero_inflated: bool = True) -> np.ndarray:
    """Predict the means of the hidden entries by a network fitted to all cells of the problem. [h]"""
    means = fit(problem.counts, problem.known, problem.depth, seed=seed, zero_inflated=zero_inflated)
    return means[problem.entries]


def fit(
    counts: np.ndarray,
    visible: np.ndarray,
    depth: np.ndarray,
    *,
    seed: int = 0,
    zero_inflated: bool = True,
    epochs: int = EPOCHS,
    patience: int = PATIENCE,
) -> np.ndarray:
    """Return the expected counts of all entries by a network that was fitted to the visible ones. [n, V]

    Args:
      counts: 0 where not visible. [n, V]
      visible: entries that count. bool [n, V]
      depth: total counts of each cell, known or estimated. [n]
    """
    rng, model = np.random.default_rng(seed), Autoencoder(zero_inflated=zero_inflated)
    factor = (np.maximum(depth, 1e-9) / max(np.median(depth), 1e-9)).astype(np.float32)[:, None]
    x = np.log1p(counts / factor)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    data = {"x": x, "counts": counts, "visible": visible, "factor": factor}
    data = {name: jnp.asarray(values, jnp.float32) for name, values in data.items()}
    order = rng.permutation(len(x))
    kept_out, learnt = np.split(order, [max(1, int(KEPT_OUT * len(x)))])
    state = best = _begin(model, data, seed)
    least, stale = np.inf, 0
    for _ in range(epochs):
        state, value = _epoch(model, state, data, _steps(rng.permutation(learnt)), kept_out)
        if float(value) < least:
            best, least, stale = state, float(value), -1
        stale += 1
        if stale >= patience:
            break
    return np.asarray(_means(model, best, data))


def _steps(rows: np.ndarray) -> np.ndarray:
    """Return the rows of each step, all of a size, in turn from the beginning where they do not come out even."""
    size = min(CELLS, len(rows))
    return np.resize(rows, (-(-len(rows) // size), size))


@functools.partial(jax.jit, static_argnums=0)
def _begin(model: Autoencoder, data: Mapping[str, Array], seed: int) -> tuple:
    """Return random parameters, statistics, and the optimiser's moments."""
    variables = model.init(jax.random.key(seed), data["x"][:2], train=False)
    return variables["params"], variables["batch_stats"], OPTIMIZER.init(variables["params"])


@functools.partial(jax.jit, static_argnums=0)
def _means(model: Autoencoder, state: tuple, data: Mapping[str, Array]) -> Array:
    """Return the means of all cells. [n, V]"""
    variables = {"params": state[0], "batch_stats": state[1]}
    return model.apply(variables, data["x"], train=False)[0] * data["factor"]


@functools.partial(jax.jit, static_argnums=0)
def _epoch(
    model: Autoencoder, state: tuple, data: Mapping[str, Array], steps: Array, kept_out: Array
) -> tuple[tuple, Array]:
    """Return (parameters, statistics, moments) after a pass over the cells, and the error of those kept out."""

    def loss(params: Any, stats: Any, rows: Array, train: bool) -> tuple[Array, Any]:
        part = {name: values[rows] for name, values in data.items()}
        variables, mutable = {"params": params, "batch_stats": stats}, ["batch_stats"] if train else []
        (mean, theta, dropout), changed = model.apply(variables, part["x"], train=train, mutable=mutable)
        each = nll(part["counts"], mean * part["factor"], theta, dropout) * part["visible"]
        return each.sum() / jnp.maximum(part["visible"].sum(), 1), changed.get("batch_stats", stats)

    def step(state: tuple, rows: Array) -> tuple[tuple, None]:
        params, stats, moments = state
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, rows, True)
        updates, moments = OPTIMIZER.update(grads, moments)
        return (optax.apply_updates(params, updates), stats, moments), None

    state, _ = jax.lax.scan(step, state, steps)
    return state, loss(state[0], state[1], kept_out, False)[0]
