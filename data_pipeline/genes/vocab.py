"""Gene identity: which gene of a vocabulary does each name in a file mean? Never silent, never a guess, no network.

A name is resolved by the first of these that finds exactly one gene (STEPS):
  exact      it is in the vocabulary, letter by letter
  version    it is, but for the version suffix of an Ensembl id
  second     the file's other name of the gene (the Ensembl id of a symbol, or the other way round) is
  table      a gene table gives it (or the second name) as the id or the symbol of a gene of the vocabulary; an id that
             the table knows is never taken for the gene of another id, whatever the symbol
  previous   the table gives it as a former symbol of one gene only
  alias      the table gives it as an alias of one gene only
  case       it is in the vocabulary or the table but for upper and lower case
The last three never add to a gene that another name of the file means by the first four: such a name, and one that may
mean several genes, is left out and reported as ambiguous. Names that mean the same gene are summed and reported.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.genes.gene_table import (
    ALIAS,
    COLUMNS,
    CURRENT,
    PREVIOUS,
    GeneTable,
    is_id,
    read_genes,
    read_table,
    strip_version,
)

__all__ = [
    "GeneTable",
    "Mapping",
    "MappingReport",
    "is_id",
    "learn",
    "map_genes",
    "read_genes",
    "read_table",
    "second_names",
    "union",
]

STEPS = ("exact", "version", "second", "table", "previous", "alias", "case")
EXAMPLES = 5
UNKNOWN, AMBIGUOUS, OUTSIDE = -1, -2, -3


@dataclass
class MappingReport:
    """What became of the names of a file.

    Attributes:
      n: names. mapped: names that are a gene of the vocabulary. renamed: found by the table or letter case only.
      merged: names added to the counts of another one. unknown: names left out; ambiguous: those of them that may be
      a gene of the vocabulary, but not surely. vocab: genes of the vocabulary. covered: those that the file has.
      by: how many names each step resolved. examples: a few of each kind.
    """

    n: int
    mapped: int
    renamed: int
    merged: int
    unknown: int
    ambiguous: int
    vocab: int
    covered: int
    by: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        by = ", ".join(f"{step} {count:,}" for step, count in self.by.items()) or "nothing"
        lines = [
            f"genes: {self.mapped:,} of {self.n:,} names mapped ({self.mapped / self.n:.1%}), "
            f"{self.covered:,} of {self.vocab:,} vocabulary genes found ({self.covered / self.vocab:.1%})",
            f"  by {by}",
        ]
        for kind in ("renamed", "merged", "unknown", "ambiguous"):
            if getattr(self, kind):
                lines.append(f"  {kind} {getattr(self, kind):,}: {', '.join(self.examples[kind])}")
        if self.covered == self.vocab < self.n and self.unknown:
            lines.append("  nothing is missing: the vocabulary has fewer genes than there are names")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return the report as plain values for JSON."""
        return asdict(self)


@dataclass
class Mapping:
    """Where each name of a file goes in a vocabulary.

    Attributes:
      index: position in the vocabulary, -1 where unknown, int32. [n_names]
      n_vocab: genes of the vocabulary. report: what became of the names.
    """

    index: np.ndarray
    n_vocab: int
    report: MappingReport

    def apply(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """Return `counts` [cells, n_names] in the columns of the vocabulary [cells, n_vocab], duplicates summed."""
        if counts.shape[1] != len(self.index):
            raise ValueError(f"counts of {counts.shape[1]} genes do not fit a mapping of {len(self.index)} names")
        columns = self.index[counts.indices]
        kept = columns >= 0
        indptr = np.concatenate([[0], np.cumsum(kept)])[counts.indptr]
        shape = (counts.shape[0], self.n_vocab)
        mapped = sparse.csr_matrix((counts.data[kept], columns[kept], indptr), shape=shape)
        mapped.sum_duplicates()
        return mapped


def map_genes(
    names: Iterable[str],
    vocab: Sequence[str],
    *,
    ensembl: Iterable[str] | None = None,
    table: GeneTable | None = None,
    min_mapped: float | None = 0.5,
) -> Mapping:
    """Find the genes of `vocab` (Ensembl ids, symbols, or both) that `names` mean; see the module's docstring.

    Args:
      names: of the genes of a file. [n_names]
      vocab: genes, each once. [n_vocab]
      ensembl: a second name per gene, "" where unknown (`second_names` finds them). [n_names]
      table: gene tables from `read_table`.
      min_mapped: ValueError where both the share of names that are mapped and the share of the vocabulary that is found
        are below this; None for no such limit.
    """
    names = _clean(names)
    second = _clean(ensembl) if ensembl is not None else [""] * len(names)
    if not names or not len(vocab):
        raise ValueError(f"{len(names)} gene names for a vocabulary of {len(vocab)} genes: nothing to map")
    if len(second) != len(names):
        raise ValueError(f"{len(second)} second names for {len(names)} genes: one for each is needed")
    finder = _Finder(vocab, table or GeneTable())
    steps = [""] * len(names)
    index = np.full(len(names), UNKNOWN, np.int32)
    for i, (name, other) in enumerate(zip(names, second, strict=True)):
        steps[i], index[i] = finder.surely(name, other)
    taken = set(index[index >= 0].tolist())
    for i in np.flatnonzero(index == UNKNOWN):
        steps[i], index[i] = finder.likely(names[i], taken)
    report = _report(names, vocab, index, steps)
    mapping = Mapping(np.maximum(index, -1), len(vocab), report)
    if min_mapped is not None and max(report.mapped / report.n, report.covered / report.vocab) < min_mapped:
        raise ValueError(_too_few(report, min_mapped, vocab, table))
    return mapping


class _Finder:
    """The vocabulary by every name its genes have."""

    def __init__(self, vocab: Sequence[str], table: GeneTable):
        self.table = table
        self.exact: dict[str, int] = {}
        self.stripped: dict[str, int] = {}
        for i, name in enumerate(_clean(vocab)):
            if self.exact.setdefault(name, i) != i:
                raise ValueError(f"the vocabulary names {name} twice: it must name every gene once")
            self.stripped.setdefault(strip_version(name), i)
        self.of_row = self._of_row() if len(table) else {}
        self._folded: dict[str, set[int]] | None = None

    def _of_row(self) -> dict[int, int]:
        """Return the vocabulary gene of each row of the table: by current names, then former ones, then aliases."""
        of_row: dict[int, int] = {}
        left = dict(sorted(self.stripped.items(), key=lambda item: not is_id(item[0])))  # an id is one row only
        for level in (CURRENT, PREVIOUS, ALIAS):
            for name, i in list(left.items()):
                rows = self.table.find(name, level)
                if rows and (level == CURRENT or self._one_gene(rows)):
                    del left[name]
                    for row in rows:
                        of_row.setdefault(row, i)
        return of_row

    def surely(self, name: str, second: str) -> tuple[str, int]:
        """Return (step, vocabulary gene) by the first four steps."""
        if name in self.exact:
            return "exact", self.exact[name]
        if strip_version(name) in self.stripped:
            return "version", self.stripped[strip_version(name)]
        if strip_version(second) in self.stripped:
            return "second", self.stripped[strip_version(second)]
        for candidate in (second, name):
            rows = self.table.find(strip_version(candidate))
            genes = self._genes(rows)
            if genes:
                return "table", next(iter(genes)) if len(genes) == 1 else AMBIGUOUS
            if rows and is_id(candidate):
                return "table", OUTSIDE  # the table knows the gene of this id: its symbol must not make it another one
        return "", UNKNOWN

    def likely(self, name: str, taken: set[int]) -> tuple[str, int]:
        """Return (step, vocabulary gene) by the last three steps, ambiguous where the gene is `taken`."""
        for step, level in (("previous", PREVIOUS), ("alias", ALIAS)):
            rows = self.table.find(name, level)
            genes = self._genes(rows)
            if genes:
                sure = len(genes) == 1 and self._one_gene(rows) and not genes & taken
                return step, genes.pop() if sure else AMBIGUOUS
        genes = self.folded.get(name.upper(), set())
        if genes:
            return "case", next(iter(genes)) if len(genes) == 1 and not genes & taken else AMBIGUOUS
        return "", UNKNOWN

    @property
    def folded(self) -> dict[str, set[int]]:
        """Vocabulary genes by their names in upper case."""
        if self._folded is None:
            self._folded = {}
            for name, i in self.stripped.items():
                self._folded.setdefault(name.upper(), set()).add(i)
            for name, rows in self.table.rows[CURRENT].items():
                genes = self._genes(rows)
                if genes:
                    self._folded.setdefault(name.upper(), set()).update(genes)
        return self._folded

    def _genes(self, rows: Sequence[int]) -> set[int]:
        return {self.of_row[row] for row in rows if row in self.of_row}

    def _one_gene(self, rows: Sequence[int]) -> bool:
        return len({self.table.symbols[row] or self.table.ids[row] for row in rows}) == 1


def second_names(var: pd.DataFrame) -> list[str] | None:
    """Return the other name of each gene in a column of `var`: ids where the index has symbols, and the reverse."""
    names = var.index.astype(str)
    wanted = "symbol" if sum(map(is_id, names)) > len(names) / 2 else "id"
    columns = {str(column).lower(): column for column in var.columns}
    chosen = next((columns[name] for name in COLUMNS[wanted] if name in columns), None)
    return None if chosen is None else _clean("" if pd.isna(name) else name for name in var[chosen].astype(object))


Study = tuple[Sequence[str], Sequence[str] | None]  # names, second names or None


def learn(studies: Iterable[Study], table: GeneTable | None = None) -> GeneTable:
    """Return `table` with what the studies say: the id and the symbol that they give a gene are the same gene."""
    learnt = copy.deepcopy(table) if table else GeneTable()
    for names, second in studies:
        for name, other in zip(_clean(names), _clean(second or ()), strict=False):
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
    studies = [
        (_clean(names), _clean(second) if second is not None else [""] * len(names)) for names, second in studies
    ]
    for names, second in studies * 2:  # again, for a name that the genes of later studies made ambiguous
        missing = range(len(names))
        if vocab and names:
            missing = np.flatnonzero(map_genes(names, vocab, ensembl=second, table=table, min_mapped=None).index < 0)
        vocab = list(
            dict.fromkeys(vocab + [_canonical(names[i], second[i], table) for i in missing if names[i] or second[i]])
        )
    return vocab


def _canonical(name: str, second: str, table: GeneTable) -> str:
    """Return the Ensembl id of a gene where there is one without doubt, else its name."""
    for candidate in (second, name):
        if is_id(candidate):
            return strip_version(candidate)
    rows = table.find(name)
    return table.ids[rows[0]] or name if len(rows) == 1 else name


def _clean(names: Iterable[str]) -> list[str]:
    return [str(name).strip() for name in names]


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
            "unknown": [names[i] for i in unknown[:EXAMPLES]],
            "ambiguous": [f"{names[i]} ({steps[i]})" for i in ambiguous[:EXAMPLES]],
        },
    )


def _too_few(report: MappingReport, least: float, vocab: Sequence[str], table: GeneTable | None) -> str:
    """Say in one line that too few genes are known, and what to do."""
    kind = "Ensembl ids" if is_id(vocab[0]) else "symbols"
    way = "" if table else "give a gene table (gene_table, HGNC or GENCODE) that knows both, lower min_mapped, or "
    names_known = f"{report.mapped:,} of {report.n:,} gene names ({report.mapped / report.n:.1%}) are known"
    genes_covered = (
        f"{report.covered:,} of {report.vocab:,} vocabulary genes ({report.covered / report.vocab:.1%}) found"
    )
    return (
        f"only {names_known} and {genes_covered}, one must reach {least:.0%}: the file has names like "
        f"{', '.join(report.examples['unknown'][:3])}, the vocabulary {kind} like {', '.join(vocab[:3])}; "
        f"{way}check the species"
    )
