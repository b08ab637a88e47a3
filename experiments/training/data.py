"""What a model is trained on: the cells of a store, the genes of the model, and constants about both."""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np

from data_pipeline.batches.loader import Loader
from data_pipeline.files import panels
from data_pipeline.genes.vocab import GeneTable, learn, map_genes, read_genes, read_table
from data_pipeline.store.store import Store, open_store
from scfm_jax import api
from scfm_jax.inference import bags

GENE_OPTIONS = ("graph", "graph_weighted", "gene_vectors", "medians")
OPTIONS = {
    "store": "a folder made by experiments.ingest",
    "genes": 'the model\'s genes: "store" for those of the store, or a file with one a line',
    "gene_table": "tables of aliases and ids of genes, only needed where names differ (HGNC's hgnc_complete_set.txt)",
    "min_mapped": "least share of the store's genes that the model must know",
    "graph": "the model's gene graph, a file of experiments.go_graph",
    "graph_weighted": "use the weights of its edges",
    "gene_vectors": "vectors of the genes, a file",
    "medians": "the genes' medians, a file that inputs.medians=file ranks by",
}
"""Keys of a config's "data" that are not the loader's, and what they are."""


@dataclasses.dataclass
class TrainingData:
    """The cells of a store as a model's own genes.

    Attributes:
      store, options: the cells, and keywords of their `Loader`.
      genes, second_names: of the model, "" where a gene has no other name. [V]
      slots: the model slot of each store id, V for none. [G + 1] mapping: how they met.
      constants: arrays that the model needs of them.
    """

    store: Store
    options: dict[str, Any]
    genes: list[str]
    second_names: list[str]
    slots: np.ndarray
    mapping: dict[str, Any]
    constants: dict[str, np.ndarray]

    def loaders(self, shared: bool = True) -> dict[str, Loader]:
        """Return the bags of "train" and, where cells are held out, "val"; `shared`: this process's share of them."""
        share = {"host": jax.process_index(), "n_hosts": jax.process_count()} if shared else {}
        loaders = {"train": Loader(self.store, part="train", **self.options, **share)}
        if loaders["train"].split_report["parts"]["val"]["cells"]:
            loaders["val"] = Loader(self.store, part="val", **self.options, **share)
        return loaders

    def fit(self, module: ModuleType, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add the constants that one pass over all cells tells the model; return its `inputs` with what it tells.

        Every process reads all cells: they must come to the same numbers.
        """
        passes = {part: loader.epoch_batches() for part, loader in self.loaders(shared=False).items()}
        self.constants, inputs = module.fit(passes, self.constants, inputs)
        return inputs

    def min_gene_fraction(self) -> float | None:
        """Return the share by which ingest zeroed rare genes; None, and say so, where studies differ in it."""
        records = (self.store.study(name).record for name in self.store.studies)
        fractions = {record["name"]: record.get("settings", {}).get("min_gene_fraction") or None for record in records}
        if len(set(fractions.values())) > 1:
            each = ", ".join(f"{name} {fraction}" for name, fraction in fractions.items())
            print(f"--min_gene_fraction of the studies differ ({each}): none will hold for files that the run reads")
            return None
        return next(iter(fractions.values()), None)

    def complete(self, module: ModuleType, inputs: dict[str, Any]) -> None:
        """Fit what did not come with the weights that fine-tuning begins with to all training cells, and say so."""
        batches = self.loaders(shared=False)["train"].epoch_batches()
        self.constants = bags.complete_constants(module, self.constants, batches, inputs)


def read(options: dict[str, Any], module: ModuleType, seed: int, base: api.Run | None = None) -> TrainingData:
    """Return the training data that a config's "data" describes; genes and their constants are those of `base`,
    the run that fine-tuning begins with, if there is one.
    """
    options = {"seed": seed, **options}
    store = open_store(given(options.pop("store"), "data.store", "a folder made by experiments.ingest"))
    tables, least = options.pop("gene_table", ()), options.pop("min_mapped", 0.5)
    source = options.pop("genes")
    table = read_table(tables) if tables else None
    if base:
        table = learn([(base.genes, base.second_names)], table)
    genes, slots, mapping = gene_slots(store, base.genes if base else source, table, least)
    second = second_names(store, genes, slots, base.second_names if base else ())
    gene_options = {name: options.pop(name) for name in GENE_OPTIONS if name in options}
    gene_constants = (
        base.constants if base else api.gene_constants(gene_options, genes, learn([(genes, second)], table), print)
    )
    options["labels"] = known_labels(store, options.get("labels", ()), module)
    options |= {"keep": slots[:-1] < len(genes), "same": same_gene(slots, len(genes))}
    constants = {**gene_constants, "slots": slots, "measured": measured(store, slots, len(genes))}
    return TrainingData(store, options, genes, second, slots, mapping, constants)


def known_labels(store: Store, labels: Sequence[str], module: ModuleType) -> list[str]:
    """Return `labels` without the covariates of the model (its SIZES) that no study of the store has; say so."""
    columns = {column for name in store.studies for column in store.study(name).obs.columns}
    absent = [label for label in labels if label in module.SIZES.values() and label not in columns]
    for label in absent:
        print(f"no study has the obs column {label!r}: the model is trained without this covariate", flush=True)
    return [label for label in labels if label not in absent]


def gene_slots(
    store: Store, source: str | list[str], table: GeneTable | None = None, min_mapped: float = 0.5
) -> tuple[list[str], np.ndarray, dict[str, Any]]:
    """Return the model's genes, the model slot of each store id [G + 1] (V: none), and the mapping report.

    Args:
      source: "store" for the store's own vocabulary, or a gene list or its file; then the report is printed.
      table: what gene tables know of aliases and second names.
    """
    n = len(store.genes)
    if source == "store":
        return store.genes, np.arange(n + 1, dtype=np.int32), {"n": n, "mapped": n}
    genes = read_genes(source) if isinstance(source, str) else source
    mapping = map_genes(store.genes, genes, ensembl=store.second_names, table=table, min_mapped=min_mapped)
    print(mapping.report, flush=True)
    slots = np.append(np.where(mapping.index < 0, len(genes), mapping.index), len(genes))
    return genes, slots.astype(np.int32), mapping.report.to_dict()


def same_gene(slots: np.ndarray, n_genes: int) -> np.ndarray:
    """Return the first store id of those that are the same gene of the model, for each store id. [G]"""
    first = np.full(n_genes + 1, len(slots))
    np.minimum.at(first, slots[:-1], np.arange(len(slots) - 1))
    return np.where(slots[:-1] < n_genes, first[slots[:-1]], np.arange(len(slots) - 1))


def second_names(store: Store, genes: Sequence[str], slots: np.ndarray, base: Sequence[str] = ()) -> list[str]:
    """Return another name of each model gene that the run begun with (`base`) or the store has, "" for none. [V]"""
    second = list(base) or [""] * len(genes)
    for slot, *names in zip(slots, store.genes, store.second_names, strict=False):
        if slot < len(genes) and not second[slot]:
            second[slot] = next((name for name in names if name and name != genes[slot]), "")
    return second


def measured(store: Store, slots: np.ndarray, n_genes: int) -> np.ndarray:
    """Return which model genes each study measured, then each batch that says so, bool. [S + batches, V]"""
    stored = panels.table([store.study(name) for name in store.studies])
    table = np.zeros((len(stored), n_genes + 1), bool)
    for row, genes in zip(table, stored, strict=True):
        row[slots[:-1][genes]] = True
    return table[:, :n_genes]


def given(value: Any, key: str, what: str) -> Any:
    """Return `value`, or raise ValueError where it is missing."""
    if not value:
        raise ValueError(f"--config.{key} is missing: give {what}")
    return value
