"""A regulatory network as the weights between the latent values of genes: DeepSEM, started from similarities.

DeepSEM (Shu et al., Nat. Comput. Sci. 2021): an autoencoder in which a gene's latent value is a weighted sum of those
of its regulators and something of its own. The matrix A of the weights is what is looked for; scLong (bioRxiv
2024.11.09.622759, Fig. 5) starts it from the similarity of genes in a foundation model.

    x, mask = standardised(expression)                       # cells that are log-normalised
    start = row_normalised(cosine(features))                 # of per-cell features or of gene vectors
    strength = infer(x, mask, start, seeds=range(10))        # [n, n], rows are targets and columns regulators

With M = I - A^T, the diagonal of A left out: an encoder that reads each gene's value gives a mean and a log variance,
both times M; a decoder of one value reads the draw times M^-1. The prior of the latent values is learnt, and times M
too. Loss: squared error of the expressed entries, `beta` times the divergence of the draw from the prior, `alpha` times
the mean |A|. One epoch trains the networks, the next two train A.

Differences from scLong's release: the inverse is that of M (by solving, which is a third of the work); the release has
`cholesky_inverse` of a matrix that is no Cholesky factor, which `inverse="cholesky_inverse"` keeps. Its start does not
have unit rows before the product; here it is the cosine, as the paper says. The epochs are fixed: nothing is stopped by
its score.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from scfm_jax.tasks import heads
from scfm_jax.types import Array

CLIP = 10.0
INVERSES = ("inverse", "cholesky_inverse")
RMSPROP = {"name": "rmsprop", "b2": 0.99, "eps": 1e-8}
TRAINING = heads.Training(
    optimizers=(
        {**RMSPROP, "learning_rate": 1e-4, "frozen": ("^adjacency",)},
        {**RMSPROP, "learning_rate": 2e-5, "frozen": ("^(encode|decode|prior)",)},
    ),
    turns=(0, 1, 1),
    epochs=120,
    rows=8,
)
"""The release trains 100 epochs in batches of 8, the paper 120 in batches of 64."""


class Latent(NamedTuple):
    """What the network makes of cells: x^, the draw, and mean and log variance of the draw and of its prior. [B, n]"""

    x: Array
    z: Array
    mean: Array
    log_variance: Array
    prior_mean: Array
    prior_log_variance: Array
    adjacency: Array  # [n, n]


class DeepSEM(nn.Module):
    """The autoencoder. A batch: x [B, n] (`standardised`), "noise" [B, n] where it is recorded; shared: "start" [n, n].

    Attributes:
      width: of the hidden layers, of which there are two.
      inverse: of INVERSES.
    """

    width: int = 128
    inverse: str = "inverse"

    @nn.compact
    def __call__(self, batch: Mapping[str, Array], shared: Mapping[str, Any], train: bool = False) -> Latent:
        if self.inverse not in INVERSES:
            raise ValueError(f"inverse={self.inverse!r}: there are {', '.join(INVERSES)}")
        x = batch["x"]
        adjacency = self.param("adjacency", lambda _: jnp.asarray(shared["start"], jnp.float32))
        matrix = jnp.eye(x.shape[1]) - (adjacency * (1 - jnp.eye(x.shape[1]))).T
        hidden = nn.tanh(_dense(self.width, "encode_0")(jnp.stack([x, jnp.ones_like(x)], -1)))
        hidden = nn.tanh(_dense(self.width, "encode_1")(hidden))
        mean, log_variance = (_dense(1, f"encode_{name}")(hidden)[..., 0] @ matrix for name in ("mean", "log_variance"))
        z = mean
        if "noise" in batch or train:
            noise = batch["noise"] if "noise" in batch else jax.random.normal(self.make_rng("noise"), x.shape)
            z = z + noise * jnp.sqrt(jnp.exp(log_variance) + 1e-10)
        hidden = nn.tanh(_dense(self.width, "decode_0")(times_inverse(z, matrix, self.inverse)[..., None]))
        hidden = nn.tanh(_dense(self.width, "decode_1")(hidden))
        back = _dense(1, "decode_out")(hidden)[..., 0]
        prior = [self.prior(name, x.shape[1]) @ matrix for name in ("mean", "log_variance")]
        return Latent(back, z, mean, log_variance, *(jnp.broadcast_to(p, x.shape) for p in prior), adjacency)

    def prior(self, name: str, n_genes: int) -> Array:
        """Return a value for each gene that no cell has a part in. [n]"""
        hidden = nn.tanh(_dense(self.width, f"prior_{name}_0")(jnp.ones(1)))
        return _dense(n_genes, f"prior_{name}_1")(hidden)


def times_inverse(z: Array, matrix: Array, how: str = "inverse") -> Array:
    """Return z M^-1, without making the inverse; or z (L L^T)^-1 with M's lower triangle L. [B, n], [n, n] -> [B, n]"""
    if how == "cholesky_inverse":
        return z @ _cholesky_inverse(matrix)
    return jnp.linalg.solve(matrix.T, z.T).T


@jax.custom_vjp
def _cholesky_inverse(matrix: Array) -> Array:
    """Return torch's `cholesky_inverse`, whose gradient takes all of the matrix for the factor."""
    lower = jnp.tril(matrix)
    return jnp.linalg.inv(lower @ lower.T)


def _forward(matrix: Array) -> tuple[Array, tuple[Array, Array]]:
    inverse = _cholesky_inverse(matrix)
    return inverse, (inverse, matrix)


def _backward(kept: tuple[Array, Array], grad: Array) -> tuple[Array]:
    inverse, matrix = kept
    return (-(inverse @ (grad + grad.T) @ inverse) @ matrix,)


_cholesky_inverse.defvjp(_forward, _backward)


@dataclasses.dataclass(frozen=True)
class Loss:
    """DeepSEM's loss, in `parts`: reconstruction, `beta` times divergence and a constant, `alpha` times mean |A|."""

    alpha: float = 0.1
    beta: float = 0.01

    def __call__(self, latent: Latent, batch: Mapping[str, Array], shared: Mapping[str, Any]) -> Array:
        return sum(self.parts(latent, batch).values())

    def parts(self, latent: Latent, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Return the terms of the loss; "mask" [B, n] of a batch is 1 where a gene is expressed.

        The constant is the cross entropy of a single class among ten, which the original has for several.
        """
        mask = batch["mask"]
        square = jnp.square(batch["x"] - latent.x)
        divergence = _log_normal(latent.z, latent.mean, latent.log_variance)
        divergence -= _log_normal(latent.z, latent.prior_mean, latent.prior_log_variance)
        return {
            "reconstruction": (mask * square).sum() / jnp.maximum(mask.sum(), 1),
            "divergence": self.beta * divergence.mean(),
            "classes": self.beta * jnp.log(10.0),
            "sparsity": self.alpha * (latent.adjacency * jnp.sign(latent.adjacency)).mean(),  # no gradient at 0
        }


def infer(
    x: np.ndarray,
    mask: np.ndarray,
    start: np.ndarray | Callable[[int], np.ndarray],
    *,
    seeds: Iterable[int] = range(10),
    training: heads.Training = TRAINING,
    network: DeepSEM | None = None,
    loss: Loss | None = None,
) -> np.ndarray:
    """Return the mean |A| of trainings with several seeds, rows targets and columns regulators. [n, n]

    Args:
      x, mask: of `standardised`. [cells, n]
      start: of A, or a function from the seed to one (`random_start`). [n, n]
      training: epochs, batches and rates; the program is compiled once for all seeds.

    ValueError where the start is not a square of finite numbers.
    """
    head = heads.Head(network or DeepSEM(), loss or Loss())
    examples, total, number = heads.Examples.of(x=x, mask=mask), 0.0, 0
    for seed in seeds:
        first = start(seed) if callable(start) else start
        if first.shape != (x.shape[1], x.shape[1]) or not np.isfinite(first).all():
            raise ValueError(f"a start of shape {first.shape} for {x.shape[1]} genes: it has finite [genes, genes]")
        fitted = heads.fit(head, examples, None, {"start": np.asarray(first, np.float32)}, training, seed)
        total, number = total + np.abs(fitted.variables["params"]["adjacency"]), number + 1
    if not number:
        raise ValueError("seeds: at least one network is trained")
    return total / number


def standardised(expression: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (values over the mean and deviation of each gene's expressed entries, where it is expressed). [cells, n]

    What is not expressed is standardised with the rest but not reconstructed; values are cut at 10. A gene without any
    deviation becomes 0.
    """
    mask = expression != 0
    number = np.maximum(mask.sum(0), 1)
    mean = expression.sum(0, dtype=np.float64) / number
    deviation = np.sqrt((np.square(expression - mean) * mask).sum(0) / number)
    x = np.where(deviation > 0, (expression - mean) / np.where(deviation > 0, deviation, 1), 0)
    return np.clip(x, -CLIP, CLIP).astype(np.float32), mask.astype(np.float32)


def cosine(features: np.ndarray | Iterable[np.ndarray]) -> np.ndarray:
    """Return the cosines between genes, of their vectors or of all their features in all cells in a row. [n, n]

    Args:
      features: vectors [n, D], or batches of cells' features [c, n, D], which are never together in memory.
    """
    batches = [features[None]] if isinstance(features, np.ndarray) and features.ndim == 2 else features
    rows = (np.swapaxes(part, 0, 1).reshape(part.shape[1], -1).astype(np.float64) for part in batches)
    product = sum(x @ x.T for x in rows)
    length = np.sqrt(np.maximum(np.diag(product), 0))
    length = np.where(length > 0, length, np.inf)
    return product / length[:, None] / length


def row_normalised(similarity: np.ndarray) -> np.ndarray:
    """Return a start for A: no diagonal, rows whose absolute values sum to 1, so that I - A has an inverse. [n, n]

    A row of zeros becomes 1 / (n - 1) everywhere.
    """
    n = len(similarity)
    start = np.where(np.eye(n, dtype=bool), 0, similarity).astype(np.float64)
    total = np.abs(start).sum(1, keepdims=True)
    start = np.where(total > 0, start / np.where(total > 0, total, 1), 1 / max(n - 1, 1))
    np.fill_diagonal(start, 0)
    return start.astype(np.float32)


def random_start(n_genes: int, seed: int) -> np.ndarray:
    """Return DeepSEM's own start: 1 / (n - 1) + U(0, 2e-4), without a diagonal. [n, n]"""
    start = 1 / max(n_genes - 1, 1) + np.random.default_rng(seed).uniform(0, 2e-4, (n_genes, n_genes))
    np.fill_diagonal(start, 0)
    return start.astype(np.float32)


def _dense(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, kernel_init=nn.initializers.xavier_normal(), name=name)


def _log_normal(z: Array, mean: Array, log_variance: Array) -> Array:
    """Return the logarithm of a normal density, up to log 2 pi / 2, which cancels."""
    variance = jnp.exp(log_variance) + 1e-8
    return -0.5 * (jnp.log(variance) + jnp.square(z - mean) / variance)
