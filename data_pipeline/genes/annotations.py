"""Which genes the Gene Ontology puts under which terms: GAF annotations, tables, and gene x term matrices.

`read_gaf` reads GAF 2.x (http://geneontology.org/docs/go-annotation-file-gaf-format-2.2), `read_table` any table of
genes and terms; `annotate` makes `Annotations` of what they return, `read_matrix` of a gene x term matrix in an .npz.
What is dropped and why is counted in `Annotations.notes`, never silent:

  negative    the qualifier says NOT
  evidence    the evidence code is not asked for, or is excluded (ND, "no data", says nothing of a gene)
  obsolete    the term is obsolete and the ontology names no replacement
  unknown     the ontology does not have the term
Secondary ids (alt_id) and replaced terms (replaced_by) become the term they stand for.
"""

import operator
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from data_pipeline.genes.gene_table import COLUMNS, is_id, read_lines
from data_pipeline.genes.ontology import ANCESTORS, ASPECTS, Ontology

_GAF = {"id": 1, "name": 2, "qualifier": 3, "term": 4, "evidence": 6, "aspect": 8, "aliases": 10, "taxon": 12}
_TERM_COLUMNS = ("go_id", "go", "go_term_id", "go id", "go term accession", "term", "term_id")


@dataclass
class Annotations:
    """Genes and their terms.

    Attributes:
      names, second: what each gene is called, and its other name or "". [genes]
      aliases: further names of each gene. [genes]
      terms: ids. [T]
      aspect: P, F or C of each term, "" where nobody says. [T]
      matrix: True where a gene has a term. [genes, T]
      notes: how many annotations were read, and dropped for which reason.
    """

    names: list[str]
    second: list[str]
    aliases: list[list[str]]
    terms: list[str]
    aspect: np.ndarray
    matrix: sparse.csr_matrix
    notes: dict[str, int]


def read_gaf(path: str | os.PathLike, taxon: str | None = None) -> pd.DataFrame:
    """Read GAF 2.x annotations, gzipped or not, one row each: id, name, qualifier, term, evidence, aspect, aliases.

    Args:
      taxon: NCBI number of the species to keep, such as "9606"; needed where the file has several.

    Raises:
      ValueError: not a GAF 2 file, several species, or none of `taxon`.
    """
    lines = read_lines(Path(path))
    version = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("!gaf-version:")), "2")
    rows = [line for line in lines if line and not line.startswith("!")]
    short = next((line for line in rows if line.count("\t") < 14), None)
    if not version.startswith("2") or not rows or short is not None:
        columns = f"a row of {short.count(chr(9)) + 1} columns" if short else ""
        what = columns or (f"version {version}" if rows else "no annotations")
        raise ValueError(f"{path}: {what}: a GAF 2 file is expected, with 17 columns separated by tabs")
    fields = zip(*(operator.itemgetter(*_GAF.values())(line.split("\t")) for line in rows), strict=True)
    frame = pd.DataFrame(dict(zip(_GAF, fields, strict=True)), dtype=object)
    species = frame.taxon.str.split("|").str[0].str.removeprefix("taxon:")
    if taxon is None and species.nunique() > 1:
        taxa = ", ".join(sorted(species.unique())[:5])
        raise ValueError(f"{path}: {species.nunique()} species ({taxa}): say which, as taxon 9606")
    if taxon is not None:
        frame = frame[species == str(taxon)].reset_index(drop=True)
        if frame.empty:
            raise ValueError(f"{path}: nothing of taxon {taxon}: it has {', '.join(sorted(species.unique())[:5])}")
    frame["name"] = frame["name"].where(frame["name"] != "", frame["id"])
    return frame.drop(columns="taxon").assign(second="")


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a table with a header, a row for every gene and term, gzipped or not, as `read_gaf` returns it.

    Columns are found by name: a symbol or Ensembl id (or both), `go_id`, and where there are any `evidence`,
    `qualifier` and `aspect`. ValueError where a gene or term column is missing.
    """
    lines = [line for line in read_lines(Path(path)) if line.strip()]
    separator = "\t" if lines and "\t" in lines[0] else ","
    rows = [line.split(separator) for line in lines]
    header = [name.strip().lstrip("#").lower() for name in rows[0]] if rows else []
    wanted = {"id": COLUMNS["id"], "symbol": (*COLUMNS["symbol"], "gene"), "term": _TERM_COLUMNS}
    wanted |= {name: (name,) for name in ("evidence", "qualifier", "aspect")}
    places = {what: next((header.index(n) for n in names if n in header), None) for what, names in wanted.items()}
    if places["term"] is None or (places["id"] is None and places["symbol"] is None):
        raise ValueError(f"{path}: columns {', '.join(header[:6]) or 'none'}: needs a gene (symbol, gene_id) and go_id")
    bad = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
    if bad is not None:
        raise ValueError(f"{path}: row {bad + 1} has {len(rows[bad])} columns, the header {len(header)}")
    columns = {what: [row[i].strip() for row in rows[1:]] for what, i in places.items() if i is not None}
    frame = pd.DataFrame(columns, dtype=object)
    both = "id" in columns and "symbol" in columns
    frame["name"] = frame["symbol"] if "symbol" in columns else frame["id"]
    return frame.assign(second=frame["id"] if both else "", aliases="").drop(columns=["id", "symbol"], errors="ignore")


def annotate(
    rows: pd.DataFrame,
    ontology: Ontology | None = None,
    *,
    evidence: Sequence[str] = (),
    exclude_evidence: Sequence[str] = ("ND",),
    ancestors: str = "none",
) -> Annotations:
    """Return what the rows of `read_gaf` or `read_table` say, each gene name once.

    Args:
      ontology: without it terms are taken as they are written.
      evidence: codes to keep, all if empty. exclude_evidence: codes to drop.
      ancestors: "none", "is_a" or "part_of" (that and is_a): terms whose ancestors count as the gene's own too.

    Raises:
      ValueError: ancestors without an ontology, evidence of a table that has none, nothing left.
    """
    if ancestors not in ANCESTORS or (ancestors != "none" and ontology is None):
        raise ValueError(f"ancestors={ancestors!r}: none, or with an ontology (OBO file) is_a or part_of")
    if "evidence" not in rows and evidence:
        raise ValueError(f"evidence {', '.join(evidence)} is asked for, but the table has no column `evidence`")
    notes = {"read": len(rows)}
    kept = pd.Series(True, rows.index)

    def drop(reason: str, wrong: pd.Series) -> None:
        nonlocal kept
        notes[reason] = int((kept & wrong).sum())
        kept &= ~wrong

    if "qualifier" in rows:
        drop("negative", rows.qualifier.str.upper().str.split("|").map(lambda words: "NOT" in words).astype(bool))
    if "evidence" in rows:
        excluded = rows.evidence.isin(exclude_evidence)
        drop("evidence", excluded | ~rows.evidence.isin(evidence) if evidence else excluded)
    term = rows.term
    if ontology is not None:
        term = rows.term.map(ontology.current)
        drop("obsolete", term.isna() & rows.term.isin(ontology.obsolete))
        drop("unknown", term.isna())
        notes["renamed"] = int((kept & (term != rows.term)).sum())
    if not kept.any():
        raise ValueError(f"no annotation is left: {', '.join(f'{k} {v:,}' for k, v in notes.items())}")
    return _matrix(rows[kept].assign(term=term[kept]), ontology, ancestors, notes)


def _matrix(rows: pd.DataFrame, ontology: Ontology | None, ancestors: str, notes: dict[str, int]) -> Annotations:
    gene, names = pd.factorize(rows.name)
    first = rows.groupby(gene).first()
    if ontology is None:
        column, terms = pd.factorize(rows.term)
        aspect = rows.aspect.map(lambda a: ASPECTS.get(a, "")) if "aspect" in rows else pd.Series("", rows.index)
        aspect = aspect.groupby(column).first().to_numpy(str)
    else:
        terms, above = ontology.closure(ANCESTORS[ancestors])
        column = pd.Index(terms).get_indexer(rows.term)
        aspect = np.array([ontology.aspect[term] for term in terms])
    matrix = sparse.csr_matrix((np.ones(len(rows), bool), (gene, column)), shape=(len(names), len(terms)))
    if ontology is not None:
        matrix = (matrix @ above).astype(bool)
    used = np.flatnonzero(matrix.getnnz(0))
    return Annotations(
        names=[str(name) for name in names],
        second=first.second.tolist(),
        aliases=[[a for a in names.split("|") if a] for names in first.aliases],
        terms=[terms[i] for i in used],
        aspect=aspect[used],
        matrix=matrix[:, used],
        notes=notes,
    )


def read_matrix(path: str | os.PathLike, ancestors: str = "none") -> Annotations:
    """Read a gene x term matrix: an .npz of CSR `data`, `indices`, `indptr`, with `go_id`, `aspect` and the gene names
    `gene_symbol`, `gene_ensembl` or both; data is 2 where a gene has the term itself, 1 where by an ancestor only.

    Any `ancestors` but "none" takes both; over which relations they were inferred is for the file to know. ValueError
    for another file.
    """
    if ancestors not in ANCESTORS:
        raise ValueError(f"ancestors={ancestors!r}: one of {', '.join(ANCESTORS)}")
    try:
        with np.load(path) as arrays:
            held = dict(arrays)
        columns = [held[name].tolist() for name in ("gene_ensembl", "gene_symbol") if name in held]
        shape = (len(columns[0]), len(held["go_id"]))
        matrix = sparse.csr_matrix((held["data"], held["indices"], held["indptr"]), shape=shape)
        matrix.check_format()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, KeyError, IndexError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no CSR matrix of genes and GO terms, or a damaged one: {error}") from None
    matrix = matrix >= (2 if ancestors == "none" else 1)
    names, second = columns[-1], columns[0] if len(columns) == 2 else [""] * shape[0]
    return Annotations(
        names=names,
        second=[name if is_id(name) else "" for name in second],
        aliases=[[] for _ in names],
        terms=held["go_id"].tolist(),
        aspect=np.array([ASPECTS.get(a, "") for a in held.get("aspect", np.full(shape[1], "")).tolist()]),
        matrix=sparse.csr_matrix(matrix),
        notes={"read": int(matrix.nnz)},
    )
