"""What commands leave behind is whole or not there, and one place writes it."""

import ast
import json
import types

import numpy as np
import pytest

from experiments.analyses import annotation, markers
from experiments.pages import output
from tests.harness import ROOT

WRITERS = {"write_text", "write_bytes", "mkdtemp", "savez", "savez_compressed", "save"}
SOURCES = sorted(path for path in (ROOT / "experiments").rglob("*.py") if path.parent.name != "suite")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nobody_has_a_way_of_their_own_to_write_files(path):
    if path == ROOT / "experiments/pages/output.py":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in WRITERS]
    wrong = [ast.unparse(call) for call in named if not _in_memory(call)]
    assert not wrong, f"write through experiments.pages.output or data_pipeline.files.whole: {wrong}"


def _in_memory(call: ast.Call) -> bool:
    """Return whether numpy writes to a file object called `file`, or `tuning.save` or a head's, which are whole."""
    first = call.args[0] if call.args else None
    return (isinstance(first, ast.Name) and first.id == "file") or ast.unparse(call.func) in (
        "tuning.save",
        "head.save",
    )


def test_a_cell_of_the_annotation_table_has_its_probabilities_before_its_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(annotation, "truth_of", lambda out: ["a", "b", "a"])
    shares, classes = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), ["a", "b"]
    real = output.write_file

    def stopped_before_scores(path, content):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(output, "write_file", stopped_before_scores)
    with pytest.raises(KeyboardInterrupt):
        annotation.write(tmp_path, "row_0", {"seed": 0}, shares, classes)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["row_0.npz"]
    monkeypatch.setattr(output, "write_file", real)
    row = annotation.write(tmp_path, "row_0", {"seed": 0}, shares, classes)
    assert output.read(tmp_path / "cells/row_0.json") == row
    with np.load(tmp_path / "cells/row_0.npz") as saved:
        assert saved["shares"].dtype == np.float32 and saved["classes"].tolist() == classes
    assert sorted(path.name for path in (tmp_path / "cells").iterdir()) == ["row_0.json", "row_0.npz"]


def test_markers_leave_a_whole_folder_or_none(tmp_path, monkeypatch):
    found = {"heat_maps": {"B cell": {ranking: (None, ["A"], []) for ranking in markers.DRAWN}}}
    found |= {"input": "x", "model": "m"}
    drawer = types.SimpleNamespace(limits=lambda maps: (0, 1), draw=lambda *a: b"PNG")
    monkeypatch.setattr(markers, "heat_map", drawer)
    monkeypatch.setattr(markers, "page", lambda found, pictures: "page")
    markers.write(found, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"markers.md", "markers.json"} | {f"heat_map_1_B_cell_{name}.png" for name in markers.DRAWN}
    monkeypatch.setattr(markers, "page", lambda found, pictures: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        markers.write(found, tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_json_carries_its_checksum_and_what_is_damaged_is_made_again_or_named(tmp_path, capsys):
    path, content = tmp_path / "scores.json", {"rows": [{"accuracy": 0.25}]}
    output.write_file(path, content)
    assert output.read(path) == output.finished(path) == content and not capsys.readouterr().err
    path.write_text(path.read_text().replace("0.25", "0.95"))
    assert output.finished(path) is None and "scores.json does not match its checksum" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"scores.json does not match its checksum"):
        output.read(path)
    path.write_text("")
    assert output.finished(path) is None and "is empty: it is made again" in capsys.readouterr().err
    path.write_text(json.dumps(content))
    assert output.read(path) == content and "has no checksum" in capsys.readouterr().err


def test_a_cell_of_the_annotation_table_that_is_damaged_is_made_again(tmp_path, capsys):
    (tmp_path / "cells").mkdir()
    output.write_file(tmp_path / "cells/a.json", {"accuracy": 1.0})
    np.savez(tmp_path / "cells/a.npz", shares=np.ones(3))
    assert annotation.finished(tmp_path, "a") == {"accuracy": 1.0}
    data = (tmp_path / "cells/a.npz").read_bytes()
    (tmp_path / "cells/a.npz").write_bytes(data[:40])
    assert annotation.finished(tmp_path, "a") is None and "a.npz is torn or damaged" in capsys.readouterr().err
