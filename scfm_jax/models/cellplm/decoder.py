"""From latent cells to genes: the covariate-aware decoder of CellPLM."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scfm_jax.layers import norms
from scfm_jax.layers.linear import Dense, bias_uniform, fan_in_uniform
from scfm_jax.types import Array

KINDS = ("nbmlp", "mlp", "ff")
HEAD_WIDTH = 128  # of the negative binomial head


class Decoder(nn.Module):
    """Latent and covariates to gene-wise logits: the last hidden layer and the weights of the linear head over genes.

    `kind`: "nbmlp", as released, adds what is learned of batch and study to each hidden layer and ends in a negative
    binomial; "mlp" appends them as one-hot codes and ends in a ReLU; "ff" is the printed one (Eq. 6): the covariates'
    vectors are added to the latent, feed-forward layers follow, and nothing after the last linear map.
    Keeping the head open lets the loss decide which of the [B, R, V] logits it needs and when.
    """

    kind: str
    n_genes: int
    sizes: dict[str, int]
    width: int
    layers: int
    dropout: float
    norm: str
    absent: str = "mean"
    train: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: Array, labels: dict[str, Array]) -> dict[str, Array]:  # [B, R, Z], {name: [B, R]}
        if self.kind not in KINDS or self.absent not in ("mean", "sum"):
            kinds = ", ".join(KINDS)
            raise ValueError(f"dec_mod {self.kind!r}, cov_absent {self.absent!r}: there are {kinds}; mean, sum")
        x = z.astype(self.dtype)
        if self.kind == "ff":
            for name, size in self.sizes.items():
                x = x + self.rows(labels[name], size, name, z.shape[-1]).astype(x.dtype)
        for i in range(self.layers - 1):
            if self.kind == "mlp":
                hot = [jax.nn.one_hot(labels[name], size, dtype=x.dtype) for name, size in self.sizes.items()]
                x = jnp.concatenate([x, *hot], -1)
            x = norms.PReLU(name=f"prelu_{i}")(Dense(self.width, dtype=self.dtype, name=f"linear_{i}")(x))
            x = norms.norm(self.norm, name=f"norm_{i}")(nn.Dropout(self.dropout, deterministic=not self.train)(x))
            if self.kind == "nbmlp":
                for name, size in self.sizes.items():
                    x = x + self.covariate(labels[name], size, f"{name}_{i}").astype(x.dtype)
        negative_binomial = self.kind == "nbmlp"
        if negative_binomial:
            x = jax.nn.relu(Dense(HEAD_WIDTH, dtype=self.dtype, name="hidden")(x))
        head = {
            "hidden": x,
            "kernel": self.param("kernel", fan_in_uniform, (x.shape[-1], self.n_genes)),
            "bias": self.param("bias", bias_uniform(x.shape[-1]), (self.n_genes,)),
        }
        if negative_binomial:
            head["log_theta"] = self.param("log_theta", nn.initializers.normal(1.0), (self.n_genes,))
        if self.kind == "ff":
            head["linear"] = jnp.ones(())  # that it is there says that the output is not rectified
        return head

    def covariate(self, label: Array, size: int, name: str) -> Array:  # [B, R] -> [B, R, D]
        """Return what a covariate adds to a hidden layer."""
        rows = self.rows(label, size, name, self.width)
        return norms.norm(self.norm, name=f"{name}_norm")(norms.PReLU(name=f"{name}_prelu")(rows))

    def rows(self, label: Array, size: int, name: str, width: int) -> Array:  # [B, R] -> [B, R, width]
        """Return the vectors of labels; an unknown one (-1) gets the mean or the sum of the table, detached."""
        table = self.param(f"{name}_table", nn.initializers.normal(1.0), (size, width))
        pooled = jax.lax.stop_gradient(table).sum(0) / (size if self.absent == "mean" else 1)
        return jnp.where((label >= 0)[..., None], table[jnp.maximum(label, 0)], pooled)
