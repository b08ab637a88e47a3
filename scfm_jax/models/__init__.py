"""One paper, one folder. Its name is the registry: `models.get("cellplm")` imports `scfm_jax/models/cellplm`.

The contract of a model's folder, held by `tests/test_house.py`:

  Model(nn.Module)   fields are exactly the keys of `config.model`; `__call__(inputs, train=False) -> types.Outputs`.
                     rngs: "params", "dropout", "latent". Collections: "params", "constants" (frozen arrays such as
                     random features), "buffers" (updated by a forward pass).
  SIZES              {model field: name in the run's metadata whose length fills it}, e.g. {"n_genes": "genes"}.
  VARIANTS           {"tiny": {"model": {...}, "inputs": {...}, "loss": {...}}, "paper": ..., "published": ...}.
  prepare(batch, constants, rng, *, step, train, **config.inputs) -> inputs     pure; jitted with the step.
  loss(outputs, inputs, **config.loss) -> (scalar, {name: (weighted sum, weight)})
  flops(model, inputs) -> float                          forward FLOPs of one batch, from shapes alone.
  tokens(inputs) -> int32 scalar                         what "tokens/s" counts.
  fit({"train": batches, "val": ...}, constants, inputs) -> (constants, inputs)
                     optional; what `prepare` must know of all cells, from one pass over them on the host before
                     training: more constants (named in FITTED), options that the data decide.
  impute(model, variables, batch, constants, asked, *, inputs, loss) -> counts [B, C, V] or shares [B, C, V, n_bins]
                     optional, of models that predict expression; pure. `batch` has the visible counts only, in the
                     model's own vocabulary. `asked`: "hidden" [B, C, V], which entries may not be seen, and what the
                     visible ones tell: "tokens" [B, C, V] (their bins), "edges" [B, C, n_bins] and "scale" [B, C] of
                     the cells' rulers, "depth" [B, C], estimated totals. `inputs`, `loss`: those sections of a config.
  gene_ids(inputs) -> int [B, C, L]   optional; vocabulary id of each position of `Outputs.genes`, -1 for none, where
                     the positions are not the vocabulary's genes in order (with at most one more).
  TUNING             what `scfm_jax.training.tuning` must know: "lora" (regular expressions of the kernels that
                     low-rank factors stand beside by default), "inputs" (of the parameters before the first layer),
                     "layers" (stacks in the order of the forward pass, those in one tuple side by side: "block" is
                     block_0, block_1, ... or, stacked for a scan, blocks), "visible" (options of `prepare` that hide
                     nothing).
  project(params) -> params           optional; done after every update, for parameters that are kept within bounds.
  BATCH              optional; cells that are embedded at a time, for models of single cells.
  SAMPLE             optional; True where the embedding of a cell is defined on all cells of its tissue sample, "bag"
                     where it is on as many of them as a bag has in training.
"""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any


def names() -> list[str]:
    """Return the names of all models: the folders in this one."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)


def get(name: str) -> ModuleType:
    """Return the module of model `name`; ValueError names the models there are."""
    if name not in names():
        raise ValueError(f"model {name!r}: no such model; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def options(name: str, variant: str) -> dict[str, dict[str, Any]]:
    """Return the sections model, inputs and loss of a config: every option, as the variant has it or by default.

    ValueError names the variants there are.
    """
    module = get(name)
    if variant not in module.VARIANTS:
        raise ValueError(f"{name} variant {variant!r}: no such variant; there are {', '.join(module.VARIANTS)}")
    return {
        part: defaults(module, part) | module.VARIANTS[variant].get(part, {}) for part in ("model", "inputs", "loss")
    }


def defaults(module: ModuleType, part: str) -> dict[str, Any]:
    """Return the options of `part` ("model", "inputs" or "loss") of a model file, and their defaults."""
    if part == "model":
        fields = inspect.signature(module.Model).parameters.values()
        return {field.name: field.default for field in fields if field.name not in ("parent", "name")}
    function = {"inputs": module.prepare, "loss": module.loss}[part]
    named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in named if p.name not in ("step", "train", "draws")}
