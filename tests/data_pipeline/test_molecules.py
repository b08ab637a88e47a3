"""Molecules have the published features, what is none is refused in one line, and bulk profiles are what they say."""

import sys

import numpy as np
import pandas as pd
import pytest

from data_pipeline import bulk, molecules

SMILES = ["CC(N)=O", "c1ccccc1", "C[Si](C)(C)O"]


@pytest.fixture(scope="module")
def three():
    """Return acetamide, benzene and trimethylsilanol."""
    pytest.importorskip("rdkit", reason="RDKit reads SMILES: pip install 'scfm_jax[chem]'")
    return molecules.read(SMILES)


def test_features_of_acetamide_are_those_of_the_three_networks(three):
    assert three.n_atoms.tolist() == [4, 6, 5] and three.n_bonds.tolist() == [3, 6, 4]
    assert three.bonds[:3].tolist() == [[0, 1], [1, 2], [1, 3]]
    deepce, deepcdr, deepdds = (molecules.atom_features(three, kind) for kind in ("deepce", "deepcdr", "deepdds"))
    # methyl carbon: C is the 1st symbol; degree 1, 3 hydrogens, implicit valence 3, not aromatic
    assert np.flatnonzero(deepce[0]).tolist() == [0, 44 + 1, 50 + 3, 55 + 3] and deepce.shape == (15, 62)
    assert np.flatnonzero(deepcdr[0]).tolist() == [0, 44 + 1, 55 + 3, 64 + 2, 70 + 3] and deepcdr.shape == (15, 75)
    assert np.flatnonzero(deepdds[0]).tolist() == [0, 44 + 1, 55 + 3, 66 + 3] and deepdds.shape == (15, 78)
    np.testing.assert_allclose(deepdds[0].max(), 0.25)
    np.testing.assert_allclose(deepdds.sum(1), 1, rtol=1e-6)
    # amide nitrogen: the 2nd symbol, degree 1, 2 hydrogens, sp2
    assert np.flatnonzero(deepcdr[2]).tolist() == [1, 45, 57, 65, 72]
    aromatic = deepdds[4]  # five features, each a fifth
    assert np.flatnonzero(aromatic).tolist() == [0, 46, 56, 67, 77] and aromatic.max() == pytest.approx(0.2)
    bonds = molecules.bond_features(three)
    assert bonds[:4].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    assert molecules.fingerprints(three).shape == (3, 2048) and molecules.fingerprints(three).sum(1).min() > 0
    with pytest.raises(ValueError, match="'gcn': there are deepce, deepcdr, deepdds"):
        molecules.atom_features(three, "gcn")


def test_charges_radicals_and_rare_atoms_are_told(three):
    ion, rare = (molecules.read([text]) for text in ("[O-]C", "[U]"))
    feature = molecules.atom_features(ion, "deepcdr")[0]
    assert feature[62] == -1 and feature[63] == 0
    assert molecules.atom_features(rare, "deepce")[0, 43] == 1, "uranium is any other symbol"
    assert molecules.atom_features(molecules.read(["[CH3]"]), "deepcdr")[0, 63] == 1, "a radical electron"


@pytest.mark.parametrize(
    ("smiles", "said"),
    [
        ("C1CC", "row 2 .bad.: 'C1CC' is no SMILES that RDKit reads: correct it, or skip_invalid"),
        ("  ", "row 2 .bad.: an empty SMILES"),
        (float("nan"), "row 2 .bad.: an empty SMILES"),
        ("CCN.Cl", "2 parts that are not bound .a salt.: say salts=largest .*salts=whole"),
    ],
)
def test_what_is_no_molecule_is_refused_in_one_line_or_left_out(three, smiles, said):
    with pytest.raises(ValueError, match=said) as error:
        molecules.read(["CC", smiles], names=["good", "bad"], where="drugs.tsv")
    assert str(error.value).startswith("drugs.tsv: ") and "\n" not in str(error.value)
    told = []
    made = molecules.read(["CC", smiles, "C"], names=["good", "bad", "also"], skip_invalid=True, say=told.append)
    assert made.names == ["good", "also"] and made.rows.tolist() == [0, 2]
    assert len(told) == 1 and "1 of 3 left out: row 2 (bad)" in told[0]
    with pytest.raises(ValueError, match="none of 1 SMILES is a molecule"):
        molecules.read([smiles], skip_invalid=True)


def test_salts_are_taken_whole_or_by_their_largest_part(three):
    largest, whole = (molecules.read(["CCN.Cl"], salts=how) for how in ("largest", "whole"))
    assert largest.n_atoms.tolist() == [3] and whole.n_atoms.tolist() == [4] and whole.n_bonds.tolist() == [2]
    with pytest.raises(ValueError, match="salts=some: must be one of refuse, largest, whole"):
        molecules.read(["C"], salts="some")


def test_molecules_are_kept_and_read_without_rdkit(three, tmp_path, monkeypatch):
    molecules.read([*SMILES, "C1"], cache=tmp_path, skip_invalid=True, say=lambda _: None)
    monkeypatch.setitem(sys.modules, "rdkit", None)
    told = []
    again = molecules.read([*SMILES, "C1"], cache=tmp_path, skip_invalid=True, say=told.append)
    for name in ("atoms", "bonds", "bond_kinds", "bits", "n_atoms"):
        np.testing.assert_array_equal(getattr(again, name), getattr(three, name))
    assert "1 of 4 left out: row 4 (C1)" in told[0]
    with pytest.raises(ImportError, match=r"pip install 'scfm_jax\[chem\]', or give an .npz"):
        molecules.read(["CCC"], cache=tmp_path)
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    with pytest.raises(ValueError, match=r"other\.npz: no file of molecules .no array 'names'; there are x."):
        molecules.load(tmp_path / "other.npz")


def table(tmp_path, values, name="lines.tsv", **frame):
    """Return the path of a table of lines."""
    options = {"index": ["A", "B"], "columns": ["G1", "G2", "G3"], **frame}
    pd.DataFrame(np.asarray(values), **options).to_csv(tmp_path / name, sep="\t")
    return tmp_path / name


def test_profiles_become_pseudo_counts_and_zscores_never_do(tmp_path):
    tpm = bulk.read(table(tmp_path, [[30.0, 10, 0], [1, 1, 2]]))
    assert (tpm.kind, tpm.lines, tpm.genes) == ("tpm", ["A", "B"], ["G1", "G2", "G3"])
    assert bulk.pseudo_counts(tpm, 100).tolist() == [[75, 25, 0], [25, 25, 50]]
    logged = bulk.read(table(tmp_path, np.log2([[31.0, 11, 1], [2, 2, 3]])))
    assert logged.kind == "log2" and bulk.pseudo_counts(logged, 100).tolist() == [[75, 25, 0], [25, 25, 50]]
    np.testing.assert_allclose(bulk.zscores(logged), bulk.zscores(tpm), atol=1e-6)
    z = bulk.read(table(tmp_path, [[-1.0, 2, 0], [1, 1, 2]]))
    with pytest.raises(ValueError, match="z-scores are no expression that a model could read as cells; give TPM or"):
        bulk.pseudo_counts(z)
    vectors = np.array([[1.0, 0], [0, 1], [2, 2]])
    np.testing.assert_allclose(bulk.weighted(z.values, vectors), np.array([[-1, 2], [5, 5]]) / np.sqrt(3))
    np.savez(tmp_path / "lines.npz", basal=tpm.values, cell=np.array(tpm.lines), gene=np.array(tpm.genes))
    assert bulk.read(tmp_path / "lines.npz").genes == tpm.genes
    assert tpm.take(["B"]).values.tolist() == [[1, 1, 2]]


def test_broken_profiles_are_refused_in_one_line(tmp_path):
    good = [[30.0, 10, 0], [1, 1, 2]]
    cases = [
        (table(tmp_path, good, "a.tsv", index=["A", "A"]), "auto", "the line A is there twice"),
        (table(tmp_path, [[1, np.nan, 2], [1, 2, 3]], "b.tsv"), "auto", "A has no number for G2"),
        (table(tmp_path, [["x", 1, 2], [1, 2, 3]], "c.tsv"), "auto", "no table of lines and genes"),
        (table(tmp_path, [[-1.0, 1, 2], [1, 2, 3]], "d.tsv"), "tpm", "has the value -1, so it is no tpm; say kind=zs"),
        (table(tmp_path, good, "e.tsv"), "log2", "has the value 30, so it is no log2; say kind=tpm"),
        (table(tmp_path, good, "f.tsv"), "counts", "kind=counts: must be one of auto"),
        (tmp_path / "nothing.tsv", "auto", "no such file"),
    ]
    for path, kind, said in cases:
        with pytest.raises((ValueError, OSError), match=said):
            bulk.read(path, kind)
    with pytest.raises(ValueError, match="1 lines have no expression, such as C; leave their rows out"):
        bulk.read(cases[4][0]).take(["A", "C"])
    with pytest.raises(ValueError, match="B expresses nothing"):
        bulk.pseudo_counts(bulk.read(table(tmp_path, [[30.0, 1, 2], [0, 0, 0]])))
