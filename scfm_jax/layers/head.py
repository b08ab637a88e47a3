"""From vectors of cells to classes: a plain classifier."""

import flax.linen as nn
import jax

from scfm_jax.layers.linear import Dense
from scfm_jax.types import Array


class Head(nn.Module):
    """Dropout and linear layers on the latent: the classifier of cell types."""

    n_classes: int
    width: int
    layers: int
    dropout: float
    train: bool = False

    @nn.compact
    def __call__(self, z: Array) -> Array:  # [B, C, Z] -> [B, C, classes]
        for i in range(self.layers):
            last = i == self.layers - 1
            z = nn.Dropout(self.dropout, deterministic=not self.train)(z)
            z = Dense(self.n_classes if last else self.width, name=f"linear_{i}")(z)
            z = z if last else jax.nn.relu(z)
        return z
