"""Is a file of another species than a vocabulary? Told by Ensembl ids, and by how symbols are written.

An id tells its species (ENSMUSG: mouse). Where there are none, symbols do so together: CD3D is written so in man, Cd3d
in mouse and rat. What is of another species is left out and said; where nothing tells the vocabulary's, that is said.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_pipeline.genes.finder import AMBIGUOUS, OUTSIDE, Finder
from data_pipeline.genes.gene_table import species

TURNED = 5
"""Names that differ from the vocabulary's in letter case only, from which on they tell of another species."""


def by_case(rows: Sequence[Sequence[str]], index: np.ndarray, steps: Sequence[str], finder: Finder) -> list[str]:
    """Leave out the names that were found by letter case, where most were and are written as in another species.

    Args:
      rows: all names of each gene of the file. index: the genes of the vocabulary, changed. [n_names]

    Returns what to say of it, a line or none.
    """
    turned = [i for i in np.flatnonzero(index >= 0) if steps[i] == "case"]
    written = [(name, finder.folded.get(name.upper(), {}).get(int(index[i]))) for i in turned for name in rows[i]]
    pairs = [pair for pair in written if pair[1]]
    pairs = [pair for pair in pairs if {_writing(name) for name in pair} == {"Cd3d", "CD3D"}]
    if len(pairs) < TURNED or 2 * len(pairs) <= (index >= 0).sum():
        return []
    index[turned] = AMBIGUOUS
    return [
        f"{len(turned):,} names differ from the vocabulary's in letter case only ({pairs[0][0]} and {pairs[0][1]}), as "
        "symbols of another species do (mouse and human): left out; if the species is the same, write them alike"
    ]


def by_ids(rows: Sequence[Sequence[str]], index: np.ndarray, finder: Finder) -> list[str]:
    """Leave out the genes that have an Ensembl id of another species than the gene that they were taken for.

    Args:
      rows: all names of each gene of the file. index: the genes of the vocabulary, changed. [n_names]

    Returns what to say of it.
    """
    as_a_rule = all(name[3] == "G" for row in rows for name in row if name.startswith("ENS") and len(name) > 3)
    if as_a_rule and finder.all_species <= {"human"}:
        return []  # and there is no need to look at each gene
    species_of = [species(name) or species(second) or species(third) for name, second, third in rows]
    if not any(species_of):
        return []
    if not finder.all_species:
        others = Counter(species_of)
        writings = Counter(map(_writing, finder.names))
        of = ", ".join(name for name in others if name not in ("", "human"))
        if not of or 2 * writings["CD3D"] < len(finder.names):
            return []
        n = sum(count for name, count in others.items() if name not in ("", "human"))
        return [f"{n:,} genes have ids of {of}; the vocabulary does not tell its species: is it the same?"]
    out: Counter[str] = Counter()
    for i, (name, gene) in enumerate(zip(species_of, index.tolist(), strict=True)):
        target = finder.species[gene] if gene >= 0 else ""
        if name and (target != name if target else gene < 0 and name not in finder.all_species):
            index[i] = OUTSIDE
            out[name] += 1
    theirs = " and ".join(sorted(finder.all_species))
    return [f"{n:,} genes have ids of {of}, the vocabulary those of {theirs}: left out" for of, n in out.items()]


def _writing(name: str) -> str:
    """Return how the letters of a symbol are written: CD3D (human), Cd3d (mouse) or "" for neither."""
    if name == name.lower():
        return ""
    return "CD3D" if name == name.upper() else "Cd3d" if name[1:] == name[1:].lower() else ""
