"""The Gene Ontology's terms and what they stand under, from a file in OBO format (go-basic.obo, go.obo).

Format: http://owlcollab.github.io/oboformat/doc/GO.format.obo-1_4.html. Only [Term] stanzas are read, and of their
relations is_a and part_of: the two along which an annotation is handed on to an ancestor.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import sparse

from data_pipeline.genes.gene_table import read_lines

ASPECTS = {
    **dict.fromkeys(("P", "BP", "biological_process", "Process"), "P"),
    **dict.fromkeys(("F", "MF", "molecular_function", "Function"), "F"),
    **dict.fromkeys(("C", "CC", "cellular_component", "Component"), "C"),
}
ANCESTORS = {"none": (), "is_a": ("is_a",), "part_of": ("is_a", "part_of")}
"""What counts as an ancestor of a term: nothing, what it is, or what it is and what it is part of."""


@dataclass
class Ontology:
    """Terms and what they stand under.

    Attributes:
      aspect: P, F or C of every term that is not obsolete.
      parents: {relation: {term: parents}} for is_a and part_of; parents of other ontologies are left out.
      current: the term that an id stands for: itself, that of a secondary id, the replacement of an obsolete one.
      obsolete: ids of obsolete terms.
    """

    aspect: dict[str, str] = field(default_factory=dict)
    parents: dict[str, dict[str, list[str]]] = field(default_factory=lambda: {"is_a": {}, "part_of": {}})
    current: dict[str, str] = field(default_factory=dict)
    obsolete: set[str] = field(default_factory=set)

    def closure(self, relations: Sequence[str]) -> tuple[list[str], sparse.csr_matrix]:
        """Return (terms, matrix [T, T] that is True where the column is the row's term or one of its ancestors).

        ValueError where a term is its own ancestor.
        """
        terms = list(self.aspect)
        place = {term: i for i, term in enumerate(terms)}
        above = [{place[p] for r in relations for p in self.parents[r].get(term, ()) if p in place} for term in terms]
        below: list[list[int]] = [[] for _ in terms]
        for i, parents in enumerate(above):
            for parent in parents:
                below[parent].append(i)
        waiting = [len(parents) for parents in above]
        ready = [i for i, number in enumerate(waiting) if not number]
        ancestors: list[set[int]] = [set() for _ in terms]
        for i in ready:  # grows: parents come before their children
            ancestors[i] = {i}.union(*(ancestors[p] for p in above[i]))
            for child in below[i]:
                waiting[child] -= 1
                if not waiting[child]:
                    ready.append(child)
        if len(ready) < len(terms):
            stuck = next(i for i, number in enumerate(waiting) if number)
            raise ValueError(f"the ontology goes in a circle at {terms[stuck]} over {', '.join(relations)}")
        indptr = np.cumsum([0] + [len(places) for places in ancestors])
        indices = np.concatenate([np.fromiter(places, np.int64, len(places)) for places in ancestors])
        return terms, sparse.csr_matrix((np.ones(len(indices), bool), indices, indptr), shape=(len(terms),) * 2)


def read_obo(path: str | os.PathLike) -> Ontology:
    """Read an ontology in OBO format, gzipped or not; ValueError for another file."""
    ontology, stands_for = Ontology(), {}
    for stanza in _terms(read_lines(Path(path))):
        id = stanza["id"][0]
        if "true" in stanza.get("is_obsolete", ()):
            ontology.obsolete.add(id)
            stands_for[id] = stanza.get("replaced_by", [])
            continue
        stands_for |= {secondary: [id] for secondary in stanza.get("alt_id", ())}
        relations = [value.split() for value in stanza.get("relationship", ())]
        ontology.aspect[id] = ASPECTS.get(stanza.get("namespace", [""])[0], "")
        ontology.current[id] = id
        ontology.parents["is_a"][id] = stanza.get("is_a", [])
        ontology.parents["part_of"][id] = [value[1] for value in relations if value[0] == "part_of"]
    if not ontology.aspect:
        raise ValueError(f"{path}: no [Term] in it: an ontology in OBO format is expected, such as go-basic.obo")
    for id in stands_for:
        new, seen = id, set()
        while new not in ontology.aspect and new not in seen and len(stands_for.get(new, ())) == 1:
            seen.add(new)
            new = stands_for[new][0]
        if new in ontology.aspect:
            ontology.current.setdefault(id, new)
    return ontology


def _terms(lines: list[str]) -> Iterator[dict[str, list[str]]]:
    """Yield {tag: values} of every [Term] with an id, values without comments and qualifiers."""
    stanza: dict[str, list[str]] | None = None
    for line in [*lines, "[End]"]:
        if line.startswith("["):
            if stanza and "id" in stanza:
                yield stanza
            stanza = {} if line.strip() == "[Term]" else None
        elif stanza is not None and ":" in line:
            tag, value = line.split(":", 1)
            stanza.setdefault(tag, []).append(value.split(" !")[0].split(" {")[0].strip())
