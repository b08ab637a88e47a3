"""The notebooks: each runs top to bottom in a namespace of its own, keeps no outputs, and installs what is missing."""

import ast
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import types

import pytest

from tests.harness import commands

NOTEBOOKS = sorted((commands.ROOT / "experiments" / "notebooks").glob("*.ipynb"))
SMALL = {
    "quickstart": {"STEPS": 6, "SEEDS": 1},
    "published_weights": {},
    "finetune_lora": {"STEPS": 4},
    "a_million_tokens": {"CELLS": 6, "SIZES": (2, 6)},
    "read_a_sweep": {"STEPS": 2, "SEEDS": (0,)},
    "knock_out_a_gene": {"EPOCHS": 1},
    "reverse_a_state": {"PERMUTATIONS": 100},
}
"""Parameters of a small run: {notebook: {name: value}}."""
SAYS = {
    "quickstart": (
        "700 cells x 765 genes",
        "185 of the model's 2,000",
        "765 of the model's 765 genes",
        "random twin",
        "report.html",
    ),
    "published_weights": (
        "185 of the model's 2,000",
        "a stand-in",
        "means nothing",
        "scemb",
        "finite",
        "weights.safetensors: True",
    ),
    "finetune_lora": (
        "195 to be named",
        "validation loss: least",
        "the small file gives the same: True",
        "cellplm, lora",
        "logistic regression",
    ),
    "a_million_tokens": ("79,204,163 parameters", "zeros are 67% of all", "with other cells behind it"),
    "read_a_sweep": ("2 points, 0 finished before", "Flowformer", "random twin", "two seeds or more", "2 results"),
    "knock_out_a_gene": ("SYNTHETIC", "random twin", "half of the cells", "correlation of predicted and measured"),
    "reverse_a_state": ("SYNTHETIC", "raised 2 times", "two halves of the state", "strongest reversal: CTSS"),
}
"""What a whole run prints."""


def code(path: pathlib.Path) -> list[dict]:
    """Return the code cells of a notebook."""
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run(path: pathlib.Path, folder: pathlib.Path, timeout: float = 900) -> str:
    """Run the code cells of a notebook in order in a process of its own and return what it prints.

    Its parameters are set to those of SMALL after the cell that is tagged so, as papermill does.
    """
    script, said = folder / "notebook.py", folder / "said.txt"
    parts = []
    for cell in code(path):
        parts.append("".join(cell["source"]))
        if "parameters" in cell["metadata"].get("tags", ()):
            parts += [f"{name} = {value!r}" for name, value in SMALL[path.stem].items()]
    script.write_text("\n".join(parts))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(commands.WARM)
    process = context.Process(target=_execute, args=(script, said))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    text = said.read_text()
    assert process.exitcode == 0, text
    return text


def _execute(script: pathlib.Path, said: pathlib.Path) -> None:
    """Run a script in its folder, both outputs into a file."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.environ |= {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    os.chdir(script.parent)
    sys.path.insert(0, str(commands.ROOT))
    exec(compile(script.read_text(), script, "exec"), {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_top_to_bottom(path, tmp_path):
    said = run(path, tmp_path)
    assert not [part for part in SAYS[path.stem] if part not in said], said


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_installs_first(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4 and set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in code(path):
        assert cell["outputs"] == [] and cell["execution_count"] is None
        assert not cell["metadata"].keys() - {"tags"}
    first, second = code(path)[:2]
    assert 'find_spec("scfm_jax") is None' in "".join(first["source"]) and '"install"' in "".join(first["source"])
    assert second["metadata"]["tags"] == ["parameters"]
    tagged = {target.id for node in ast.parse("".join(second["source"])).body for target in node.targets}
    assert SMALL[path.stem].keys() <= tagged


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_install_that_fails_shows_the_reason_of_pip(path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found for jax>=9")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="No matching distribution found for jax>=9"):
        exec("".join(code(path)[0]["source"]), {})


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_takes_of_a_module_of_ours_is_there(path):
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code(path)))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = {}
    for node in imports:
        if node.module.partition(".")[0] in ("scfm_jax", "data_pipeline", "experiments"):
            space: dict[str, object] = {}
            exec(compile(ast.Module([node], []), str(path), "exec"), space)
            ours |= {name: value for name, value in space.items() if isinstance(value, types.ModuleType)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ours:
            assert hasattr(ours[node.value.id], node.attr), f"{node.value.id}.{node.attr}"


def test_every_notebook_is_run():
    assert SMALL.keys() == SAYS.keys() == {path.stem for path in NOTEBOOKS}
