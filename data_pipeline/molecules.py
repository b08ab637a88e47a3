"""Molecules from SMILES: atoms, bonds and fingerprints by RDKit (`pip install 'scfm_jax[chem]'`), kept on disk.

    molecules = read(["CCO", "c1ccccc1"], names=["ethanol", "benzene"], cache="features")
    atom_features(molecules, "deepcdr"), bond_features(molecules)     # [N, 75], [E, 6]
    fingerprints(molecules)                                           # Morgan's, [M, 2048]

What RDKit says of a molecule is kept as small whole numbers, of which the feature sets of three published networks are
made in numpy. So one pass serves all, and a prepared file (`Molecules.write`, `load`) needs no RDKit:

  deepce   62  44 symbols, degree 0-5, hydrogens 0-4, implicit valence 0-5, aromatic; bonds: 6
  deepcdr  75  44 symbols, degree 0-10, implicit valence 0-6, charge, radical electrons, 5 hybridisations, aromatic,
               hydrogens 0-4
  deepdds  78  44 symbols, degree 0-10, hydrogens 0-10, implicit valence 0-10, aromatic; each row divided by its sum

The last place of a one-hot takes what is beyond it, as the published code has it; the 44th symbol is any other.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import whole

SYMBOLS = (  # noqa: SIM905
    "C N O S F Si P Cl Br Mg Na Ca Fe As Al I B V K Tl Yb Sb Sn Ag Pd Co Se Ti Zn H Li Ge Cu Au Ni Cd In Mn Zr Cr Pt "
    "Hg Pb"
).split()
PROPERTIES = ("symbol", "degree", "hydrogens", "valence", "charge", "radicals", "hybridisation", "aromatic")
"""Columns of `Molecules.atoms`; the symbol is its place among SYMBOLS, `len(SYMBOLS)` for any other."""
HYBRIDISATIONS = ("SP", "SP2", "SP3", "SP3D", "SP3D2")
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")
FEATURES: dict[str, tuple[tuple[str, int], ...]] = {
    "deepce": (("symbol", 44), ("degree", 6), ("hydrogens", 5), ("valence", 6), ("aromatic", 0)),
    "deepcdr": (
        *(("symbol", 44), ("degree", 11), ("valence", 7), ("charge", 0), ("radicals", 0)),
        *(("hybridisation", 5), ("aromatic", 0), ("hydrogens", 5)),
    ),
    "deepdds": (("symbol", 44), ("degree", 11), ("hydrogens", 11), ("valence", 11), ("aromatic", 0)),
}
"""Of each set, the properties in their order and the length of their one-hot; 0 for the number itself."""
SALTS = ("refuse", "largest", "whole")
RADIUS, BITS = 2, 2048
"""Of Morgan fingerprints."""
VERSION = 1
"""Of what is kept on disk."""


class Invalid(ValueError):
    """What is wrong with one SMILES and the way out, in one line."""


@dataclasses.dataclass(frozen=True)
class Molecules:
    """Molecules, their atoms one after the other.

    Attributes:
      names: what each is called: its name or its SMILES. [M]
      rows: which of the SMILES that were asked for it is; all, but for those that `skip_invalid` left out. [M]
      atoms: PROPERTIES of each atom, hydrogens left out, int8. [N, 8]
      bonds: the two atoms of each bond, numbered within the molecule, each bond once. [E, 2]
      bond_kinds: place in BONDS (4: another), conjugated, in a ring; int8. [E, 3]
      n_atoms, n_bonds: of each molecule, which has at least one atom. [M]
      bits: Morgan fingerprint of each, eight bits a byte. uint8 [M, 256]
    """

    names: list[str]
    rows: np.ndarray
    atoms: np.ndarray
    bonds: np.ndarray
    bond_kinds: np.ndarray
    n_atoms: np.ndarray
    n_bonds: np.ndarray
    bits: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def write(self, path: str | os.PathLike) -> None:
        """Write the molecules to an .npz that `load` reads."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        with whole.writing(path) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, **{**arrays, "names": np.array(self.names, str)})


def load(path: str | os.PathLike) -> Molecules:
    """Return the molecules of an .npz that `Molecules.write` made; ValueError or OSError where it is no such file."""
    names = [field.name for field in dataclasses.fields(Molecules)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [name for name in names if name not in arrays.files]:
                raise ValueError(f"no array {missing[0]!r}; there are {', '.join(arrays.files) or 'none'}")
            content = {name: arrays[name] for name in names}
    except (ValueError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: no file of molecules ({error}): make one with Molecules.write") from None
    made = Molecules(**{**content, "names": content["names"].astype(str).tolist()})
    sizes = len(made.names), len(made.n_atoms), len(made.n_bonds), len(made.bits), len(made.rows)
    sums = (made.n_atoms.sum(), made.n_bonds.sum(), made.n_bonds.sum())
    if len(set(sizes)) > 1 or sums != (len(made.atoms), len(made.bonds), len(made.bond_kinds)):
        raise ValueError(f"{path}: {sizes} molecules, of {sums} atoms and bonds: its arrays do not belong together")
    return made


def read(
    smiles: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    salts: str = "refuse",
    skip_invalid: bool = False,
    cache: str | os.PathLike | None = None,
    where: str = "SMILES",
    say: Callable[[str], None] = print,
) -> Molecules:
    """Return the molecules of some SMILES.

    Args:
      names: of each, shown in errors and kept.
      salts: what to do with several parts that are not bound to each other: "refuse" them, take the "largest" (most
        atoms but hydrogen), or all as one molecule ("whole", as the published networks do).
      skip_invalid: leave out what cannot be read and `say` what it was, instead of raising.
      cache: folder to keep the result in, under a name made of the SMILES and options.
      where: the file, for errors.

    Raises:
      ValueError: a SMILES that is empty, does not parse or is a salt, with its row and the way out; none is left.
      ImportError: RDKit is not installed and the cache does not have them.
    """
    if salts not in SALTS:
        raise ValueError(f"salts={salts}: must be one of {', '.join(SALTS)}")
    smiles = ["" if one is None or one != one else str(one).strip() for one in smiles]
    names = smiles if names is None else [str(name) for name in names]
    if len(names) != len(smiles):
        raise ValueError(f"{where}: {len(names)} names for {len(smiles)} SMILES: one of each")
    key = hashlib.sha256(repr((VERSION, smiles, names, salts, skip_invalid)).encode()).hexdigest()[:24]
    path = cache and Path(cache) / f"molecules-{key}.npz"
    made, reasons = None, {}
    if path and path.is_file():
        try:
            made = load(path)
        except ValueError as damage:
            say(f"warning: {damage}: it is made again")
    if made is None:
        made, reasons = _read(smiles, names, salts, skip_invalid, where)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.write(path)
    if len(left_out := np.setdiff1d(np.arange(len(smiles)), made.rows)):
        some = "; ".join(reasons.get(row) or f"row {row + 1} ({names[row]})" for row in left_out[:5])
        say(f"{where}: {len(left_out)} of {len(smiles)} left out: {some}{'; ...' if len(left_out) > 5 else ''}")
    return made


def _read(
    smiles: Sequence[str], names: Sequence[str], salts: str, skip_invalid: bool, where: str
) -> tuple[Molecules, dict[int, str]]:
    """Return the molecules, and why a row was left out."""
    rdkit, parts, rows, skipped = _rdkit(), [], [], {}
    with rdkit["quiet"]():
        for row, one in enumerate(smiles):
            try:
                parts.append(_molecule(rdkit, _parsed(rdkit, one, salts)))
                rows.append(row)
            except Invalid as error:
                label = f"row {row + 1}" + (f" ({names[row]})" if names[row] != one and names[row] else "")
                if not skip_invalid:
                    raise ValueError(f"{where}: {label}: {error}, or skip_invalid to leave it out") from None
                skipped[row] = f"{label}: {str(error).split(':')[0]}"
    if not parts:
        raise ValueError(f"{where}: none of {len(smiles)} SMILES is a molecule; is it the right column?")
    atoms, bonds, kinds, bits = zip(*parts, strict=True)
    counts = (np.array([len(x) for x in of], np.int32) for of in (atoms, bonds))
    joined = (np.concatenate(atoms), np.concatenate(bonds), np.concatenate(kinds))
    return Molecules([names[row] for row in rows], np.array(rows), *joined, *counts, np.stack(bits)), skipped


def _parsed(rdkit: Mapping[str, Any], smiles: str, salts: str) -> Any:
    """Return RDKit's molecule of a SMILES; Invalid where there is none."""
    if not smiles:
        raise Invalid("an empty SMILES: give it a structure")
    molecule = rdkit["parse"](smiles)
    if molecule is None:
        raise Invalid(f"{smiles[:60]!r} is no SMILES that RDKit reads: correct it")
    if not molecule.GetNumAtoms():
        raise Invalid("a molecule without atoms: give it a structure")
    if "." in smiles and salts != "whole" and len(parts := rdkit["parts"](molecule, asMols=True)) > 1:
        if salts == "refuse":
            raise Invalid(
                f"{smiles[:60]!r} has {len(parts)} parts that are not bound (a salt): say salts=largest for the "
                "largest of them, salts=whole for all as one"
            )
        return max(parts, key=lambda part: part.GetNumHeavyAtoms())
    return molecule


def _molecule(rdkit: Mapping[str, Any], molecule: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the properties of atoms, bonds, kinds of bonds, and the packed fingerprint of a molecule."""
    place, hybridisation, order = rdkit["symbols"], rdkit["hybridisations"], rdkit["orders"]
    atoms = [
        (
            place.get(atom.GetSymbol(), len(SYMBOLS)),
            atom.GetDegree(),
            atom.GetTotalNumHs(),
            rdkit["valence"](atom),
            atom.GetFormalCharge(),
            atom.GetNumRadicalElectrons(),
            hybridisation.get(atom.GetHybridization(), len(HYBRIDISATIONS) - 1),
            atom.GetIsAromatic(),
        )
        for atom in molecule.GetAtoms()
    ]
    bonds, kinds = [], []
    for bond in molecule.GetBonds():
        bonds.append((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()))
        kinds.append((order.get(bond.GetBondType(), len(BONDS)), bond.GetIsConjugated(), bond.IsInRing()))
    return (
        np.array(atoms, np.int8),
        np.array(bonds, np.int32).reshape(-1, 2),
        np.array(kinds, np.int8).reshape(-1, 3),
        np.packbits(rdkit["morgan"](molecule)),
    )


def _rdkit() -> dict[str, Any]:
    """Return what is needed of RDKit; ImportError says how to install it."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
    except ImportError:
        raise ImportError(
            "SMILES are read by RDKit, which is not installed: pip install 'scfm_jax[chem]', or give an .npz of "
            "molecules that were prepared with it"
        ) from None
    implicit = getattr(Chem, "ValenceType", None)
    morgan = rdFingerprintGenerator.GetMorganGenerator(radius=RADIUS, fpSize=BITS)
    return {
        "parse": Chem.MolFromSmiles,
        "parts": Chem.GetMolFrags,
        "quiet": rdBase.BlockLogs,
        "morgan": morgan.GetFingerprintAsNumPy,
        "valence": (lambda atom: atom.GetValence(implicit.IMPLICIT)) if implicit else Chem.Atom.GetImplicitValence,
        "symbols": {symbol: i for i, symbol in enumerate(SYMBOLS)},
        "hybridisations": {getattr(Chem.HybridizationType, name): i for i, name in enumerate(HYBRIDISATIONS)},
        "orders": {getattr(Chem.BondType, name): i for i, name in enumerate(BONDS)},
    }


def taken(molecules: Molecules, which: Sequence[int]) -> Molecules:
    """Return some of the molecules, in the order of their numbers `which`."""
    which = np.asarray(which, int)

    def parts(values: np.ndarray, number: np.ndarray) -> np.ndarray:
        start = np.cumsum(number) - number
        return np.concatenate([values[start[i] : start[i] + number[i]] for i in which])

    names = [molecules.names[i] for i in which]
    of_bonds = (parts(x, molecules.n_bonds) for x in (molecules.bonds, molecules.bond_kinds))
    each = (x[which] for x in (molecules.n_atoms, molecules.n_bonds, molecules.bits))
    return Molecules(names, molecules.rows[which], parts(molecules.atoms, molecules.n_atoms), *of_bonds, *each)


def atom_features(molecules: Molecules, kind: str) -> np.ndarray:
    """Return one of the published FEATURES of each atom, float32. [N, F]; ValueError for another kind."""
    if kind not in FEATURES:
        raise ValueError(f"atom features {kind!r}: there are {', '.join(FEATURES)}")
    parts = []
    for name, size in FEATURES[kind]:
        values = molecules.atoms[:, PROPERTIES.index(name)].astype(int)
        one_hot = np.minimum(values, size - 1)[:, None] == np.arange(size)
        parts.append(one_hot if size else values[:, None])
    features = np.concatenate(parts, 1).astype(np.float32)
    return features / features.sum(1, keepdims=True) if kind == "deepdds" else features


def bond_features(molecules: Molecules) -> np.ndarray:
    """Return DeepCE's six features of each bond: its kind of four, conjugated, in a ring; float32. [E, 6]"""
    kinds = molecules.bond_kinds
    return np.concatenate([kinds[:, :1] == np.arange(len(BONDS)), kinds[:, 1:]], 1).astype(np.float32)


def fingerprints(molecules: Molecules) -> np.ndarray:
    """Return Morgan fingerprints, 0 and 1 in float32. [M, 2048]"""
    return np.unpackbits(molecules.bits, axis=1).astype(np.float32)
