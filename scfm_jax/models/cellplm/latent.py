"""Bottlenecks of CellPLM between encoder and decoder: Gaussian mixture VAE (released, printed), VAE, linear ("ae").

Each is called with h [B, C, D], the mask of real cells, the number of updates done and optional recorded noise, and
returns (z, mean embedding z of each cell; weighted latent loss; metrics). Losses are means over all real cells.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers.linear import Dense
from scfm_jax.types import Array

LATENTS = ("gmvae", "gmvae_paper", "vae", "ae", "none")


def kl_weight(step: Array, peak: float = 1.0, warmup: int = 10000) -> Array:
    """Return the weight of the VAE's divergence after `step` updates: it rises from 0 and stops one short of `peak`."""
    return jnp.minimum(step, warmup - 1) / warmup * peak


def log_normal(x: Array, mean: Array, var: Array) -> Array:
    """Return the log density of a diagonal normal, summed over the last axis. [..., Z] -> [...]"""
    var = var + 1e-8
    return -0.5 * (math.log(2 * math.pi) + jnp.log(var) + (x - mean) ** 2 / var).sum(-1)


def _mean(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, 0).sum() / jnp.maximum(mask.sum(), 1)


class GMVAE(nn.Module):
    """Gaussian mixture VAE with a Gumbel-softmax cluster.

    In evaluation the released code still draws the noise and takes the hard cluster; here it takes the likeliest
    cluster, and noise only where `noise` is given or `eval_noise` asks for the rng "latent".
    """

    size: int
    clusters: int
    w_li: float = 1.0
    w_en: float = 1.0
    lamda: float = 0.5
    eval_noise: bool = False
    train: bool = False

    @nn.compact
    def __call__(self, h: Array, mask: Array, step: Array, noise: dict[str, Array] | None = None):
        h = h.astype(jnp.float32)
        logits = Dense(self.clusters, name="logits")(h)
        gumbel, normal = self.draws(h.shape[:-1], noise)
        y = jax.nn.softmax(logits + gumbel)
        if not self.train:
            y = jax.nn.one_hot(jnp.argmax(y, -1), self.clusters)
        t = jax.nn.relu(Dense(512, name="hidden")(jnp.concatenate([h, y], -1)))
        mean, var = Dense(self.size, name="mean")(t), jax.nn.softplus(Dense(self.size, name="var")(t))
        z = mean + normal * jnp.sqrt(var + 1e-10)
        y_mean, y_var = Dense(self.size, name="y_mean")(y), jax.nn.softplus(Dense(self.size, name="y_var")(y))
        prob, log_prob = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
        gauss = _mean(log_normal(z, mean, var) - log_normal(z, y_mean, y_var), mask)
        cat = _mean((prob * log_prob).sum(-1), mask) + math.log(self.clusters)
        parts = dict(mean=mean, var=var, gaussian=z, logits=logits, prob_cat=prob, categorical=y)
        for name, value in (parts | dict(y_mean=y_mean, y_var=y_var, gauss_raw=gauss, cat_raw=cat)).items():
            self.sow("intermediates", f"gmvae_{name}", value)
        loss = self.w_li * jnp.maximum(self.lamda, gauss) + self.w_en * jnp.maximum(self.lamda, cat)
        return (z if self.train else mean), loss, {"kl_gauss": gauss, "kl_cluster": cat}

    def draws(self, shape: tuple[int, ...], noise: dict[str, Array] | None) -> tuple[Array, Array]:
        """Return Gumbel noise [..., clusters] and normal noise [..., Z]; zeros where the model is deterministic."""
        if noise is None and not (self.train or self.eval_noise):
            return jnp.zeros((*shape, self.clusters)), jnp.zeros((*shape, self.size))
        if noise is None:
            uniform = jax.random.uniform(self.make_rng("latent"), (*shape, self.clusters))
            normal = jax.random.normal(self.make_rng("latent"), (*shape, self.size))
        else:
            uniform, normal = noise["uniform"], noise["normal"]
        return -jnp.log(-jnp.log(uniform + 1e-20) + 1e-20), normal


def normal_kl(mean: Array, var: Array, other_mean: Array, other_var: Array) -> Array:
    """Return KL(N(mean, var) | N(other_mean, other_var)) of diagonal normals, summed over the last axis."""
    ratio = var / other_var
    return 0.5 * (ratio - jnp.log(ratio) - 1 + (mean - other_mean) ** 2 / other_var).sum(-1)


class PrintedGMVAE(nn.Module):
    """Gaussian mixture VAE as the paper prints it: q(z|x), then q(y|z), and no divergence is forgiven.

    The divergence from the mixture is sum_k q(y=k|z) KL(q(z|x) | p(z|y=k)), in closed form, that of the clusters
    KL(q(y|z) | uniform) (Eqs. 7 and 8). With one cluster it is a VAE whose prior is learned.
    """

    size: int
    clusters: int
    w_li: float = 1.0
    w_en: float = 1.0
    train: bool = False

    @nn.compact
    def __call__(self, h: Array, mask: Array, step: Array, noise: dict[str, Array] | None = None):
        h = h.astype(jnp.float32)
        mean, var = Dense(self.size, name="mean")(h), jax.nn.softplus(Dense(self.size, name="var")(h)) + 1e-4
        z = mean
        if self.train:
            normal = jax.random.normal(self.make_rng("latent"), mean.shape) if noise is None else noise["normal"]
            z = mean + jnp.sqrt(var) * normal
        log_prob = jax.nn.log_softmax(Dense(self.clusters, name="logits")(z))
        prob = jnp.exp(log_prob)
        means = self.param("y_mean", nn.initializers.normal(1.0), (self.clusters, self.size))
        variances = jax.nn.softplus(self.param("y_var", nn.initializers.ones, (self.clusters, self.size))) + 1e-4
        apart = normal_kl(mean[..., None, :], var[..., None, :], means, variances)  # [B, C, K]
        gauss = _mean((prob * apart).sum(-1), mask)
        cat = _mean((prob * log_prob).sum(-1), mask) + math.log(self.clusters)
        self.sow("intermediates", "gmvae_prob_cat", prob)
        return z, self.w_li * gauss + self.w_en * cat, {"kl_gauss": gauss, "kl_cluster": cat}


class VAE(nn.Module):
    """VAE whose divergence warms up with the number of updates and is dropped while it is below `floor`."""

    size: int
    floor: float = 1.0
    train: bool = False

    @nn.compact
    def __call__(self, h: Array, mask: Array, step: Array, noise: dict[str, Array] | None = None):
        h = h.astype(jnp.float32)
        mean = Dense(self.size, name="mean")(h)
        var = jnp.exp(jnp.clip(Dense(self.size, name="log_var")(h), -5, 5)) + 1e-4
        if not self.train:
            return mean, jnp.zeros(()), {}
        normal = jax.random.normal(self.make_rng("latent"), mean.shape) if noise is None else noise["normal"]
        weight = kl_weight(step)
        kl = _mean(-0.5 * (1 + jnp.log(var) - mean**2 - var).sum(-1), mask) * weight
        loss = jnp.where(kl < self.floor, 0.0, kl)
        return mean + jnp.sqrt(var) * normal, loss, {"kl": kl, "kl_weight": weight}


class AE(nn.Module):
    """A linear map: the bottleneck of fine-tuning, without noise and without a loss."""

    size: int

    @nn.compact
    def __call__(self, h: Array, mask: Array, step: Array, noise: dict[str, Array] | None = None):
        return Dense(self.size, name="linear")(h.astype(jnp.float32)), jnp.zeros(()), {}
