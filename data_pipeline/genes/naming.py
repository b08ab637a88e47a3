"""What a file calls its genes: the one place that reads a table of genes (var), from whatever kind of file it comes.

A gene may have three names: the index, an Ensembl id and a symbol, in columns that are found by what they are called
and by what is in them. A gene without any is left out, never merged with another nameless one; an index of numbers
(rows of a data base or of a matrix) names no gene, so a column must.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from data_pipeline.genes.gene_table import COLUMNS, is_id

_IDS = (*COLUMNS["id"], "feature_id", "ensembl_ids", "ensembl_gene", "ensg", "geneid", "gene_accession")
_SYMBOLS = (*COLUMNS["symbol"], "symbols", "gene_names", "genesymbol", "gene", "genes", "feature", "features")
_MISSING = {"nan", "NaN", "NAN", "None", "NA", "N/A", "<NA>", "NaT", "NULL"}
_NUMBER = re.compile(r"-?\d+(\.0*)?")
_SYMBOL = re.compile(r"^(?=.*[A-Za-z])[\w.@/()-]{2,30}$")


@dataclass
class FileGenes:
    """The genes of a file.

    Attributes:
      names: of each gene, "" where it has none. second, third: other names, "" where there is none. [n_names]
      notes: where they were read and what has no name, a line each. columns: those of var that they were read in.
    """

    names: list[str]
    second: list[str]
    third: list[str]
    notes: list[str] = field(default_factory=list)
    columns: tuple[object, ...] = ()


def read(var: pd.DataFrame, where: str = "the file", numbers: bool = False) -> FileGenes:
    """Return what `var` calls its genes.

    Args:
      where: the file, in errors. numbers: numbers are names of genes (NCBI's), as in the vocabulary that is asked for.

    Raises:
      ValueError: the index is numbers and no column has names; those that look as if they had are listed.
    """
    index, notes = _named(texts(var.index)), []
    ids, symbols, column_ids, column_symbols = _columns(var)
    order = [index, column_symbols] if _mostly(index, is_id) else [index, column_ids, column_symbols]
    if _mostly(index, _is_number):
        if ids is None and symbols is None and not numbers:
            raise ValueError(_no_names(var, where, index))
        order = [column_symbols, column_ids] + [index] * numbers
        if ids is not None or symbols is not None:
            notes.append(f"var's index is numbers: its column {ids if symbols is None else symbols} names the genes")
    elif len(order) == 3 and _mostly(column_ids, is_id):
        other = sum(a != b for a, b in zip(index, column_symbols, strict=True) if b)
        if 2 * other > len(index):
            order = [column_symbols, column_ids, index]
            notes.append(f"var's index is other names than its column {symbols}, which names the genes")
    names, second, third = _filled(*order)
    if unnamed := len(names) - sum(map(bool, names)):
        notes.append(f"{unnamed:,} genes without a name are left out")
    return FileGenes(names, second, third, notes, tuple(c for c in (ids, symbols) if c is not None))


def texts(values: Iterable) -> list[str]:
    """Return values of an index or a column as text, "" where one is missing."""
    series = pd.Series(values).astype(object)
    pairs = zip(series, series.isna(), strict=True)
    return ["" if missing else value.strip() if type(value) is str else _text(value) for value, missing in pairs]


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace").strip()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def numbered(names: Sequence[str]) -> dict[int, int]:
    """Return {position: position of the name without its number} of names that were made unique.

    anndata writes MATR3, MATR3-1, MATR3-2 and R MATR3, MATR3.1 where a symbol is that of several genes: the numbers
    begin at 1 and leave none out, behind the name itself.
    """
    first = dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
    last: dict[str, tuple[int, int]] = {}
    made: dict[int, int] = {}
    for i, name in enumerate(names):
        until = name.rstrip("0123456789")
        stem, digits = until[:-1], name[len(until) :]
        if digits and until[-1:] in ("-", ".") and first.get(stem, i) < i:
            place, number = last.get(stem, (first[stem], 0))
            if int(digits) == number + 1 and place < i:
                last[stem], made[i] = (i, number + 1), first[stem]
    return made


def _named(names: list[str]) -> list[str]:
    """Return names, "" for those that say that there is none. One gene alone may be called nan: FlyBase has it."""
    if _MISSING.isdisjoint(names) and "" not in names:
        return names
    plain = list(names)
    for i, place in numbered(names).items():
        if names[place] in _MISSING or not names[place]:
            plain[i] = names[place]
    often = Counter(plain)
    return ["" if name in _MISSING and (name != "nan" or often[name] > 1) else name for name in plain]


def _filled(*names: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return up to three names of each gene: those that it has, each once, then ""."""
    lists = ([], [], [])
    for row in zip(*names, strict=True):
        for values, name in zip(lists, [*dict.fromkeys(filter(None, row)), "", "", ""], strict=False):
            values.append(name)
    return lists


def _columns(var: pd.DataFrame) -> tuple[object | None, object | None, list[str], list[str]]:
    """Return the columns of Ensembl ids (other ids where there are none) and of symbols, and what is in them.

    None, and "" for every gene, where there is none.
    """
    columns: dict[str, object] = {}
    for column in var.columns:
        name = re.sub(r"-\d+$", "", str(column).strip().lower())  # anndata: gene_ids-0, gene_ids-1
        columns.setdefault(re.sub(r"[\s.-]+", "_", name), column)

    def called(names: Sequence[str]) -> list[object]:
        return [columns[name] for name in dict.fromkeys(n.replace(" ", "_") for n in names) if name in columns]

    by_id, by_symbol = called(_IDS), called(_SYMBOLS)
    values = {column: texts(var[column]) for column in (*by_id, *by_symbol)}
    ids = next((c for c in (*by_id, *by_symbol) if _mostly(values[c], is_id)), None)
    left = [c for c in by_symbol if c != ids and _distinct(values[c]) and not _mostly(values[c], _is_number)]
    symbols = next((c for c in left if not _mostly(values[c], is_id)), None)
    if ids is None:
        ids = next((c for c in by_id if _distinct(values[c]) and not _rows(values[c])), None)
    return ids, symbols, *(_named(values[c]) if c is not None else [""] * len(var) for c in (ids, symbols))


def _is_number(name: str) -> bool:
    return name[-1:] in "0123456789." and bool(_NUMBER.fullmatch(name))


def _mostly(values: Sequence[str], test: Callable[[str], object]) -> bool:
    present = [value for value in values if value]
    return 2 * sum(map(bool, map(test, present))) > len(present)


def _distinct(values: Sequence[str]) -> bool:
    present = [value for value in values if value]
    return 2 * len(set(present)) > len(present)


def _rows(values: Sequence[str]) -> bool:
    """Return whether the values are the numbers of rows, from 0 or 1 on."""
    return values in ([str(i + start) for i in range(len(values))] for start in (0, 1))


def are_numbers(names: Sequence[str]) -> bool:
    """Return whether a vocabulary is of numbers that may be names of genes (NCBI's), and not those of rows."""
    return _mostly(names, _is_number) and not _rows(list(names))


def like_genes(var: pd.DataFrame, without: Sequence[object] = ()) -> list[object]:
    """Return the columns whose values are distinct and look like ids or symbols."""
    text = [c for c in var.columns if c not in without and not pd.api.types.is_numeric_dtype(var[c])]
    values = {column: texts(var[column]) for column in text}
    return [c for c, names in values.items() if any(names) and _distinct(names) and _mostly(names, _SYMBOL.match)]


def _no_names(var: pd.DataFrame, where: str, index: Sequence[str]) -> str:
    like = like_genes(var)
    there_is = f"columns that look like genes: {', '.join(map(str, like))}" if like else "no column looks like genes"
    return (
        f"{where}: var's index is numbers ({', '.join(index[:3])}), which name no gene, and no column of var is called "
        f"as those of genes are (feature_name, gene_symbols, gene_ids, ...); {there_is}; "
        "make the names the index, or call their column gene_symbols"
    )
