"""A vocabulary by every name its genes have: which gene a single name means, by the steps that `vocab` describes."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from data_pipeline.genes.gene_table import ALIAS, CURRENT, PREVIOUS, GeneTable, is_id, species, strip_version

UNKNOWN, AMBIGUOUS, OUTSIDE = -1, -2, -3


class Finder:
    """The vocabulary by every name its genes have."""

    def __init__(self, vocab: Sequence[str], table: GeneTable):
        self.table = table
        self.names = clean(vocab)
        self.exact: dict[str, int] = {}
        self.stripped: dict[str, int] = {}
        for i, name in enumerate(self.names):
            if self.exact.setdefault(name, i) != i:
                raise ValueError(f"the vocabulary names {name} twice: it must name every gene once")
            self.stripped.setdefault(strip_version(name), i)
        self.of_row = self._of_row() if len(table) else {}

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

    def surely(self, name: str, others: Sequence[str]) -> tuple[str, int]:
        """Return (step, vocabulary gene) by the first four steps."""
        if name in self.exact:
            return "exact", self.exact[name]
        if strip_version(name) in self.stripped:
            return "version", self.stripped[strip_version(name)]
        for other in others:
            if strip_version(other) in self.stripped:
                return "second", self.stripped[strip_version(other)]
        for candidate in (*others, name):
            rows = self.table.find(strip_version(candidate))
            genes = self._genes(rows)
            if genes:
                return "table", next(iter(genes)) if len(genes) == 1 else AMBIGUOUS
            if rows and is_id(candidate):
                return "table", OUTSIDE  # the table knows the gene of this id: its symbol must not make it another one
        return "", UNKNOWN

    def likely(self, names: Sequence[str], taken: set[int]) -> tuple[str, int]:
        """Return (step, vocabulary gene) of the first name that one of the three steps after them finds.

        Ambiguous where the gene is `taken`.
        """
        for name in filter(None, names):
            step, gene = self._likely(name, taken)
            if step:
                return step, gene
        return "", UNKNOWN

    def _likely(self, name: str, taken: set[int]) -> tuple[str, int]:
        for step, level in (("previous", PREVIOUS), ("alias", ALIAS)):
            rows = self.table.find(name, level)
            genes = self._genes(rows)
            if genes:
                sure = len(genes) == 1 and self._one_gene(rows) and not genes & taken
                return step, genes.pop() if sure else AMBIGUOUS
        genes = self.folded.get(name.upper())
        if genes:
            return "case", next(iter(genes)) if len(genes) == 1 and not genes.keys() & taken else AMBIGUOUS
        return "", UNKNOWN

    @cached_property
    def folded(self) -> dict[str, dict[int, str]]:
        """Vocabulary genes by their names in upper case, each with the name as it is written."""
        folded: dict[str, dict[int, str]] = {}
        for name, i in self.stripped.items():
            folded.setdefault(name.upper(), {})[i] = name
        for name, rows in self.table.rows[CURRENT].items():
            for row in rows:
                if (gene := self.of_row.get(row)) is not None:
                    folded.setdefault(name.upper(), {}).setdefault(gene, name)
        return folded

    @cached_property
    def species(self) -> list[str]:
        """The species of each vocabulary gene, "" where neither its name nor the table tells. [n_vocab]"""
        of = [species(name) for name in self.names]
        for row, gene in self.of_row.items():
            of[gene] = of[gene] or species(self.table.ids[row])
        return of

    @cached_property
    def all_species(self) -> set[str]:
        """The species of the vocabulary, as far as it tells."""
        return set(self.species) - {""}

    def _genes(self, rows: Sequence[int]) -> set[int]:
        return {self.of_row[row] for row in rows if row in self.of_row}

    def _one_gene(self, rows: Sequence[int]) -> bool:
        return len({self.table.symbols[row] or self.table.ids[row] for row in rows}) == 1


def clean(names: Iterable[str]) -> list[str]:
    """Return names as text without blanks around them."""
    return [str(name).strip() for name in names]
