"""What a genetic perturbation would do to cells of one's own: GEARS' head on a run's genes, fitted to a screen.

    run = scfm_jax.api.load("runs/exceiver")
    head = run.fit_perturbations("screen.h5ad", column="perturbation", control=["non-targeting"], graph="go.npz")
    head.save("head.safetensors")
    after = run.perturb(adata, ["STAT1", "JAK2+STAT1"], head)           # or "head.safetensors"
    after.X, after.layers["before"], after.obs["perturbation"]          # log1p of scaled counts, for each of both

The head reads what the run makes of each gene in the cell, so `adata` holds raw counts. What it says of a gene that the
screen did not perturb rests on the GO graph; scores on held-out targets are what `experiments.predict_perturbation`
shows, and should be looked at before any of it is believed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from scipy import sparse

from data_pipeline.files import h5ad, perturbations
from data_pipeline.genes import vocab
from scfm_jax.api import gene_features, screens
from scfm_jax.layers import graph as graph_layer
from scfm_jax.saving import checksums, leaves
from scfm_jax.saving import weights as weights_file
from scfm_jax.tasks import heads
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.perturbation import gears, gears_fit, pairs, splits

if TYPE_CHECKING:
    import anndata

    from scfm_jax.api.run import Run

FORMAT = "scfm_jax perturbation head"
CONTROLS = 1000
"""Control cells of a screen that a head is fitted on."""
MOST_BYTES = 8 << 30
"""Features of the cells to perturb that fit into memory."""


@dataclasses.dataclass
class PerturbationHead:
    """A head fitted to a screen.

    Attributes:
      variables: of the network. graphs: arrays of those that it reads, see `layers.graph.constants`.
      centre, scale: of the features of the run. [D] each
      meta: JSON-able: genes, second (names), measured (how many of the genes were), depth, targets, settings, model,
        weights (a checksum of the run's), epoch.
    """

    variables: dict[str, Any]
    graphs: dict[str, dict[str, np.ndarray]]
    centre: np.ndarray
    scale: np.ndarray
    meta: dict[str, Any]

    def __repr__(self) -> str:
        """Say which run, how many genes and targets."""
        of = f"{len(self.meta['genes']):,} genes, {len(self.meta['targets'])} targets seen"
        return f"perturbation head on {self.meta['model']}: {of}, epoch {self.meta['epoch']}"

    def save(self, path: str | os.PathLike) -> None:
        """Write the head as one safetensors file that `load` reads."""
        features = {"centre": self.centre, "scale": self.scale}
        parts = {"variables": self.variables, "graphs": self.graphs, "features": features}
        weights_file.export(path, parts, {"format": FORMAT, **self.meta})


def load(path: str | os.PathLike) -> PerturbationHead:
    """Return the head in a file of `PerturbationHead.save`; ValueError or OSError where it is none."""
    tree, meta = weights_file.read(path)
    if meta.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: no perturbation head; Run.fit_perturbations(...).save(...) writes one")
    features = tree["features"]
    return PerturbationHead(tree["variables"], tree["graphs"], features["centre"], features["scale"], meta)


def fit(
    run: "Run",
    screen: Any,
    *,
    graph: str | os.PathLike,
    preset: str = "gears",
    hidden: int | None = None,
    epochs: int | None = None,
    decay: float = gears.TRAINING.decay,
    cells: int | None = None,
    controls: int = CONTROLS,
    validation: float = 0.1,
    seed: int = 0,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.01,
    keep: str | os.PathLike | None = None,
    say: Callable[[str], None] = print,
    **reading: Any,
) -> PerturbationHead:
    """Return GEARS' head on a run's genes, fitted to the conditions of a screen.

    Args:
      screen: AnnData or file of raw counts of control and perturbed cells.
      graph: file of `experiments.go_graph`: the GO graph of genes.
      preset, hidden, epochs, decay: of `gears_fit.Settings`.
      validation: share of conditions that choose the epoch and are not learnt from, so that it is the best for targets
        that were not seen; 0 for the last epoch, better for those that were.
      cells: of a condition to learn from; None for all. controls: control cells at most.
      min_mapped: least share of the screen's genes that the run must know. keep: folder for features, of a file.
      reading: of `screens.read`: column, control, separator, filter, targets, least, depth, layer, raw, round.

    Raises:
      ValueError, OSError: the screen or the graph is not what it should be, in one line.
    """
    if reading.get("logged"):
        raise ValueError("logged=True: a run reads raw counts of control cells: give a screen of counts")
    data = screens.read(screen, gene_table=gene_table, say=say, **reading)
    edges, names = screens.graph_edges(data, graph, gene_table), data.names
    targets = sorted({gene for of in data.screen.targets.values() for gene in of})
    chosen = pairs.controls(data.screen, controls)
    rows = np.unique(np.concatenate(list(chosen.values())))
    options = {"rows": rows, "keep": keep, "gene_table": gene_table, "min_mapped": min_mapped, "say": say}
    features = gene_features.of_cells(run, screen, names, data.second, **options, **h5ad.place(reading))
    of = pairs.Pairs(data.screen, data.at(targets), len(names), chosen, cells, features)
    settings, split = (
        gears_fit.Settings(preset, hidden, epochs, decay),
        splits.none_out(data.screen.targets, validation, seed),
    )
    fitted = gears_fit.fit(of, split.train, split.validation, gears.go_graph(*edges, len(names)), settings, seed)
    meta = {
        "genes": names,
        "second": data.second,
        "measured": len(data.screen.genes),
        "depth": data.depth,
        "targets": targets,
        "settings": dataclasses.asdict(settings),
        "model": run.name,
        "weights": _stamp(run),
        "epoch": fitted.epoch,
        "synthetic": data.synthetic,
    }
    graphs = {name: jax.device_get(graph_layer.constants(edges)) for name, edges in fitted.graphs.items()}
    return PerturbationHead(fitted.variables, graphs, features.centre, features.scale, meta)


def perturb(
    run: "Run",
    source: Any,
    genes: Sequence[str],
    head: PerturbationHead | str | os.PathLike,
    *,
    gene_table: Sequence[str | os.PathLike] = (),
    min_mapped: float | None = 0.01,
    say: Callable[[str], None] = print,
    **reading: Any,
) -> "anndata.AnnData":
    """Return the expression that cells would have if genes were perturbed, a row for each cell and perturbation.

    X is predicted log1p of counts scaled as the screen's were, layers["before"] the same of the cells as they are,
    obs["perturbation"] what was perturbed and obs["cell"] which cell it is; var are the genes that the screen measured,
    var["measured"] whether the cells' file has them (zeros else).

    Args:
      source: AnnData or file of raw counts of untreated cells.
      genes: what to perturb, a gene or several with "+" between, by any of their names.
      head: of `fit`, or its file.
      reading: layer, raw, round, sample_key and more of `Run.gene_representations`.

    Raises:
      ValueError, OSError: no raw counts, a gene that the screen does not know or the file does not measure, a head that
        was fitted on other weights, in one line.
    """
    import anndata
    import pandas as pd

    head = head if isinstance(head, PerturbationHead) else load(head)
    if head.meta["weights"] != _stamp(run):
        raise ValueError(f"{head!r}: fitted on other weights than {run.name} ({run.source}); fit it on this run")
    names, second, measured = (head.meta[name] for name in ("genes", "second", "measured"))
    table = vocab.learn([(names, second)], vocab.read_table(gene_table) if gene_table else None)
    with h5ad.read_counts(source, **h5ad.place(reading)) as counts:
        mapping = vocab.onto(counts, names, table=table, min_mapped=min_mapped)
        matrix = sparse.csr_matrix(mapping.apply(sparse.csr_matrix(counts.take(np.arange(counts.n_cells)))))
        obs, where = counts.obs, str(counts.path)
    present = np.isin(np.arange(len(names)), mapping.index)
    flags = _flags(genes, head, present, table, where)
    x = log_normalised(matrix, target_sum=head.meta["depth"], dtype=np.float32)
    options = {"gene_table": gene_table, "min_mapped": min_mapped, "say": say, **reading}
    if (size := 4 * x.shape[0] * len(names) * len(head.centre)) > MOST_BYTES:
        raise ValueError(
            f"{where}: what {run.name} says of {x.shape[0]:,} cells is {size / 1e9:.0f} GB: take fewer cells"
        )
    features = gene_features.of_cells(run, source, names, second, **options)
    features = dataclasses.replace(features, centre=head.centre, scale=head.scale)
    network = gears_fit.Settings(**head.meta["settings"]).head(len(names)).network
    graphs = {name: graph_layer.from_constants(edges) for name, edges in head.graphs.items()}
    after = []
    for flag in flags:
        asked = _examples(x, features, flag)
        after.append(heads.predict(network, head.variables, asked, graphs, gears.TRAINING.rows)[: len(obs), :measured])
    before = x[:, :measured]
    frame = pd.concat([obs.assign(perturbation=gene, cell=obs.index) for gene in genes])
    frame.index = [f"{cell}, {gene}" for gene in genes for cell in obs.index]
    var = pd.DataFrame({"second": second[:measured], "measured": present[:measured]}, index=names[:measured])
    layers = {"before": sparse.vstack([before] * len(genes), "csr")}
    uns = {"perturbed": {"head": repr(head), "synthetic": head.meta["synthetic"], "weights": run.source}}
    return anndata.AnnData(np.concatenate(after), obs=frame, var=var, layers=layers, uns=uns)


def _flags(
    genes: Sequence[str], head: PerturbationHead, present: np.ndarray, table: vocab.GeneTable, where: str
) -> np.ndarray:
    """Return the targets of each perturbation among the head's genes. [K, G]"""
    if isinstance(genes, str) or not len(genes):
        raise ValueError(f"genes={genes!r}: a list of what to perturb, such as ['STAT1', 'JAK2+STAT1']")
    names, flags = head.meta["genes"], np.zeros((len(genes), len(head.meta["genes"])), np.float32)
    parts = [[part.strip() for part in gene.split("+")] for gene in genes]
    listed = sorted({part for of in parts for part in of})
    index = vocab.map_genes(listed, names, ensembl=None, table=table, min_mapped=None).index
    places = dict(zip(listed, index.tolist(), strict=True))
    beyond = head.meta["measured"]  # targets that the screen has not measured have no expression to be changed
    has = {name: i if i >= beyond or present[i] else -1 for name, i in places.items()}
    perturbations.require(listed, places, has, where)
    for flag, of in zip(flags, parts, strict=True):
        flag[[places[part] for part in of]] = 1
    return flags


def _examples(x: sparse.csr_matrix, features: pairs.CellFeatures, flag: np.ndarray) -> heads.Examples:
    """Return cells with one perturbation, filled up to whole batches by the last cell."""
    n, rows = x.shape[0], gears.TRAINING.rows

    def take(part: np.ndarray) -> heads.Rows:
        part = np.minimum(part, n - 1)
        flags = np.tile(flag, (len(part), 1))
        return {"x": x[part].toarray(), "flags": flags, "features": features.of(features.rows[part])}

    return heads.Examples(-(-n // rows) * rows, take)


def _stamp(run: "Run") -> str:
    """Return 24 hexadecimal digits that stand for a run's weights."""
    sums = checksums.checksums(leaves.flatten({"variables": run.variables}))
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:24]
