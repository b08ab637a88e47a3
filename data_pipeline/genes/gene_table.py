"""Tables of gene identity and lists of genes, as users have them: HGNC, GENCODE, Ensembl BioMart, or their own.

A `GeneTable` knows, of every gene, its Ensembl id and its symbol (names of level CURRENT), the symbols it had before
(PREVIOUS) and its aliases (ALIAS). Several tables are read as one: rows of the same Ensembl id are the same gene.
"""

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

CURRENT, PREVIOUS, ALIAS = 0, 1, 2

COLUMNS = {  # what a column may be called, most telling first
    "id": ("ensembl_gene_id", "ensembl_id", "ensembl", "gene stable id", "ensembl gene id", "gene_id", "gene_ids"),
    "symbol": (
        "symbol", "approved symbol", "gene_symbol", "gene_symbols", "gene_name", "gene name", "gene_short_name",
        "hgnc_symbol", "mgi_symbol", "external_gene_name", "feature_name",
    ),
    "previous": ("prev_symbol", "previous_symbol", "previous symbols", "previous symbol", "prev_symbols"),
    "alias": ("alias_symbol", "alias symbols", "alias symbol", "aliases", "synonyms", "gene synonym"),
}  # fmt: skip
_ID = re.compile(r"^ENS([A-Z]*)G\d{11}(\.\d+)?(_PAR_Y)?$")
_VERSION = re.compile(r"^(ENS[A-Z]*G\d{11})\.\d+(_PAR_Y)?$")
_GTF = re.compile(r'(gene_id|gene_name) "([^"]*)"')
_REFERENCE = re.compile(r"Ensembl:(ENS[A-Z]*G\d{11})")  # in column dbXrefs of NCBI's gene_info
SPECIES = {
    "": "human", "MUS": "mouse", "RNO": "rat", "DAR": "zebrafish", "MMU": "macaque", "MFA": "crab-eating macaque",
    "PTR": "chimpanzee", "CJA": "marmoset", "SSC": "pig", "BTA": "cow", "OAR": "sheep", "GAL": "chicken", "CAF": "dog",
    "OCU": "rabbit", "XET": "frog",
}  # fmt: skip
"""The species of Ensembl ids, by what stands between ENS and G."""


def strip_version(name: str) -> str:
    """Return an Ensembl gene id without its version (`ENSG00000000003.15`: `ENSG00000000003`), else `name` as it is."""
    match = "." in name and _VERSION.match(name)  # the first test is the faster one
    return match[1] if match else name


def species(name: str) -> str:
    """Return the species of an Ensembl gene id (see SPECIES; else its letters, as ENSXYZG), "" for another name."""
    match = name.startswith("ENS") and _ID.match(name)
    return SPECIES.get(match[1], f"ENS{match[1]}G") if match else ""


def is_id(name: str) -> bool:
    """Return whether `name` is an Ensembl gene id, with or without a version."""
    return name.startswith("ENS") and _ID.match(name) is not None


class GeneTable:
    """Genes by every name they have.

    Attributes:
      ids: Ensembl id without version, or "". [rows]
      symbols: the symbol, or "". [rows]
      rows: for each level, the rows that a name may mean. [3] {name: [row]}
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.symbols: list[str] = []
        self.rows: tuple[dict[str, list[int]], ...] = ({}, {}, {})

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, id: str, symbol: str, previous: Iterable[str] = (), aliases: Iterable[str] = ()) -> None:
        """Add a gene; to the gene of the same Ensembl id (without one: of the same symbol) it adds only names."""
        id = strip_version(id)
        if not id and not symbol:
            return
        rows = self.rows[CURRENT].get(id or symbol)
        if not rows:
            rows = [len(self.ids)]
            self.ids.append(id)
            self.symbols.append(symbol)
        for level, names in ((CURRENT, (id, symbol)), (PREVIOUS, previous), (ALIAS, aliases)):
            for name in names:
                named_rows = self.rows[level].setdefault(name, []) if name else rows
                named_rows.extend(row for row in rows if row not in named_rows)

    def find(self, name: str, level: int = CURRENT) -> Sequence[int]:
        """Return the rows that `name` may mean at `level`."""
        return self.rows[level].get(name, ())


def read_table(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> GeneTable:
    """Read one or more gene tables, gzipped or not: tab or comma separated with a header, or GTF.

    Columns are found by name (see COLUMNS); previous symbols and aliases are separated by "|" or ",". Lines that begin
    with # are comments, but for a header (`#tax_id`, NCBI's gene_info). FileNotFoundError for a wrong path, ValueError
    where a file has neither an id nor a symbol column.
    """
    table = GeneTable()
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        lines = read_lines(Path(path))
        first = next((line for line in lines if line and not line.startswith("#")), "")
        before = len(table)
        if _GTF.search(first):
            _add_gtf(table, lines)
        else:
            _add_columns(table, Path(path), _with_header(lines))
        if len(table) == before and before == 0:
            raise ValueError(f"{path}: no gene in it: a table has a header and a row for every gene")
    return table


def read_genes(path: str | os.PathLike) -> list[str]:
    """Read an ordered list of genes, gzipped or not: .json (a list, {"genes": list} or {gene: position}), or text with
    one gene a line, the first column where there are several, a header such as "gene" or "ensembl_id" left out.

    ValueError for an empty list or a gene that is in it twice.
    """
    lines = read_lines(Path(path))
    genes = _json_genes(path, "\n".join(lines)) if ".json" in Path(path).suffixes else _text_genes(lines)
    if not genes:
        raise ValueError(f"{path}: no genes in it: one a line is expected")
    if len(set(genes)) < len(genes):
        seen: set[str] = set()
        double = next(gene for gene in genes if gene in seen or seen.add(gene))
        raise ValueError(f"{path}: {double} is in the list twice: a vocabulary names every gene once")
    return genes


def _text_genes(lines: list[str]) -> list[str]:
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    separator = "\t" if lines and "\t" in lines[0] else ","
    genes = [row[0].strip() for row in csv.reader(lines, delimiter=separator) if row and row[0].strip()]
    headers = {"gene", "genes", "name", "feature", "index"}.union(*COLUMNS.values())
    return genes[1:] if genes and genes[0].lower() in headers else genes


def _json_genes(path: str | os.PathLike, text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    value = value.get("genes", value) if isinstance(value, dict) else value
    if isinstance(value, dict) and value and all(isinstance(place, int) for place in value.values()):
        value = sorted(value, key=value.get)
    if not isinstance(value, list) or not all(isinstance(gene, str) for gene in value):
        what = f"an object of {', '.join(list(value)[:5])}" if isinstance(value, dict) else f"a {type(value).__name__}"
        raise ValueError(f'{path}: {what}: expected a list of genes, {{"genes": list}} or {{gene: position}}')
    return value


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, gzipped or not; ValueError for another file, FileNotFoundError for none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8-sig") if packed else open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: not a text file, or a damaged .gz: {error}") from error


def _add_gtf(table: GeneTable, lines: list[str]) -> None:
    seen = set()
    for line in lines:
        attributes = dict(_GTF.findall(line))
        if attributes.get("gene_id") and attributes["gene_id"] not in seen:
            seen.add(attributes["gene_id"])
            table.add(attributes["gene_id"], attributes.get("gene_name", ""))


def _with_header(lines: list[str]) -> list[str]:
    """Return the lines that are no comments; the last of the comments before them is the header where it reads so."""
    first = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    comment = next((line.lstrip("#") for line in lines[:first][::-1] if line), "")
    names = {name.strip().lower() for name in re.split(r"[\t,]", comment)}
    header = [comment] * (len(names) > 1 and not names.isdisjoint((*COLUMNS["id"], *COLUMNS["symbol"])))
    return header + [line for line in lines if not line.startswith("#")]


def _add_columns(table: GeneTable, path: Path, lines: list[str]) -> None:
    separator = "\t" if lines and "\t" in lines[0] else ","
    rows = csv.reader(lines, delimiter=separator)
    header = [name.strip().lower() for name in next(rows, [])]
    places = {
        what: next((header.index(name) for name in names if name in header), None) for what, names in COLUMNS.items()
    }
    if places["id"] is None and places["symbol"] is None:
        wanted = f"{', '.join(COLUMNS['id'][:3])} or {', '.join(COLUMNS['symbol'][:3])}"
        raise ValueError(f"{path}: no column of gene names: it has {', '.join(header[:6]) or 'none'}, needs {wanted}")
    places["references"] = header.index("dbxrefs") if "dbxrefs" in header else None
    for row in rows:
        fields = {what: row[i].strip() if i is not None and i < len(row) else "" for what, i in places.items()}
        fields = {what: "" if text == "-" else text for what, text in fields.items()}  # NCBI's sign for nothing
        if reference := _REFERENCE.search(fields["references"]):
            fields["id"] = fields["id"] or reference[1]
        others = (filter(None, map(str.strip, re.split(r"[|,]", fields[what]))) for what in ("previous", "alias"))
        table.add(fields["id"], fields["symbol"], *others)
