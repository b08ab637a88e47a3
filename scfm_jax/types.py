"""What travels between the parts: Batch, Outputs, TrainState, and the one axis legend of the project.

Axes: B bags, C cells of a bag, G genes of the store, P padded expressed genes of a cell, T tokens, D width, H heads,
K head size, F mlp width, V model vocabulary (genes or bins), N graph nodes, E edges, S studies, Z latent width.
The same letters, lower case, are used in einsum.
"""

from typing import Any

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class Batch:
    """A bag of cells: raw sparse counts of `B` bags of `C` cells, as the loader ships them.

    Attributes:
      genes: store ids of the expressed genes, padded with G, int32. [B, C, P]
      counts: their raw counts, 0 in the padding. [B, C, P]
      cell_mask: True where there is a cell, False in the padding. [B, C]
      study: index of the cell's study in the store, 0 in the padding, int32. [B, C]
      coords: spatial coordinates in the units of the data, NaN where there are none, float32. [B, C, 2]
      labels: class index of every requested obs column, -1 where unknown, int32. {name: [B, C]}
      panel: row of the cell's genes in the table of measured ones, int32; the study's, where left out. [B, C]
      field_coords: coordinates scaled to [0, 1] over the cell's whole field of view, where that is known. [B, C, 2]
    """

    genes: Array
    counts: Array
    cell_mask: Array
    study: Array
    coords: Array
    labels: dict[str, Array]
    panel: Array | None = None
    field_coords: Array | None = None


@struct.dataclass
class Outputs:
    """What every model returns.

    Attributes:
      cells: the embedding of each cell. [B, C, D]
      genes: gene representations of each cell, where the model has them. [B, C, L, D]
      logits: what the objective scores (model specific: an array or a dict of arrays).
      aux_loss: the part of the loss that the network itself computes (a latent's KL), a scalar, already weighted.
      metrics: named (weighted sum, weight) pairs that the network reports.
      intermediates: named arrays, only where asked for.
    """

    cells: Array
    genes: Array | None = None
    logits: Any = None
    aux_loss: Array | float = 0.0
    metrics: dict[str, tuple[Array, Array]] = struct.field(default_factory=dict)
    intermediates: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class TrainState:
    """Everything a run needs to go on: arrays only.

    Attributes:
      step: updates done, int32 scalar.
      rng: the run's base key (raw uint32 key data); every use is `fold_in(rng, step)`.
      params: what is trained.
      opt_state: optax state.
      buffers: Flax collections that are not trained but change or belong to the network (`constants`, `buffers`).
      constants: arrays of the data that the model needs: `slots` [G + 1], `measured` [panels, V].
      ema: exponential moving average of the parameters, or None.
    """

    step: Array
    rng: Array
    params: Any
    opt_state: Any
    buffers: Any
    constants: dict[str, Array]
    ema: Any = None
