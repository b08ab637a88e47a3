"""One paper, one file. The file name is the registry: `models.get("cellplm")` imports `scfm_jax/models/cellplm.py`.

The contract of a model file, held by `tests/test_house.py`:

  Model(nn.Module)   fields are exactly the keys of `config.model`; `__call__(inputs, train=False) -> types.Outputs`.
                     rngs: "params", "dropout", "latent". Collections: "params", "constants" (frozen arrays such as
                     random features), "buffers" (updated by a forward pass).
  SIZES              {model field: name in the run's metadata whose length fills it}, e.g. {"n_genes": "genes"}.
  VARIANTS           {"tiny": {"model": {...}, "inputs": {...}, "loss": {...}}, "paper": ..., "published": ...}.
  prepare(batch, constants, rng, *, step, train, **config.inputs) -> inputs     pure; jitted with the step.
  loss(outputs, inputs, **config.loss) -> (scalar, {name: (weighted sum, weight)})
  flops(model, inputs) -> float                          forward FLOPs of one batch, from shapes alone.
  tokens(inputs) -> int32 scalar                         what "tokens/s" counts.
"""

import importlib
import pkgutil
from types import ModuleType


def names() -> list[str]:
    """Return the names of all models: the files of this folder."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """Return the module of model `name`; ValueError names the models there are."""
    if name not in names():
        raise ValueError(f"model {name!r}: no such model; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
