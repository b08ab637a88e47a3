"""Gene identity: which gene of a vocabulary does each name in a file mean? Never silent, never a guess, no network.

A name is resolved by the first of these that finds exactly one gene (STEPS):
  exact      it is in the vocabulary, letter by letter
  version    it is, but for the version suffix of an Ensembl id
  second     another name that the file has of the gene (the Ensembl id of a symbol, or the other way round) is
  table      a gene table gives it (or the second name) as the id or the symbol of a gene of the vocabulary; an id that
             the table knows is never taken for the gene of another id, whatever the symbol
  previous   the table gives it as a former symbol of one gene only
  alias      the table gives it as an alias of one gene only
  case       it is in the vocabulary or the table but for upper and lower case
  number     it was made unique by a number behind it (MATR3-1, MATR3.1 after MATR3): the gene of the name without it
Those from `previous` to `case` never add to a gene that another name of the file means by the first four: such a name,
and one that may mean several genes, is left out and reported as ambiguous. Names that mean the same gene are summed and
reported. The Ensembl id of another species is no gene of the vocabulary, whatever its symbol, and where most names
differ in letter case only, as those of mouse (Cd3d) and human (CD3D) do, none is taken for the other.

`onto` is the door for files: what `naming` reads in a file's table of genes, mapped.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.genes import naming, other_species
from data_pipeline.genes.finder import AMBIGUOUS, UNKNOWN, Finder, clean
from data_pipeline.genes.gene_table import GeneTable, is_id, read_genes, read_table, strip_version
from data_pipeline.genes.mapping_report import EXAMPLES, MappingReport

__all__ = [
    "GeneTable",
    "Mapping",
    "MappingReport",
    "file_names",
    "is_id",
    "learn",
    "map_genes",
    "onto",
    "read_genes",
    "read_table",
    "second_names",
    "strip_version",
    "union",
]

STEPS = ("exact", "version", "second", "table", "previous", "alias", "case", "number")
SAMPLE = 64
"""Cells of a file that are looked at to tell what share of its counts its mapped names hold."""
LARGEST = 2**31 - 1
"""The largest count."""


@dataclass
class Mapping:
    """Where each name of a file goes in a vocabulary.

    Attributes:
      index: position in the vocabulary, -1 where unknown, int32. [n_names]
      n_vocab: genes of the vocabulary. report: what became of the names.
      zeroed: genes whose counts are left out, bool [n_vocab]; None for none.
    """

    index: np.ndarray
    n_vocab: int
    report: MappingReport
    zeroed: np.ndarray | None = None

    def apply(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return `counts` [cells, n_names] in the columns of the vocabulary [cells, n_vocab], duplicates summed."""
        if counts.shape[1] != len(self.index):
            raise ValueError(f"counts of {counts.shape[1]} genes do not fit a mapping of {len(self.index)} names")
        columns = self.index[counts.indices]
        kept = columns >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
        shape = (counts.shape[0], self.n_vocab)
        mapped = sparse.csr_matrix((counts.data[kept], columns[kept], indptr), shape=shape)
        small = self.report.merged and mapped.data.dtype.kind in "iu"
        if small:  # sums of int32 would run over
            mapped.data = mapped.data.astype(np.int64)
        mapped.sum_duplicates()
        if self.zeroed is not None:
            mapped.data[self.zeroed[mapped.indices]] = 0
            mapped.eliminate_zeros()
        return _narrow(mapped, counts.data.dtype) if small else mapped

    def compact(self, multiple: int = 256, most: float = 0.75) -> tuple[np.ndarray, "Mapping"]:
        """Return (genes of the vocabulary that the file has, ascending, int32 [M]; the mapping onto these M).

        M is a multiple of `multiple`, with n_vocab in the padding. Of a file that has nearly all, more than `most`,
        the whole vocabulary stays, and the mapping as it is.
        """
        columns = np.unique(self.index[self.index >= 0])
        size = max(1, -(-len(columns) // multiple)) * multiple
        if size > most * self.n_vocab:
            return np.arange(self.n_vocab, dtype=np.int32), self
        index = np.where(self.index >= 0, np.searchsorted(columns, self.index), -1).astype(np.int32)
        zeroed = None if self.zeroed is None else np.pad(self.zeroed[columns], (0, size - len(columns)))
        padded = np.pad(columns, (0, size - len(columns)), constant_values=self.n_vocab).astype(np.int32)
        return padded, replace(self, index=index, n_vocab=size, zeroed=zeroed)

    def without_rare(self, counts: Any, fraction: float) -> "Mapping":
        """Return this mapping of an open file, with genes zeroed as ingest does: one pass over the file, and a note.

        They are those with fewer counts than `fraction` (0.003 in sCT's paper) times the cells that have any count.
        """
        total, cells = np.zeros(self.n_vocab), 0
        for _, rows in counts.chunks():
            mapped = self.apply(rows)
            total += np.bincount(mapped.indices, mapped.data, self.n_vocab)
            cells += int((np.diff(mapped.indptr) > 0).sum())
        zeroed = (total > 0) & (total < fraction * cells)
        few = f"{int(zeroed.sum()):,} genes with fewer counts than {fraction:g} times the cells"
        self.report.notes.append(f"{few} are zeroed, as in training")
        return replace(self, zeroed=zeroed)


def _narrow(sums: sparse.csr_matrix, dtype: np.dtype) -> sparse.csr_matrix:
    """Return sums of int64 in `dtype`; ValueError where one is too large for it."""
    most = min(np.iinfo(dtype).max, LARGEST)
    if sums.nnz and sums.data.max() > most:
        large = f"the counts of names of one gene add up to {sums.data.max():,} in a cell"
        raise ValueError(f"{large}, above {most:,}: are these counts of reads? Leave one of the names out")
    sums.data = sums.data.astype(dtype)
    return sums


def onto(
    counts: Any,
    genes: Sequence[str] | Finder,
    *,
    table: GeneTable | None = None,
    min_mapped: float | None = 0.5,
    whose: str = "model",
) -> Mapping:
    """Return the mapping of an open file (`h5ad.Counts` or anything like it) to `genes`, see `map_genes`.

    Args:
      whose: vocabulary `genes` is, in the report. For a model's, the file's first cells tell the share of the counts.

    Raises:
      ValueError: `naming.read` finds no names, or too few are known.
    """
    finder = _finder(genes, table)
    names = naming.read(counts.var, str(counts.path), naming.are_numbers(finder.names))
    try:
        mapping = map_genes(names.names, finder, ensembl=names.second, third=names.third, min_mapped=min_mapped)
    except ValueError as error:
        like = ", ".join(map(str, naming.like_genes(counts.var, names.columns)))
        hint = f"; columns of var that look like genes: {like} (make the right one the index)" if like else ""
        raise ValueError(f"{counts.path}: {error}{hint}") from None
    mapping.report.whose = whose
    mapping.report.notes[:0] = [*getattr(counts, "notes", ()), *names.notes]
    if whose == "model":
        block = counts.rows(0, min(SAMPLE, counts.n_cells))
        held = block.data[mapping.index[block.indices] >= 0].sum(dtype=np.float64)
        mapping.report.share = float(held / max(block.data.sum(dtype=np.float64), 1))
    return mapping


def map_genes(
    names: Iterable[str],
    vocab: Sequence[str] | Finder,
    *,
    ensembl: Iterable[str] | None = None,
    third: Iterable[str] | None = None,
    table: GeneTable | None = None,
    min_mapped: float | None = 0.5,
) -> Mapping:
    """Find the genes of `vocab` (Ensembl ids, symbols, or both) that `names` mean; see the module's docstring.

    Args:
      names: of the genes of a file, "" for none. [n_names]
      vocab: genes, each once; or, for more than one file, a `Finder` of them and of the table. [n_vocab]
      ensembl, third: other names of each gene, "" where there is none (`naming.read` finds them). [n_names]
      table: gene tables from `read_table`, or what `learn` knows of the vocabulary.
      min_mapped: ValueError where both the share of names that are mapped and the share of the vocabulary that is found
        are below this; None for no such limit.
    """
    names, finder = clean(names), _finder(vocab, table)
    vocab = finder.names
    second, third = (clean(other) if other is not None else [""] * len(names) for other in (ensembl, third))
    if not names or not vocab:
        raise ValueError(f"{len(names)} gene names for a vocabulary of {len(vocab)} genes: nothing to map")
    if len(second) != len(names) or len(third) != len(names):
        raise ValueError(f"{len(second)} second names for {len(names)} genes: one for each is needed")
    steps = [""] * len(names)
    index = np.full(len(names), UNKNOWN, np.int32)
    rows = list(zip(names, second, third, strict=True))
    for i, (name, *others) in enumerate(rows):
        steps[i], index[i] = finder.surely(name, others)
    taken = set(index[index >= 0].tolist())
    for i in np.flatnonzero(index == UNKNOWN):
        steps[i], index[i] = finder.likely(rows[i], taken)
    notes = other_species.by_case(rows, index, steps, finder)
    for i, place in naming.numbered(names).items():
        if index[i] == UNKNOWN and index[place] >= 0:
            steps[i], index[i] = "number", index[place]
    notes += other_species.by_ids(rows, index, finder)
    report = _report(names, vocab, index, steps)
    report.notes = notes
    mapping = Mapping(np.maximum(index, -1), len(vocab), report)
    _check_share(mapping, min_mapped, finder)
    return mapping


def _finder(vocab: Sequence[str] | Finder, table: GeneTable | None) -> Finder:
    return vocab if isinstance(vocab, Finder) else Finder(vocab, table or GeneTable())


def file_names(counts: Any) -> tuple[list[str], list[str]]:
    """Return what an open file calls its genes, and their other names, "" where there is none; see `naming.read`.

    A name that was made unique, with an id beside it, is the symbol that it was made of.
    """
    file = naming.read(counts.var, str(counts.path))
    stems = {i: place for i, place in naming.numbered(file.names).items() if is_id(file.second[i])}
    return [file.names[stems.get(i, i)] for i in range(len(file.names))], file.second


def second_names(var: pd.DataFrame) -> list[str] | None:
    """Return the other name of each gene that `naming.read` finds in a file, None where no gene has one."""
    second = naming.read(var, numbers=True).second
    return second if any(second) else None


Study = tuple[Sequence[str], Sequence[str] | None]  # names, second names or None


def learn(studies: Iterable[Study], table: GeneTable | None = None) -> GeneTable:
    """Return `table` with what the studies say: the id and the symbol that they give a gene are the same gene."""
    learnt = copy.deepcopy(table) if table else GeneTable()
    pairs = [pair for names, second in studies for pair in zip(clean(names), clean(second or ()), strict=False)]
    for name, other in dict.fromkeys(pairs):
        id, symbol = (name, other) if is_id(name) else (other, name)
        new = table is None or table.find(strip_version(id)) or not table.find(symbol)
        if is_id(id) and new:  # an id that the table has replaced is left to its symbol
            learnt.add(id, symbol)
    return learnt


def union(studies: Iterable[Study], table: GeneTable | None = None, start: Sequence[str] = ()) -> list[str]:
    """Return one vocabulary for several studies, each gene once: `start`, then new genes in order of appearance.

    A gene goes by its Ensembl id where the study or the table gives one, else by its name; a name that `map_genes` can
    find already with `table` adds nothing. So a vocabulary only grows at its end. Give `learn(studies, table)` as the
    table, here and to `map_genes`, so that the ids of one study serve the symbols of another.
    """
    table, vocab = table or GeneTable(), list(start)
    studies = [(clean(names), clean(second) if second is not None else [""] * len(names)) for names, second in studies]
    finder = Finder(vocab, table)
    for names, second in studies * 2:  # again, for a name that the genes of later studies made ambiguous
        missing = range(len(names))
        if vocab and names:
            missing = np.flatnonzero(map_genes(names, finder, ensembl=second, min_mapped=None).index < 0)
        again = {i for i in naming.numbered(names) if not is_id(second[i])}
        new = [_canonical(names[i], second[i], table) for i in missing if i not in again]
        before, vocab = len(vocab), list(dict.fromkeys(vocab + [name for name in new if name]))
        finder = finder if len(vocab) == before else Finder(vocab, table)
    return vocab


def _canonical(name: str, second: str, table: GeneTable) -> str:
    """Return the Ensembl id of a gene where there is one without doubt, else its name."""
    for candidate in (second, name):
        if is_id(candidate):
            return strip_version(candidate)
    rows = table.find(name)
    return (table.ids[rows[0]] or name if len(rows) == 1 else name) or second


def _report(names: list[str], vocab: Sequence[str], index: np.ndarray, steps: list[str]) -> MappingReport:
    """Count and pick examples; of renamed genes those of the least certain step come first."""
    mapped = np.flatnonzero(index >= 0)
    by = Counter(steps[i] for i in mapped)
    renamed = [i for i in mapped if steps[i] not in ("exact", "version", "second")]
    shown = sorted(renamed, key=lambda i: -STEPS.index(steps[i]))[:EXAMPLES]
    per_gene = Counter(index[mapped].tolist())
    unknown = [i for i in range(len(names)) if index[i] < 0]
    ambiguous = [i for i in unknown if index[i] == AMBIGUOUS]
    merged = [gene for gene, count in per_gene.items() if count > 1]
    return MappingReport(
        n=len(names),
        mapped=len(mapped),
        renamed=len(renamed),
        merged=len(mapped) - len(per_gene),
        unknown=len(unknown),
        ambiguous=len(ambiguous),
        vocab=len(vocab),
        covered=len(per_gene),
        by={step: by[step] for step in STEPS if by[step]},
        examples={
            "renamed": [f"{names[i]} -> {vocab[index[i]]} ({steps[i]})" for i in shown],
            "merged": [f"{vocab[gene]} x {per_gene[gene]}" for gene in merged[:EXAMPLES]],
            "unknown": [names[i] for i in unknown if names[i]][:EXAMPLES],
            "ambiguous": [f"{names[i]} ({steps[i]})" for i in ambiguous[:EXAMPLES]],
        },
    )


def _check_share(mapping: Mapping, least: float | None, finder: Finder) -> None:
    """Raise ValueError, in one line with what to do, where names and vocabulary are both mapped below `least`."""
    report, vocab = mapping.report, finder.names
    if least is None or max(report.mapped / report.n, report.covered / report.vocab) >= least:
        return
    kind = "Ensembl ids" if is_id(vocab[0]) else "symbols"
    both = any(finder.table.ids) and any(finder.table.symbols)
    way = "" if both else "give a gene table (gene_table, HGNC or GENCODE) that knows both, lower min_mapped, or "
    names_known = f"{report.mapped:,} of {report.n:,} gene names ({report.mapped / report.n:.1%}) are known"
    genes_covered = (
        f"{report.covered:,} of {report.vocab:,} vocabulary genes ({report.covered / report.vocab:.1%}) found"
    )
    raise ValueError(
        f"only {names_known} and {genes_covered}, one must reach {least:.0%}: the file has names like "
        f"{', '.join(report.examples['unknown'][:3])}, the vocabulary {kind} like {', '.join(vocab[:3])}; "
        f"{'; '.join(report.notes) or f'{way}check the species'}"
    )
