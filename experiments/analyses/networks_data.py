"""What `experiments.networks` infers networks of: the cells, genes, regulators and measured networks its flags name."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.files import h5ad, whole
from data_pipeline.files.count_values import looks
from data_pipeline.files.perturbations import LARGEST_LOG
from data_pipeline.genes import edge_lists, gene_table, vocab
from scfm_jax.tasks.expression import log_normalised
from scfm_jax.tasks.networks import problem

LEAST = 20
"""Cells below which there is nothing to infer a network from."""
TABLES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
ENDS = (("tf", "target"), ("gene1", "gene2"), ("source", "target"), ("regulator", "target"))
"""Columns of the regulator and the target in tables of measured edges; BEELINE has Gene1,Gene2."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What networks are inferred of; the flags of `experiments.networks` say what each is.

    Attributes:
      truth: (name, file, checksum) of each measured network. tfs: (file, checksum), or empty.
    """

    input: str
    truth: tuple[tuple[str, str, str], ...] = ()
    tfs: tuple[str, ...] = ()
    n_genes: int = 500
    share: float = 0.1
    cells: int = 2000
    go: str | None = None
    context: str | None = None
    raw_cosine: bool = False
    epochs: int = 120
    rows: int = 8
    inverse: str = "inverse"
    trees: int = 1000
    gene_table: tuple[str, ...] = ()
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Truth:
    """A measured network on the genes of the data: edges, rows targets and columns regulators [n, n]; who is judged.

    Attributes:
      regulators, targets: those with an edge here, and every gene with one: BEELINE's pairs.
      leaks: whether it is known to what is made of the Gene Ontology or of STRING, as its name says.
    """

    name: str
    edges: np.ndarray
    regulators: np.ndarray
    targets: np.ndarray
    leaks: bool


@dataclasses.dataclass
class Data:
    """Cells and genes of a plan.

    Attributes:
      x: log-normalised expression. [cells, n]
      names, second: of the genes, symbols where there are some, and another name or "". [n]
      regulators: genes that may be such. [R]
      source: what runs read; rows: the cells of it. counts: whether it holds counts.
    """

    x: np.ndarray
    names: list[str]
    second: list[str]
    regulators: np.ndarray
    truths: list[Truth]
    source: Any
    rows: np.ndarray
    counts: bool


def named(text: str) -> tuple[str, str, str]:
    """Return (name, file, checksum) of NAME=FILE or FILE, whose name is the file's; FileNotFoundError without one."""
    name, mark, path = text.partition("=")
    if not mark or pathlib.Path(text).exists():
        name, path = pathlib.Path(text).name.split(".")[0], text
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"--truth={text}: no such file")
    return name, path, whole.checksum(pathlib.Path(path))


def read(plan: Plan, say: Callable[[str], None] = print) -> Data:
    """Read the cells of a plan and its measured networks; ValueError or OSError in one line where they will not do."""
    where = pathlib.Path(plan.input).name
    source = _table(plan.input) if plan.input.endswith(TABLES) else plan.input
    table = vocab.read_table(plan.gene_table) if plan.gene_table else None
    counts, why = _are_counts(source, plan, where)
    with h5ad.read_counts(source, **h5ad.place(plan.reading), check=counts) as file:
        names, second = vocab.file_names(file)
        genes = vocab.union([(names, second)], table)
        table = vocab.learn([(names, second)], table)
        mapping = vocab.onto(file, genes, table=table)
        rows = np.arange(file.n_cells)
        if plan.cells and len(rows) > plan.cells:
            rows = np.sort(np.random.default_rng(0).permutation(rows)[: plan.cells])
            say(f"{where}: {plan.cells:,} of {file.n_cells:,} cells, drawn at random")
        matrix = mapping.apply(sparse.csr_matrix(file.take(rows)))
    if len(rows) < LEAST:
        raise ValueError(f"{where}: {len(rows)} cells: a network needs at least {LEAST}; give a file of more")
    if counts:
        matrix = log_normalised(matrix)
    else:
        _check_logged(matrix.data, where)
        say(f"{where}: log-normalised values ({why}): runs are asked for gene vectors, which need no counts")
    asked = _asked(plan, genes, table, where)
    chosen = problem.chosen(matrix, asked.regulators, plan.n_genes, plan.share)
    place = np.full(len(genes), -1)
    place[chosen] = np.arange(len(chosen))
    regulators = place[np.flatnonzero(asked.regulators)]
    regulators = regulators[regulators >= 0]
    if not len(regulators):
        raise ValueError(
            f"{where}: none of the {asked.regulators.sum()} regulators that are measured is expressed in "
            f"{plan.share:.0%} of the cells; lower --share, or name others by --tfs=FILE"
        )
    truths = [_truth(name, pairs, place, regulators, where) for name, pairs in asked.truths.items()]
    shown, others = _shown(names, second, mapping.index, chosen)
    x = matrix[:, chosen].toarray().astype(np.float64)
    say(f"{where}: {len(x):,} cells, {len(chosen):,} genes, {len(regulators)} of them regulators")
    for truth in truths:
        pairs = len(truth.regulators) * (len(truth.targets) - 1)
        say(f"{truth.name}: {truth.edges.sum():,} of {pairs:,} pairs of {len(truth.regulators)} TFs are edges")
    return Data(x, shown, others, regulators, truths, source, rows, counts)


def _table(path: str) -> anndata.AnnData:
    """Return a table of genes x cells, as BEELINE's ExpressionData.csv, gzipped or not."""
    try:
        frame = pd.read_csv(path, sep="," if ".csv" in path else "\t", index_col=0)
        values = frame.to_numpy(np.float32)
    except (ValueError, OSError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        text = " ".join(str(error).split())
        raise ValueError(
            f"{path}: no table of numbers, a gene's name in front of each line and a cell's above each column: {text}"
        ) from None
    var = pd.DataFrame(index=frame.index.astype(str))
    return anndata.AnnData(sparse.csr_matrix(values.T), pd.DataFrame(index=frame.columns.astype(str)), var)


def _are_counts(source: Any, plan: Plan, where: str) -> tuple[bool, str]:
    """Return whether the values are raw counts, and why not; ValueError where they are no logarithms of them either."""
    try:
        h5ad.read_counts(source, **h5ad.place(plan.reading)).close()
        return True, ""
    except ValueError as error:
        with h5ad.read_counts(source, **h5ad.place(plan.reading), check=False) as file:
            values = file.take(np.arange(min(file.n_cells, h5ad.LOOKED_AT)))
            _check_logged(values.data, where)
            others = re.search(r"counts are in .*", str(error))
            return False, others[0] if others else looks(values.data, values).lstrip(", ")


def _check_logged(values: np.ndarray, where: str) -> None:
    """Raise ValueError where values are no logarithms of one more than something."""
    way = "give raw counts, or log1p of normalised ones"
    if not np.isfinite(values).all():
        raise ValueError(f"{where}: values that are not finite: {way}")
    if values.min(initial=0) < 0:
        raise ValueError(f"{where}: negative values, as of z-scores, do not say which genes a cell expresses: {way}")
    if values.max(initial=0) > LARGEST_LOG:
        raise ValueError(f"{where}: a value of {values.max():g} is no count and no logarithm: {way}")


@dataclasses.dataclass
class _Asked:
    """Which genes of the file may be regulators, bool [G], and (regulators, targets) of each truth's edges in it."""

    regulators: np.ndarray
    truths: dict[str, tuple[np.ndarray, np.ndarray]]


def _asked(plan: Plan, genes: list[str], table: vocab.GeneTable, where: str) -> _Asked:
    """Return what --tfs and --truth name among the genes of the file; without both every gene may be a regulator."""

    def places(names: Sequence[str]) -> np.ndarray:
        return vocab.map_genes(names, genes, table=table, min_mapped=None).index

    truths = {}
    for name, path, _ in plan.truth:
        listed = edge_lists.read_edges(path, ends=ENDS)
        if not listed.source:
            raise ValueError(f"{path}: no edges in it; a table has the columns TF,target and a line for each edge")
        unique, index = np.unique([listed.source, listed.target], return_inverse=True)
        source, target = places(unique.tolist())[index.reshape(2, -1)]
        if not (source >= 0).any():
            some = ", ".join(dict.fromkeys(listed.source[:3]))
            raise ValueError(
                f"{path}: none of its {len(set(listed.source))} TFs ({some}, ...) is a gene of {where}; check the "
                "species and that genes are the rows of a table, or give a --gene_table that knows both names"
            )
        kept = (source >= 0) & (target >= 0) & (source != target)
        if not kept.any():
            raise ValueError(f"{path}: none of its {len(kept)} edges is between two genes of {where}; leave it out")
        truths[name] = source[kept], target[kept]
    regulators = np.zeros(len(genes), bool)
    if plan.tfs:
        listed = gene_table.read_genes(plan.tfs[0])
        listed = listed[listed[0] in ("tf", "TF", "tfs", "TFs") :]  # a header; TF is a gene's symbol too, of no such
        regulators[(index := places(listed))[index >= 0]] = True
        if not regulators.any():
            raise ValueError(f"--tfs={plan.tfs[0]}: none of its {len(listed)} genes is one of {where}")
    else:
        regulators[np.concatenate([pairs[0] for pairs in truths.values()]) if truths else slice(None)] = True
    return _Asked(regulators, truths)


def _truth(
    name: str, pairs: tuple[np.ndarray, np.ndarray], place: np.ndarray, regulators: np.ndarray, where: str
) -> Truth:
    """Return a measured network on the chosen genes; ValueError where it has no edge between them."""
    source, target = place[pairs[0]], place[pairs[1]]
    kept = np.isin(source, regulators) & (target >= 0)
    source, target = source[kept], target[kept]
    n = int(place.max()) + 1
    edges = np.zeros((n, n), bool)
    edges[target, source] = True
    if not edges.any():
        raise ValueError(
            f"--truth: {name} has no edge between two of the {n} genes chosen of {where}; raise --n_genes, lower "
            "--share, or leave this truth out"
        )
    leaks = bool(re.search(r"string|(?<![a-z])go(?![a-z])", name.lower()))
    return Truth(name, edges, np.unique(source), np.union1d(source, target), leaks)


def _shown(
    names: Sequence[str], second: Sequence[str], index: np.ndarray, chosen: np.ndarray
) -> tuple[list[str], list[str]]:
    """Return the symbol of each chosen gene, its id where there is none, and the other name."""
    first = {gene: column for column, gene in reversed(list(enumerate(index.tolist())))}
    both = [(names[first[gene]], second[first[gene]] or "") for gene in chosen.tolist()]
    both = [(b, a) if b and vocab.is_id(a) else (a, b) for a, b in both]
    return [a for a, _ in both], [b for _, b in both]
