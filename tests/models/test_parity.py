"""Parity promises: the golden cases pass, a wrong number fails, and whatever is broken is one FAIL line."""

import json
import shutil

import numpy as np
import pytest

from experiments import parity
from tests.conftest import SHARED, needs_shared

GOLDEN = SHARED / "golden" / "cellplm"
CASES = sorted(p.name for p in GOLDEN.iterdir()) if GOLDEN.exists() else []


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_golden_case_passes(name):
    result = parity.check(GOLDEN / name)
    assert result.passed, result.line
    assert result.line.startswith(f"PASS cellplm/{name} kind=")


@needs_shared
@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("out/vae_z", lambda x: x * (1 + 1e-3)),
        ("out/strat_genes", lambda x: x[::-1]),
        ("out/obj_nb_denoise", lambda x: x + np.nan),
        ("out/pe_16", lambda x: x[:-1]),
        ("out/never_heard_of", lambda x: np.zeros(3)),
    ],
)
def test_a_wrong_number_fails_and_is_named(tmp_path, key, change):
    folder = shutil.copytree(GOLDEN / "pe_metrics_objectives", tmp_path / "case")
    folder.chmod(0o755)
    arrays = dict(np.load(folder / "arrays.npz"))
    arrays[key] = change(arrays.get(key))
    (folder / "arrays.npz").unlink()
    np.savez(folder / "arrays.npz", **arrays)
    result = parity.check(folder)
    assert not result.passed and result.line.startswith("FAIL cellplm/case kind=functions") and key in result.line


def test_a_broken_folder_is_one_line(tmp_path):
    assert "FAIL nowhere kind=?" in parity.check(tmp_path / "nowhere").line
    (tmp_path / "case.json").write_text("{")
    assert "broken case" in parity.check(tmp_path).line
    (tmp_path / "case.json").write_text(json.dumps({"model": "unheard", "kind": "model"}))
    (tmp_path / "arrays.npz").write_bytes(b"no archive")
    assert "broken case" in parity.check(tmp_path).line
    np.savez(tmp_path / "arrays.npz", x=np.zeros(1))
    assert "golden/unheard.py" in parity.check(tmp_path).line
    (tmp_path / "case.json").write_text(json.dumps({"model": "cellplm", "kind": "dance"}))
    line = parity.check(tmp_path).line
    assert "kind 'dance'" in line and "\n" not in line


def test_a_parameter_without_a_recorded_gradient_must_have_none():
    meta = {"tolerance": {"grad": {"rtol": 1e-3, "atol": 1e-6}}}
    case = parity.Case(None, meta, {"grad/a": np.ones(2)})
    assert parity.compare(case, {"grad/a": np.ones(2), "grad/b": np.zeros(2)}, {})[2] == []
    assert parity.compare(case, {"grad/a": np.ones(2), "grad/b": np.ones(2)}, {})[2] == ["grad/b"]


def test_error_and_tolerance_agree_with_isclose():
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=200)
    ours = theirs + rng.normal(size=200) * 2e-3
    rtol, atol = 1e-3, 1e-3
    each = [parity.relative_error(o, t, atol / rtol) <= rtol for o, t in zip(ours, theirs, strict=True)]
    assert each == list(np.isclose(ours, theirs, rtol=rtol, atol=atol))
    assert parity.relative_error(np.zeros(2), np.zeros(3), 0) == np.inf
