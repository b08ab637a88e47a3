"""One paper, one folder. Its name is the registry: `models.get("cellplm")` imports `scfm_jax/models/cellplm`.

A sixth model is a folder, a config (`configs/pretrain_<name>.py`) and its golden cases. Its `__init__` says what the
model is and exports the contract, in `__all__` and nothing else; `tests/test_house.py` holds every folder to it.

Every model has:

  Model(nn.Module)   fields are exactly the keys of `config.model`; `__call__(inputs, train=False) -> types.Outputs`.
                     rngs: "params", "dropout", "latent". Collections: "params", "constants" (frozen arrays such as
                     random features), "buffers" (updated by a forward pass).
  SIZES              {model field: name in the run's metadata whose length fills it}, e.g. {"n_genes": "genes"}.
  VARIANTS           {"tiny": {"model": {...}, "inputs": {...}, "loss": {...}}, "paper": ..., "published": ...}.
  TUNING             what `scfm_jax.training.tuning` must know: "lora" (regular expressions of the kernels that
                     low-rank factors stand beside by default), "inputs" (of the parameters before the first layer),
                     "layers" (stacks in the order of the forward pass, those in one tuple side by side: "block" is
                     block_0, block_1, ... or, stacked for a scan, blocks), "visible" (options of `prepare` that hide
                     nothing).
  prepare(batch, constants, rng, *, step, train, **config.inputs) -> inputs     pure; jitted with the step. `batch` has
                     raw counts at ids of the store's vocabulary of G genes, padded with the id G. Two constants are
                     always there and bring them into the model's vocabulary of V genes:
                       "slots"     int32 [G + 1], the model's gene for each id of the store; V for a gene that the
                                   model does not have, and for the padding. `constants["slots"][batch.genes]` is thus
                                   [B, C, P], and what is V there is dropped. No two ids share a slot below V.
                       "measured"  bool [panels, V], which genes each study measured, then each batch of one that
                                   measured fewer (`batch.panel` is the row, `batch.study` where there is none). A zero
                                   of a gene that was not measured is no zero. V is `constants["measured"].shape[1]`.
                     Others are there where the data have them: see `api.gene_constants`, and `fit` below.
  loss(outputs, inputs, **config.loss) -> (scalar, {name: (weighted sum, weight)})
  flops(model, inputs, embed=False) -> float     FLOPs of one forward pass of a batch in pre-training, or with `embed`
                     of what `Outputs.cells` takes of it: two for every multiplication of a matrix product, from shapes
                     alone. Tested against XLA's cost analysis.
  tokens(inputs) -> int32 scalar                         what "tokens/s" counts.

A model may have:

  impute(model, variables, batch, constants, asked, *, inputs, loss) -> counts [B, C, V] or shares [B, C, V, n_bins]
                     of models that predict expression; pure. `batch` has the visible counts only, in the model's own
                     vocabulary. `asked`: "hidden" [B, C, V], which entries may not be seen, and what the visible ones
                     tell: "tokens" [B, C, V] (their bins), "edges" [B, C, n_bins] and "scale" [B, C] of the cells'
                     rulers, "depth" [B, C], estimated totals. `inputs`, `loss`: those sections of a config.
  mask_gene(model, variables, batch, constants, gene, *, inputs) -> embeddings [B, C, D]
                     of cells in which one gene, a slot of the model in each cell (-1 for none) [B, C], is hidden as
                     in pre-training; pure.
  input_flops(model, inputs) -> float     of these, those of layers that see the data alone: no gradient passes to what
                     they read, so they count once less in a backward pass. 0 where it is left out.
  gene_vectors(variables, n_genes) -> [V, D]     the model's table of gene vectors; None where a run keeps none.
  graph_vectors(model, variables, constants) -> [V, D]     what a graph convolution makes of each gene; None: no graph.
  gene_ids(inputs) -> int [B, C, L]   vocabulary id of each position of `Outputs.genes`, -1 for none, where the
                     positions are not the vocabulary's genes in order (with at most one more).
  fit({"train": batches, "val": ...}, constants, inputs) -> (constants, inputs)
                     what `prepare` must know of all cells, from one pass over them on the host before training: more
                     constants, which FITTED names, and options that the data decide.
  FITTED             names of the constants that `fit` adds and that, where weights came without them, are taken from
                     the cells at hand; not those that only training cells can tell. Those of validation cells are
                     val_<name>.
  project(params) -> params           done after every update, for parameters that are kept within bounds.
  BATCH              cells that are embedded at a time, for models of single cells.
  SAMPLE             True where the embedding of a cell is defined on all cells of its tissue sample, "bag" where it is
                     on as many of them as a bag has in training.
  published.py       where weights were released: `load(path, ...) -> (config, variables, gene names)`, made of
                     `config(published)`, which knows the constructor arguments of the authors' code by their names,
                     and of `params(state, model)`; `state_dict(variables, model)` goes back.
  floors.py          tables of genes that the model is held against in pre-training, see `tasks.floors`:
                       against(loss) -> "metric/table", the strongest; None where the objective has none
                       learn(see, constants, inputs, loss) -> arrays, on the host, from training cells: see(names of
                         `prepare`'s arrays, train=True, **changed options) yields (batch, {name: array}), numpy;
                         `add`, (batch, arrays) -> more arrays, is traced with it
                       score(tables, batch, inputs, loss) -> {"metric/table": (weighted sum, weight)}   pure; beside
                         the metric of that name, so in its unit and of the same entries; "metric/truth" is the least
                         value that there is, where it is not 0
                     and where the share of a metric below its floor is not what tells of cells, both of
                       observe(outputs, inputs) -> {name: (array of sums, weight)}   pure; in validation
                       residual({name: array}) -> float, 0 for any table, 1 for the truth
                     `loss`, `inputs`: of a config, whole.
"""

import importlib
import importlib.util
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


def published(name: str) -> ModuleType:
    """Return the module that reads the published weights of model `name`; ValueError where it has none."""
    module = get(name)
    if importlib.util.find_spec(f"{module.__name__}.published") is None:
        raise ValueError(f"model {name!r}: no published weights, its folder has no published.py; train one instead")
    return importlib.import_module(f"{module.__name__}.published")


def floors(name: str) -> ModuleType | None:
    """Return the module of the tables that model `name` is held against; None where its folder has no floors.py."""
    module = get(name)
    if importlib.util.find_spec(f"{module.__name__}.floors") is None:
        return None
    return importlib.import_module(f"{module.__name__}.floors")


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
